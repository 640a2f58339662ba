//! config.json, checked once: what comes out of here cannot be bad.
//!
//! Two spellings are in the wild: the older one (`rope_theta` beside `rope_scaling`) and the newer one
//! (`rope_parameters`). Both give the same types.

pub(crate) mod rope;
pub(crate) mod section;

use deephold_kernels::{CacheSpec, EntryOrder};
use deephold_weights::fp8::Fp8Config;
use serde_json::json;

pub(crate) use section::{DIM_MAX, EXPERTS_MAX, LAYERS_MAX, POSITIONS_MAX, Section, VOCAB_MAX};

use crate::ModelError;
use rope::RopeConfig;

/// What every decoder has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderConfig {
    /// H.
    pub(crate) hidden_size: usize,
    /// I of the dense layers.
    pub(crate) intermediate_size: usize,
    /// Layers.
    pub(crate) num_hidden_layers: usize,
    /// Nq.
    pub(crate) num_attention_heads: usize,
    /// V.
    pub(crate) vocab_size: usize,
    /// The context.
    pub(crate) max_position_embeddings: usize,
    /// Of every norm that the reference does not fix.
    pub(crate) rms_norm_eps: f32,
    /// The head is the embedding table.
    pub(crate) tie_word_embeddings: bool,
    /// Biases of the attention's projections.
    pub(crate) attention_bias: bool,
    /// Multi-token-prediction layers announced beside the model.
    pub(crate) num_nextn_predict_layers: usize,
}

impl DecoderConfig {
    pub(crate) fn parse(c: &Section<'_>) -> Result<Self, ModelError> {
        c.only_text("hidden_act", &["silu", "swish"], "the supported families use silu")?;
        check_quantization(c)?;
        Ok(Self {
            hidden_size: c.size("hidden_size", DIM_MAX)?,
            intermediate_size: c.size("intermediate_size", DIM_MAX)?,
            num_hidden_layers: c.size("num_hidden_layers", LAYERS_MAX)?,
            num_attention_heads: c.size("num_attention_heads", 1 << 12)?,
            vocab_size: c.size("vocab_size", VOCAB_MAX)?,
            max_position_embeddings: c.size("max_position_embeddings", POSITIONS_MAX)?,
            rms_norm_eps: c.float("rms_norm_eps", 1e-20, 1.0)? as f32,
            tie_word_embeddings: c.flag("tie_word_embeddings", false)?,
            attention_bias: c.flag("attention_bias", false)?,
            num_nextn_predict_layers: c.opt_count("num_nextn_predict_layers", LAYERS_MAX)?.unwrap_or(0),
        })
    }
}

/// Grouped-query attention (Llama, Qwen2, Qwen3).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GqaConfig {
    /// Nq.
    pub(crate) heads: usize,
    /// Nkv.
    pub(crate) kv_heads: usize,
    /// D.
    pub(crate) head_dim: usize,
    /// Over the whole head.
    pub(crate) rope: RopeConfig,
}

impl GqaConfig {
    pub(crate) fn parse(c: &Section<'_>, d: &DecoderConfig) -> Result<Self, ModelError> {
        let heads = d.num_attention_heads;
        let kv_heads = c.opt_size("num_key_value_heads", heads)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                c.bad("num_key_value_heads", format!("= {kv_heads} does not divide {heads} query heads"))
            );
        }
        let head_dim = match c.opt_size("head_dim", 1 << 12)? {
            Some(dim) => dim,
            None if d.hidden_size.is_multiple_of(heads) => d.hidden_size / heads,
            None => {
                return Err(c.bad("num_attention_heads", format!("= {heads} does not divide hidden_size")));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(c.bad("head_dim", format!("= {head_dim} must be even: rope turns pairs")));
        }
        if c.flag("use_sliding_window", false)? {
            return Err(c.unsupported("use_sliding_window", "true", "only full attention is built"));
        }
        only_layer_types(c, d, "full_attention")?;
        Ok(Self {
            heads,
            kv_heads,
            head_dim,
            rope: RopeConfig::parse(c, head_dim, d.max_position_embeddings)?,
        })
    }

    /// K {Nkv, D} and V {Nkv, D}.
    pub(crate) fn cache(&self) -> Vec<CacheSpec> {
        let spec = |name, order| CacheSpec { name, heads: self.kv_heads, width: self.head_dim, order };
        vec![spec("k", EntryOrder::Columns), spec("v", EntryOrder::Rows)]
    }
}

/// Every layer must be of the one kind; an absent list says nothing.
pub(crate) fn only_layer_types(c: &Section<'_>, d: &DecoderConfig, only: &str) -> Result<(), ModelError> {
    let Some(types) = c.opt_texts("layer_types")? else { return Ok(()) };
    if types.len() < d.num_hidden_layers {
        return Err(c.bad("layer_types", format!("names {} of {} layers", types.len(), d.num_hidden_layers)));
    }
    match types.iter().take(d.num_hidden_layers).find(|t| **t != only) {
        Some(other) => {
            Err(c.unsupported("layer_types", other, &format!("this family is built with `{only}`")))
        }
        None => Ok(()),
    }
}

/// FP8 in blocks is read; other packings of other tools are not.
fn check_quantization(c: &Section<'_>) -> Result<(), ModelError> {
    if let Some(q) = c.value("quantization_config") {
        Fp8Config::parse(&json!({ "quantization_config": q }))?;
    }
    Ok(())
}
