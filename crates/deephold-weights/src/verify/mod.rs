//! Checks a checkpoint on disk: index against shards, tensors against the configuration, finite values, digests.

mod content;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use deephold_quant::dequantize;
use serde::Serialize;

use crate::error::shown;
use crate::{Checkpoint, Finding, FindingKind, TensorInfo, WeightsError};

pub use content::{content_digest, text_digest};
pub use manifest::{Manifest, ManifestFile, manifest_path, read_manifest, write_manifest};

/// Elements that one thread takes at a time: 1 MiB as float32, a multiple of every block.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// A tensor that the configuration calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Hugging Face name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The model also works without it.
    pub optional: bool,
    /// A token uses the first of these in the second of them (experts); 1 of 1 for what every token uses, 0 of 1 for scales
    /// that belong to another tensor.
    pub active_share: (usize, usize),
}

impl ExpectedTensor {
    /// How many values it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|d| *d as u64).product()
    }
}

/// Says why a surplus tensor may be there, if it may.
pub type MayStay<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What to check.
#[derive(Clone, Copy)]
pub struct VerifyOptions<'a> {
    /// Read every value and look for NaN and infinities.
    pub finite: bool,
    /// Digest every file, and compare with the manifest if there is one.
    pub digests: bool,
    /// A new manifest will be written: what differs from the old one is said, and harmless.
    pub renew: bool,
    /// How many threads.
    pub threads: usize,
    /// Why surplus tensors may be there (buffers of older files, multi-token prediction): those are reported harmless.
    pub may_stay: Option<&'a MayStay<'a>>,
}

impl Default for VerifyOptions<'_> {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { finite: true, digests: true, renew: false, threads, may_stay: None }
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Reading values.
    Values,
    /// Computing digests.
    Digests,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug)]
pub struct VerifyProgress {
    /// Which.
    pub stage: Stage,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// A file and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Name within the model's folder.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// In hexadecimal; `None` if digests were not asked for.
    pub sha256: Option<String>,
}

/// All findings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// What is wrong; empty for a sound model.
    pub problems: Vec<Finding>,
    /// The files.
    pub files: Vec<FileReport>,
    /// How many tensors there are.
    pub tensors: usize,
    /// How many values were read.
    pub values: u64,
    /// Whether a manifest was compared with.
    pub manifest: bool,
}

impl VerifyReport {
    /// Nothing is wrong that matters.
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|p| p.harmless)
    }
}

/// Receives progress; may stop the work.
pub type OnProgress<'a> = dyn FnMut(VerifyProgress) -> ControlFlow<()> + 'a;

/// Checks `checkpoint` (best opened with [`Checkpoint::open_for_verify`]) against what its configuration calls for.
///
/// # Errors
/// A file or manifest cannot be read, or the caller stopped. Findings are no errors: they are in the report.
pub fn check(
    checkpoint: &Checkpoint,
    expected: Option<&[ExpectedTensor]>,
    options: VerifyOptions<'_>,
    progress: &mut OnProgress<'_>,
) -> Result<VerifyReport, WeightsError> {
    let mut report = VerifyReport {
        problems: checkpoint.problems().to_vec(),
        tensors: checkpoint.tensors().count(),
        ..VerifyReport::default()
    };
    if let Some(expected) = expected {
        report.problems.extend(compare(checkpoint, expected, options.may_stay));
    }
    if options.finite {
        finite_values(checkpoint, options.threads, &mut report, progress)?;
    }
    manifest::digests(checkpoint, options, &mut report, progress)?;
    Ok(report)
}

fn problem(kind: FindingKind, place: &str, what: String, hint: &str) -> Finding {
    Finding { kind, what, place: shown(place), hint: hint.to_owned(), harmless: false }
}

/// Missing tensors, wrong shapes, surplus tensors.
pub fn compare(
    checkpoint: &Checkpoint,
    expected: &[ExpectedTensor],
    may_stay: Option<&MayStay<'_>>,
) -> Vec<Finding> {
    let mut problems = Vec::new();
    for e in expected {
        match checkpoint.tensor(&e.name) {
            None if e.optional => {}
            None => problems.push(problem(
                FindingKind::Missing,
                &e.name,
                format!("is missing; config.json calls for it with shape {:?}", e.shape),
                "fetch the model again, or take the config.json that belongs to these weights",
            )),
            Some(view) if view.info().shape != e.shape => problems.push(problem(
                FindingKind::Shape,
                &e.name,
                format!("has shape {:?}, config.json calls for {:?}", view.info().shape, e.shape),
                "take the config.json that belongs to these weights",
            )),
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = expected.iter().map(|e| e.name.as_str()).collect();
    for info in checkpoint.tensors().filter(|t| !known.contains(t.name.as_str())) {
        let reason = may_stay.and_then(|f| f(&info.name));
        let what = match &reason {
            Some(reason) => format!("is not used: {reason}"),
            None => format!("is not called for by config.json (shape {:?})", info.shape),
        };
        let hint = "a surplus tensor is ignored; if there are many, config.json may belong to another model";
        problems.push(Finding { harmless: true, ..problem(FindingKind::Surplus, &info.name, what, hint) });
    }
    problems
}

struct Chunk<'a> {
    info: &'a TensorInfo,
    first: usize,
    elements: usize,
}

fn finite_values(
    checkpoint: &Checkpoint,
    threads: usize,
    report: &mut VerifyReport,
    progress: &mut OnProgress<'_>,
) -> Result<(), WeightsError> {
    let mut chunks = Vec::new();
    let mut total = 0;
    for info in checkpoint.tensors().filter(|t| has_values(t)) {
        total += info.bytes as u64;
        let elements = info.elements();
        for first in (0..elements).step_by(CHUNK_ELEMENTS) {
            chunks.push(Chunk { info, first, elements: CHUNK_ELEMENTS.min(elements - first) });
        }
        report.values += elements as u64;
    }
    let look = |i: usize, done: &dyn Fn(u64)| {
        let found = first_bad(checkpoint, &chunks[i]);
        done(chunk_bytes(&chunks[i]));
        found
    };
    let found = parallel(chunks.len(), threads, Stage::Values, total, &look, progress)?;
    let mut named = HashSet::new();
    for (chunk, found) in chunks.iter().zip(found) {
        // One finding a tensor is enough to condemn it.
        if let Some(what) = found
            && named.insert(&chunk.info.name)
        {
            let hint = "the file is damaged, or the training diverged; fetch it again";
            report.problems.push(problem(FindingKind::NotFinite, &chunk.info.name, what, hint));
        }
    }
    Ok(())
}

/// Integers are always finite.
fn has_values(info: &TensorInfo) -> bool {
    use deephold_quant::DType::{BF16, F8E4M3, F16, F32, F64};
    info.dtype.is_quantized() || matches!(info.dtype, F64 | F32 | F16 | BF16 | F8E4M3)
}

fn chunk_bytes(chunk: &Chunk<'_>) -> u64 {
    chunk.info.dtype.bytes_for(chunk.elements).unwrap_or(0) as u64
}

fn first_bad(checkpoint: &Checkpoint, chunk: &Chunk<'_>) -> Option<String> {
    let dtype = chunk.info.dtype;
    let begin = dtype.bytes_for(chunk.first)?;
    let bytes = checkpoint.view(chunk.info).bytes().get(begin..begin + dtype.bytes_for(chunk.elements)?)?;
    let mut values = vec![0f32; chunk.elements];
    dequantize(dtype, bytes, &mut values).ok()?;
    let i = values.iter().position(|v| !v.is_finite())?;
    Some(format!("holds {} at element {}", values[i], chunk.first + i))
}

/// One task by number; it reports the bytes it is done with.
type Work<'a, T> = dyn Fn(usize, &dyn Fn(u64)) -> T + Sync + 'a;

/// Runs `work(0..tasks)` on threads; results in order. `work` reports bytes, the caller's progress sees their sum.
fn parallel<T: Send>(
    tasks: usize,
    threads: usize,
    stage: Stage,
    total_bytes: u64,
    work: &Work<'_, T>,
    progress: &mut OnProgress<'_>,
) -> Result<Vec<T>, WeightsError> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut results: Vec<Option<T>> = Vec::new();
    results.resize_with(tasks, || None);
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        for _ in 0..threads.clamp(1, tasks.max(1)) {
            let (send, next, stop) = (send.clone(), &next, &stop);
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= tasks || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // The receiver lives as long as the scope.
                    let result = work(i, &|bytes| _ = send.send((bytes, None)));
                    _ = send.send((0, Some((i, result))));
                }
            });
        }
        drop(send);
        let mut done_bytes = 0;
        for (bytes, result) in receive {
            done_bytes += bytes;
            if let Some((i, result)) = result {
                results[i] = Some(result);
            } else if progress(VerifyProgress { stage, done_bytes, total_bytes }).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    if stop.into_inner() {
        return Err(WeightsError::Cancelled);
    }
    Ok(results.into_iter().flatten().collect())
}
