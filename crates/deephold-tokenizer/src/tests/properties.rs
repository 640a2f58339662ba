use std::sync::OnceLock;

use deephold_testkit::{guide_dir, shared, skip_without_shared};
use proptest::prelude::*;

use super::vectors::{gguf_vocab, round_trip};
use deephold_weights::GgufVocab;

use crate::{Detokenizer, Tokenizer};

/// DeepSeek Coder's vocabulary, or the guide's where the checkout stands alone.
fn vocabulary() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| match skip_without_shared() {
        false => Tokenizer::from_gguf(&gguf_vocab("deepseek-coder")).expect("tokenizer"),
        true => {
            let json = std::fs::read(guide_dir().join("tokenizer.json")).expect("tokenizer.json");
            Tokenizer::from_json(&json, None).expect("tokenizer")
        }
    })
}

/// A small published tokenizer.json, or the guide's.
fn tokenizer_json() -> &'static [u8] {
    static JSON: OnceLock<Vec<u8>> = OnceLock::new();
    JSON.get_or_init(|| {
        let folder = if skip_without_shared() { guide_dir() } else { shared("models/stories260k") };
        std::fs::read(folder.join("tokenizer.json")).expect("tokenizer.json")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is known without encoding is never more than there is.
    #[test]
    fn least_tokens_are_a_lower_bound(text in "\\PC{0,60}[ \\n]{0,300}a{0,200}") {
        let tokenizer = vocabulary();
        let least = tokenizer.least_tokens(&text);
        prop_assert!(least <= tokenizer.encode(&text).expect("encodes").len());
        prop_assert!(text.is_empty() || least > 0);
    }

    #[test]
    fn any_text_comes_back(text in "\\PC{0,40}[\\s\\PC🦀\u{300}]{0,20}") {
        let ids = vocabulary().encode(&text).expect("encodes");
        round_trip(vocabulary(), &text, &ids);
    }

    /// Random ids are seldom UTF-8: the stream still joins to the whole, and every part of it is text.
    #[test]
    fn any_ids_stream_to_their_decoding(ids in prop::collection::vec(0u32..40_000, 0..60)) {
        let t = vocabulary();
        let mut stream = Detokenizer::new();
        let mut joined: String = ids.iter().map(|id| stream.push(t, *id)).collect();
        joined.push_str(&stream.finish());
        let bytes: Vec<u8> = ids.iter().filter(|id| !t.is_control(**id)).flat_map(|id| t.token_bytes(*id).to_vec()).collect();
        prop_assert_eq!(&joined, &String::from_utf8_lossy(&bytes).into_owned());
        prop_assert_eq!(joined, t.decode(&ids));
    }

    /// A damaged tokenizer.json is refused or works; it never panics.
    #[test]
    fn damaged_files_give_errors(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut json = tokenizer_json().to_vec();
        let at = at.index(json.len());
        if cut { json.truncate(at) } else { json[at] = byte }
        if let Ok(t) = Tokenizer::from_json(&json, None) {
            let _ = t.encode_prompt("Once upon a time 你好").map(|ids| t.decode(&ids));
        }
    }
}

#[test]
fn malformed_tokenizers_are_refused_with_a_reason() {
    for json in [
        "",
        "[]",
        "{}",
        "{\"model\":{}}",
        r#"{"decoder":{"type":"WordPiece"},"model":{"type":"BPE","vocab":{},"merges":[]}}"#,
        r#"{"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}}"#,
        r#"{"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#,
    ] {
        let error = Tokenizer::from_json(json.as_bytes(), None).expect_err(json).to_string();
        assert!(error.len() > 20, "{json}: {error}");
    }
    let vocab = GgufVocab { model: "gpt2".into(), pre: "unheard-of".into(), ..GgufVocab::default() };
    assert!(Tokenizer::from_gguf(&vocab).expect_err("refused").to_string().contains("unheard-of"));
}
