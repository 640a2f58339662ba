//! Texts that the user gives in files or through standard input.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result};
use deephold_base::{ErrorCode, human_bytes};

use crate::fail::{fail, invalid};

/// The most for a prompt: a context of a million tokens is some 5 MiB of text.
const MAX_TEXT_BYTES: u64 = 8 << 20;

/// A prompt, schema, grammar or request: a file, a pipe, or standard input for `-`.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    read_text_within(path, MAX_TEXT_BYTES)
}

/// As [`read_text`], of at most `limit` bytes; no more than that is read of what has no end.
pub(crate) fn read_text_within(path: &Path, limit: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let is_stdin = path.as_os_str() == "-";
    let place = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let read = if is_stdin {
        std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {place}"))?;
        file.take(limit + 1).read_to_end(&mut bytes)
    };
    read.with_context(|| format!("cannot read {place}"))?;
    if bytes.len() as u64 > limit {
        let message = format!("{place} has more than {}, the most that is read here", human_bytes(limit));
        return Err(fail(ErrorCode::LimitExceeded, message));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        invalid(format!("{place} is not UTF-8: byte {at} does not continue a character; convert it first"))
    })
}

/// The prompt, and what is piped in behind it: `--prompt "Summarise:" < report.txt`. `None` where there is neither.
pub(crate) fn with_stdin(prompt: Option<&str>) -> Result<Option<String>> {
    // A terminal is for typing; what else is no file and no pipe, such as a service's socket, may never end.
    let piped = if gives_text() { read_text(Path::new("-"))? } else { String::new() };
    Ok(match prompt {
        Some(prompt) if piped.trim().is_empty() => Some(prompt.to_owned()),
        Some(prompt) => Some(joined(prompt, &piped)),
        None if piped.is_empty() => None,
        None => Some(piped),
    })
}

/// A question and the text that it is about.
pub(crate) fn joined(question: &str, about: &str) -> String {
    format!("{question}\n\n{}", about.trim_end_matches('\n'))
}

/// Whether standard input is a file or a pipe.
fn gives_text() -> bool {
    let file = std::io::stdin().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let kind = file.and_then(|f| f.metadata()).map(|m| m.file_type());
    kind.is_ok_and(|kind| kind.is_file() || kind.is_fifo())
}
