//! Tokenizer metadata out of tokenizer.json and tokenizer_config.json.
//!
//! Two kinds: byte-level BPE (`gpt2`), and BPE over U+2581 words with byte fallback (`llama`, SentencePiece's). The
//! whole tokenizer.json goes along under `tokenizer.huggingface.json` where GGUF cannot say all of it.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::error::shown;
use crate::files::read_bounded;
use crate::gguf::{Array, Metadata, Value};
use crate::{Checkpoint, WeightsError, config};

const TOKENIZER_BYTES_MAX: u64 = 64 << 20;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

pub(super) fn add(
    input: &Checkpoint,
    vocab_size: usize,
    m: &mut Metadata,
    notes: &mut Vec<String>,
) -> Result<(), WeightsError> {
    // A model that is part of a program has it in memory.
    let (path, bytes) = match (input.tokenizer_json(), input.embedded_tokenizer_json()) {
        (Some(path), _) => (path.clone(), read_bounded(&path, TOKENIZER_BYTES_MAX)?),
        (None, Some(bytes)) => (input.path().join("tokenizer.json"), bytes.to_vec()),
        (None, None) => {
            m.set("tokenizer.ggml.model", Value::text("none"));
            notes.push("the folder has no tokenizer.json: the file serves token ids only".into());
            return Ok(());
        }
    };
    let json = config::parse_bounded(&bytes, TOKENIZER_BYTES_MAX).map_err(|e| e.in_file(&path))?;
    let vocabulary = Vocabulary::parse(&json, vocab_size).map_err(|e| e.in_file(&path))?;
    let byte_fallback = json["model"]["byte_fallback"].as_bool().unwrap_or(false);
    let pre = if byte_fallback { None } else { pre_tokenizer(&json) };
    let set = |m: &mut Metadata, key: &str, value| m.set(format!("tokenizer.ggml.{key}"), value);
    set(m, "model", Value::text(if byte_fallback { "llama" } else { "gpt2" }));
    set(m, "pre", Value::text(pre.unwrap_or("default")));
    if !byte_fallback && pre.is_none() {
        notes.push(
            "the pre-tokenizer is none that GGUF has a name for: llama.cpp may split text differently, Deephold reads \
             the whole tokenizer.json from the file"
                .into(),
        );
    }
    set(m, "token_type", Value::Array(Array::I32(vocabulary.types(byte_fallback))));
    if byte_fallback {
        set(m, "scores", Value::Array(Array::F32(vocabulary.scores())));
        set(m, "add_space_prefix", Value::Bool(prepends_space(&json)));
    }
    let merges = vocabulary.merges.iter().map(|(a, b)| format!("{a} {b}").into_bytes()).collect();
    set(m, "merges", Value::Array(Array::String(merges)));
    special_tokens(input, &json, &vocabulary, m);
    let tokens = vocabulary.tokens.into_iter().map(|t| t.text.into_bytes()).collect();
    m.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    if let Some(template) = input.chat_template() {
        m.set("tokenizer.chat_template", Value::text(template));
    }
    if pre.is_none() {
        m.set("tokenizer.huggingface.json", Value::String(bytes));
    }
    Ok(())
}

struct Token {
    text: String,
    kind: i32,
}

struct Vocabulary {
    /// In the order of ids, as many as the embedding has rows.
    tokens: Vec<Token>,
    ids: HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

impl Vocabulary {
    fn parse(json: &Json, vocab_size: usize) -> Result<Self, WeightsError> {
        let bad = |problem: String| WeightsError::malformed("the tokenizer", problem);
        let model = &json["model"];
        if model["type"].as_str().is_some_and(|t| t != "BPE") {
            let found = shown(model["type"].as_str().unwrap_or_default());
            return Err(WeightsError::unsupported(
                "the tokenizer's model",
                found,
                "only BPE is written to GGUF",
            ));
        }
        let Some(vocab) = model["vocab"].as_object() else { return Err(bad("has no `model.vocab`".into())) };
        let mut slots: Vec<Option<Token>> = Vec::new();
        let mut put = |text: &str, id: Option<u64>, kind: i32| match id.filter(|id| *id < vocab_size as u64) {
            Some(id) => {
                let id = id as usize;
                if slots.len() <= id {
                    slots.resize_with(id + 1, || None);
                }
                slots[id] = Some(Token { text: text.to_owned(), kind });
                Ok(())
            }
            None => Err(bad(format!(
                "gives `{}` an id beyond the {vocab_size} rows of the embedding",
                shown(text)
            ))),
        };
        for (text, id) in vocab {
            put(text, id.as_u64(), NORMAL)?;
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let special = token["special"].as_bool().unwrap_or(false);
            let text = token["content"].as_str().unwrap_or_default();
            put(text, token["id"].as_u64(), if special { CONTROL } else { USER_DEFINED })?;
        }
        // Rows beyond the vocabulary exist only to make the matrix even.
        slots.resize_with(vocab_size, || None);
        let tokens: Vec<Token> = slots
            .into_iter()
            .enumerate()
            .map(|(i, t)| t.unwrap_or_else(|| Token { text: format!("[PAD{i}]"), kind: UNUSED }))
            .collect();
        let ids = tokens.iter().enumerate().map(|(i, t)| (t.text.clone(), i as u32)).collect();
        let merges = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
        let merges = merges.iter().map(merge).collect::<Option<_>>();
        let Some(merges) = merges else { return Err(bad("has a merge that is not a pair".into())) };
        Ok(Self { tokens, ids, merges })
    }

    fn types(&self, byte_fallback: bool) -> Vec<i32> {
        let kind = |t: &Token| match t.text.as_str() {
            "<unk>" if byte_fallback => UNKNOWN,
            text if byte_fallback && is_byte(text) => BYTE,
            _ => t.kind,
        };
        self.tokens.iter().map(kind).collect()
    }

    /// SentencePiece merges the pair whose result scores highest: minus the rank of the merge, lower still for what no
    /// merge makes.
    fn scores(&self) -> Vec<f32> {
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (a, b)) in self.merges.iter().enumerate() {
            ranks.entry(format!("{a}{b}")).or_insert(rank);
        }
        let score = |(i, t): (usize, &Token)| match ranks.get(&t.text) {
            _ if t.kind != NORMAL || is_byte(&t.text) => 0.0,
            Some(rank) => -(*rank as f32) - 1.0,
            None => -((self.merges.len() + i) as f32) - 1.0,
        };
        self.tokens.iter().enumerate().map(score).collect()
    }
}

/// `["a", "b"]`, or `"a b"` in older files.
fn merge(json: &Json) -> Option<(String, String)> {
    match json {
        Json::String(pair) => pair.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(a), Json::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    }
}

fn is_byte(text: &str) -> bool {
    text.len() == 6
        && text
            .strip_prefix("<0x")
            .and_then(|t| t.strip_suffix('>'))
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The name under which llama.cpp knows these splits, recognized by the patterns alone; a pre-tokenizer that is only
/// similar has none.
pub(super) fn pre_tokenizer(json: &Json) -> Option<&'static str> {
    const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
    const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let mut patterns = Vec::new();
    collect_patterns(&json["pre_tokenizer"], &mut patterns, 0);
    let has = |part: &str| patterns.iter().any(|p| p.contains(part));
    let is = |whole: &str| patterns.iter().any(|p| p == whole);
    let digits = match patterns.as_slice() {
        [one] => one.strip_prefix(WORDS).and_then(|p| p.strip_suffix(REST)),
        _ => None,
    };
    // llama.cpp takes a whole word that is a token without merging under this name.
    let ignore_merges = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    match (digits, patterns.first().map(String::as_str)) {
        (Some(r"\p{N}{1,3}"), _) if ignore_merges => Some("llama-bpe"),
        (Some(r"\p{N}"), _) => Some("qwen2"),
        (None, Some(r"\p{N}{1,3}"))
            if has(r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|") && has("一-龥") =>
        {
            Some("deepseek-v3")
        }
        (None, Some(r"[\r\n]")) if is(r"\s?\p{L}+") && is(r"\s?\p{P}+") && has("一-龥") && is(r"\p{N}") => {
            Some("deepseek-coder")
        }
        (None, Some(r"[\r\n]")) if has(r"\s?[A-Za-z") && has("一-龥") && is(r"\p{N}+") => {
            Some("deepseek-llm")
        }
        _ => None,
    }
}

/// Files write line breaks in patterns as themselves or escaped; here always escaped.
fn collect_patterns(json: &Json, out: &mut Vec<String>, depth: usize) {
    if depth > 4 {
        return;
    }
    out.extend(json["pattern"]["Regex"].as_str().map(|p| p.replace('\r', r"\r").replace('\n', r"\n")));
    for inner in json["pretokenizers"].as_array().into_iter().flatten() {
        collect_patterns(inner, out, depth + 1);
    }
}

fn prepends_space(json: &Json) -> bool {
    let in_normalizer = |n: &Json| n["type"] == "Prepend";
    let normalizer = &json["normalizer"];
    let nested = normalizer["normalizers"].as_array().is_some_and(|all| all.iter().any(in_normalizer));
    let pre = &json["pre_tokenizer"];
    let metaspace = pre["type"] == "Metaspace"
        && (pre["prepend_scheme"] == "first"
            || pre["prepend_scheme"] == "always"
            || pre["add_prefix_space"] == true);
    in_normalizer(normalizer) || nested || metaspace
}

fn special_tokens(input: &Checkpoint, json: &Json, vocabulary: &Vocabulary, m: &mut Metadata) {
    let config = input.tokenizer_config();
    let named = |key: &str| -> Option<u32> {
        let token = config?.get(key)?;
        let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
        vocabulary.ids.get(text).copied()
    };
    let in_config = |c: Option<&Json>, key: &str| -> Vec<u32> {
        match c.and_then(|c| c.get(key)) {
            Some(Json::Array(ids)) => ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect(),
            Some(id) => id.as_u64().and_then(|id| u32::try_from(id).ok()).into_iter().collect(),
            None => Vec::new(),
        }
    };
    let known = |id: &u32| (*id as usize) < vocabulary.tokens.len();
    for (key, config_key, name) in [
        ("bos_token_id", "bos_token_id", "bos_token"),
        ("eos_token_id", "eos_token_id", "eos_token"),
        ("padding_token_id", "pad_token_id", "pad_token"),
        ("unknown_token_id", "unk_token_id", "unk_token"),
    ] {
        let id = named(name).or_else(|| in_config(Some(input.config()), config_key).into_iter().find(known));
        if let Some(id) = id {
            m.set(format!("tokenizer.ggml.{key}"), Value::U32(id));
        }
    }
    // A second end token of generation_config.json ends turns.
    let eos = m.get_u32("tokenizer.ggml.eos_token_id");
    let ends = in_config(input.generation_config(), "eos_token_id");
    if let Some(eot) = ends.into_iter().find(|id| Some(*id) != eos && known(id)) {
        m.set("tokenizer.ggml.eot_token_id", Value::U32(eot));
    }
    let flag = |key: &str| config.and_then(|c| c.get(key)).and_then(Json::as_bool);
    let bos = m.get_u32("tokenizer.ggml.bos_token_id");
    let add_bos = flag("add_bos_token").or_else(|| Some(template_begins_with(json, vocabulary, bos?)));
    m.set("tokenizer.ggml.add_bos_token", Value::Bool(add_bos.unwrap_or(false)));
    m.set("tokenizer.ggml.add_eos_token", Value::Bool(flag("add_eos_token").unwrap_or(false)));
}

/// Whether the post-processor puts `bos` in front, alone or within a sequence.
fn template_begins_with(json: &Json, vocabulary: &Vocabulary, bos: u32) -> bool {
    let post = &json["post_processor"];
    let one = |p: &Json| {
        let first = &p["single"][0]["SpecialToken"]["id"];
        first.as_str().and_then(|t| vocabulary.ids.get(t)) == Some(&bos)
    };
    one(post) || post["processors"].as_array().is_some_and(|all| all.iter().any(one))
}
