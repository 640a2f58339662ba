//! Writes a checkpoint as GGUF v3 in a smaller format, tensor by tensor.
//!
//! Names, row orders and metadata follow what llama.cpp's converter writes for the architectures `llama`, `qwen2`,
//! `qwen3`, `deepseek2` and `deepseek32`, so that llama.cpp loads the file. In memory are only a few chunks of rows,
//! whatever the model's size.

mod choose;
mod hf_config;
mod metadata;
mod plan;
mod rows;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;

use crate::atomic::AtomicFile;
use crate::gguf::{TensorPlan, Writer};
use crate::{Checkpoint, WeightsError};
use rows::{Errors, PlannedTensor};

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(non_camel_case_types, missing_docs)] // The names are llama.cpp's own.
pub enum QuantFormat {
    Q8_0,
    Q4_0,
    Q4_K_M,
    Q5_K_M,
    Q6_K,
    BF16,
}

impl QuantFormat {
    /// All of them.
    pub const ALL: [QuantFormat; 6] =
        [Self::Q8_0, Self::Q4_0, Self::Q4_K_M, Self::Q5_K_M, Self::Q6_K, Self::BF16];

    /// As written on the command line, `q4_k_m`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_K_M => "q4_k_m",
            Self::Q5_K_M => "q5_k_m",
            Self::Q6_K => "q6_k",
            Self::BF16 => "bf16",
        }
    }

    /// `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }
}

impl std::str::FromStr for QuantFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            format!("unknown format `{text}`; known are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

impl std::fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct QuantProgress<'a> {
    /// The tensor being written.
    pub tensor: &'a str,
    /// Elements written so far, of all tensors.
    pub done_elements: u64,
    /// Elements in all.
    pub total_elements: u64,
}

/// One tensor of the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// Name in the result.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Type before.
    pub from: &'static str,
    /// Type after.
    pub to: &'static str,
    /// Bytes after.
    pub bytes: u64,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// `rmse` over the root mean square of the values; 0 where all are 0.
    pub relative_rmse: f64,
    /// Largest absolute error.
    pub max_error: f64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantReport {
    /// The format asked for.
    pub format: QuantFormat,
    /// Bytes of the input's tensors.
    pub input_bytes: u64,
    /// Bytes of the file written.
    pub output_bytes: u64,
    /// In the file's order.
    pub tensors: Vec<TensorReport>,
    /// Tensors left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Remarks for people.
    pub notes: Vec<String>,
}

/// Writes `input` to `out` in `format`, on all cores. The file appears whole or not at all. `progress` is called after
/// every chunk and may stop the work.
///
/// # Errors
/// An architecture or tensor that GGUF has no place for, values that are not finite, a cancelled run, or the system's
/// refusal to write.
pub fn run(
    input: &Checkpoint,
    out: &Path,
    format: QuantFormat,
    progress: &mut dyn FnMut(QuantProgress<'_>) -> ControlFlow<()>,
) -> Result<QuantReport, WeightsError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    run_with_threads(input, out, format, threads, progress)
}

/// As [`run`] with a number of threads. The result does not depend on it.
///
/// # Errors
/// As [`run`].
pub fn run_with_threads(
    input: &Checkpoint,
    out: &Path,
    format: QuantFormat,
    threads: usize,
    progress: &mut dyn FnMut(QuantProgress<'_>) -> ControlFlow<()>,
) -> Result<QuantReport, WeightsError> {
    refuse_own_input(input, out)?;
    let plan = plan::plan(input, format)?;
    let total_elements = plan.planned.iter().map(PlannedTensor::elements).sum();
    let entries: Vec<TensorPlan> = plan.planned.iter().map(PlannedTensor::entry).collect::<Result<_, _>>()?;
    let write_error = |e| WeightsError::io("write", out)(e);
    let file = AtomicFile::create(out)?;
    let mut writer = Writer::begin(file, &plan.metadata, &entries).map_err(write_error)?;
    let mut report = QuantReport {
        format,
        input_bytes: input.tensor_bytes(),
        output_bytes: 0,
        tensors: Vec::with_capacity(entries.len()),
        skipped: plan.skipped,
        notes: plan.notes,
    };
    let mut done = 0;
    for (planned, entry) in plan.planned.iter().zip(&entries) {
        let errors = planned.stream(threads.max(1), &mut |chunk, elements| {
            writer.data(chunk).map_err(|e| WeightsError::io("write", out)(e))?;
            done += elements;
            match progress(QuantProgress { tensor: &planned.name, done_elements: done, total_elements }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(WeightsError::Cancelled),
            }
        })?;
        writer.pad().map_err(|e| WeightsError::io("write", out)(e))?;
        planned.release(input);
        report.tensors.push(tensor_report(planned, entry, &errors));
    }
    report.output_bytes = writer.bytes();
    writer.into_inner().commit()?;
    Ok(report)
}

fn tensor_report(planned: &PlannedTensor<'_>, entry: &TensorPlan, errors: &Errors) -> TensorReport {
    let n = planned.elements().max(1) as f64;
    let (rmse, rms) = ((errors.squares / n).sqrt(), (errors.value_squares / n).sqrt());
    TensorReport {
        name: planned.name.clone(),
        shape: entry.shape.clone(),
        from: planned.source_type(),
        to: entry.dtype.name(),
        bytes: entry.bytes,
        rmse,
        relative_rmse: if rms > 0.0 { rmse / rms } else { 0.0 },
        max_error: errors.max,
    }
}

/// Renaming over a mapped file would be safe, and would lose the original.
fn refuse_own_input(input: &Checkpoint, out: &Path) -> Result<(), WeightsError> {
    let Ok(out_path) = out.canonicalize() else { return Ok(()) };
    let same = input.files().iter().any(|f| f.path.canonicalize().is_ok_and(|p| p == out_path));
    if out_path.is_dir() || same {
        let problem = if same { "is the input itself" } else { "is a folder" };
        return Err(WeightsError::malformed(
            out.display().to_string(),
            format!("{problem}; name another file"),
        ));
    }
    Ok(())
}
