//! The `deephold` program: arguments, wiring, and what people see. Everything else is in the crates below.

mod answer;
mod cli;
mod commands;
mod config;
mod fail;
mod guide;
mod guided;
mod input;
mod loaded;
mod state_dir;
mod system;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use cli::{AuditCommand, Cli, Command, EvalCommand, ModelCommand};

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    let result = match cli.command {
        Command::Chat(args) => commands::chat::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Model(ModelCommand::Inspect(args)) => commands::inspect::run(&args),
        Command::Model(ModelCommand::Verify(args)) => commands::verify::run(&args),
        Command::Model(ModelCommand::Load(args)) => commands::model::load(&args),
        Command::Model(ModelCommand::Unload(args)) => commands::model::unload(&args),
        Command::Model(ModelCommand::List(args)) => commands::model::list(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Eval(EvalCommand::Perplexity(args)) => commands::perplexity::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Serve(_) => commands::serve::run(matches.subcommand_matches("serve").unwrap_or(&matches)),
        Command::Config(command) => commands::config::run(&command),
        Command::Key(command) => commands::key::run(&command),
        Command::Audit(AuditCommand::Verify(args)) => commands::audit::verify(&args),
        Command::Audit(AuditCommand::Show(args)) => commands::audit::show(&args),
        Command::Audit(AuditCommand::Export(args)) => commands::audit::export(&args),
        Command::Audit(AuditCommand::Replay(args)) => commands::replay::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail::report(&error),
    }
}
