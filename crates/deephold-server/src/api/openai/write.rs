//! From deltas to OpenAI's JSON: whole, or as events. Both walk the same way; the end goes out only after the audit log has taken the
//! record.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use deephold_engine::{Constraint, SampledToken};
use deephold_tokenizer::ToolCall;
use serde_json::{Value, json};

use super::params::Streaming;
use crate::admission::{Outcome, Permit, recordable};
use crate::api::error::{ApiResult, json_response};
use crate::api::sse::{EventSender, Gone, stream};
use crate::call::Call;
use crate::generation::{Answer, Delta, Generation, TokenDelta, Usage, ValidRequest};
use crate::record::end_name;

/// How long a stream may be silent before a comment shows that it lives: proxies close what is quiet.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Which of the two APIs.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Completion {
        /// The prompts' texts, where answers begin with them.
        echoed: Option<Vec<String>>,
    },
}

impl Kind {
    fn endpoint(&self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion { .. } => "/v1/completions",
        }
    }
}

/// What every body of one answer begins with.
struct Head {
    id: String,
    kind: Kind,
    created_s: u64,
    model: String,
}

impl Head {
    fn body(&self, chunk: bool) -> Value {
        let object = match (&self.kind, chunk) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Completion { .. }, _) => "text_completion",
        };
        json!({ "id": self.id, "object": object, "created": self.created_s, "model": self.model })
    }

    /// A whole call: the `i`th of the answer `index`.
    fn call(&self, index: usize, i: usize, call: &ToolCall) -> Value {
        let id = format!("call_{}_{index}_{i}", self.id.trim_start_matches("chatcmpl-"));
        json!({
            "id": id, "type": "function", "function": { "name": call.name, "arguments": call.arguments }
        })
    }
}

/// Generates and writes the answer.
pub(super) async fn answer(
    call: Call,
    request: ValidRequest,
    constraint: Option<Box<dyn Constraint>>,
    streaming: Streaming,
    kind: Kind,
) -> ApiResult<Response<Body>> {
    recordable(&call.app).await?;
    let who = call.who()?;
    let permit = Permit::new(&call.app, &call.request_id, kind.endpoint(), who, &request);
    let generation = Generation::start(&request, constraint, who.tenant.clone()).await;
    let mut permit = permit;
    let generation = match generation {
        Ok(generation) => generation,
        Err(e) => {
            permit.close(Outcome::Failed).await?;
            return Err(e);
        }
    };
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    let head = Head {
        id: format!("{prefix}-{}", call.request_id),
        kind,
        created_s: call.app.unix_ms().unsigned_abs() / 1000,
        model: request.model.name.clone(),
    };
    let offsets = vec![0; request.num_answers()];
    let walk = Walk { call, request, generation, permit, head, offsets };
    if !streaming.on {
        return walk.whole().await;
    }
    let (events, response) = stream();
    tokio::spawn(async move {
        // A reader that is gone needs no word; the permit records it.
        let _ = walk.events(&events, streaming.include_usage).await;
    });
    Ok(response)
}

/// One answer on its way out.
struct Walk {
    call: Call,
    request: ValidRequest,
    generation: Generation,
    permit: Permit,
    head: Head,
    /// Characters of each plain completion's tokens that were written.
    offsets: Vec<usize>,
}

impl Walk {
    /// The next delta, noted in the permit.
    async fn next(&mut self) -> Option<ApiResult<Delta>> {
        let delta = self.generation.next().await?;
        if let Ok(delta) = &delta {
            self.permit.add(delta, self.generation.usage);
        }
        Some(delta)
    }

    /// Records the end, whatever it is.
    async fn close(&mut self, outcome: Outcome) -> ApiResult<()> {
        self.call.app.metrics.finished(&self.head.model, &self.generation);
        self.permit.close(outcome).await
    }

    async fn whole(mut self) -> ApiResult<Response<Body>> {
        while let Some(delta) = self.next().await {
            if let Err(e) = delta {
                self.close(Outcome::Failed).await?;
                return Err(e);
            }
        }
        self.close(Outcome::Completed).await?;
        let answers = std::mem::take(&mut self.permit.answers);
        let choices: Vec<Value> = (0..).zip(&answers).map(|(index, answer)| {
            let reason = finish_reason(answer);
            let logprobs = self.logprobs(index, &answer.prompt, &answer.tokens);
            match self.head.kind {
                Kind::Chat => {
                    let mut message = json!({ "role": "assistant", "content": answer.content });
                    if !answer.reasoning.is_empty() {
                        message["reasoning_content"] = json!(answer.reasoning);
                    }
                    if !answer.tool_calls.is_empty() {
                        let calls = answer.tool_calls.iter().enumerate();
                        message["tool_calls"] = calls.map(|(i, call)| self.head.call(index, i, call)).collect();
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
        }).collect();
        let mut body = self.head.body(false);
        body["choices"] = json!(choices);
        body["usage"] = usage_json(self.generation.usage);
        Ok(json_response(StatusCode::OK, &body))
    }

    async fn events(mut self, events: &EventSender, include_usage: bool) -> Result<(), Gone> {
        for index in 0..self.request.num_answers() {
            let choice = match (&self.head.kind, self.echoed(index)) {
                (Kind::Chat, _) => {
                    let delta = json!({ "role": "assistant", "content": "" });
                    json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null })
                }
                (Kind::Completion { .. }, "") => continue,
                (Kind::Completion { .. }, text) => {
                    json!({ "index": index, "text": text, "logprobs": null, "finish_reason": null })
                }
            };
            self.chunk(events, vec![choice], include_usage).await?;
        }
        let gaps = self.call.app.metrics.gaps(&self.head.model);
        let mut last = Instant::now();
        // The ends of answers wait until the record is written.
        let mut ends = Vec::new();
        loop {
            let delta = tokio::select! {
                // A reader that has gone ends the work, also while nothing is to be sent.
                () = events.closed() => return Err(Gone),
                delta = tokio::time::timeout(KEEP_ALIVE, self.next()) => match delta {
                    Err(_) => {
                        events.raw(": waiting\n\n".to_owned()).await?;
                        continue;
                    }
                    Ok(None) => break,
                    Ok(Some(Err(e))) => {
                        let _ = self.close(Outcome::Failed).await;
                        return events.data(&e.body()).await;
                    }
                    Ok(Some(Ok(delta))) => delta,
                },
            };
            gaps.observe(last.elapsed().as_secs_f64());
            last = Instant::now();
            for choice in self.choices(&delta) {
                self.chunk(events, vec![choice], include_usage).await?;
            }
            if delta.end.is_some() {
                ends.push((delta.index, finish_reason(&self.permit.answers[delta.index])));
            }
        }
        if let Err(e) = self.close(Outcome::Completed).await {
            // Never a clean end without its record.
            return events.data(&e.body()).await;
        }
        for (index, reason) in ends {
            let choice = match self.head.kind {
                Kind::Chat => {
                    json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason })
                }
                Kind::Completion { .. } => {
                    json!({ "index": index, "text": "", "logprobs": null, "finish_reason": reason })
                }
            };
            self.chunk(events, vec![choice], include_usage).await?;
        }
        if include_usage {
            let mut body = self.head.body(true);
            body["choices"] = json!([]);
            body["usage"] = usage_json(self.generation.usage);
            events.data(&body).await?;
        }
        events.raw("data: [DONE]\n\n".to_owned()).await
    }

    async fn chunk(
        &self,
        events: &EventSender,
        choices: Vec<Value>,
        include_usage: bool,
    ) -> Result<(), Gone> {
        let mut body = self.head.body(true);
        body["choices"] = json!(choices);
        if include_usage {
            body["usage"] = Value::Null;
        }
        events.data(&body).await
    }

    /// What a delta brings to its reader; nothing for tokens whose text is not certain yet.
    fn choices(&mut self, delta: &Delta) -> Vec<Value> {
        let mut out: Vec<Value> = self.text_choice(delta).into_iter().collect();
        let index = delta.index;
        let before = self.permit.answers[index].tool_calls.len() - delta.tool_calls.len();
        for (i, call) in (before..).zip(&delta.tool_calls) {
            // The name at once, then the arguments, as readers of other services expect them.
            let mut opened = self.head.call(index, i, call);
            opened["index"] = json!(i);
            opened["function"]["arguments"] = json!("");
            let arguments = json!({ "index": i, "function": { "arguments": call.arguments } });
            out.extend([opened, arguments].map(|part| {
                let delta = json!({ "tool_calls": [part] });
                json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null })
            }));
        }
        out
    }

    fn text_choice(&mut self, delta: &Delta) -> Option<Value> {
        let logprobs = self.logprobs(delta.index, &delta.prompt, &delta.tokens);
        let nothing = delta.reasoning.is_empty() && delta.content.is_empty();
        if nothing && (logprobs.is_null() || (delta.tokens.is_empty() && delta.prompt.is_empty())) {
            return None;
        }
        let index = delta.index;
        Some(match self.head.kind {
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

    /// The text with which an answer begins, before the model's.
    fn echoed(&self, index: usize) -> &str {
        match &self.head.kind {
            Kind::Completion { echoed: Some(texts) } => &texts[index / self.request.params.n],
            _ => "",
        }
    }

    /// Null where none were asked for.
    fn logprobs(&mut self, index: usize, prompt: &[SampledToken], tokens: &[TokenDelta]) -> Value {
        if self.request.params.logprobs.is_none() {
            return Value::Null;
        }
        let tokenizer = &self.request.model.tokenizer;
        let text = |id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
        let entry = |id, logprob| json!({ "token": text(id), "logprob": logprob, "bytes": tokenizer.token_bytes(id) });
        if self.head.kind == Kind::Chat {
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

/// The API knows three ends; what ended for another reason did not end of itself.
fn finish_reason(answer: &Answer) -> &'static str {
    match end_name(answer.end) {
        "stop" if !answer.tool_calls.is_empty() => "tool_calls",
        "stop" => "stop",
        _ => "length",
    }
}

fn usage_json(u: Usage) -> Value {
    json!({
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": u.prompt_tokens + u.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": u.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": u.reasoning_tokens },
    })
}
