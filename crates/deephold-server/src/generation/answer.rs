//! Whole answers, assembled from deltas.

use deephold_base::TokenId;
use deephold_engine::SampledToken;
use deephold_tokenizer::ToolCall;

use super::stream::{Delta, End, TokenDelta};

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) reasoning_tokens: usize,
}

/// One of a request's answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) tokens: Vec<TokenDelta>,
    /// The prompt's tokens, where their log probabilities were asked for.
    pub(crate) prompt: Vec<SampledToken>,
    /// All ids, the end's included.
    pub(crate) ids: Vec<TokenId>,
    pub(crate) end: Option<End>,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
}

impl Answer {
    pub(crate) fn add(&mut self, delta: &Delta) {
        self.reasoning.push_str(&delta.reasoning);
        self.content.push_str(&delta.content);
        self.tool_calls.extend(delta.tool_calls.iter().cloned());
        self.tokens.extend(delta.tokens.iter().cloned());
        self.prompt.extend(delta.prompt.iter().cloned());
        self.ids.extend(&delta.ids);
        self.end = delta.end.or(self.end);
        self.stop = delta.stop.clone().or_else(|| self.stop.take());
    }
}
