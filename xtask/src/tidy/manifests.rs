//! Rules for manifests: layers, and one commented declaration of each third-party crate.

use super::File;
use crate::metadata::{self, array, text};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Findings in the workspace's manifests.
///
/// # Errors
/// `cargo metadata` cannot be run.
pub(super) fn check(root: &Path, files: &[File]) -> Result<Vec<String>> {
    let metadata = metadata::read(root, false)?;
    let packages = array(&metadata, "packages");
    let mut found = layers(packages);
    for file in files.iter().filter(|f| f.path.ends_with("Cargo.toml") && !f.path.starts_with("fuzz/")) {
        found.extend(if file.path == "Cargo.toml" { uncommented(file) } else { own_versions(file) });
    }
    Ok(found)
}

/// A crate depends only on lower layers; for its tests also on its own.
pub(super) fn layers(packages: &[Value]) -> Vec<String> {
    let layer = |package: &Value| package["metadata"]["layer"].as_u64();
    let known: BTreeMap<&str, u64> =
        packages.iter().filter_map(|p| Some((text(p, "name"), layer(p)?))).collect();
    let mut found = Vec::new();
    for package in packages {
        let name = text(package, "name");
        let Some(&own) = known.get(name) else {
            found.push(format!("{name}: no package.metadata.layer"));
            continue;
        };
        for dependency in array(package, "dependencies") {
            let (needs, tests_only) = (text(dependency, "name"), text(dependency, "kind") == "dev");
            let Some(&theirs) = known.get(needs) else { continue };
            if theirs > own || (theirs == own && !tests_only) {
                found.push(format!("{name} (layer {own}) depends on {needs} (layer {theirs}): only lower layers are open to it"));
            }
        }
    }
    found
}

/// Lines of `[workspace.dependencies]` with no comment of their own or right above their group.
pub(super) fn uncommented(file: &File) -> Vec<String> {
    let mut found = Vec::new();
    let (mut inside, mut reasoned) = (false, false);
    for (i, line) in file.text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line == "[workspace.dependencies]";
            reasoned = false;
        } else if line.starts_with('#') {
            reasoned = true;
        } else if line.is_empty() {
            reasoned = false;
        } else if inside && !reasoned && !line.contains("path =") && line.contains('=') {
            found.push(format!(
                "{}:{}: a dependency without a comment that says what it is for",
                file.path,
                i + 1
            ));
        }
    }
    found
}

/// Dependencies that a member declares itself and does not take from the workspace.
pub(super) fn own_versions(file: &File) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for (i, line) in file.text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && line.contains('=') && !line.starts_with('#') && !line.contains("workspace = true")
        {
            found.push(format!("{}:{}: declare it in [workspace.dependencies]", file.path, i + 1));
        }
    }
    found
}
