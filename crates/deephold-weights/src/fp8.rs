//! DeepSeek's native FP8: E4M3 weights, one float32 scale (`weight_scale_inv`) for each block of 128 x 128.
//!
//! value\[n\]\[k\] = fp8\[n\]\[k\] * scale_inv\[n / 128\]\[k / 128\]. Source: the published `inference/kernel.py` of DeepSeek-V3.

use std::path::Path;

use deephold_quant::{DType, f32_to_f8e4m3};
use serde_json::{Value, json};

use crate::error::shown;
use crate::files::read_bounded;
use crate::safetensors::{self, OwnedTensor};
use crate::{Checkpoint, TensorView, WeightsError};

/// The largest finite E4M3 value.
const E4M3_MAX: f32 = 448.0;
/// Far above any published tokenizer.json.
const SIDE_BYTES_MAX: u64 = 64 << 20;
const BLOCK: usize = 128;

/// Scales of one FP8 matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Scale {
    /// `[rows, cols]`, finite.
    pub scale_inv: Vec<f32>,
    /// Blocks down: N / block.0, rounded up.
    pub rows: usize,
    /// Blocks across: K / block.1, rounded up.
    pub cols: usize,
    /// Rows and columns of a block.
    pub block: (usize, usize),
}

/// What `quantization_config` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Config {
    /// Rows and columns of a block.
    pub block: (usize, usize),
}

impl Fp8Config {
    /// Reads `quantization_config` of a config.json; `None` where there is none.
    ///
    /// # Errors
    /// Another method than FP8 E4M3 in blocks.
    pub fn parse(config: &Value) -> Result<Option<Self>, WeightsError> {
        let Some(q) = config.get("quantization_config").filter(|q| !q.is_null()) else { return Ok(None) };
        let text = |key: &str| q.get(key).and_then(Value::as_str).map(shown);
        let refuse = |key: &str, found: String, hint: &str| {
            Err(WeightsError::unsupported(format!("`quantization_config.{key}`"), found, hint))
        };
        match text("quant_method").as_deref() {
            Some("fp8") => {}
            other => {
                let hint = "only DeepSeek's FP8 is read; take the bf16 weights or a GGUF file";
                return refuse("quant_method", other.unwrap_or("missing").to_owned(), hint);
            }
        }
        if let Some(other) = text("fmt").filter(|f| f != "e4m3") {
            return refuse("fmt", other, "only e4m3 is read");
        }
        let block = q.get("weight_block_size").and_then(Value::as_array);
        let side =
            |i: usize| block?.get(i)?.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize);
        match (block.map(Vec::len), side(0), side(1)) {
            (Some(2), Some(rows), Some(cols)) => Ok(Some(Self { block: (rows, cols) })),
            _ => {
                let found = shown(&q.get("weight_block_size").unwrap_or(&Value::Null).to_string());
                refuse("weight_block_size", found, "expected two sizes such as [128, 128]")
            }
        }
    }
}

impl Checkpoint {
    /// The scales of an FP8 matrix `<x>.weight`, from `<x>.weight_scale_inv`; `None` if the tensor is not FP8 or not there.
    ///
    /// # Errors
    /// The scales are missing, of another shape, or not finite; `quantization_config` is missing or of another kind.
    pub fn fp8_scale(&self, name: &str) -> Result<Option<Fp8Scale>, WeightsError> {
        match self.tensor(name) {
            Some(view) if view.info().dtype == DType::F8E4M3 => self.scale_of(&view).map(Some),
            _ => Ok(None),
        }
    }

    fn scale_of(&self, view: &TensorView<'_>) -> Result<Fp8Scale, WeightsError> {
        let name = &view.info().name;
        let what = || format!("tensor `{}`", shown(name));
        let [n, k] = view.info().shape[..] else {
            return Err(WeightsError::malformed(what(), "is FP8 and not a matrix"));
        };
        let Some(config) = Fp8Config::parse(self.config())? else {
            let problem = "is FP8, but config.json has no `quantization_config` with its block size";
            return Err(WeightsError::malformed(what(), problem));
        };
        let scale_name = format!("{name}_scale_inv");
        let Some(scales) = self.tensor(&scale_name) else {
            return Err(WeightsError::NotFound {
                what: format!("tensor `{}`", shown(&scale_name)),
                hint: "an FP8 weight needs its block scales; fetch the model again".into(),
            });
        };
        let (rows, cols) = (n.div_ceil(config.block.0), k.div_ceil(config.block.1));
        if scales.info().shape != [rows, cols] {
            return Err(WeightsError::malformed(
                format!("tensor `{}`", shown(&scale_name)),
                format!("has shape {:?}, expected [{rows}, {cols}]", scales.info().shape),
            ));
        }
        let scale_inv = scales.to_f32()?;
        check_finite(&scale_name, &scale_inv)?;
        Ok(Fp8Scale { scale_inv, rows, cols, block: config.block })
    }

    /// All values of a tensor in float32, FP8 scales applied.
    ///
    /// # Errors
    /// The tensor is not there, of an integer type, or FP8 without proper scales.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let Some(view) = self.tensor(name) else {
            let hint = "`deephold model inspect --tensors` lists what the model has".to_owned();
            return Err(WeightsError::NotFound { what: format!("tensor `{}`", shown(name)), hint });
        };
        let mut values = view.to_f32()?;
        if view.info().dtype == DType::F8E4M3 {
            let scale = self.scale_of(&view)?;
            apply(&mut values, 0, view.info().shape[1], &scale);
        }
        Ok(values)
    }
}

/// Multiplies rows (the first of them row `row0` of the matrix) of `k` columns by their block scales.
pub(crate) fn apply(values: &mut [f32], row0: usize, k: usize, scale: &Fp8Scale) {
    if k == 0 {
        return;
    }
    for (i, row) in values.chunks_exact_mut(k).enumerate() {
        let scales = &scale.scale_inv[(row0 + i) / scale.block.0 * scale.cols..][..scale.cols];
        for (chunk, s) in row.chunks_mut(scale.block.1).zip(scales) {
            chunk.iter_mut().for_each(|v| *v *= s);
        }
    }
}

/// Every value is finite.
///
/// # Errors
/// The first that is not, with its place.
pub fn check_finite(tensor: &str, values: &[f32]) -> Result<(), WeightsError> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => {
            Err(WeightsError::NotFinite { tensor: tensor.to_owned(), index, value: values[index] })
        }
    }
}

/// Quantizes a matrix `[n, k]` in blocks of 128 x 128: codes, and scales `[ceil(n/128), ceil(k/128)]`.
pub fn quantize_blocks(values: &[f32], n: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let (rows, cols) = (n.div_ceil(BLOCK), k.div_ceil(BLOCK));
    let mut scales = vec![0f32; rows * cols];
    for (i, v) in values.iter().enumerate() {
        let s = &mut scales[i / k / BLOCK * cols + i % k / BLOCK];
        *s = s.max(v.abs());
    }
    // A block of zeros gets a scale that divides.
    scales.iter_mut().for_each(|s| *s = if *s > 0.0 { *s / E4M3_MAX } else { 1.0 });
    let codes = values
        .iter()
        .enumerate()
        .map(|(i, v)| f32_to_f8e4m3(v / scales[i / k / BLOCK * cols + i % k / BLOCK]));
    (codes.collect(), scales)
}

/// Whether the published FP8 checkpoints hold this tensor in FP8: projections, not routers, norms, embeddings, the head
/// or the indexer's weights.
fn is_published_in_fp8(name: &str) -> bool {
    let projection = name.ends_with("_proj.weight") || name.ends_with(".kv_a_proj_with_mqa.weight");
    let indexer = name.ends_with(".indexer.wq_b.weight") || name.ends_with(".indexer.wk.weight");
    (projection || indexer) && !name.ends_with(".weights_proj.weight") && !name.ends_with(".eh_proj.weight")
}

/// Makes an FP8 model in the published layout out of a Hugging Face folder: fixtures for tests. One file, all tensors
/// in memory.
///
/// # Errors
/// The input cannot be read or the output not written.
pub fn convert_folder(input: &Path, output: &Path) -> Result<(), WeightsError> {
    let checkpoint = Checkpoint::open(input)?;
    let mut tensors = Vec::new();
    for info in checkpoint.tensors() {
        let view = checkpoint.view(info);
        let [n, k] = info.shape[..] else {
            tensors.push(copy(&view));
            continue;
        };
        if !is_published_in_fp8(&info.name) || n * k == 0 {
            tensors.push(copy(&view));
            continue;
        }
        let (codes, scales) = quantize_blocks(&view.to_f32()?, n, k);
        let shape = vec![n.div_ceil(BLOCK), k.div_ceil(BLOCK)];
        let data = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        tensors.push(OwnedTensor {
            name: info.name.clone(),
            dtype: DType::F8E4M3,
            shape: info.shape.clone(),
            data: codes,
        });
        tensors.push(OwnedTensor {
            name: format!("{}_scale_inv", info.name),
            dtype: DType::F32,
            shape,
            data,
        });
    }
    std::fs::create_dir_all(output).map_err(WeightsError::io("create", output))?;
    let mut config = checkpoint.config().clone();
    config["quantization_config"] = json!({
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK],
    });
    let path = output.join("config.json");
    let text = serde_json::to_vec_pretty(&config).expect("a JSON value serializes");
    std::fs::write(&path, text).map_err(WeightsError::io("write", &path))?;
    for side in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let (from, to) = (input.join(side), output.join(side));
        if from.is_file() {
            let bytes = read_bounded(&from, SIDE_BYTES_MAX)?;
            std::fs::write(&to, bytes).map_err(WeightsError::io("write", &to))?;
        }
    }
    safetensors::write(&output.join("model.safetensors"), &tensors, &Default::default())
}

fn copy(view: &TensorView<'_>) -> OwnedTensor {
    let info = view.info();
    OwnedTensor {
        name: info.name.clone(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        data: view.bytes().to_vec(),
    }
}
