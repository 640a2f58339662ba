//! Errors as people and scripts see them.

use std::io::Write;
use std::process::ExitCode;

use deephold_audit::AuditError;
use deephold_base::ErrorCode;
use deephold_engine::EngineError;
use deephold_kernels::KernelError;
use deephold_models::ModelError;
use deephold_server::ServerError;
use deephold_state::StateError;
use deephold_tokenizer::TokenizerError;
use deephold_weights::WeightsError;

/// An error of the program itself, with its code.
#[derive(Debug)]
pub(crate) struct Fail {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fail {}

/// An error that names what is wrong with what the user gave.
pub(crate) fn invalid(message: impl Into<String>) -> anyhow::Error {
    Fail { code: ErrorCode::InvalidInput, message: message.into() }.into()
}

/// As [`invalid`], with another code.
pub(crate) fn fail(code: ErrorCode, message: impl Into<String>) -> anyhow::Error {
    Fail { code, message: message.into() }.into()
}

fn code(error: &anyhow::Error) -> ErrorCode {
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
        if cause.downcast_ref::<std::io::Error>().is_some() {
            return ErrorCode::Io;
        }
    }
    ErrorCode::Internal
}

/// Whether the reader of our output has gone, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|c| c.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Prints the error on one line and gives the exit code (sysexits.h).
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Many errors print their cause already.
        if !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
    }
    let code = code(error);
    let _ = writeln!(std::io::stderr(), "error: {}", parts.join(": "));
    if code == ErrorCode::Internal {
        let _ =
            writeln!(std::io::stderr(), "this is a defect of deephold; please report it with the command");
    }
    ExitCode::from(code.exit_code())
}
