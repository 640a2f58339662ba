//! Messages as JSON schemas: what the handlers beside this file read and write.

use serde_json::{Map, Value, json};

use super::parse::STOPS_MAX;
use crate::api::openapi::{Operation, body, object};

fn text() -> Value {
    json!({ "type": "string" })
}

/// A block with whatever a client says of caching.
fn block(kind: &str, required: &[&str], properties: Value) -> Value {
    let mut all = properties;
    all["type"] = json!({ "const": kind });
    all["cache_control"] =
        json!({ "type": "object", "description": "Without effect: prefixes are cached in any case" });
    body(&[&["type"], required].concat(), all)
}

fn properties() -> Map<String, Value> {
    let texts = json!({ "type": "array", "items": block("text", &["text"], json!({ "text": text() })) });
    let content = |blocks: Vec<Value>| json!({ "anyOf": [text(), { "type": "array", "items": { "anyOf": blocks }, "minItems": 1 }] });
    let said = || block("text", &["text"], json!({ "text": text() }));
    let result = block(
        "tool_result",
        &["tool_use_id"],
        json!({
            "tool_use_id": text(), "content": { "anyOf": [text(), texts] }, "is_error": { "type": "boolean" },
        }),
    );
    let call = block(
        "tool_use",
        &["id", "name", "input"],
        json!({ "id": text(), "name": text(), "input": { "type": "object" } }),
    );
    let of = |role: &str, blocks| {
        body(&["role", "content"], json!({ "role": { "const": role }, "content": content(blocks) }))
    };
    let schema = json!({ "type": "object", "description": "A JSON schema of the input" });
    let tool = body(
        &["name"],
        json!({
            "type": { "const": "custom" }, "name": { "type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$" },
            "description": text(), "input_schema": schema, "strict": { "type": "boolean" }, "cache_control": { "type": "object" },
        }),
    );
    let flag = json!({ "type": "boolean" });
    let choice =
        |kind: &str| body(&["type"], json!({ "type": { "const": kind }, "disable_parallel_tool_use": flag }));
    let named = body(
        &["type", "name"],
        json!({ "type": { "const": "tool" }, "name": text(), "disable_parallel_tool_use": flag }),
    );
    let thinking = body(
        &["type"],
        json!({
            "type": { "enum": ["enabled", "adaptive", "disabled"] },
            "budget_tokens": { "type": "integer", "minimum": 1, "maximum": u32::MAX, "description": "A wish; what bounds thinking is max_tokens" },
        }),
    );
    let all = json!({
        "model": { "type": "string" },
        "messages": { "type": "array", "minItems": 1, "maxItems": 4096, "items": { "anyOf": [
            of("user", vec![said(), result]), of("assistant", vec![said(), call]),
        ] } },
        "max_tokens": { "type": "integer", "minimum": 1, "maximum": u32::MAX },
        "system": { "anyOf": [text(), texts] },
        "tools": { "type": "array", "items": tool, "maxItems": 128 },
        "tool_choice": { "anyOf": [choice("auto"), choice("any"), choice("none"), named] },
        "thinking": thinking,
        "temperature": { "type": "number", "minimum": 0, "maximum": 1 },
        "top_p": { "type": "number", "minimum": 0, "maximum": 1 },
        "top_k": { "type": "integer", "minimum": 0, "maximum": 1 << 20 },
        "stop_sequences": { "type": "array", "items": { "type": "string", "minLength": 1, "maxLength": 256 }, "maxItems": STOPS_MAX },
        "stream": { "type": "boolean" },
        "metadata": body(&[], json!({ "user_id": text() })),
        "service_tier": { "enum": ["auto", "standard_only"] },
        "cache_control": { "type": "object" },
        "output_config": body(&[], json!({
            "effort": { "enum": ["low", "medium", "high", "xhigh", "max"], "description": "A wish" },
            "format": body(&["type", "schema"], json!({ "type": { "const": "json_schema" }, "schema": { "type": "object" } })),
        })),
    });
    all.as_object().cloned().unwrap_or_default()
}

pub(crate) fn messages() -> Operation {
    let count = json!({ "type": "integer", "minimum": 0 });
    let usage = object(
        &["input_tokens", "output_tokens"],
        json!({
            "input_tokens": count, "output_tokens": count, "cache_read_input_tokens": count, "cache_creation_input_tokens": count,
        }),
    );
    let message = object(
        &["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"],
        json!({
            "id": text(), "type": { "const": "message" }, "role": { "const": "assistant" }, "model": text(),
            "content": { "type": "array", "items": object(&["type"], json!({ "type": { "enum": ["thinking", "text", "tool_use"] } })) },
            "stop_reason": { "enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"] },
            "stop_sequence": { "type": ["string", "null"] }, "usage": usage,
        }),
    );
    let events = object(
        &["data"],
        json!({ "data": { "type": "string", "description": "With `stream`: an event in JSON, its `type` that of the event" } }),
    );
    Operation {
        summary: "Continue a conversation, as Anthropic's API has it",
        request: Some(body(&["model", "messages", "max_tokens"], Value::Object(properties()))),
        answers: vec![("application/json", message), ("text/event-stream", events)],
        may_be_unavailable: true,
    }
}

pub(crate) fn count_tokens() -> Operation {
    let answer = object(&["input_tokens"], json!({ "input_tokens": { "type": "integer", "minimum": 1 } }));
    Operation {
        summary: "Tokens of a conversation, without answering it",
        request: Some(body(&["model", "messages"], Value::Object(properties()))),
        answers: vec![("application/json", answer)],
        may_be_unavailable: false,
    }
}
