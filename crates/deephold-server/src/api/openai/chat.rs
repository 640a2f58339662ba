//! `POST /v1/chat/completions`.

use axum::body::Body;
use axum::http::Response;
use deephold_base::TokenId;
use deephold_tokenizer::{ChatFormat, RenderOptions, Tokenizer};
use serde_json::{Value, json};

use super::params::{self, Fields};
use super::write::{Kind, answer};
use crate::api::error::{ApiError, ApiResult};
use crate::call::Call;
use crate::generation::ValidRequest;

/// Messages of a conversation at most.
const MESSAGES_MAX: usize = 4096;
/// Fields that other services have and this one does not offer yet: refused by name, whatever they hold.
const NOT_YET: [&str; 12] = [
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "reasoning_effort",
    "service_tier",
    "store",
];

pub(crate) async fn chat(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(params::json(&call.body)?)?;
    let model = params::model(&call, &mut fields)?;
    let (text, prompt) = prompt(&mut fields, &model.tokenizer, model.chat.as_ref())?;
    let streaming = params::streaming(&mut fields)?;
    let mut sampling = params::sampling(&mut fields, &model)?;
    if let Some(max) = fields.integer("max_tokens", 1, i64::from(u32::MAX))? {
        sampling.max_tokens = max as usize;
    }
    if fields.bool("logprobs")?.unwrap_or(false) {
        sampling.logprobs = Some(0);
    }
    if let Some(top) = fields.integer("top_logprobs", 0, 20)? {
        if sampling.logprobs.is_none() {
            return Err(ApiError::param("top_logprobs", "needs `logprobs: true`"));
        }
        sampling.logprobs = Some(top as usize);
    }
    let stops = params::stops(&mut fields)?;
    let timeout = params::timeout(&mut fields, call.app.limits.request_time)?;
    // A name for the caller's own user; nothing depends on it.
    fields.string("user")?;
    if let Some(mut format) = fields.object("response_format")? {
        format.only("type", &[json!("text")], "is only offered as `text` so far")?;
        format.finish()?;
    }
    for field in NOT_YET {
        fields.only(field, &[], "is not offered yet")?;
    }
    fields.finish()?;
    let request = ValidRequest {
        model,
        prompts: vec![prompt],
        chat_prompt: Some(text),
        params: sampling,
        stops,
        timeout,
    };
    answer(call, request, streaming, Kind::Chat).await
}

/// `messages` as the model reads them: text and ids.
pub(crate) fn prompt(
    fields: &mut Fields,
    tokenizer: &Tokenizer,
    chat: Option<&ChatFormat>,
) -> ApiResult<(String, Vec<TokenId>)> {
    let format = chat.ok_or_else(|| {
        let hint = "need a chat template, which this model lacks; use /v1/completions";
        ApiError::unsupported("messages", hint)
    })?;
    let messages = messages(fields)?;
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let text = format.render(&messages, &options)?;
    let ids = tokenizer.encode(&text)?;
    Ok((text, ids))
}

/// Messages as templates take them: roles are known, content is text or parts of text.
fn messages(fields: &mut Fields) -> ApiResult<Value> {
    let list = fields.array("messages")?.ok_or_else(|| ApiError::param("messages", "is missing"))?;
    if list.is_empty() || list.len() > MESSAGES_MAX {
        return Err(ApiError::param(
            "messages",
            format!("has {} entries; 1 to {MESSAGES_MAX} are taken", list.len()),
        ));
    }
    let mut out = Vec::with_capacity(list.len());
    for (i, value) in list.into_iter().enumerate() {
        let mut message = Fields::of(value, format!("messages[{i}]"))?;
        let role = match message.need_string("role")?.as_str() {
            // OpenAI's newer name; published templates know the older one.
            "developer" | "system" => "system",
            "user" => "user",
            "assistant" => "assistant",
            _ => {
                let name = message.name("role");
                return Err(ApiError::unsupported(name, "must be system, developer, user or assistant"));
            }
        };
        let content = content(&mut message)?;
        // What an earlier answer thought is not told again: templates of R1 and later leave it out.
        message.string("reasoning_content")?;
        message.string("name")?;
        message.only("refusal", &[], "is not offered")?;
        message.finish()?;
        out.push(json!({ "role": role, "content": content }));
    }
    Ok(Value::Array(out))
}

fn content(message: &mut Fields) -> ApiResult<String> {
    let name = message.name("content");
    match message.take("content") {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (i, part) in parts.into_iter().enumerate() {
                let mut part = Fields::of(part, format!("{name}[{i}]"))?;
                part.only("type", &[json!("text")], "must be `text`: this server takes no images or sound")?;
                text.push_str(&part.need_string("text")?);
                part.finish()?;
            }
            Ok(text)
        }
        Some(_) => Err(ApiError::param(name, "must be a string or a list of text parts")),
        None => Err(ApiError::param(name, "is missing")),
    }
}
