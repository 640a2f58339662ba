//! The layouts of GGUF files (merged experts, `kv_b_proj` in two parts) give the same bits as the published one.

mod support;

use deephold_models::LoadOptions;
use deephold_testkit::{RawTensor, SyntheticModel, TempDir, assert_same_bits, golden_dir};
use support::{load, logits, ops};

/// V3's golden checkpoint with 3-D tensors.
fn merged() -> SyntheticModel {
    let mut m = SyntheticModel::golden("v3", true);
    let (heads, nope, v, r) = (4, 16, 16, 32);
    for layer in 0..3 {
        let a = format!("model.layers.{layer}.self_attn");
        let kv_b = m.tensors.remove(&format!("{a}.kv_b_proj.weight")).expect("kv_b_proj").to_f32();
        let (mut k_b, mut v_b) = (Vec::new(), Vec::new());
        for head in kv_b.chunks_exact((nope + v) * r) {
            let (k_rows, v_rows) = head.split_at(nope * r);
            k_b.extend((0..r).flat_map(|col| (0..nope).map(move |row| k_rows[row * r + col])));
            v_b.extend_from_slice(v_rows);
        }
        m.tensors.insert(format!("{a}.k_b_proj.weight"), RawTensor::bf16(&[heads, r, nope], &k_b));
        m.tensors.insert(format!("{a}.v_b_proj.weight"), RawTensor::bf16(&[heads, v, r], &v_b));
    }
    for layer in 1..3 {
        for (proj, n, k) in [("gate_proj", 48, 64), ("up_proj", 48, 64), ("down_proj", 64, 48)] {
            let p = format!("model.layers.{layer}.mlp.experts");
            let all: Vec<f32> = (0..16)
                .flat_map(|e| {
                    m.tensors.remove(&format!("{p}.{e}.{proj}.weight")).expect("an expert").to_f32()
                })
                .collect();
            m.tensors.insert(format!("{p}.{proj}.weight"), RawTensor::bf16(&[16, n, k], &all));
        }
    }
    m
}

#[test]
fn merged_experts_and_split_kv_b() {
    let ops = ops(2);
    let dir = TempDir::new("merged");
    merged().write(dir.path());
    let merged = load(dir.path(), &ops, &LoadOptions::default()).expect("a model");
    let plain = load(&golden_dir("v3"), &ops, &LoadOptions::default()).expect("a model");
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 320).collect();
    let (a, b) = (logits(&*merged, &ops, &ids, 9), logits(&*plain, &ops, &ids, 64));
    for (t, (a, b)) in a.iter().zip(&b).enumerate() {
        assert_same_bits(a, b, &format!("position {t}"));
    }
    assert_eq!(merged.info().parameters_total, plain.info().parameters_total);
    assert_eq!(merged.info().parameters_active, plain.info().parameters_active);
}
