//! DeepSeek-V3.2 (DeepSeek-AI 2025, "DeepSeek-V3.2-Exp: DeepSeek Sparse Attention").
//!
//! Reference: transformers 5.23, `DeepseekV32ForCausalLM`. Differs from V3: in each layer a small indexer scores every cached
//! position for each query, and attention sees only the best `index_topk`. The published kernel scores in FP8 after a
//! Hadamard rotation; the rotation leaves dot products as they are, and like the reference we score in float32.
//! Indexer rope turns the first columns of a head, in pairs half the rope columns apart, unlike the attention beside it.

use std::sync::Arc;

use deephold_kernels::{
    Activations, AttentionContext, CacheSpec, EntryOrder, RopeSlice, RopeStyle, RopeTable, Selection, Tensor,
};

use crate::ModelError;
use crate::config::{DIM_MAX, DecoderConfig, POSITIONS_MAX, Section, only_layer_types};
use crate::family::{Family, Layer};
use crate::layers::linear::Linear;
use crate::layers::mla::{Mla, MlaConfig};
use crate::layers::moe::{FeedForward, MoeConfig};
use crate::layers::norm::{LayerNorm, RmsNorm};
use crate::loader::Loader;
use crate::tensors::TensorList;

/// Of the indexer's `k_norm`; the reference fixes it.
const INDEX_NORM_EPS: f32 = 1e-6;

/// The indexer's sizes.
#[derive(Clone, Debug, PartialEq)]
struct IndexerConfig {
    /// Hi.
    index_n_heads: usize,
    /// Di.
    index_head_dim: usize,
    /// Positions that attention sees.
    index_topk: usize,
    q_lora_rank: usize,
    qk_rope_head_dim: usize,
}

struct Config {
    decoder: DecoderConfig,
    attention: MlaConfig,
    moe: MoeConfig,
    indexer: IndexerConfig,
}

pub(crate) fn parse(c: &Section<'_>) -> Result<Box<dyn Family>, ModelError> {
    let decoder = DecoderConfig::parse(c)?;
    only_layer_types(c, &decoder, "indexed_attention")?;
    let attention = MlaConfig::parse(c, &decoder)?;
    let moe = MoeConfig::parse_sigmoid(c, &decoder)?;
    let q_lora_rank = attention
        .q_lora_rank
        .ok_or_else(|| c.bad("q_lora_rank", "is missing: the indexer starts from it"))?;
    let index_head_dim = c.size("index_head_dim", 1 << 12)?;
    let qk_rope_head_dim = attention.qk_rope_head_dim;
    if index_head_dim < qk_rope_head_dim {
        let problem = format!("= {index_head_dim} is below qk_rope_head_dim = {qk_rope_head_dim}");
        return Err(c.bad("index_head_dim", problem));
    }
    let indexer = IndexerConfig {
        index_n_heads: c.size("index_n_heads", 1 << 12)?,
        index_head_dim,
        index_topk: c.size("index_topk", POSITIONS_MAX)?,
        q_lora_rank,
        qk_rope_head_dim,
    };
    if indexer.index_n_heads * index_head_dim > DIM_MAX {
        return Err(c.bad("index_n_heads", "times index_head_dim is beyond bounds"));
    }
    Ok(Box::new(Config { decoder, attention, moe, indexer }))
}

impl Family for Config {
    fn decoder(&self) -> &DecoderConfig {
        &self.decoder
    }

    fn latent_attention(&self) -> Option<&MlaConfig> {
        Some(&self.attention)
    }

    fn layer_tensors(&self, list: &mut TensorList<'_>, layer: usize) {
        let (name, d) = (format!("model.layers.{layer}"), &self.decoder);
        list.vector(&format!("{name}.input_layernorm.weight"), d.hidden_size);
        self.attention.tensors(list, &format!("{name}.self_attn"), d.hidden_size);
        self.indexer.tensors(list, &format!("{name}.self_attn.indexer"), d.hidden_size);
        list.vector(&format!("{name}.post_attention_layernorm.weight"), d.hidden_size);
        FeedForward::tensors(list, layer, d, &self.moe);
    }

    /// The latent, and beside it the indexer's keys.
    fn layer_cache(&self, _layer: usize) -> Vec<CacheSpec> {
        let mut specs = self.attention.cache();
        specs.push(CacheSpec {
            name: "index_k",
            heads: 1,
            width: self.indexer.index_head_dim,
            order: EntryOrder::Columns,
        });
        specs
    }

    fn load_layer(&self, l: &mut Loader<'_>, layer: usize) -> Result<Box<dyn Layer>, ModelError> {
        let (name, d) = (format!("model.layers.{layer}"), &self.decoder);
        let norm = |l: &mut Loader<'_>, which: &str| {
            RmsNorm::load(l, &format!("{name}.{which}"), d.hidden_size, d.rms_norm_eps)
        };
        let self_attn = Mla::load(l, layer, d.hidden_size, &self.attention)?;
        let rope = Arc::clone(self_attn.rope());
        Ok(Box::new(SparseLayer {
            input_layernorm: norm(l, "input_layernorm")?,
            self_attn,
            indexer: Indexer::load(l, layer, d.hidden_size, &self.indexer, rope)?,
            post_attention_layernorm: norm(l, "post_attention_layernorm")?,
            mlp: FeedForward::load(l, layer, d, &self.moe)?,
        }))
    }
}

impl IndexerConfig {
    fn tensors(&self, list: &mut TensorList<'_>, name: &str, hidden: usize) {
        list.linear(
            &format!("{name}.wq_b"),
            self.index_n_heads * self.index_head_dim,
            self.q_lora_rank,
            false,
        );
        list.linear(&format!("{name}.wk"), self.index_head_dim, hidden, false);
        list.vector(&format!("{name}.k_norm.weight"), self.index_head_dim);
        list.vector(&format!("{name}.k_norm.bias"), self.index_head_dim);
        list.linear(&format!("{name}.weights_proj"), self.index_n_heads, hidden, false);
    }
}

/// The lightning indexer: `score(t, s) = sum over heads of w[t, h] relu(q[t, h] . k[s])`.
struct Indexer {
    wq_b: Linear,
    wk: Linear,
    k_norm: LayerNorm,
    weights_proj: Linear,
    rope: Arc<RopeTable>,
    config: IndexerConfig,
    layer: usize,
}

impl Indexer {
    fn load(
        l: &mut Loader<'_>,
        layer: usize,
        hidden: usize,
        c: &IndexerConfig,
        rope: Arc<RopeTable>,
    ) -> Result<Self, ModelError> {
        let name = format!("model.layers.{layer}.self_attn.indexer");
        let width = c.index_n_heads * c.index_head_dim;
        Ok(Self {
            wq_b: Linear::load(l, &format!("{name}.wq_b"), width, c.q_lora_rank, false)?,
            wk: Linear::load(l, &format!("{name}.wk"), c.index_head_dim, hidden, false)?,
            k_norm: LayerNorm::load(l, &format!("{name}.k_norm"), c.index_head_dim, INDEX_NORM_EPS)?,
            weights_proj: Linear::load(l, &format!("{name}.weights_proj"), c.index_n_heads, hidden, false)?,
            rope,
            config: c.clone(),
            layer,
        })
    }

    /// x [T, H] and the query latent [T, q_lora_rank] -> the positions that each row may attend to.
    fn select(&self, ctx: &AttentionContext<'_>, x: &Activations<'_>, latent: &Tensor) -> Selection {
        let (ops, c) = (ctx.ops(), &self.config);
        // 1. Queries [T, Hi*Di] from the latent, keys [T, Di] from x through a LayerNorm; rope on their first columns.
        let mut q = self.wq_b.forward(ops, &Activations::new(latent));
        let mut k = self.k_norm.forward(ops, &self.wk.forward(ops, x));
        let slice = |heads| RopeSlice { col0: 0, stride: c.index_head_dim, heads, dim: c.qk_rope_head_dim };
        ops.rope(&mut q, slice(c.index_n_heads), ctx.positions(), &self.rope, RopeStyle::Half);
        ops.rope(&mut k, slice(1), ctx.positions(), &self.rope, RopeStyle::Half);
        // 2. Keys into the layer's second cache.
        ctx.write(self.layer, 1, &k);
        // 3. Head weights [T, Hi]; both scales are positive, so they may stand outside relu and sum.
        let w = self.weights_proj.forward(ops, x);
        let scale = 1.0 / ((c.index_n_heads * c.index_head_dim) as f64).sqrt();
        ctx.index_select(self.layer, 1, &q, &w, c.index_topk, scale as f32)
    }
}

struct SparseLayer {
    input_layernorm: RmsNorm,
    self_attn: Mla,
    indexer: Indexer,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

impl Layer for SparseLayer {
    fn forward(&self, ctx: &AttentionContext<'_>, x: &mut Tensor) {
        let ops = ctx.ops();
        // 1. x += attention(norm(x)) over the positions that the indexer selects.
        let normed = self.input_layernorm.forward(ops, x);
        let act = Activations::new(&normed);
        let queries = self.self_attn.queries(ops, &act);
        self.self_attn.write(ctx, &act);
        let selection = queries.latent.as_ref().map(|latent| self.indexer.select(ctx, &act, latent));
        let attended = self.self_attn.attend(ctx, queries.q, selection.as_ref());
        ops.add(x, &attended);
        // 2. x += experts(norm(x)), or a dense block in the first layers.
        let normed = self.post_attention_layernorm.forward(ops, x);
        let fed = self.mlp.forward(ops, &Activations::new(&normed));
        ops.add(x, &fed);
    }
}
