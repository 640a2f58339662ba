//! A whole body of a call to the call, each dialect its way.

use serde_json::{Map, Value};

use super::ToolCall;

/// Tags around one argument in DSML.
pub(super) const PARAMETER: (&str, &str) = ("<｜DSML｜parameter", "</｜DSML｜parameter>");
/// Between a function's name and its arguments in DeepSeek's marks.
pub(super) const SEPARATOR: &str = "<｜tool▁sep｜>";
/// V3 and R1 put arguments in a fenced block.
pub(super) const FENCE: &str = "```json";

/// A body is no call.
pub(super) struct Broken;

fn json(text: &str) -> Result<Value, Broken> {
    serde_json::from_str(text).map_err(|_| Broken)
}

/// Arguments are an object; older templates show them as a string that holds one, and models imitate that.
pub(super) fn call(name: &str, arguments: Value) -> Result<ToolCall, Broken> {
    let arguments = match arguments {
        Value::String(inner) => serde_json::from_str(&inner).map_err(|_| Broken)?,
        Value::Null => Value::Object(Map::new()),
        other => other,
    };
    if name.is_empty() || name.len() > 256 || !arguments.is_object() {
        return Err(Broken);
    }
    Ok(ToolCall { name: name.to_owned(), arguments: arguments.to_string() })
}

pub(super) fn marks(body: &str) -> Result<ToolCall, Broken> {
    let (head, rest) = body.split_once(SEPARATOR).ok_or(Broken)?;
    match rest.split_once(FENCE) {
        Some((name, rest)) if head.trim() == "function" => {
            let inner = rest.trim_end().strip_suffix("```").ok_or(Broken)?;
            call(name.trim(), json(inner)?)
        }
        _ => call(head.trim(), json(rest)?),
    }
}

pub(super) fn qwen(body: &str) -> Result<ToolCall, Broken> {
    let mut value = json(body)?;
    let arguments = value.get_mut("arguments").map(Value::take).unwrap_or_default();
    let name = value.get("name").and_then(Value::as_str).ok_or(Broken)?;
    call(name, arguments)
}

pub(super) fn dsml(body: &str) -> Result<ToolCall, Broken> {
    let (name, mut rest) = tag_attributes(body).ok_or(Broken)?;
    let name = attribute(name, "name").ok_or(Broken)?;
    let mut arguments = Map::new();
    while let Some(parameter) = rest.trim_start().strip_prefix(PARAMETER.0) {
        let (attributes, inner) = tag_attributes(parameter).ok_or(Broken)?;
        let (value, after) = inner.split_once(PARAMETER.1).ok_or(Broken)?;
        let key = attribute(attributes, "name").ok_or(Broken)?;
        let value = match attribute(attributes, "string") {
            Some("false") => serde_json::from_str(value).map_err(|_| Broken)?,
            _ => Value::String(value.to_owned()),
        };
        arguments.insert(key.to_owned(), value);
        rest = after;
    }
    if !rest.trim().is_empty() {
        return Err(Broken);
    }
    call(name, Value::Object(arguments))
}

/// The attributes up to the tag's `>`, and what follows it.
fn tag_attributes(text: &str) -> Option<(&str, &str)> {
    let line = text.find('\n').unwrap_or(text.len());
    let end = text[..line].find("\">")? + 1;
    Some((&text[..end], &text[end + 1..]))
}

/// The value of `name="…"`.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = attributes;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        let (value, next) = after.split_once('"')?;
        if key.trim() == name {
            return Some(value);
        }
        rest = next;
    }
}
