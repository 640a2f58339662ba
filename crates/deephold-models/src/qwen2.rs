//! Qwen2 and Qwen2.5 (Qwen team 2024), and the R1 distills on Qwen.
//!
//! Reference: transformers 5.23, `Qwen2ForCausalLM`. Differs from Llama: q, k and v always carry a bias, o never; small
//! sizes tie the head to the embedding. Refused: `use_sliding_window`.

use crate::ModelError;
use crate::config::{DecoderConfig, GqaConfig, Section};
use crate::family::Family;
use crate::layers::attention::GqaOptions;
use crate::llama::Config;

pub(crate) fn parse(c: &Section<'_>) -> Result<Box<dyn Family>, ModelError> {
    let decoder = DecoderConfig::parse(c)?;
    let options = GqaOptions { qkv_bias: true, o_bias: false, qk_norm: None };
    let attention = GqaConfig::parse(c, &decoder)?;
    Ok(Box::new(Config { decoder, attention, options, mlp_bias: false }))
}
