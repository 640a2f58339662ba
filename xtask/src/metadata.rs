//! What `cargo metadata` says about the workspace and its dependencies.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Output of `cargo metadata`; without dependencies it needs neither network nor registry.
///
/// # Errors
/// Cargo cannot be run or refuses the manifests.
pub(crate) fn read(root: &Path, dependencies: bool) -> Result<Value> {
    run(root, if dependencies { &[] } else { &["--no-deps"] })
}

/// As [`read`] with dependencies, without those of other platforms.
///
/// # Errors
/// As there.
pub(crate) fn read_for(root: &Path, platform: &str) -> Result<Value> {
    run(root, &["--filter-platform", platform])
}

fn run(root: &Path, more: &[&str]) -> Result<Value> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["metadata", "--format-version", "1", "--locked"]).args(more);
    let output = command.output().context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The array under `key`, or nothing.
pub(crate) fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// The string under `key`, or the empty one.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
