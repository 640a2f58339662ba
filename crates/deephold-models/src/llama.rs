//! Llama 2 and 3 (Touvron et al. 2023; Llama team 2024), and the R1 distills on Llama.
//!
//! Reference: transformers 5.23, `LlamaForCausalLM`. Rope pairs lie half a head apart in Hugging Face files and beside each
//! other in GGUF files. Refused: other activations than silu, sliding windows.

use deephold_kernels::CacheSpec;

use crate::ModelError;
use crate::config::{DecoderConfig, GqaConfig, Section};
use crate::decoder::GqaLayer;
use crate::family::{Family, Layer};
use crate::layers::attention::{GqaAttention, GqaOptions};
use crate::layers::mlp::Mlp;
use crate::layers::norm::RmsNorm;
use crate::loader::Loader;
use crate::tensors::TensorList;

/// Llama's configuration; Qwen2 and Qwen3 differ from it in `options` alone.
pub(crate) struct Config {
    pub(crate) decoder: DecoderConfig,
    pub(crate) attention: GqaConfig,
    pub(crate) options: GqaOptions,
    pub(crate) mlp_bias: bool,
}

pub(crate) fn parse(c: &Section<'_>) -> Result<Box<dyn Family>, ModelError> {
    let decoder = DecoderConfig::parse(c)?;
    let bias = decoder.attention_bias;
    let options = GqaOptions { qkv_bias: bias, o_bias: bias, qk_norm: None };
    let attention = GqaConfig::parse(c, &decoder)?;
    Ok(Box::new(Config { decoder, attention, options, mlp_bias: c.flag("mlp_bias", false)? }))
}

impl Family for Config {
    fn decoder(&self) -> &DecoderConfig {
        &self.decoder
    }

    fn layer_tensors(&self, list: &mut TensorList<'_>, layer: usize) {
        let (name, d) = (format!("model.layers.{layer}"), &self.decoder);
        list.vector(&format!("{name}.input_layernorm.weight"), d.hidden_size);
        GqaAttention::tensors(
            list,
            &format!("{name}.self_attn"),
            d.hidden_size,
            &self.attention,
            self.options,
        );
        list.vector(&format!("{name}.post_attention_layernorm.weight"), d.hidden_size);
        list.mlp(&format!("{name}.mlp"), d.hidden_size, d.intermediate_size, self.mlp_bias);
    }

    fn layer_cache(&self, _layer: usize) -> Vec<CacheSpec> {
        self.attention.cache()
    }

    fn load_layer(&self, l: &mut Loader<'_>, layer: usize) -> Result<Box<dyn Layer>, ModelError> {
        let (name, d) = (format!("model.layers.{layer}"), &self.decoder);
        let norm = |l: &mut Loader<'_>, which: &str| {
            RmsNorm::load(l, &format!("{name}.{which}"), d.hidden_size, d.rms_norm_eps)
        };
        Ok(Box::new(GqaLayer {
            input_layernorm: norm(l, "input_layernorm")?,
            self_attn: GqaAttention::load(l, layer, d.hidden_size, &self.attention, self.options)?,
            post_attention_layernorm: norm(l, "post_attention_layernorm")?,
            mlp: Mlp::load(l, &format!("{name}.mlp"), d.hidden_size, d.intermediate_size, self.mlp_bias)?,
        }))
    }
}
