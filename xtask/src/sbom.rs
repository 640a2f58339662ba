//! `cargo xtask sbom`: what the program is made of, as CycloneDX (specification 1.6, ECMA-424), for a customer's scanner. `deephold sbom` prints it.
//!
//! The same lock file gives the same bytes: neither time nor serial number stand in it. With `--check` nothing is written, and a stale file is
//! reported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::metadata::{self, array, text};

/// Where it lies: the program carries it.
const FILE: &str = "crates/deephold/sbom.cdx.json";
/// Whose dependencies count; those of other systems are not in the program.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const PROGRAM: &str = "deephold";

/// Writes it, or reports that it is stale.
///
/// # Errors
/// `cargo metadata` or the lock file cannot be read, or a dependency has neither checksum nor license.
pub(crate) fn run(root: &Path, check: bool) -> Result<Vec<String>> {
    let metadata = metadata::read_for(root, PLATFORM)?;
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("Cargo.lock")?;
    let mut text = serde_json::to_string_pretty(&document(&metadata, &checksums(&lock))?)?;
    text.push('\n');
    let path = root.join(FILE);
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(Vec::new());
    }
    if check {
        return Ok(vec![format!("{FILE} is stale: run cargo xtask sbom")]);
    }
    std::fs::write(&path, text).context(FILE)?;
    println!("written: {FILE}");
    Ok(Vec::new())
}

/// SHA-256 of each crate as the registry has it, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let one =
        |block: &str| Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?));
    lock.split("[[package]]").filter_map(one).collect()
}

/// The packages that the program is built from: by way of ordinary dependencies, and those that only the build needs.
fn reached<'a>(nodes: &BTreeMap<&str, &'a Value>, start: &'a str) -> (BTreeSet<&'a str>, BTreeSet<&'a str>) {
    let walk = |with_build: bool| {
        let (mut found, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(id) = open.pop() {
            if !found.insert(id) {
                continue;
            }
            for dep in nodes.get(id).into_iter().flat_map(|n| array(n, "deps")) {
                let kinds = array(dep, "dep_kinds");
                let counts = |k: &Value| k["kind"].is_null() || (with_build && k["kind"] == "build");
                if kinds.iter().any(counts) {
                    open.push(text(dep, "pkg"));
                }
            }
        }
        found
    };
    let (program, all) = (walk(false), walk(true));
    let build = all.difference(&program).copied().collect();
    (program, build)
}

fn document(metadata: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Value> {
    let packages: BTreeMap<&str, &Value> =
        array(metadata, "packages").iter().map(|p| (text(p, "id"), p)).collect();
    let nodes: BTreeMap<&str, &Value> =
        array(&metadata["resolve"], "nodes").iter().map(|n| (text(n, "id"), n)).collect();
    let of_name = packages.iter().find(|(_, p)| text(p, "name") == PROGRAM && p["source"].is_null());
    let (start, program) = of_name.context("there is no package `deephold`")?;
    let (in_program, in_build) = reached(&nodes, start);
    let reference = |id: &str| packages.get(id).map(|p| purl(p)).unwrap_or_default();
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for id in in_program.iter().chain(&in_build) {
        let package = packages.get(id).context("a dependency without a package")?;
        if id != start {
            components.push(component(package, !in_program.contains(id), checksums)?);
        }
        let known = |dep: &&str| in_program.contains(dep) || in_build.contains(dep);
        let ordinary = |dep: &&Value| array(dep, "dep_kinds").iter().any(|k| k["kind"] != "dev");
        let deps = nodes.get(id).into_iter().flat_map(|n| array(n, "deps")).filter(ordinary);
        let needs: BTreeSet<String> = deps.map(|d| text(d, "pkg")).filter(known).map(reference).collect();
        dependencies.push(json!({ "ref": reference(id), "dependsOn": needs }));
    }
    let by_reference = |a: &Value, b: &Value, key: &str| text(a, key).cmp(text(b, key));
    components.sort_by(|a, b| by_reference(a, b, "bom-ref"));
    dependencies.sort_by(|a, b| by_reference(a, b, "ref"));
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{ "phase": "build" }],
            "component": {
                "type": "application", "bom-ref": purl(program), "name": PROGRAM, "version": program["version"],
                "purl": purl(program), "licenses": [{ "expression": spdx(text(program, "license")) }],
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn component(
    package: &Value,
    is_of_build: bool,
    checksums: &BTreeMap<(String, String), String>,
) -> Result<Value> {
    let (name, version, license) =
        (text(package, "name"), text(package, "version"), text(package, "license"));
    ensure!(!license.is_empty(), "{name} {version} states no license");
    let mut out = json!({
        "type": "library", "bom-ref": purl(package), "name": name, "version": version, "purl": purl(package),
        "scope": if is_of_build { "excluded" } else { "required" },
        "licenses": [{ "expression": spdx(license) }],
    });
    if !package["source"].is_null() {
        let checksum = checksums.get(&(name.to_owned(), version.to_owned()));
        let checksum = checksum.with_context(|| format!("{name} {version} has no checksum in Cargo.lock"))?;
        out["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        if let Some(repository) = package["repository"].as_str().filter(|r| r.starts_with("https://")) {
            out["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
        }
    }
    Ok(out)
}

/// What scanners look a package up by (package-url.github.io). What is ours is in no registry, and says so.
fn purl(package: &Value) -> String {
    let (name, version) = (text(package, "name"), text(package, "version").replace('+', "%2B"));
    match package["source"].is_null() {
        true => format!("pkg:generic/{name}@{version}"),
        false => format!("pkg:cargo/{name}@{version}"),
    }
}

/// `/` is the old spelling of OR.
fn spdx(license: &str) -> String {
    license.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_from_is_told_from_what_tests_need() {
        let package = |id: &str, source: Value| json!({ "id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source });
        let registry = json!("registry+https://example");
        let dep = |id: &str, kind: Value| json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package("deephold", Value::Null), package("a", registry.clone()), package("b", registry.clone()), package("t", registry)],
            "resolve": { "nodes": [
                { "id": "deephold", "deps": [dep("a", Value::Null), dep("t", json!("dev"))] },
                { "id": "a", "deps": [dep("b", json!("build"))] }, { "id": "b", "deps": [] }, { "id": "t", "deps": [] },
            ] },
        });
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"11\"\n\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\nchecksum = \"22\"\n";
        let bom = document(&metadata, &checksums(lock)).expect("a document");
        let parts: Vec<(&str, &str)> =
            array(&bom, "components").iter().map(|c| (text(c, "purl"), text(c, "scope"))).collect();
        assert_eq!(parts, [("pkg:cargo/a@1.0.0", "required"), ("pkg:cargo/b@1.0.0", "excluded")]);
        assert_eq!(bom["components"][0]["hashes"][0]["content"], "11");
        assert_eq!(bom["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(
            bom["dependencies"][2],
            json!({ "ref": "pkg:generic/deephold@1.0.0", "dependsOn": ["pkg:cargo/a@1.0.0"] })
        );
        assert!(document(&metadata, &BTreeMap::new()).is_err(), "a dependency without a checksum");
    }
}
