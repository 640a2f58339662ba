//! Ids to text as they come.

use deephold_base::TokenId;

use crate::Tokenizer;

/// Turns a stream of ids into whole UTF-8: what it returns, joined, is [`Tokenizer::decode`] of all ids.
///
/// Bytes that can still become a character are kept back; bytes that cannot become U+FFFD, as many as
/// [`String::from_utf8_lossy`] would give for the whole.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    pending: Vec<u8>,
    keep_control: bool,
    /// Control tokens that are shown all the same, sorted.
    shown: Vec<TokenId>,
    at_start: bool,
}

impl Detokenizer {
    /// For text that stands alone: a SentencePiece vocabulary's leading space goes. Control tokens are left out.
    pub fn new() -> Self {
        Self { pending: Vec::new(), keep_control: false, shown: Vec::new(), at_start: true }
    }

    /// For text that goes on after `prompt`: a leading space goes only after a control token.
    pub fn after(tokenizer: &Tokenizer, prompt: &[TokenId]) -> Self {
        let mut out = Self::new();
        out.at_start = prompt.last().is_none_or(|id| tokenizer.is_control(*id));
        out
    }

    /// Shows control tokens as they are written.
    pub fn keep_control(mut self, keep: bool) -> Self {
        self.keep_control = keep;
        self
    }

    /// Shows these control tokens as they are written: marks that a dialect reads.
    pub fn show(mut self, mut ids: Vec<TokenId>) -> Self {
        ids.sort_unstable();
        self.shown = ids;
        self
    }

    /// Takes one id, gives the text that is certain now.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId) -> String {
        if tokenizer.is_control(id) {
            if self.keep_control || self.shown.binary_search(&id).is_ok() {
                self.pending.extend_from_slice(tokenizer.token_bytes(id));
            }
        } else {
            let bytes = tokenizer.token_bytes(id);
            let cut =
                usize::from(self.at_start && tokenizer.strips_first_space() && bytes.first() == Some(&b' '));
            self.pending.extend_from_slice(&bytes[cut..]);
            self.at_start = false;
        }
        self.take(false)
    }

    /// The rest: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> String {
        let mut out = String::new();
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    // Valid by `valid_up_to`: nothing is replaced.
                    out.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(bad) => {
                            out.push('\u{fffd}');
                            rest = &after[bad..];
                        }
                        None if all => {
                            out.push('\u{fffd}');
                            rest = &[];
                        }
                        None => {
                            rest = after;
                            break;
                        }
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        out
    }
}

impl Default for Detokenizer {
    fn default() -> Self {
        Self::new()
    }
}
