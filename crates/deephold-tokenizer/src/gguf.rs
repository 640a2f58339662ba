//! A tokenizer from the vocabulary inside a GGUF file.
//!
//! `gpt2` vocabularies name their pre-tokenizer instead of carrying it. The patterns here are those of the published
//! tokenizer.json files of the models that the names stand for, which llama.cpp fixed as the meaning of each name.

use std::collections::HashMap;

use deephold_base::TokenId;
use deephold_weights::GgufVocab;
use serde_json::{Value, json};

use crate::TokenizerError;
use crate::pieces::{Pieces, byte_token, from_byte_level, from_sentence_piece};
use crate::sentencepiece::SentencePiece;

const SUPPORTED: &str = "gpt2 with the pre-tokenizers deepseek-llm, deepseek-coder, deepseek-v3, deepseek-r1-qwen, qwen2, \
                         llama-bpe, gpt-2 and default; llama";

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// GPT-2's pattern with its contractions and runs.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// Letters with case, as DeepSeek LLM's tokenizer.json lists them. By number: several would not survive an editor that
/// normalizes.
const CASED: &str = "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\
    \u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\
    \u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\
    \u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\
    \u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\
    \u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\
    \u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\
    \u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\
    \u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\
    \u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\
    \u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\
    \u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\
    \u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\
    \u{1e900}-\u{1e943}";

/// Chinese, and most scripts between Samaritan and Hangul, as DeepSeek's first tokenizers group them.
const HAN: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";

/// The splits of a named pre-tokenizer, in order, and whether whole words that are tokens skip the merges.
fn splits(pre: &str) -> Option<(Vec<String>, bool)> {
    let own = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    // Llama 3's pattern; Qwen2's differs in how many digits go together.
    let words = |digits: &str| {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    Some(match pre {
        "deepseek-llm" => {
            let cased = format!(r"\s?[{CASED}]+");
            let rest = [
                "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
                r"\s+$",
                HAN,
                r"\p{N}+",
            ];
            ([own(&["[\r\n]"]), vec![cased], own(&rest)].concat(), false)
        }
        "deepseek-coder" => {
            let patterns = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, r"\p{N}"];
            (own(&patterns), false)
        }
        "deepseek-v3" => {
            let patterns = [
                r"\p{N}{1,3}",
                "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
                "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| \
                 ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
            ];
            (own(&patterns), false)
        }
        "qwen2" | "deepseek-r1-qwen" => (vec![words(r"\p{N}")], false),
        "llama-bpe" | "llama3" | "llama-v3" => (vec![words(r"\p{N}{1,3}")], true),
        "gpt-2" => (own(&[GPT2]), false),
        "default" => (own(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]), false),
        _ => return None,
    })
}

/// Token texts; bytes that are no UTF-8 get a text that no encoding can produce.
fn texts(vocab: &GgufVocab) -> Vec<String> {
    let text = |(id, bytes): (usize, &Vec<u8>)| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("\u{fffd}{id}"),
    };
    vocab.tokens.iter().enumerate().map(text).collect()
}

fn kind(vocab: &GgufVocab, id: usize) -> i32 {
    vocab.token_types.get(id).copied().unwrap_or(1)
}

/// A `gpt2` vocabulary as tokenizer.json would say it, and its pieces.
pub(crate) fn byte_level(vocab: &GgufVocab) -> Result<(Value, Pieces), TokenizerError> {
    let Some((patterns, ignore_merges)) = splits(&vocab.pre) else {
        let what = format!("the pre-tokenizer `{}` of this GGUF file", short(&vocab.pre));
        return Err(TokenizerError::Unsupported { what, supported: SUPPORTED });
    };
    let texts = texts(vocab);
    let mut ids = serde_json::Map::with_capacity(texts.len());
    let mut added = Vec::new();
    let mut pieces = Vec::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        // Of tokens with the same text the first is the one that encoding gives.
        ids.entry(text.clone()).or_insert_with(|| json!(id));
        let kind = kind(vocab, id);
        let literal = kind == CONTROL || kind == USER_DEFINED;
        if literal && !text.is_empty() {
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            }));
        }
        let bytes = if literal { vocab.tokens[id].clone() } else { from_byte_level(text) };
        pieces.push((id as TokenId, bytes, kind == CONTROL));
    }
    // A merge of unknown parts, or into an unknown whole, can never apply; the library would refuse it.
    let merges: Vec<Value> = vocab
        .merges
        .iter()
        .filter_map(|m| m.split_once(' '))
        .filter(|(a, b)| ids.contains_key(*a) && ids.contains_key(*b) && ids.contains_key(&format!("{a}{b}")))
        .map(|(a, b)| json!([a, b]))
        .collect();
    let mut pre: Vec<Value> = patterns
        .iter()
        .map(|p| json!({ "type": "Split", "pattern": { "Regex": p }, "behavior": "Isolated", "invert": false }))
        .collect();
    pre.push(
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }),
    );
    let json = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": pre },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": ids, "merges": merges,
        },
    });
    Ok((json, Pieces::new(pieces)?))
}

/// A `llama` vocabulary and its pieces.
pub(crate) fn sentence_piece(vocab: &GgufVocab) -> Result<(SentencePiece, Pieces), TokenizerError> {
    if vocab.scores.len() != vocab.tokens.len() {
        let problem = format!(
            "has {} tokens but {} scores; convert the model again",
            vocab.tokens.len(),
            vocab.scores.len()
        );
        return Err(TokenizerError::malformed("the GGUF vocabulary", problem));
    }
    let mut ids: HashMap<Vec<u8>, TokenId> = HashMap::with_capacity(vocab.tokens.len());
    let (mut bytes, mut markers, mut pieces) = (vec![None; 256], Vec::new(), Vec::new());
    for (id, (token, text)) in vocab.tokens.iter().zip(texts(vocab)).enumerate() {
        let (kind, id) = (kind(vocab, id), id as TokenId);
        let literal = kind == CONTROL || kind == USER_DEFINED;
        match byte_token(&text) {
            Some(byte) if !literal => bytes[usize::from(byte)] = Some(id),
            _ if literal => {
                if !text.is_empty() {
                    markers.push((text.clone(), id));
                }
            }
            _ => {
                ids.entry(token.clone()).or_insert(id);
            }
        }
        let stored = if literal { token.clone() } else { from_sentence_piece(&text) };
        pieces.push((id, stored, kind == CONTROL));
    }
    let space_prefix = vocab.add_space_prefix.unwrap_or(true);
    let model = SentencePiece::new(ids, vocab.scores.clone(), bytes, vocab.unk, markers, space_prefix);
    Ok((model, Pieces::new(pieces)?))
}

/// Tokens that end an answer: those that the file names, and control tokens that models end turns with.
pub(crate) fn stops(vocab: &GgufVocab) -> Vec<TokenId> {
    const ENDS: [&str; 6] =
        ["<｜end▁of▁sentence｜>", "<|EOT|>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>"];
    let mut out: Vec<TokenId> = [vocab.eos, vocab.eot, vocab.eom].into_iter().flatten().collect();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if kind(vocab, id) == CONTROL && ENDS.iter().any(|e| e.as_bytes() == token.as_slice()) {
            out.push(id as TokenId);
        }
    }
    out.retain(|id| (*id as usize) < vocab.tokens.len());
    out.sort_unstable();
    out.dedup();
    out
}

pub(crate) fn unsupported_model(model: &str) -> TokenizerError {
    let what = format!("the tokenizer `{}` of this GGUF file", short(model));
    TokenizerError::Unsupported { what, supported: SUPPORTED }
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}
