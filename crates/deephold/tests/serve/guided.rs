//! Answers that are guaranteed to fit: schemas and tool calls, streamed and not, and what is refused.

use deephold_testkit::TempDir;
use serde_json::{Value, json as object};

use crate::common::text;
use crate::service::Service;
use crate::{records, replay};

fn schema() -> Value {
    object!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "enum": ["Oslo", "杭州"] },
            "days": { "type": "integer", "minimum": 1, "maximum": 9 },
            "exact": { "type": "boolean" },
        },
        "required": ["city", "days"],
        "additionalProperties": false,
    })
}

fn fits(value: &Value) {
    let city = value["city"].as_str().expect("a city");
    assert!(
        ["Oslo", "杭州"].contains(&city) && (1..=9).contains(&value["days"].as_u64().expect("days")),
        "{value}"
    );
    assert!(
        value.as_object().expect("an object").keys().all(|k| ["city", "days", "exact"].contains(&k.as_str()))
    );
}

fn tools() -> Value {
    let function = |name: &str, parameters: Value| object!({ "type": "function", "function": { "name": name, "description": "d", "parameters": parameters } });
    object!([
        function("weather", schema()),
        function("clock", object!({ "type": "object", "additionalProperties": false }))
    ])
}

/// The calls of one streamed answer, put together as clients do, with their finish reason.
fn joined(events: &[Value], index: u64) -> (String, Vec<Value>, String) {
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), String::new());
    for choice in events.iter().flat_map(|e| e["choices"].as_array().expect("choices")) {
        if choice["index"] != index {
            continue;
        }
        content += choice["delta"]["content"].as_str().unwrap_or("");
        reason += choice["finish_reason"].as_str().unwrap_or("");
        for part in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let at = part["index"].as_u64().expect("an index") as usize;
            if at == calls.len() {
                assert!(
                    part["id"].is_string()
                        && part["type"] == "function"
                        && part["function"]["name"].is_string()
                );
                calls.push(part.clone());
                calls[at].as_object_mut().expect("a call").remove("index");
            } else {
                assert!(part.get("id").is_none() && part["function"].get("name").is_none(), "once: {part}");
                let more = part["function"]["arguments"].as_str().expect("a fragment");
                let whole = calls[at]["function"]["arguments"].as_str().expect("text").to_owned() + more;
                calls[at]["function"]["arguments"] = whole.into();
            }
        }
    }
    (content, calls, reason)
}

#[test]
fn answers_fit_their_schema_and_can_be_computed_again() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let format = object!({ "type": "json_schema", "json_schema": { "name": "trip", "strict": true, "schema": schema() } });
    let ask = |more: Value| {
        let mut body = object!({ "temperature": 1, "seed": 5, "max_tokens": 100, "response_format": format, "reasoning_effort": "none" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        service.ask(body)
    };
    let several = ask(object!({ "n": 4 }));
    assert_eq!(several.status, 200, "{}", several.body);
    let several = several.json();
    for choice in several["choices"].as_array().expect("choices") {
        assert_eq!(choice["finish_reason"], "stop");
        fits(&serde_json::from_str(choice["message"]["content"].as_str().expect("text")).expect("JSON"));
    }
    let (content, _, _) = joined(&ask(object!({ "stream": true })).events(), 0);
    assert_eq!(several["choices"][0]["message"]["content"], content);
    let free = ask(object!({ "response_format": { "type": "json_object" }, "max_tokens": 300 })).json();
    let free = free["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    assert!(free.starts_with('{'), "{free}");
    for record in records(&state, "request") {
        assert!(record["data"]["guide"].is_object());
        assert_eq!(replay(&state, &record["seq"].to_string(), &[])["same"], true, "{record}");
    }
}

#[test]
fn tool_calls_are_made_as_asked() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--audit-policy", "redacted"]);
    let body = |more: Value| {
        let mut body = object!({
            "model": "guide", "messages": [{ "role": "user", "content": "Rain in Oslo?" }],
            "temperature": 1, "seed": 3, "max_tokens": 200, "tools": tools(),
            "reasoning_effort": "none",
        });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let ask = |more: Value| service.post("/v1/chat/completions", &body(more));
    let check = |call: &Value, names: &[&str]| {
        let name = call["function"]["name"].as_str().expect("a name");
        assert!(names.contains(&name), "{call}");
        let arguments =
            serde_json::from_str(call["function"]["arguments"].as_str().expect("text")).expect("JSON");
        if name == "weather" { fits(&arguments) } else { assert_eq!(arguments, object!({})) }
    };
    for (choice, names) in [
        (object!("required"), &["weather", "clock"][..]),
        (object!({ "type": "function", "function": { "name": "weather" } }), &["weather"]),
    ] {
        for seed in 0..4 {
            let more = object!({ "tool_choice": choice, "seed": seed, "n": 2, "parallel_tool_calls": false });
            let whole = ask(more.clone());
            assert_eq!(whole.status, 200, "{}", whole.body);
            let whole = whole.json();
            let mut more = more;
            more["stream"] = object!(true);
            let events = ask(more).events();
            for (i, answer) in (0..).zip(whole["choices"].as_array().expect("choices")) {
                assert_eq!(
                    (&answer["finish_reason"], &answer["message"]["content"]),
                    (&object!("tool_calls"), &Value::Null)
                );
                let calls = answer["message"]["tool_calls"].as_array().expect("calls");
                assert_eq!(calls.len(), 1);
                check(&calls[0], names);
                let (content, streamed, reason) = joined(&events, i);
                assert_eq!((content.as_str(), reason.as_str()), ("", "tool_calls"));
                assert_eq!(streamed.len(), 1);
                assert_eq!(streamed[0]["function"], calls[0]["function"]);
            }
        }
    }
    let many = ask(object!({ "tool_choice": "required", "temperature": 1.6, "seed": 8 })).json();
    let calls = many["choices"][0]["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
    calls.iter().for_each(|c| check(c, &["weather", "clock"]));
    // The model is free to answer in words, or must not call at all.
    for choice in ["auto", "none"] {
        let free = ask(object!({ "tool_choice": choice, "temperature": 0 })).json();
        assert!(free["choices"][0]["message"]["content"].as_str().is_some_and(|t| !t.is_empty()), "{free}");
    }
    // A conversation with a call and its result, whose record keeps digests alone and can still be computed again.
    let history = object!({ "tool_choice": "required", "messages": [
        { "role": "user", "content": "Rain in Oslo?" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "c1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Oslo\", \"days\": 1}" } }
        ] },
        { "role": "tool", "tool_call_id": "c1", "content": "sunny" },
    ] });
    assert_eq!(ask(history.clone()).status, 200);
    let record = records(&state, "request").remove(0);
    assert!(record["data"]["guide_sha256"].is_string() && !record.to_string().contains("Oslo"), "{record}");
    let (seq, file) = (record["seq"].to_string(), dir.join("body.json"));
    std::fs::write(&file, body(history.clone()).to_string()).expect("a file");
    assert_eq!(replay(&state, &seq, &["--request", text(&file)])["same"], true);
    // Other tools make another request, although the prompt may be the same.
    let mut other = history;
    other["parallel_tool_calls"] = object!(false);
    std::fs::write(&file, body(other).to_string()).expect("a file");
    let out = crate::common::deephold(&[
        "audit",
        "replay",
        &seq,
        "--state",
        text(&state),
        "--request",
        text(&file),
    ]);
    assert!(out.code != 0 && out.err.contains("another"), "{}", out.err);
}

/// What cannot be guaranteed, or would take too long to find out, is refused with the field and the reason, in bounded time.
#[test]
fn what_cannot_be_guaranteed_is_refused() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let schema = |schema: Value| object!({ "response_format": { "type": "json_schema", "json_schema": { "name": "s", "schema": schema } } });
    let tool = |name: &str| object!({ "type": "function", "function": { "name": name } });
    let nested = |depth: usize| {
        // Deeper than a JSON reader goes; but also one that it takes and a grammar would be large for.
        let mut schema = object!({ "type": "string" });
        for _ in 0..depth {
            schema = object!({ "type": "array", "items": schema });
        }
        schema
    };
    let wide: Value = object!({ "type": "object", "properties": Value::Object((0..40_000).map(|i| (format!("p{i}"), object!({ "type": "string", "pattern": "^[a-z]{1,200}$" }))).collect()) });
    let call = |arguments: Value| {
        object!([
            { "role": "user", "content": "x" },
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "c", "type": "function", "function": { "name": "f", "arguments": arguments } }] },
            { "role": "tool", "tool_call_id": "c", "content": "y" },
        ])
    };
    let cases = [
        (schema(object!({ "type": "object", "contains": 1 })), "contains"),
        (schema(object!({ "$ref": "http://example.com/x" })), "response_format"),
        (schema(object!({ "type": "nonsense" })), "nonsense"),
        (schema(object!(5)), "response_format.json_schema.schema"),
        (schema(wide), "the most is"),
        (object!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema"),
        (object!({ "response_format": { "type": "grammar" } }), "response_format.type"),
        (
            object!({ "tools": (0..10_000).map(|i| tool(&format!("f{i}"))).collect::<Vec<_>>() }),
            "10000 entries",
        ),
        (object!({ "tools": [tool("f"), tool("f")] }), "twice"),
        (object!({ "tools": [tool("a b")] }), "tools[0].function.name"),
        (object!({ "tools": [{ "type": "web_search" }] }), "tools[0].type"),
        (
            object!({ "tools": [tool("f")], "tool_choice": { "type": "function", "function": { "name": "g" } } }),
            "`g`",
        ),
        (object!({ "tools": [tool("f")], "tool_choice": "always" }), "tool_choice"),
        (object!({ "tool_choice": "required" }), "tool_choice"),
        (object!({ "parallel_tool_calls": true }), "parallel_tool_calls"),
        (object!({ "messages": call(object!({ "x": 1 })) }), "arguments` must be a string"),
        (object!({ "messages": call(object!("[1]")) }), "must be a JSON object in a string"),
        (object!({ "messages": call(object!("{")) }), "must be JSON in a string"),
        (object!({ "messages": [{ "role": "tool", "content": "x" }] }), "tool_call_id"),
        (object!({ "stop": vec!["x"; 100_000] }), "stop"),
        (object!({ "reasoning_effort": "wild" }), "reasoning_effort"),
        (object!({ "thinking": { "type": "sometimes" } }), "thinking.type"),
        (object!({ "service_tier": "golden" }), "service_tier"),
        (object!({ "prediction": { "type": "content", "content": "x" } }), "prediction"),
        (object!({ "store": true }), "store"),
        (object!({ "chat_template_kwargs": { "messages": [] } }), "chat_template_kwargs.messages"),
    ];
    for (more, words) in cases {
        let shown = more.to_string().chars().take(120).collect::<String>();
        let start = std::time::Instant::now();
        let refused = service.ask(more);
        assert_eq!(refused.status, 400, "{shown}: {}", refused.body);
        assert!(
            refused.body.contains(words) && refused.body.contains("\"param\":\""),
            "{shown}: {}",
            refused.body
        );
        assert!(start.elapsed().as_secs() < 20, "{shown} took {:?}", start.elapsed());
    }
    // Deep, and as large as a body may be: refused or answered, but in time.
    for more in [
        schema(nested(60)),
        schema(object!({ "type": "string", "pattern": "(((a{1,99}){1,99}){1,99}){1,99}" })),
        schema(object!({ "type": "string", "pattern": "(a|aa)*(b|bb)*(c|cc)*$" })),
        schema(object!({ "enum": vec!["long text"; 90_000] })),
    ] {
        let start = std::time::Instant::now();
        let status = service.ask(more).status;
        assert!(
            [200, 400].contains(&status) && start.elapsed().as_secs() < 30,
            "{status} {:?}",
            start.elapsed()
        );
    }
    let raw = |body: String| service.post_as(&service.key, "/v1/chat/completions", &body).status;
    let deep = |levels: usize| format!("{}{}", "{\"items\":".repeat(levels), "1") + &"}".repeat(levels);
    let schema_of = |inner: String| {
        format!(
            "{{\"model\":\"guide\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"response_format\":{{\"type\":\"json_schema\",\"json_schema\":{{\"name\":\"s\",\"schema\":{inner}}}}}}}"
        )
    };
    assert_eq!(raw(schema_of(deep(10_000))), 400);
    assert_eq!(raw(schema_of(format!("{{\"enum\":[\"{}\"]}}", "x".repeat(10 << 20)))), 413);
    assert_eq!(service.ask(object!({ "max_tokens": 2 })).status, 200, "it goes on");
    assert_eq!(service.ask(object!({ "max_tokens": 2, "service_tier": "priority", "store": false, "metadata": {}, "modalities": ["text"] })).status, 200);
}
