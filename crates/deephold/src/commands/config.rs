//! `deephold config`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::print_json;
use crate::cli::ConfigCommand;
use crate::config::{Settings, reference};
use crate::console::{self, out, plain};

pub(crate) fn run(command: &ConfigCommand) -> Result<ExitCode> {
    match command {
        ConfigCommand::Check(args) => {
            let settings = Settings::read(args.config.as_deref())?;
            match settings.file() {
                Some(file) => out!("{} and the environment are valid", plain(&file.display().to_string()))?,
                None => out!("there is no configuration file; the environment is valid")?,
            }
        }
        ConfigCommand::Show(args) => {
            let settings = Settings::read(args.config.as_deref())?;
            if args.json {
                let file = settings.file().map(|f| f.to_string_lossy().into_owned());
                return print_json(&json!({ "file": file, "settings": settings.to_json() }))
                    .map(|()| ExitCode::SUCCESS);
            }
            console::write(&settings.to_toml(args.origin))?;
        }
        ConfigCommand::Reference => console::write(&reference())?,
    }
    Ok(ExitCode::SUCCESS)
}
