//! From deltas to the JSON of chat and plain completions.

use std::sync::Arc;

use deephold_engine::SampledToken;
use deephold_tokenizer::{Tokenizer, ToolCall};
use serde_json::{Value, json};

use super::params::Streaming;
use crate::answering::Writer;
use crate::api::error::{ApiError, ErrorStyle};
use crate::call::Call;
use crate::generation::{Answer, Delta, TokenDelta, Usage, ValidRequest};
use crate::record::end_name;

/// Which of the two APIs.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion {
        /// The prompts' texts, where answers begin with them.
        echoed: Option<Vec<String>>,
    },
}

/// Writes both.
pub(super) struct CompletionWriter {
    id: String,
    kind: Kind,
    created_s: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    streaming: Streaming,
    has_logprobs: bool,
    /// Tokens of each prompt.
    prompt_tokens: Vec<usize>,
    /// Answers to each prompt.
    n: usize,
    /// Tokens of each answer so far.
    completion_tokens: Vec<usize>,
    /// Characters of each plain completion's tokens that were written.
    offsets: Vec<usize>,
}

impl CompletionWriter {
    pub(super) fn new(call: &Call, request: &ValidRequest, streaming: Streaming, kind: Kind) -> Self {
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: format!("{prefix}-{}", call.request_id),
            kind,
            created_s: call.app.unix_ms().unsigned_abs() / 1000,
            model: request.model.name.clone(),
            tokenizer: Arc::clone(&request.model.tokenizer),
            streaming,
            has_logprobs: request.params.logprobs.is_some(),
            prompt_tokens: request.prompts.iter().map(Vec::len).collect(),
            n: request.params.n,
            completion_tokens: vec![0; request.num_answers()],
            offsets: vec![0; request.num_answers()],
        }
    }

    /// What every body of one answer begins with.
    fn head(&self, chunk: bool) -> Value {
        let object = match (&self.kind, chunk) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Completion { .. }, _) => "text_completion",
        };
        json!({ "id": self.id, "object": object, "created": self.created_s, "model": self.model })
    }

    /// A part of the answer `index`.
    fn chunk(&self, index: usize, choice: Value) -> String {
        let mut body = self.head(true);
        body["choices"] = json!([choice]);
        if self.streaming.include_usage {
            body["usage"] = match self.streaming.continuous_usage {
                true => self.usage_so_far(index),
                false => Value::Null,
            };
        }
        data(&body)
    }

    /// Tokens of one answer and of its prompt, as vLLM and SGLang count them in each event.
    fn usage_so_far(&self, index: usize) -> Value {
        let (prompt, completion) = (self.prompt_tokens[index / self.n], self.completion_tokens[index]);
        json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
    }

    /// A whole call: the `i`th of the answer `index`.
    fn call(&self, index: usize, i: usize, call: &ToolCall) -> Value {
        let id = format!("call_{}_{index}_{i}", self.id.trim_start_matches("chatcmpl-"));
        json!({
            "id": id, "type": "function", "function": { "name": call.name, "arguments": call.arguments }
        })
    }

    /// The text with which an answer begins, before the model's.
    fn echoed(&self, index: usize) -> &str {
        match &self.kind {
            Kind::Completion { echoed: Some(texts) } => &texts[index / self.n],
            _ => "",
        }
    }

    /// The text that a delta brings; `None` for tokens whose text is not certain yet.
    fn text_choice(&mut self, delta: &Delta) -> Option<Value> {
        let logprobs = self.logprobs(delta.index, &delta.prompt, &delta.tokens);
        let nothing = delta.reasoning.is_empty() && delta.content.is_empty();
        if nothing && (logprobs.is_null() || (delta.tokens.is_empty() && delta.prompt.is_empty())) {
            return None;
        }
        let index = delta.index;
        Some(match self.kind {
            Kind::Chat => {
                let mut out = json!({});
                if !delta.reasoning.is_empty() {
                    out["reasoning_content"] = json!(delta.reasoning);
                }
                if !delta.content.is_empty() {
                    out["content"] = json!(delta.content);
                }
                json!({ "index": index, "delta": out, "logprobs": logprobs, "finish_reason": null })
            }
            Kind::Completion { .. } => {
                json!({ "index": index, "text": delta.content, "logprobs": logprobs, "finish_reason": null })
            }
        })
    }

    fn choice(&mut self, index: usize, answer: &Answer) -> Value {
        let reason = finish_reason(answer);
        let logprobs = self.logprobs(index, &answer.prompt, &answer.tokens);
        match self.kind {
            Kind::Chat => {
                let mut message = json!({ "role": "assistant", "content": answer.content });
                if !answer.reasoning.is_empty() {
                    message["reasoning_content"] = json!(answer.reasoning);
                }
                if !answer.tool_calls.is_empty() {
                    let calls = answer.tool_calls.iter().enumerate();
                    message["tool_calls"] = calls.map(|(i, call)| self.call(index, i, call)).collect();
                    if answer.content.is_empty() {
                        message["content"] = Value::Null;
                    }
                }
                json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
            }
            Kind::Completion { .. } => {
                let text = format!("{}{}", self.echoed(index), answer.content);
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
            }
        }
    }

    /// Null where none were asked for.
    fn logprobs(&mut self, index: usize, prompt: &[SampledToken], tokens: &[TokenDelta]) -> Value {
        if !self.has_logprobs {
            return Value::Null;
        }
        let tokenizer = &self.tokenizer;
        let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
        let entry = |id, logprob| json!({ "token": text(id), "logprob": logprob, "bytes": tokenizer.token_bytes(id) });
        if self.kind == Kind::Chat {
            // Clients join the tokens to the content; those of the thinking are not part of it.
            let answer = tokens.iter().filter(|t| !t.is_reasoning);
            let list: Vec<Value> = answer
                .map(|t| {
                    let mut out = entry(t.token.id, t.token.logprob);
                    out["top_logprobs"] = t.token.top.iter().map(|(id, lp)| entry(*id, Some(*lp))).collect();
                    out
                })
                .collect();
            return json!({ "content": list });
        }
        let all: Vec<&SampledToken> = prompt.iter().chain(tokens.iter().map(|t| &t.token)).collect();
        let offset = &mut self.offsets[index];
        let offsets: Vec<usize> =
            all.iter().map(|t| std::mem::replace(offset, *offset + text(t.id).chars().count())).collect();
        // Nothing stands before a prompt's first token, so nothing was likely there.
        let top = |t: &&SampledToken| match t.logprob {
            None => Value::Null,
            Some(_) => Value::Object(t.top.iter().map(|(id, lp)| (text(*id), json!(lp))).collect()),
        };
        json!({
            "tokens": all.iter().map(|t| text(t.id)).collect::<Vec<_>>(),
            "token_logprobs": all.iter().map(|t| t.logprob).collect::<Vec<_>>(),
            "top_logprobs": all.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

impl Writer for CompletionWriter {
    fn begin(&mut self, events: &mut Vec<String>) {
        for index in 0..self.completion_tokens.len() {
            let choice = match (&self.kind, self.echoed(index)) {
                (Kind::Chat, _) => {
                    let delta = json!({ "role": "assistant", "content": "" });
                    json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null })
                }
                (Kind::Completion { .. }, "") => continue,
                (Kind::Completion { .. }, text) => {
                    json!({ "index": index, "text": text, "logprobs": null, "finish_reason": null })
                }
            };
            events.push(self.chunk(index, choice));
        }
    }

    fn delta(&mut self, delta: &Delta, answers: &[Answer], events: &mut Vec<String>) {
        let index = delta.index;
        self.completion_tokens[index] = answers[index].ids.len();
        if let Some(choice) = self.text_choice(delta) {
            events.push(self.chunk(index, choice));
        }
        let before = answers[index].tool_calls.len() - delta.tool_calls.len();
        for (i, call) in (before..).zip(&delta.tool_calls) {
            // The name at once, then the arguments, as readers of other services expect them.
            let mut opened = self.call(index, i, call);
            opened["index"] = json!(i);
            opened["function"]["arguments"] = json!("");
            let arguments = json!({ "index": i, "function": { "arguments": call.arguments } });
            for part in [opened, arguments] {
                let delta = json!({ "tool_calls": [part] });
                events.push(self.chunk(
                    index,
                    json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }),
                ));
            }
        }
    }

    fn end(&mut self, answers: &[Answer], usage: Usage, events: &mut Vec<String>) {
        for (index, answer) in answers.iter().enumerate() {
            let reason = finish_reason(answer);
            let choice = match self.kind {
                Kind::Chat => {
                    json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason })
                }
                Kind::Completion { .. } => {
                    json!({ "index": index, "text": "", "logprobs": null, "finish_reason": reason })
                }
            };
            events.push(self.chunk(index, choice));
        }
        if self.streaming.include_usage {
            let mut body = self.head(true);
            body["choices"] = json!([]);
            body["usage"] = usage_json(usage);
            events.push(data(&body));
        }
        events.push("data: [DONE]\n\n".to_owned());
    }

    fn failed(&mut self, error: &ApiError) -> String {
        data(&error.body(ErrorStyle::OpenAi))
    }

    fn whole(&mut self, answers: &[Answer], usage: Usage) -> Value {
        let choices: Vec<Value> = answers.iter().enumerate().map(|(i, a)| self.choice(i, a)).collect();
        let mut body = self.head(false);
        body["choices"] = json!(choices);
        body["usage"] = usage_json(usage);
        body
    }
}

fn data(body: &Value) -> String {
    format!("data: {body}\n\n")
}

/// The API knows three ends; what ended for another reason did not end of itself.
fn finish_reason(answer: &Answer) -> &'static str {
    match end_name(answer.end) {
        "stop" if !answer.tool_calls.is_empty() => "tool_calls",
        "stop" => "stop",
        _ => "length",
    }
}

/// OpenAI's names, and DeepSeek's for what the prefix cache held.
fn usage_json(u: Usage) -> Value {
    json!({
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": u.prompt_tokens + u.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": u.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": u.reasoning_tokens },
        "prompt_cache_hit_tokens": u.cached_tokens,
        "prompt_cache_miss_tokens": u.prompt_tokens - u.cached_tokens,
    })
}
