//! What `model inspect` and `model verify` ask, and what loading refuses.

mod support;

use std::path::Path;

use deephold_kernels::CacheDType;
use deephold_models::{LoadOptions, ModelError, Progress, describe, expected_tensors};
use deephold_testkit::{GOLDEN_MODELS, RawTensor, SyntheticModel, TempDir, golden_dir};
use deephold_weights::Checkpoint;
use support::{load, ops};

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn refusal(synthetic: &SyntheticModel) -> ModelError {
    let dir = TempDir::new("describe");
    synthetic.write(dir.path());
    match load(dir.path(), &ops(1), &LoadOptions::default()) {
        Err(error) => error,
        Ok(_) => panic!("it loads"),
    }
}

#[test]
fn expected_tensors_are_those_of_every_golden_file() {
    for name in GOLDEN_MODELS {
        let checkpoint = open(&golden_dir(name));
        let mut expected: Vec<String> =
            expected_tensors(&checkpoint).expect(name).into_iter().map(|t| t.name).collect();
        let mut stored: Vec<String> = checkpoint.tensors().map(|t| t.name.clone()).collect();
        expected.sort();
        stored.sort();
        assert_eq!(expected, stored, "{name}");
    }
}

/// What a GGUF file lacks or has wrong is named by its own key.
#[test]
fn faults_of_gguf_metadata_name_its_keys() {
    use deephold_weights::gguf::{Metadata, Value, Writer};
    let dir = TempDir::new("gguf-keys");
    let path = dir.join("m.gguf");
    let complaint = |pairs: &[(&str, Value)]| {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", Value::text("qwen2"));
        pairs.iter().for_each(|(key, value)| metadata.set(format!("qwen2.{key}"), value.clone()));
        let file = Writer::begin(Vec::new(), &metadata, &[]).expect("written").into_inner();
        std::fs::write(&path, file).expect("written");
        describe(&open(&path)).expect("described").unsupported.join("\n")
    };
    let without = complaint(&[]);
    assert!(without.contains("GGUF metadata: `qwen2.embedding_length` is missing"), "{without}");
    let zero = complaint(&[("embedding_length", Value::U32(0))]);
    assert!(zero.contains("GGUF metadata: `qwen2.embedding_length` must be at least 1"), "{zero}");
}

#[test]
fn v3_is_described() {
    let description = describe(&open(&golden_dir("v3"))).expect("a description");
    assert_eq!(description.architecture, "DeepseekV3ForCausalLM");
    assert!(description.unsupported.is_empty(), "{:?}", description.unsupported);
    assert_eq!(description.formats.len(), 1);
    assert_eq!(description.formats[0].dtype, "BF16");
    let info = description.info.expect("supported");
    assert_eq!(info.parameters_total, description.formats[0].parameters);
    assert_eq!(description.weights_bytes, 2 * info.parameters_total);
    // Two layers with 16 experts of which 4 work: 12 x 3 x 48 x 64 idle values each.
    assert_eq!(info.parameters_total - info.parameters_active, 2 * 12 * 3 * 48 * 64);
    // Three layers of latent 32 and rope key 8.
    assert_eq!(info.cache_bytes_per_token(CacheDType::F32), 3 * (32 + 8) * 4);
    assert_eq!(info.max_model_len, 512);
    assert!(info.notes.iter().any(|n| n.contains("multi-token")), "{:?}", info.notes);
}

#[test]
fn v4_is_described_as_not_supported() {
    let description = describe(&open(&golden_dir("v4"))).expect("a description");
    assert!(description.info.is_none());
    assert!(description.unsupported[0].contains("comes next"), "{:?}", description.unsupported);
}

#[test]
fn a_prediction_layer_and_old_buffers_are_reported_and_ignored() {
    let mut synthetic = SyntheticModel::golden("v3", true);
    let extra = [
        "model.layers.3.eh_proj.weight",
        "model.layers.3.enorm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ];
    for name in extra {
        synthetic.tensors.insert(name.into(), RawTensor::f32(&[4], &[0.0; 4]));
    }
    let dir = TempDir::new("mtp");
    synthetic.write(dir.path());
    let model = load(dir.path(), &ops(1), &LoadOptions::default()).expect("a model");
    let notes = model.info().notes.join("; ");
    assert!(notes.contains("1 multi-token-prediction layer(s) in the files"), "{notes}");
    assert!(notes.contains("1 buffer(s)"), "{notes}");
    assert!(model.info().packed_bytes > 0);
}

#[test]
fn a_missing_tensor_is_named() {
    let mut synthetic = SyntheticModel::golden("v3", true);
    synthetic.tensors.remove("model.layers.2.mlp.experts.11.up_proj.weight");
    let error = refusal(&synthetic);
    assert!(matches!(error, ModelError::MissingTensor { .. }));
    assert!(error.to_string().contains("model.layers.2.mlp.experts.11.up_proj.weight"), "{error}");
}

#[test]
fn a_wrong_shape_is_named() {
    let mut synthetic = SyntheticModel::golden("v3", true);
    synthetic.config["kv_lora_rank"] = 48.into();
    let error = refusal(&synthetic).to_string();
    assert!(
        error.contains("kv_a_proj_with_mqa") && error.contains("[40, 64]") && error.contains("[56, 64]"),
        "{error}"
    );
}

#[test]
fn nan_in_a_norm_is_named() {
    let mut synthetic = SyntheticModel::golden("r1-distill-qwen", true);
    let mut values = synthetic.tensors["model.norm.weight"].to_f32();
    values[5] = f32::NAN;
    synthetic.tensors.insert("model.norm.weight".into(), RawTensor::bf16(&[64], &values));
    let error = refusal(&synthetic);
    assert!(matches!(error, ModelError::NotFinite { at: 5, .. }), "{error}");
}

#[test]
fn whole_numbers_are_no_weights() {
    let mut synthetic = SyntheticModel::golden("r1-distill-qwen", true);
    let name = "model.layers.0.mlp.up_proj.weight";
    let shape = synthetic.tensors[name].shape.clone();
    let count = shape.iter().product();
    synthetic.tensors.insert(name.into(), RawTensor::u8("U8", &shape, vec![0; count]));
    let error = refusal(&synthetic);
    assert!(matches!(error, ModelError::Format { .. }), "{error}");
}

#[test]
fn progress_ends_at_the_total() {
    let checkpoint = std::sync::Arc::new(open(&golden_dir("v3.2")));
    let mut last = Progress { done_bytes: 0, total_bytes: 0 };
    let mut step = |p: Progress| {
        assert!(p.done_bytes >= last.done_bytes && p.done_bytes <= p.total_bytes);
        last = p;
    };
    deephold_models::load(&checkpoint, &ops(1), &LoadOptions::default(), &mut step).expect("a model");
    assert_eq!(last.done_bytes, last.total_bytes);
    assert!(last.total_bytes > 0);
}

#[test]
fn tokens_beyond_the_vocabulary_are_refused() {
    use deephold_kernels::{AttentionContext, KvCache, SeqRows};
    let ops = ops(1);
    let model = load(&golden_dir("v3"), &ops, &LoadOptions::default()).expect("a model");
    let cache = KvCache::new(&model.cache_layers(), 1, 16, CacheDType::F32).expect("a cache");
    let seqs = [SeqRows { rows: 0..1, num_computed: 0, block_table: vec![0] }];
    let ctx = AttentionContext::new(&ops, &cache, &seqs);
    assert!(matches!(model.forward(&ctx, &[320], &[0]), Err(ModelError::Token { token: 320, .. })));
    assert!(matches!(model.forward(&ctx, &[1], &[1]), Err(ModelError::Row { row: 1, rows: 1 })));
}
