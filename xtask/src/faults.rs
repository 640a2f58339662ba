//! `cargo xtask faults`: what goes wrong around a server, tried on the program, and what was seen as `docs/faults.md`.
//!
//! With `DEEPHOLD_PEER_PYTHON` (a Python that has the package xllamacpp) and `DEEPHOLD_TEST_MODELS` the faults of clients are tried on
//! llama.cpp's server too.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Runs all faults, or those whose name holds `filter`; writes the table when all were run.
///
/// # Errors
/// A fault that does not hold.
pub(crate) fn run(root: &Path, filter: Option<&str>) -> Result<()> {
    let report = root.join("target/faults.jsonl");
    let _ = std::fs::remove_file(&report);
    let cargo = |args: &[&str]| Command::new("cargo").current_dir(root).args(args).status();
    // The clock that jumps and the disk that refuses are libraries of their own.
    cargo(&["build", "--locked", "--package", "deephold-testkit", "--examples"])?;
    let mut test = Command::new("cargo");
    test.current_dir(root).args(["test", "--locked", "--workspace", "--test", "faults", "--"]);
    test.args(filter).args(["--test-threads", "1"]).env("DEEPHOLD_FAULTS_REPORT", &report);
    let passed = test.status().context("cannot run cargo")?.success();
    if passed && filter.is_none() {
        let text = std::fs::read_to_string(&report).context("nothing was seen")?;
        std::fs::write(root.join("docs/faults.md"), table(&text)?)?;
    }
    if passed { Ok(()) } else { bail!("a fault does not hold") }
}

/// What was seen as a page.
fn table(report: &str) -> Result<String> {
    let mut faults: BTreeMap<String, (Value, String)> = BTreeMap::new();
    for line in report.lines() {
        let seen: Value = serde_json::from_str(line)?;
        let name = text(&seen, "name");
        let (ours, peer) = faults.entry(name).or_default();
        match text(&seen, "server").as_str() {
            "deephold" => *ours = seen,
            _ => *peer = text(&seen, "seen"),
        }
    }
    let mut page = "# What goes wrong, and what is left of it\n\n\
        Written by `cargo xtask faults`, which tries each on the program as tests build it (optimised, overflow checked); shorter, each is a test of the CI. \
        llama-server: llama.cpp's server as the package xllamacpp carries it, where the fault is one of clients.\n\n\
        | fault | what is done | what must hold | what was seen | llama-server |\n|---|---|---|---|---|\n"
        .to_owned();
    for (name, (ours, peer)) in &faults {
        let cell = |t: &str| t.replace('|', "\\|").replace('\n', " ");
        let row = [text(ours, "done"), text(ours, "holds"), text(ours, "seen"), peer.clone()];
        writeln!(page, "| {} | {} |", cell(name), row.map(|t| cell(&t)).join(" | "))?;
    }
    Ok(page)
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_of_both_servers_stands_in_one_row() {
        let line = |server: &str, seen: &str| {
            serde_json::json!({ "name": "a|b", "done": "d", "holds": "h", "server": server, "seen": seen })
                .to_string()
        };
        let report = format!("{}\n{}\n", line("deephold", "held"), line("llama-server", "broke\nloudly"));
        let page = table(&report).expect("a page");
        assert!(page.ends_with("| a\\|b | d | h | held | broke loudly |\n"), "{page}");
    }
}
