//! From deltas to messages: blocks one behind the other, each opened, filled and closed.

use serde_json::{Value, json};

use super::signature;
use crate::answering::Writer;
use crate::api::error::{ApiError, ErrorStyle};
use crate::call::Call;
use crate::generation::{Answer, Delta, Usage, ValidRequest};
use crate::record::end_name;

/// The kind of the block that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
}

pub(super) struct MessageWriter {
    id: String,
    model: String,
    secret: [u8; 32],
    prompt_tokens: usize,
    open: Option<Block>,
    /// The next block's number.
    next: usize,
    /// What was thought in the open block.
    thought: String,
}

impl MessageWriter {
    pub(super) fn new(call: &Call, request: &ValidRequest) -> Self {
        Self {
            id: format!("msg_{}", call.request_id),
            model: request.model.name.clone(),
            secret: call.app.secret,
            prompt_tokens: request.prompts.iter().map(Vec::len).sum(),
            open: None,
            next: 0,
            thought: String::new(),
        }
    }

    fn call_id(&self, i: usize) -> String {
        format!("toolu_{}_{i}", self.id.trim_start_matches("msg_"))
    }

    fn close(&mut self, events: &mut Vec<String>) {
        let Some(open) = self.open.take() else { return };
        let index = self.next - 1;
        if open == Block::Thinking {
            let signature = signature::sign(&self.secret, &std::mem::take(&mut self.thought));
            let delta = json!({ "type": "signature_delta", "signature": signature });
            events.push(event("content_block_delta", json!({ "index": index, "delta": delta })));
        }
        events.push(event("content_block_stop", json!({ "index": index })));
    }

    fn start(&mut self, block: &Value, events: &mut Vec<String>) {
        events.push(event("content_block_start", json!({ "index": self.next, "content_block": block })));
        self.next += 1;
    }

    fn fill(&mut self, kind: Block, text: &str, events: &mut Vec<String>) {
        if text.is_empty() {
            return;
        }
        if self.open != Some(kind) {
            self.close(events);
            self.start(
                &match kind {
                    Block::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
                    Block::Text => json!({ "type": "text", "text": "" }),
                },
                events,
            );
            self.open = Some(kind);
        }
        let delta = match kind {
            Block::Thinking => {
                self.thought.push_str(text);
                json!({ "type": "thinking_delta", "thinking": text })
            }
            Block::Text => json!({ "type": "text_delta", "text": text }),
        };
        events.push(event("content_block_delta", json!({ "index": self.next - 1, "delta": delta })));
    }

    fn head(&self, content: Vec<Value>, answer: Option<&Answer>, usage: &Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": answer.map(stop_reason), "stop_sequence": answer.and_then(|a| a.stop.as_ref()),
            "usage": usage,
        })
    }
}

impl Writer for MessageWriter {
    fn begin(&mut self, events: &mut Vec<String>) {
        // How much of the prompt was cached shows only when it runs.
        let usage = json!({ "input_tokens": self.prompt_tokens, "output_tokens": 0 });
        events.push(event("message_start", json!({ "message": self.head(Vec::new(), None, &usage) })));
        events.push(self.quiet());
    }

    fn delta(&mut self, delta: &Delta, answers: &[Answer], events: &mut Vec<String>) {
        self.fill(Block::Thinking, &delta.reasoning, events);
        self.fill(Block::Text, &delta.content, events);
        let before = answers[0].tool_calls.len() - delta.tool_calls.len();
        for (i, call) in (before..).zip(&delta.tool_calls) {
            self.close(events);
            let index = self.next;
            let id = self.call_id(i);
            self.start(&json!({ "type": "tool_use", "id": id, "name": call.name, "input": {} }), events);
            let delta = json!({ "type": "input_json_delta", "partial_json": call.arguments });
            events.push(event("content_block_delta", json!({ "index": index, "delta": delta })));
            events.push(event("content_block_stop", json!({ "index": index })));
        }
    }

    fn end(&mut self, answers: &[Answer], usage: Usage, events: &mut Vec<String>) {
        self.close(events);
        let answer = &answers[0];
        let delta = json!({ "stop_reason": stop_reason(answer), "stop_sequence": answer.stop });
        events.push(event("message_delta", json!({ "delta": delta, "usage": usage_json(usage) })));
        events.push(event("message_stop", json!({})));
    }

    fn failed(&mut self, error: &ApiError) -> String {
        let body = error.body(ErrorStyle::Anthropic);
        event("error", json!({ "error": body["error"] }))
    }

    fn quiet(&self) -> String {
        event("ping", json!({}))
    }

    fn whole(&mut self, answers: &[Answer], usage: Usage) -> Value {
        let answer = &answers[0];
        let mut content = Vec::new();
        if !answer.reasoning.is_empty() {
            let signature = signature::sign(&self.secret, &answer.reasoning);
            content.push(json!({ "type": "thinking", "thinking": answer.reasoning, "signature": signature }));
        }
        if !answer.content.is_empty() {
            content.push(json!({ "type": "text", "text": answer.content }));
        }
        content.extend(answer.tool_calls.iter().enumerate().map(|(i, call)| {
            let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            json!({ "type": "tool_use", "id": self.call_id(i), "name": call.name, "input": input })
        }));
        self.head(content, Some(answer), &usage_json(usage))
    }
}

fn event(kind: &str, mut body: Value) -> String {
    body["type"] = kind.into();
    format!("event: {kind}\ndata: {body}\n\n")
}

fn stop_reason(answer: &Answer) -> &'static str {
    match end_name(answer.end) {
        "stop" if answer.stop.is_some() => "stop_sequence",
        "stop" if !answer.tool_calls.is_empty() => "tool_use",
        "stop" => "end_turn",
        _ => "max_tokens",
    }
}

/// What was read from the cache is counted apart.
fn usage_json(u: Usage) -> Value {
    json!({
        "input_tokens": u.prompt_tokens - u.cached_tokens,
        "cache_read_input_tokens": u.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": u.completion_tokens,
    })
}

#[cfg(test)]
mod tests {
    use deephold_tokenizer::ToolCall;

    use super::*;
    use crate::generation::End;

    fn writer() -> MessageWriter {
        MessageWriter {
            id: "msg_r-1".into(),
            model: "m".into(),
            secret: [7; 32],
            prompt_tokens: 9,
            open: None,
            next: 0,
            thought: String::new(),
        }
    }

    fn deltas() -> [Delta; 4] {
        let call = ToolCall { name: "f".into(), arguments: "{\"x\":1}".into() };
        [
            Delta { reasoning: "hm".into(), ..Delta::default() },
            Delta { reasoning: ", yes".into(), content: "I".into(), ..Delta::default() },
            Delta { content: " look.".into(), ..Delta::default() },
            Delta { tool_calls: vec![call.clone(), call], end: Some(End::Stop), ..Delta::default() },
        ]
    }

    /// Events as a client puts them together give what is written whole.
    #[test]
    fn blocks_are_opened_filled_and_closed_in_order() {
        let (mut writer, mut answer, mut frames) = (writer(), Answer::default(), Vec::new());
        writer.begin(&mut frames);
        for delta in deltas() {
            answer.add(&delta);
            writer.delta(&delta, std::slice::from_ref(&answer), &mut frames);
        }
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 6, reasoning_tokens: 2 };
        writer.end(std::slice::from_ref(&answer), usage, &mut frames);
        let events: Vec<Value> = frames
            .iter()
            .map(|f| {
                let (kind, body) = f.trim_end().split_once('\n').expect("two lines");
                let body: Value = serde_json::from_str(body.trim_start_matches("data: ")).expect("JSON");
                assert_eq!(kind, format!("event: {}", body["type"].as_str().expect("a type")));
                body
            })
            .collect();
        let mut blocks: Vec<Value> = Vec::new();
        let mut open = None;
        for e in &events {
            match e["type"].as_str() {
                Some("content_block_start") => {
                    assert_eq!((open, &e["index"]), (None, &json!(blocks.len())));
                    open = Some(blocks.len());
                    blocks.push(e["content_block"].clone());
                }
                Some("content_block_delta") => {
                    assert_eq!(e["index"], json!(open));
                    let (block, delta) = (blocks.last_mut().expect("a block"), &e["delta"]);
                    for (from, to) in [("thinking", "thinking"), ("text", "text"), ("signature", "signature")]
                    {
                        if let Some(more) = delta.get(from) {
                            let whole =
                                block[to].as_str().expect("text").to_owned() + more.as_str().expect("text");
                            block[to] = whole.into();
                        }
                    }
                    if let Some(json) = delta.get("partial_json") {
                        block["input"] = serde_json::from_str(json.as_str().expect("text")).expect("JSON");
                    }
                }
                Some("content_block_stop") => assert_eq!(e["index"], json!(open.take())),
                _ => assert!(open.is_none()),
            }
        }
        let whole = writer.whole(std::slice::from_ref(&answer), usage);
        assert_eq!(json!(blocks), whole["content"]);
        assert_eq!(blocks.len(), 4);
        assert_eq!((&whole["stop_reason"], &whole["usage"]["input_tokens"]), (&json!("tool_use"), &json!(5)));
        assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("message_start"), &json!("ping")));
        assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");
        assert_eq!(events[events.len() - 1]["type"], "message_stop");
        // The thinking comes back as it was, or not at all.
        let signed = blocks[0]["signature"].as_str().expect("a signature");
        assert!(signature::verify(&[7; 32], "hm, yes", signed));
        assert!(
            !signature::verify(&[7; 32], "hm, no", signed) && !signature::verify(&[8; 32], "hm, yes", signed)
        );
        let failed = writer.failed(&ApiError::unavailable("queue_full", "later"));
        assert!(failed.starts_with("event: error\n") && failed.contains("overloaded_error"), "{failed}");
    }
}
