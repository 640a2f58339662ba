//! Rules for documents: named paths exist, ADRs are numbered in a row, both READMEs have the same sections.

use super::File;
use std::path::Path;

/// Documents whose paths must exist. History and records may name what is gone.
const DOCUMENTS: [&str; 4] = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "README.zh-CN.md"];

/// Findings in the documents.
pub(super) fn check(root: &Path, files: &[File]) -> Vec<String> {
    let mut found: Vec<String> = files
        .iter()
        .filter(|f| DOCUMENTS.contains(&f.path.as_str()))
        .flat_map(|f| missing_paths(root, f))
        .collect();
    found.extend(numbering(files));
    found.extend(parity(files));
    found
}

/// Paths in backticks that lie in the tree by their first folder, yet do not exist.
fn missing_paths(root: &Path, file: &File) -> Vec<String> {
    let named = file.text.split('`').skip(1).step_by(2);
    named
        .filter(|name| is_path(name) && !root.join(name.trim_end_matches('/')).exists())
        .map(|name| format!("{}: names `{name}`, which does not exist", file.path))
        .collect()
}

fn is_path(name: &str) -> bool {
    let ours = ["crates/", "docs/", "testdata/", "xtask/", "fuzz/", ".ci/", ".cargo/"];
    ours.iter().any(|folder| name.starts_with(folder)) && !name.contains([' ', '*', '<', '{', '\n'])
}

/// `docs/adr/NNNN-title.md` from 0001 on without a gap, each opening with its number.
fn numbering(files: &[File]) -> Vec<String> {
    let mut records: Vec<&File> = files.iter().filter(|f| f.path.starts_with("docs/adr/")).collect();
    records.sort_by(|a, b| a.path.cmp(&b.path));
    let mut found = Vec::new();
    for (i, record) in records.iter().enumerate() {
        let number = format!("{:04}", i + 1);
        if !record.path.starts_with(&format!("docs/adr/{number}-")) {
            found.push(format!("{}: expected number {number}", record.path));
        } else if !record.text.starts_with(&format!("# {number} ")) {
            found.push(format!("{}: the title must begin with `# {number} `", record.path));
        }
    }
    found
}

/// Where both READMEs exist, they have sections of the same levels in the same order.
fn parity(files: &[File]) -> Option<String> {
    let levels = |path: &str| files.iter().find(|f| f.path == path).map(|f| heading_levels(&f.text));
    let (english, chinese) = (levels("README.md")?, levels("README.zh-CN.md")?);
    (english != chinese).then(|| {
        format!(
            "README.zh-CN.md: {} sections, README.md has {}: same levels in the same order",
            chinese.len(),
            english.len()
        )
    })
}

/// Heading levels outside code fences, where `#` opens a comment.
pub(super) fn heading_levels(text: &str) -> Vec<usize> {
    let mut fenced = false;
    let mut levels = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced && line.starts_with('#') {
            levels.push(line.chars().take_while(|&c| c == '#').count());
        }
    }
    levels
}
