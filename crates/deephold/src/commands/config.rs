//! `deephold config`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::print_json;
use crate::cli::ConfigCommand;
use crate::config::{Settings, reference};

pub(crate) fn run(command: &ConfigCommand) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match command {
        ConfigCommand::Check(args) => {
            let settings = Settings::read(args.config.as_deref())?;
            match settings.file() {
                Some(file) => writeln!(out, "{} and the environment are valid", file.display())?,
                None => writeln!(out, "there is no configuration file; the environment is valid")?,
            }
        }
        ConfigCommand::Show(args) => {
            let settings = Settings::read(args.config.as_deref())?;
            if args.json {
                let file = settings.file().map(|f| f.to_string_lossy().into_owned());
                return print_json(&json!({ "file": file, "settings": settings.to_json() }))
                    .map(|()| ExitCode::SUCCESS);
            }
            write!(out, "{}", settings.to_toml(args.origin))?;
        }
        ConfigCommand::Reference => write!(out, "{}", reference())?,
    }
    Ok(ExitCode::SUCCESS)
}
