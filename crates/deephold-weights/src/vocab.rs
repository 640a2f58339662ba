//! The vocabulary that a GGUF file carries.

use crate::gguf::{Array, Metadata, Value};

/// As stored under `tokenizer.*`; what it means is the tokenizer's affair.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece-like).
    pub model: String,
    /// Which pre-tokenizer, `default` where the file is silent.
    pub pre: String,
    /// Token texts: byte-level characters for `gpt2`, U+2581 for spaces and `<0xNN>` for bytes for `llama`. Bytes, since
    /// files do not always keep to UTF-8.
    pub tokens: Vec<Vec<u8>>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty where the file is silent.
    pub token_types: Vec<i32>,
    /// Of `llama`; empty where the file is silent.
    pub scores: Vec<f32>,
    /// Pairs with a space between.
    pub merges: Vec<String>,
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// End of a sequence.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message.
    pub eom: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether encoding begins with `bos`.
    pub add_bos: Option<bool>,
    /// Whether encoding ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a space is put before text.
    pub add_space_prefix: Option<bool>,
    /// Whether runs of spaces are made one.
    pub remove_extra_whitespaces: Option<bool>,
    /// The template.
    pub chat_template: Option<String>,
}

impl GgufVocab {
    /// `None` where the file has no token list.
    pub fn from_metadata(m: &Metadata) -> Option<Self> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let tokens = match m.get(&key("tokens"))?.as_array()? {
            Array::String(tokens) => tokens.clone(),
            _ => return None,
        };
        let token_types = m.get(&key("token_type")).and_then(Value::as_array).and_then(Array::to_integers);
        let scores = match m.get(&key("scores")).and_then(Value::as_array) {
            Some(Array::F32(scores)) => scores.clone(),
            _ => Vec::new(),
        };
        let merges = match m.get(&key("merges")).and_then(Value::as_array) {
            Some(Array::String(merges)) => {
                merges.iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect()
            }
            _ => Vec::new(),
        };
        Some(Self {
            model: m.get_str(&key("model")).unwrap_or("llama").to_owned(),
            pre: m.get_str(&key("pre")).unwrap_or("default").to_owned(),
            tokens,
            token_types: token_types
                .unwrap_or_default()
                .into_iter()
                .map(|t| i32::try_from(t).unwrap_or(1))
                .collect(),
            scores,
            merges,
            bos: m.get_u32(&key("bos_token_id")),
            eos: m.get_u32(&key("eos_token_id")),
            eot: m.get_u32(&key("eot_token_id")),
            eom: m.get_u32(&key("eom_token_id")),
            unk: m.get_u32(&key("unknown_token_id")),
            pad: m.get_u32(&key("padding_token_id")),
            add_bos: m.get_bool(&key("add_bos_token")),
            add_eos: m.get_bool(&key("add_eos_token")),
            add_space_prefix: m.get_bool(&key("add_space_prefix")),
            remove_extra_whitespaces: m.get_bool(&key("remove_extra_whitespaces")),
            chat_template: m.get_str("tokenizer.chat_template").map(str::to_owned),
        })
    }
}
