//! Rules for single files: length, machine paths, unsafe notes, open tasks.

use super::File;

/// Past this many lines a file has a second subject.
const LINES_MAX: usize = 800;
/// A SAFETY note stands at most this many lines above its `unsafe`; for a function also this many below, in its body.
const SAFETY_LINES_MAX: usize = 12;
/// Opens a note that speaks for a whole file, where one contract covers every block.
const SAFETY_OF_FILE: &str = "// SAFETY of the unsafe blocks:";

/// Findings in one file.
pub(super) fn check(file: &File) -> Vec<String> {
    let mut found = machine_paths(file);
    let script = file.path == "test" || file.path.starts_with(".ci/");
    if file.path.ends_with(".rs") || script {
        found.extend(open_tasks(file));
    }
    if file.path.ends_with(".rs") {
        found.extend(length(file));
        found.extend(unsafe_notes(file));
    }
    found
}

fn length(file: &File) -> Option<String> {
    let lines = file.text.lines().count();
    (lines > LINES_MAX)
        .then(|| format!("{}: {lines} lines, at most {LINES_MAX}: split off its second subject", file.path))
}

/// Paths that exist on one machine only. Put together here so that the rule does not find itself.
fn machine_paths(file: &File) -> Vec<String> {
    let roots = ["work", "root", "home"].map(|name| format!("/{name}/"));
    numbered(file)
        .filter(|(_, line)| roots.iter().any(|root| starts_a_path(line, root)))
        .map(|(number, _)| format!("{}:{number}: a path of one machine", file.path))
        .collect()
}

/// Whether `root` occurs as the beginning of a path, not inside a longer one or a URL.
fn starts_a_path(line: &str, root: &str) -> bool {
    line.match_indices(root)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.}/$~)".contains(c)))
}

fn open_tasks(file: &File) -> Vec<String> {
    let marks = ["TO", "FIX"].map(|half| half.to_owned() + if half == "TO" { "DO" } else { "ME" });
    numbered(file)
        .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark.as_str())) && !names_an_issue(line))
        .map(|(number, _)| format!("{}:{number}: an open task without an issue number (#N)", file.path))
        .collect()
}

fn names_an_issue(line: &str) -> bool {
    line.split('#').skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn unsafe_notes(file: &File) -> Vec<String> {
    if file.text.lines().any(|line| line.starts_with(SAFETY_OF_FILE)) {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().collect();
    (0..lines.len())
        .filter(|&i| is_unsafe(lines[i]))
        .filter(|&i| {
            let below = if lines[i].contains("fn ") { SAFETY_LINES_MAX } else { 0 };
            let near = &lines[i.saturating_sub(SAFETY_LINES_MAX)..(i + below + 1).min(lines.len())];
            !near.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
        })
        .map(|i| format!("{}:{}: unsafe without a SAFETY note near it", file.path, i + 1))
        .collect()
}

/// Whether the line opens an unsafe block, function, trait or implementation. Comments and function types do not count,
/// nor do functions that a trait declares without a body: their contract is the trait's.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    if code.trim_end().ends_with(';') && code.contains("unsafe fn ") {
        return false;
    }
    let openers = ["{", "impl", "trait", "fn "].map(|what| format!("unsafe {what}"));
    openers.iter().any(|opener| code.contains(opener.as_str())) && !code.contains('"')
}

fn numbered(file: &File) -> impl Iterator<Item = (usize, &str)> {
    file.text.lines().enumerate().map(|(i, line)| (i + 1, line))
}
