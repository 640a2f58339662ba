//! Calls without any mark: an answer that is one JSON object with the function's name and parameters.
//!
//! Source: Llama 3.1's published template and prompt format, "JSON based tool calling".

use serde_json::Value;

use super::parse;
use super::{AnswerEvent, ToolCall};

/// May stand before the object.
pub(super) const PYTHON_TAG: &str = "<|python_tag|>";

/// Tells an answer that is a call from one that is text. What may be a call is held back until the end.
#[derive(Default)]
pub(super) struct JsonCalls {
    held: String,
    is_text: bool,
}

impl JsonCalls {
    pub(super) fn push(&mut self, text: &str, out: &mut Vec<AnswerEvent>) {
        if self.is_text {
            return content(text, out);
        }
        let was_open = may_be_call(&self.held);
        self.held.push_str(text);
        // Once an object has begun, only the end tells.
        if !was_open && !may_become_call(&self.held) {
            self.is_text = true;
            content(&std::mem::take(&mut self.held), out);
        }
    }

    pub(super) fn finish(&mut self, out: &mut Vec<AnswerEvent>) {
        let held = std::mem::take(&mut self.held);
        match calls(&held) {
            Some(calls) => out.extend(calls.into_iter().map(AnswerEvent::ToolCall)),
            None => content(&held, out),
        }
    }
}

fn content(text: &str, out: &mut Vec<AnswerEvent>) {
    if !text.is_empty() {
        out.push(AnswerEvent::Content(text.to_owned()));
    }
}

fn may_be_call(text: &str) -> bool {
    let text = text.trim_start();
    text.strip_prefix(PYTHON_TAG).unwrap_or(text).trim_start().starts_with('{')
}

fn may_become_call(text: &str) -> bool {
    let text = text.trim_start();
    match text.strip_prefix(PYTHON_TAG) {
        Some(rest) => rest.trim_start().is_empty() || rest.trim_start().starts_with('{'),
        None => PYTHON_TAG.starts_with(text) || text.starts_with('{'),
    }
}

/// One call or several, `;` or space between them; none where anything else is among them.
fn calls(text: &str) -> Option<Vec<ToolCall>> {
    let text = text.trim_start();
    let mut rest = text.strip_prefix(PYTHON_TAG).unwrap_or(text);
    let mut out = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || (c == ';' && !out.is_empty()));
        if rest.is_empty() {
            return (!out.is_empty()).then_some(out);
        }
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let mut value = values.next()?.ok()?;
        rest = &rest[values.byte_offset()..];
        let arguments =
            ["parameters", "arguments"].iter().find_map(|name| Some(value.get_mut(*name)?.take()));
        let name = value.get("name")?.as_str()?;
        out.push(parse::call(name, arguments?).ok()?);
    }
}
