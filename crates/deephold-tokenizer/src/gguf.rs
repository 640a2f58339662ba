//! A tokenizer from the vocabulary inside a GGUF file. `gpt2` vocabularies name their pre-tokenizer instead of carrying
//! it; [`PreTokenizer`] knows what the names mean.

use std::collections::HashMap;

use deephold_base::TokenId;
use deephold_weights::GgufVocab;
use serde_json::{Value, json};

use crate::TokenizerError;
use crate::pieces::{Pieces, byte_token, from_byte_level, from_sentence_piece};
use crate::pre_tokenizer::{PreTokenizer, SUPPORTED};
use crate::sentencepiece::SentencePiece;

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

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
    let Some(named) = PreTokenizer::named(&vocab.pre) else {
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
    let mut pre: Vec<Value> = named
        .patterns
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
            "ignore_merges": named.ignore_merges, "vocab": ids, "merges": merges,
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
