//! Usage as a table for spreadsheets.

use std::time::Duration;

use deephold_base::utc_day;
use deephold_state::UsageRow;

use crate::admission::amount_text;

/// Names of columns.
const COLUMNS: [&str; 10] = [
    "day",
    "tenant",
    "project",
    "key",
    "model",
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost",
];

/// The date of a row.
pub fn date_of(row: &UsageRow) -> String {
    utc_day(Duration::from_secs(row.day.max(0).unsigned_abs() * 86_400))
}

/// The cost of a row in its currency, to a hundredth of a cent.
pub fn cost_of(row: &UsageRow) -> String {
    amount_text(row.cost_nanos)
}

/// A name as a spreadsheet shows it: one that looks like a formula must not become one.
fn name(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

/// Comma-separated values with a line of names (RFC 4180).
pub fn usage_csv(rows: &[UsageRow]) -> String {
    let mut table = csv::Writer::from_writer(Vec::new());
    let _ = table.write_record(COLUMNS);
    for row in rows {
        let counts = [row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens];
        let names = [&row.tenant, &row.project, &row.key, &row.model].map(|n| name(n));
        let front = std::iter::once(date_of(row)).chain(names);
        // Writing to memory cannot fail.
        let _ = table.write_record(front.chain(counts.map(|n| n.to_string())).chain([cost_of(row)]));
    }
    String::from_utf8(table.into_inner().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_row_and_no_formula() {
        let row = UsageRow {
            day: 20_784,
            tenant: "=cmd()".into(),
            project: "a,b".into(),
            key: "key-1".into(),
            model: "guide".into(),
            requests: 3,
            prompt_tokens: 4,
            cached_tokens: 1,
            completion_tokens: 5,
            cost_nanos: 1_500_000_000,
        };
        let text = usage_csv(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], COLUMNS.join(","));
        assert_eq!(lines[1], "2026-11-27,'=cmd(),\"a,b\",key-1,guide,3,4,1,5,1.5000");
    }
}
