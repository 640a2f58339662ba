//! `POST /v1/chat/completions`.

use axum::body::Body;
use axum::http::Response;
use deephold_state::Role;
use deephold_tokenizer::{ChatFormat, Tokenizer};
use serde_json::{Map, Value};

use super::messages::messages;
use super::params::{self, Fields};
use super::tools::{Wanted, wanted};
use super::write::{CompletionWriter, Kind};
use crate::answering::{Task, answer};
use crate::api::conversation::{Asked, Conversation, ThinkingWish, Wishes, format_of};
use crate::api::error::{ApiError, ApiResult};
use crate::call::Call;

/// Fields that other services have and this one does not: refused by name, with what they may hold all the same.
const NOT_OFFERED: [(&str, &[&str]); 9] = [
    ("functions", &[]),
    ("function_call", &[]),
    ("modalities", &["[\"text\"]"]),
    ("audio", &[]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("store", &["false"]),
    ("metadata", &["{}"]),
    ("verbosity", &["\"medium\""]),
];
/// Variables of templates that a request may not set: they are the server's.
const RESERVED: [&str; 7] =
    ["messages", "tools", "documents", "bos_token", "eos_token", "add_generation_prompt", "strftime_now"];

pub(crate) async fn chat(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.model(&mut fields)?;
    let now = call.app.clock.unix_time().as_secs();
    let asked = ask(&mut fields, &model.tokenizer, model.chat.as_ref(), now)?;
    let streaming = params::streaming(&mut fields)?;
    let mut sampling = params::sampling(&mut fields, &model)?;
    if asked.guide.is_some() {
        params::ends_with_its_form(&sampling)?;
    }
    if let Some(max) = params::MAX_TOKENS.take(&mut fields)? {
        sampling.max_tokens = max as usize;
    }
    if fields.bool("logprobs")?.unwrap_or(false) {
        sampling.logprobs = Some(0);
    }
    if let Some(top) = params::TOP_LOGPROBS.take(&mut fields)? {
        if sampling.logprobs.is_none() {
            return Err(ApiError::param("top_logprobs", "needs `logprobs: true`"));
        }
        sampling.logprobs = Some(top as usize);
    }
    let stops = params::stops(&mut fields)?;
    let timeout = params::timeout(&mut fields, call.app.limits.request_time)?;
    let priority = service_tier(&mut fields, call.who()?.role)?;
    // A name for the caller's own user; nothing depends on it.
    fields.string("user")?;
    let cache_salt = params::cache_salt(&mut fields)?;
    for (field, allowed) in NOT_OFFERED {
        let allowed: Vec<Value> = allowed.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        fields.only(field, &allowed, "is not offered")?;
    }
    fields.finish()?;
    let wishes = Wishes { params: sampling, stops, timeout, priority, cache_salt };
    let (request, constraint) = asked.into_request(model, wishes).await?;
    let writer = Box::new(CompletionWriter::new(&call, &request, streaming, Kind::Chat));
    let endpoint = "/v1/chat/completions";
    answer(call, Task { endpoint, request, constraint, streaming: streaming.on, writer }).await
}

/// `service_tier` as priority. Going before others is for those who run the service.
pub(super) fn service_tier(fields: &mut Fields, role: Role) -> ApiResult<i32> {
    match fields.string("service_tier")?.as_deref() {
        None | Some("auto" | "default") => Ok(0),
        Some("flex") => Ok(-1),
        Some("priority") if matches!(role, Role::Admin | Role::Operator) => Ok(1),
        Some("priority") => {
            let problem = "= `priority` needs a key of role admin or operator";
            Err(ApiError::param("service_tier", problem))
        }
        Some(_) => Err(ApiError::param("service_tier", "must be auto, default, flex or priority")),
    }
}

/// Reads the fields that decide about the prompt and the answer's form. `now` is seconds since 1970, for templates that write the
/// date.
pub(crate) fn ask(
    fields: &mut Fields,
    tokenizer: &Tokenizer,
    chat: Option<&ChatFormat>,
    now: u64,
) -> ApiResult<Asked> {
    let format = format_of(chat)?;
    let (messages, begun) = messages(fields, format.takes_arguments_as_text())?;
    let Wanted { tools, guide } = wanted(fields)?;
    let (thinking, variables) = (thinking(fields)?, variables(fields)?);
    Conversation { messages, begun, tools, guide, thinking, variables }.render(tokenizer, format, now)
}

/// `reasoning_effort` of OpenAI or `thinking` of DeepSeek: whether the model thinks first, and the field that says so.
fn thinking(fields: &mut Fields) -> ApiResult<ThinkingWish> {
    let mut wanted = None;
    if let Some(effort) = fields.string("reasoning_effort")? {
        wanted = match effort.as_str() {
            "none" | "minimal" => Some((false, "reasoning_effort")),
            "low" | "medium" | "high" | "xhigh" => Some((true, "reasoning_effort")),
            _ => {
                let problem = "must be none, minimal, low, medium, high or xhigh";
                return Err(ApiError::param("reasoning_effort", problem));
            }
        };
    }
    if let Some(mut switch) = fields.object("thinking")? {
        let on = match switch.need_string("type")?.as_str() {
            "enabled" => true,
            "disabled" => false,
            _ => return Err(ApiError::param("thinking.type", "must be enabled or disabled")),
        };
        switch.finish()?;
        if wanted.is_some_and(|(other, _)| other != on) {
            return Err(ApiError::param("thinking", "contradicts `reasoning_effort`"));
        }
        wanted = Some((on, "thinking"));
    }
    Ok(wanted)
}

/// `chat_template_kwargs`, as vLLM's clients send them.
fn variables(fields: &mut Fields) -> ApiResult<Map<String, Value>> {
    let place = "chat_template_kwargs";
    match fields.take(place) {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => match map.keys().find(|k| RESERVED.contains(&k.as_str())) {
            Some(key) => Err(ApiError::param(format!("{place}.{key}"), "is set by the server")),
            None => Ok(map),
        },
        Some(_) => Err(ApiError::param(place, "must be an object")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_offered_is_written_in_json() {
        for (field, allowed) in NOT_OFFERED {
            for text in allowed {
                assert_ne!(serde_json::from_str(text).ok(), Some(json!(null)), "{field}");
            }
        }
    }
}
