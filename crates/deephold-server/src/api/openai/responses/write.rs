//! From deltas to items: each added, filled and done, every event numbered.

use serde_json::{Value, json};

use crate::answering::Writer;
use crate::api::error::{ApiError, ErrorStyle};
use crate::call::Call;
use crate::generation::{Answer, Delta, Usage, ValidRequest};
use crate::record::end_name;

/// The kind of the item that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    Reasoning,
    Message,
}

pub(super) struct ResponseWriter {
    request_id: String,
    created_s: u64,
    model: String,
    echoed: Value,
    sequence: u64,
    open: Option<(Item, String)>,
    /// Items that are done.
    done: Vec<Value>,
}

impl ResponseWriter {
    pub(super) fn new(call: &Call, request: &ValidRequest, echoed: Value) -> Self {
        Self {
            request_id: call.request_id.clone(),
            created_s: call.app.unix_ms().unsigned_abs() / 1000,
            model: request.model.name.clone(),
            echoed,
            sequence: 0,
            open: None,
            done: Vec::new(),
        }
    }

    fn event(&mut self, kind: &str, mut body: Value) -> String {
        body["type"] = kind.into();
        body["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        format!("event: {kind}\ndata: {body}\n\n")
    }

    fn response(&self, status: &str, output: &[Value]) -> Value {
        let mut out = self.echoed.clone();
        out["id"] = format!("resp_{}", self.request_id).into();
        out["object"] = "response".into();
        out["created_at"] = self.created_s.into();
        out["model"] = self.model.as_str().into();
        out["status"] = status.into();
        out["output"] = output.into();
        out["usage"] = Value::Null;
        out
    }

    fn ended(&self, answer: &Answer, usage: Usage, output: &[Value]) -> Value {
        let is_whole = end_name(answer.end) == "stop";
        let mut out = self.response(if is_whole { "completed" } else { "incomplete" }, output);
        if !is_whole {
            out["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        out["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": { "cached_tokens": usage.cached_tokens },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": usage.reasoning_tokens },
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        out
    }

    fn id(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}_{}_{index}", self.request_id)
    }

    /// The item that holds a text; `None` for one that is only begun.
    fn text_item(&self, kind: Item, index: usize, text: Option<&str>) -> Value {
        let status = if text.is_some() { "completed" } else { "in_progress" };
        let content: Vec<Value> = text.map(|t| part(kind, t)).into_iter().collect();
        match kind {
            Item::Reasoning => {
                json!({ "id": self.id("rs", index), "type": "reasoning", "summary": [], "content": content, "status": status })
            }
            Item::Message => {
                json!({ "id": self.id("msg", index), "type": "message", "role": "assistant", "content": content, "status": status })
            }
        }
    }

    fn close(&mut self, events: &mut Vec<String>) {
        let Some((kind, text)) = self.open.take() else { return };
        let index = self.done.len();
        let item = self.text_item(kind, index, Some(&text));
        let place = json!({ "item_id": item["id"], "output_index": index, "content_index": 0 });
        let mut done = place.clone();
        done["text"] = text.as_str().into();
        if kind == Item::Message {
            done["logprobs"] = json!([]);
        }
        events.push(self.event(&format!("{}.done", name(kind)), done));
        let mut closed = place;
        closed["part"] = part(kind, &text);
        events.push(self.event("response.content_part.done", closed));
        events.push(self.event("response.output_item.done", json!({ "output_index": index, "item": item })));
        self.done.push(item);
    }

    fn fill(&mut self, kind: Item, text: &str, events: &mut Vec<String>) {
        if text.is_empty() {
            return;
        }
        if self.open.as_ref().is_none_or(|(open, _)| *open != kind) {
            self.close(events);
            let index = self.done.len();
            let item = self.text_item(kind, index, None);
            let place = json!({ "item_id": item["id"], "output_index": index, "content_index": 0, "part": part(kind, "") });
            events.push(
                self.event("response.output_item.added", json!({ "output_index": index, "item": item })),
            );
            events.push(self.event("response.content_part.added", place));
            self.open = Some((kind, String::new()));
        }
        let index = self.done.len();
        let prefix = if kind == Item::Message { "msg" } else { "rs" };
        let mut delta = json!({ "item_id": self.id(prefix, index), "output_index": index, "content_index": 0, "delta": text });
        if kind == Item::Message {
            delta["logprobs"] = json!([]);
        }
        if let Some((_, whole)) = &mut self.open {
            whole.push_str(text);
        }
        events.push(self.event(&format!("{}.delta", name(kind)), delta));
    }

    fn call_item(&self, index: usize, name: &str, arguments: &str, status: &str) -> Value {
        json!({
            "id": self.id("fc", index), "type": "function_call", "call_id": self.id("call", index), "name": name,
            "arguments": arguments, "status": status,
        })
    }
}

/// The events of a text begin so.
fn name(kind: Item) -> &'static str {
    match kind {
        Item::Reasoning => "response.reasoning_text",
        Item::Message => "response.output_text",
    }
}

fn part(kind: Item, text: &str) -> Value {
    match kind {
        Item::Reasoning => json!({ "type": "reasoning_text", "text": text }),
        Item::Message => json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }),
    }
}

impl Writer for ResponseWriter {
    fn begin(&mut self, events: &mut Vec<String>) {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", &[]);
            events.push(self.event(kind, json!({ "response": response })));
        }
    }

    fn delta(&mut self, delta: &Delta, _: &[Answer], events: &mut Vec<String>) {
        self.fill(Item::Reasoning, &delta.reasoning, events);
        self.fill(Item::Message, &delta.content, events);
        for call in &delta.tool_calls {
            self.close(events);
            let index = self.done.len();
            let begun = self.call_item(index, &call.name, "", "in_progress");
            let id = begun["id"].clone();
            events.push(
                self.event("response.output_item.added", json!({ "output_index": index, "item": begun })),
            );
            let mut arguments = json!({ "item_id": id, "output_index": index, "delta": call.arguments });
            events.push(self.event("response.function_call_arguments.delta", arguments.clone()));
            arguments["delta"].take();
            arguments["arguments"] = call.arguments.as_str().into();
            arguments["name"] = call.name.as_str().into();
            events.push(self.event("response.function_call_arguments.done", arguments));
            let item = self.call_item(index, &call.name, &call.arguments, "completed");
            events.push(
                self.event("response.output_item.done", json!({ "output_index": index, "item": item })),
            );
            self.done.push(item);
        }
    }

    fn end(&mut self, answers: &[Answer], usage: Usage, events: &mut Vec<String>) {
        self.close(events);
        let output = std::mem::take(&mut self.done);
        let response = self.ended(&answers[0], usage, &output);
        let kind = format!("response.{}", response["status"].as_str().unwrap_or("completed"));
        events.push(self.event(&kind, json!({ "response": response })));
    }

    fn failed(&mut self, error: &ApiError) -> String {
        let mut response = self.response("failed", &[]);
        response["error"] = json!({ "code": "server_error", "message": error.message });
        let body = error.body(ErrorStyle::OpenAi);
        let told = json!({ "code": body["error"]["code"], "message": error.message, "param": error.param });
        let frame = self.event("error", told);
        frame + &self.event("response.failed", json!({ "response": response }))
    }

    fn whole(&mut self, answers: &[Answer], usage: Usage) -> Value {
        let answer = &answers[0];
        let mut output = Vec::new();
        for (kind, text) in [(Item::Reasoning, &answer.reasoning), (Item::Message, &answer.content)] {
            if !text.is_empty() {
                output.push(self.text_item(kind, output.len(), Some(text)));
            }
        }
        for call in &answer.tool_calls {
            output.push(self.call_item(output.len(), &call.name, &call.arguments, "completed"));
        }
        self.ended(answer, usage, &output)
    }
}

#[cfg(test)]
mod tests {
    use deephold_tokenizer::ToolCall;

    use super::*;
    use crate::generation::End;

    /// The items of the events are those that are written whole, numbered in order, none opened in another.
    #[test]
    fn items_are_added_filled_and_done_in_order() {
        let mut writer = ResponseWriter {
            request_id: "r-1".into(),
            created_s: 1,
            model: "m".into(),
            echoed: json!({ "store": false }),
            sequence: 0,
            open: None,
            done: Vec::new(),
        };
        let call = ToolCall { name: "f".into(), arguments: "{\"x\":1}".into() };
        let deltas = [
            Delta { reasoning: "hm".into(), ..Delta::default() },
            Delta { reasoning: ", yes".into(), content: "I".into(), ..Delta::default() },
            Delta { content: " look.".into(), ..Delta::default() },
            Delta { tool_calls: vec![call], end: Some(End::Length), ..Delta::default() },
        ];
        let (mut answer, mut frames) = (Answer::default(), Vec::new());
        writer.begin(&mut frames);
        for delta in deltas {
            answer.add(&delta);
            writer.delta(&delta, std::slice::from_ref(&answer), &mut frames);
        }
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 6, reasoning_tokens: 2 };
        writer.end(std::slice::from_ref(&answer), usage, &mut frames);
        let events: Vec<Value> = frames
            .iter()
            .map(|f| serde_json::from_str(f.split_once("data: ").expect("data").1).expect("JSON"))
            .collect();
        let (mut done, mut open, mut text) = (Vec::new(), None, String::new());
        for (number, e) in events.iter().enumerate() {
            assert_eq!(e["sequence_number"], json!(number));
            match e["type"].as_str().expect("a type") {
                "response.output_item.added" => {
                    assert_eq!((open, &e["output_index"]), (None, &json!(done.len())));
                    (open, text) = (Some(done.len()), String::new());
                }
                "response.output_item.done" => {
                    assert_eq!(e["output_index"], json!(open.take()));
                    let item = &e["item"];
                    let whole = item["content"][0]["text"].as_str().or(item["arguments"].as_str());
                    assert_eq!(whole, Some(text.as_str()));
                    done.push(item.clone());
                }
                kind if kind.ends_with(".delta") => text += e["delta"].as_str().expect("text"),
                _ => {}
            }
        }
        let whole = writer.whole(std::slice::from_ref(&answer), usage);
        assert_eq!(json!(done), whole["output"]);
        assert_eq!(
            done.iter().map(|i| i["type"].as_str()).collect::<Vec<_>>(),
            [Some("reasoning"), Some("message"), Some("function_call")]
        );
        assert_eq!(events.last().expect("an end")["response"], whole);
        assert_eq!(
            (&whole["status"], &whole["incomplete_details"]["reason"]),
            (&json!("incomplete"), &json!("max_output_tokens"))
        );
    }
}
