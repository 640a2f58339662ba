//! DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024, "DeepSeek-V2").
//!
//! Reference: transformers 5.23, `DeepseekV2ForCausalLM`. Latent attention with a query latent (V2) or without (V2-Lite);
//! softmax routing, `greedy` (Lite) or limited to the groups with the best experts; yarn whose mscale enters the softmax
//! scale. Refused: `norm_topk_prob`, where the published code and the reference disagree.

use deephold_kernels::{Activations, AttentionContext, CacheSpec, Tensor};

use crate::ModelError;
use crate::config::{DecoderConfig, Section, only_layer_types};
use crate::family::{Family, Layer};
use crate::layers::mla::{Mla, MlaConfig};
use crate::layers::moe::{FeedForward, MoeConfig};
use crate::layers::norm::RmsNorm;
use crate::loader::Loader;
use crate::tensors::TensorList;

/// Latent attention and experts; V3 differs in routing alone.
pub(crate) struct Config {
    pub(crate) decoder: DecoderConfig,
    pub(crate) attention: MlaConfig,
    pub(crate) moe: MoeConfig,
}

pub(crate) fn parse(c: &Section<'_>) -> Result<Box<dyn Family>, ModelError> {
    let decoder = DecoderConfig::parse(c)?;
    only_layer_types(c, &decoder, "full_attention")?;
    if c.flag("mlp_bias", false)? {
        return Err(c.unsupported("mlp_bias", "true", "no published DeepSeek checkpoint has one"));
    }
    let attention = MlaConfig::parse(c, &decoder)?;
    let moe = MoeConfig::parse_softmax(c, &decoder)?;
    Ok(Box::new(Config { decoder, attention, moe }))
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
        list.vector(&format!("{name}.post_attention_layernorm.weight"), d.hidden_size);
        FeedForward::tensors(list, layer, d, &self.moe);
    }

    fn layer_cache(&self, _layer: usize) -> Vec<CacheSpec> {
        self.attention.cache()
    }

    fn load_layer(&self, l: &mut Loader<'_>, layer: usize) -> Result<Box<dyn Layer>, ModelError> {
        let (name, d) = (format!("model.layers.{layer}"), &self.decoder);
        let norm = |l: &mut Loader<'_>, which: &str| {
            RmsNorm::load(l, &format!("{name}.{which}"), d.hidden_size, d.rms_norm_eps)
        };
        Ok(Box::new(MlaLayer {
            input_layernorm: norm(l, "input_layernorm")?,
            self_attn: Mla::load(l, layer, d.hidden_size, &self.attention)?,
            post_attention_layernorm: norm(l, "post_attention_layernorm")?,
            mlp: FeedForward::load(l, layer, d, &self.moe)?,
        }))
    }
}

struct MlaLayer {
    input_layernorm: RmsNorm,
    self_attn: Mla,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

impl Layer for MlaLayer {
    fn forward(&self, ctx: &AttentionContext<'_>, x: &mut Tensor) {
        let ops = ctx.ops();
        // 1. x += attention(norm(x)): latents and rope keys first go into the cache.
        let normed = self.input_layernorm.forward(ops, x);
        let act = Activations::new(&normed);
        let queries = self.self_attn.queries(ops, &act);
        self.self_attn.write(ctx, &act);
        let attended = self.self_attn.attend(ctx, queries.q, None);
        ops.add(x, &attended);
        // 2. x += experts(norm(x)), or a dense block in the first layers.
        let normed = self.post_attention_layernorm.forward(ops, x);
        let fed = self.mlp.forward(ops, &Activations::new(&normed));
        ops.add(x, &fed);
    }
}
