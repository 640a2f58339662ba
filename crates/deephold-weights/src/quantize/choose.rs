//! Which type each tensor gets.
//!
//! The mixtures are llama.cpp's `_M` files: values and down projections decide most, and the first and last eighth of
//! the layers and every third one between keep more bits of them. The output matrix always has at least six. The two
//! parts of `kv_b_proj` are small and every position passes through them: eight bits.

use deephold_quant::DType;

use super::QuantFormat;
use crate::names;

/// `name` is the GGUF name, `shape` outermost first, `tied` whether the embedding is the output matrix as well.
pub(super) fn choose(format: QuantFormat, name: &str, shape: &[usize], layers: usize, tied: bool) -> DType {
    if shape.len() < 2 || keeps_f32(name) {
        return DType::F32;
    }
    let k = *shape.last().unwrap_or(&0);
    let is_output = name == "output.weight" || (tied && name == "token_embd.weight");
    let more = layer(name).is_some_and(|l| uses_more_bits(l, layers));
    let decides = name.contains(".attn_v.") || name.contains(".ffn_down");
    let split_latent = name.contains(".attn_k_b.") || name.contains(".attn_v_b.");
    let wanted = match format {
        QuantFormat::BF16 => return DType::BF16,
        QuantFormat::Q8_0 => DType::Q8_0,
        _ if split_latent => DType::Q8_0,
        _ if is_output => DType::Q6K,
        QuantFormat::Q4_0 => DType::Q4_0,
        QuantFormat::Q6_K => DType::Q6K,
        QuantFormat::Q4_K_M | QuantFormat::Q5_K_M if decides && more => DType::Q6K,
        QuantFormat::Q4_K_M => DType::Q4K,
        QuantFormat::Q5_K_M => DType::Q5K,
    };
    fitting(wanted, k)
}

/// Rows that are not whole blocks of 256 take a neighbor with blocks of 32, and F16 where even those do not fit.
fn fitting(wanted: DType, k: usize) -> DType {
    if k.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let smaller = match wanted {
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        _ => DType::Q8_0,
    };
    if k.is_multiple_of(smaller.block_len()) { smaller } else { DType::F16 }
}

/// Whether a tensor has another type than its format means, because its rows are not whole blocks.
pub(super) fn fell_back(format: QuantFormat, name: &str, shape: &[usize], dtype: DType) -> bool {
    let k = *shape.last().unwrap_or(&0);
    let has_large_blocks = matches!(format, QuantFormat::Q4_K_M | QuantFormat::Q5_K_M | QuantFormat::Q6_K)
        || (format == QuantFormat::Q4_0 && name.ends_with("output.weight"));
    let split_latent = name.contains(".attn_k_b.") || name.contains(".attn_v_b.");
    match dtype {
        DType::F16 => true,
        DType::Q5_0 | DType::Q5_1 | DType::Q8_0 => {
            has_large_blocks && !split_latent && !k.is_multiple_of(256)
        }
        _ => false,
    }
}

/// Routers decide; the indexer's head weights are few.
fn keeps_f32(name: &str) -> bool {
    name.contains(".ffn_gate_inp.") || name.contains(".indexer.proj.") || name.contains("exp_probs_b")
}

fn uses_more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

fn layer(gguf_name: &str) -> Option<usize> {
    names::layer_of(&names::to_hugging_face(gguf_name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixtures() {
        let of = |format, name: &str, k| choose(format, name, &[64, k], 32, false);
        use QuantFormat::*;
        assert_eq!(of(Q4_K_M, "blk.0.ffn_down.weight", 256), DType::Q6K);
        assert_eq!(of(Q4_K_M, "blk.4.ffn_down.weight", 256), DType::Q4K);
        assert_eq!(of(Q4_K_M, "blk.6.attn_v.weight", 256), DType::Q6K);
        assert_eq!(of(Q4_K_M, "blk.0.attn_q.weight", 256), DType::Q4K);
        assert_eq!(of(Q5_K_M, "blk.31.ffn_down_exps.weight", 512), DType::Q6K);
        assert_eq!(of(Q4_0, "output.weight", 256), DType::Q6K);
        assert_eq!(of(Q8_0, "output.weight", 256), DType::Q8_0);
        assert_eq!(of(Q4_K_M, "blk.0.attn_norm.weight", 256), DType::Q4K);
        assert_eq!(choose(Q4_K_M, "blk.0.attn_norm.weight", &[256], 32, false), DType::F32);
        assert_eq!(of(BF16, "blk.0.ffn_gate_inp.weight", 256), DType::F32);
        assert_eq!(choose(Q4_0, "token_embd.weight", &[8, 256], 2, true), DType::Q6K);
    }

    #[test]
    fn odd_rows_fall_back() {
        let of = |format, k| choose(format, "blk.4.attn_q.weight", &[64, k], 32, false);
        assert_eq!(of(QuantFormat::Q4_K_M, 160), DType::Q5_0);
        assert_eq!(of(QuantFormat::Q5_K_M, 160), DType::Q5_1);
        assert_eq!(of(QuantFormat::Q6_K, 160), DType::Q8_0);
        assert_eq!(of(QuantFormat::Q8_0, 172), DType::F16);
        assert_eq!(of(QuantFormat::Q4_K_M, 172), DType::F16);
    }
}
