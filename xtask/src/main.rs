//! Repository tasks: `cargo xtask tidy`, `cargo xtask licenses` and `cargo xtask prove NAME`.

mod licenses;
mod metadata;
mod prove;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let found = match task.as_str() {
        "tidy" => tidy::check(&root()),
        "licenses" => licenses::check(&root()),
        "prove" => prove::prove(&root(), std::env::args().nth(2).as_deref()).map(|()| Vec::new()),
        _ => {
            eprintln!("usage: cargo xtask tidy | licenses | prove NAME");
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
