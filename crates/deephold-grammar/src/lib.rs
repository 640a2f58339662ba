//! Answers that are guaranteed to fit: JSON schema, regular expressions, Lark grammars and tool calls as token masks.
//!
//! The server makes constraints with it and the engine's sampler follows them. It never sees logits and never parses an answer:
//! that is the tokenizer crate's.
//!
//! [`GrammarEngine`] holds a model's vocabulary as a tree; [`Guide`] says what the answer must be and where the constraint
//! begins; [`GrammarEngine::constraint`] gives what the engine's sampler follows. Thinking stays free, tool calls are free
//! until the model opens one, and from there on every token is within the grammar. Grammars come from outside: their size,
//! their states and the work of each step are bounded.

mod constraint;
mod numbers;
mod schema;
mod tools;

use std::sync::Arc;

use deephold_base::{ErrorCode, TokenId};
use deephold_engine::{Constraint, TokenMask};
use deephold_tokenizer::{Dialect, THINK_CLOSE, THINK_OPEN, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use constraint::{Guided, Start};
use numbers::NumberBound;

/// The longest grammar, schema or expression, in bytes of text.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;

/// A grammar that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// Written wrongly, too large, or with something that the grammar engine does not know.
    #[error("the {what} cannot be used: {problem}")]
    Refused {
        /// Which kind of grammar.
        what: &'static str,
        /// Why, and where.
        problem: String,
    },
    /// The model has no form for tool calls.
    #[error("this model's chat template has no form for tool calls, so none can be required")]
    NoToolCalls,
    /// A vocabulary that cannot be walked.
    #[error("the vocabulary cannot be used for grammars: {0}")]
    Vocabulary(String),
}

impl GrammarError {
    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused { .. } => ErrorCode::InvalidInput,
            Self::NoToolCalls => ErrorCode::Unsupported,
            Self::Vocabulary(_) => ErrorCode::Unsupported,
        }
    }
}

/// What an answer must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guide {
    /// A JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema(Value),
    /// Text that a regular expression matches whole.
    Regex(String),
    /// Text of a Lark grammar.
    Lark(String),
    /// Tool calls.
    Tools(ToolGuide),
}

/// Which tool calls may come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolGuide {
    /// The functions that may be called: name and JSON schema of the arguments.
    pub functions: Vec<(String, Value)>,
    /// The answer is a call; otherwise text may come before it or instead of it.
    pub required: bool,
    /// More than one call.
    pub parallel: bool,
    /// Where no call is required: the schema of the JSON that the answer is instead, and then no text comes before a call.
    pub otherwise: Option<Value>,
}

/// How the answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// The prompt has opened it.
    Opened,
    /// The model may open it.
    Possible,
    /// There is none.
    Closed,
}

impl Thinking {
    /// As the prompt's end shows it; `can_think` says whether the model has a token for it.
    pub fn after_prompt(prompt: &str, can_think: bool) -> Self {
        let tail = prompt.trim_end();
        if tail.ends_with(THINK_OPEN) {
            Self::Opened
        } else if can_think && !tail.ends_with(THINK_CLOSE) {
            Self::Possible
        } else {
            Self::Closed
        }
    }
}

/// A vocabulary, ready for grammars.
pub struct GrammarEngine {
    tokenizer: Arc<Tokenizer>,
    factory: ParserFactory,
    dialect: Dialect,
    stop_ids: Vec<TokenId>,
    /// Tokens that begin with a digit.
    digits: Arc<TokenMask>,
}

/// The tree alone: grammars force no tokens, so how text would be encoded does not matter.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, s: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(s)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl GrammarEngine {
    /// Builds the tree. Control tokens are in no grammar, except the dialect's own marks, which stand for their text.
    ///
    /// # Errors
    /// [`GrammarError::Vocabulary`]: no end token.
    pub fn new(tokenizer: Arc<Tokenizer>, dialect: Dialect) -> Result<Self, GrammarError> {
        let stop_ids = tokenizer.stop_ids().to_vec();
        let Some(eos) = stop_ids.first().copied().or(tokenizer.eos()) else {
            return Err(GrammarError::Vocabulary("it names no end token".into()));
        };
        let marks: Vec<TokenId> =
            dialect.visible_tokens().iter().filter_map(|t| tokenizer.token_to_id(t)).collect();
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as TokenId)
            .map(|id| match tokenizer.is_control(id) && !marks.contains(&id) {
                true => Vec::new(),
                false => tokenizer.token_bytes(id).to_vec(),
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos), &words);
        let env: TokEnv = Arc::new(Vocabulary(trie));
        let mut factory =
            ParserFactory::new_simple(&env).map_err(|e| GrammarError::Vocabulary(e.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.max_lexer_states = 50_000;
        limits.max_grammar_size = 100_000;
        let digits = Arc::new(numbers::digit_tokens(&tokenizer));
        Ok(Self { tokenizer, factory, dialect, stop_ids, digits })
    }

    /// What the sampler follows for one answer.
    ///
    /// # Errors
    /// A grammar that is malformed, too large or unsupported.
    pub fn constraint(&self, guide: &Guide, thinking: Thinking) -> Result<Box<dyn Constraint>, GrammarError> {
        let refuse = |what, problem: String| GrammarError::Refused { what, problem };
        let bounded = |what, text: &str| match text.len() {
            n if n > MAX_GRAMMAR_BYTES => {
                Err(refuse(what, format!("{n} bytes, the most is {MAX_GRAMMAR_BYTES}")))
            }
            _ => Ok(()),
        };
        let (what, grammar, trigger) = match guide {
            Guide::JsonObject => {
                let schema = serde_json::json!({ "type": "object" });
                ("JSON schema", TopLevelGrammar::from_json_schema(schema::compact(schema)), None)
            }
            Guide::JsonSchema(schema) => {
                bounded("JSON schema", &schema.to_string())?;
                ("JSON schema", TopLevelGrammar::from_json_schema(schema::compact(schema.clone())), None)
            }
            Guide::Regex(text) => {
                bounded("regular expression", text)?;
                ("regular expression", TopLevelGrammar::from_regex(text), None)
            }
            Guide::Lark(text) => {
                bounded("Lark grammar", text)?;
                ("Lark grammar", TopLevelGrammar::from_lark(text.clone()), None)
            }
            Guide::Tools(tools) => {
                let opening = match self.dialect {
                    Dialect::Llama3 => None,
                    dialect => Some(dialect.opening().ok_or(GrammarError::NoToolCalls)?),
                };
                let lark = tools::lark(self.dialect, tools);
                bounded("set of tools", &lark)?;
                let trigger = opening.filter(|_| !tools.required && tools.otherwise.is_none());
                ("set of tools", TopLevelGrammar::from_lark(lark), trigger)
            }
        };
        let matcher = |grammar| {
            let parser = self.factory.create_parser(grammar).map_err(|e| refuse(what, first_line(&e)))?;
            let mut matcher = Matcher::new(Ok(parser));
            // A grammar that nothing fits would fail only at the first token.
            match matcher.compute_mask() {
                Ok(_) => Ok(matcher),
                Err(e) => Err(refuse(what, first_line(&e))),
            }
        };
        let bare = match guide {
            Guide::Tools(tools) if trigger.is_some() && self.dialect.has_bare_calls() => {
                Some(matcher(TopLevelGrammar::from_lark(tools::bare_lark(self.dialect, tools)))?)
            }
            _ => None,
        };
        let grammars = (matcher(grammar)?, bare);
        let is_json = match guide {
            Guide::JsonObject | Guide::JsonSchema(_) => true,
            // DSML writes strings without quotes.
            Guide::Tools(_) => !matches!(self.dialect, Dialect::Dsml { .. }),
            Guide::Regex(_) | Guide::Lark(_) => false,
        };
        let numbers = is_json.then(|| NumberBound::new(Arc::clone(&self.digits)));
        let start = match thinking {
            Thinking::Opened => Start::Thinking,
            Thinking::Possible => Start::Either,
            Thinking::Closed => Start::Answer,
        };
        let think_open = self.tokenizer.token_to_id(THINK_OPEN);
        let tokenizer = Arc::clone(&self.tokenizer);
        Ok(Box::new(Guided::new(
            tokenizer,
            grammars,
            numbers,
            self.stop_ids.clone(),
            start,
            trigger,
            think_open,
        )))
    }

    /// The dialect that tool calls are written in.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }
}

fn first_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or("unknown").chars().take(500).collect()
}

#[cfg(test)]
mod tests;
