//! What every chat API comes to: messages as templates take them, tools, what the answer must be, and whether the model thinks first.

use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;
use deephold_engine::{Constraint, SamplingParams};
use deephold_grammar::{Guide, Thinking};
use deephold_tokenizer::{ChatFormat, Dialect, RenderOptions, THINK_CLOSE, THINK_OPEN, Tokenizer};
use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};
use crate::backends::Hosted;
use crate::generation::{ChatContext, ValidRequest};

/// An answer that the caller has begun: the model goes on from there.
pub(crate) struct Begun {
    pub(crate) reasoning: Option<String>,
    pub(crate) content: String,
}

impl Begun {
    /// Puts it behind a prompt that opens the answer.
    fn append_to(&self, prompt: &mut String) {
        if prompt.trim_end().ends_with(THINK_OPEN) {
            if let Some(reasoning) = &self.reasoning {
                prompt.push_str(reasoning);
            }
            // Thinking that is given alone goes on; what is said already was thought about.
            if !self.content.is_empty() {
                prompt.push_str(THINK_CLOSE);
            }
        }
        prompt.push_str(&self.content);
    }
}

/// Whether to think first, and the field that says so.
pub(crate) type ThinkingWish = Option<(bool, &'static str)>;

/// A request of any chat API.
pub(crate) struct Conversation {
    /// As templates take them.
    pub(crate) messages: Value,
    pub(crate) begun: Option<Begun>,
    /// As templates take them; none where the model shall not know of any.
    pub(crate) tools: Option<Value>,
    /// What the answer must be, and the field that says so.
    pub(crate) guide: Option<(Guide, &'static str)>,
    pub(crate) thinking: ThinkingWish,
    /// More variables of the template.
    pub(crate) variables: Map<String, Value>,
}

/// A conversation as the model reads it.
pub(crate) struct Asked {
    /// The rendered prompt.
    pub(crate) text: String,
    pub(crate) ids: Vec<TokenId>,
    dialect: Dialect,
    has_tools: bool,
    /// With the field that says so.
    pub(crate) guide: Option<(Guide, &'static str)>,
    pub(crate) thinking: Thinking,
    rendered_at: u64,
}

/// The model's chat format.
///
/// # Errors
/// It has none.
pub(crate) fn format_of(chat: Option<&ChatFormat>) -> ApiResult<&ChatFormat> {
    chat.ok_or_else(|| {
        let hint = "need a chat template, which this model lacks; use /v1/completions";
        ApiError::unsupported("messages", hint)
    })
}

impl Conversation {
    /// Renders it. `now` is seconds since 1970, for templates that write the date.
    pub(crate) fn render(self, tokenizer: &Tokenizer, format: &ChatFormat, now: u64) -> ApiResult<Asked> {
        let can_think = tokenizer.token_to_id(THINK_OPEN).is_some();
        if let Some((true, param)) = self.thinking.filter(|_| !can_think) {
            let problem = "cannot be turned on: this model has no form for thinking";
            return Err(ApiError::unsupported(param, problem));
        }
        let has_tools = self.tools.is_some();
        let options = RenderOptions {
            tools: self.tools,
            add_generation_prompt: true,
            thinking: self.thinking.map(|(on, _)| on),
            variables: self.variables,
            unix_seconds: now,
        };
        let mut text = format.render(&self.messages, &options)?;
        if let Some(begun) = &self.begun {
            begun.append_to(&mut text);
        }
        let thinking = match (self.thinking, Thinking::after_prompt(&text, can_think)) {
            (Some((false, param)), Thinking::Opened) => {
                let problem = "cannot be turned off: this model's template always thinks";
                return Err(ApiError::unsupported(param, problem));
            }
            (Some((false, _)), _) => Thinking::Closed,
            (_, begins) => begins,
        };
        let ids = tokenizer.encode(&text)?;
        let dialect = format.tool_dialect();
        Ok(Asked { text, ids, dialect, has_tools, guide: self.guide, thinking, rendered_at: now })
    }
}

/// What a request wants beside its conversation.
pub(crate) struct Wishes {
    pub(crate) params: SamplingParams,
    pub(crate) stops: Vec<String>,
    pub(crate) timeout: Duration,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Vec<u8>,
}

impl Asked {
    /// The valid request, and what the sampler follows for it.
    pub(crate) async fn into_request(
        self,
        model: Arc<Hosted>,
        wishes: Wishes,
    ) -> ApiResult<(ValidRequest, Option<Box<dyn Constraint>>)> {
        let constraint = match &self.guide {
            Some((guide, param)) => Some(constraint(&model, guide.clone(), self.thinking, param).await?),
            None => None,
        };
        let Wishes { params, stops, timeout, priority, cache_salt } = wishes;
        let (prompt, dialect, has_tools) = (self.text, self.dialect, self.has_tools);
        let request = ValidRequest {
            model,
            prompts: vec![self.ids],
            chat: Some(ChatContext { prompt, dialect, has_tools, rendered_at: self.rendered_at }),
            params,
            stops,
            timeout,
            guide: self.guide.map(|(guide, _)| (guide, self.thinking)),
            priority,
            cache_salt,
        };
        Ok((request, constraint))
    }
}

/// A grammar's first work can take some time, so it is done where it holds nobody up.
async fn constraint(
    model: &Arc<Hosted>,
    guide: Guide,
    thinking: Thinking,
    param: &'static str,
) -> ApiResult<Box<dyn Constraint>> {
    // The semaphore is never closed.
    let _place = model.compiling.acquire().await;
    let model = Arc::clone(model);
    let made = tokio::task::spawn_blocking(move || model.constraint(&guide, thinking)).await;
    let made = made.map_err(|_| ApiError::internal("a grammar failed; this is a defect"))?;
    made.map_err(|e| ApiError::param(param, format!("cannot be guaranteed: {e}")))
}
