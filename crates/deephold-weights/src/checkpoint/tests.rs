use std::collections::BTreeMap;
use std::path::Path;

use deephold_quant::DType;
use deephold_testkit::{TempDir, golden_dir, guide_dir, shared, skip_without_shared};
use serde_json::{Value as Json, json};

use super::*;
use crate::gguf::{Array, TensorPlan, Value, Writer};
use crate::safetensors::{self, OwnedTensor};

fn tensor(name: &str, values: &[f32]) -> OwnedTensor {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    OwnedTensor { name: name.into(), dtype: DType::F32, shape: vec![values.len()], data }
}

fn write_model(dir: &Path, file: &str, tensors: &[OwnedTensor]) {
    std::fs::write(dir.join("config.json"), r#"{"model_type": "llama"}"#).expect("write");
    safetensors::write(&dir.join(file), tensors, &BTreeMap::new()).expect("write");
}

fn write_index(dir: &Path, map: Json) {
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), index).expect("write");
}

#[test]
fn golden_folders_open() {
    for name in ["r1-distill-llama", "r1-distill-qwen-tied", "v2-lite", "v3", "v3.2", "v4"] {
        let c = Checkpoint::open(&golden_dir(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(c.kind(), Kind::HuggingFace);
        assert_eq!(c.files().len(), 1);
        assert_eq!(c.rope_style_hint(), RopeStyleHint::Half);
        let t = c.tensor("model.embed_tokens.weight").or(c.tensor("embed.weight")).expect("an embedding");
        assert_eq!(t.to_f32().expect("values").len(), t.info().elements());
        assert!(c.config()["architectures"][0].is_string());
    }
    let guide = Checkpoint::open(&guide_dir()).expect("the guide");
    assert!(guide.chat_template().expect("a template").contains("<｜User｜>"));
    assert!(guide.tokenizer_json().is_some() && guide.generation_config().is_some());
}

#[test]
fn shards_and_their_index() {
    let dir = TempDir::new("shards");
    write_model(dir.path(), "a.safetensors", &[tensor("x", &[1.0, 2.0])]);
    write_model(dir.path(), "b.safetensors", &[tensor("y", &[3.0])]);
    write_index(dir.path(), json!({"x": "a.safetensors", "y": "b.safetensors"}));
    let c = Checkpoint::open(dir.path()).expect("both");
    assert_eq!(c.tensor("y").expect("y").to_f32().expect("values"), [3.0]);
    assert_eq!(c.tensors().count(), 2);

    write_index(dir.path(), json!({"x": "a.safetensors", "y": "a.safetensors"}));
    let error = Checkpoint::open(dir.path()).expect_err("y is not in a").to_string();
    assert!(error.contains("`y`") && error.contains("a.safetensors"), "{error}");

    write_index(dir.path(), json!({"x": "a.safetensors", "y": "b.safetensors", "z": "c.safetensors"}));
    let error = Checkpoint::open(dir.path()).expect_err("no c");
    assert_eq!(error.code(), deephold_base::ErrorCode::NotFound);
    assert!(error.to_string().contains("c.safetensors"), "{error}");
    assert_eq!(Checkpoint::open_for_verify(dir.path()).expect("lenient").problems().len(), 1);
}

#[test]
fn an_index_stays_in_its_folder() {
    let dir = TempDir::new("traversal");
    write_model(dir.path(), "a.safetensors", &[tensor("x", &[1.0])]);
    for bad in [
        "../a.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/a.safetensors",
        "a\\b",
        "C:a",
        "./a.safetensors",
    ] {
        write_index(dir.path(), json!({"x": bad}));
        let error = Checkpoint::open(dir.path()).expect_err(bad).to_string();
        assert!(error.contains("not a file of this folder"), "{bad}: {error}");
    }
    write_index(dir.path(), json!({"x": 3}));
    assert!(Checkpoint::open(dir.path()).is_err());
}

#[test]
fn missing_things_are_named() {
    let dir = TempDir::new("empty");
    let error = Checkpoint::open(dir.path()).expect_err("no config").to_string();
    assert!(error.contains("config.json"), "{error}");
    std::fs::write(dir.join("config.json"), "{}").expect("write");
    let error = Checkpoint::open(dir.path()).expect_err("no weights").to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    std::fs::write(dir.join("model.safetensors"), b"").expect("write");
    assert!(Checkpoint::open(dir.path()).is_err());
    std::fs::write(dir.join("config.json"), "[]").expect("write");
    assert!(Checkpoint::open(dir.path()).is_err());
    let error = Checkpoint::open(&dir.join("nothing")).expect_err("no such");
    assert_eq!(error.code(), deephold_base::ErrorCode::NotFound);
}

fn write_gguf(path: &Path, pairs: &[(&str, Value)], tensors: &[(&str, DType, Vec<usize>, Vec<u8>)]) {
    let mut metadata = crate::gguf::Metadata::new();
    for (key, value) in pairs {
        metadata.set(*key, value.clone());
    }
    let plan: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| TensorPlan {
            name: (*name).into(),
            dtype: *dtype,
            shape: shape.clone(),
            bytes: data.len() as u64,
        })
        .collect();
    let mut w = Writer::begin(Vec::new(), &metadata, &plan).expect("write");
    for (_, _, _, data) in tensors {
        w.data(data).and_then(|()| w.pad()).expect("write");
    }
    std::fs::write(path, w.into_inner()).expect("write");
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn split_gguf_files_are_one_model() {
    let dir = TempDir::new("split");
    let part = |no: u16, count: u16| {
        vec![
            ("general.architecture", Value::text("qwen2")),
            ("split.no", Value::U16(no)),
            ("split.count", Value::U16(count)),
            ("split.tensors.count", Value::I32(2)),
        ]
    };
    let (a, b) = (dir.join("m-00001-of-00002.gguf"), dir.join("m-00002-of-00002.gguf"));
    write_gguf(&a, &part(0, 2), &[("token_embd.weight", DType::F32, vec![1, 2], f32s(&[1.0, 2.0]))]);
    let error = Checkpoint::open(&a).expect_err("half").to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    write_gguf(&b, &part(1, 2), &[("blk.0.attn_q.bias", DType::F32, vec![2], f32s(&[3.0, 4.0]))]);
    for path in [&a, &b, &dir.path().to_owned()] {
        let c = Checkpoint::open(path).expect("both");
        assert_eq!(c.kind(), Kind::Gguf);
        let bias = c.tensor("model.layers.0.self_attn.q_proj.bias").expect("the bias");
        assert_eq!(bias.to_f32().expect("values"), [3.0, 4.0]);
        assert_eq!(c.config()["tie_word_embeddings"], true);
    }
    write_gguf(&b, &part(0, 2), &[]);
    assert!(Checkpoint::open(&a).expect_err("mixed").to_string().contains("split.no"));
}

#[test]
fn faults_of_metadata_are_named_as_the_file_names_them() {
    let dir = TempDir::new("gguf-faults");
    let path = dir.join("m.gguf");
    for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for key in
            ["llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon", "llama.rope.scaling.factor"]
        {
            write_gguf(
                &path,
                &[("general.architecture", Value::text("llama")), (key, Value::F32(number))],
                &[],
            );
            let error = Checkpoint::open(&path).expect_err("not finite").to_string();
            assert!(error.contains(&format!("GGUF metadata: `{key}` is ")), "{error}");
        }
    }
    write_gguf(&path, &[("general.architecture", Value::text("llama"))], &[]);
    let c = Checkpoint::open(&path).expect("opens");
    assert_eq!(c.place_of("rope_scaling.factor"), ("GGUF metadata", "llama.rope.scaling.factor".to_owned()));
    assert_eq!(c.place_of("something"), ("GGUF metadata", "something".to_owned()));
}

/// Opening a pipe would wait for someone who writes; a device may have no end.
#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    let dir = TempDir::new("irregular");
    let pipe = dir.join("model.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    for path in [pipe.as_path(), Path::new("/dev/zero")] {
        let error = Checkpoint::open(path).expect_err("irregular").to_string();
        assert!(error.contains("a regular file is needed"), "{error}");
        assert!(crate::files::read_bounded(path, 10).is_err());
    }
    std::fs::write(dir.join("long"), "12345").expect("written");
    assert_eq!(crate::files::read_bounded(&dir.join("long"), 5).expect("fits"), b"12345");
    let error = crate::files::read_bounded(&dir.join("long"), 4).expect_err("too long").to_string();
    assert!(error.contains("more than 4 B"), "{error}");
}

#[test]
fn deepseek_metadata_becomes_a_config() {
    let dir = TempDir::new("deepseek2");
    let path = dir.join("m.gguf");
    let pairs = [
        ("general.architecture", Value::text("deepseek2")),
        ("deepseek2.block_count", Value::U32(4)),
        ("deepseek2.embedding_length", Value::U32(64)),
        ("deepseek2.attention.head_count", Value::U32(4)),
        ("deepseek2.attention.head_count_kv", Value::U32(1)),
        ("deepseek2.attention.key_length", Value::U32(40)),
        ("deepseek2.attention.key_length_mla", Value::U32(24)),
        ("deepseek2.attention.value_length", Value::U32(32)),
        ("deepseek2.attention.value_length_mla", Value::U32(16)),
        ("deepseek2.attention.kv_lora_rank", Value::U32(32)),
        ("deepseek2.rope.dimension_count", Value::U32(8)),
        ("deepseek2.rope.scaling.type", Value::text("yarn")),
        ("deepseek2.rope.scaling.factor", Value::F32(40.0)),
        ("deepseek2.rope.scaling.original_context_length", Value::U32(4096)),
        ("deepseek2.rope.scaling.yarn_log_multiplier", Value::F32(0.0707)),
        ("deepseek2.expert_count", Value::U32(8)),
        ("deepseek2.expert_gating_func", Value::U32(2)),
        ("deepseek2.expert_weights_norm", Value::Bool(true)),
        ("deepseek2.expert_weights_scale", Value::F32(2.5)),
        ("deepseek2.expert_group_count", Value::U32(4)),
        ("deepseek2.expert_group_used_count", Value::U32(2)),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(vec![b"a".to_vec(), b"b".to_vec()]))),
    ];
    write_gguf(&path, &pairs, &[]);
    let c = Checkpoint::open(&path).expect("a file");
    let config = c.config();
    assert_eq!(config["architectures"][0], "DeepseekV3ForCausalLM");
    assert_eq!(config["qk_nope_head_dim"], 16);
    assert_eq!(config["v_head_dim"], 16);
    assert_eq!(config["q_lora_rank"], Json::Null);
    assert_eq!(config["routed_scaling_factor"], 2.5);
    assert_eq!((&config["n_group"], &config["topk_group"]), (&json!(4), &json!(2)));
    assert_eq!(config["scoring_func"], "sigmoid");
    assert_eq!(config["vocab_size"], 2);
    let rope = &config["rope_scaling"];
    assert_eq!(rope["type"], "yarn");
    assert_eq!(rope["mscale_all_dim"], 0.707);
    assert_eq!(rope["original_max_position_embeddings"], 4096);
    assert_eq!(c.gguf_vocab().expect("a vocabulary").tokens.len(), 2);
}

#[test]
fn llama3_factors_become_their_scaling() {
    let dir = TempDir::new("llama3");
    let path = dir.join("m.gguf");
    let factors = gguf_config::llama3_factors(128, 500_000.0, 8.0, 1.0, 4.0, 8192.0);
    let pairs =
        [("general.architecture", Value::text("llama")), ("llama.rope.freq_base", Value::F32(500_000.0))];
    let write =
        |f: &[f32]| write_gguf(&path, &pairs, &[("rope_freqs.weight", DType::F32, vec![f.len()], f32s(f))]);
    write(&factors);
    let c = Checkpoint::open(&path).expect("a file");
    assert_eq!(c.rope_style_hint(), RopeStyleHint::Interleaved);
    assert_eq!(c.rope_factors().expect("factors"), factors);
    let rope = &c.config()["rope_scaling"];
    assert_eq!((&rope["rope_type"], &rope["factor"]), (&json!("llama3"), &json!(8.0)));
    assert_eq!(rope["original_max_position_embeddings"], 8192);
    let odd: Vec<f32> = (0..64).map(|i| 1.0 + i as f32).collect();
    write(&odd);
    let c = Checkpoint::open(&path).expect("a file");
    assert_eq!(c.config()["rope_scaling"]["rope_type"], "factors");
}

#[test]
fn published_vocabularies_open() {
    if skip_without_shared() {
        return;
    }
    for name in ["deepseek-llm", "deepseek-coder", "qwen2"] {
        let path = shared(&format!("golden/tokenizer/{name}/ggml-vocab-{name}.gguf"));
        let c = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let vocab = c.gguf_vocab().expect("a vocabulary");
        assert_eq!(vocab.model, "gpt2");
        assert_eq!(vocab.pre, name);
        assert!(vocab.tokens.len() > 30_000 && vocab.token_types.len() == vocab.tokens.len());
        assert!(!vocab.merges.is_empty());
    }
}
