//! Tensor names: GGUF's `blk.3.attn_q.weight` and Hugging Face's `model.layers.3.self_attn.q_proj.weight`.
//!
//! The pairs are the public naming of both formats. Merged experts and the two parts of `kv_b_proj` have no published
//! Hugging Face name; ours are `mlp.experts.{gate,up,down}_proj` and `self_attn.{k,v}_b_proj`.

/// Outside the layers.
const TOP: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Within a layer, without `.weight` or `.bias`.
const LAYER: [(&str, &str); 37] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_k_b", "self_attn.k_b_proj"),
    ("attn_v_b", "self_attn.v_b_proj"),
    ("indexer.attn_q_b", "self_attn.indexer.wq_b"),
    ("indexer.attn_k", "self_attn.indexer.wk"),
    ("indexer.k_norm", "self_attn.indexer.k_norm"),
    ("indexer.proj", "self_attn.indexer.weights_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    ("attn_rot_embd", "self_attn.rotary_emb.inv_freq"),
    ("nextn.eh_proj", "eh_proj"),
    ("nextn.embed_tokens", "embed_tokens"),
    ("nextn.enorm", "enorm"),
    ("nextn.hnorm", "hnorm"),
    ("nextn.shared_head_head", "shared_head.head"),
    ("nextn.shared_head_norm", "shared_head.norm"),
];

const CORRECTION_BIAS: &str = "mlp.gate.e_score_correction_bias";

/// The Hugging Face name of a GGUF tensor, if it has one.
pub fn to_hugging_face(name: &str) -> Option<String> {
    let Some(rest) = name.strip_prefix("blk.") else {
        let (stem, suffix) = split(name)?;
        let top = TOP.iter().find(|(gguf, _)| *gguf == stem)?;
        return Some(format!("{}.{suffix}", top.1));
    };
    let (layer, rest) = rest.split_once('.')?;
    let layer = layer_number(layer)?;
    // Some writers leave `.bias` off here.
    if rest == "exp_probs_b" || rest == "exp_probs_b.bias" {
        return Some(format!("model.layers.{layer}.{CORRECTION_BIAS}"));
    }
    let (stem, suffix) = split(rest)?;
    let found = LAYER.iter().find(|(gguf, _)| *gguf == stem)?;
    Some(format!("model.layers.{layer}.{}.{suffix}", found.1))
}

/// The GGUF name of a Hugging Face tensor, if it has one. One expert's tensor has none: GGUF merges them.
pub fn to_gguf(name: &str) -> Option<String> {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        let (stem, suffix) = split(name)?;
        let top = TOP.iter().find(|(_, hf)| *hf == stem)?;
        return Some(format!("{}.{suffix}", top.0));
    };
    let (layer, rest) = rest.split_once('.')?;
    let layer = layer_number(layer)?;
    if rest == CORRECTION_BIAS {
        return Some(format!("blk.{layer}.exp_probs_b.bias"));
    }
    let (stem, suffix) = split(rest)?;
    let found = LAYER.iter().find(|(_, hf)| *hf == stem)?;
    Some(format!("blk.{layer}.{}.{suffix}", found.0))
}

/// The layer of `model.layers.<layer>.`, if the name has one.
pub fn layer_of(name: &str) -> Option<usize> {
    layer_number(name.strip_prefix("model.layers.")?.split('.').next()?)
}

fn layer_number(text: &str) -> Option<usize> {
    let canonical = text == "0" || !text.starts_with('0');
    text.parse().ok().filter(|_| canonical && text.bytes().all(|b| b.is_ascii_digit()))
}

fn split(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_goes_both_ways() {
        for (gguf, hf) in LAYER {
            let (gguf, hf) = (format!("blk.61.{gguf}.weight"), format!("model.layers.61.{hf}.weight"));
            assert_eq!(to_hugging_face(&gguf).as_deref(), Some(hf.as_str()));
            assert_eq!(to_gguf(&hf).as_deref(), Some(gguf.as_str()));
        }
        for (gguf, hf) in TOP {
            assert_eq!(to_hugging_face(&format!("{gguf}.weight")), Some(format!("{hf}.weight")));
            assert_eq!(to_gguf(&format!("{hf}.weight")), Some(format!("{gguf}.weight")));
        }
        assert_eq!(
            to_hugging_face("blk.3.exp_probs_b.bias").as_deref(),
            Some("model.layers.3.mlp.gate.e_score_correction_bias")
        );
        assert_eq!(
            to_hugging_face("blk.3.attn_q.bias").as_deref(),
            Some("model.layers.3.self_attn.q_proj.bias")
        );
    }

    #[test]
    fn others_have_none() {
        for name in [
            "",
            "blk",
            "blk.",
            "blk.x.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.0.attn_q",
            "rope_freqs.weight",
        ] {
            assert_eq!(to_hugging_face(name), None, "{name}");
        }
        assert_eq!(to_gguf("model.layers.0.mlp.experts.3.gate_proj.weight"), None);
        assert_eq!(layer_of("model.layers.12.mlp.gate.weight"), Some(12));
        assert_eq!(layer_of("model.norm.weight"), None);
    }
}
