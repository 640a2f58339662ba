//! The service as its users meet it: the real program over real sockets.
#![allow(missing_docs, reason = "a test")]

mod apis;
#[path = "../common/mod.rs"]
mod common;
mod guided;
mod isolation;
mod load;
mod operations;
mod replicas;
mod security;
mod service;
mod tenants;
mod tls;

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{deephold, json, ok, records, text};
use deephold_testkit::{TempDir, fetched_model, guide_dir, shared, skip, skip_without_shared};
use serde_json::{Value, json as object};
use service::{Response, Service};

const QUESTION: &str = "What is Deephold?";

fn expected() -> Value {
    let bytes = std::fs::read(guide_dir().join("expected.json")).expect("cases");
    let cases: Vec<Value> = serde_json::from_slice(&bytes).expect("JSON");
    cases.into_iter().find(|c| c["question"] == QUESTION).expect("the question")
}

fn replay(state: &Path, id: &str, more: &[&str]) -> Value {
    let args = ["audit", "replay", id, "--state", text(state), "--json"];
    json(&[&args[..], more].concat())
}

#[test]
fn an_answer_is_the_models_streamed_or_not_and_is_recorded() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let expected = expected();
    let whole = service.ask(object!({ "temperature": 0 }));
    assert_eq!(whole.status, 200, "{}", whole.body);
    let body = whole.json();
    assert_eq!(body["choices"][0]["message"]["content"], expected["answer"]);
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let usage = &body["usage"];
    assert_eq!(usage["prompt_tokens"], expected["prompt_ids"].as_array().expect("ids").len());
    assert_eq!(usage["completion_tokens"], expected["answer_ids"].as_array().expect("ids").len());

    let streamed = service.ask(object!({
        "temperature": 0, "stream": true, "stream_options": { "include_usage": true }, "logprobs": true, "top_logprobs": 2,
    }));
    let events = streamed.events();
    let joined: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(joined, expected["answer"]);
    let tokens: String = events
        .iter()
        .filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .map(|t| {
            assert_eq!(t["top_logprobs"].as_array().map(Vec::len), Some(2));
            t["token"].as_str().expect("text").to_owned()
        })
        .collect();
    assert_eq!(tokens, expected["answer"]);
    let last = events.last().expect("an event");
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&object!([]), &usage["completion_tokens"])
    );
    assert!(streamed.head.contains("text/event-stream"));

    // The same seed gives the same answer, also beside others, and as the command line computes it.
    let ask = || service.ask(object!({ "temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 20 })).json();
    let (one, two) = (ask(), ask());
    assert_eq!(one["choices"], two["choices"]);
    assert_eq!(one["choices"].as_array().map(Vec::len), Some(3));
    let line = [
        "generate",
        "guide",
        "--prompt",
        QUESTION,
        "--temperature",
        "1.5",
        "--top-p",
        "0.95",
        "--seed",
        "7",
        "-n",
        "20",
    ];
    assert_eq!(
        ok(&line).trim_end(),
        one["choices"][0]["message"]["content"].as_str().expect("text").trim_end()
    );
    let stopped = service.ask(object!({ "temperature": 0, "stop": ["guide"] })).json();
    assert_eq!(stopped["choices"][0]["message"]["content"], "I am the ");

    // Every answer is in the log, whole, and the log verifies while the server runs.
    let records = records(&dir.join("state"), "request");
    assert_eq!(records.len(), 5);
    let first = &records[4]["data"];
    assert_eq!(first["prompts"][0]["ids"], expected["prompt_ids"]);
    assert_eq!(first["answers"][0]["ids"], expected["answer_ids"]);
    assert_eq!((&first["outcome"], &first["model"]), (&object!("completed"), &object!("guide")));
    assert!(first["facts"]["digest"].as_str().is_some_and(|d| d.starts_with("sha256:")));
    assert_eq!(
        format!("chatcmpl-{}", first["request_id"].as_str().expect("id")),
        body["id"].as_str().expect("id")
    );
    assert_eq!(json(&["audit", "verify", "--state", text(&dir.join("state")), "--json"])["ok"], true);
    // Each can be computed again beside the server: greedy, sampled three at a time, ended by a stop string.
    for record in &records {
        let replayed = replay(&dir.join("state"), &record["seq"].to_string(), &[]);
        assert_eq!(replayed["same"], true, "{replayed}");
        assert_eq!(
            replayed["answers"].as_array().map(Vec::len),
            record["data"]["answers"].as_array().map(Vec::len)
        );
    }
    assert_eq!(replay(&dir.join("state"), body["id"].as_str().expect("id"), &[])["seq"], records[4]["seq"]);
    let metrics = service.get("/metrics").body;
    assert!(
        metrics.contains("deephold_requests_total{model_name=\"guide\",outcome=\"completed\"} 5"),
        "{metrics}"
    );
    assert!(!metrics.contains(&service.key));
    // What the engine counts itself, also under vLLM's name.
    let value = |name: &str| -> f64 {
        let line =
            metrics.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    };
    let looked_for = value("deephold_prefix_queries_total{model_name=\"guide\"}");
    assert!(looked_for > 0.0);
    assert_eq!(looked_for, value("vllm:prefix_cache_queries_total{model_name=\"guide\"}"));
    assert!(value("deephold_step_sequences_count") > 0.0 && value("process_resident_memory_bytes") > 1e6);
}

/// A log that keeps digests alone still shows that an answer was the model's, to who has the request.
#[test]
fn digests_alone_are_enough_to_compute_an_answer_again() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--audit-policy", "redacted"]);
    let body = object!({ "model": "guide", "temperature": 1, "max_tokens": 12,
        "messages": [{ "role": "user", "content": QUESTION }] });
    assert_eq!(service.post("/v1/chat/completions", &body).status, 200);
    let record = records(&state, "request").remove(0);
    assert!(!record.to_string().contains("Deephold"));
    let (seq, file) = (record["seq"].to_string(), dir.join("body.json"));
    std::fs::write(&file, body.to_string()).expect("a file");
    assert_eq!(replay(&state, &seq, &["--request", text(&file)])["same"], true);

    let refused = |more: &[&str], words: &str| {
        let out = deephold(&[&["audit", "replay", &seq, "--state", text(&state)], more].concat());
        assert!(out.code != 0 && out.err.contains(words), "{}", out.err);
    };
    refused(&[], "give the body as it was sent");
    std::fs::write(&file, body.to_string().replace("What", "Who")).expect("a file");
    refused(&["--request", text(&file)], "another request");
    std::fs::write(&file, "{}").expect("a file");
    refused(&["--request", text(&file)], "`messages` is missing");
    let key = records(&state, "key")[0]["seq"].to_string();
    let out = deephold(&["audit", "replay", &key, "--state", text(&state)]);
    assert!(out.err.contains("of kind `key`"), "{}", out.err);
}

#[test]
fn plain_completions_continue_a_prompt() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let expected = expected();
    let prompt =
        object!({ "model": "guide", "prompt": expected["prompt_ids"], "temperature": 0, "max_tokens": 100 });
    let body = service.post("/v1/completions", &prompt).json();
    assert_eq!(body["choices"][0]["text"], expected["answer"]);
    assert_eq!(body["object"], "text_completion");
    let tokens = service.post("/v1/tokenize", &object!({ "model": "guide", "prompt": "Hello" })).json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().expect("ids").len());
    let ask =
        |tokens: &Value| service.post("/v1/detokenize", &object!({ "model": "guide", "tokens": tokens }));
    let back = ask(&tokens["tokens"]).json()["prompt"].clone();
    assert!(back.as_str().is_some_and(|t| t.ends_with("Hello")), "{back}");
    let rendered = ask(&expected["prompt_ids"]).json()["prompt"].clone();
    assert!(rendered.as_str().is_some_and(|t| t.contains(QUESTION) && t.contains('<')), "{rendered}");
    for bad in [object!([1_u64 << 40]), object!([-1]), object!(["a"]), object!([4_000_000_000_u32])] {
        let refused = ask(&bad);
        assert_eq!(
            (refused.status, refused.json()["error"]["param"].clone()),
            (400, object!("tokens")),
            "{bad}"
        );
    }
}

/// What evaluation harnesses ask for: many prompts at once, and what the model thinks of their own tokens.
#[test]
fn prompts_in_lists_and_their_own_log_probabilities() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let expected = expected();
    let ids = |name: &str| expected[name].as_array().expect("ids").clone();
    let (prompt, answer) = (ids("prompt_ids"), ids("answer_ids"));
    let ask = |more: Value| {
        let mut body = object!({ "model": "guide", "temperature": 0 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        service.post("/v1/completions", &body)
    };
    let answered = ask(object!({ "prompt": prompt, "max_tokens": 100, "logprobs": 2 })).json();
    let answered = &answered["choices"][0];
    // The answer's tokens, scored as part of a prompt, have the log probabilities that they were answered with.
    let whole: Vec<Value> = [&prompt[..], &answer[..answer.len() - 1]].concat();
    let scored = ask(object!({
        "prompt": [whole, prompt, "Hello"], "max_tokens": 0, "echo": true, "logprobs": 2,
    }));
    let scored = scored.json();
    let first = &scored["choices"][0];
    for field in ["tokens", "token_logprobs", "top_logprobs"] {
        let list = first["logprobs"][field].as_array().expect("a list");
        assert_eq!(list.len(), whole.len());
        assert_eq!(object!(list[prompt.len()..]), answered["logprobs"][field], "{field}");
    }
    assert_eq!(first["logprobs"]["token_logprobs"][0], Value::Null);
    let text = first["text"].as_str().expect("text");
    assert!(text.ends_with(answered["text"].as_str().expect("text")) && text.contains(QUESTION), "{text}");
    let offsets = first["logprobs"]["text_offset"].as_array().expect("offsets");
    assert!(offsets[0] == 0 && offsets.is_sorted_by_key(|o| o.as_u64()) && offsets.len() == whole.len());
    assert_eq!(scored["choices"][2]["text"], "Hello");
    let usage = &scored["usage"];
    assert_eq!(
        (&usage["completion_tokens"], scored["choices"].as_array().map(Vec::len)),
        (&object!(0), Some(3))
    );
    // Several answers to several prompts, in their order, as each prompt alone gets them; streamed or not.
    let many = object!({ "prompt": ["One", "Two"], "n": 2, "seed": 5, "temperature": 1, "max_tokens": 6, "echo": true });
    let together = ask(many.clone()).json();
    for (i, prompt) in ["One", "Two"].into_iter().enumerate() {
        let alone =
            ask(object!({ "prompt": prompt, "n": 2, "seed": 5, "temperature": 1, "max_tokens": 6 })).json();
        for j in 0..2 {
            let both = format!("{prompt}{}", alone["choices"][j]["text"].as_str().expect("text"));
            assert_eq!(together["choices"][2 * i + j]["text"], both);
        }
    }
    let mut streamed = vec![String::new(); 4];
    let mut many = many;
    many["stream"] = object!(true);
    for event in ask(many).events() {
        let choice = &event["choices"][0];
        streamed[choice["index"].as_u64().expect("an index") as usize] +=
            choice["text"].as_str().expect("text");
    }
    for (i, text) in streamed.iter().enumerate() {
        assert_eq!(together["choices"][i]["text"], *text);
    }
    // One record, from which all four answers can be computed again.
    let record = &records(&state, "request")[0];
    assert_eq!(record["data"]["prompts"].as_array().map(Vec::len), Some(2));
    let again = replay(&state, &record["seq"].to_string(), &[]);
    assert_eq!((&again["same"], again["answers"].as_array().map(Vec::len)), (&object!(true), Some(4)));
    let too_many = vec!["x"; 300];
    for (bad, param) in [
        (object!({ "prompt": [] }), "empty"),
        (object!({ "prompt": ["a", 5] }), "prompt"),
        (object!({ "prompt": [[1], [-1]] }), "prompt"),
        (object!({ "prompt": [[1], [9_999_999]] }), "vocabulary"),
        (object!({ "prompt": too_many }), "300"),
        (object!({ "prompt": vec!["x"; 20], "n": 16 }), "256"),
        (object!({ "prompt": "x", "max_tokens": 0 }), "max_tokens"),
        (object!({ "prompt": "x", "best_of": 3 }), "best_of"),
    ] {
        let refused = ask(bad.clone());
        assert!(refused.status == 400 && refused.body.contains(param), "{bad}: {}", refused.body);
    }
}

#[test]
fn every_route_but_health_refuses_without_a_key() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let mut closed = 0;
    for deephold_server::RouteInfo { method, path, roles, .. } in deephold_server::routes() {
        let (path, open) = (path.replace("{model}", "guide"), roles.is_empty());
        for authorization in
            ["", "Authorization: Bearer dh_0\r\n", "Authorization: Basic eDp5\r\n", "x-api-key: dh_0\r\n"]
        {
            let head =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n");
            let status = Response::read(service.send(head.as_bytes())).status;
            assert_eq!(status, if open { 200 } else { 401 }, "{method} {path}");
            closed += usize::from(!open);
        }
    }
    assert!(closed >= 15);
    assert!(service.get("/healthz").status == 200 && service.get("/readyz").status == 200);
}

#[test]
fn bad_requests_get_a_clear_error_and_lose_nothing() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let user = object!([{ "role": "user", "content": "x" }]);
    let cases = [
        (object!({ "model": "guide" }), 400, "messages"),
        (object!({ "model": "absent", "messages": user }), 404, "absent"),
        (object!({ "model": 5, "messages": user }), 400, "model"),
        (object!({ "model": "guide", "messages": [] }), 400, "messages"),
        (
            object!({ "model": "guide", "messages": [{ "role": "king", "content": "x" }] }),
            400,
            "messages[0].role",
        ),
        (object!({ "model": "guide", "messages": [{ "role": "user" }] }), 400, "messages[0].content"),
        (object!({ "model": "guide", "messages": user, "temperature": 9 }), 400, "temperature"),
        (object!({ "model": "guide", "messages": user, "top_p": "high" }), 400, "top_p"),
        (object!({ "model": "guide", "messages": user, "n": 0 }), 400, "n"),
        (object!({ "model": "guide", "messages": user, "logit_bias": { "x": 1 } }), 400, "logit_bias"),
        (object!({ "model": "guide", "messages": user, "logit_bias": { "99999": 1 } }), 400, "logit_bias"),
        (object!({ "model": "guide", "messages": user, "stop": [""] }), 400, "stop"),
        (object!({ "model": "guide", "messages": user, "tools": [] }), 400, "tools"),
        (object!({ "model": "guide", "messages": user, "invented": 1 }), 400, "invented"),
        (
            object!({ "model": "guide", "messages": [{ "role": "user", "content": "word ".repeat(5000) }] }),
            400,
            "context",
        ),
    ];
    for (body, status, part) in cases {
        let response = service.post("/v1/chat/completions", &body);
        let error = &response.json()["error"];
        assert_eq!(response.status, status, "{body}: {error}");
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert!(response.head.contains("x-request-id"));
    }
    let raw = |body: &str| service.post_as(&service.key, "/v1/chat/completions", body);
    for body in ["", "{", "[]", "nonsense", "{\"model\": \"\\ud800\"}", &"[".repeat(100_000)] {
        assert_eq!(raw(body).status, 400, "{}", &body[..body.len().min(40)]);
    }
    assert_eq!(raw(&" ".repeat(9 << 20)).status, 413);
    assert_eq!(service.get("/nothing").status, 404);
    assert_eq!(service.get("/v1/chat/completions").status, 405);
    let huge = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "y".repeat(200_000));
    assert!([400, 431, 0].contains(&Response::read(service.send(huge.as_bytes())).status));
    for half in
        ["GET /healthz", "\0\0\0", "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"]
    {
        drop(service.send(half.as_bytes()));
    }
    assert_eq!(service.ask(object!({ "max_tokens": 2 })).status, 200, "it goes on");
    let sent = records(&dir.join("state"), "request");
    // A prompt that the engine refused is recorded as failed; what never was a request is not.
    assert!(sent.iter().any(|r| r["data"]["outcome"] == "failed"));
}

#[test]
fn keys_hold_what_they_say_and_end_at_once() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let create = |more: &[&str]| {
        json(&[&["key", "create", "--owner", "Ada", "--json", "--state", text(&state)], more].concat())
    };
    let body =
        object!({ "model": "guide", "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 })
            .to_string();
    let chat = |key: &Value| {
        service.post_as(key["secret"].as_str().expect("secret"), "/v1/chat/completions", &body).status
    };
    let app = create(&[]);
    assert_eq!(chat(&app), 200);
    assert_eq!(chat(&create(&["--model", "other"])), 403);
    assert_eq!(chat(&create(&["--role", "auditor"])), 403);
    let metrics = |key: &Value| {
        let key = key["secret"].as_str().expect("secret");
        let head = format!(
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        Response::read(service.send(head.as_bytes())).status
    };
    assert_eq!((metrics(&app), metrics(&create(&["--role", "auditor"]))), (403, 200));
    assert_eq!(chat(&create(&["--days", "0"])), 401, "expired");
    let id = app["key"]["id"].as_str().expect("id");
    let rotated = json(&["key", "rotate", id, "--json", "--state", text(&state)]);
    assert_eq!((chat(&app), chat(&rotated)), (401, 200));
    assert_eq!(rotated["key"]["tenant"], app["key"]["tenant"]);
    let id = rotated["key"]["id"].as_str().expect("id");
    ok(&["key", "revoke", id, "--state", text(&state)]);
    assert_eq!(chat(&rotated), 401);
    let again = deephold(&["key", "revoke", id, "--state", text(&state)]);
    assert!(again.code == 65 && again.err.contains("no valid key"), "{}", again.err);
    // Secrets lie nowhere in the state: not in the list, the database or the log.
    let secret = rotated["secret"].as_str().expect("secret");
    let list = ok(&["key", "list", "--state", text(&state)]);
    assert!(list.contains(id) && !list.contains("dh_"), "{list}");
    drop(service);
    for entry in ["state.db", "state.db-wal", "audit/audit-00000001.jsonl"] {
        let bytes = std::fs::read(state.join(entry)).unwrap_or_default();
        assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{entry}");
    }
    // The same commands work without a server, and the log has a record of every act.
    ok(&["key", "create", "--owner", "Grace", "--state", text(&state)]);
    let events: Vec<String> = records(&state, "key").iter().map(|r| r["data"]["event"].to_string()).collect();
    assert_eq!(events.iter().filter(|e| e.contains("revoked")).count(), 2, "{events:?}");
    assert_eq!(json(&["audit", "verify", "--state", text(&state), "--json"])["ok"], true);
}

#[test]
fn what_must_not_start_does_not() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let run = |args: &[&str]| deephold(&[&["serve", "--state", text(&state)], args].concat());
    let both = run(&["--tls", "--insecure-http"]);
    assert!(both.code == 64 && both.err.contains("--insecure-http"), "{}", both.err);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let busy = run(&["--bind", &address]);
    assert!(busy.err.contains("cannot listen at"), "{}", busy.err);
    let service = Service::start(&state, &[]);
    let second = run(&["--bind", "127.0.0.1:0"]);
    assert!(second.err.contains("open in another process"), "{}", second.err);
    drop(service);
    std::fs::write(state.join("state.db"), "no database ".repeat(1000)).expect("write");
    let broken = run(&["--bind", "127.0.0.1:0"]);
    assert!(broken.code == 65 && broken.err.contains("database"), "{}", broken.err);
    assert!(run(&["a=guide", "a=guide"]).err.contains("two models"));
}

#[test]
fn a_reader_that_goes_ends_its_work_and_a_stop_lets_answers_end() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let mut service = Service::start(&state, &[]);
    let body = object!({
        "model": "guide", "stream": true, "temperature": 1.9, "max_tokens": 900,
        "messages": [{ "role": "user", "content": QUESTION }], "logit_bias": { "1": -100 },
    })
    .to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        service.key,
        body.len()
    );
    let begin = || {
        let mut stream = service.send(format!("{head}{body}").as_bytes());
        let mut first = [0; 300];
        stream.read_exact(&mut first).expect("the stream begins");
        stream
    };
    drop(begin());
    // The engine forgets it, and the record says what was answered until then.
    let mut waited = 0;
    while records(&state, "request").is_empty() {
        std::thread::sleep(Duration::from_millis(20));
        waited += 1;
        assert!(waited < 500, "no record of an aborted request");
    }
    let record = &records(&state, "request")[0]["data"];
    assert_eq!(record["outcome"], "aborted");
    assert!(record["usage"]["completion_tokens"].as_u64() < Some(900));
    // A stream that runs when the server is told to stop comes to its end.
    let mut stream = begin();
    service.terminate();
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    assert!(rest.contains("[DONE]"), "{rest}");
    assert!(service.child.wait().expect("an end").success());
    assert_eq!(json(&["audit", "verify", "--state", text(&state), "--json"])["unsigned"], 0);
}

/// A question whose record fills the audit log faster than its usage fills the state's journal.
fn long_question() -> Value {
    let stops: Vec<String> = (0..12).map(|i| format!("{i}").repeat(500)).collect();
    object!({ "temperature": 0, "max_tokens": 4, "stop": stops })
}

/// Asks until it is refused: how often it was answered before, and the refusal.
fn until_refused(ask: impl Fn() -> Response) -> (usize, Response) {
    for answered in 0..1000 {
        let response = ask();
        if response.status != 200 {
            return (answered, response);
        }
    }
    panic!("the limit does not hold");
}

/// The state's journal is full before the audit log is.
#[test]
fn nothing_is_answered_whose_usage_cannot_be_written() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start_limited(&state, &["--audit-policy", "redacted"]);
    let ask = || service.ask(object!({ "temperature": 0, "max_tokens": 1 }));
    let (answered, refused) = until_refused(ask);
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].clone()),
        (503, object!("state_unavailable"))
    );
    assert_eq!((service.get("/readyz").status, service.get("/healthz").status), (503, 200));
    // Refused before it computes: no record says that it was asked.
    let recorded = records(&state, "request").len();
    assert_eq!(ask().status, 503);
    assert_eq!(records(&state, "request").len(), recorded);
    service.lift_limit();
    assert_eq!((service.get("/readyz").status, ask().status), (200, 200));
    // What was computed and could not be written is not forgotten either.
    let rows = json(&["usage", "--json", "--state", text(&state)]);
    assert_eq!(rows[0]["row"]["requests"].as_u64(), Some(answered as u64 + 2), "{rows}");
}

#[test]
fn nothing_is_answered_that_cannot_be_recorded() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start_limited(&state, &[]);
    let ask = || service.ask(long_question());
    let (answered, refused) = until_refused(ask);
    assert!(answered > 5);
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].clone()),
        (503, object!("audit_unavailable"))
    );
    assert!(refused.head.to_ascii_lowercase().contains("retry-after"));
    // A small record may still fit where a request's does not; then nothing does, and requests are refused before they compute.
    for _ in 0..200 {
        if service.get("/readyz").status == 503 {
            break;
        }
        assert_ne!(ask().status, 200);
    }
    assert_eq!(service.ask(object!({ "stream": true })).status, 503);
    assert_eq!((service.get("/readyz").status, service.get("/healthz").status), (503, 200));
    assert_eq!(records(&state, "request").len(), answered);

    service.lift_limit();
    assert_eq!(service.get("/readyz").status, 200);
    assert_eq!(ask().status, 200);
    assert_eq!(records(&state, "request").len(), answered + 1);
    assert!(records(&state, "server").iter().any(|r| r["data"]["event"] == "log resumed"));
    assert_eq!(json(&["audit", "verify", "--state", text(&state), "--json"])["ok"], true);
}

/// What the program prints works when pasted.
#[test]
fn the_printed_lines_work() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let curl = service.banner.lines().find(|l| l.trim().starts_with("curl")).expect("a line for curl");
    let out = Command::new("bash").args(["-c", curl]).output().expect("bash");
    assert!(String::from_utf8_lossy(&out.stdout).contains("\"object\":\"chat.completion\""), "{out:?}");
    let Some(python) = openai_python() else { return };
    let line = service.banner.lines().find(|l| l.trim().starts_with("python3")).expect("a line for Python");
    let line = line.replacen("python3", python.to_str().expect("a path"), 1);
    let out = Command::new("bash").args(["-c", &line]).output().expect("bash");
    assert!(out.status.success() && !out.stdout.is_empty(), "{out:?}");
}

/// 64 streams at once, each whole.
#[test]
fn many_streams_at_once() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let expected = expected()["answer"].clone();
    std::thread::scope(|scope| {
        let streams: Vec<_> = (0..64)
            .map(|_| scope.spawn(|| service.ask(object!({ "temperature": 0, "stream": true })).events()))
            .collect();
        for events in streams.into_iter().map(|s| s.join().expect("a stream")) {
            let joined: String =
                events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(joined, expected);
        }
    });
}

fn openai_python() -> Option<std::ffi::OsString> {
    let python = std::env::var_os("DEEPHOLD_OPENAI_PYTHON");
    if python.is_none() {
        skip("needs DEEPHOLD_OPENAI_PYTHON, a Python with the openai package");
    }
    python
}

/// Runs a script of `tests/clients`, the first of `args`, with the rest of them; `authority` is whom the client trusts.
fn run_script(program: &std::ffi::OsStr, authority: Option<&Path>, args: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(args[0]);
    let mut command = Command::new(program);
    if let Some(file) = authority {
        command.env("SSL_CERT_FILE", file).env("NODE_EXTRA_CA_CERTS", file);
    }
    let out = command.arg(script).args(&args[1..]).output().expect("the script's program");
    let (said, erred) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{args:?}: {said}{erred}");
}

/// The service is as it describes itself: what its description allows is answered with a described body, what it forbids is
/// refused, and nothing fails. `cargo xtask prove api` does it at length.
#[test]
fn the_description_of_the_api_holds() {
    let Some(python) = openai_python() else { return };
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &["--context", "128"]);
    let base = format!("http://{}", service.address);
    run_script(&python, None, &["api.py", &base, &service.key, "guide", "25", "7"]);
}

/// A really trained model, within schemas in the style of public ones. `cargo xtask prove schemas` takes all of them.
#[test]
fn a_trained_model_keeps_to_schemas() {
    let Some(python) = openai_python() else { return };
    let Some(model) = fetched_model("smollm2-135m-instruct.q4_1.gguf") else { return };
    let dir = TempDir::new("serve");
    let model = format!("smollm={}", text(&model));
    let service = Service::start(&dir.join("state"), &[&model, "--cache-memory", "512MiB"]);
    let base = format!("http://{}/v1", service.address);
    run_script(&python, None, &["schemas.py", &base, &service.key, "smollm", "8", "1"]);
}

/// The official client of another language.
#[test]
fn the_openai_package_of_npm_is_satisfied() {
    let Some(folder) = std::env::var_os("DEEPHOLD_OPENAI_NODE") else {
        skip("needs DEEPHOLD_OPENAI_NODE, a folder where npm installed the openai package");
        return;
    };
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &["--tls"]);
    let base = format!("https://{}/v1", service.address);
    let folder = folder.to_str().expect("a path in UTF-8");
    let authority = dir.join("state/tls/ca.pem");
    run_script(
        "node".as_ref(),
        Some(&authority),
        &["openai_client.mjs", folder, &base, &service.key, "guide"],
    );
}

/// The official client: on the guide, on a base model without a template, and on a really trained one, all in one service.
#[test]
fn the_openai_package_is_satisfied() {
    let Some(python) = openai_python() else { return };
    let dir = TempDir::new("serve");
    let (stories, smollm) = (skip_without_shared(), fetched_model("smollm2-135m-instruct.q4_1.gguf"));
    let mut models = vec!["guide".to_owned()];
    if !stories {
        models.push(format!("stories={}", text(&shared("models/stories260k"))));
    }
    models.extend(smollm.as_ref().map(|path| format!("smollm={}", text(path))));
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let service =
        Service::start(&dir.join("state"), &[&models[..], &["--tls", "--cache-memory", "512MiB"]].concat());
    let base = format!("https://{}/v1", service.address);
    let authority = dir.join("state/tls/ca.pem");
    let drive = |model: &str, template: &str| {
        let args = ["openai_client.py", &base, &service.key, model, template];
        run_script(&python, Some(&authority), &args);
    };
    drive("guide", "yes");
    if !stories {
        drive("stories", "no");
    }
    if smollm.is_some() {
        drive("smollm", "yes");
    }
}
