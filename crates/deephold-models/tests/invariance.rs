//! A request's logits are the same bits whatever the threads, the batch and the chunking, in every weight format.

mod support;

use deephold_models::{LoadOptions, Model};
use deephold_quant::DType;
use deephold_testkit::{GOLDEN_MODELS, Rng, SyntheticModel, TempDir, assert_same_bits, golden_dir};
use support::{Driver, load, logits, ops};

/// Random prompts, the last one long enough for several cache blocks and for V3.2's selection.
fn prompts(rng: &mut Rng, vocab: usize) -> Vec<Vec<u32>> {
    let lengths = [1 + rng.below(3), 5 + rng.below(20), 30 + rng.below(30), 60 + rng.below(12)];
    lengths.iter().map(|n| (0..*n).map(|_| rng.below(vocab) as u32).collect()).collect()
}

/// Computes all prompts in random mixes of random chunks, some sequences joining late.
fn random_mix(model: &dyn Model, threads: usize, prompts: &[Vec<u32>], rng: &mut Rng) -> Vec<Vec<Vec<f32>>> {
    let ops = ops(threads);
    let mut driver = Driver::new(model, &ops);
    let sequences: Vec<usize> = prompts.iter().map(|p| driver.add(p)).collect();
    let mut out = vec![Vec::new(); prompts.len()];
    while sequences.iter().any(|s| driver.pending(*s) > 0) {
        let mut parts = Vec::new();
        for s in &sequences {
            let pending = driver.pending(*s);
            if pending > 0 && rng.below(3) > 0 {
                parts.push((*s, 1 + rng.below(pending.min(25))));
            }
        }
        for i in (1..parts.len()).rev() {
            parts.swap(i, rng.below(i + 1));
        }
        let mut rows = driver.step(&parts).into_iter();
        for (s, n) in parts {
            out[s].extend(rows.by_ref().take(n));
        }
    }
    out
}

fn check(model: &dyn Model, seed: u64, mixes: usize, what: &str) {
    let mut rng = Rng::new(seed);
    let prompts = prompts(&mut rng, model.info().vocab_size);
    let one = ops(1);
    let alone: Vec<_> = prompts.iter().map(|p| logits(model, &one, p, usize::MAX)).collect();
    for mix in 0..mixes {
        let threads = [1, 2, 3, 7][mix % 4];
        let mixed = random_mix(model, threads, &prompts, &mut rng);
        for (i, (a, e)) in mixed.iter().zip(&alone).enumerate() {
            assert_eq!(a.len(), e.len());
            for (t, (a, e)) in a.iter().zip(e).enumerate() {
                assert_same_bits(
                    a,
                    e,
                    &format!("{what}, mix {mix}, {threads} threads, prompt {i}, position {t}"),
                );
            }
        }
    }
}

#[test]
fn every_family() {
    for (i, name) in GOLDEN_MODELS.iter().enumerate() {
        let model = load(&golden_dir(name), &ops(2), &LoadOptions::default()).expect("a model");
        check(&*model, i as u64, 4, name);
    }
}

#[test]
fn formats_in_blocks_of_32() {
    // V2's widths of 40 and 48 are not whole blocks: those matrices stay bf16, and both kinds meet in one model.
    for dtype in [
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::IQ4NL,
        DType::F16,
        DType::F32,
    ] {
        for (i, name) in ["r1-distill-qwen", "v3"].iter().enumerate() {
            let options = LoadOptions { quantize_to: Some(dtype) };
            let model = load(&golden_dir(name), &ops(2), &options).expect("a model");
            check(&*model, 100 + i as u64, 2, &format!("{name} in {}", dtype.name()));
        }
    }
}

#[test]
fn formats_in_blocks_of_256() {
    let k_quants = [DType::Q2K, DType::Q3K, DType::Q4K, DType::Q5K, DType::Q6K, DType::IQ4XS];
    let models = [SyntheticModel::random_llama_256(5), SyntheticModel::random_deepseek_256(6)];
    for (i, synthetic) in models.iter().enumerate() {
        let dir = TempDir::new("invariance");
        synthetic.write(dir.path());
        for dtype in k_quants {
            let options = LoadOptions { quantize_to: Some(dtype) };
            let model = load(dir.path(), &ops(2), &options).expect("a model");
            check(&*model, 200 + i as u64, 2, &format!("synthetic {i} in {}", dtype.name()));
        }
    }
}

#[test]
fn fp8() {
    let mut synthetic = SyntheticModel::random_deepseek_256(7);
    synthetic.to_fp8(
        |name| name.contains("_proj"),
        deephold_quant::f32_to_f8e4m3,
        deephold_quant::f8e4m3_to_f32,
    );
    let dir = TempDir::new("invariance-fp8");
    synthetic.write(dir.path());
    let model = load(dir.path(), &ops(2), &LoadOptions::default()).expect("a model");
    check(&*model, 300, 4, "FP8");
}
