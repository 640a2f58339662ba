//! `messages` as templates take them: roles are known, content is text, calls have names and arguments.

use serde_json::{Map, Value, json};

use super::params::Fields;
use crate::api::conversation::Begun;
use crate::api::error::{ApiError, ApiResult};

/// Messages of a conversation at most.
const MESSAGES_MAX: usize = 4096;
/// Calls of one message at most.
const CALLS_MAX: usize = 128;

/// The list, and the last message apart where it is an answer to go on with; `arguments_as_text` says how the model's template takes the
/// arguments of calls.
pub(super) fn messages(fields: &mut Fields, arguments_as_text: bool) -> ApiResult<(Value, Option<Begun>)> {
    let mut list = fields.array("messages")?.ok_or_else(|| ApiError::param("messages", "is missing"))?;
    if list.is_empty() || list.len() > MESSAGES_MAX {
        let problem = format!("has {} entries; 1 to {MESSAGES_MAX} are taken", list.len());
        return Err(ApiError::param("messages", problem));
    }
    let is_prefix = |m: &Value| m.get("prefix").is_some_and(|p| *p == json!(true));
    let last = list.len() - 1;
    let begun = if is_prefix(&list[last]) && last > 0 { list.pop() } else { None };
    let begun =
        begun.map(|value| begun_answer(Fields::of(value, format!("messages[{last}]"))?)).transpose()?;
    let one = |(i, value)| message(Fields::of(value, format!("messages[{i}]"))?, arguments_as_text);
    let list: Value = list.into_iter().enumerate().map(one).collect::<ApiResult<_>>()?;
    Ok((list, begun))
}

fn begun_answer(mut message: Fields) -> ApiResult<Begun> {
    message.bool("prefix")?;
    if message.need_string("role")? != "assistant" {
        return Err(ApiError::param(message.name("prefix"), "is only for the assistant"));
    }
    let reasoning = message.string("reasoning_content")?;
    let content = content(&mut message)?.unwrap_or_default();
    message.string("name")?;
    message.finish()?;
    Ok(Begun { reasoning, content })
}

fn message(mut message: Fields, arguments_as_text: bool) -> ApiResult<Value> {
    let role = message.need_string("role")?;
    let mut out = Map::new();
    let role = match role.as_str() {
        // OpenAI's newer name; published templates know the older one.
        "developer" | "system" => "system",
        "user" => "user",
        "assistant" => {
            if let Some(thought) = message.string("reasoning_content")? {
                // Templates tell what is still of use: thinking before a tool's result is, an earlier answer's is not.
                out.insert("reasoning_content".into(), thought.into());
            }
            message.only("prefix", &[json!(false)], "is only for the last message")?;
            message.only("refusal", &[], "is not offered")?;
            message.only("audio", &[], "is not offered")?;
            let calls = message.array("tool_calls")?.filter(|calls| !calls.is_empty());
            if let Some(calls) = calls {
                out.insert("tool_calls".into(), tool_calls(&message, calls, arguments_as_text)?);
            }
            "assistant"
        }
        "tool" => {
            let id = message.need_string("tool_call_id")?;
            out.insert("tool_call_id".into(), id.into());
            "tool"
        }
        _ => {
            let name = message.name("role");
            return Err(ApiError::unsupported(name, "must be system, developer, user, assistant or tool"));
        }
    };
    out.insert("role".into(), role.into());
    let content = match content(&mut message)? {
        Some(text) => text.into(),
        None if out.contains_key("tool_calls") => Value::Null,
        None => return Err(ApiError::param(message.name("content"), "is missing")),
    };
    out.insert("content".into(), content);
    if let Some(name) = message.string("name")? {
        out.insert("name".into(), name.into());
    }
    message.finish()?;
    Ok(Value::Object(out))
}

fn tool_calls(message: &Fields, calls: Vec<Value>, arguments_as_text: bool) -> ApiResult<Value> {
    let name = message.name("tool_calls");
    if calls.len() > CALLS_MAX {
        return Err(ApiError::param(
            name,
            format!("has {} entries; at most {CALLS_MAX} are taken", calls.len()),
        ));
    }
    let one = |(i, call)| {
        let mut call = Fields::of(call, format!("{name}[{i}]"))?;
        let id = call.need_string("id")?;
        call.only("type", &[json!("function")], "must be `function`")?;
        call.integer("index", 0, 1 << 16)?;
        let mut function = call
            .object("function")?
            .ok_or_else(|| ApiError::param(format!("{name}[{i}].function"), "is missing"))?;
        call.finish()?;
        let function_name = function.need_string("name")?;
        let place = function.name("arguments");
        let text = function.string("arguments")?.unwrap_or_default();
        function.finish()?;
        let arguments = match text.trim() {
            "" => json!({}),
            text => serde_json::from_str(text)
                .map_err(|e| ApiError::param(&place, format!("must be JSON in a string: {e}")))?,
        };
        if !arguments.is_object() {
            return Err(ApiError::param(place, "must be a JSON object in a string"));
        }
        let arguments = if arguments_as_text { arguments.to_string().into() } else { arguments };
        Ok(json!({
            "id": id, "type": "function", "function": { "name": function_name, "arguments": arguments }
        }))
    };
    calls.into_iter().enumerate().map(one).collect()
}

/// A text, or parts of text joined.
fn content(message: &mut Fields) -> ApiResult<Option<String>> {
    let name = message.name("content");
    match message.take("content") {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (i, part) in parts.into_iter().enumerate() {
                let mut part = Fields::of(part, format!("{name}[{i}]"))?;
                part.only("type", &[json!("text")], "must be `text`: this server takes no images or sound")?;
                text.push_str(&part.need_string("text")?);
                part.finish()?;
            }
            Ok(Some(text))
        }
        Some(_) => Err(ApiError::param(name, "must be a string or a list of text parts")),
        None => Ok(None),
    }
}
