//! The bodies of chat and plain completions as JSON schemas: what the handlers beside this file read and write.

use serde_json::{Map, Value, json};

use super::params::{INTEGERS, Integer, MAX_TOKENS, NUMBERS, STOP_BYTES_MAX, STOPS_MAX, TOP_LOGPROBS};
use crate::api::openapi::{Operation, body, object};

fn string(about: &str) -> Value {
    json!({ "type": "string", "description": about })
}

fn flag(about: &str) -> Value {
    json!({ "type": "boolean", "description": about })
}

fn whole(i: &Integer) -> Value {
    json!({ "type": "integer", "minimum": i.low, "maximum": i.high, "description": i.about })
}

/// Fields of both.
fn shared() -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("model".into(), string("As GET /v1/models names it"));
    for n in NUMBERS {
        let schema = json!({ "type": "number", "minimum": n.low, "maximum": n.high, "description": n.about });
        out.insert(n.name.into(), schema);
    }
    for i in INTEGERS {
        out.insert(i.name.into(), whole(i));
    }
    let stop = json!({ "type": "string", "minLength": 1, "maxLength": STOP_BYTES_MAX / 4 });
    let include = flag("A last event with the tokens that were used");
    let continuous = flag("With `include_usage`: each event says how many tokens its answer has so far");
    let options = body(&[], json!({ "include_usage": include, "continuous_usage_stats": continuous }));
    for (name, schema) in [
        ("ignore_eos", flag("The answer goes on where the model would end it")),
        ("stream", flag("Events as tokens come, instead of one body")),
        ("stream_options", options),
        ("stop", json!({ "anyOf": [stop, { "type": "array", "items": stop, "maxItems": STOPS_MAX }] })),
        (
            "logit_bias",
            json!({
                "type": "object", "propertyNames": { "pattern": "^[0-9]{1,3}$" },
                "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 },
            }),
        ),
        (
            "timeout",
            json!({ "type": "number", "minimum": 0.001, "maximum": 600, "description": "Seconds for the whole request" }),
        ),
        ("user", string("The caller's own name for its user; kept nowhere")),
        (
            "user_id",
            json!({ "type": "string", "maxLength": 128, "description": "Cached prefixes are not shared with other users" }),
        ),
    ] {
        out.insert(name.into(), schema);
    }
    out
}

fn function_schema() -> Value {
    body(
        &["name"],
        json!({
            "name": { "type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$" },
            "description": { "type": "string" },
            "parameters": { "type": "object", "description": "A JSON schema of the arguments" },
            "strict": flag("Calls fit the schema in any case"),
        }),
    )
}

fn messages() -> Value {
    let part = body(&["type", "text"], json!({ "type": { "const": "text" }, "text": { "type": "string" } }));
    let content =
        json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": part, "minItems": 1 }] });
    let of = |role: &str| {
        body(
            &["role", "content"],
            json!({ "role": { "const": role }, "content": content, "name": { "type": "string" } }),
        )
    };
    let call = body(
        &["id", "function"],
        json!({
            "id": { "type": "string" },
            "type": { "const": "function" },
            "function": body(&["name"], json!({
                "name": { "type": "string" },
                "arguments": string("A JSON object in a string"),
            })),
        }),
    );
    let answer = json!({
        "role": { "const": "assistant" }, "content": content, "name": { "type": "string" },
        "reasoning_content": string("What the model thought; told again where its template wants it"),
        "prefix": flag("In the last message: the answer goes on from there"),
    });
    let mut calling = answer.clone();
    calling["tool_calls"] = json!({ "type": "array", "items": call, "minItems": 1, "maxItems": 128 });
    let result = json!({
        "role": { "const": "tool" }, "tool_call_id": { "type": "string" }, "content": content, "name": { "type": "string" },
    });
    json!({
        "type": "array", "minItems": 1, "maxItems": 4096,
        "items": { "anyOf": [
            of("system"), of("developer"), of("user"), body(&["role", "content"], answer),
            body(&["role", "tool_calls"], calling), body(&["role", "tool_call_id", "content"], result),
        ] },
    })
}

fn chat_request() -> Value {
    let mut properties = shared();
    let tool = body(
        &["type", "function"],
        json!({ "type": { "const": "function" }, "function": function_schema() }),
    );
    let named = body(
        &["type", "function"],
        json!({
            "type": { "const": "function" }, "function": body(&["name"], json!({ "name": { "type": "string" } })),
        }),
    );
    let format = |kind: &str| body(&["type"], json!({ "type": { "const": kind } }));
    let schema = body(
        &["name", "schema"],
        json!({
            "name": { "type": "string" }, "description": { "type": "string" }, "schema": { "type": "object" }, "strict": { "type": "boolean" },
        }),
    );
    let by_schema =
        body(&["type", "json_schema"], json!({ "type": { "const": "json_schema" }, "json_schema": schema }));
    for (name, schema) in [
        ("messages", messages()),
        (MAX_TOKENS.name, whole(&MAX_TOKENS)),
        ("logprobs", flag("Log probabilities of the answer's tokens")),
        (TOP_LOGPROBS.name, whole(&TOP_LOGPROBS)),
        ("tools", json!({ "type": "array", "items": tool, "minItems": 1, "maxItems": 128 })),
        ("tool_choice", json!({ "anyOf": [{ "enum": ["none", "auto", "required"] }, named] })),
        ("parallel_tool_calls", flag("More than one call in an answer")),
        ("response_format", json!({ "anyOf": [format("text"), format("json_object"), by_schema] })),
        (
            "reasoning_effort",
            json!({ "enum": ["none", "minimal", "low", "medium", "high", "xhigh"], "description": "Whether the model thinks first" }),
        ),
        ("thinking", body(&["type"], json!({ "type": { "enum": ["enabled", "disabled"] } }))),
        (
            "chat_template_kwargs",
            json!({ "type": "object", "description": "More variables of the model's template" }),
        ),
        (
            "service_tier",
            json!({ "enum": ["auto", "default", "flex", "priority"], "description": "Who goes first; `priority` is for operators" }),
        ),
        ("modalities", json!({ "const": ["text"] })),
        ("store", json!({ "const": false })),
        ("metadata", json!({ "type": "object", "maxProperties": 0 })),
        ("verbosity", json!({ "const": "medium" })),
    ] {
        properties.insert(name.into(), schema);
    }
    body(&["model", "messages"], Value::Object(properties))
}

fn completion_request() -> Value {
    let mut properties = shared();
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX }, "minItems": 1 });
    let text = json!({ "type": "string" });
    let max = Integer { low: 0, about: "Tokens of the answer at most; 0 only with `echo`", ..MAX_TOKENS };
    let top = Integer { name: "logprobs", ..TOP_LOGPROBS };
    for (name, schema) in [
        (
            "prompt",
            json!({ "anyOf": [
            text, ids,
            { "type": "array", "items": text, "minItems": 1, "maxItems": 256 },
            { "type": "array", "items": ids, "minItems": 1, "maxItems": 256 },
        ] }),
        ),
        (max.name, whole(&max)),
        (top.name, whole(&top)),
        ("echo", flag("Answers begin with their prompts")),
        ("suffix", string("What follows the hole that the answer fills")),
        ("best_of", json!({ "const": 1 })),
    ] {
        properties.insert(name.into(), schema);
    }
    body(&["model", "prompt"], Value::Object(properties))
}

fn usage() -> Value {
    let count = json!({ "type": "integer", "minimum": 0 });
    object(
        &["prompt_tokens", "completion_tokens", "total_tokens"],
        json!({
            "prompt_tokens": count, "completion_tokens": count, "total_tokens": count,
            "prompt_tokens_details": object(&["cached_tokens"], json!({ "cached_tokens": count })),
            "completion_tokens_details": object(&["reasoning_tokens"], json!({ "reasoning_tokens": count })),
        }),
    )
}

fn answer(kind: &str, choice: Value) -> Value {
    object(
        &["id", "object", "created", "model", "choices", "usage"],
        json!({
            "id": { "type": "string" }, "object": { "const": kind }, "created": { "type": "integer" }, "model": { "type": "string" },
            "choices": { "type": "array", "items": choice, "minItems": 1 }, "usage": usage(),
        }),
    )
}

fn events() -> (&'static str, Value) {
    let about =
        "With `stream`: a chunk in JSON, at the end `[DONE]`; an `error` instead where the answer failed";
    let data = json!({ "type": "string", "description": about });
    ("text/event-stream", object(&["data"], json!({ "data": data })))
}

pub(crate) fn chat() -> Operation {
    let call = object(
        &["id", "type", "function"],
        json!({
            "id": { "type": "string" }, "type": { "const": "function" },
            "function": object(&["name", "arguments"], json!({ "name": { "type": "string" }, "arguments": { "type": "string" } })),
        }),
    );
    let message = object(
        &["role", "content"],
        json!({
            "role": { "const": "assistant" }, "content": { "type": ["string", "null"] },
            "reasoning_content": { "type": "string" }, "tool_calls": { "type": "array", "items": call, "minItems": 1 },
        }),
    );
    let choice = object(
        &["index", "message", "logprobs", "finish_reason"],
        json!({
            "index": { "type": "integer" }, "message": message, "logprobs": { "type": ["object", "null"] },
            "finish_reason": { "enum": ["stop", "length", "tool_calls"] },
        }),
    );
    Operation {
        summary: "Continue a conversation",
        request: Some(chat_request()),
        answers: vec![("application/json", answer("chat.completion", choice)), events()],
        may_be_unavailable: true,
    }
}

pub(crate) fn completions() -> Operation {
    let choice = object(
        &["index", "text", "logprobs", "finish_reason"],
        json!({
            "index": { "type": "integer" }, "text": { "type": "string" }, "logprobs": { "type": ["object", "null"] },
            "finish_reason": { "enum": ["stop", "length"] },
        }),
    );
    Operation {
        summary: "Continue a text",
        request: Some(completion_request()),
        answers: vec![("application/json", answer("text_completion", choice)), events()],
        may_be_unavailable: true,
    }
}
