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

use anyhow::Result;
use serde_json::Value;

use crate::console::{self, out, plain};

/// One JSON document on standard output.
fn print_json(value: &Value) -> Result<()> {
    Ok(console::write(&(console::json_text(value, true) + "\n"))?)
}

/// Lines of `name  value`, the values in one column.
fn print_table(rows: &[(&str, String)]) -> Result<()> {
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
    for (name, value) in rows {
        out!("{name:width$}  {}", plain(value))?;
    }
    Ok(())
}
