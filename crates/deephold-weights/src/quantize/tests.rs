use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use deephold_quant::DType;
use deephold_testkit::{
    TempDir, assert_close, assert_same_bits, golden_dir, guide_dir, shared, skip_without_shared,
};
use serde_json::{Value as Json, json};

use super::*;
use crate::safetensors::{self, OwnedTensor};
use crate::{RopeStyleHint, fp8};

fn write(input: &Path, out: &Path, format: QuantFormat) -> QuantReport {
    let c = Checkpoint::open(input).expect("the input");
    run_with_threads(&c, out, format, 2, &mut |_| ControlFlow::Continue(())).expect("written")
}

fn both(dir: &TempDir, input: &Path, format: QuantFormat) -> (Checkpoint, Checkpoint) {
    let out = dir.join("out.gguf");
    write(input, &out, format);
    (Checkpoint::open(input).expect("the input"), Checkpoint::open(&out).expect("the result"))
}

fn values(c: &Checkpoint, name: &str) -> Vec<f32> {
    c.tensor_f32(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn folders() -> Vec<PathBuf> {
    let golden = [
        "r1-0528-qwen3",
        "r1-distill-llama",
        "r1-distill-qwen",
        "r1-distill-qwen-tied",
        "v2",
        "v2-lite",
        "v3",
        "v3.2",
    ];
    golden.iter().map(|g| golden_dir(g)).chain(trained()).collect()
}

/// The guide, and a trained Llama where `shared` stands.
fn trained() -> Vec<PathBuf> {
    let stories = (!skip_without_shared()).then(|| shared("models/stories260k"));
    [guide_dir()].into_iter().chain(stories).collect()
}

/// Numbers that must survive the way through GGUF metadata.
const NUMBERS: [&str; 22] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "routed_scaling_factor",
    "norm_topk_prob",
    "index_topk",
    "index_head_dim",
];

#[test]
fn configurations_survive() {
    let dir = TempDir::new("configs");
    for folder in folders() {
        let (hf, gguf) = both(&dir, &folder, QuantFormat::BF16);
        let (a, b) = (hf.config(), gguf.config());
        assert_eq!(a["architectures"], b["architectures"], "{}", folder.display());
        for key in NUMBERS.iter().filter(|key| a.get(**key).is_some()) {
            let same = match (a[*key].as_f64(), b[*key].as_f64()) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * a.abs(),
                _ => a[*key] == b[*key],
            };
            assert!(same, "{}: {key}: {} and {}", folder.display(), a[*key], b[*key]);
        }
        let tied = a["tie_word_embeddings"].as_bool().unwrap_or(false);
        assert_eq!(b["tie_word_embeddings"], tied);
        assert_eq!(b["rope_theta"].as_f64(), a["rope_parameters"]["rope_theta"].as_f64());
        let kind = a["rope_parameters"]["rope_type"].as_str().filter(|k| *k != "default");
        let scaling = &b["rope_scaling"];
        assert_eq!(scaling["rope_type"].as_str(), kind, "{}", folder.display());
        for key in ["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"] {
            assert_eq!(
                scaling[key].as_f64(),
                a["rope_parameters"][key].as_f64(),
                "{}: {key}",
                folder.display()
            );
        }
        if hf.config()["kv_lora_rank"].is_u64() && kind.is_some() {
            assert_eq!(scaling["mscale_all_dim"], a["rope_parameters"]["mscale_all_dim"]);
        }
        if a["n_group"].as_u64().is_some_and(|g| g > 1) {
            assert_eq!((&a["n_group"], &a["topk_group"]), (&b["n_group"], &b["topk_group"]));
        }
    }
}

#[test]
fn qwen3_keeps_its_attention_factor() {
    // mscale = mscale_all_dim = 1 makes the factor 1, where yarn alone would give 1 + 0.1 ln 4.
    let dir = TempDir::new("attention-factor");
    let (_, gguf) = both(&dir, &golden_dir("r1-0528-qwen3"), QuantFormat::BF16);
    assert_eq!(gguf.config()["rope_scaling"]["attention_factor"], 1.0);
}

#[test]
fn bf16_is_exact_and_heads_are_cut() {
    let dir = TempDir::new("bf16");
    for name in ["v2", "v2-lite", "v3", "v3.2"] {
        let (hf, gguf) = both(&dir, &golden_dir(name), QuantFormat::BF16);
        let (heads, nope, v, r) = (4, 16, 16, 32);
        for info in hf.tensors() {
            if info.name.contains(".mlp.experts.") || info.name.ends_with("kv_b_proj.weight") {
                continue;
            }
            assert_same_bits(&values(&gguf, &info.name), &values(&hf, &info.name), &info.name);
        }
        for layer in 0..3 {
            let a = format!("model.layers.{layer}.self_attn");
            let kv_b = values(&hf, &format!("{a}.kv_b_proj.weight"));
            let (k_b, v_b) = (format!("{a}.k_b_proj.weight"), format!("{a}.v_b_proj.weight"));
            assert_eq!(gguf.tensor(&k_b).expect("k_b").info().shape, [heads, r, nope]);
            assert_eq!(gguf.tensor(&v_b).expect("v_b").info().shape, [heads, v, r]);
            let (k_b, v_b) = (values(&gguf, &k_b), values(&gguf, &v_b));
            for head in 0..heads {
                let rows = &kv_b[head * (nope + v) * r..];
                for (i, j) in (0..nope).flat_map(|i| (0..r).map(move |j| (i, j))) {
                    assert_eq!(k_b[(head * r + j) * nope + i], rows[i * r + j]);
                }
                assert_eq!(v_b[head * v * r..][..v * r], rows[nope * r..][..v * r]);
            }
        }
        let merged = gguf.tensor("model.layers.1.mlp.experts.down_proj.weight").expect("merged");
        let experts = merged.info().shape[0];
        assert_eq!(experts as u64, hf.config()["n_routed_experts"].as_u64().expect("a number"));
        for e in 0..experts {
            let one = hf.tensor(&format!("model.layers.1.mlp.experts.{e}.down_proj.weight")).expect("one");
            assert_eq!(merged.expert(e).expect("a part"), one.bytes(), "expert {e}");
        }
        assert!(merged.expert(experts).is_err());
    }
}

#[test]
fn llama_rows_are_paired() {
    let dir = TempDir::new("llama");
    let (hf, gguf) = both(&dir, &golden_dir("r1-distill-llama"), QuantFormat::BF16);
    assert_eq!(gguf.rope_style_hint(), RopeStyleHint::Interleaved);
    let (d, k) = (16, 64);
    for (name, heads) in [("q_proj", 4), ("k_proj", 2)] {
        let name = format!("model.layers.2.self_attn.{name}.weight");
        let (a, b) = (values(&hf, &name), values(&gguf, &name));
        for (head, i) in (0..heads).flat_map(|h| (0..d / 2).map(move |i| (h, i))) {
            for half in 0..2 {
                let (from, to) = (head * d + half * (d / 2) + i, head * d + 2 * i + half);
                assert_eq!(a[from * k..][..k], b[to * k..][..k]);
            }
        }
    }
    assert_eq!(gguf.rope_factors().expect("llama3").len(), d / 2);
}

#[test]
fn formats_keep_their_promise() {
    let dir = TempDir::new("formats");
    for folder in [golden_dir("v3")].into_iter().chain(trained()) {
        // relative error of a row: an eighth bit less doubles it
        for (format, limit) in [
            (QuantFormat::Q8_0, 0.01),
            (QuantFormat::Q6_K, 0.03),
            (QuantFormat::Q5_K_M, 0.06),
            (QuantFormat::Q4_K_M, 0.11),
            (QuantFormat::Q4_0, 0.14),
        ] {
            let report = write(&folder, &dir.join("q.gguf"), format);
            for t in &report.tensors {
                assert!(t.relative_rmse <= limit, "{} {format}: {t:?}", folder.display());
                assert_eq!(t.shape.len() == 1, t.to == "F32" && !t.name.contains("ffn_gate_inp"), "{t:?}");
            }
            assert!(
                report.output_bytes
                    < std::fs::metadata(folder.join("model.safetensors")).expect("a file").len()
            );
        }
    }
}

#[test]
fn gguf_to_gguf_is_the_same_file() {
    let dir = TempDir::new("again");
    for folder in [golden_dir("v3"), golden_dir("r1-distill-llama"), guide_dir()] {
        let (bf16, direct, again) = (dir.join("bf16.gguf"), dir.join("direct.gguf"), dir.join("again.gguf"));
        write(&folder, &bf16, QuantFormat::BF16);
        write(&folder, &direct, QuantFormat::Q8_0);
        let report = write(&bf16, &again, QuantFormat::Q8_0);
        // Rows that are no whole blocks are noted; a second loss is not, since there is none.
        assert!(!report.notes.iter().any(|n| n.contains("quantized before")), "{:?}", report.notes);
        let (a, b) = (Checkpoint::open(&direct).expect("a"), Checkpoint::open(&again).expect("b"));
        for info in a.tensors() {
            let (a, b) = (a.view(info), b.tensor(&info.name).expect("the same tensors"));
            assert_eq!((a.info().dtype, a.bytes()), (b.info().dtype, b.bytes()), "{}", info.name);
        }
        assert_eq!(a.gguf_metadata(), b.gguf_metadata());
    }
}

#[test]
fn threads_do_not_matter() {
    let dir = TempDir::new("threads");
    let c = Checkpoint::open(&guide_dir()).expect("the guide");
    let mut first: Option<Vec<u8>> = None;
    for threads in [1, 2, 5] {
        let out = dir.join("t.gguf");
        run_with_threads(&c, &out, QuantFormat::Q4_K_M, threads, &mut |_| ControlFlow::Continue(()))
            .expect("written");
        let bytes = std::fs::read(&out).expect("a file");
        assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes, "{threads} threads");
    }
}

#[test]
fn fp8_is_dequantized() {
    let dir = TempDir::new("fp8");
    let folder = dir.join("fp8");
    fp8::convert_folder(&golden_dir("v3"), &folder).expect("converted");
    let (hf, gguf) = both(&dir, &folder, QuantFormat::Q8_0);
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(hf.tensor(name).expect("a tensor").info().dtype, DType::F8E4M3);
    let scale = hf.fp8_scale(name).expect("sound").expect("scales");
    assert_eq!((scale.rows, scale.cols, scale.block), (2, 1, (128, 128)));
    let golden = Checkpoint::open(&golden_dir("v3")).expect("golden");
    let original = values(&golden, name);
    let amax = original.iter().fold(0f32, |m, v| m.max(v.abs()));
    // E4M3 has 3 bits of mantissa: half a step is 1/16 of a value, and 2^-10 of 448 near zero.
    assert_close(&values(&hf, name), &original, amax / 16.0, "fp8");
    assert_close(&values(&gguf, name), &values(&hf, name), amax / 250.0, "q8_0 of fp8");
    assert!(gguf.tensors().all(|t| !t.name.contains("scale_inv")));
}

fn tiny(dir: &Path, weight: f32) -> PathBuf {
    let folder = dir.join("tiny");
    std::fs::create_dir_all(&folder).expect("a folder");
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 8, "rms_norm_eps": 1e-6, "vocab_size": 4,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let data = vec![weight; 128].iter().flat_map(|v| v.to_le_bytes()).collect();
    let t =
        OwnedTensor { name: "model.embed_tokens.weight".into(), dtype: DType::F32, shape: vec![4, 32], data };
    safetensors::write(&folder.join("model.safetensors"), &[t], &BTreeMap::new()).expect("written");
    folder
}

#[test]
fn failures_leave_nothing_behind() {
    let dir = TempDir::new("failures");
    let out = dir.join("out.gguf");
    let attempt = |weight: f32, stop: bool| {
        let c = Checkpoint::open(&tiny(dir.path(), weight)).expect("a model");
        let flow = if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        run(&c, &out, QuantFormat::Q8_0, &mut |_| flow)
    };
    let error = attempt(f32::NAN, false).expect_err("NaN").to_string();
    assert!(error.contains("model.embed_tokens.weight") && error.contains("NaN"), "{error}");
    assert!(matches!(attempt(1.0, true), Err(WeightsError::Cancelled)));
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).expect("a folder").filter_map(|e| Some(e.ok()?.file_name())).collect();
    assert_eq!(left, ["tiny"]);
    attempt(1.0, false).expect("sound weights");
    let c = Checkpoint::open(&out).expect("the result");
    let error =
        run(&c, &out, QuantFormat::Q8_0, &mut |_| ControlFlow::Continue(())).expect_err("itself").to_string();
    assert!(error.contains("the input itself"), "{error}");
}

#[test]
fn unknown_architectures_are_refused() {
    let c = Checkpoint::open(&golden_dir("v4")).expect("v4");
    let error =
        run(&c, Path::new("/nonexistent/x.gguf"), QuantFormat::Q8_0, &mut |_| ControlFlow::Continue(()))
            .expect_err("v4")
            .to_string();
    assert!(error.contains("DeepseekV4ForCausalLM"), "{error}");
}

#[test]
fn vocabularies_survive() {
    let dir = TempDir::new("vocabularies");
    if skip_without_shared() {
        return;
    }
    for (folder, expected) in [(guide_dir(), ("gpt2", 3)), (shared("models/stories260k"), ("llama", 2))] {
        let (hf, gguf) = both(&dir, &folder, QuantFormat::Q8_0);
        let vocab = gguf.gguf_vocab().expect("a vocabulary");
        let text = std::fs::read(folder.join("tokenizer.json")).expect("a tokenizer");
        let json: Json = serde_json::from_slice(&text).expect("JSON");
        for (token, id) in json["model"]["vocab"].as_object().expect("a map") {
            let id = id.as_u64().expect("an id") as usize;
            assert_eq!(vocab.tokens[id], token.as_bytes());
        }
        assert_eq!(vocab.tokens.len() as u64, hf.config()["vocab_size"].as_u64().expect("a number"));
        assert_eq!(vocab.merges.len(), json["model"]["merges"].as_array().expect("merges").len());
        assert_eq!(vocab.bos.map(u64::from), hf.config()["bos_token_id"].as_u64());
        assert_eq!(vocab.eos.map(u64::from), hf.config()["eos_token_id"].as_u64());
        assert_eq!(vocab.add_bos, Some(true));
        assert_eq!(gguf.chat_template(), hf.chat_template());
        assert_eq!(gguf.embedded_tokenizer_json(), Some(text.as_slice()));
        assert_eq!((vocab.model.as_str(), vocab.token_types[0]), expected);
    }
    let stories = Checkpoint::open(&dir.join("out.gguf")).expect("stories");
    let vocab = stories.gguf_vocab().expect("a vocabulary");
    assert_eq!((vocab.token_types[3], vocab.add_space_prefix), (6, Some(true)));
    // The first merge scores highest.
    let id = |text: &str| vocab.tokens.iter().position(|t| t == text.as_bytes()).expect("a token");
    assert!(vocab.scores[id("▁t")] > vocab.scores[id("he")]);
}

#[test]
fn pre_tokenizers_have_names() {
    if skip_without_shared() {
        return;
    }
    let path = shared("golden/tokenizer/deepseek-v4/tokenizer.json");
    let json: Json = serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    assert_eq!(tokenizer::pre_tokenizer(&json), Some("deepseek-v3"));
    let split = |patterns: &[&str]| {
        let all: Vec<_> =
            patterns.iter().map(|p| json!({"type": "Split", "pattern": {"Regex": p}})).collect();
        json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": all}, "model": {"ignore_merges": true}})
    };
    let words = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
    let rest = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    let of = |patterns: &[&str]| tokenizer::pre_tokenizer(&split(patterns));
    assert_eq!(of(&[&format!("{words}\\p{{N}}{rest}")]), Some("qwen2"));
    assert_eq!(of(&[&format!("{words}\\p{{N}}{{1,3}}{rest}")]), Some("llama-bpe"));
    assert_eq!(
        of(&["[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", "\\p{N}"]),
        Some("deepseek-coder")
    );
    assert_eq!(
        of(&["[\r\n]", "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ]+", "\\s?[!-/]+", "\\s+$", "[一-龥ࠀ-一가-퟿]+", "\\p{N}+"]),
        Some("deepseek-llm")
    );
    assert_eq!(of(&["\\s+"]), None);
    assert_eq!(of(&[]), None);
}
