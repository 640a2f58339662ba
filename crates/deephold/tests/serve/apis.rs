//! What clients of other services send.

use deephold_testkit::{TempDir, fetched_model};
use serde_json::{Value, json as object};

use crate::QUESTION;
use crate::common::{json, text};
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
    assert!(hole.status == 400 && hole.body.contains("\"param\":\"suffix\""), "{}", hole.body);
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
