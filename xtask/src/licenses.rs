//! Licenses and bans of third-party crates against `deny.toml`.
//!
//! `deny.toml` is meant for cargo-deny as well; CI checks the two lists that matter here itself and needs no tool
//! beyond cargo for it.

use crate::metadata::{self, array, text};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;

/// Every third-party crate that `deny.toml` does not permit.
///
/// # Errors
/// `deny.toml` or `cargo metadata` cannot be read.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let policy = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml")?;
    let allowed = list(&policy, "allow")?;
    let banned = list(&policy, "deny")?;
    let metadata = metadata::read(root, true)?;
    Ok(array(&metadata, "packages").iter().filter_map(|p| problem(p, &allowed, &banned)).collect())
}

fn problem(package: &Value, allowed: &[String], banned: &[String]) -> Option<String> {
    let (name, version) = (text(package, "name"), text(package, "version"));
    if banned.iter().any(|b| b == name) {
        return Some(format!("{name} {version}: banned by deny.toml"));
    }
    if package["source"].is_null() {
        return None;
    }
    let license = text(package, "license");
    let permitted = !license.is_empty() && permits(license, allowed);
    (!permitted).then(|| format!("{name} {version}: license `{license}` is not allowed by deny.toml"))
}

/// Whether an SPDX expression can be satisfied by allowed licenses alone. `/` is the old spelling of OR.
pub(crate) fn permits(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    alternatives(&tokens, &mut at, allowed) && at == tokens.len()
}

fn alternatives(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut permitted = conjunction(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        permitted |= conjunction(tokens, at, allowed);
    }
    permitted
}

fn conjunction(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut permitted = term(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        permitted &= term(tokens, at, allowed);
    }
    permitted
}

fn term(tokens: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(&token) = tokens.get(*at) else { return false };
    *at += 1;
    if token == "(" {
        let permitted = alternatives(tokens, at, allowed);
        let closed = tokens.get(*at) == Some(&")");
        *at += usize::from(closed);
        return permitted && closed;
    }
    if tokens.get(*at) != Some(&"WITH") {
        return allowed.iter().any(|a| a == token);
    }
    let exception = tokens.get(*at + 1).copied().unwrap_or_default();
    *at += 2;
    allowed.iter().any(|a| *a == format!("{token} WITH {exception}"))
}

/// The strings of the array `key = [...]` in `deny.toml`: one quoted entry a line, as that file is written.
fn list(policy: &str, key: &str) -> Result<Vec<String>> {
    let opening = format!("{key} = [");
    let entries: Vec<String> = policy
        .lines()
        .skip_while(|line| line.trim() != opening)
        .skip(1)
        .take_while(|line| line.trim() != "]")
        .filter_map(|line| line.split('"').nth(1).map(str::to_owned))
        .collect();
    ensure!(!entries.is_empty(), "deny.toml has no list `{key}` with one entry a line");
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::{list, permits};

    #[test]
    fn an_expression_is_permitted_when_allowed_licenses_alone_satisfy_it() {
        let allowed = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for yes in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR GPL-2.0) AND Zlib",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(permits(yes, &allowed), "{yes}");
        }
        for no in ["GPL-3.0", "MIT AND GPL-3.0", "", "(MIT", "MIT MIT", "Apache-2.0", "MIT WITH"] {
            assert!(!permits(no, &allowed), "{no}");
        }
    }

    #[test]
    fn a_list_is_read_line_by_line_and_may_not_be_missing() {
        let policy = "[licenses]\nallow = [\n  \"MIT\",\n  \"Zlib\", # why\n]\n";
        assert_eq!(list(policy, "allow").unwrap(), ["MIT", "Zlib"]);
        assert!(list(policy, "deny").is_err());
    }

    #[test]
    fn every_dependency_is_permitted() {
        assert_eq!(super::check(&crate::root()).unwrap(), Vec::<String>::new());
    }
}
