//! The decoder that all families share today: embedding, layers on one residual stream, norm, head.
//!
//! A family whose stream differs (V4's hyper-connections) implements `Model` itself.

use std::sync::Arc;

use deephold_base::TokenId;
use deephold_kernels::{Activations, AttentionContext, CacheSpec, EmbeddingTable, Ops, PackedMatrix, Tensor};
use deephold_quant::DType;
use deephold_weights::Checkpoint;

use crate::family::{Family, Layer};
use crate::info::ModelInfo;
use crate::layers::attention::GqaAttention;
use crate::layers::mlp::Mlp;
use crate::layers::norm::RmsNorm;
use crate::loader::Loader;
use crate::tensors::TensorList;
use crate::{Model, ModelError};

/// Token id -> row.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

/// Every tensor of a family, in the order of the forward pass.
pub(crate) fn tensors(family: &dyn Family, list: &mut TensorList<'_>) {
    let d = family.decoder();
    list.tensor(EMBEDDING, &[d.vocab_size, d.hidden_size]);
    for layer in 0..d.num_hidden_layers {
        family.layer_tensors(list, layer);
    }
    list.vector("model.norm.weight", d.hidden_size);
    if !d.tie_word_embeddings {
        list.linear("lm_head", d.vocab_size, d.hidden_size, false);
    }
}

/// A loaded model.
pub(crate) struct Decoder {
    checkpoint: Arc<Checkpoint>,
    layers: Vec<Box<dyn Layer>>,
    norm: RmsNorm,
    lm_head: PackedMatrix,
    info: ModelInfo,
}

impl Decoder {
    /// Loads all layers; `info` is completed with what was packed.
    pub(crate) fn load(
        checkpoint: &Arc<Checkpoint>,
        family: &dyn Family,
        l: &mut Loader<'_>,
        mut info: ModelInfo,
    ) -> Result<Self, ModelError> {
        let d = family.decoder();
        let embedding = embedding_dtype(checkpoint)?;
        if !(embedding.is_quantized() || matches!(embedding, DType::F32 | DType::F16 | DType::BF16)) {
            let hint = "an embedding table is F32, F16, BF16 or a GGUF block format".into();
            return Err(ModelError::Format { name: EMBEDDING.into(), dtype: embedding.name(), hint });
        }
        let layers =
            (0..d.num_hidden_layers).map(|i| family.load_layer(l, i)).collect::<Result<Vec<_>, _>>()?;
        let norm = RmsNorm::load(l, "model.norm", d.hidden_size, d.rms_norm_eps)?;
        let head = if d.tie_word_embeddings { EMBEDDING } else { "lm_head.weight" };
        let lm_head = l.matrix(head, d.vocab_size, d.hidden_size)?;
        info.packed_bytes = l.packed_bytes;
        Ok(Self { checkpoint: Arc::clone(checkpoint), layers, norm, lm_head, info })
    }

    fn embed(&self, ops: &Ops, tokens: &[TokenId]) -> Result<Tensor, ModelError> {
        let (rows, cols) = (self.info.vocab_size, self.info.hidden_size);
        if let Some(token) = tokens.iter().find(|t| **t as usize >= rows) {
            return Err(ModelError::Token { token: *token, vocab_size: rows });
        }
        let missing = || ModelError::MissingTensor { name: EMBEDDING.into(), shape: vec![rows, cols] };
        let view = self.checkpoint.tensor(EMBEDDING).ok_or_else(missing)?;
        let table = EmbeddingTable { dtype: view.info().dtype, rows, cols, bytes: view.bytes() };
        Ok(ops.embed(tokens, &table))
    }
}

impl Model for Decoder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn cache_layers(&self) -> Vec<Vec<CacheSpec>> {
        self.info.cache_layers.clone()
    }

    fn hidden(
        &self,
        ctx: &AttentionContext<'_>,
        tokens: &[TokenId],
        rows: &[usize],
    ) -> Result<Tensor, ModelError> {
        let ops = ctx.ops();
        if let Some(row) = rows.iter().find(|r| **r >= tokens.len()) {
            return Err(ModelError::Row { row: *row, rows: tokens.len() });
        }
        // 1. Embedding [T, H], read from the mapped file.
        let mut x = self.embed(ops, tokens)?;
        // 2. Layers on the residual stream.
        for layer in &self.layers {
            layer.forward(ctx, &mut x);
        }
        // 3. Final norm, only for the rows that someone reads.
        let rows = ops.select_rows(&x, rows);
        Ok(self.norm.forward(ops, &rows)) // [rows, H]
    }

    fn head(&self, ops: &Ops, hidden: &Tensor) -> Tensor {
        ops.linear(&self.lm_head, &Activations::new(hidden)) // [rows, V]
    }
}

fn embedding_dtype(checkpoint: &Checkpoint) -> Result<DType, ModelError> {
    let missing = || ModelError::MissingTensor { name: EMBEDDING.into(), shape: Vec::new() };
    Ok(checkpoint.tensor(EMBEDDING).ok_or_else(missing)?.info().dtype)
}

/// The layer of Llama, Qwen2 and Qwen3: attention and a gated block, each behind a norm and beside the residual.
pub(crate) struct GqaLayer {
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) self_attn: GqaAttention,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) mlp: Mlp,
}

impl Layer for GqaLayer {
    fn forward(&self, ctx: &AttentionContext<'_>, x: &mut Tensor) {
        let ops = ctx.ops();
        // 1. x += attention(norm(x))
        let normed = self.input_layernorm.forward(ops, x);
        let attended = self.self_attn.forward(ctx, &Activations::new(&normed));
        ops.add(x, &attended);
        // 2. x += mlp(norm(x))
        let normed = self.post_attention_layernorm.forward(ops, x);
        let fed = self.mlp.forward(ops, &Activations::new(&normed));
        ops.add(x, &fed);
    }
}
