//! What the audit log keeps of a request.

use deephold_audit::hex;
use deephold_base::TokenId;
use deephold_engine::SamplingParams;
use deephold_grammar::{Guide, Thinking};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::access::Principal;
use crate::backends::ModelFacts;
use crate::generation::{Answer, End, Usage, ValidRequest, VectorRequest};

/// How much of prompts and answers the log keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditPolicy {
    /// All of it: an answer can be computed again from its record alone.
    #[default]
    Full,
    /// SHA-256 of ids and texts: an answer can be checked against what somebody presents.
    Hash,
    /// SHA-256 of the ids, and lengths.
    Redacted,
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 over ids, four bytes each, little endian.
pub(crate) fn ids_sha256(ids: &[TokenId]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    sha256(&bytes)
}

/// A text and its ids, as far as the policy keeps them.
fn kept(policy: AuditPolicy, ids: &[TokenId], texts: &[(&str, &str)]) -> Value {
    let mut out = json!({ "tokens": ids.len(), "ids_sha256": ids_sha256(ids) });
    if policy == AuditPolicy::Full {
        out["ids"] = json!(ids);
    }
    for (name, text) in texts {
        match policy {
            AuditPolicy::Full => out[*name] = json!(text),
            AuditPolicy::Hash => out[format!("{name}_sha256")] = json!(sha256(text.as_bytes())),
            AuditPolicy::Redacted => {}
        }
    }
    out
}

/// What the answer had to be.
pub(crate) fn guide_json((guide, thinking): &(Guide, Thinking)) -> Value {
    json!({ "guide": guide, "thinking": thinking })
}

pub(crate) fn guide_sha256(guide: &Value) -> String {
    sha256(guide.to_string().as_bytes())
}

pub(crate) fn params(p: &SamplingParams, stops: &[String]) -> Value {
    // Where nothing but the context limits an answer; most readers of JSON would round the number.
    let max_tokens = (p.max_tokens < usize::MAX).then_some(p.max_tokens);
    json!({
        "n": p.n, "seed": p.seed, "max_tokens": max_tokens, "min_tokens": p.min_tokens,
        "temperature": p.temperature, "top_p": p.top_p, "top_k": p.top_k, "min_p": p.min_p,
        "repetition_penalty": p.repetition_penalty, "presence_penalty": p.presence_penalty,
        "frequency_penalty": p.frequency_penalty, "logit_bias": p.logit_bias, "stop": stops,
        "stop_token_ids": p.stop_token_ids, "ignore_eos": p.ignore_eos, "logprobs": p.logprobs,
        "prompt_logprobs": p.prompt_logprobs,
    })
}

/// Who asked what of which model.
fn head(request_id: &str, endpoint: &str, who: &Principal, model: &str, facts: &ModelFacts) -> Value {
    json!({
        "request_id": request_id,
        "endpoint": endpoint,
        "key": who.key_id,
        "tenant": &*who.tenant,
        "project": who.project,
        "owner": who.owner,
        "model": model,
        "facts": facts,
        "program": env!("CARGO_PKG_VERSION"),
    })
}

/// As [`asked`], for vectors.
pub(crate) fn asked_vectors(
    policy: AuditPolicy,
    request_id: &str,
    endpoint: &str,
    who: &Principal,
    request: &VectorRequest,
) -> Value {
    let mut record = head(request_id, endpoint, who, request.model.name(), request.model.facts());
    record["prompts"] = request.prompts.iter().map(|ids| kept(policy, ids, &[])).collect();
    record
}

/// A vector's length, and SHA-256 over its values, four bytes each, little endian, as the model gave them.
pub(crate) fn vector(values: &[f32]) -> Value {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    json!({ "dimensions": values.len(), "sha256": sha256(&bytes) })
}

/// The part of a record that is known before the answer.
pub(crate) fn asked(
    policy: AuditPolicy,
    request_id: &str,
    endpoint: &str,
    who: &Principal,
    request: &ValidRequest,
) -> Value {
    let texts: Vec<(&str, &str)> = request.chat.iter().map(|chat| ("text", chat.prompt.as_str())).collect();
    let mut record = head(request_id, endpoint, who, &request.model.name, &request.model.facts);
    record["params"] = params(&request.params, &request.stops);
    record["prompts"] = request.prompts.iter().map(|ids| kept(policy, ids, &texts)).collect();
    if let Some(chat) = &request.chat {
        record["rendered_at"] = json!(chat.rendered_at);
    }
    if let Some(guide) = &request.guide {
        // Schemas and tools are part of what was asked.
        let guide = guide_json(guide);
        match policy {
            AuditPolicy::Full => record["guide"] = guide,
            AuditPolicy::Hash | AuditPolicy::Redacted => record["guide_sha256"] = json!(guide_sha256(&guide)),
        }
    }
    record
}

/// What an answer's end is called on the wire and in the log.
pub(crate) fn end_name(end: Option<End>) -> &'static str {
    match end {
        Some(End::Stop) => "stop",
        Some(End::Length) => "length",
        Some(End::Timeout) => "timeout",
        Some(End::SlowReader) => "slow_reader",
        Some(End::Aborted) | None => "abort",
    }
}

/// Adds what came of it.
pub(crate) fn answered(
    policy: AuditPolicy,
    record: &mut Value,
    answers: &[Answer],
    usage: Usage,
    outcome: &str,
) {
    let one = |a: &Answer| {
        let mut texts = vec![("content", a.content.as_str()), ("reasoning", a.reasoning.as_str())];
        let calls: Vec<Value> =
            a.tool_calls.iter().map(|c| json!({ "name": c.name, "arguments": c.arguments })).collect();
        let calls = json!(calls).to_string();
        if !a.tool_calls.is_empty() {
            texts.push(("tool_calls", &calls));
        }
        let mut out = kept(policy, &a.ids, &texts);
        out["finish_reason"] = json!(end_name(a.end));
        out
    };
    record["answers"] = answers.iter().map(one).collect();
    record["usage"] = json!(usage);
    record["outcome"] = json!(outcome);
}
