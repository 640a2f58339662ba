//! GGUF metadata out of config.json, as llama.cpp's converter spells it.

use super::hf_config::HfConfig;
use super::tokenizer;
use crate::error::shown;
use crate::gguf::{Metadata, Value};
use crate::{Checkpoint, WeightsError};

/// The architectures that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GgufArchitecture {
    Llama,
    Qwen2,
    Qwen3,
    Deepseek2,
    Deepseek3,
    Deepseek32,
}

impl GgufArchitecture {
    pub(super) fn of(c: HfConfig<'_>) -> Result<Self, WeightsError> {
        let named = c.texts("architectures").and_then(|a| a.first().copied());
        let model_type = c.text("model_type");
        Ok(match (named, model_type) {
            (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => Self::Llama,
            (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => Self::Qwen2,
            (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Self::Qwen3,
            (Some("DeepseekV2ForCausalLM"), _) | (None, Some("deepseek_v2")) => Self::Deepseek2,
            (Some("DeepseekV3ForCausalLM"), _) | (None, Some("deepseek_v3")) => Self::Deepseek3,
            (Some("DeepseekV32ForCausalLM"), _) | (None, Some("deepseek_v32")) => Self::Deepseek32,
            _ => {
                return Err(WeightsError::unsupported(
                    "config.json: `architectures`",
                    shown(named.or(model_type).unwrap_or("missing")),
                    "GGUF is written for Llama, Qwen2, Qwen3 and DeepSeek V2, V3 and V3.2",
                ));
            }
        })
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Deepseek2 | Self::Deepseek3 => "deepseek2",
            Self::Deepseek32 => "deepseek32",
        }
    }

    /// Multi-head latent attention.
    pub(super) fn is_latent(self) -> bool {
        matches!(self, Self::Deepseek2 | Self::Deepseek3 | Self::Deepseek32)
    }
}

struct Keys {
    arch: &'static str,
    m: Metadata,
}

impl Keys {
    fn count(&mut self, key: &str, value: usize) -> Result<(), WeightsError> {
        let value = u32::try_from(value).map_err(|_| {
            WeightsError::malformed(format!("`{key}`"), format!("= {value} does not fit 32 bits"))
        })?;
        self.m.set(format!("{}.{key}", self.arch), Value::U32(value));
        Ok(())
    }

    fn number(&mut self, key: &str, value: f64) {
        self.m.set(format!("{}.{key}", self.arch), Value::F32(value as f32));
    }
}

pub(super) fn build(
    input: &Checkpoint,
    c: HfConfig<'_>,
    family: GgufArchitecture,
    notes: &mut Vec<String>,
) -> Result<Metadata, WeightsError> {
    let arch = family.architecture();
    let mut k = Keys { arch, m: Metadata::new() };
    k.m.set("general.architecture", Value::text(arch));
    k.m.set("general.type", Value::text("model"));
    let folder = input.path().canonicalize().unwrap_or_else(|_| input.path().to_owned());
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    k.m.set("general.name", Value::text(name));

    k.count("block_count", c.size("num_hidden_layers")?)?;
    k.count("context_length", c.size("max_position_embeddings")?)?;
    k.count("embedding_length", c.size("hidden_size")?)?;
    k.count("feed_forward_length", c.size("intermediate_size")?)?;
    let heads = c.size("num_attention_heads")?;
    k.count("attention.head_count", heads)?;
    let eps = c
        .number("rms_norm_eps")
        .ok_or_else(|| WeightsError::malformed("config.json: `rms_norm_eps`", "is missing and needed"))?;
    k.number("attention.layer_norm_rms_epsilon", eps);
    k.number("rope.freq_base", c.rope_theta());
    let rows = input.tensor("model.embed_tokens.weight").and_then(|t| t.info().shape.first().copied());
    let vocab_size = match rows {
        Some(rows) => rows,
        None => c.size("vocab_size")?,
    };
    k.count("vocab_size", vocab_size)?;
    if family.is_latent() {
        latent(&mut k, c, family)?;
    } else {
        let head_dim = c.head_dim()?;
        k.count("attention.head_count_kv", c.opt_size("num_key_value_heads")?.unwrap_or(heads))?;
        k.count("attention.key_length", head_dim)?;
        k.count("attention.value_length", head_dim)?;
        k.count("rope.dimension_count", head_dim)?;
    }
    if family == GgufArchitecture::Deepseek32 {
        notes.push(
            "V3.2 follows llama.cpp's `deepseek32` naming; only Deephold has been checked to read it".into(),
        );
    }
    rope_scaling(&mut k, c, family)?;
    tokenizer::add(input, vocab_size, &mut k.m, notes)?;
    Ok(k.m)
}

fn latent(k: &mut Keys, c: HfConfig<'_>, family: GgufArchitecture) -> Result<(), WeightsError> {
    let (r, rope) = (c.size("kv_lora_rank")?, c.size("qk_rope_head_dim")?);
    let (nope, v) = (c.size("qk_nope_head_dim")?, c.size("v_head_dim")?);
    // The absorbed form: one shared head of latent and rope key; `_mla` says what the heads are before.
    k.count("attention.head_count_kv", 1)?;
    k.count("attention.key_length", r + rope)?;
    k.count("attention.value_length", r)?;
    k.count("attention.key_length_mla", nope + rope)?;
    k.count("attention.value_length_mla", v)?;
    k.count("attention.kv_lora_rank", r)?;
    if let Some(q) = c.opt_size("q_lora_rank")? {
        k.count("attention.q_lora_rank", q)?;
    }
    k.count("rope.dimension_count", rope)?;
    experts(k, c, family)?;
    if family == GgufArchitecture::Deepseek32 {
        k.count("attention.indexer.head_count", c.size("index_n_heads")?)?;
        k.count("attention.indexer.key_length", c.size("index_head_dim")?)?;
        k.count("attention.indexer.top_k", c.size("index_topk")?)?;
        // Of the indexer's layer norm, which the reference fixes.
        k.number("attention.layer_norm_epsilon", 1e-6);
    }
    Ok(())
}

fn experts(k: &mut Keys, c: HfConfig<'_>, family: GgufArchitecture) -> Result<(), WeightsError> {
    let sigmoid = family != GgufArchitecture::Deepseek2;
    k.count("leading_dense_block_count", leading_dense(c)?)?;
    k.count("expert_count", c.size("n_routed_experts")?)?;
    k.count("expert_used_count", c.size("num_experts_per_tok")?)?;
    k.count("expert_shared_count", c.opt_size("n_shared_experts")?.unwrap_or(0))?;
    k.count("expert_feed_forward_length", c.size("moe_intermediate_size")?)?;
    // The reference's defaults where a file is silent.
    let scale = c.number("routed_scaling_factor").unwrap_or(if sigmoid { 2.5 } else { 1.0 });
    k.number("expert_weights_scale", scale);
    let norm = c.0.get("norm_topk_prob").and_then(serde_json::Value::as_bool).unwrap_or(sigmoid);
    k.m.set(format!("{}.expert_weights_norm", k.arch), Value::Bool(norm));
    k.count("expert_gating_func", if sigmoid { 2 } else { 1 })?;
    let grouped = sigmoid || c.text("topk_method") == Some("group_limited_greedy");
    let (groups, used) = (c.opt_size("n_group")?.unwrap_or(1), c.opt_size("topk_group")?.unwrap_or(1));
    if grouped && groups > 1 {
        k.count("expert_group_count", groups)?;
        k.count("expert_group_used_count", used)?;
    }
    Ok(())
}

/// Dense layers first, then experts in every layer: all that GGUF can say.
fn leading_dense(c: HfConfig<'_>) -> Result<usize, WeightsError> {
    let refuse = |what: &str| {
        let hint = "GGUF knows leading dense layers only";
        Err(WeightsError::unsupported(
            format!("config.json: `{what}`"),
            "an order of layers of its own",
            hint,
        ))
    };
    if let Some(kinds) = c.texts("mlp_layer_types") {
        let dense = kinds.iter().take_while(|t| **t == "dense").count();
        let mixed = kinds[dense..].contains(&"dense");
        return if mixed { refuse("mlp_layer_types") } else { Ok(dense) };
    }
    if c.opt_size("moe_layer_freq")?.unwrap_or(1) != 1 {
        return refuse("moe_layer_freq");
    }
    Ok(c.opt_size("first_k_dense_replace")?.unwrap_or(0))
}

fn rope_scaling(k: &mut Keys, c: HfConfig<'_>, family: GgufArchitecture) -> Result<(), WeightsError> {
    let kind = c.rope_type();
    let Some(r) = c.rope().filter(|_| !matches!(kind, "default" | "none" | "llama3")) else { return Ok(()) };
    if !matches!(kind, "linear" | "yarn") {
        let hint = "GGUF is written with default, linear, llama3 and yarn scaling";
        return Err(WeightsError::unsupported("config.json: `rope_type`", shown(kind), hint));
    }
    k.m.set(format!("{}.rope.scaling.type", k.arch), Value::text(kind));
    let original = r.opt_size("original_max_position_embeddings")?;
    let positions = c.size("max_position_embeddings")?;
    let own_factor = original.filter(|o| *o > 0).map(|o| (positions as f64 / o as f64).max(1.0));
    let factor = r.number("factor").or(own_factor).unwrap_or(1.0);
    k.number("rope.scaling.factor", factor);
    if kind == "yarn" {
        k.count("rope.scaling.original_context_length", original.unwrap_or(positions))?;
        yarn(k, r, family, factor)?;
    }
    Ok(())
}

/// DeepSeek's `mscale` travels as `yarn_log_multiplier`; elsewhere what the reference multiplies cos and sin by travels
/// relative to what yarn gives by itself.
fn yarn(k: &mut Keys, r: HfConfig<'_>, family: GgufArchitecture, factor: f64) -> Result<(), WeightsError> {
    for (key, default) in [("beta_fast", 32.0), ("beta_slow", 1.0)] {
        if let Some(beta) = r.number(key).filter(|b| *b != 0.0 && *b != default) {
            k.number(&format!("rope.scaling.yarn_{key}"), beta);
        }
    }
    let (mscale, all) = (r.number("mscale").unwrap_or(0.0), r.number("mscale_all_dim").unwrap_or(0.0));
    let of = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    if family.is_latent() {
        if mscale != all || r.number("attention_factor").is_some() {
            return Err(WeightsError::unsupported(
                "config.json: rope's `mscale`",
                format!("{mscale} beside mscale_all_dim {all}"),
                "GGUF can only say that the two are equal, as published",
            ));
        }
        if all != 0.0 {
            k.number("rope.scaling.yarn_log_multiplier", 0.1 * all);
        }
        return Ok(());
    }
    let attention_factor = r
        .number("attention_factor")
        .unwrap_or_else(|| if mscale != 0.0 && all != 0.0 { of(mscale) / of(all) } else { of(1.0) });
    let relative = attention_factor / of(1.0);
    if (relative - 1.0).abs() > 1e-6 {
        k.number("rope.scaling.attn_factor", relative);
    }
    Ok(())
}

/// Divisors of the frequencies for llama3 scaling: GGUF carries them as a tensor.
pub(super) fn rope_factors(c: HfConfig<'_>) -> Result<Option<Vec<f32>>, WeightsError> {
    let Some(r) = c.rope().filter(|_| c.rope_type() == "llama3") else { return Ok(None) };
    let need = |key: &str| {
        r.number(key).filter(|v| *v > 0.0).ok_or_else(|| {
            WeightsError::malformed(format!("config.json: rope's `{key}`"), "is missing or not positive")
        })
    };
    let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
    if high <= low {
        return Err(WeightsError::malformed(
            "config.json: rope's `high_freq_factor`",
            "must be above the low one",
        ));
    }
    let original = match r.opt_size("original_max_position_embeddings")? {
        Some(original) => original,
        None => c.size("max_position_embeddings")?,
    };
    let dim = c.head_dim()?;
    if dim > 1 << 16 {
        return Err(WeightsError::malformed("config.json: `head_dim`", format!("= {dim} is beyond bounds")));
    }
    let factors =
        crate::checkpoint::llama3_factors(dim, c.rope_theta(), need("factor")?, low, high, original as f64);
    Ok(Some(factors))
}
