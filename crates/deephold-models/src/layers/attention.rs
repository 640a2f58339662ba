//! Grouped-query attention (Ainslie et al. 2023) with rope, as Llama, Qwen2 and Qwen3 use it.

use std::sync::Arc;

use deephold_kernels::{Activations, AttentionContext, RopeSlice, RopeStyle, RopeTable, Tensor};

use super::linear::Linear;
use super::norm::RmsNorm;
use crate::ModelError;
use crate::config::GqaConfig;
use crate::loader::Loader;
use crate::tensors::TensorList;

/// Which projections carry a bias, and whether heads are normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GqaOptions {
    /// q, k and v.
    pub(crate) qkv_bias: bool,
    /// o.
    pub(crate) o_bias: bool,
    /// RMSNorm of each head of q and k before rope (Qwen3), with this epsilon.
    pub(crate) qk_norm: Option<f32>,
}

/// Nq query heads of D columns that share Nkv keys and values.
pub(crate) struct GqaAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    rope: Arc<RopeTable>,
    rope_style: RopeStyle,
    config: GqaConfig,
    layer: usize,
}

impl GqaAttention {
    /// The tensors of one layer, for checks.
    pub(crate) fn tensors(
        list: &mut TensorList<'_>,
        name: &str,
        hidden: usize,
        c: &GqaConfig,
        o: GqaOptions,
    ) {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        list.linear(&format!("{name}.q_proj"), q, hidden, o.qkv_bias);
        list.linear(&format!("{name}.k_proj"), kv, hidden, o.qkv_bias);
        list.linear(&format!("{name}.v_proj"), kv, hidden, o.qkv_bias);
        list.linear(&format!("{name}.o_proj"), hidden, q, o.o_bias);
        if o.qk_norm.is_some() {
            list.vector(&format!("{name}.q_norm.weight"), c.head_dim);
            list.vector(&format!("{name}.k_norm.weight"), c.head_dim);
        }
    }

    pub(crate) fn load(
        l: &mut Loader<'_>,
        layer: usize,
        hidden: usize,
        c: &GqaConfig,
        o: GqaOptions,
    ) -> Result<Self, ModelError> {
        let name = format!("model.layers.{layer}.self_attn");
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qk_norm = match o.qk_norm {
            Some(eps) => Some((
                RmsNorm::load(l, &format!("{name}.q_norm"), c.head_dim, eps)?,
                RmsNorm::load(l, &format!("{name}.k_norm"), c.head_dim, eps)?,
            )),
            None => None,
        };
        Ok(Self {
            q_proj: Linear::load(l, &format!("{name}.q_proj"), q, hidden, o.qkv_bias)?,
            k_proj: Linear::load(l, &format!("{name}.k_proj"), kv, hidden, o.qkv_bias)?,
            v_proj: Linear::load(l, &format!("{name}.v_proj"), kv, hidden, o.qkv_bias)?,
            o_proj: Linear::load(l, &format!("{name}.o_proj"), hidden, q, o.o_bias)?,
            qk_norm,
            rope: l.rope_table(&c.rope),
            rope_style: l.gqa_rope_style(),
            config: c.clone(),
            layer,
        })
    }

    /// [T, H] -> [T, H]
    pub(crate) fn forward(&self, ctx: &AttentionContext<'_>, x: &Activations<'_>) -> Tensor {
        let (ops, c) = (ctx.ops(), &self.config);
        // 1. Projections, one quantisation of x for the three.
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [mut q, mut k, v] = ops.linears(projections.map(Linear::parts), x); // [T, Nq*D], [T, Nkv*D] twice
        // 2. Qwen3 normalises each head.
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q_norm.forward_groups(ops, &mut q, 0, c.heads);
            k_norm.forward_groups(ops, &mut k, 0, c.kv_heads);
        }
        // 3. Rope over whole heads.
        let slice = |heads| RopeSlice { col0: 0, stride: c.head_dim, heads, dim: c.head_dim };
        ops.rope(&mut q, slice(c.heads), ctx.positions(), &self.rope, self.rope_style);
        ops.rope(&mut k, slice(c.kv_heads), ctx.positions(), &self.rope, self.rope_style);
        // 4. Keys and values into the cache, then attention over everything cached.
        ctx.write(self.layer, 0, &k);
        ctx.write(self.layer, 1, &v);
        let scale = (1.0 / (c.head_dim as f64).sqrt()) as f32;
        let out = ctx.attend_gqa(self.layer, &q, scale); // [T, Nq*D]
        self.o_proj.forward(ops, &Activations::new(&out))
    }
}
