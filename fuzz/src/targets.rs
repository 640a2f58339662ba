//! What is fed, and with what it begins.

use std::cell::RefCell;
use std::path::PathBuf;

use deephold_testkit::{
    GOLDEN_MODELS, SyntheticModel, TempDir, golden_dir, guide_dir, shared, skip_without_shared,
};
use deephold_tokenizer::{ChatFormat, ChatTemplate, RenderOptions, Tokenizer};
use deephold_weights::quantize::{self, QuantFormat};
use deephold_weights::{Checkpoint, config, gguf, safetensors, verify};

/// A reader of foreign bytes.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Good inputs.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Must neither panic nor hang, whatever it gets.
    pub(crate) run: fn(&[u8]),
    /// What it may allocate at once for an empty input.
    pub(crate) base_bytes: usize,
}

pub(crate) const TARGETS: [Target; 6] = [
    Target { name: "safetensors", seeds: safetensors_seeds, run: safetensors_run, base_bytes: 1 << 20 },
    Target { name: "gguf", seeds: gguf_seeds, run: gguf_run, base_bytes: 8 << 20 },
    Target { name: "config", seeds: config_seeds, run: config_run, base_bytes: 8 << 20 },
    Target { name: "tokenizer", seeds: tokenizer_seeds, run: tokenizer_run, base_bytes: 8 << 20 },
    // Rendered text may be long by right: its own limit is 64 MiB.
    Target { name: "template", seeds: template_seeds, run: template_run, base_bytes: 256 << 20 },
    Target { name: "manifest", seeds: manifest_seeds, run: manifest_run, base_bytes: 1 << 20 },
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

/// A tiny model that every reader takes, in files of some kilobytes.
fn tiny_folder() -> PathBuf {
    let folder = in_folder("tiny");
    if !folder.join("config.json").is_file() {
        std::fs::create_dir_all(&folder).expect("folder");
        SyntheticModel::random_llama_256(1).write(&folder);
    }
    folder
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    // The header and a little of the data: most damage should meet the header.
    let cut = |bytes: Vec<u8>| {
        let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        bytes[..(8 + header + 512).min(bytes.len())].to_vec()
    };
    let golden =
        ["r1-distill-qwen-tied", "v2-lite"].map(|name| cut(read(golden_dir(name).join("model.safetensors"))));
    golden.into_iter().chain([cut(read(tiny_folder().join("model.safetensors")))]).collect()
}

fn safetensors_run(bytes: &[u8]) {
    // Lengths may lie about the file; data of the right length must not be needed to see it.
    let _ = safetensors::parse_header(bytes, bytes.len() as u64);
    let _ = safetensors::parse_header(bytes, u64::MAX);
}

fn gguf_seeds() -> Vec<Vec<u8>> {
    let guide = Checkpoint::open(&guide_dir()).expect("guide");
    let tiny = Checkpoint::open(&tiny_folder()).expect("tiny model");
    let written = [(&tiny, QuantFormat::Q4_K_M, "a.gguf"), (&guide, QuantFormat::Q8_0, "b.gguf")];
    written
        .into_iter()
        .map(|(model, format, name)| {
            let path = in_folder(name);
            let _ = std::fs::remove_file(&path);
            let mut go_on = |_: quantize::QuantProgress<'_>| std::ops::ControlFlow::Continue(());
            quantize::run(model, &path, format, &mut go_on).expect("quantized");
            let mut bytes = read(path);
            // Metadata, names and the beginning of the data.
            bytes.truncate(160 << 10);
            bytes
        })
        .collect()
}

fn gguf_run(bytes: &[u8]) {
    let Ok(file) = gguf::parse(bytes) else { return };
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
    }
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

fn config_run(bytes: &[u8]) {
    let _ = config::parse(bytes);
    let folder = tiny_folder();
    let config = folder.join("config.json");
    if std::fs::write(&config, bytes).is_ok()
        && let Ok(checkpoint) = Checkpoint::open_for_verify(&folder)
    {
        describe(&checkpoint);
    }
}

fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let stories = (!skip_without_shared()).then(|| read(shared("models/stories260k/tokenizer.json")));
    [read(guide_dir().join("tokenizer.json"))].into_iter().chain(stories).collect()
}

fn tokenizer_run(bytes: &[u8]) {
    if let Ok(t) = Tokenizer::from_json(bytes, None) {
        let _ = t.encode_prompt("Once upon a time 你好 🦀\n\n  x").map(|ids| t.decode(&ids));
    }
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

fn template_run(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = ChatTemplate::with_markers(source, Some("<s>".into()), Some("</s>".into())) else {
        return;
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
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let digest = "0".repeat(64);
    vec![
        format!(r#"{{"format":1,"files":[{{"path":"model.safetensors","bytes":5,"sha256":"{digest}"}}]}}"#)
            .into_bytes(),
        br#"{"format":1,"files":[]}"#.to_vec(),
    ]
}

fn manifest_run(bytes: &[u8]) {
    let path = in_folder("manifest.json");
    if std::fs::write(&path, bytes).is_ok() {
        let _ = verify::read_manifest(&path);
    }
}
