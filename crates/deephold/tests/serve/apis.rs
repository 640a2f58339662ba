//! What clients of other services send.

use deephold_testkit::{TempDir, fetched_model};
use serde_json::{Value, json as object};

use crate::QUESTION;
use crate::common::{json, ok, text};
use crate::service::{Response, Service};
use crate::{openai_python, records, replay, run_script};

#[test]
fn deepseeks_paths_and_fields() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--alias", "deepseek-chat=guide", "--alias", "lost=absent"]);
    let ask = |path: &str, more: Value| {
        let mut body = object!({ "model": "deepseek-chat", "temperature": 0, "messages": [{ "role": "user", "content": QUESTION }] });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        service.post(path, &body)
    };
    let answers: Vec<Value> = ["/v1/chat/completions", "/chat/completions", "/beta/chat/completions"]
        .iter()
        .map(|path| ask(path, object!({ "user_id": "one" })).json())
        .collect();
    let content = |v: &Value| v["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    assert!(answers.iter().all(|a| content(a) == content(&answers[0])));
    let usage = |v: &Value, name: &str| v["usage"][name].as_u64().expect("a number");
    for answer in &answers {
        let (hit, miss) =
            (usage(answer, "prompt_cache_hit_tokens"), usage(answer, "prompt_cache_miss_tokens"));
        assert_eq!(hit + miss, usage(answer, "prompt_tokens"));
    }
    // A long prompt is found again by the same user alone.
    let long = object!([{ "role": "user", "content": "What is Deephold? ".repeat(20) }]);
    let hits = |user: &str| {
        usage(
            &ask("/chat/completions", object!({ "user_id": user, "messages": long, "max_tokens": 1 })).json(),
            "prompt_cache_hit_tokens",
        )
    };
    assert_eq!((hits("two"), hits("three")), (0, 0));
    assert!(hits("two") > 0 && hits("three") > 0);
    // An answer that is begun goes on where it was left.
    let whole = content(&answers[0]);
    let (begun, rest) = whole.split_at(whole.find("guide").expect("the word"));
    let prefix = object!({ "messages": [{ "role": "user", "content": QUESTION }, { "role": "assistant", "content": begun.trim_end(), "prefix": true }] });
    let body = ask("/beta/chat/completions", prefix.clone());
    assert_eq!(content(&body.json()).trim_start(), rest);
    let newest = &records(&state, "request")[0];
    assert_eq!(replay(&state, &newest["seq"].to_string(), &[])["same"], true);
    let stray = object!({ "messages": [{ "role": "assistant", "content": "x", "prefix": true }, { "role": "user", "content": "y" }] });
    assert!(ask("/chat/completions", stray).body.contains("messages[0].prefix"));
    // The guide has no marks for it, and says so.
    let hole = service
        .post("/beta/completions", &object!({ "model": "guide", "prompt": "def f(", "suffix": "return x" }));
    assert!(hole.status == 422 && hole.body.contains("\"param\":\"suffix\""), "{}", hole.body);
    assert_eq!(service.get("/user/balance").json()["is_available"], true);

    let models = service.get("/models").json();
    let ids: Vec<&Value> = models["data"].as_array().expect("models").iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, [&object!("guide"), &object!("deepseek-chat")]);
    let one = service.get("/v1/models/deepseek%2Dchat").json();
    assert_eq!((&one["id"], &one["root"]), (&object!("deepseek-chat"), &object!("guide")));
    assert_eq!(one["capabilities"]["fill_in_the_middle"], false);
    assert_eq!((service.get("/v1/models/absent").status, service.get("/v1/models/lost").status), (404, 404));
    // A key that may use the model may use it by its other name, and no other key may.
    let key = |model: &str| {
        let args = ["key", "create", "--owner", "Ada", "--model", model, "--json", "--state", text(&state)];
        json(&args)["secret"].as_str().expect("a secret").to_owned()
    };
    let body = object!({ "model": "deepseek-chat", "prompt": "x", "max_tokens": 1 }).to_string();
    assert_eq!(service.post_as(&key("guide"), "/completions", &body).status, 200);
    assert_eq!(service.post_as(&key("other"), "/completions", &body).status, 403);
    // Anthropic's clients name the key otherwise.
    let head = format!(
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-api-key: {}\r\n\r\n",
        service.key
    );
    assert_eq!(Response::read(service.send(head.as_bytes())).status, 200);
}

/// A model that was trained to fill holes.
#[test]
fn each_event_counts_its_answers_tokens_where_that_is_asked() {
    let dir = TempDir::new("continuous-usage");
    let service = Service::start(&dir.join("state"), &[]);
    let events = |path: &str, asked: Value, options: Value| {
        let mut body = object!({
            "model": "guide", "temperature": 0, "max_tokens": 4, "ignore_eos": true, "stream": true, "stream_options": options,
        });
        body.as_object_mut().expect("an object").extend(asked.as_object().expect("an object").clone());
        service.post(path, &body).events()
    };
    let continuous = object!({ "include_usage": true, "continuous_usage_stats": true });
    let number = |event: &Value, name: &str| event["usage"][name].as_u64().expect("a number");

    // Two prompts: each event counts its own.
    let prompts = object!({ "prompt": [[5, 6, 7], [5, 6, 7, 8, 9]] });
    let all = events("/v1/completions", prompts.clone(), continuous.clone());
    for (index, prompt) in [(0, 3), (1, 5)] {
        let own: Vec<&Value> = all.iter().filter(|e| e["choices"][0]["index"] == index).collect();
        let counts: Vec<u64> = own.iter().map(|e| number(e, "completion_tokens")).collect();
        assert!(counts[0] >= 1 && counts.is_sorted() && counts.last() == Some(&4), "{counts:?}");
        for (event, count) in own.iter().zip(counts) {
            assert_eq!(
                (number(event, "prompt_tokens"), number(event, "total_tokens")),
                (prompt, prompt + count)
            );
        }
    }
    let last = all.last().expect("an event");
    assert_eq!((number(last, "prompt_tokens"), number(last, "completion_tokens")), (8, 8));

    let chat = object!({ "messages": [{ "role": "user", "content": QUESTION }] });
    let all = events("/v1/chat/completions", chat, continuous);
    assert_eq!(number(&all[0], "completion_tokens"), 0, "the role comes before any token");

    // Alone it does nothing, as with vLLM; without it, only the last event counts.
    let alone = events("/v1/completions", prompts.clone(), object!({ "continuous_usage_stats": true }));
    assert!(alone.iter().all(|e| e.get("usage").is_none()));
    let plain = events("/v1/completions", prompts, object!({ "include_usage": true }));
    let (last, others) = plain.split_last().expect("events");
    assert!(others.iter().all(|e| e["usage"].is_null()) && number(last, "completion_tokens") == 8);
}

#[test]
fn a_hole_in_a_program_is_filled() {
    if std::env::var_os("DEEPHOLD_TEST_MODELS").is_none_or(|dir| {
        !std::path::Path::new(&dir).join("qwen2.5-coder-0.5b-instruct.q4_k_m.gguf").exists()
    }) {
        // Its package has no licence, so CI does not fetch it.
        return;
    }
    let Some(model) = fetched_model("qwen2.5-coder-0.5b-instruct.q4_k_m.gguf") else { return };
    let dir = TempDir::new("serve");
    let service =
        Service::start(&dir.join("state"), &[&format!("coder={}", text(&model)), "--cache-memory", "256MiB"]);
    let body = object!({ "model": "coder", "prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(2, 3))\n", "temperature": 0, "max_tokens": 12 });
    let answer = service.post("/beta/completions", &body).json();
    let filled = answer["choices"][0]["text"].as_str().expect("text");
    assert!(filled.starts_with("a + b"), "{filled}");
    assert_eq!(service.get("/v1/models/coder").json()["capabilities"]["fill_in_the_middle"], true);
}

/// An encoder beside a model that writes: near things are near, in both languages' order of words, and each does its own work.
#[test]
fn an_encoder_gives_vectors_and_ranks_documents() {
    let Some(model) = fetched_model("all-minilm-l6-v2") else { return };
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let encoder = format!("minilm={}", text(&model));
    let service = Service::start(&state, &["guide", &encoder, "--alias", "text-embedding-3-small=minilm"]);
    let file = deephold_testkit::testdata("minilm").join("reference.json");
    let reference: Value = serde_json::from_slice(&std::fs::read(file).expect("a reference")).expect("JSON");
    let entries = reference["entries"].as_array().expect("entries");
    let texts: Vec<&Value> = entries.iter().map(|e| &e["text"]).collect();
    let numbers = |v: &Value| -> Vec<f64> { serde_json::from_value(v.clone()).expect("numbers") };
    let ask = |body: Value| service.post("/v1/embeddings", &body);
    let answer = ask(object!({ "model": "text-embedding-3-small", "input": texts })).json();
    for (entry, got) in entries.iter().zip(answer["data"].as_array().expect("vectors")) {
        let (got, expected) = (numbers(&got["embedding"]), numbers(&entry["vector"]));
        let cosine: f64 = got.iter().zip(&expected).map(|(a, b)| a * b).sum();
        assert!((cosine - 1.0).abs() < 1e-5, "{}: {cosine}", entry["text"]);
    }
    let tokens: usize = entries.iter().map(|e| e["ids"].as_array().expect("ids").len()).sum();
    assert_eq!(answer["usage"]["total_tokens"], tokens);
    let newest = &records(&state, "request")[0];
    assert_eq!(newest["data"]["vectors"].as_array().map(Vec::len), Some(20));
    assert_eq!(newest["data"]["vectors"][0]["dimensions"], 384);
    // One alone has the same bits, given as ids too.
    let first = &answer["data"][3]["embedding"];
    assert_eq!(
        ask(object!({ "model": "minilm", "input": entries[3]["ids"] })).json()["data"][0]["embedding"],
        *first
    );

    let long = "steel ".repeat(600);
    let refused = ask(object!({ "model": "minilm", "input": long }));
    assert!(refused.status == 400 && refused.body.contains("context_length_exceeded"), "{}", refused.body);
    let cut = ask(object!({ "model": "minilm", "input": long, "truncate_prompt_tokens": -1 })).json();
    assert_eq!(cut["usage"]["prompt_tokens"], 512);

    let documents = object!([texts[2], { "text": texts[4] }, texts[5], long]);
    let mut body =
        object!({ "model": "minilm", "query": "scratched metal", "documents": documents, "top_n": 2 });
    let ranked = service.post("/v1/rerank", &body).json();
    let results = ranked["results"].as_array().expect("results");
    assert_eq!(results.len(), 2);
    assert_eq!((&results[0]["index"], &results[0]["document"]["text"]), (&object!(1), texts[4]));
    let score = |i: usize| results[i]["relevance_score"].as_f64().expect("a score");
    assert!(score(0) > score(1) && score(0) < 1.0);
    body["documents"] = object!([1]);
    assert!(service.post("/v1/rerank", &body).body.contains("\"param\":\"documents\""));
    // A model that writes ranks as well, by its states.
    body["model"] = object!("guide");
    body["documents"] = object!([texts[0], "scratched metal"]);
    assert_eq!(service.post("/v1/rerank", &body).json()["results"][0]["index"], 1);

    let chat = object!({ "model": "minilm", "messages": [{ "role": "user", "content": QUESTION }] });
    let chat = service.post("/v1/chat/completions", &chat);
    assert!(chat.status == 400 && chat.body.contains("/v1/embeddings"), "{}", chat.body);
    let shown = service.get("/v1/models/minilm").json();
    assert_eq!(
        (&shown["capabilities"]["embeddings"], &shown["capabilities"]["chat"]),
        (&object!(true), &object!(false))
    );
    assert_eq!(shown["max_model_len"], 512);
    let seq =
        records(&state, "request").iter().find(|r| r["data"]["endpoint"] == "/v1/rerank").expect("a record")
            ["seq"]
            .to_string();
    let replayed =
        crate::common::deephold(&["audit", "replay", &seq, "--model", text(&model), "--state", text(&state)]);
    assert!(replayed.code == 65 && replayed.err.contains("is of vectors"), "{}", replayed.err);
    // It comes and goes beside the running server as every model does.
    let vector = || ask(object!({ "model": "minilm", "input": "steel" }));
    let before = vector().json();
    ok(&["model", "unload", "minilm", "--state", text(&state)]);
    assert_eq!(vector().status, 404);
    ok(&["model", "load", &encoder, "--state", text(&state)]);
    assert_eq!(vector().json()["data"], before["data"]);
    assert!(ok(&["model", "list", "--state", text(&state)]).contains("minilm"));
}

/// Requests and checks as data, which also run against other servers (`cargo xtask prove peer`).
#[test]
fn the_scenarios_hold() {
    let Some(python) = openai_python() else { return };
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &["guide"]);
    let base = format!("http://{}", service.address);
    run_script(&python, None, &["scenarios.py", &base, &service.key, "guide"]);
}

/// The official client of Anthropic's API, and a conversation as coding agents hold them.
#[test]
fn the_anthropic_package_is_satisfied() {
    let Some(python) = openai_python() else { return };
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let smollm =
        fetched_model("smollm2-135m-instruct.q4_1.gguf").map(|path| format!("smollm={}", text(&path)));
    let models: Vec<&str> =
        ["guide", "--tls", "--cache-memory", "512MiB"].into_iter().chain(smollm.as_deref()).collect();
    let service = Service::start(&state, &models);
    let authority = dir.join("state/tls/ca.pem");
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/coding_agent.json");
    for path in ["", "/anthropic"] {
        let base = format!("https://{}{path}", service.address);
        run_script(
            &python,
            Some(&authority),
            &["anthropic_client.py", &base, &service.key, "guide", fixture],
        );
    }
    // Its answers are recorded as others are, and can be computed again.
    let record = records(&state, "request").into_iter().find(|r| r["data"]["endpoint"] == "/v1/messages");
    let seq = record.expect("a record")["seq"].to_string();
    assert_eq!(replay(&state, &seq, &[])["same"], true);
}
