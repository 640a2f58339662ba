//! Anthropic's Messages API: `POST /v1/messages` and the count of a prompt's tokens. Source: docs.anthropic.com/en/api/messages.

pub(crate) mod describe;
mod parse;
mod signature;
mod write;

use axum::body::Body;
use axum::http::{Response, StatusCode};
use deephold_engine::SamplingParams;
use deephold_tokenizer::{ChatFormat, Tokenizer};
use serde_json::json;

use self::parse::Parsed;
use self::write::MessageWriter;
use super::conversation::{Asked, Wishes, format_of};
use super::error::{ApiError, ApiResult, json_response};
use super::fields::Fields;
use crate::answering::{Task, answer};
use crate::call::Call;
use crate::generation::with_seed;

pub(crate) async fn messages(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = body(&call)?;
    let model = call.model(&mut fields)?;
    let format = format_of(model.chat.as_ref())?;
    let Parsed { conversation, max_tokens, sampling, stops, streaming } =
        parse::messages(&mut fields, format, &model.defaults, Some(&call.app.secret))?;
    let max_tokens = max_tokens.ok_or_else(|| ApiError::param("max_tokens", "is missing"))?;
    fields.finish()?;
    let asked = conversation.render(&model.tokenizer, format, call.app.clock.unix_time().as_secs())?;
    let mut params = with_seed(sampling);
    params.max_tokens = max_tokens;
    let timeout = call.app.limits.request_time;
    let wishes = Wishes { params, stops, timeout, priority: 0, cache_salt: Vec::new() };
    let (request, constraint) = asked.into_request(model, wishes).await?;
    let writer = Box::new(MessageWriter::new(&call, &request));
    answer(call, Task { endpoint: "/v1/messages", request, constraint, streaming, writer }).await
}

/// What a recorded body asked. Its thinking was verified when it was answered, maybe by another start's secret.
pub(crate) fn ask(
    fields: &mut Fields,
    tokenizer: &Tokenizer,
    chat: Option<&ChatFormat>,
    now: u64,
) -> ApiResult<Asked> {
    let format = format_of(chat)?;
    let parsed = parse::messages(fields, format, &SamplingParams::default(), None)?;
    parsed.conversation.render(tokenizer, format, now)
}

/// `POST /v1/messages/count_tokens`: the same body, and only its prompt's length.
pub(crate) async fn count_tokens(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = body(&call)?;
    let model = call.model(&mut fields)?;
    let format = format_of(model.chat.as_ref())?;
    let parsed = parse::messages(&mut fields, format, &model.defaults, Some(&call.app.secret))?;
    fields.finish()?;
    let now = call.app.clock.unix_time().as_secs();
    let asked = parsed.conversation.render(&model.tokenizer, format, now)?;
    Ok(json_response(StatusCode::OK, &json!({ "input_tokens": asked.ids.len() })))
}

fn body(call: &Call) -> ApiResult<Fields> {
    Fields::of_body(call.json()?)
}
