use std::path::PathBuf;

use deephold_testkit::{fetched_model, guide_dir, shared, skip_without_shared, testdata};
use deephold_weights::{Checkpoint, GgufVocab};
use serde_json::Value;

use crate::{Detokenizer, Tokenizer};

/// Files that would take much memory or make much text are refused before the library gets them.
#[test]
fn tokenizers_are_held_to_limits() {
    let good: Value =
        serde_json::from_slice(&std::fs::read(guide_dir().join("tokenizer.json")).expect("file"))
            .expect("JSON");
    let with = |key: &str, value: Value| {
        let mut tree = good.clone();
        *tree.pointer_mut(key).unwrap_or_else(|| panic!("{key}")) = value;
        Tokenizer::from_json(tree.to_string().as_bytes(), None)
    };
    let refused = |key: &str, value: Value, part: &str| {
        let error = with(key, value).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    let replace = |to: usize| serde_json::json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "a".repeat(to) });
    let all = |rules: Vec<Value>| serde_json::json!({ "type": "Sequence", "normalizers": rules });
    refused("/normalizer", all(vec![replace(1000); 4]), "lengthens a text");
    refused("/normalizer", all(vec![replace(2); 7]), "lengthens a text");
    refused(
        "/normalizer",
        serde_json::json!({ "type": "Replace", "pattern": { "Regex": "" }, "content": "a".repeat(64) }),
        "lengthens",
    );
    refused("/normalizer", all(vec![replace(1); 5000]), "values in the normalizer");
    let id = serde_json::json!({ "SpecialToken": { "id": "a", "type_id": 0 } });
    let template = serde_json::json!({ "type": "TemplateProcessing", "single": vec![id; 10_000], "pair": [], "special_tokens": {} });
    refused("/post_processor", template, "values in the post_processor");
    refused("/model/merges", vec!["a b"; 600_001].into(), "number of merges");
    refused("/added_tokens", vec![Value::Null; 100_001].into(), "number of added tokens");
    let vocabulary: serde_json::Map<String, Value> =
        (0..600_001).map(|i| (format!("t{i}"), i.into())).collect();
    refused("/model/vocab", vocabulary.into(), "number of tokens");
    // What lengthens a text by half as much is taken, and takes texts that are shorter by as much.
    let longer = with("/normalizer", replace(32)).expect("within the limits");
    assert_eq!(
        longer.encode("ba").expect("short"),
        with("/normalizer", Value::Null)
            .expect("as it is")
            .encode(&format!("b{}", "a".repeat(32)))
            .expect("short")
    );
    assert_eq!(
        longer.encode(&"a".repeat((1 << 19) + 1)).expect_err("too long").code(),
        deephold_base::ErrorCode::LimitExceeded
    );
}

pub(super) fn gguf_vocab(name: &str) -> GgufVocab {
    let path = shared(&format!("golden/tokenizer/{name}/ggml-vocab-{name}.gguf"));
    let bytes = std::fs::read(path).expect("vocabulary");
    let file = deephold_weights::gguf::parse(&bytes).expect("GGUF");
    GgufVocab::from_metadata(&file.metadata).expect("vocabulary")
}

fn json_tokenizer(folder: &str) -> Tokenizer {
    let folder: PathBuf = shared(folder);
    let json = std::fs::read(folder.join("tokenizer.json")).expect("tokenizer.json");
    let config = std::fs::read(folder.join("tokenizer_config.json")).expect("tokenizer_config.json");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    Tokenizer::from_json(&json, Some(&config)).expect("tokenizer")
}

/// Decoding gives the text back, at once and token by token.
pub(super) fn round_trip(t: &Tokenizer, text: &str, ids: &[u32]) {
    assert_eq!(t.decode(ids), text, "decoded");
    let mut stream = Detokenizer::new();
    let mut joined = String::new();
    for id in ids {
        joined.push_str(&stream.push(t, *id));
    }
    joined.push_str(&stream.finish());
    assert_eq!(joined, text, "streamed");
}

#[test]
fn tokenizer_json_gives_the_reference_s_ids() {
    if skip_without_shared() {
        return;
    }
    let t = json_tokenizer("golden/tokenizer/deepseek-v4");
    let vectors = std::fs::read(shared("golden/tokenizer/deepseek-v4/vectors.json")).expect("vectors");
    let vectors: Vec<Value> = serde_json::from_slice(&vectors).expect("JSON");
    assert!(vectors.len() > 100);
    for v in &vectors {
        let text = v["text"].as_str().expect("text");
        let ids: Vec<u32> =
            v["ids"].as_array().expect("ids").iter().map(|i| i.as_u64().expect("id") as u32).collect();
        assert_eq!(t.encode(text).expect("encodes"), ids, "{text:?}");
        if !ids.iter().any(|id| t.is_control(*id)) {
            round_trip(&t, text, &ids);
        }
    }
}

#[test]
fn gguf_vocabularies_give_the_reference_s_ids() {
    if skip_without_shared() {
        return;
    }
    for name in ["deepseek-llm", "deepseek-coder"] {
        let t = Tokenizer::from_gguf(&gguf_vocab(name)).expect("tokenizer");
        let base = format!("golden/tokenizer/{name}/ggml-vocab-{name}.gguf");
        let texts = std::fs::read_to_string(shared(&format!("{base}.inp"))).expect("texts");
        let ids = std::fs::read_to_string(shared(&format!("{base}.out"))).expect("ids");
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let ids: Vec<&str> = ids.lines().collect();
        assert!(texts.len() >= ids.len() && ids.len() > 30, "{} texts, {} lines", texts.len(), ids.len());
        for (text, line) in texts.iter().zip(&ids) {
            let ids: Vec<u32> = line.split_whitespace().map(|i| i.parse().expect("id")).collect();
            assert_eq!(t.encode(text).expect("encodes"), ids, "{name}: {text:?}");
            round_trip(&t, text, &ids);
        }
        assert_eq!(t.encode_prompt("a").expect("encodes")[0], t.bos().expect("bos"), "{name}");
    }
}

/// Ids that llama.cpp gives for the `qwen2` vocabulary (through llama-cpp-python 0.3.36).
const QWEN2: [(&str, &[u32]); 7] = [
    ("Hello world", &[9707, 1879]),
    ("I'LL go, it's 12345 km.", &[40, 6, 4086, 728, 11, 432, 594, 220, 16, 17, 18, 19, 20, 13136, 13]),
    ("  spaces\t\n\n tabs \r\n", &[220, 12621, 15799, 22398, 2529]),
    ("中文，混排 English。", &[104811, 3837, 100235, 59956, 6364, 1773]),
    ("naïve café — 🦀🦀", &[3376, 37572, 586, 51950, 1959, 11162, 99, 222, 147579]),
    ("<|im_start|>user\nhi<|im_end|>", &[151644, 872, 198, 6023, 151645]),
    ("def f(x):\n    return x*x", &[750, 282, 2075, 982, 262, 470, 856, 18481]),
];

#[test]
fn qwen2_gives_llama_cpp_s_ids() {
    if skip_without_shared() {
        return;
    }
    let t = Tokenizer::from_gguf(&gguf_vocab("qwen2")).expect("tokenizer");
    for (text, ids) in QWEN2 {
        assert_eq!(t.encode(text).expect("encodes"), ids, "{text:?}");
        if !ids.iter().any(|id| t.is_control(*id)) {
            round_trip(&t, text, ids);
        }
    }
}

/// The V3 line's vocabulary as a GGUF file would carry it, against its tokenizer.json.
#[test]
fn deepseek_v3_s_pre_tokenizer_is_that_of_its_tokenizer_json() {
    if skip_without_shared() {
        return;
    }
    let t = json_tokenizer("golden/tokenizer/deepseek-v4");
    let json = std::fs::read(shared("golden/tokenizer/deepseek-v4/tokenizer.json")).expect("tokenizer.json");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let mut vocab = GgufVocab { model: "gpt2".into(), pre: "deepseek-v3".into(), ..GgufVocab::default() };
    let mut tokens: Vec<(u64, Vec<u8>, i32)> = json["model"]["vocab"]
        .as_object()
        .expect("vocab")
        .iter()
        .map(|(token, id)| (id.as_u64().expect("id"), token.clone().into_bytes(), 1))
        .collect();
    for added in json["added_tokens"].as_array().expect("added") {
        let id = added["id"].as_u64().expect("id");
        let kind = if added["special"].as_bool() == Some(true) { 3 } else { 4 };
        tokens.retain(|t| t.0 != id);
        tokens.push((id, added["content"].as_str().expect("content").as_bytes().to_vec(), kind));
    }
    tokens.sort();
    assert!(tokens.iter().enumerate().all(|(i, t)| i as u64 == t.0), "ids without a gap");
    vocab.token_types = tokens.iter().map(|t| t.2).collect();
    vocab.tokens = tokens.into_iter().map(|t| t.1).collect();
    let merge = |m: &Value| match m {
        Value::String(s) => s.clone(),
        pair => format!("{} {}", pair[0].as_str().expect("left"), pair[1].as_str().expect("right")),
    };
    vocab.merges = json["model"]["merges"].as_array().expect("merges").iter().map(merge).collect();
    let from_gguf = Tokenizer::from_gguf(&vocab).expect("tokenizer");
    let vectors = std::fs::read(shared("golden/tokenizer/deepseek-v4/vectors.json")).expect("vectors");
    let vectors: Vec<Value> = serde_json::from_slice(&vectors).expect("JSON");
    for v in &vectors {
        let text = v["text"].as_str().expect("text");
        assert_eq!(from_gguf.encode(text).expect("encodes"), t.encode(text).expect("encodes"), "{text:?}");
    }
}

/// stories260k's SentencePiece vocabulary from scores, against the library's merges.
#[test]
fn sentence_piece_by_scores_is_that_by_merges() {
    if skip_without_shared() {
        return;
    }
    let t = json_tokenizer("models/stories260k");
    let json = std::fs::read(shared("models/stories260k/tokenizer.json")).expect("tokenizer.json");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let vocab = json["model"]["vocab"].as_object().expect("vocab");
    let mut tokens = vec![Vec::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().expect("id") as usize] = token.clone().into_bytes();
    }
    // Scores fall with the rank of the first merge that makes a piece; the training order is the order of ids.
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let kinds = (0..tokens.len()).map(|i| if i < 3 { 3 } else { 1 }).collect();
    let gguf = GgufVocab {
        model: "llama".into(),
        tokens,
        scores,
        token_types: kinds,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    };
    let by_scores = Tokenizer::from_gguf(&gguf).expect("tokenizer");
    let story = std::fs::read_to_string(shared("models/stories260k/greedy.txt")).expect("text");
    for text in ["Once upon a time", " two  spaces ", "Zoë said: 你好\n\n🦀", "", "a", &story] {
        let ids = t.encode_prompt(text).expect("encodes");
        assert_eq!(by_scores.encode_prompt(text).expect("encodes"), ids, "{text:?}");
        assert_eq!(ids[0], 1);
        round_trip(&by_scores, text, &ids);
        round_trip(&t, text, &ids);
    }
}

#[test]
fn a_checkpoint_brings_its_tokenizer_and_ends() {
    let guide = Checkpoint::open(&guide_dir()).expect("checkpoint");
    let t = Tokenizer::from_checkpoint(&guide).expect("tokenizer");
    assert_eq!((t.bos(), t.eos(), t.stop_ids()), (Some(0), Some(1), &[1][..]));
    assert_eq!(t.vocab_size(), 1536);
    let cases = std::fs::read(guide_dir().join("expected.json")).expect("cases");
    let cases: Vec<Value> = serde_json::from_slice(&cases).expect("JSON");
    for c in &cases {
        let ids: Vec<u32> =
            c["answer_ids"].as_array().expect("ids").iter().map(|i| i.as_u64().expect("id") as u32).collect();
        assert_eq!(t.decode(&ids), c["answer"].as_str().expect("answer"));
    }
}

#[test]
fn bert_s_words_become_the_reference_s_ids() {
    let Some(path) = fetched_model("all-minilm-l6-v2") else { return };
    let t = Tokenizer::from_checkpoint(&Checkpoint::open(&path).expect("a checkpoint")).expect("a tokenizer");
    let bytes = std::fs::read(testdata("minilm").join("reference.json")).expect("a reference");
    let tree: Value = serde_json::from_slice(&bytes).expect("JSON");
    for entry in tree["entries"].as_array().expect("entries") {
        let text = entry["text"].as_str().expect("a text");
        let ids = t.encode_prompt(text).expect("ids");
        assert_eq!(serde_json::json!(ids), entry["ids"], "{text}");
    }
    // Lower case and single spaces are all that is left of a text.
    assert_eq!(t.decode(&t.encode("Unaffable wranglers").expect("ids")), "unaffable wranglers");
}
