//! `deephold quantize`.

use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Result;
use deephold_base::human_bytes;
use deephold_weights::quantize;

use super::print_json;
use crate::cli::QuantizeArgs;
use crate::console::{out, plain};
use crate::fail::cannot_create;
use crate::loaded::open;
use crate::terminal;

pub(crate) fn run(args: &QuantizeArgs) -> Result<ExitCode> {
    // A link that leads nowhere is there as well.
    if args.output.symlink_metadata().is_ok() && !args.force {
        let message = format!("{} exists; --force replaces it", args.output.display());
        return Err(cannot_create(message));
    }
    let input = open(&args.input)?;
    terminal::catch_interrupts();
    let bar = terminal::step_bar("quantizing", 0);
    let report = quantize::run(&input, &args.output, args.format, &mut |p| {
        bar.set_length(p.total_elements);
        bar.set_position(p.done_elements);
        bar.set_message(plain(p.tensor).into_owned());
        if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        print_json(&serde_json::to_value(&report)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for t in &report.tensors {
        let change = format!("{} -> {}", t.from, t.to);
        out!("{change:16} {:>9.5} rel. error  {}", t.relative_rmse, plain(&t.name))?;
    }
    for (name, reason) in &report.skipped {
        out!("left out: {} ({reason})", plain(name))?;
    }
    for note in &report.notes {
        out!("note: {}", plain(note))?;
    }
    out!(
        "{}: {} of weights became {} in {}",
        plain(&args.output.display().to_string()),
        human_bytes(report.input_bytes),
        human_bytes(report.output_bytes),
        report.format
    )?;
    Ok(ExitCode::SUCCESS)
}
