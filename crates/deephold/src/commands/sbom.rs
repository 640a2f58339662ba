//! `deephold sbom`.

use std::process::ExitCode;

use anyhow::Result;

use crate::console;

/// What this program was built from; `cargo xtask sbom` writes it, and CI holds it against the lock file.
const SBOM: &str = include_str!("../../sbom.cdx.json");

pub(crate) fn run() -> Result<ExitCode> {
    console::write(SBOM)?;
    Ok(ExitCode::SUCCESS)
}
