//! What is fed, and with what it begins.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use deephold_audit::{AuditLog, Filter, FsyncPolicy, Options, Reader, SigningKey};
use deephold_base::ManualClock;
use deephold_quant::DType;
use deephold_testkit::{
    GOLDEN_MODELS, SyntheticModel, TempDir, golden_dir, guide_dir, shared, skip_without_shared,
};
use deephold_tokenizer::{ChatFormat, ChatTemplate, RenderOptions, Tokenizer};
use deephold_weights::quantize::{self, QuantFormat};
use deephold_weights::safetensors::OwnedTensor;
use deephold_weights::verify::VerifyOptions;
use deephold_weights::{Checkpoint, config, gguf, safetensors, verify};

use crate::answers::{dialect_run, dialect_seeds, grammar_run, grammar_seeds, sampler_run, sampler_seeds};

/// A reader of foreign bytes.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Good inputs.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Must neither panic nor hang, whatever it gets. Says whether the reader took it: of a good input it must, or the damage
    /// of it would be refused at the door.
    pub(crate) run: fn(&[u8]) -> bool,
    /// What it may allocate at once for an empty input.
    pub(crate) base_bytes: usize,
}

pub(crate) const TARGETS: [Target; 11] = [
    Target { name: "safetensors", seeds: safetensors_seeds, run: safetensors_run, base_bytes: 1 << 20 },
    Target { name: "gguf", seeds: gguf_seeds, run: gguf_run, base_bytes: 8 << 20 },
    Target { name: "config", seeds: config_seeds, run: config_run, base_bytes: 8 << 20 },
    Target { name: "tokenizer", seeds: tokenizer_seeds, run: tokenizer_run, base_bytes: 8 << 20 },
    // What a template builds may be long by right: its own limit is 256 MiB in all.
    Target { name: "template", seeds: template_seeds, run: template_run, base_bytes: 256 << 20 },
    Target { name: "manifest", seeds: manifest_seeds, run: manifest_run, base_bytes: 1 << 20 },
    Target { name: "index", seeds: index_seeds, run: index_run, base_bytes: 8 << 20 },
    Target { name: "audit", seeds: audit_seeds, run: audit_run, base_bytes: 8 << 20 },
    Target { name: "dialect", seeds: dialect_seeds, run: dialect_run, base_bytes: 1 << 20 },
    Target { name: "grammar", seeds: grammar_seeds, run: grammar_run, base_bytes: 64 << 20 },
    Target { name: "sampler", seeds: sampler_seeds, run: sampler_run, base_bytes: 1 << 20 },
];

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// A folder that lives as long as the thread.
fn in_folder(name: &str) -> PathBuf {
    FOLDER.with_borrow_mut(|f| f.get_or_insert_with(|| TempDir::new("fuzz")).join(name))
}

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A tiny model that every reader takes, in a folder of the target's own: targets damage what they are given.
fn tiny_folder(target: &str) -> PathBuf {
    let folder = in_folder(target);
    if !folder.exists() {
        std::fs::create_dir_all(&folder).expect("folder");
        SyntheticModel::random_llama_256(1).write(&folder);
    }
    folder
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    let tensor = |name: &str, dtype: DType, shape: &[usize]| {
        let bytes = dtype.bytes_for(shape.iter().product()).expect("whole blocks");
        let data = (0..bytes).map(|i| i as u8).collect();
        OwnedTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), data }
    };
    let few = [
        tensor("model.embed_tokens.weight", DType::BF16, &[8, 4]),
        tensor("model.layers.0.self_attn.q_proj.weight", DType::F8E4M3, &[4, 4]),
        tensor("model.layers.0.self_attn.q_proj.weight_scale_inv", DType::F32, &[1, 1]),
        tensor("model.norm.weight", DType::F16, &[4]),
    ];
    let path = in_folder("seed.safetensors");
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::write(&path, &few, &metadata).expect("written");
    // And as others write them.
    vec![read(path), read(golden_dir("r1-distill-qwen-tied").join("model.safetensors"))]
}

fn safetensors_run(bytes: &[u8]) -> bool {
    // Lengths may lie about the file; data of the right length must not be needed to see it.
    let whole = safetensors::parse_header(bytes, bytes.len() as u64);
    whole.is_ok() | safetensors::parse_header(bytes, u64::MAX).is_ok()
}

fn gguf_seeds() -> Vec<Vec<u8>> {
    let written = |model: &Checkpoint, format, name| {
        let path = in_folder(name);
        let _ = std::fs::remove_file(&path);
        let mut go_on = |_: quantize::QuantProgress<'_>| std::ops::ControlFlow::Continue(());
        quantize::run(model, &path, format, &mut go_on).expect("quantized");
        read(path)
    };
    let golden = Checkpoint::open(&golden_dir("r1-distill-qwen-tied")).expect("a golden model");
    let guide = Checkpoint::open(&guide_dir()).expect("guide");
    // The vocabulary without the weights: most damage should meet what is read.
    let guide = written(&guide, QuantFormat::Q8_0, "guide.gguf");
    let metadata = gguf::parse(&guide).expect("GGUF").metadata;
    let vocabulary = gguf::Writer::begin(Vec::new(), &metadata, &[]).expect("written").into_inner();
    vec![written(&golden, QuantFormat::Q8_0, "golden.gguf"), vocabulary]
}

fn gguf_run(bytes: &[u8]) -> bool {
    let Ok(file) = gguf::parse(bytes) else { return false };
    if let Some(vocab) = deephold_weights::GgufVocab::from_metadata(&file.metadata)
        && let Ok(t) = Tokenizer::from_gguf(&vocab)
    {
        let _ = t.encode_prompt("Hello 你好\n").map(|ids| t.decode(&ids));
    }
    let path = in_folder("fuzzed.gguf");
    if std::fs::write(&path, bytes).is_ok()
        && let Ok(checkpoint) = Checkpoint::open_for_verify(&path)
    {
        describe(&checkpoint);
        return true;
    }
    false
}

fn describe(checkpoint: &Checkpoint) {
    let _ = deephold_models::describe(checkpoint);
    let _ = deephold_models::expected_tensors(checkpoint);
    for info in checkpoint.tensors().filter(|t| t.elements() < 1 << 16).take(8) {
        let _ = checkpoint.tensor(&info.name).map(|v| v.to_f32());
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    let both = ["config.json", "config.older.json"];
    GOLDEN_MODELS.iter().flat_map(|name| both.map(|file| read(golden_dir(name).join(file)))).collect()
}

fn config_run(bytes: &[u8]) -> bool {
    let is_object = config::parse(bytes).is_ok();
    let folder = tiny_folder("config");
    let config = folder.join("config.json");
    if std::fs::write(&config, bytes).is_ok()
        && let Ok(checkpoint) = Checkpoint::open_for_verify(&folder)
    {
        describe(&checkpoint);
    }
    is_object
}

fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let stories = (!skip_without_shared()).then(|| read(shared("models/stories260k/tokenizer.json")));
    [read(guide_dir().join("tokenizer.json"))].into_iter().chain(stories).collect()
}

fn tokenizer_run(bytes: &[u8]) -> bool {
    let Ok(t) = Tokenizer::from_json(bytes, None) else { return false };
    let text = "Once upon a time 你好 🦀\n\n  x";
    let Ok(ids) = t.encode_prompt(text) else { return false };
    assert!(t.least_tokens(text) <= ids.len(), "{} tokens", ids.len());
    t.decode(&ids);
    true
}

fn template_seeds() -> Vec<Vec<u8>> {
    let guide = Checkpoint::open(&guide_dir()).expect("guide");
    let mut seeds = vec![guide.chat_template().expect("a template").as_bytes().to_vec()];
    if !skip_without_shared() {
        let names = ["qwen2.5", "qwen3", "r1-distill-llama", "r1-tools", "v3.1", "v3.2"];
        seeds.extend(names.map(|n| read(shared(&format!("golden/chat/{n}.jinja")))));
    }
    seeds
}

fn template_run(bytes: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(bytes) else { return false };
    let Ok(template) = ChatTemplate::with_markers(source, Some("<s>".into()), Some("</s>".into())) else {
        return false;
    };
    let messages = serde_json::json!([
        { "role": "system", "content": "s" },
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": "<think>t</think>a", "tool_calls": [
            { "type": "function", "function": { "name": "f", "arguments": { "x": [1, null] } } }] },
        { "role": "tool", "content": "r" },
        { "role": "user", "content": "q" },
    ]);
    let options =
        RenderOptions { add_generation_prompt: true, thinking: Some(true), ..RenderOptions::default() };
    let _ = ChatFormat::Template(Box::new(template)).render(&messages, &options);
    true
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let model = Checkpoint::open(&tiny_folder("manifest")).expect("tiny model");
    let mut go_on = |_: verify::VerifyProgress| std::ops::ControlFlow::Continue(());
    let report = verify::check(&model, None, VerifyOptions::default(), &mut go_on).expect("checked");
    let path = verify::write_manifest(&model, &report).expect("written");
    let seed = read(path.clone());
    std::fs::remove_file(path).expect("removed");
    vec![seed]
}

fn manifest_run(bytes: &[u8]) -> bool {
    let path = in_folder("manifest.json");
    std::fs::write(&path, bytes).is_ok() && verify::read_manifest(&path).is_ok_and(|m| m.is_some())
}

const SHARD: &str = "model-00001-of-00001.safetensors";

/// A folder whose weights are named by an index.
fn sharded_folder() -> PathBuf {
    let folder = tiny_folder("sharded");
    let single = folder.join("model.safetensors");
    if single.exists() {
        std::fs::rename(single, folder.join(SHARD)).expect("renamed");
    }
    folder
}

fn index_seeds() -> Vec<Vec<u8>> {
    let model = Checkpoint::open(&tiny_folder("indexed")).expect("tiny model");
    let map: serde_json::Map<String, serde_json::Value> =
        model.tensors().map(|t| (t.name.clone(), SHARD.into())).collect();
    let index = serde_json::json!({ "metadata": { "total_size": model.tensor_bytes() }, "weight_map": map });
    vec![index.to_string().into_bytes()]
}

fn index_run(bytes: &[u8]) -> bool {
    let folder = sharded_folder();
    if std::fs::write(folder.join("model.safetensors.index.json"), bytes).is_err() {
        return false;
    }
    let Ok(checkpoint) = Checkpoint::open_for_verify(&folder) else { return false };
    describe(&checkpoint);
    checkpoint.problems().is_empty()
}

/// A short log with some checkpoints, and the key that it is checked with.
fn log_folder() -> (PathBuf, [u8; 32]) {
    let (folder, key) = (in_folder("audit"), in_folder("audit.key"));
    let signing = SigningKey::open_or_create(&key).expect("key");
    let public = signing.public_key();
    if !folder.exists() {
        let options = Options { checkpoint_every: 5, fsync: FsyncPolicy::Never, ..Options::default() };
        let log = AuditLog::open(&folder, signing, options, Arc::new(ManualClock::default())).expect("log");
        for i in 0..12 {
            let data = serde_json::json!({ "tenant": "t", "n": i, "text": "line\nbreak" });
            log.append("request", &data).expect("appended");
        }
    }
    (folder, public)
}

fn audit_seeds() -> Vec<Vec<u8>> {
    vec![read(log_folder().0.join(segment_of(&log_folder().0)))]
}

fn segment_of(folder: &std::path::Path) -> String {
    let names = std::fs::read_dir(folder).expect("folder").flatten();
    let mut names = names.filter_map(|e| e.file_name().into_string().ok());
    names.find(|n| n.ends_with(".jsonl")).expect("a segment")
}

fn audit_run(bytes: &[u8]) -> bool {
    let (folder, key) = log_folder();
    if std::fs::write(folder.join(segment_of(&folder)), bytes).is_err() {
        return false;
    }
    let _ = Reader::new(&folder).newest(&Filter::default(), 10);
    deephold_audit::verify(&folder, &key, None).is_ok_and(|report| report.ok)
}
