//! How much memory a model's weights will take, tensor by tensor, as `loader` packs them.

use deephold_kernels::PackedMatrix;
use deephold_quant::DType;
use deephold_weights::Checkpoint;
use deephold_weights::verify::ExpectedTensor;

use crate::LoadOptions;
use crate::decoder::EMBEDDING;
use crate::family::Family;

pub(crate) fn bytes(
    checkpoint: &Checkpoint,
    family: &dyn Family,
    tensors: &[ExpectedTensor],
    fp8_block: Option<(usize, usize)>,
    options: &LoadOptions,
) -> u64 {
    let fp8_columns = fp8_block.map_or(1, |b| b.1);
    let tied = family.decoder().tie_word_embeddings;
    let one = |t: &ExpectedTensor| -> u64 {
        // Block scales travel with their matrices, and the table of an untied embedding stays in the file.
        if t.active_share.0 == 0 || (t.name == EMBEDDING && !tied) {
            return 0;
        }
        let Some(dtype) = checkpoint.tensor(&t.name).map(|view| view.info().dtype) else { return 0 };
        let matrix = |dtype: DType, n: usize, k: usize| PackedMatrix::bytes_for(dtype, n, k, fp8_columns);
        let heads = family.latent_attention().filter(|_| is_latent_head(&t.name));
        match (heads, t.shape.as_slice()) {
            (_, [n]) => 4 * *n as u64,
            (Some(c), [_, _]) => {
                // Split by heads; what is no plain number format becomes float32.
                let plain = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
                let dtype = if plain { dtype } else { DType::F32 };
                let uk = matrix(dtype, c.kv_lora_rank, c.qk_nope_head_dim);
                let uv = matrix(dtype, c.v_head_dim, c.kv_lora_rank);
                c.heads as u64 * (uk + uv)
            }
            (Some(_), [heads, n, k]) => *heads as u64 * matrix(dtype, *n, *k),
            (None, [n, k]) => matrix(loaded_as(&t.name, dtype, *k, options), *n, *k),
            (None, [experts, n, k]) => {
                *experts as u64 * matrix(loaded_as(&t.name, dtype, *k, options), *n, *k)
            }
            _ => 0,
        }
    };
    tensors.iter().map(one).sum()
}

/// As [`bytes`], for an encoder, whose tables stay in the file.
pub(crate) fn encoder_bytes(
    checkpoint: &Checkpoint,
    tensors: &[ExpectedTensor],
    options: &LoadOptions,
) -> u64 {
    let one = |t: &ExpectedTensor| match (checkpoint.tensor(&t.name), t.shape.as_slice()) {
        _ if crate::bert::stays_mapped(&t.name) => 0,
        (Some(_), [n]) => 4 * *n as u64,
        (Some(view), [n, k]) => {
            PackedMatrix::bytes_for(loaded_as(&t.name, view.info().dtype, *k, options), *n, *k, 1)
        }
        _ => 0,
    };
    tensors.iter().map(one).sum()
}

fn is_latent_head(name: &str) -> bool {
    ["kv_b_proj.weight", ".k_b_proj.weight", ".v_b_proj.weight"].iter().any(|end| name.ends_with(end))
}

/// The type that a matrix is packed from: as stored, or as the options ask where its rows are whole blocks of that. Routers
/// stay as stored.
fn loaded_as(name: &str, stored: DType, k: usize, options: &LoadOptions) -> DType {
    let wanted = options.quantize_to.filter(|to| k.is_multiple_of(to.block_len()));
    if name.ends_with(".mlp.gate.weight") { stored } else { wanted.unwrap_or(stored) }
}
