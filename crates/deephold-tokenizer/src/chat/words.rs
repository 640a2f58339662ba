//! Tools for templates that know nothing of them: described in the system message, in the form that the dialect parses back.
//!
//! The form for models without one of their own is that of Hermes 2 Pro (Nous Research), which Qwen and others were trained with:
//! a JSON object within `<tool_call>` marks.

use serde_json::{Value, json};

use super::python::json as to_json;
use crate::Dialect;

/// How a call is written, with `NAME` and `ARGUMENTS` where they go.
fn form(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::DeepSeekMarks { fenced: true } => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        Dialect::DeepSeekMarks { fenced: false } => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        _ => "<tool_call>\n{\"name\": \"NAME\", \"arguments\": ARGUMENTS}\n</tool_call>",
    }
}

/// The messages with the tools' description in front.
pub(super) fn describe(messages: &Value, tools: &Value, dialect: Dialect) -> Value {
    let lines: Vec<String> = tools.as_array().into_iter().flatten().map(to_json).collect();
    let text = format!(
        "# Tools\n\nYou may call functions. Each line within <tools></tools> describes one:\n<tools>\n{}\n</tools>\n\n\
         To call one, write its name for NAME and a JSON object of its arguments for ARGUMENTS:\n{}",
        lines.join("\n"),
        form(dialect)
    );
    let mut messages = messages.as_array().cloned().unwrap_or_default();
    match messages.first_mut().filter(|m| m["role"] == "system") {
        Some(first) => first["content"] = format!("{}\n\n{text}", content(first)).into(),
        None => messages.insert(0, json!({ "role": "system", "content": text })),
    }
    Value::Array(messages)
}

/// Calls and results of earlier turns as text, for templates that know neither.
pub(super) fn spell_out(messages: &Value) -> Value {
    let mut out: Vec<Value> = Vec::new();
    let mut in_results = false;
    for message in messages.as_array().into_iter().flatten() {
        let is_result = message["role"] == "tool";
        let mut message = message.clone();
        if is_result {
            let result = format!("<tool_response>\n{}\n</tool_response>", content(&message));
            // Results of one turn's calls share the next.
            match out.last_mut().filter(|_| in_results) {
                Some(last) => last["content"] = format!("{}\n{result}", content(last)).into(),
                None => out.push(json!({ "role": "user", "content": result })),
            }
        } else {
            if let Some(Value::Array(calls)) = message.as_object_mut().and_then(|m| m.remove("tool_calls")) {
                let calls = calls.iter().map(call);
                let text = content(&message);
                let parts: Vec<String> =
                    Some(text.to_owned()).filter(|t| !t.is_empty()).into_iter().chain(calls).collect();
                message["content"] = parts.join("\n").into();
            }
            out.push(message);
        }
        in_results = is_result;
    }
    Value::Array(out)
}

/// The messages with empty contents for absent ones; `None` where there are none.
pub(super) fn without_nulls(messages: &Value) -> Option<Value> {
    let is_absent = |m: &&Value| m["content"].is_null();
    messages.as_array()?.iter().find(is_absent)?;
    let mut messages = messages.clone();
    for message in messages.as_array_mut().into_iter().flatten().filter(|m| m["content"].is_null()) {
        message["content"] = "".into();
    }
    Some(messages)
}

fn call(call: &Value) -> String {
    let function = call.get("function").unwrap_or(call);
    let arguments = match &function["arguments"] {
        Value::String(text) => text.clone(),
        Value::Null => "{}".to_owned(),
        other => to_json(other),
    };
    format!("<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>", function["name"])
}

fn content(message: &Value) -> &str {
    message["content"].as_str().unwrap_or("")
}
