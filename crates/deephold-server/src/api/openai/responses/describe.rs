//! Responses as JSON schemas.

use serde_json::{Value, json};

use crate::api::openapi::{Operation, body, object};

fn text() -> Value {
    json!({ "type": "string" })
}

fn input() -> Value {
    let part = body(
        &["type", "text"],
        json!({
            "type": { "enum": ["input_text", "output_text"] }, "text": text(),
            "annotations": { "type": "array" }, "logprobs": { "type": "array" },
        }),
    );
    let content = json!({ "anyOf": [text(), { "type": "array", "items": part }] });
    let message = body(
        &["role", "content"],
        json!({
            "type": { "const": "message" }, "id": text(), "status": text(),
            "role": { "enum": ["system", "developer", "user", "assistant"] }, "content": content,
        }),
    );
    let thought = body(&["type", "text"], json!({ "type": { "const": "reasoning_text" }, "text": text() }));
    let reasoning = body(
        &["type"],
        json!({
            "type": { "const": "reasoning" }, "id": text(), "status": text(), "summary": { "type": "array" },
            "content": { "anyOf": [text(), { "type": "array", "items": thought }] },
        }),
    );
    let call = body(
        &["type", "call_id", "name", "arguments"],
        json!({
            "type": { "const": "function_call" }, "id": text(), "status": text(), "call_id": text(), "name": text(),
            "arguments": { "type": "string", "description": "A JSON object in a string" },
        }),
    );
    let result = body(
        &["type", "call_id", "output"],
        json!({
            "type": { "const": "function_call_output" }, "id": text(), "status": text(), "call_id": text(), "output": content,
        }),
    );
    json!({ "anyOf": [text(), { "type": "array", "items": { "anyOf": [message, reasoning, call, result] }, "minItems": 1, "maxItems": 4096 }] })
}

pub(crate) fn responses() -> Operation {
    let flag = json!({ "type": "boolean" });
    let tool = body(
        &["type", "name"],
        json!({
            "type": { "const": "function" }, "name": { "type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$" },
            "description": text(), "parameters": { "type": "object" }, "strict": flag,
        }),
    );
    let named = body(&["type", "name"], json!({ "type": { "const": "function" }, "name": text() }));
    let form = |kind: &str| body(&["type"], json!({ "type": { "const": kind } }));
    let by_schema = body(
        &["type", "name", "schema"],
        json!({
            "type": { "const": "json_schema" }, "name": text(), "description": text(), "strict": flag, "schema": { "type": "object" },
        }),
    );
    let forms = json!({ "anyOf": [form("text"), form("json_object"), by_schema] });
    let request = body(
        &["model", "input"],
        json!({
            "model": text(), "input": input(), "instructions": text(),
            "max_output_tokens": { "type": "integer", "minimum": 1, "maximum": u32::MAX },
            "temperature": { "type": "number", "minimum": 0, "maximum": 2 },
            "top_p": { "type": "number", "minimum": 0, "maximum": 1 },
            "stream": flag,
            "tools": { "type": "array", "items": tool, "maxItems": 128 },
            "tool_choice": { "anyOf": [{ "enum": ["none", "auto", "required"] }, named] },
            "parallel_tool_calls": flag,
            "text": body(&[], json!({ "format": forms, "verbosity": { "const": "medium" } })),
            "reasoning": body(&[], json!({ "effort": { "enum": ["none", "minimal", "low", "medium", "high", "xhigh"] } })),
            "service_tier": { "enum": ["auto", "default", "flex", "priority"] },
            "user": text(),
            "store": { "const": false }, "background": { "const": false }, "truncation": { "const": "disabled" },
            "include": { "type": "array", "maxItems": 0 }, "metadata": { "type": "object", "maxProperties": 0 },
        }),
    );
    let item = object(
        &["id", "type", "status"],
        json!({ "type": { "enum": ["reasoning", "message", "function_call"] } }),
    );
    let answer = object(
        &["id", "object", "created_at", "model", "status", "output", "usage"],
        json!({
            "id": text(), "object": { "const": "response" }, "status": { "enum": ["completed", "incomplete"] },
            "output": { "type": "array", "items": item }, "usage": { "type": "object" },
        }),
    );
    let events = object(
        &["data"],
        json!({ "data": { "type": "string", "description": "With `stream`: an event in JSON with its `type` and `sequence_number`" } }),
    );
    Operation {
        summary: "Continue a conversation, as OpenAI's Responses API has it; stateless",
        request: Some(request),
        answers: vec![("application/json", answer), ("text/event-stream", events)],
        may_be_unavailable: true,
    }
}
