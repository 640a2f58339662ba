//! `POST /v1/completions`: a prompt as it is, without a chat template.

use axum::body::Body;
use axum::http::Response;
use deephold_base::TokenId;
use deephold_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::params::{self, Fields, token_ids};
use super::tokenize::text_of;
use super::write::{CompletionWriter, Kind};
use crate::answering::{Task, answer};
use crate::api::error::{ApiError, ApiResult};
use crate::call::Call;
use crate::generation::ValidRequest;

/// What the API takes where a request says nothing.
const MAX_TOKENS: usize = 16;

/// Prompts of a request, and answers to all of them, at most.
const PROMPTS_MAX: usize = 256;

pub(crate) async fn completions(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.model(&mut fields)?;
    let prompts = prompts(&mut fields, &model.tokenizer)?;
    let streaming = params::streaming(&mut fields)?;
    let mut sampling = params::sampling(&mut fields, &model)?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    sampling.max_tokens = match fields.integer("max_tokens", 0, i64::from(u32::MAX))? {
        None => MAX_TOKENS,
        Some(0) if !echo => {
            return Err(ApiError::param("max_tokens", "= 0 leaves nothing to answer without `echo`"));
        }
        Some(max) => max as usize,
    };
    if let Some(top) = fields.integer("logprobs", 0, 20)? {
        sampling.logprobs = Some(top as usize);
    }
    if echo && (sampling.logprobs.is_some() || sampling.max_tokens == 0) {
        sampling.prompt_logprobs = Some(sampling.logprobs.unwrap_or(0));
    }
    if prompts.len() * sampling.n > PROMPTS_MAX {
        let message = format!("asks {} prompts for more than {PROMPTS_MAX} answers in all", prompts.len());
        return Err(ApiError::param("n", message));
    }
    let stops = params::stops(&mut fields)?;
    let timeout = params::timeout(&mut fields, call.app.limits.request_time)?;
    fields.string("user")?;
    let cache_salt = params::cache_salt(&mut fields)?;
    fields.only("best_of", &[json!(1), json!(sampling.n)], "is only offered as 1 or `n`")?;
    fields.finish()?;
    let echoed = echo.then(|| prompts.iter().map(|p| p.text(&model.tokenizer)).collect());
    let prompts = prompts.into_iter().map(|p| p.ids).collect();
    let request = ValidRequest {
        model,
        prompts,
        chat: None,
        params: sampling,
        stops,
        timeout,
        guide: None,
        priority: 0,
        cache_salt,
    };
    let writer = Box::new(CompletionWriter::new(&call, &request, streaming, Kind::Completion { echoed }));
    let endpoint = "/v1/completions";
    answer(call, Task { endpoint, request, constraint: None, streaming: streaming.on, writer }).await
}

/// One of the prompts of a request.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<TokenId>,
    /// As it was given, where it was no list of ids.
    text: Option<String>,
}

impl Prompt {
    fn text(&self, tokenizer: &Tokenizer) -> String {
        self.text.clone().unwrap_or_else(|| text_of(tokenizer, &self.ids))
    }
}

/// `prompt`: a text, ids, or a list of texts or of lists of ids.
pub(crate) fn prompts(fields: &mut Fields, tokenizer: &Tokenizer) -> ApiResult<Vec<Prompt>> {
    if let Some(suffix) = fields.string("suffix")?.filter(|s| !s.is_empty()) {
        let prefix = fields.take("prompt").ok_or_else(|| ApiError::param("prompt", "is missing"))?;
        let prefix =
            prefix.as_str().ok_or_else(|| ApiError::param("prompt", "must be a text beside `suffix`"))?;
        let ids = tokenizer.encode_hole(prefix, &suffix)?.ok_or_else(|| {
            ApiError::unsupported(
                "suffix",
                "needs a model with marks for filling in the middle, which this one lacks",
            )
        })?;
        return Ok(vec![Prompt { ids, text: Some(prefix.to_owned()) }]);
    }
    let wrong = || ApiError::param("prompt", "must be a text, a list of token ids, or a list of either");
    let one = |value: Value| match value {
        Value::String(text) => Ok(Prompt { ids: tokenizer.encode_prompt(&text)?, text: Some(text) }),
        Value::Array(ids) => Ok(Prompt { ids: token_ids(&ids).ok_or_else(wrong)?, text: None }),
        _ => Err(wrong()),
    };
    match fields.take("prompt") {
        Some(Value::Array(list)) if list.first().is_some_and(|v| !v.is_number()) => {
            if list.len() > PROMPTS_MAX {
                let message = format!("has {} entries; at most {PROMPTS_MAX} are taken", list.len());
                return Err(ApiError::param("prompt", message));
            }
            list.into_iter().map(one).collect()
        }
        Some(value) => Ok(vec![one(value)?]),
        None => Err(ApiError::param("prompt", "is missing")),
    }
}
