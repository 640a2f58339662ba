//! A config.json out of GGUF metadata.
//!
//! Older spelling of rope (`rope_theta`, `rope_scaling`). Only what the file says is written: what it leaves out stays
//! out, and whoever needs it names the key. Conventions are those of llama.cpp's converter, notably:
//! `rope.scaling.yarn_log_multiplier` is a tenth of DeepSeek's `mscale_all_dim`; `attention.key_length_mla` and
//! `value_length_mla` are the head sizes where `key_length` and `value_length` describe the absorbed form.

use serde_json::{Map, Value, json};

use super::Checkpoint;
use crate::gguf::Metadata;

/// `general.architecture`, `architectures[0]`, `model_type`
const FAMILIES: [(&str, &str, &str); 3] = [
    ("llama", "LlamaForCausalLM", "llama"),
    ("qwen2", "Qwen2ForCausalLM", "qwen2"),
    ("qwen3", "Qwen3ForCausalLM", "qwen3"),
];

const SOFTMAX: u64 = 1;
const SIGMOID: u64 = 2;

pub(super) fn synthesize(c: &Checkpoint) -> Value {
    let arch = c.gguf_architecture().unwrap_or_default().to_owned();
    let Some(m) = c.gguf_metadata() else { return Value::Null };
    let mut s = Synthesis { c, m, arch: &arch, out: Map::new() };
    s.common();
    match arch.as_str() {
        "deepseek2" | "deepseek32" => s.deepseek(),
        _ => s.dense(),
    }
    s.rope();
    Value::Object(s.out)
}

/// Where a file says what [`synthesize`] puts under `key` of a config.json.
pub(super) fn metadata_key(architecture: &str, key: &str) -> Option<String> {
    let name = match key {
        "architectures" | "model_type" => return Some("general.architecture".to_owned()),
        "hidden_size" => "embedding_length",
        "intermediate_size" => "feed_forward_length",
        "num_attention_heads" => "attention.head_count",
        "num_key_value_heads" => "attention.head_count_kv",
        "head_dim" | "qk_nope_head_dim" => "attention.key_length",
        "v_head_dim" => "attention.value_length",
        "max_position_embeddings" => "context_length",
        "num_hidden_layers" => "block_count",
        "num_nextn_predict_layers" => "nextn_predict_layers",
        "rms_norm_eps" => "attention.layer_norm_rms_epsilon",
        "vocab_size" => "vocab_size",
        "rope_theta" => "rope.freq_base",
        "partial_rotary_factor" | "qk_rope_head_dim" => "rope.dimension_count",
        "num_local_experts" | "n_routed_experts" => "expert_count",
        "num_experts_per_tok" => "expert_used_count",
        "n_shared_experts" => "expert_shared_count",
        "moe_intermediate_size" => "expert_feed_forward_length",
        "first_k_dense_replace" => "leading_dense_block_count",
        "routed_scaling_factor" => "expert_weights_scale",
        "norm_topk_prob" => "expert_weights_norm",
        "n_group" => "expert_group_count",
        "topk_group" => "expert_group_used_count",
        "scoring_func" | "topk_method" => "expert_gating_func",
        "q_lora_rank" => "attention.q_lora_rank",
        "kv_lora_rank" => "attention.kv_lora_rank",
        "index_n_heads" => "attention.indexer.head_count",
        "index_head_dim" => "attention.indexer.key_length",
        "index_topk" => "attention.indexer.top_k",
        "rope_scaling" | "rope_scaling.rope_type" | "rope_scaling.type" => "rope.scaling.type",
        "rope_scaling.factor" => "rope.scaling.factor",
        "rope_scaling.original_max_position_embeddings" => "rope.scaling.original_context_length",
        "rope_scaling.beta_fast" => "rope.scaling.yarn_beta_fast",
        "rope_scaling.beta_slow" => "rope.scaling.yarn_beta_slow",
        "rope_scaling.mscale" | "rope_scaling.mscale_all_dim" => "rope.scaling.yarn_log_multiplier",
        "rope_scaling.attention_factor" => "rope.scaling.attn_factor",
        _ => return None,
    };
    Some(format!("{architecture}.{name}"))
}

struct Synthesis<'a> {
    c: &'a Checkpoint,
    m: &'a Metadata,
    arch: &'a str,
    out: Map<String, Value>,
}

impl Synthesis<'_> {
    fn count(&self, key: &str) -> Option<u64> {
        self.m.get_u64(&format!("{}.{key}", self.arch))
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.m.get_f64(&format!("{}.{key}", self.arch))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.m.get_str(&format!("{}.{key}", self.arch))
    }

    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.out.insert(key.to_owned(), value.into());
    }

    fn copy(&mut self, to: &str, from: &str) {
        if let Some(value) = self.count(from) {
            self.put(to, value);
        }
    }

    fn holds(&self, name: &str) -> bool {
        self.c.tensor(name).is_some()
    }

    fn common(&mut self) {
        self.put("hidden_act", "silu");
        self.copy("hidden_size", "embedding_length");
        self.copy("intermediate_size", "feed_forward_length");
        self.copy("num_attention_heads", "attention.head_count");
        self.copy("max_position_embeddings", "context_length");
        // Files with a multi-token-prediction layer count it as a block.
        let extra = self.count("nextn_predict_layers").unwrap_or(0);
        if let Some(blocks) = self.count("block_count") {
            self.put("num_hidden_layers", blocks.saturating_sub(extra));
        }
        if extra > 0 {
            self.put("num_nextn_predict_layers", extra);
        }
        if let Some(eps) = self.number("attention.layer_norm_rms_epsilon") {
            self.put("rms_norm_eps", eps);
        }
        if let Some(vocab) = self.vocab_size() {
            self.put("vocab_size", vocab);
        }
        let embedding = self.holds("model.embed_tokens.weight");
        self.put("tie_word_embeddings", embedding && !self.holds("lm_head.weight"));
        for (to, from) in [
            ("bos_token_id", "tokenizer.ggml.bos_token_id"),
            ("eos_token_id", "tokenizer.ggml.eos_token_id"),
            ("pad_token_id", "tokenizer.ggml.padding_token_id"),
        ] {
            if let Some(id) = self.m.get_u32(from) {
                self.put(to, id);
            }
        }
        if let Some(theta) = self.number("rope.freq_base") {
            self.put("rope_theta", theta);
        }
    }

    /// Rows of the embedding count, then what the file says, then its tokens.
    fn vocab_size(&self) -> Option<u64> {
        let rows = self.c.tensor("model.embed_tokens.weight").and_then(|t| t.info().shape.first().copied());
        rows.map(|r| r as u64)
            .or_else(|| self.count("vocab_size"))
            .or_else(|| Some(self.m.get("tokenizer.ggml.tokens")?.as_array()?.len() as u64))
    }

    /// Llama, Qwen2, Qwen3; other architectures keep their name, so that the refusal can say it.
    fn dense(&mut self) {
        match FAMILIES.iter().find(|f| f.0 == self.arch) {
            Some((_, architecture, model_type)) => {
                self.put("architectures", json!([architecture]));
                self.put("model_type", *model_type);
            }
            None => {
                self.put("architectures", json!([self.arch]));
                self.put("model_type", self.arch);
            }
        }
        self.copy("num_key_value_heads", "attention.head_count_kv");
        self.copy("head_dim", "attention.key_length");
        let attention = "model.layers.0.self_attn";
        self.put("attention_bias", self.holds(&format!("{attention}.q_proj.bias")));
        self.put("mlp_bias", self.holds("model.layers.0.mlp.down_proj.bias"));
        let head_dim = self
            .count("attention.key_length")
            .or_else(|| self.count("embedding_length")?.checked_div(self.count("attention.head_count")?));
        if let (Some(rotated), Some(dim)) = (self.count("rope.dimension_count"), head_dim)
            && rotated != dim
            && dim > 0
        {
            self.put("partial_rotary_factor", rotated as f64 / dim as f64);
        }
        if let Some(experts) = self.count("expert_count").filter(|n| *n > 0) {
            self.put("num_local_experts", experts);
        }
    }

    fn deepseek(&mut self) {
        let bias = self.holds_some_correction_bias();
        let gating = self.count("expert_gating_func").filter(|g| *g != 0);
        // Files from before the key existed are V2, whose experts have no correction bias.
        let sigmoid = gating == Some(SIGMOID) || (gating.is_none() && bias);
        let indexer = self.arch == "deepseek32" || self.count("attention.indexer.top_k").is_some();
        let (architecture, model_type) = match (indexer, sigmoid) {
            (true, _) => ("DeepseekV32ForCausalLM", "deepseek_v32"),
            (false, true) => ("DeepseekV3ForCausalLM", "deepseek_v3"),
            (false, false) => ("DeepseekV2ForCausalLM", "deepseek_v2"),
        };
        self.put("architectures", json!([architecture]));
        self.put("model_type", model_type);
        self.copy("num_key_value_heads", "attention.head_count");
        self.copy("q_lora_rank", "attention.q_lora_rank");
        self.copy("kv_lora_rank", "attention.kv_lora_rank");
        if !self.out.contains_key("q_lora_rank") {
            self.put("q_lora_rank", Value::Null);
        }
        self.copy("qk_rope_head_dim", "rope.dimension_count");
        let key = self.count("attention.key_length_mla").or_else(|| self.count("attention.key_length"));
        if let (Some(key), Some(rope)) = (key, self.count("rope.dimension_count")) {
            self.put("qk_nope_head_dim", key.saturating_sub(rope));
        }
        let value = self.count("attention.value_length_mla").or_else(|| self.count("attention.value_length"));
        if let Some(value) = value {
            self.put("v_head_dim", value);
        }
        self.put("attention_bias", self.holds("model.layers.0.self_attn.kv_a_proj_with_mqa.bias"));
        self.experts(sigmoid, gating);
        if indexer {
            self.copy("index_n_heads", "attention.indexer.head_count");
            self.copy("index_head_dim", "attention.indexer.key_length");
            self.copy("index_topk", "attention.indexer.top_k");
        }
    }

    fn experts(&mut self, sigmoid: bool, gating: Option<u64>) {
        self.copy("n_routed_experts", "expert_count");
        self.copy("num_experts_per_tok", "expert_used_count");
        self.put("n_shared_experts", self.count("expert_shared_count").unwrap_or(0));
        self.copy("moe_intermediate_size", "expert_feed_forward_length");
        self.put("first_k_dense_replace", self.count("leading_dense_block_count").unwrap_or(0));
        self.put(
            "routed_scaling_factor",
            self.number("expert_weights_scale").filter(|s| *s != 0.0).unwrap_or(1.0),
        );
        let norm = self.m.get_bool(&format!("{}.expert_weights_norm", self.arch)).unwrap_or(false);
        self.put("norm_topk_prob", norm);
        let groups = self.count("expert_group_count").filter(|g| *g > 1);
        if groups.is_some() {
            self.copy("n_group", "expert_group_count");
            self.copy("topk_group", "expert_group_used_count");
        }
        let scoring = match gating {
            Some(SOFTMAX) => "softmax".to_owned(),
            None if !sigmoid => "softmax".to_owned(),
            Some(SIGMOID) | None => "sigmoid".to_owned(),
            Some(other) => format!("gating function {other}"),
        };
        self.put("scoring_func", scoring);
        let method = match (sigmoid, groups) {
            (true, _) => "noaux_tc",
            (false, Some(_)) => "group_limited_greedy",
            (false, None) => "greedy",
        };
        self.put("topk_method", method);
    }

    fn holds_some_correction_bias(&self) -> bool {
        self.c.tensors().any(|t| t.name.ends_with(".e_score_correction_bias"))
    }

    fn rope(&mut self) {
        if let Some(factors) = self.c.rope_factors() {
            let scaling = llama3_of(&factors, self.number("rope.freq_base").unwrap_or(10_000.0));
            self.put(
                "rope_scaling",
                scaling.unwrap_or_else(|| json!({"rope_type": "factors", "factors": factors})),
            );
            return;
        }
        let kind = self.text("rope.scaling.type").unwrap_or("none").to_owned();
        let factor = self.number("rope.scaling.factor").or_else(|| self.number("rope.scale_linear"));
        let mut scaling = Map::new();
        match kind.as_str() {
            "none" if factor.is_none_or(|f| f == 1.0 || f == 0.0) => return,
            "none" | "linear" => scaling.insert("rope_type".into(), json!("linear")),
            other => scaling.insert("rope_type".into(), json!(other)),
        };
        scaling.insert("type".into(), scaling["rope_type"].clone());
        scaling.insert("factor".into(), json!(factor.unwrap_or(1.0)));
        if kind == "yarn" {
            self.yarn(&mut scaling, factor.unwrap_or(1.0));
        }
        self.put("rope_scaling", Value::Object(scaling));
    }

    fn yarn(&self, scaling: &mut Map<String, Value>, factor: f64) {
        if let Some(original) = self.count("rope.scaling.original_context_length") {
            scaling.insert("original_max_position_embeddings".into(), json!(original));
        }
        for key in ["beta_fast", "beta_slow"] {
            if let Some(beta) = self.number(&format!("rope.scaling.yarn_{key}")) {
                scaling.insert(key.into(), json!(beta));
            }
        }
        if matches!(self.arch, "deepseek2" | "deepseek32") {
            if let Some(log) = self.number("rope.scaling.yarn_log_multiplier").filter(|l| *l != 0.0) {
                // A tenth, kept in float32: the published numbers have three digits.
                let mscale = (log * 10.0 * 1e6).round() / 1e6;
                scaling.insert("mscale".into(), json!(mscale));
                scaling.insert("mscale_all_dim".into(), json!(mscale));
            }
        } else if let Some(ratio) = self.number("rope.scaling.attn_factor").filter(|r| *r > 0.0 && *r != 1.0)
        {
            // Relative to what yarn gives by itself.
            let own = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            let absolute = (ratio * own * 1e6).round() / 1e6;
            scaling.insert("attention_factor".into(), json!(absolute));
        }
    }
}

/// Divisors of the frequencies under Llama 3.1's bands: 1 for the fast ones, `factor` for the slow ones, a ramp between.
pub(crate) fn llama3_factors(
    head_dim: usize,
    theta: f64,
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let frequency = theta.powf(-(2.0 * i as f64) / head_dim as f64);
            let rotations = original * frequency / (2.0 * std::f64::consts::PI);
            let smooth = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        })
        .collect()
}

/// The file has the divisors and not the numbers they come from. Published models all use the bands 1 and 4; the
/// scaling is taken where some power of two as original context gives these very divisors.
fn llama3_of(factors: &[f32], theta: f64) -> Option<Value> {
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    (6..=20).map(|bits| 1u64 << bits).find_map(|original| {
        let expected = llama3_factors(factors.len() * 2, theta, factor, 1.0, 4.0, original as f64);
        let same = expected.iter().zip(factors).all(|(e, f)| (e - f).abs() <= 1e-4 * e);
        let any_slow = factor > 1.0;
        (same && any_slow).then(|| {
            json!({
                "rope_type": "llama3", "type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": original,
            })
        })
    })
}
