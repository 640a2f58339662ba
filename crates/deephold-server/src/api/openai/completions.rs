//! `POST /v1/completions`: a prompt as it is, without a chat template.

use axum::body::Body;
use axum::http::Response;
use deephold_tokenizer::Tokenizer;
use serde_json::json;

use super::params::{self, Fields, Prompt};
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
    let echoed = echo.then(|| prompts.iter().map(|p| text_of_prompt(p, &model.tokenizer)).collect());
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

/// As it was given, or what its ids spell.
fn text_of_prompt(prompt: &Prompt, tokenizer: &Tokenizer) -> String {
    prompt.text.clone().unwrap_or_else(|| text_of(tokenizer, &prompt.ids))
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
    params::prompts(fields, "prompt", PROMPTS_MAX, tokenizer)
}
