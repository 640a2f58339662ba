//! `POST /v1/responses`, stateless: each request brings its whole conversation. Source: platform.openai.com/docs/api-reference/responses.

pub(crate) mod describe;
mod parse;
mod write;

use axum::body::Body;
use axum::http::Response;
use deephold_tokenizer::{ChatFormat, Tokenizer};

use self::parse::{Parsed, parse};
use self::write::ResponseWriter;
use super::params;
use crate::answering::{Task, answer};
use crate::api::conversation::{Asked, Wishes, format_of};
use crate::api::error::ApiResult;
use crate::api::fields::Fields;
use crate::call::Call;
use crate::generation::with_seed;

pub(crate) async fn responses(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.model(&mut fields)?;
    let format = format_of(model.chat.as_ref())?;
    let Parsed { conversation, echoed } = parse(&mut fields, format)?;
    let mut sampling = model.defaults.clone();
    if let Some(x) = params::TEMPERATURE.take(&mut fields)? {
        sampling.temperature = x;
    }
    if let Some(x) = params::TOP_P.take(&mut fields)? {
        sampling.top_p = x.max(f32::MIN_POSITIVE);
    }
    if let Some(max) = fields.integer("max_output_tokens", 1, i64::from(u32::MAX))? {
        sampling.max_tokens = max as usize;
    }
    let streaming = fields.bool("stream")?.unwrap_or(false);
    let priority = super::chat::service_tier(&mut fields, call.who()?.role)?;
    fields.string("user")?;
    fields.finish()?;
    let asked = conversation.render(&model.tokenizer, format, call.app.clock.unix_time().as_secs())?;
    let timeout = call.app.limits.request_time;
    let params = with_seed(sampling);
    let wishes = Wishes { params, stops: Vec::new(), timeout, priority, cache_salt: Vec::new() };
    let (request, constraint) = asked.into_request(model, wishes).await?;
    let writer = Box::new(ResponseWriter::new(&call, &request, echoed));
    answer(call, Task { endpoint: "/v1/responses", request, constraint, streaming, writer }).await
}

/// What a recorded body asked.
pub(crate) fn ask(
    fields: &mut Fields,
    tokenizer: &Tokenizer,
    chat: Option<&ChatFormat>,
    now: u64,
) -> ApiResult<Asked> {
    let format = format_of(chat)?;
    parse(fields, format)?.conversation.render(tokenizer, format, now)
}
