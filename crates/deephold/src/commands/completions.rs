//! `deephold completions`.

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs};
use crate::console;

pub(crate) fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    // Written whole afterwards: the library panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "deephold", &mut script);
    console::write(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
