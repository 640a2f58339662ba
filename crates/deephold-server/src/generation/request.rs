//! A request that cannot be bad: lengths and ranges are checked, the template is rendered, ids are known.

use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;
use deephold_engine::SamplingParams;
use deephold_grammar::{Guide, Thinking};
use deephold_tokenizer::Dialect;

use crate::backends::Hosted;

/// What a model shall do.
pub(crate) struct ValidRequest {
    pub(crate) model: Arc<Hosted>,
    /// Each gets `params.n` answers, those of the first prompt first.
    pub(crate) prompts: Vec<Vec<TokenId>>,
    /// What a chat's answer is read by; none for plain completions.
    pub(crate) chat: Option<ChatContext>,
    /// With a seed, so that the answer can be computed again.
    pub(crate) params: SamplingParams,
    pub(crate) stops: Vec<String>,
    /// From now on, for the whole request.
    pub(crate) timeout: Duration,
    /// What the answer must be, and where it begins.
    pub(crate) guide: Option<(Guide, Thinking)>,
    /// Higher goes first.
    pub(crate) priority: i32,
    /// Divides the tenant's cached prefixes by user.
    pub(crate) cache_salt: Vec<u8>,
}

/// The form of a chat's answer; a chat has one prompt.
pub(crate) struct ChatContext {
    /// The rendered prompt: it says whether the answer begins inside the thinking.
    pub(crate) prompt: String,
    pub(crate) dialect: Dialect,
    /// Calls are told from text.
    pub(crate) has_tools: bool,
    /// When it was rendered, in seconds since 1970: a template may write the date.
    pub(crate) rendered_at: u64,
}

impl ValidRequest {
    /// Answers to all prompts.
    pub(crate) fn num_answers(&self) -> usize {
        self.prompts.len() * self.params.n
    }
}
