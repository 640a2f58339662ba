//! One file a subcommand.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod model;
pub(crate) mod perplexity;
pub(crate) mod quantize;
pub(crate) mod replay;
pub(crate) mod serve;
pub(crate) mod verify;

use std::io::Write;

use anyhow::Result;
use serde_json::Value;

/// One JSON document on standard output.
fn print_json(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Lines of `name  value`, the values in one column.
fn print_table(rows: &[(&str, String)]) -> Result<()> {
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for (name, value) in rows {
        writeln!(out, "{name:width$}  {value}")?;
    }
    Ok(out.flush()?)
}
