//! Repository tasks: checks, proofs, and measurements beside llama.cpp. Without a name they are listed.

mod bench_report;
mod faults;
mod licenses;
mod metadata;
mod prove;
mod sbom;
mod tidy;
mod versus;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let task = std::env::args().nth(1).unwrap_or_default();
    let found = match task.as_str() {
        "tidy" => tidy::check(&root()),
        "licenses" => licenses::check(&root()),
        "faults" => faults::run(&root(), args.first().map(String::as_str)).map(|()| Vec::new()),
        "prove" => prove::prove(&root(), args.first().map(String::as_str)).map(|()| Vec::new()),
        "versus-llama-cpp" => versus::run(&root(), &args).map(|()| Vec::new()),
        "sbom" => sbom::run(&root(), args.first().is_some_and(|a| a == "--check")),
        "bench-report" => bench_report::run(&root(), args.first().is_some_and(|a| a == "--check")),
        _ => {
            eprintln!(
                "usage: cargo xtask tidy | licenses | prove NAME | faults [NAME] | versus-llama-cpp | bench-report [--check] | sbom [--check]"
            );
            return ExitCode::from(2);
        }
    };
    match found {
        Ok(problems) if problems.is_empty() => {
            println!("{task}: nothing to report");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            problems.iter().for_each(|p| eprintln!("{p}"));
            eprintln!("{task}: {} to mend", problems.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).unwrap_or(Path::new(".")).to_path_buf()
}
