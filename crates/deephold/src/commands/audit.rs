//! `deephold audit`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use deephold_audit::{Filter, Reader, Receipt, read_public_key, unhex};
use serde_json::Value;

use super::{counted, print_json, print_table};
use crate::cli::{AuditExportArgs, AuditShowArgs, AuditVerifyArgs, ExportFormat, RecordArgs};
use crate::console::{note, plain};
use crate::fail::bad_argument;
use crate::state_dir::StateDir;

pub(crate) fn verify(args: &AuditVerifyArgs) -> Result<ExitCode> {
    let (log, key) = match (&args.log, &args.public_key) {
        (Some(log), Some(key)) => (log.clone(), key.clone()),
        (_, key) => {
            let state = StateDir::of(&args.state)?;
            (state.log_dir(), key.clone().unwrap_or_else(|| state.public_key()))
        }
    };
    let expected = args.expect.as_deref().map(receipt).transpose()?;
    let report = deephold_audit::verify(&log, &read_public_key(&key)?, expected)?;
    let code = if report.ok { ExitCode::SUCCESS } else { ExitCode::from(65) };
    if args.json {
        print_json(&serde_json::to_value(&report)?)?;
        return Ok(code);
    }
    let mut rows = vec![
        ("records", report.records.to_string()),
        ("checkpoints", report.checkpoints.to_string()),
        ("unsigned", format!("{} behind the last checkpoint", report.unsigned)),
        ("from", report.first_time.unwrap_or_else(|| "-".into())),
        ("to", report.last_time.unwrap_or_else(|| "-".into())),
        ("head", format!("{}:{}", report.records, report.head)),
    ];
    rows.push(match &report.finding {
        None => ("verdict", "every record is as it was written".to_owned()),
        Some(f) => ("wrong", format!("{} line {}, record {}: {}", f.file, f.line, f.seq, f.what)),
    });
    print_table(&rows)?;
    Ok(code)
}

fn receipt(text: &str) -> Result<Receipt> {
    let parsed = text.split_once(':').and_then(|(seq, hash)| Some((seq.parse().ok()?, unhex(hash)?)));
    let (seq, hash) =
        parsed.ok_or_else(|| bad_argument("--expect is SEQ:HASH, as `audit verify` shows the head"))?;
    Ok(Receipt { seq, hash })
}

fn reader(args: &RecordArgs) -> Result<(Reader, Filter)> {
    let log = args.log.clone().map_or_else(|| Ok(StateDir::of(&args.state)?.log_dir()), anyhow::Ok)?;
    let filter = Filter {
        kind: args.kind.clone(),
        tenant: args.tenant.clone(),
        project: args.project.clone(),
        since: args.since.clone(),
        until: args.until.clone(),
        ..Filter::default()
    };
    Ok((Reader::new(&log), filter))
}

pub(crate) fn show(args: &AuditShowArgs) -> Result<ExitCode> {
    let (reader, filter) = reader(&args.records)?;
    let mut out = std::io::stdout().lock();
    for record in reader.newest(&filter, args.limit)? {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn export(args: &AuditExportArgs) -> Result<ExitCode> {
    let (reader, filter) = reader(&args.records)?;
    let out: Box<dyn Write> = match &args.output {
        // An export of another time is not to be lost.
        Some(path) => Box::new(BufWriter::new(
            File::create_new(path).with_context(|| format!("cannot write {}", path.display()))?,
        )),
        None => Box::new(BufWriter::new(std::io::stdout().lock())),
    };
    let count = match args.format {
        ExportFormat::Jsonl => write_lines(out, &reader, &filter)?,
        ExportFormat::Csv => write_table(out, &reader, &filter)?,
    };
    if let Some(path) = &args.output {
        note!("{} in {}", counted(count, "record"), plain(&path.display().to_string()));
    }
    Ok(ExitCode::SUCCESS)
}

fn write_lines(mut out: impl Write, reader: &Reader, filter: &Filter) -> Result<u64> {
    let (mut count, mut failed) = (0, None);
    reader.each(filter, &mut |_, line| {
        failed = writeln!(out, "{line}").err();
        count += 1;
        failed.is_none()
    })?;
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(out.flush().map(|()| count)?),
    }
}

/// What a table shows of a record: names of columns, and where their values stand in its data.
const COLUMNS: [(&str, &str); 13] = [
    ("event", "/event"),
    ("request_id", "/request_id"),
    ("endpoint", "/endpoint"),
    ("key", "/key"),
    ("tenant", "/tenant"),
    ("project", "/project"),
    ("owner", "/owner"),
    ("model", "/model"),
    ("digest", "/facts/digest"),
    ("outcome", "/outcome"),
    ("prompt_tokens", "/usage/prompt_tokens"),
    ("cached_tokens", "/usage/cached_tokens"),
    ("completion_tokens", "/usage/completion_tokens"),
];

fn write_table(out: impl Write, reader: &Reader, filter: &Filter) -> Result<u64> {
    let mut table = csv::Writer::from_writer(out);
    table.write_record(["seq", "time", "kind"].into_iter().chain(COLUMNS.map(|c| c.0)).chain(["hash"]))?;
    let (mut count, mut failed) = (0, None);
    reader.each(filter, &mut |record, _| {
        let cells = COLUMNS.iter().map(|(_, place)| cell(record.data.pointer(place)));
        let front = [record.seq.to_string(), record.time, record.kind];
        failed = table.write_record(front.into_iter().chain(cells).chain([record.hash])).err();
        count += 1;
        failed.is_none()
    })?;
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(table.flush().map(|()| count)?),
    }
}

/// A value as a spreadsheet shows it. Names are what somebody typed: one that looks like a formula must not become one.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => format!("'{text}"),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(key)) => cell(key.get("id")),
        Some(other) => other.to_string(),
    }
}
