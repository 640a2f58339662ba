//! A request that cannot be bad: lengths and ranges are checked, the template is rendered, ids are known.

use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;
use deephold_engine::SamplingParams;

use crate::backends::Hosted;

/// What a model shall do.
pub(crate) struct ValidRequest {
    pub(crate) model: Arc<Hosted>,
    /// Each gets `params.n` answers, those of the first prompt first.
    pub(crate) prompts: Vec<Vec<TokenId>>,
    /// The rendered prompt where the answer is a chat's, which has one: it says whether the answer begins inside the thinking.
    pub(crate) chat_prompt: Option<String>,
    /// With a seed, so that the answer can be computed again.
    pub(crate) params: SamplingParams,
    pub(crate) stops: Vec<String>,
    /// From now on, for the whole request.
    pub(crate) timeout: Duration,
}

impl ValidRequest {
    /// Answers to all prompts.
    pub(crate) fn num_answers(&self) -> usize {
        self.prompts.len() * self.params.n
    }
}
