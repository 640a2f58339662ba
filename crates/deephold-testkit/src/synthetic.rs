//! Tiny checkpoints made in memory: golden weights in other formats, and random ones in shapes that golden lacks.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::{RawTensor, Rng, SafeTensors, golden_dir, write_safetensors};

/// Rows and columns that share one scale in DeepSeek's FP8 files.
pub const FP8_BLOCK: usize = 128;

/// A configuration and its tensors, to be changed and written as a Hugging Face folder.
#[derive(Clone, Debug)]
pub struct SyntheticModel {
    /// config.json.
    pub config: Value,
    /// By Hugging Face name.
    pub tensors: BTreeMap<String, RawTensor>,
}

impl SyntheticModel {
    /// A golden checkpoint, with `config.json` or, where `older`, `config.older.json`.
    pub fn golden(name: &str, older: bool) -> Self {
        let dir = golden_dir(name);
        let file = dir.join(if older { "config.older.json" } else { "config.json" });
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("cannot read {}: {e}", file.display()));
        let config = serde_json::from_str(&text).expect("config.json");
        Self { config, tensors: SafeTensors::read(&dir.join("model.safetensors")).0 }
    }

    /// A random Llama of two layers whose every matrix has inputs in whole blocks of 256, as K-quants need.
    pub fn random_llama_256(seed: u64) -> Self {
        let (hidden, intermediate, vocab, kv) = (256usize, 512usize, 96usize, 128usize);
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 2,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": vocab,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
            "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "bos_token_id": 0, "eos_token_id": 1,
        });
        let mut out = Self { config, tensors: BTreeMap::new() };
        let mut rng = Rng::new(seed);
        out.matrix("model.embed_tokens.weight", vocab, hidden, 1.0, &mut rng);
        out.matrix("lm_head.weight", vocab, hidden, 0.1, &mut rng);
        out.norm("model.norm.weight", hidden, &mut rng);
        for l in 0..2 {
            let p = format!("model.layers.{l}");
            out.norm(&format!("{p}.input_layernorm.weight"), hidden, &mut rng);
            out.norm(&format!("{p}.post_attention_layernorm.weight"), hidden, &mut rng);
            out.matrix(&format!("{p}.self_attn.q_proj.weight"), hidden, hidden, 0.08, &mut rng);
            out.matrix(&format!("{p}.self_attn.k_proj.weight"), kv, hidden, 0.08, &mut rng);
            out.matrix(&format!("{p}.self_attn.v_proj.weight"), kv, hidden, 0.08, &mut rng);
            out.matrix(&format!("{p}.self_attn.o_proj.weight"), hidden, hidden, 0.08, &mut rng);
            out.matrix(&format!("{p}.mlp.gate_proj.weight"), intermediate, hidden, 0.08, &mut rng);
            out.matrix(&format!("{p}.mlp.up_proj.weight"), intermediate, hidden, 0.08, &mut rng);
            out.matrix(&format!("{p}.mlp.down_proj.weight"), hidden, intermediate, 0.08, &mut rng);
        }
        out
    }

    /// A random DeepSeek-V3 of two layers (one with experts) whose every matrix has inputs in whole blocks of 256.
    pub fn random_deepseek_256(seed: u64) -> Self {
        let (hidden, vocab, rank, heads, experts, moe) =
            (256usize, 96usize, 256usize, 4usize, 8usize, 256usize);
        let (nope, rope, v) = (64usize, 32usize, 64usize);
        let config = json!({
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": 512, "moe_intermediate_size": moe, "num_hidden_layers": 2,
            "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocab,
            "q_lora_rank": rank, "kv_lora_rank": rank, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope,
            "v_head_dim": v, "n_routed_experts": experts, "n_shared_experts": 1, "num_experts_per_tok": 2,
            "n_group": 2, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "first_k_dense_replace": 1, "moe_layer_freq": 1,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": null,
            "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "bos_token_id": 0, "eos_token_id": 1,
        });
        let mut out = Self { config, tensors: BTreeMap::new() };
        let mut rng = Rng::new(seed);
        out.matrix("model.embed_tokens.weight", vocab, hidden, 1.0, &mut rng);
        out.matrix("lm_head.weight", vocab, hidden, 0.1, &mut rng);
        out.norm("model.norm.weight", hidden, &mut rng);
        for l in 0..2 {
            let p = format!("model.layers.{l}");
            let a = format!("{p}.self_attn");
            out.norm(&format!("{p}.input_layernorm.weight"), hidden, &mut rng);
            out.norm(&format!("{p}.post_attention_layernorm.weight"), hidden, &mut rng);
            out.matrix(&format!("{a}.q_a_proj.weight"), rank, hidden, 0.08, &mut rng);
            out.norm(&format!("{a}.q_a_layernorm.weight"), rank, &mut rng);
            out.matrix(&format!("{a}.q_b_proj.weight"), heads * (nope + rope), rank, 0.08, &mut rng);
            out.matrix(&format!("{a}.kv_a_proj_with_mqa.weight"), rank + rope, hidden, 0.08, &mut rng);
            out.norm(&format!("{a}.kv_a_layernorm.weight"), rank, &mut rng);
            out.matrix(&format!("{a}.kv_b_proj.weight"), heads * (nope + v), rank, 0.08, &mut rng);
            out.matrix(&format!("{a}.o_proj.weight"), hidden, heads * v, 0.08, &mut rng);
        }
        out.mlp("model.layers.0.mlp", hidden, 512, &mut rng);
        out.matrix("model.layers.1.mlp.gate.weight", experts, hidden, 0.1, &mut rng);
        let bias = rng.normals(experts, 0.05);
        let name = "model.layers.1.mlp.gate.e_score_correction_bias".to_owned();
        out.tensors.insert(name, RawTensor::f32(&[experts], &bias));
        out.mlp("model.layers.1.mlp.shared_experts", hidden, moe, &mut rng);
        for e in 0..experts {
            out.mlp(&format!("model.layers.1.mlp.experts.{e}"), hidden, moe, &mut rng);
        }
        out
    }

    /// Writes `config.json` and `model.safetensors` into `dir`.
    pub fn write(&self, dir: &Path) {
        let config = serde_json::to_string_pretty(&self.config).expect("a configuration");
        std::fs::write(dir.join("config.json"), config).expect("config.json is written");
        write_safetensors(&dir.join("model.safetensors"), &self.tensors);
    }

    /// Turns the matrices that `pick` accepts into FP8 with blocks of 128 x 128, as published V3 files are, and adds
    /// `quantization_config`. Returns the same model with those matrices dequantised to F32.
    ///
    /// `encode` and `decode` are the E4M3 conversions under test.
    pub fn to_fp8(
        &mut self,
        pick: impl Fn(&str) -> bool,
        encode: impl Fn(f32) -> u8,
        decode: impl Fn(u8) -> f32,
    ) -> SyntheticModel {
        let mut plain = self.clone();
        let names: Vec<String> =
            self.tensors.keys().filter(|n| self.tensors[*n].shape.len() == 2 && pick(n)).cloned().collect();
        for name in names {
            let shape = self.tensors[&name].shape.clone();
            let (n, k) = (shape[0], shape[1]);
            let values = self.tensors[&name].to_f32();
            let (nb, kb) = (n.div_ceil(FP8_BLOCK), k.div_ceil(FP8_BLOCK));
            let mut absmax = vec![0f32; nb * kb];
            for (i, v) in values.iter().enumerate() {
                let b = (i / k / FP8_BLOCK) * kb + (i % k) / FP8_BLOCK;
                absmax[b] = absmax[b].max(v.abs());
            }
            let scales: Vec<f32> = absmax.iter().map(|m| if *m > 0.0 { m / 448.0 } else { 1.0 }).collect();
            let scale_of = |i: usize| scales[(i / k / FP8_BLOCK) * kb + (i % k) / FP8_BLOCK];
            let bytes: Vec<u8> = values.iter().enumerate().map(|(i, v)| encode(v / scale_of(i))).collect();
            let exact: Vec<f32> = bytes.iter().enumerate().map(|(i, b)| decode(*b) * scale_of(i)).collect();
            plain.tensors.insert(name.clone(), RawTensor::f32(&shape, &exact));
            self.tensors.insert(format!("{name}_scale_inv"), RawTensor::f32(&[nb, kb], &scales));
            self.tensors.insert(name, RawTensor::u8("F8_E4M3", &shape, bytes));
        }
        self.config["quantization_config"] = json!({
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        });
        plain
    }

    fn matrix(&mut self, name: &str, n: usize, k: usize, std: f32, rng: &mut Rng) {
        self.tensors.insert(name.to_owned(), RawTensor::bf16(&[n, k], &rng.normals(n * k, std)));
    }

    fn norm(&mut self, name: &str, n: usize, rng: &mut Rng) {
        let values: Vec<f32> = (0..n).map(|_| 1.0 + 0.1 * rng.normal()).collect();
        self.tensors.insert(name.to_owned(), RawTensor::bf16(&[n], &values));
    }

    fn mlp(&mut self, prefix: &str, hidden: usize, intermediate: usize, rng: &mut Rng) {
        self.matrix(&format!("{prefix}.gate_proj.weight"), intermediate, hidden, 0.08, rng);
        self.matrix(&format!("{prefix}.up_proj.weight"), intermediate, hidden, 0.08, rng);
        self.matrix(&format!("{prefix}.down_proj.weight"), hidden, intermediate, 0.08, rng);
    }
}
