//! Errors as people and scripts see them.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use deephold_audit::AuditError;
use deephold_base::ErrorCode;
use deephold_engine::EngineError;
use deephold_kernels::KernelError;
use deephold_loadtest::LoadError;
use deephold_models::ModelError;
use deephold_server::ServerError;
use deephold_state::StateError;
use deephold_tokenizer::TokenizerError;
use deephold_weights::WeightsError;
use serde_json::json;

use crate::console::{self, note};

/// What the program ends with and when, after sysexits.h; `deephold help` shows it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  done; also where the reader of the output has gone, as `head` does
  64  arguments that cannot be used
  65  a file, a prompt or a request that cannot be used; a model that is not sound; another answer in a replay
  66  a file, a model or a record that is not there
  69  well-formed, but not built, or not for this processor
  70  a defect of deephold
  71  not enough memory
  73  an output that exists, or cannot be replaced
  74  the system cannot read or write: a full disk, a broken device
  75  busy, or too late; try again
  77  no permission
 130  stopped by Ctrl-C or a signal";

/// Arguments that cannot be used.
const USAGE: u8 = 64;
/// An output that cannot be made.
const CANNOT_CREATE: u8 = 73;
/// No permission.
const NO_PERMISSION: u8 = 77;

/// Whether errors go to standard output as JSON as well.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on an error is also printed as JSON, for scripts that asked for JSON.
pub(crate) fn report_as_json() {
    AS_JSON.store(true, Ordering::Relaxed);
}

/// An error of the program itself, with its code.
#[derive(Debug)]
pub(crate) struct Fail {
    code: ErrorCode,
    /// Where it says more than the code does.
    exit: Option<u8>,
    message: String,
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fail {}

/// An error that names what is wrong with what the user gave.
pub(crate) fn invalid(message: impl Into<String>) -> anyhow::Error {
    fail(ErrorCode::InvalidInput, message)
}

/// As [`invalid`], of an argument.
pub(crate) fn bad_argument(message: impl Into<String>) -> anyhow::Error {
    Fail { code: ErrorCode::InvalidInput, exit: Some(USAGE), message: message.into() }.into()
}

/// As [`invalid`], of a place to write to.
pub(crate) fn cannot_create(message: impl Into<String>) -> anyhow::Error {
    Fail { code: ErrorCode::InvalidInput, exit: Some(CANNOT_CREATE), message: message.into() }.into()
}

/// As [`invalid`], with another code.
pub(crate) fn fail(code: ErrorCode, message: impl Into<String>) -> anyhow::Error {
    Fail { code, exit: None, message: message.into() }.into()
}

/// Arguments that could not be parsed, or `--help` and `--version`.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // What cannot be printed has no reader.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|a| a == "--json") {
        let message = error.to_string();
        let message = message.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
        print_json(ErrorCode::InvalidInput, USAGE, &message);
    }
    ExitCode::from(USAGE)
}

pub(crate) fn code(error: &anyhow::Error) -> ErrorCode {
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<Fail>() {
            return e.code;
        }
        if let Some(e) = cause.downcast_ref::<WeightsError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<ModelError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<TokenizerError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<EngineError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<KernelError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<ServerError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<StateError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<AuditError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<LoadError>() {
            return e.code();
        }
        if let Some(e) = cause.downcast_ref::<std::io::Error>() {
            return match e.kind() {
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                std::io::ErrorKind::OutOfMemory => ErrorCode::OutOfMemory,
                _ => ErrorCode::Io,
            };
        }
    }
    ErrorCode::Internal
}

/// Whether the reader of our output has gone, as `head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|c| c.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The exit code: that of the error's code, or a nearer one.
fn exit_code(error: &anyhow::Error, code: ErrorCode) -> u8 {
    let stated = error.chain().find_map(|c| c.downcast_ref::<Fail>()).and_then(|f| f.exit);
    let is_flag = error.chain().any(|c| in_words_of_flags(c).is_some());
    let refused = error
        .chain()
        .filter_map(|c| c.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    match stated {
        Some(exit) => exit,
        None if is_flag => USAGE,
        None if refused && code == ErrorCode::Io => NO_PERMISSION,
        None => code.exit_code(),
    }
}

fn print_json(code: ErrorCode, exit: u8, message: &str) {
    let value = json!({ "error": { "code": code.name(), "message": message, "exit_code": exit } });
    let _ = console::write(&(console::json_text(&value, true) + "\n"));
}

/// The error as it names what the user wrote: a flag, where one stands for the engine's parameter.
fn in_words_of_flags(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    let (param, problem) = match cause.downcast_ref::<EngineError>()? {
        EngineError::Parameter { param, problem } | EngineError::Config { param, problem } => {
            (*param, problem)
        }
        _ => return None,
    };
    let flag = match param {
        "max_model_len" => "context".to_owned(),
        "cache_bytes" | "num_blocks" => "cache-memory".to_owned(),
        "max_num_seqs" => "batch".to_owned(),
        "stop_token_ids" => "stop-id".to_owned(),
        other => other.replace('_', "-"),
    };
    Some(format!("--{flag} {problem}"))
}

/// Prints the error on one line and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = in_words_of_flags(cause).unwrap_or_else(|| cause.to_string());
        // Many errors print their cause already.
        if !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
    }
    let (code, message) = (code(error), parts.join(": "));
    let exit = exit_code(error, code);
    note!("error: {message}");
    if code == ErrorCode::Internal {
        note!("this is a defect of deephold; please report it with the command");
    }
    if AS_JSON.load(Ordering::Relaxed) {
        print_json(code, exit, &message);
    }
    ExitCode::from(exit)
}
