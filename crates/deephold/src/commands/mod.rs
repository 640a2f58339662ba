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
pub(crate) mod loadtest;
pub(crate) mod model;
pub(crate) mod perplexity;
pub(crate) mod quantize;
pub(crate) mod replay;
pub(crate) mod sbom;
pub(crate) mod serve;
pub(crate) mod state;
pub(crate) mod tenant;
pub(crate) mod usage;
pub(crate) mod verify;

use anyhow::Result;
use deephold_base::{Clock, ErrorCode, SystemClock};
use deephold_server::admin::{self, AdminAnswer, AdminRequest};
use deephold_state::Limits;
use serde_json::{Value, json};

use crate::cli::StateArgs;
use crate::config as settings;
use crate::console::{self, out, plain};
use crate::fail::fail;
use crate::state_dir::StateDir;

fn now_ms() -> i64 {
    SystemClock::default().unix_ms()
}

/// Through a running server, or on the state itself.
fn ask(args: &StateArgs, request: &AdminRequest) -> Result<AdminAnswer> {
    let state = StateDir::of(args)?;
    if let Some(answer) = admin::ask_server(&state.socket(), request, &mut |_| ())? {
        return Ok(answer);
    }
    let state = state.with_store(&settings::store(args)?);
    let makes_state = matches!(request, AdminRequest::CreateKey(_) | AdminRequest::SetTenant { .. });
    if !makes_state {
        needs_state(&state)?;
    }
    let (store, log) = state.open()?;
    Ok(admin::execute(request, &store, &log, now_ms())?)
}

/// Refuses a folder in which there is nothing to look at.
fn needs_state(state: &StateDir) -> Result<()> {
    if state.exists() {
        return Ok(());
    }
    let message = format!("there is no state in {}; `deephold serve` begins one", state.path().display());
    Err(fail(ErrorCode::NotFound, message))
}

fn another_question() -> anyhow::Error {
    fail(ErrorCode::Internal, "the server answered another question")
}

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

/// `1 key`, `2 keys`.
fn counted(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Limits as people say them.
fn limit_words(limits: &Limits) -> String {
    let Value::Object(map) = json!(limits) else { return String::new() };
    let one = |(name, value): (&String, &Value)| {
        let number = value.as_u64().unwrap_or_default();
        match name.as_str() {
            "nanos_per_month" => format!("cost per month {:.2}", number as f64 / 1e9),
            "queue_ms" => format!("queue time {} s", number as f64 / 1e3),
            other => format!("{} {number}", other.replace('_', " ")),
        }
    };
    let all: Vec<String> = map.iter().map(one).collect();
    if all.is_empty() { "no limits".to_owned() } else { all.join(", ") }
}
