//! Multi-head latent attention (DeepSeek-V2, section 2.1), always in the absorbed form.
//!
//! A position's keys and values are linear in one latent c `[R]`: k_h = W_UK_h c and v_h = W_UV_h c. Hence
//! q_h . k_h = (W_UK_h^T q_h) . c, and the sum over positions of p v_h is W_UV_h times the sum of p c. So the cache holds
//! only c (after its norm) and one rope key shared by all heads: R + rope floats a position instead of Nq (nope + v + rope).
//! Prompts take the same form as single tokens: the form must not depend on how a prompt is cut.
//!
//! Reference: transformers 5.23, `DeepseekV3Attention`, which expands k and v. Its two latent norms have a fixed epsilon.
//! `kv_b_proj` [Nq*(nope+v), R] is cut at load: W_UK_h^T [R, nope] and W_UV_h [v, R]. F32, F16 and BF16 keep their type
//! (a transposition is exact); FP8 and quantised blocks become F32, since blocks cannot be transposed. GGUF files that
//! carry `attn_k_b` and `attn_v_b` already hold the two parts, and these are used as they are.

use std::sync::Arc;

use deephold_kernels::{
    Activations, AttentionContext, CacheSpec, EntryOrder, HeadColumns, Ops, PackedMatrix, RopeSlice,
    RopeStyle, RopeTable, Selection, Tensor,
};

use super::linear::Linear;
use super::norm::RmsNorm;
use crate::ModelError;
use crate::config::rope::RopeConfig;
use crate::config::{DIM_MAX, DecoderConfig, Section};
use crate::loader::{LatentHeads, LatentSizes, Loader};
use crate::tensors::TensorList;

/// Of `q_a_layernorm` and `kv_a_layernorm`: the reference fixes it whatever `rms_norm_eps` says.
pub(crate) const LATENT_NORM_EPS: f32 = 1e-6;

/// The shapes of latent attention.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MlaConfig {
    /// Nq.
    pub(crate) heads: usize,
    /// Rank of the query latent; `None` projects queries directly (V2-Lite).
    pub(crate) q_lora_rank: Option<usize>,
    /// R.
    pub(crate) kv_lora_rank: usize,
    /// Columns of a head without rope.
    pub(crate) qk_nope_head_dim: usize,
    /// Columns of a head with rope.
    pub(crate) qk_rope_head_dim: usize,
    /// Columns of a head's value.
    pub(crate) v_head_dim: usize,
    /// Over the rope columns.
    pub(crate) rope: RopeConfig,
    /// Pairs are neighbours, as published.
    pub(crate) rope_interleave: bool,
    /// Biases of q_a_proj, kv_a_proj_with_mqa and o_proj.
    pub(crate) bias: bool,
}

impl MlaConfig {
    pub(crate) fn parse(c: &Section<'_>, d: &DecoderConfig) -> Result<Self, ModelError> {
        let qk_rope_head_dim = c.size("qk_rope_head_dim", 1 << 12)?;
        if !qk_rope_head_dim.is_multiple_of(2) {
            return Err(
                c.bad("qk_rope_head_dim", format!("= {qk_rope_head_dim} must be even: rope turns pairs"))
            );
        }
        Ok(Self {
            heads: d.num_attention_heads,
            q_lora_rank: c.opt_size("q_lora_rank", DIM_MAX)?,
            kv_lora_rank: c.size("kv_lora_rank", 1 << 16)?,
            qk_nope_head_dim: c.size("qk_nope_head_dim", 1 << 12)?,
            qk_rope_head_dim,
            v_head_dim: c.size("v_head_dim", 1 << 12)?,
            rope: RopeConfig::parse(c, qk_rope_head_dim, d.max_position_embeddings)?,
            rope_interleave: c.flag("rope_interleave", true)?,
            bias: d.attention_bias,
        })
    }

    /// One entry a position: latent, then rope key.
    pub(crate) fn cache(&self) -> Vec<CacheSpec> {
        vec![CacheSpec {
            name: "latent",
            heads: 1,
            width: self.kv_lora_rank + self.qk_rope_head_dim,
            order: EntryOrder::Rows,
        }]
    }

    fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// 1 / sqrt(nope + rope), times what yarn asks for.
    fn softmax_scale(&self) -> f32 {
        (self.rope.softmax_scale_factor() / (self.qk_head_dim() as f64).sqrt()) as f32
    }

    /// The tensors of one layer, for checks.
    pub(crate) fn tensors(&self, list: &mut TensorList<'_>, name: &str, hidden: usize) {
        let q = self.heads * self.qk_head_dim();
        match self.q_lora_rank {
            Some(rank) => {
                list.linear(&format!("{name}.q_a_proj"), rank, hidden, self.bias);
                list.vector(&format!("{name}.q_a_layernorm.weight"), rank);
                list.linear(&format!("{name}.q_b_proj"), q, rank, false);
            }
            None => list.linear(&format!("{name}.q_proj"), q, hidden, false),
        }
        let (r, nope, v) = (self.kv_lora_rank, self.qk_nope_head_dim, self.v_head_dim);
        list.linear(&format!("{name}.kv_a_proj_with_mqa"), r + self.qk_rope_head_dim, hidden, self.bias);
        list.vector(&format!("{name}.kv_a_layernorm.weight"), r);
        if list.holds(&format!("{name}.k_b_proj.weight")) {
            list.tensor(&format!("{name}.k_b_proj.weight"), &[self.heads, r, nope]);
            list.tensor(&format!("{name}.v_b_proj.weight"), &[self.heads, v, r]);
        } else {
            list.linear(&format!("{name}.kv_b_proj"), self.heads * (nope + v), r, false);
        }
        list.linear(&format!("{name}.o_proj"), hidden, self.heads * v, self.bias);
    }
}

enum QueryProjection {
    Direct(Linear),
    Latent { q_a_proj: Linear, q_a_layernorm: RmsNorm, q_b_proj: Linear },
}

/// What the query side computes: V3.2's indexer starts from the latent too.
pub(crate) struct Queries {
    /// [T, Nq*(nope+rope)], not yet turned.
    pub(crate) q: Tensor,
    /// [T, q_lora_rank] after its norm.
    pub(crate) latent: Option<Tensor>,
}

/// Latent attention of one layer.
pub(crate) struct Mla {
    query: QueryProjection,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: RmsNorm,
    /// Nq matrices [R, nope].
    w_uk: Vec<PackedMatrix>,
    /// Nq matrices [v, R].
    w_uv: Vec<PackedMatrix>,
    o_proj: Linear,
    rope: Arc<RopeTable>,
    rope_style: RopeStyle,
    config: MlaConfig,
    layer: usize,
}

impl Mla {
    pub(crate) fn load(
        l: &mut Loader<'_>,
        layer: usize,
        hidden: usize,
        c: &MlaConfig,
    ) -> Result<Self, ModelError> {
        let name = format!("model.layers.{layer}.self_attn");
        let q = c.heads * c.qk_head_dim();
        let query = match c.q_lora_rank {
            Some(rank) => QueryProjection::Latent {
                q_a_proj: Linear::load(l, &format!("{name}.q_a_proj"), rank, hidden, c.bias)?,
                q_a_layernorm: RmsNorm::load(l, &format!("{name}.q_a_layernorm"), rank, LATENT_NORM_EPS)?,
                q_b_proj: Linear::load(l, &format!("{name}.q_b_proj"), q, rank, false)?,
            },
            None => QueryProjection::Direct(Linear::load(l, &format!("{name}.q_proj"), q, hidden, false)?),
        };
        let kv_a = c.kv_lora_rank + c.qk_rope_head_dim;
        let sizes =
            LatentSizes { heads: c.heads, rank: c.kv_lora_rank, nope: c.qk_nope_head_dim, v: c.v_head_dim };
        let LatentHeads { uk: w_uk, uv: w_uv } = l.latent_heads(&name, sizes)?;
        Ok(Self {
            query,
            kv_a_proj_with_mqa: Linear::load(l, &format!("{name}.kv_a_proj_with_mqa"), kv_a, hidden, c.bias)?,
            kv_a_layernorm: RmsNorm::load(
                l,
                &format!("{name}.kv_a_layernorm"),
                c.kv_lora_rank,
                LATENT_NORM_EPS,
            )?,
            w_uk,
            w_uv,
            o_proj: Linear::load(l, &format!("{name}.o_proj"), hidden, c.heads * c.v_head_dim, c.bias)?,
            rope: l.rope_table(&c.rope),
            rope_style: if c.rope_interleave { RopeStyle::Interleaved } else { RopeStyle::Half },
            config: c.clone(),
            layer,
        })
    }

    /// The table that turns this layer's rope columns.
    pub(crate) fn rope(&self) -> &Arc<RopeTable> {
        &self.rope
    }

    /// x [T, H] -> queries.
    pub(crate) fn queries(&self, ops: &Ops, x: &Activations<'_>) -> Queries {
        match &self.query {
            QueryProjection::Direct(q_proj) => Queries { q: q_proj.forward(ops, x), latent: None },
            QueryProjection::Latent { q_a_proj, q_a_layernorm, q_b_proj } => {
                let latent = q_a_layernorm.forward(ops, &q_a_proj.forward(ops, x)); // [T, q_lora_rank]
                let q = q_b_proj.forward(ops, &Activations::new(&latent)); // [T, Nq*(nope+rope)]
                Queries { q, latent: Some(latent) }
            }
        }
    }

    /// Writes the positions' latents and rope keys into the cache.
    pub(crate) fn write(&self, ctx: &AttentionContext<'_>, x: &Activations<'_>) {
        let (ops, c) = (ctx.ops(), &self.config);
        let mut kv = self.kv_a_proj_with_mqa.forward(ops, x); // [T, R+rope]
        self.kv_a_layernorm.forward_groups(ops, &mut kv, 0, 1); // the first R columns
        let slice =
            RopeSlice { col0: c.kv_lora_rank, stride: c.qk_rope_head_dim, heads: 1, dim: c.qk_rope_head_dim };
        ops.rope(&mut kv, slice, ctx.positions(), &self.rope, self.rope_style);
        ctx.write(self.layer, 0, &kv);
    }

    /// q [T, Nq*(nope+rope)] -> [T, H], over all cached positions or the selected ones.
    pub(crate) fn attend(
        &self,
        ctx: &AttentionContext<'_>,
        mut q: Tensor,
        selection: Option<&Selection>,
    ) -> Tensor {
        let (ops, c) = (ctx.ops(), &self.config);
        let (r, nope, rope) = (c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim);
        // 1. Rope on the last columns of each head.
        let turned = RopeSlice { col0: nope, stride: nope + rope, heads: c.heads, dim: rope };
        ops.rope(&mut q, turned, ctx.positions(), &self.rope, self.rope_style);
        // 2. Absorb W_UK: q_nope [T, Nq*nope] -> [T, Nq*R].
        let of = |x, col0, stride, width| HeadColumns { x, col0, stride, width };
        let q_nope = ops.join_heads(c.heads, &[of(&q, 0, nope + rope, nope)]);
        let q_latent = ops.head_linear(&self.w_uk, &q_nope);
        // 3. Beside it the rope part, as the cache lies: [T, Nq*(R+rope)].
        let parts = [of(&q_latent, 0, r, r), of(&q, nope, nope + rope, rope)];
        let absorbed = ops.join_heads(c.heads, &parts);
        // 4. Attention over latents, [T, Nq*R]; then W_UV, [T, Nq*v].
        let latent = ctx.attend_mla(self.layer, &absorbed, r, c.softmax_scale(), selection);
        let out = ops.head_linear(&self.w_uv, &latent);
        self.o_proj.forward(ops, &Activations::new(&out))
    }
}
