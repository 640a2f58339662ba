//! From mapped tensors to packed matrices, one tensor at a time, so that little beside the packed weights is in memory.

use std::sync::Arc;

use deephold_kernels::{Ops, PackedMatrix, RopeStyle, RopeTable};
use deephold_quant::DType;
use deephold_weights::fp8::Fp8Scale;
use deephold_weights::{Checkpoint, RopeStyleHint, TensorView};

use crate::ModelError;
use crate::config::rope::RopeConfig;

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Quantise matrices on the way in, one tensor in float32 at a time beside the packed weights. Matrices whose rows are
    /// not whole blocks of it, norms, routers and the two halves of `kv_b_proj` stay as stored.
    pub quantize_to: Option<DType>,
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Stored bytes packed so far.
    pub done_bytes: u64,
    /// Stored bytes in all.
    pub total_bytes: u64,
}

/// Sizes of latent attention's heads.
#[derive(Clone, Copy)]
pub(crate) struct LatentSizes {
    /// Nq.
    pub(crate) heads: usize,
    /// R.
    pub(crate) rank: usize,
    /// Columns of a head's key without rope.
    pub(crate) nope: usize,
    /// Columns of a head's value.
    pub(crate) v: usize,
}

/// `kv_b_proj`, split so that attention can run in the latent space.
pub(crate) struct LatentHeads {
    /// W_UK^T, Nq matrices [R, nope].
    pub(crate) uk: Vec<PackedMatrix>,
    /// W_UV, Nq matrices [v, R].
    pub(crate) uv: Vec<PackedMatrix>,
}

/// Packs tensors and counts.
pub(crate) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    ops: &'a Ops,
    options: &'a LoadOptions,
    progress: &'a mut dyn FnMut(Progress),
    state: Progress,
    ropes: Vec<(RopeConfig, Arc<RopeTable>)>,
    /// Bytes of all packed matrices and vectors.
    pub(crate) packed_bytes: u64,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        ops: &'a Ops,
        options: &'a LoadOptions,
        total_bytes: u64,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let state = Progress { done_bytes: 0, total_bytes };
        Self { checkpoint, ops, options, progress, state, ropes: Vec::new(), packed_bytes: 0 }
    }

    /// A matrix [n, k] as stored, or quantised where the options ask for it.
    pub(crate) fn matrix(&mut self, name: &str, n: usize, k: usize) -> Result<PackedMatrix, ModelError> {
        let view = self.view(name, &[n, k])?;
        let packed = self.pack(name, &view, n, k, self.options.quantize_to)?;
        self.count(view.bytes().len());
        Ok(packed)
    }

    /// A matrix [n, k] as stored, whatever the options say: routers decide, and their rounding would change decisions.
    pub(crate) fn exact_matrix(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
    ) -> Result<PackedMatrix, ModelError> {
        let view = self.view(name, &[n, k])?;
        let packed = self.pack(name, &view, n, k, None)?;
        self.count(view.bytes().len());
        Ok(packed)
    }

    /// A vector `[n]` of finite values.
    pub(crate) fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>, ModelError> {
        let view = self.view(name, &[n])?;
        let values = view.to_f32()?;
        self.count(view.bytes().len());
        self.packed_bytes += 4 * n as u64;
        finite(name, &values)?;
        Ok(values)
    }

    /// E matrices [n, k]: `<name>.<e>.<proj>.weight`, or merged in `<name>.<proj>.weight` [E, n, k].
    pub(crate) fn experts(
        &mut self,
        name: &str,
        proj: &str,
        experts: usize,
        n: usize,
        k: usize,
    ) -> Result<Vec<PackedMatrix>, ModelError> {
        let merged = format!("{name}.{proj}.weight");
        if self.checkpoint.tensor(&merged).is_none() {
            return (0..experts).map(|e| self.matrix(&format!("{name}.{e}.{proj}.weight"), n, k)).collect();
        }
        let view = self.view(&merged, &[experts, n, k])?;
        let mut out = Vec::with_capacity(experts);
        for slice in parts(&merged, &view, experts)? {
            out.push(self.pack_bytes(&merged, view.info().dtype, slice, n, k, self.options.quantize_to)?);
            self.count(slice.len());
        }
        Ok(out)
    }

    /// The two halves of `kv_b_proj`, head by head; see `layers::mla`.
    pub(crate) fn latent_heads(
        &mut self,
        attention: &str,
        sizes: LatentSizes,
    ) -> Result<LatentHeads, ModelError> {
        let LatentSizes { heads, rank: r, nope, v } = sizes;
        let k_b = format!("{attention}.k_b_proj.weight");
        if self.checkpoint.tensor(&k_b).is_some() {
            let uk = self.merged_heads(&k_b, heads, r, nope)?;
            let uv = self.merged_heads(&format!("{attention}.v_b_proj.weight"), heads, v, r)?;
            return Ok(LatentHeads { uk, uv });
        }
        let name = format!("{attention}.kv_b_proj.weight");
        let view = self.view(&name, &[heads * (nope + v), r])?;
        let dense = matches!(view.info().dtype, DType::F32 | DType::F16 | DType::BF16);
        let (mut uk, mut uv) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
        if dense {
            let width = view.info().dtype.block_bytes();
            let dtype = view.info().dtype;
            for head in parts(&name, &view, heads)? {
                let (k_rows, v_rows) = head.split_at(nope * r * width);
                let transposed = transpose(k_rows, nope, r, width);
                uk.push(self.pack_bytes(&name, dtype, &transposed, r, nope, None)?);
                uv.push(self.pack_bytes(&name, dtype, v_rows, v, r, None)?);
            }
        } else {
            let values = self.dequantized(&name, &view, heads * (nope + v), r)?;
            for head in values.chunks_exact((nope + v) * r) {
                let (k_rows, v_rows) = head.split_at(nope * r);
                let transposed: Vec<f32> =
                    (0..r).flat_map(|col| (0..nope).map(move |row| k_rows[row * r + col])).collect();
                uk.push(self.pack_f32(&transposed, r, nope)?);
                uv.push(self.pack_f32(v_rows, v, r)?);
            }
        }
        self.count(view.bytes().len());
        Ok(LatentHeads { uk, uv })
    }

    /// One table for all layers that turn alike.
    pub(crate) fn rope_table(&mut self, config: &RopeConfig) -> Arc<RopeTable> {
        if let Some((_, table)) = self.ropes.iter().find(|(c, _)| c == config) {
            return Arc::clone(table);
        }
        let table = Arc::new(config.table());
        self.ropes.push((config.clone(), Arc::clone(&table)));
        table
    }

    /// GGUF files of the architecture `llama` hold q and k rows permuted so that pairs are neighbours.
    pub(crate) fn gqa_rope_style(&self) -> RopeStyle {
        match self.checkpoint.rope_style_hint() {
            RopeStyleHint::Half => RopeStyle::Half,
            RopeStyleHint::Interleaved => RopeStyle::Interleaved,
        }
    }

    fn merged_heads(
        &mut self,
        name: &str,
        heads: usize,
        n: usize,
        k: usize,
    ) -> Result<Vec<PackedMatrix>, ModelError> {
        let view = self.view(name, &[heads, n, k])?;
        let mut out = Vec::with_capacity(heads);
        for slice in parts(name, &view, heads)? {
            out.push(self.pack_bytes(name, view.info().dtype, slice, n, k, None)?);
        }
        self.count(view.bytes().len());
        Ok(out)
    }

    fn pack(
        &mut self,
        name: &str,
        view: &TensorView<'_>,
        n: usize,
        k: usize,
        to: Option<DType>,
    ) -> Result<PackedMatrix, ModelError> {
        if view.info().dtype != DType::F8E4M3 {
            return self.pack_bytes(name, view.info().dtype, view.bytes(), n, k, to);
        }
        if let Some(to) = to.filter(|to| k.is_multiple_of(to.block_len())) {
            let values = self.dequantized(name, view, n, k)?;
            return self.quantized(&values, n, k, to);
        }
        let scale = self.fp8_scale(name)?;
        let packed =
            PackedMatrix::pack_fp8(self.ops.pool(), n, k, view.bytes(), &scale.scale_inv, scale.block)?;
        self.packed_bytes += packed.bytes() as u64;
        Ok(packed)
    }

    fn pack_bytes(
        &mut self,
        name: &str,
        dtype: DType,
        bytes: &[u8],
        n: usize,
        k: usize,
        to: Option<DType>,
    ) -> Result<PackedMatrix, ModelError> {
        if let Some(to) = to.filter(|to| *to != dtype && k.is_multiple_of(to.block_len())) {
            let mut values = vec![0f32; n * k];
            deephold_quant::dequantize(dtype, bytes, &mut values)?;
            return self.quantized(&values, n, k, to);
        }
        if !(dtype.is_quantized() || matches!(dtype, DType::F32 | DType::F16 | DType::BF16)) {
            let hint = "a weight is F32, F16, BF16, FP8 with scales, or a GGUF block format".into();
            return Err(ModelError::Format { name: name.into(), dtype: dtype.name(), hint });
        }
        let packed = PackedMatrix::pack(self.ops.pool(), dtype, n, k, bytes)?;
        self.packed_bytes += packed.bytes() as u64;
        Ok(packed)
    }

    fn pack_f32(&mut self, values: &[f32], n: usize, k: usize) -> Result<PackedMatrix, ModelError> {
        let packed = PackedMatrix::pack_f32(self.ops.pool(), n, k, values)?;
        self.packed_bytes += packed.bytes() as u64;
        Ok(packed)
    }

    fn quantized(
        &mut self,
        values: &[f32],
        n: usize,
        k: usize,
        to: DType,
    ) -> Result<PackedMatrix, ModelError> {
        let row_bytes = k / to.block_len() * to.block_bytes();
        let mut bytes = vec![0u8; n * row_bytes];
        for (row, out) in values.chunks_exact(k).zip(bytes.chunks_exact_mut(row_bytes)) {
            deephold_quant::quantize(to, row, out)?;
        }
        let packed = PackedMatrix::pack(self.ops.pool(), to, n, k, &bytes)?;
        self.packed_bytes += packed.bytes() as u64;
        Ok(packed)
    }

    /// All values of a quantised or FP8 matrix.
    fn dequantized(
        &self,
        name: &str,
        view: &TensorView<'_>,
        n: usize,
        k: usize,
    ) -> Result<Vec<f32>, ModelError> {
        if view.info().dtype == DType::F8E4M3 {
            return Ok(self.checkpoint.tensor_f32(name)?);
        }
        let mut values = vec![0f32; n * k];
        deephold_quant::dequantize(view.info().dtype, view.bytes(), &mut values)?;
        Ok(values)
    }

    /// The block scales of an FP8 matrix.
    fn fp8_scale(&self, name: &str) -> Result<Fp8Scale, ModelError> {
        let not_fp8 = || ModelError::Format {
            name: name.into(),
            dtype: "F8_E4M3",
            hint: "it has no block scales".into(),
        };
        self.checkpoint.fp8_scale(name)?.ok_or_else(not_fp8)
    }

    fn view(&self, name: &str, shape: &[usize]) -> Result<TensorView<'a>, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.into(), shape: shape.to_vec() };
        let view = self.checkpoint.tensor(name).ok_or_else(missing)?;
        if view.info().shape != shape {
            let (found, expected) = (view.info().shape.clone(), shape.to_vec());
            return Err(ModelError::Shape { name: name.into(), found, expected });
        }
        Ok(view)
    }

    fn count(&mut self, bytes: usize) {
        self.state.done_bytes += bytes as u64;
        (self.progress)(self.state);
    }
}

/// `count` equal slices of a tensor's bytes.
fn parts<'a>(
    name: &str,
    view: &TensorView<'a>,
    count: usize,
) -> Result<std::slice::ChunksExact<'a, u8>, ModelError> {
    let bytes = view.bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(count) {
        let hint = format!("its {} bytes do not divide by {count}", bytes.len());
        return Err(ModelError::Format { name: name.into(), dtype: view.info().dtype.name(), hint });
    }
    Ok(bytes.chunks_exact(bytes.len() / count))
}

/// [rows, cols] elements of `width` bytes -> [cols, rows].
fn transpose(bytes: &[u8], rows: usize, cols: usize, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            out.extend_from_slice(&bytes[at..at + width]);
        }
    }
    out
}

fn finite(name: &str, values: &[f32]) -> Result<(), ModelError> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(ModelError::NotFinite { name: name.into(), at }),
        None => Ok(()),
    }
}
