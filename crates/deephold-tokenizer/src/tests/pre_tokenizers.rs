//! Named pre-tokenizers: every name cuts any text without loss, and the cuts are those of the models they stand for.

use deephold_testkit::{fetched_model, testdata};
use deephold_weights::{Checkpoint, GgufVocab};
use serde_json::Value;

use super::vectors::round_trip;
use crate::Tokenizer;
use crate::pieces::from_byte_level;

const NAMES: &str = "deepseek-llm deepseek-coder deepseek-v3 hunyuan-dense joyai-llm hy_v4 qwen2 deepseek-r1-qwen kormo \
    f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 qwen35 llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 \
    lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe minicpm5 bailingmoe bailingmoe2 llada-moe seed-coder smollm starcoder \
    refact command-r codeshell exaone minerva-7b mellum2 gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 \
    mellum exaone4 jina-es jina-de jina-v2-es jina-v2-de modern-bert falcon bloom poro-chat gpt3-finnish viking tekken gpt-4o \
    llama4 kanana2 talkie minimax-m2 tiny_aya cohere2moe youtu kimi-k2 laguna default";

const TEXT: &str = "Hello HelloWorld, I'LL don't 12345 ½ ٣٤ café e\u{301}te\u{301}\r\n\n  x\t中文，日本語テスト 한국어。🦀🦀 a.b/c?d=1 <tag/>\n \n";

/// The character that stands for a byte in byte-level vocabularies.
fn letter(byte: u8) -> String {
    let all = ('\u{21}'..='\u{143}').map(String::from);
    all.into_iter().find(|c| from_byte_level(c) == [byte]).expect("a character for every byte")
}

/// A vocabulary in which every piece of `words` merges to one token, so that ids show where the text was cut.
fn vocabulary(pre: &str, words: &[&str]) -> Tokenizer {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| letter(b).into_bytes()).collect();
    let mut merges = Vec::new();
    for word in words {
        let letters: Vec<String> = word.bytes().map(letter).collect();
        let mut whole = letters[0].clone();
        for letter in &letters[1..] {
            let merge = format!("{whole} {letter}");
            whole.push_str(letter);
            if !merges.contains(&merge) {
                merges.push(merge);
                tokens.push(whole.clone().into_bytes());
            }
        }
    }
    let token_types = vec![1; tokens.len()];
    let vocab = GgufVocab {
        model: "gpt2".into(),
        pre: pre.into(),
        tokens,
        merges,
        token_types,
        ..Default::default()
    };
    Tokenizer::from_gguf(&vocab).unwrap_or_else(|e| panic!("{pre}: {e}"))
}

#[test]
fn every_name_keeps_every_text() {
    for name in NAMES.split_whitespace() {
        let t = vocabulary(name, &["ab"]);
        for text in [TEXT, "", " ", "\n", "a", "1", "，", "'s"] {
            round_trip(&t, text, &t.encode(text).unwrap_or_else(|e| panic!("{name}: {e}")));
        }
    }
}

/// The words that `text` falls into, where each of `words` would be one token if the cuts allow it.
fn cut(pre: &str, words: &[&str], text: &str) -> Vec<String> {
    let t = vocabulary(pre, words);
    t.encode(text).expect("encodes").iter().map(|id| t.decode(&[*id])).collect()
}

/// Read off the patterns of the published tokenizer.json files by hand.
#[test]
fn cuts_are_those_of_the_models() {
    // SmolLM: single digits, and a word does not swallow them.
    assert_eq!(cut("smollm", &["12", " ab"], "12 ab"), ["1", "2", " ab"]);
    // Llama 3: up to three digits; a sign joins the word behind it; capital contractions.
    assert_eq!(cut("llama-bpe", &["1234", "123", ".ab", "'LL"], "1234.ab'LL"), ["123", "4", ".ab", "'LL"]);
    // Qwen2: single digits, otherwise as Llama 3.
    assert_eq!(cut("qwen2", &["12", ".ab"], "12.ab"), ["1", "2", ".ab"]);
    // Qwen 3.5: a combining mark stays with its letter; Qwen2 parts them.
    assert_eq!(cut("qwen35", &["e\u{301}a"], "e\u{301}a"), ["e\u{301}a"]);
    assert!(cut("qwen2", &["e\u{301}a"], "e\u{301}a").len() > 1);
    // GPT-4o: a word ends where lower case turns to upper case; contractions stay with their word.
    assert_eq!(cut("gpt-4o", &["abCd", "ab", "Cd's"], "abCd's"), ["ab", "Cd's"]);
    // Mistral's Tekken does the same, with single digits, and parts contractions.
    assert_eq!(cut("tekken", &["ab", "Cd", "12", "'s"], "abCd12's"), ["ab", "Cd", "1", "2", "'s"]);
    // Kimi K2: Chinese apart from Latin letters. (Each character is three bytes, which merge.)
    assert_eq!(cut("kimi-k2", &["ab中", "ab", "中"], "ab中"), ["ab", "中"]);
    assert_eq!(cut("gpt-4o", &["ab中", "ab", "中"], "ab中"), ["ab中"]);
}

#[test]
fn smollm2_gives_the_reference_s_ids() {
    let Some(path) = fetched_model("smollm2-135m-instruct.q4_1.gguf") else { return };
    let t = Tokenizer::from_checkpoint(&Checkpoint::open(&path).expect("checkpoint")).expect("tokenizer");
    let reference = std::fs::read(testdata("smollm2/reference.json")).expect("reference");
    let reference: Value = serde_json::from_slice(&reference).expect("JSON");
    for case in reference["tokenizer"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("text");
        let ids = t.encode(text).expect("encodes");
        assert_eq!(serde_json::json!(ids), case["ids"], "{text:?}");
        if !ids.iter().any(|id| t.is_control(*id)) {
            round_trip(&t, text, &ids);
        }
    }
}
