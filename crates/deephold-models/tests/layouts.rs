//! The layouts of GGUF files (merged experts, `kv_b_proj` in two parts) give the same bits as the published one.

mod support;

use std::path::Path;

use deephold_models::LoadOptions;
use deephold_quant::DType;
use deephold_testkit::{GOLDEN_MODELS, RawTensor, SyntheticModel, TempDir, assert_same_bits, golden_dir};
use deephold_weights::Checkpoint;
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
    for dir in [dir.path(), &golden_dir("v3")] {
        assert_foretold(dir, None);
    }
    assert_eq!(merged.info().parameters_total, plain.info().parameters_total);
    assert_eq!(merged.info().parameters_active, plain.info().parameters_active);
}

/// What `packed_bytes` says from headers is what loading takes.
fn assert_foretold(path: &Path, quantize_to: Option<DType>) {
    let options = LoadOptions { quantize_to };
    let model = load(path, &ops(2), &options).expect("a model");
    let checkpoint = Checkpoint::open(path).expect("a checkpoint");
    let foretold = deephold_models::packed_bytes(&checkpoint, &options).expect("a size");
    assert_eq!(foretold, model.info().packed_bytes, "{} as {quantize_to:?}", path.display());
}

#[test]
fn the_size_in_memory_is_foretold() {
    for name in GOLDEN_MODELS {
        for to in [None, Some(DType::Q8_0), Some(DType::Q4_1), Some(DType::F32)] {
            assert_foretold(&golden_dir(name), to);
        }
    }
    let dir = TempDir::new("foretold");
    for mut synthetic in [SyntheticModel::random_llama_256(5), SyntheticModel::random_deepseek_256(6)] {
        synthetic.write(dir.path());
        for to in [DType::Q2K, DType::Q4K, DType::Q5K, DType::Q6K, DType::IQ4XS] {
            assert_foretold(dir.path(), Some(to));
        }
        let is_projection = |name: &str| name.contains("_proj");
        synthetic.to_fp8(is_projection, deephold_quant::f32_to_f8e4m3, deephold_quant::f8e4m3_to_f32);
        synthetic.write(dir.path());
        assert_foretold(dir.path(), None);
        assert_foretold(dir.path(), Some(DType::Q8_0));
    }
}
