//! `deephold audit`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use deephold_audit::{Filter, Reader, Receipt, read_public_key, unhex};

use super::{print_json, print_table};
use crate::cli::{AuditShowArgs, AuditVerifyArgs};
use crate::fail::invalid;
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
        parsed.ok_or_else(|| invalid("--expect is SEQ:HASH, as `audit verify` shows the head"))?;
    Ok(Receipt { seq, hash })
}

pub(crate) fn show(args: &AuditShowArgs) -> Result<ExitCode> {
    let reader = Reader::new(&StateDir::of(&args.state)?.log_dir());
    let filter = Filter { kind: args.kind.clone(), ..Filter::default() };
    let mut out = std::io::stdout().lock();
    for record in reader.newest(&filter, args.limit)? {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
