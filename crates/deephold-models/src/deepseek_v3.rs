//! DeepSeek-V3, V3.1 and R1 (DeepSeek-AI 2024, "DeepSeek-V3").
//!
//! Reference: transformers 5.23, `DeepseekV3ForCausalLM`. Differs from V2: sigmoid scores, a correction bias that chooses but
//! does not weigh, groups ranked by the sum of their two best experts, weights normalised over the chosen. Published weights
//! are FP8 in blocks of 128 x 128. The multi-token-prediction layer after the last one is reported and not computed.

use crate::ModelError;
use crate::config::{DecoderConfig, Section, only_layer_types};
use crate::deepseek_v2::Config;
use crate::family::Family;
use crate::layers::mla::MlaConfig;
use crate::layers::moe::MoeConfig;

pub(crate) fn parse(c: &Section<'_>) -> Result<Box<dyn Family>, ModelError> {
    let decoder = DecoderConfig::parse(c)?;
    only_layer_types(c, &decoder, "full_attention")?;
    let attention = MlaConfig::parse(c, &decoder)?;
    let moe = MoeConfig::parse_sigmoid(c, &decoder)?;
    Ok(Box::new(Config { decoder, attention, moe }))
}
