//! The `deephold` program: arguments, wiring, and what people see. Everything else is in the crates below.
#![deny(clippy::print_stdout, clippy::print_stderr, reason = "lines go through `console`")]

mod answer;
mod cli;
mod commands;
mod config;
mod console;
mod fail;
mod guide;
mod guided;
mod input;
mod loaded;
mod sandbox;
mod state_dir;
mod system;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use cli::{AuditCommand, Cli, Command, EvalCommand, ModelCommand};

/// Whether the command was given `--json`.
fn asks_for_json(matches: &clap::ArgMatches) -> bool {
    match matches.subcommand() {
        Some((_, inner)) => asks_for_json(inner),
        None => matches.try_get_one::<bool>("json").ok().flatten().copied().unwrap_or(false),
    }
}

fn main() -> ExitCode {
    let parsed = Cli::command().after_long_help(fail::EXIT_CODES).try_get_matches();
    let parsed = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return fail::usage(&error),
    };
    if asks_for_json(&matches) {
        fail::report_as_json();
    }
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
        Command::Loadtest(args) => commands::loadtest::run(&args),
        Command::Eval(EvalCommand::Perplexity(args)) => commands::perplexity::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Serve(_) => commands::serve::run(matches.subcommand_matches("serve").unwrap_or(&matches)),
        Command::Config(command) => commands::config::run(&command),
        Command::Key(command) => commands::key::run(&command),
        Command::Tenant(command) => commands::tenant::run(&command),
        Command::Usage(args) => commands::usage::run(&args),
        Command::State(command) => commands::state::run(&command),
        Command::Audit(AuditCommand::Verify(args)) => commands::audit::verify(&args),
        Command::Audit(AuditCommand::Show(args)) => commands::audit::show(&args),
        Command::Audit(AuditCommand::Export(args)) => commands::audit::export(&args),
        Command::Audit(AuditCommand::Replay(args)) => commands::replay::run(&args),
        Command::Sbom => commands::sbom::run(),
        Command::Completions(args) => commands::completions::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail::report(&error),
    }
}
