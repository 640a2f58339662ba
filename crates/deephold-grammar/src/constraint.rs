//! Free text up to a mark, then a grammar, then the end.

use std::sync::Arc;

use deephold_base::TokenId;
use deephold_engine::{Constraint, TokenMask};
use deephold_tokenizer::{THINK_CLOSE, Tokenizer};
use llguidance::Matcher;

use crate::numbers::NumberBound;

const CLOSE: &[u8] = THINK_CLOSE.as_bytes();

/// Where an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Inside the thinking.
    Thinking,
    /// The model may open the thinking with its token, or begin the answer.
    Either,
    /// With the answer.
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Everything may come, until `</think>`; the opening of a call ends it too. The answer ends here only where none is required.
    Thinking,
    /// The grammar's tokens, or the one that opens the thinking.
    Either,
    /// The first characters of an answer that is a call if it begins as one.
    Begin,
    /// Everything may come, until the opening of a call.
    Free,
    Grammar,
    /// Only an end token.
    Ended,
}

pub(crate) struct Guided {
    tokenizer: Arc<Tokenizer>,
    matcher: Matcher,
    /// The grammar of a call without its mark.
    bare: Option<Matcher>,
    /// Where the grammar is JSON's.
    numbers: Option<NumberBound>,
    stop_ids: Vec<TokenId>,
    /// Text that opens the grammar; none where it begins with the answer.
    trigger: Option<&'static str>,
    think_open: Option<TokenId>,
    phase: Phase,
    /// The end of the free text, as much as a mark can overlap.
    tail: Vec<u8>,
}

impl Guided {
    /// `grammars`: the one that the trigger opens, or the answer begins with; and that of a call without its mark.
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        grammars: (Matcher, Option<Matcher>),
        numbers: Option<NumberBound>,
        stop_ids: Vec<TokenId>,
        start: Start,
        trigger: Option<&'static str>,
        think_open: Option<TokenId>,
    ) -> Self {
        let (matcher, bare) = grammars;
        let phase = Phase::Ended;
        let mut out = Self {
            tokenizer,
            matcher,
            bare,
            numbers,
            stop_ids,
            trigger,
            think_open,
            phase,
            tail: Vec::new(),
        };
        out.phase = match start {
            Start::Thinking => Phase::Thinking,
            Start::Either if trigger.is_none() && think_open.is_some() => Phase::Either,
            Start::Either | Start::Answer => out.answer(),
        };
        out
    }

    fn answer(&self) -> Phase {
        match (self.trigger, &self.bare) {
            (None, _) => Phase::Grammar,
            (Some(_), None) => Phase::Free,
            (Some(_), Some(_)) => Phase::Begin,
        }
    }

    fn is_stop(&self, token: TokenId) -> bool {
        self.stop_ids.contains(&token)
    }

    fn mask(&mut self) -> Result<TokenMask, String> {
        let words = self.matcher.compute_mask_or_eos().map_err(|e| text(&e))?;
        let mut mask = TokenMask::from_words(words.as_slice().to_vec());
        // The tree knows one end token; where it may come, all of the model's may.
        if self.stop_ids.first().is_some_and(|id| mask.allows(*id)) {
            self.stop_ids.iter().for_each(|id| mask.allow(*id));
        }
        self.numbers.iter().for_each(|numbers| numbers.restrict(&mut mask));
        Ok(mask)
    }

    /// Looks for `mark` in the free text; what follows it belongs to the next phase.
    fn after(&self, mark: &[u8]) -> Option<Vec<u8>> {
        let at = self.tail.windows(mark.len()).position(|w| w == mark)?;
        Some(self.tail[at + mark.len()..].to_vec())
    }

    /// Free text goes on.
    fn free(&mut self, token: TokenId) -> Result<(), String> {
        self.tail.extend_from_slice(self.tokenizer.token_bytes(token));
        if self.phase == Phase::Begin && !self.begin() {
            return Ok(());
        }
        let opened = self.trigger.and_then(|t| self.after(t.as_bytes()));
        let closed = if self.phase == Phase::Thinking { self.after(CLOSE) } else { None };
        match (opened, closed) {
            (Some(rest), None) => self.enter_grammar(&rest)?,
            (_, Some(rest)) => {
                self.tail = rest;
                self.phase = self.answer();
                if self.phase == Phase::Grammar {
                    // Line breaks after the thinking belong to neither.
                    let rest = std::mem::take(&mut self.tail);
                    self.enter_grammar(rest.trim_ascii_start())?;
                } else if (self.phase == Phase::Free || self.begin())
                    && let Some(rest) = self.trigger.and_then(|t| self.after(t.as_bytes()))
                {
                    self.enter_grammar(&rest)?;
                }
            }
            (None, None) => {}
        }
        let longest = CLOSE.len().max(self.trigger.map_or(0, str::len));
        let keep = self.tail.len().saturating_sub(longest);
        self.tail.drain(..keep);
        Ok(())
    }

    /// Looks at an answer's first characters: false where more must come or it has become a call.
    fn begin(&mut self) -> bool {
        let text = self.tail.trim_ascii_start();
        if text.is_empty() {
            return false;
        }
        self.phase = Phase::Free;
        let Some(mut bare) = self.bare.take().filter(|_| text[0] == b'{') else { return true };
        // What begins otherwise than a call is text all the same.
        let tokens = bare.tok_env().map(|env| env.tok_trie().greedy_tokenize(text));
        if tokens.and_then(|tokens| bare.consume_tokens(&tokens)).is_err() {
            return true;
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.accept(text);
        }
        self.matcher = bare;
        self.tail.clear();
        self.phase = Phase::Grammar;
        false
    }

    /// A token may hold the mark and what follows it: those bytes go to the grammar as the tokens that spell them.
    fn enter_grammar(&mut self, rest: &[u8]) -> Result<(), String> {
        self.phase = Phase::Grammar;
        self.tail.clear();
        if rest.is_empty() {
            return Ok(());
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.accept(rest);
        }
        let env = self.matcher.tok_env().map_err(|e| text(&e))?;
        let tokens = env.tok_trie().greedy_tokenize(rest);
        self.matcher.consume_tokens(&tokens).map_err(|e| text(&e))
    }
}

impl Constraint for Guided {
    fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
        match self.phase {
            // The answer is still to come: it may not end within the thinking.
            Phase::Thinking if self.trigger.is_none() => {
                let mut mask = TokenMask::all(self.tokenizer.vocab_size());
                self.stop_ids.iter().for_each(|id| mask.forbid(*id));
                Ok(Some(mask))
            }
            Phase::Thinking | Phase::Begin | Phase::Free => Ok(None),
            Phase::Grammar => self.mask().map(Some),
            Phase::Either => {
                let mut mask = self.mask()?;
                self.think_open.into_iter().for_each(|id| mask.allow(id));
                Ok(Some(mask))
            }
            Phase::Ended => {
                let mut mask = TokenMask::none(self.tokenizer.vocab_size());
                self.stop_ids.iter().for_each(|id| mask.allow(*id));
                Ok(Some(mask))
            }
        }
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        if self.is_stop(token) {
            self.phase = Phase::Ended;
            return Ok(());
        }
        match self.phase {
            Phase::Thinking | Phase::Begin | Phase::Free => self.free(token),
            Phase::Either if Some(token) == self.think_open => {
                self.phase = Phase::Thinking;
                Ok(())
            }
            Phase::Either | Phase::Grammar => {
                self.phase = Phase::Grammar;
                if let Some(numbers) = &mut self.numbers {
                    numbers.accept(self.tokenizer.token_bytes(token));
                }
                self.matcher.consume_token(token).map_err(|e| text(&e))
            }
            Phase::Ended => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self {
            tokenizer: Arc::clone(&self.tokenizer),
            matcher: self.matcher.deep_clone(),
            bare: self.bare.as_ref().map(Matcher::deep_clone),
            numbers: self.numbers.clone(),
            stop_ids: self.stop_ids.clone(),
            trigger: self.trigger,
            think_open: self.think_open,
            phase: self.phase,
            tail: self.tail.clone(),
        })
    }
}

fn text(error: &impl std::fmt::Display) -> String {
    format!("the grammar could not go on: {}", super::first_line(error))
}
