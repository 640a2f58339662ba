//! Arguments of the commands that decide who may ask, and what was asked.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use deephold_base::day_number;
use serde_json::{Map, Value, json};

use super::StateArgs;

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key; its secret is shown once
    Create(Box<KeyCreateArgs>),
    /// Show all keys, without secrets
    List(KeyListArgs),
    /// Make a key like another one, which ends
    Rotate(KeyNameArgs),
    /// End a key at once
    Revoke(KeyNameArgs),
}

#[derive(Args)]
pub(crate) struct KeyCreateArgs {
    /// The person who answers for it
    #[arg(long)]
    pub(crate) owner: String,
    /// What its holder may do: admin, operator, auditor, app
    #[arg(long, default_value = "app", value_parser = parse_role)]
    pub(crate) role: deephold_state::Role,
    /// Whose requests these are [default: a tenant of its own]
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// The tenant's part that it belongs to [default: default]
    #[arg(long)]
    pub(crate) project: Option<String>,
    /// A path that it may ask, with what lies below, as /v1/embeddings; again for several [default: all]
    #[arg(long = "endpoint", value_name = "PATH")]
    pub(crate) endpoints: Vec<String>,
    /// A model that it may use; again for several [default: all]
    #[arg(long = "model", value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Days after which it ends [default: never]
    #[arg(long, value_name = "DAYS")]
    pub(crate) days: Option<u32>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

fn parse_role(name: &str) -> Result<deephold_state::Role, String> {
    deephold_state::Role::from_name(name).ok_or_else(|| "one of admin, operator, auditor, app".to_owned())
}

#[derive(Args)]
pub(crate) struct KeyListArgs {
    /// One JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Args)]
pub(crate) struct KeyNameArgs {
    /// As `key list` shows it
    #[arg(value_name = "KEY")]
    pub(crate) id: String,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// A limit to be set, or none to take it away.
#[derive(Clone, Copy)]
pub(crate) struct LimitChange(Option<u64>);

fn parse_limit(text: &str) -> Result<LimitChange, String> {
    if text == "none" {
        return Ok(LimitChange(None));
    }
    let number = text.parse::<u64>().ok().filter(|n| i64::try_from(*n).is_ok());
    number.map(|n| LimitChange(Some(n))).ok_or_else(|| "a whole number, or `none`".to_owned())
}

/// A sum of money with up to nine digits behind the point, in billionths.
fn parse_money(text: &str) -> Result<LimitChange, String> {
    if text == "none" {
        return Ok(LimitChange(None));
    }
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    let good = !whole.is_empty() && whole.len() <= 9 && part.len() <= 9 && digits(whole) && digits(part);
    let nanos = good.then(|| format!("{whole}{part:0<9}").parse().ok()).flatten();
    nanos.map(|n| LimitChange(Some(n))).ok_or_else(|| "a sum as 12.50, or `none`".to_owned())
}

fn parse_seconds(text: &str) -> Result<LimitChange, String> {
    let LimitChange(seconds) = parse_limit(text)?;
    Ok(LimitChange(seconds.map(|s| s.saturating_mul(1000))))
}

/// What a tenant, a project or a key may use.
#[derive(Args, Clone)]
#[command(next_help_heading = "Limits, each a number or `none`; windows are those of the calendar in UTC")]
pub(crate) struct LimitArgs {
    /// Requests that end within a minute
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    requests_per_minute: Option<LimitChange>,
    /// Requests that end within a day
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    requests_per_day: Option<LimitChange>,
    /// Requests that end within a month
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    requests_per_month: Option<LimitChange>,
    /// Tokens of prompts and answers together within a minute
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    tokens_per_minute: Option<LimitChange>,
    /// The same within a day
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    tokens_per_day: Option<LimitChange>,
    /// The same within a month
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    tokens_per_month: Option<LimitChange>,
    /// Costs within a month, by the prices of `serve`
    #[arg(long, value_name = "SUM", value_parser = parse_money)]
    cost_per_month: Option<LimitChange>,
    /// Requests at the same time
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    concurrent: Option<LimitChange>,
    /// Answers of a tenant that may wait for a model
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    queued: Option<LimitChange>,
    /// Seconds that an answer may wait
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    queue_time: Option<LimitChange>,
}

impl LimitArgs {
    /// By the names that the state has for them; null takes one away.
    pub(crate) fn changes(&self) -> Map<String, Value> {
        let all = [
            ("requests_per_minute", self.requests_per_minute),
            ("requests_per_day", self.requests_per_day),
            ("requests_per_month", self.requests_per_month),
            ("tokens_per_minute", self.tokens_per_minute),
            ("tokens_per_day", self.tokens_per_day),
            ("tokens_per_month", self.tokens_per_month),
            ("nanos_per_month", self.cost_per_month),
            ("concurrent", self.concurrent),
            ("queued", self.queued),
            ("queue_ms", self.queue_time),
        ];
        let given = all.into_iter().filter_map(|(name, change)| Some((name.to_owned(), json!(change?.0))));
        given.collect()
    }
}

#[derive(Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a tenant or a project, or change what it may use
    Set(Box<TenantSetArgs>),
    /// Show tenants, projects and their limits
    List(KeyListArgs),
}

#[derive(Args)]
pub(crate) struct TenantSetArgs {
    /// The tenant
    #[arg(value_name = "TENANT")]
    pub(crate) name: String,
    /// Its part; the limits are then this project's
    #[arg(long)]
    pub(crate) project: Option<String>,
    /// Its share of the machine against others', 0.01 to 100 [default: 1 for a new tenant]
    #[arg(long, value_name = "X", conflicts_with = "project")]
    pub(crate) weight: Option<f64>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

fn parse_day(text: &str) -> Result<i64, String> {
    day_number(text).ok_or_else(|| "a day, as 2026-11-25".to_owned())
}

#[derive(Args)]
pub(crate) struct UsageArgs {
    /// The first day, in UTC [default: the first of this month]
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    pub(crate) from: Option<i64>,
    /// The last day
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    pub(crate) to: Option<i64>,
    /// Only of this tenant
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// Only of this project
    #[arg(long)]
    pub(crate) project: Option<String>,
    /// Only of this key
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Only of this model
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Lines to read, or a table for a spreadsheet
    #[arg(long, value_enum, default_value_t = UsageFormat::Text, conflicts_with = "json")]
    pub(crate) format: UsageFormat,
    /// One JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UsageFormat {
    Text,
    Csv,
}

#[derive(Subcommand)]
pub(crate) enum StateCommand {
    /// Write all of it to a file, also beside a running server
    Backup(StateFileArgs),
    /// Fill an empty state from a backup; no server may run on it
    Restore(StateFileArgs),
    /// Look for damage in the state, or in a backup
    Check(StateCheckArgs),
}

#[derive(Args)]
pub(crate) struct StateFileArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Args)]
pub(crate) struct StateCheckArgs {
    /// A backup to check instead
    #[arg(long, value_name = "FILE")]
    pub(crate) backup: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        assert_eq!(parse_limit("7").map(|c| c.0), Ok(Some(7)));
        assert_eq!(parse_limit("none").map(|c| c.0), Ok(None));
        assert_eq!(parse_money("12.5").map(|c| c.0), Ok(Some(12_500_000_000)));
        assert_eq!(parse_seconds("3").map(|c| c.0), Ok(Some(3_000)));
        for bad in ["", "-1", "1e3", "all", "9223372036854775808"] {
            assert!(parse_limit(bad).is_err() && parse_money(bad).is_err(), "{bad}");
        }
        assert!(parse_money("1.0000000001").is_err() && parse_money(".5").is_err());
    }
}
