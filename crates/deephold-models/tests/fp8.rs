//! FP8 weights in blocks, as DeepSeek publishes them: the logits of the dequantised model.

mod support;

use deephold_models::LoadOptions;
use deephold_testkit::{Golden, SyntheticModel, TempDir, assert_close, assert_same_bits};
use support::{load, logits, ops};

/// The linear layers of published files: projections and experts, not the router, the head or the embedding.
fn published(name: &str) -> bool {
    name.contains("_proj") && !name.contains("indexer.weights_proj")
}

fn fixture(mut synthetic: SyntheticModel) -> (TempDir, TempDir) {
    let plain = synthetic.to_fp8(published, deephold_quant::f32_to_f8e4m3, deephold_quant::f8e4m3_to_f32);
    let dirs = (TempDir::new("fp8"), TempDir::new("fp8-plain"));
    synthetic.write(dirs.0.path());
    plain.write(dirs.1.path());
    dirs
}

#[test]
fn logits_are_those_of_the_dequantised_model() {
    let ops = ops(2);
    let prompt = &Golden::load("v3").prompts[2].ids;
    let fixtures = [
        ("v3", SyntheticModel::golden("v3", true)),
        ("v3.2", SyntheticModel::golden("v3.2", true)),
        ("r1-distill-llama", SyntheticModel::golden("r1-distill-llama", false)),
        // Blocks of 128 x 128 in several rows and columns.
        ("random", SyntheticModel::random_deepseek_256(3)),
    ];
    for (name, synthetic) in fixtures {
        let (fp8, plain) = fixture(synthetic);
        let fp8 = load(fp8.path(), &ops, &LoadOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let plain =
            load(plain.path(), &ops, &LoadOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ids: Vec<u32> = prompt.iter().map(|id| id % 96).collect();
        let (a, b) = (logits(&*fp8, &ops, &ids, 7), logits(&*plain, &ops, &ids, 64));
        for (t, (a, b)) in a.iter().zip(&b).enumerate() {
            assert_close(a, b, 1e-4, &format!("{name}, position {t}"));
            // An FP8 weight times its scale is the same float in both, and sums have one order.
            assert_same_bits(a, b, &format!("{name}, position {t}"));
        }
        // Scales are no parameters.
        assert_eq!(fp8.info().parameters_total, plain.info().parameters_total, "{name}");
    }
}

#[test]
fn a_missing_scale_is_named() {
    let mut synthetic = SyntheticModel::golden("v3", true);
    synthetic.to_fp8(published, deephold_quant::f32_to_f8e4m3, deephold_quant::f8e4m3_to_f32);
    synthetic.tensors.remove("model.layers.1.self_attn.o_proj.weight_scale_inv");
    let dir = TempDir::new("fp8-scale");
    synthetic.write(dir.path());
    let Err(error) = load(dir.path(), &ops(1), &LoadOptions::default()) else { panic!("it loads") };
    assert!(error.to_string().contains("model.layers.1.self_attn.o_proj.weight_scale_inv"), "{error}");
}
