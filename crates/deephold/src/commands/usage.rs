//! `deephold usage`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use deephold_base::{day_number, utc_day};
use deephold_server::admin::{AdminAnswer, AdminRequest};
use deephold_server::{cost_of, date_of, usage_csv};
use deephold_state::{UsageFilter, UsageRow};
use serde_json::json;

use super::{another_question, ask, now_ms, print_json};
use crate::cli::{UsageArgs, UsageFormat};
use crate::console::{self, note, out, plain};
use crate::fail::invalid;

pub(crate) fn run(args: &UsageArgs) -> Result<ExitCode> {
    let filter = UsageFilter {
        from_day: args.from.or_else(first_of_month),
        to_day: args.to,
        tenant: args.tenant.clone(),
        project: args.project.clone(),
        key: args.key.clone(),
        model: args.model.clone(),
    };
    let rows = match ask(&args.state, &AdminRequest::Usage(filter))? {
        AdminAnswer::Usage(rows) => rows,
        AdminAnswer::Refused(why) => return Err(invalid(why)),
        _ => return Err(another_question()),
    };
    if args.json {
        let days: Vec<_> = rows
            .iter()
            .map(|row| json!({ "date": date_of(row), "cost": cost_of(row), "row": row }))
            .collect();
        print_json(&json!(days))?;
    } else if args.format == UsageFormat::Csv {
        console::write(&usage_csv(&rows))?;
    } else {
        print(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn first_of_month() -> Option<i64> {
    let today = utc_day(Duration::from_millis(now_ms().unsigned_abs()));
    day_number(&format!("{}-01", &today[..7]))
}

fn print(rows: &[UsageRow]) -> Result<()> {
    if rows.is_empty() {
        note!("nothing was used in this time");
        return Ok(());
    }
    let head = ["day", "tenant", "project", "key", "model", "requests", "prompt", "cached", "answer", "cost"];
    let cells = |row: &UsageRow| {
        let names = [&row.tenant, &row.project, &row.key, &row.model].map(|n| plain(n).to_string());
        let counts = [row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens]
            .map(|n| n.to_string());
        [vec![date_of(row)], names.to_vec(), counts.to_vec(), vec![cost_of(row)]].concat()
    };
    let total = rows.iter().fold(UsageRow::default(), |sum, row| UsageRow {
        requests: sum.requests + row.requests,
        prompt_tokens: sum.prompt_tokens + row.prompt_tokens,
        cached_tokens: sum.cached_tokens + row.cached_tokens,
        completion_tokens: sum.completion_tokens + row.completion_tokens,
        cost_nanos: sum.cost_nanos + row.cost_nanos,
        ..sum
    });
    let mut lines: Vec<Vec<String>> = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(cells));
    let mut last = cells(&total);
    "in all".clone_into(&mut last[0]);
    lines.push(last);
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for line in &lines {
        let columns = line.iter().zip(&widths).enumerate();
        let text: Vec<String> = columns
            .map(
                |(i, (cell, width))| if i < 5 { format!("{cell:width$}") } else { format!("{cell:>width$}") },
            )
            .collect();
        out!("{}", text.join("  ").trim_end())?;
    }
    Ok(())
}
