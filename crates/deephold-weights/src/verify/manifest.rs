//! SHA-256 of every file of a model, kept beside it in `deephold-manifest.json`.
//!
//! `{"version": 1, "files": [{"path", "bytes", "sha256"}]}`; paths are names within the folder. A GGUF file `m.gguf` has
//! its own `m.gguf.deephold-manifest.json`, since a folder may hold several models.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FileReport, OnProgress, Stage, VerifyOptions, VerifyReport, parallel, problem};
use crate::atomic::AtomicFile;
use crate::checkpoint::is_plain_file_name;
use crate::error::shown;
use crate::files::{open_regular, read_bounded};
use crate::{Checkpoint, FindingKind, Kind, WeightsError};

const NAME: &str = "deephold-manifest.json";
const MANIFEST_BYTES_MAX: u64 = 16 << 20;
const VERSION: u32 = 1;
const READ_BYTES: usize = 1 << 20;

/// What of a Hugging Face folder decides a model's answers beside its weights.
const SIDE_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Digests that were once written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub version: u32,
    /// In the order of names.
    pub files: Vec<ManifestFile>,
}

/// One file's digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Name within the folder.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// Where a checkpoint's manifest is or would be.
pub fn manifest_path(checkpoint: &Checkpoint) -> PathBuf {
    let root = checkpoint.path();
    match checkpoint.kind() {
        Kind::HuggingFace => root.join(NAME),
        Kind::Gguf => {
            let name = root.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            root.with_file_name(format!("{name}.{NAME}"))
        }
    }
}

/// Reads a manifest; `None` where there is none.
///
/// # Errors
/// Not a manifest of this version, or one that names files outside the folder.
pub fn read_manifest(path: &Path) -> Result<Option<Manifest>, WeightsError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_bounded(path, MANIFEST_BYTES_MAX)?;
    let bad = |problem: String| WeightsError::malformed("the manifest", problem).in_file(path);
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("cannot be read: {e}")))?;
    if manifest.version != VERSION {
        return Err(bad(format!("has version {}, {VERSION} is read", manifest.version)));
    }
    if let Some(f) = manifest.files.iter().find(|f| !is_plain_file_name(&f.path)) {
        return Err(bad(format!("names `{}`, which is not a file of this folder", shown(&f.path))));
    }
    Ok(Some(manifest))
}

/// Writes the digests of a report (made with [`VerifyOptions::digests`]) beside the model and says where.
///
/// # Errors
/// The report has no digests, or the system refuses to write.
pub fn write_manifest(checkpoint: &Checkpoint, report: &VerifyReport) -> Result<PathBuf, WeightsError> {
    let path = manifest_path(checkpoint);
    let mut files = Vec::with_capacity(report.files.len());
    for f in &report.files {
        let Some(sha256) = f.sha256.clone() else {
            let problem = "has no digests to write; verify with digests first";
            return Err(WeightsError::malformed("the report", problem));
        };
        files.push(ManifestFile { path: f.path.clone(), bytes: f.bytes, sha256 });
    }
    let manifest = Manifest { version: VERSION, files };
    let mut text = serde_json::to_vec_pretty(&manifest).expect("strings and numbers serialize");
    text.push(b'\n');
    let mut file = AtomicFile::create(&path)?;
    file.write_all(&text).map_err(WeightsError::io("write", &path))?;
    file.commit()?;
    Ok(path)
}

/// Lists the model's files, with digests where asked for, and compares with the manifest.
pub(super) fn digests(
    checkpoint: &Checkpoint,
    options: VerifyOptions<'_>,
    report: &mut VerifyReport,
    progress: &mut OnProgress<'_>,
) -> Result<(), WeightsError> {
    let paths = files(checkpoint);
    let mut lengths = Vec::with_capacity(paths.len());
    for path in &paths {
        lengths.push(std::fs::metadata(path).map_err(WeightsError::io("read", path))?.len());
    }
    let sums = if options.digests {
        let total = lengths.iter().sum();
        let sum = |i: usize, done: &dyn Fn(u64)| digest(&paths[i], done);
        let sums = parallel(paths.len(), options.threads, Stage::Digests, total, &sum, progress)?;
        sums.into_iter().map(|s| s.map(Some)).collect::<Result<Vec<_>, _>>()?
    } else {
        vec![None; paths.len()]
    };
    for ((path, bytes), sha256) in paths.iter().zip(lengths).zip(sums) {
        let path = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        report.files.push(FileReport { path, bytes, sha256 });
    }
    report.files.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(manifest) = read_manifest(&manifest_path(checkpoint))? {
        report.manifest = true;
        compare(&manifest, options.renew, report);
    }
    Ok(())
}

fn files(checkpoint: &Checkpoint) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = checkpoint.files().into_iter().map(|f| f.path).collect();
    if checkpoint.kind() == Kind::HuggingFace {
        let side = SIDE_FILES.iter().map(|name| checkpoint.path().join(name));
        paths.extend(side.filter(|p| p.is_file()));
    }
    paths
}

fn digest(path: &Path, done: &dyn Fn(u64)) -> Result<String, WeightsError> {
    let mut file = open_regular(path)?;
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; READ_BYTES]);
    loop {
        let n = file.read(&mut buffer).map_err(WeightsError::io("read", path))?;
        if n == 0 {
            break;
        }
        sum.update(&buffer[..n]);
        done(n as u64);
    }
    Ok(sum.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

fn compare(manifest: &Manifest, renew: bool, report: &mut VerifyReport) {
    let mut add = |place: &str, what: String| {
        let hint = match renew {
            false => {
                "fetch the file again, or write the manifest anew (--write-manifest) if the change was meant"
            }
            true => "the new manifest takes it as it is",
        };
        let mut problem = problem(FindingKind::Digest, place, what, hint);
        problem.harmless = renew;
        report.problems.push(problem);
    };
    for noted in &manifest.files {
        let Some(found) = report.files.iter().find(|f| f.path == noted.path) else {
            add(&noted.path, "is in the manifest and not among the model's files".into());
            continue;
        };
        if found.bytes != noted.bytes {
            add(&noted.path, format!("has {} bytes, the manifest says {}", found.bytes, noted.bytes));
        } else if found.sha256.as_ref().is_some_and(|s| !s.eq_ignore_ascii_case(&noted.sha256)) {
            let what = format!(
                "has SHA-256 {}, the manifest says {}",
                found.sha256.as_deref().unwrap_or_default(),
                shown(&noted.sha256)
            );
            add(&noted.path, what);
        }
    }
    let noted: HashSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    for f in report.files.iter().filter(|f| !noted.contains(f.path.as_str())) {
        add(&f.path, "is part of the model and not in the manifest".into());
    }
}
