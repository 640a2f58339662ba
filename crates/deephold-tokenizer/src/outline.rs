//! What a tokenizer.json says of its own size, read before the library is given it.
//!
//! The library keeps some hundred bytes for each token and merge, and applies every rule to every text: a file of some
//! megabytes could take gigabytes, and four replacements of a letter by a thousand make 10^12 of one.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::TokenizerError;

/// The largest tokenizer.json that is read; published ones stay below 40 MiB.
pub(crate) const MAX_JSON: u64 = 64 << 20;

/// Tokens, and merges; DeepSeek-V4 has 128,000 and 127,741.
pub(crate) const MAX_ENTRIES: usize = 600_000;

/// Tokens beside the vocabulary; DeepSeek-V4 has 1,283.
const MAX_ADDED: usize = 100_000;

/// Values in the rules before and behind the vocabulary. The longest published lists have some dozens.
const MAX_RULES: usize = 10_000;

/// How much longer a normalizer may make a text: SentencePiece's writes three bytes for a space.
const MAX_GROWTH: usize = 64;

/// The parts that are looked at.
pub(crate) struct Outline {
    pub(crate) decoder: Value,
    /// How many times longer the normalizer may make a text.
    pub(crate) growth: usize,
    /// Whether it may make a text shorter.
    pub(crate) shortens: bool,
}

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    added_tokens: Count,
    #[serde(default)]
    model: Model,
}

#[derive(Deserialize, Default)]
struct Model {
    #[serde(default)]
    vocab: Count,
    #[serde(default)]
    merges: Count,
}

impl Outline {
    /// Reads the outline and holds it against the limits.
    ///
    /// # Errors
    /// Not JSON of this form, or a part that is too large.
    pub(crate) fn read(json: &[u8]) -> Result<Self, TokenizerError> {
        let within = |what, actual: usize, limit: usize| match actual <= limit {
            true => Ok(()),
            false => Err(TokenizerError::TooLarge { what, actual, limit }),
        };
        within("the size of tokenizer.json", json.len(), MAX_JSON as usize)?;
        let parts: Parts = serde_json::from_slice(json)
            .map_err(|e| TokenizerError::malformed("tokenizer.json", e.to_string()))?;
        within("the number of tokens in tokenizer.json", parts.model.vocab.0, MAX_ENTRIES)?;
        within("the number of merges in tokenizer.json", parts.model.merges.0, MAX_ENTRIES)?;
        within("the number of added tokens in tokenizer.json", parts.added_tokens.0, MAX_ADDED)?;
        for (what, part) in [
            ("the number of values in the normalizer of tokenizer.json", &parts.normalizer),
            ("the number of values in the pre_tokenizer of tokenizer.json", &parts.pre_tokenizer),
            ("the number of values in the post_processor of tokenizer.json", &parts.post_processor),
            ("the number of values in the decoder of tokenizer.json", &parts.decoder),
        ] {
            within(what, values(part), MAX_RULES)?;
        }
        let growth = growth(&parts.normalizer);
        within("how many times the normalizer of tokenizer.json lengthens a text", growth, MAX_GROWTH)?;
        let shortens = shortens(&parts.normalizer);
        Ok(Self { decoder: parts.decoder, growth, shortens })
    }
}

fn values(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(items) => items.iter().map(values).sum::<usize>(),
        Value::Object(map) => map.values().map(values).sum(),
        _ => 0,
    }
}

/// The product of what each replacement may do to the length of a text.
fn growth(normalizer: &Value) -> usize {
    if let Some(parts) = normalizer.get("normalizers").and_then(Value::as_array) {
        return parts.iter().map(growth).fold(1, usize::saturating_mul);
    }
    let length = |v: Option<&Value>| v.and_then(Value::as_str).map(str::len);
    match normalizer.get("type").and_then(Value::as_str) {
        Some("Replace") => {
            let content = length(normalizer.get("content")).unwrap_or(0);
            match length(normalizer.pointer("/pattern/String")) {
                Some(pattern) if pattern > 0 => content.div_ceil(pattern).max(1),
                // An expression may match one byte, or between all.
                _ => content.saturating_add(1),
            }
        }
        // Once a text.
        Some("Prepend") => 1 + length(normalizer.get("prepend")).unwrap_or(0) / 64,
        _ => 1,
    }
}

fn shortens(normalizer: &Value) -> bool {
    if let Some(parts) = normalizer.get("normalizers").and_then(Value::as_array) {
        return parts.iter().any(shortens);
    }
    let length = |v: Option<&Value>| v.and_then(Value::as_str).map(str::len);
    match normalizer.get("type").and_then(Value::as_str) {
        None if normalizer.is_null() => false,
        Some("Prepend") => false,
        Some("Replace") => length(normalizer.get("content")) < length(normalizer.pointer("/pattern/String")),
        _ => true,
    }
}

/// How many items a list or an object has; nothing of them is kept.
#[derive(Default)]
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Count;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or an object")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Count(count))
            }
            fn visit_unit<E>(self) -> Result<Count, E> {
                Ok(Count(0))
            }
        }
        deserializer.deserialize_any(Items)
    }
}
