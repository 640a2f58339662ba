//! Text to ids, ids to text.

use deephold_base::TokenId;
use deephold_weights::files::read_bounded;
use deephold_weights::{Checkpoint, GgufVocab};
use serde_json::Value;

use crate::TokenizerError;
use crate::detokenizer::Detokenizer;
use crate::gguf;
use crate::outline::{MAX_ENTRIES, MAX_JSON, Outline};
use crate::pieces::{Pieces, from_byte_level, from_sentence_piece};
use crate::pre_tokenizer::PreTokenizer;
use crate::sentencepiece::SentencePiece;

/// The longest text that is encoded at once, in bytes, as long as the normalizer does not make it longer.
const MAX_TEXT: usize = 16 << 20;

/// How ids become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decoding {
    ByteLevel,
    SentencePiece {
        strips_first_space: bool,
    },
    /// BERT's: `##` goes on with a word, everything else begins one. For vectors; what was between words is not known any more.
    WordPiece,
}

enum Encoder {
    Library(Box<tokenizers::Tokenizer>),
    SentencePiece(SentencePiece),
}

/// A vocabulary with its rules.
pub struct Tokenizer {
    encoder: Encoder,
    pieces: Pieces,
    strips_first_space: bool,
    /// How many times longer the normalizer may make a text.
    growth: usize,
    /// Bytes of text that a token stands for at most, where that is known.
    longest: Option<usize>,
    /// Explicit word of tokenizer_config.json or GGUF; otherwise the post-processor decides.
    add_bos: Option<bool>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    stops: Vec<TokenId>,
}

impl Tokenizer {
    /// The tokenizer of a model: tokenizer.json beside it or inside its GGUF file, else the GGUF vocabulary.
    ///
    /// # Errors
    /// There is none, it contradicts its format, or it is of a kind that is not supported.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, TokenizerError> {
        let mut out = if let Some(path) = checkpoint.tokenizer_json() {
            Self::from_json(&read_bounded(&path, MAX_JSON)?, checkpoint.tokenizer_config())?
        } else if let Some(vocab) = checkpoint.gguf_vocab() {
            match checkpoint.embedded_tokenizer_json() {
                Some(json) => Self::from_json(json, None)?.with_gguf(&vocab),
                None => Self::from_gguf(&vocab)?,
            }
        } else if let Some(json) = checkpoint.embedded_tokenizer_json() {
            Self::from_json(json, checkpoint.tokenizer_config())?
        } else {
            return Err(TokenizerError::Missing { model: checkpoint.path().display().to_string() });
        };
        let ends = [checkpoint.generation_config(), Some(checkpoint.config())];
        for value in ends.into_iter().flatten().filter_map(|c| c.get("eos_token_id")) {
            let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            out.stops
                .extend(ids.iter().filter_map(Value::as_u64).filter_map(|id| TokenId::try_from(id).ok()));
        }
        out.stops.sort_unstable();
        out.stops.dedup();
        Ok(out)
    }

    /// From tokenizer.json and, where there is one, tokenizer_config.json.
    ///
    /// # Errors
    /// Malformed JSON, a model or decoder that is not supported.
    pub fn from_json(json: &[u8], config: Option<&Value>) -> Result<Self, TokenizerError> {
        let outline = Outline::read(json)?;
        let decoding = decoding(&outline.decoder)?;
        let library = build(json)?;
        let pieces = library_pieces(&library, decoding)?;
        // Others have tokens for words that they do not know, of any length.
        let is_exact = decoding == Decoding::ByteLevel && !outline.shortens && !strips(&library);
        let longest = is_exact.then(|| pieces.longest());
        let strips_first_space =
            matches!(decoding, Decoding::SentencePiece { strips_first_space: true } | Decoding::WordPiece);
        let mut out = Self {
            encoder: Encoder::Library(Box::new(library)),
            pieces,
            strips_first_space,
            growth: outline.growth,
            longest,
            add_bos: None,
            bos: None,
            eos: None,
            stops: Vec::new(),
        };
        if let Some(config) = config {
            let named = |key: &str| {
                let value = config.get(key)?;
                out.token_to_id(value.as_str().or_else(|| value.get("content")?.as_str())?)
            };
            (out.bos, out.eos) = (named("bos_token"), named("eos_token"));
            out.add_bos = config.get("add_bos_token").and_then(Value::as_bool);
            out.stops.extend(out.eos);
        }
        Ok(out)
    }

    /// From the vocabulary inside a GGUF file.
    ///
    /// # Errors
    /// A tokenizer or pre-tokenizer that is not supported, a vocabulary that contradicts itself.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, TokenizerError> {
        for (what, actual) in [
            ("the number of tokens in the GGUF vocabulary", vocab.tokens.len()),
            ("the number of merges in the GGUF vocabulary", vocab.merges.len()),
        ] {
            if actual > MAX_ENTRIES {
                return Err(TokenizerError::TooLarge { what, actual, limit: MAX_ENTRIES });
            }
        }
        let (encoder, pieces, strips_first_space) = match vocab.model.as_str() {
            "gpt2" => {
                let (json, pieces) = gguf::byte_level(vocab)?;
                let library = build(json.to_string().as_bytes())?;
                (Encoder::Library(Box::new(library)), pieces, false)
            }
            "llama" => {
                let (model, pieces) = gguf::sentence_piece(vocab)?;
                (Encoder::SentencePiece(model), pieces, vocab.add_space_prefix.unwrap_or(true))
            }
            other => return Err(gguf::unsupported_model(other)),
        };
        let is_exact = matches!(&encoder, Encoder::Library(t) if !strips(t));
        let longest = is_exact.then(|| pieces.longest());
        let out = Self {
            encoder,
            pieces,
            strips_first_space,
            growth: 1,
            longest,
            add_bos: None,
            bos: None,
            eos: None,
            stops: Vec::new(),
        };
        Ok(out.with_gguf(vocab))
    }

    fn with_gguf(mut self, vocab: &GgufVocab) -> Self {
        // llama.cpp's defaults where the file is silent.
        let default = match vocab.model.as_str() {
            "llama" => true,
            _ => PreTokenizer::named(&vocab.pre).is_some_and(|p| p.add_bos),
        };
        self.add_bos = Some(vocab.add_bos.unwrap_or(default) && vocab.bos.is_some());
        (self.bos, self.eos) = (vocab.bos, vocab.eos);
        self.stops = gguf::stops(vocab);
        self
    }

    /// How many ids there are; models often have a few more rows.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Beginning of a sequence.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// End of a sequence.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// All tokens that end an answer, in order.
    pub fn stop_ids(&self) -> &[TokenId] {
        &self.stops
    }

    /// The id of a token as the vocabulary writes it.
    pub fn token_to_id(&self, token: &str) -> Option<TokenId> {
        match &self.encoder {
            Encoder::Library(t) => t.token_to_id(token),
            Encoder::SentencePiece(s) => s.token_to_id(token),
        }
    }

    /// The bytes that a token stands for; none for an unknown id.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.pieces.bytes(id)
    }

    /// Whether a token is a marker, which decoding leaves out.
    pub fn is_control(&self, id: TokenId) -> bool {
        self.pieces.is_control(id)
    }

    pub(crate) fn strips_first_space(&self) -> bool {
        self.strips_first_space
    }

    /// How many tokens a text has at least: known without encoding it, which takes some sixty times its memory.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.longest.map_or(0, |longest| text.len().div_ceil(longest.max(1)))
    }

    /// Ids of a text as it is: markers in it become their tokens, nothing is put before it. For rendered templates.
    ///
    /// # Errors
    /// A text beyond 16 MiB (less where the normalizer makes texts longer), or one that the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        self.run(text, false)
    }

    /// Ids of a plain prompt: with the beginning of a sequence where the model wants one.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut ids = self.run(text, self.add_bos.is_none())?;
        if let (Some(true), Some(bos)) = (self.add_bos, self.bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The marks of a hole to be filled: before the text before it, before the text behind it, and where the answer begins.
    /// DeepSeek's put the hole's mark between the texts and an end mark behind them, Qwen's name the parts; both have this order.
    fn hole_marks(&self) -> Option<[TokenId; 3]> {
        const MARKS: [[&str; 3]; 3] = [
            ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
            ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
            ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        ];
        MARKS.iter().find_map(|[begin, hole, end]| {
            Some([self.token_to_id(begin)?, self.token_to_id(hole)?, self.token_to_id(end)?])
        })
    }

    /// Whether the model knows how to fill a hole in a text.
    pub fn can_fill_in_the_middle(&self) -> bool {
        self.hole_marks().is_some()
    }

    /// The prompt for what stands between `prefix` and `suffix`; `None` where the model has no marks for it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_hole(&self, prefix: &str, suffix: &str) -> Result<Option<Vec<TokenId>>, TokenizerError> {
        let Some([begin, hole, end]) = self.hole_marks() else { return Ok(None) };
        // What a plain prompt begins with, which with some models is a marker.
        let mut ids = self.encode_prompt("")?;
        ids.push(begin);
        ids.extend(self.encode(prefix)?);
        ids.push(hole);
        ids.extend(self.encode(suffix)?);
        ids.push(end);
        Ok(Some(ids))
    }

    /// Text of ids; control tokens are left out, bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut detokenizer = Detokenizer::new();
        let mut out: String = ids.iter().map(|id| detokenizer.push(self, *id)).collect();
        out.push_str(&detokenizer.finish());
        out
    }

    fn run(&self, text: &str, post_process: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let limit = MAX_TEXT / self.growth;
        if text.len() > limit {
            let what = "the size of the text";
            return Err(TokenizerError::TooLarge { what, actual: text.len(), limit });
        }
        match &self.encoder {
            Encoder::Library(t) => {
                let encoding = guarded(|| t.encode_fast(text, post_process))?;
                let encoding = encoding.map_err(|e| TokenizerError::Encode(e.to_string()))?;
                Ok(encoding.get_ids().to_vec())
            }
            Encoder::SentencePiece(s) => Ok(s.encode(text)),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// The library means to return errors, but was not written for hostile files: a panic of its becomes an error too.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, TokenizerError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f))
        .map_err(|_| TokenizerError::Encode("the tokenizer library failed on it".to_owned()))
}

/// The library's parser speaks of its own types where a part is of no kind that it knows.
fn in_plain_words(error: &str) -> String {
    const PARTS: [(&str, &str); 5] = [
        ("Model", "model"),
        ("Normalizer", "normalizer"),
        ("PreTokenizer", "pre_tokenizer"),
        ("PostProcessor", "post_processor"),
        ("Decoder", "decoder"),
    ];
    let Some((_, rest)) = error.split_once("untagged enum ") else { return error.to_owned() };
    let found = PARTS.iter().find(|(ours, _)| rest.starts_with(ours));
    let part = found.map_or_else(|| "a part".to_owned(), |(_, part)| format!("its `{part}`"));
    let place = rest.split_once(" at ").map_or_else(String::new, |(_, at)| format!(" (at {at})"));
    format!("{part} is of no known kind, or lacks what its kind needs{place}")
}

fn build(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let malformed = |problem: String| TokenizerError::malformed("tokenizer.json", problem);
    let mut library = guarded(|| tokenizers::Tokenizer::from_bytes(json))
        .map_err(|_| malformed("the tokenizer library failed on it".into()))?
        .map_err(|e| malformed(in_plain_words(&e.to_string())))?;
    // Limits for training batches; an engine wants all tokens and only them.
    library.with_truncation(None).map_err(|e| malformed(e.to_string()))?;
    library.with_padding(None);
    Ok(library)
}

/// Whether a token takes the space around it along, however much that is.
fn strips(library: &tokenizers::Tokenizer) -> bool {
    library.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip)
}

/// What the decoder of tokenizer.json does, in the kinds that language models use.
fn decoding(decoder: &Value) -> Result<Decoding, TokenizerError> {
    let kind = |v: &Value| v.get("type").and_then(Value::as_str).unwrap_or("none").to_owned();
    let parts: Vec<&Value> = match decoder.get("decoders").and_then(Value::as_array) {
        Some(parts) => parts.iter().collect(),
        None => vec![decoder],
    };
    let kinds: Vec<String> = parts.iter().map(|p| kind(p)).collect();
    if kinds == ["WordPiece"] {
        return Ok(Decoding::WordPiece);
    }
    let known = ["ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
    if kinds.iter().all(|k| known.contains(&k.as_str())) {
        if kinds.iter().any(|k| k == "ByteLevel") {
            return Ok(Decoding::ByteLevel);
        }
        if kinds.iter().any(|k| k == "Metaspace" || k == "Replace") {
            let strips = |p: &&Value| match kind(p).as_str() {
                "Strip" => p.get("start").and_then(Value::as_u64).unwrap_or(0) > 0,
                "Metaspace" => p.get("prepend_scheme").and_then(Value::as_str) != Some("never"),
                _ => false,
            };
            return Ok(Decoding::SentencePiece { strips_first_space: parts.iter().any(strips) });
        }
    }
    Err(TokenizerError::Unsupported {
        what: format!(
            "the decoder `{}` of tokenizer.json",
            kinds.join(", ").chars().take(80).collect::<String>()
        ),
        supported: "ByteLevel, WordPiece, and SentencePiece's Replace, ByteFallback, Fuse, Strip, Metaspace",
    })
}

fn library_pieces(t: &tokenizers::Tokenizer, decoding: Decoding) -> Result<Pieces, TokenizerError> {
    let added = t.get_added_tokens_decoder();
    let mut entries: Vec<(TokenId, Vec<u8>, bool)> =
        added.iter().map(|(id, token)| (*id, token.content.clone().into_bytes(), token.special)).collect();
    for (token, id) in t.get_vocab(false) {
        if !added.contains_key(&id) {
            let bytes = match decoding {
                Decoding::ByteLevel => from_byte_level(&token),
                Decoding::SentencePiece { .. } => from_sentence_piece(&token),
                Decoding::WordPiece => match token.strip_prefix("##") {
                    Some(rest) => rest.as_bytes().to_vec(),
                    None => format!(" {token}").into_bytes(),
                },
            };
            entries.push((id, bytes, false));
        }
    }
    Pieces::new(entries)
}
