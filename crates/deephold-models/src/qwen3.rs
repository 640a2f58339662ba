//! Qwen3 (Qwen team 2025), and R1-0528's distill on it.
//!
//! Reference: transformers 5.23, `Qwen3ForCausalLM`. Differs from Qwen2: no biases unless `attention_bias`, an RMSNorm over
//! each head of q and k before rope, and a head_dim of its own. Refused: `use_sliding_window`, experts.

use crate::ModelError;
use crate::config::{DecoderConfig, GqaConfig, Section};
use crate::family::Family;
use crate::layers::attention::GqaOptions;
use crate::llama::Config;

pub(crate) fn parse(c: &Section<'_>) -> Result<Box<dyn Family>, ModelError> {
    let decoder = DecoderConfig::parse(c)?;
    let bias = decoder.attention_bias;
    let options = GqaOptions { qkv_bias: bias, o_bias: bias, qk_norm: Some(decoder.rms_norm_eps) };
    let attention = GqaConfig::parse(c, &decoder)?;
    Ok(Box::new(Config { decoder, attention, options, mlp_bias: false }))
}
