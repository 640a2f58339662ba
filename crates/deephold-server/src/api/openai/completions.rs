//! `POST /v1/completions`: a prompt as it is, without a chat template.

use axum::body::Body;
use axum::http::Response;
use deephold_base::TokenId;
use deephold_tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::params::{self, Fields, token_ids};
use super::write::{Kind, answer};
use crate::api::error::{ApiError, ApiResult};
use crate::call::Call;
use crate::generation::ValidRequest;

/// What the API takes where a request says nothing.
const MAX_TOKENS: usize = 16;

pub(crate) async fn completions(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(params::json(&call.body)?)?;
    let model = params::model(&call, &mut fields)?;
    let prompt = prompt(&mut fields, &model.tokenizer)?;
    let streaming = params::streaming(&mut fields)?;
    let mut sampling = params::sampling(&mut fields, &model)?;
    sampling.max_tokens = MAX_TOKENS;
    if let Some(max) = fields.integer("max_tokens", 1, i64::from(u32::MAX))? {
        sampling.max_tokens = max as usize;
    }
    if let Some(top) = fields.integer("logprobs", 0, 20)? {
        sampling.logprobs = Some(top as usize);
    }
    let stops = params::stops(&mut fields)?;
    let timeout = params::timeout(&mut fields, call.app.limits.request_time)?;
    fields.string("user")?;
    fields.only("echo", &[json!(false)], "is not offered yet")?;
    fields.only("suffix", &[json!("")], "is not offered yet")?;
    fields.only("best_of", &[json!(1)], "is not offered")?;
    fields.finish()?;
    let request = ValidRequest { model, prompt, chat_prompt: None, params: sampling, stops, timeout };
    answer(call, request, streaming, Kind::Completion).await
}

/// `prompt` as ids.
pub(crate) fn prompt(fields: &mut Fields, tokenizer: &Tokenizer) -> ApiResult<Vec<TokenId>> {
    match fields.take("prompt") {
        Some(Value::String(text)) => Ok(tokenizer.encode_prompt(&text)?),
        Some(Value::Array(ids)) => token_ids(&ids).ok_or_else(|| {
            let hint = "must be a text or a list of token ids; lists of prompts are not offered yet";
            ApiError::param("prompt", hint)
        }),
        Some(_) => Err(ApiError::param("prompt", "must be a text or a list of token ids")),
        None => Err(ApiError::param("prompt", "is missing")),
    }
}
