//! Rules of the house that no compiler checks. Each finding is one line: where, and what to do.

mod documents;
mod manifests;
mod sources;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// A tracked text file and its path from the root.
pub(crate) struct File {
    path: String,
    text: String,
}

/// Every rule over every file that git tracks or would track.
///
/// # Errors
/// Git or cargo cannot be run, or a file cannot be read.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let files = files(root)?;
    let mut found = manifests::check(root, &files)?;
    found.extend(files.iter().flat_map(sources::check));
    found.extend(documents::check(root, &files));
    found.sort();
    Ok(found)
}

fn files(root: &Path) -> Result<Vec<File>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("cannot run git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let names = String::from_utf8(output.stdout).context("a file name that is not UTF-8")?;
    let mut files = Vec::new();
    // A file deleted but not yet committed is still listed.
    for path in names.split('\0').filter(|name| root.join(name).is_file()) {
        // What is not UTF-8 is data: weights, fuzz cases.
        if let Ok(text) = String::from_utf8(std::fs::read(root.join(path))?) {
            files.push(File { path: path.to_owned(), text });
        }
    }
    Ok(files)
}
