//! `deephold quantize`.

use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Result;
use deephold_base::human_bytes;
use deephold_weights::quantize;

use super::print_json;
use crate::cli::QuantizeArgs;
use crate::fail::invalid;
use crate::loaded::open;
use crate::terminal;

pub(crate) fn run(args: &QuantizeArgs) -> Result<ExitCode> {
    if args.output.exists() && !args.force {
        let message = format!("{} exists; --force replaces it", args.output.display());
        return Err(invalid(message));
    }
    let input = open(&args.input)?;
    terminal::catch_interrupts();
    let bar = terminal::step_bar("quantizing", 0);
    let report = quantize::run(&input, &args.output, args.format, &mut |p| {
        bar.set_length(p.total_elements);
        bar.set_position(p.done_elements);
        bar.set_message(p.tensor.to_owned());
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
        println!("{change:16} {:>9.5} rel. error  {}", t.relative_rmse, t.name);
    }
    for (name, reason) in &report.skipped {
        println!("left out: {name} ({reason})");
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    println!(
        "{}: {} of weights became {} in {}",
        args.output.display(),
        human_bytes(report.input_bytes),
        human_bytes(report.output_bytes),
        report.format
    );
    Ok(ExitCode::SUCCESS)
}
