//! Many departments on one machine: what each may use, what it used, and that neither is lost.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use deephold_testkit::TempDir;
use serde_json::{Value, json as object};

use crate::common::{deephold, json, ok, text};
use crate::records;
use crate::service::{Response, Service};

/// A key of a tenant, made beside the server.
fn key(state: &Path, tenant: &str, more: &[&str]) -> String {
    let args = ["key", "create", "--owner", "Ada", "--tenant", tenant, "--json", "--state", text(state)];
    json(&[&args[..], more].concat())["secret"].as_str().expect("a secret").to_owned()
}

fn set(state: &Path, tenant: &str, more: &[&str]) {
    ok(&[&["tenant", "set", tenant, "--state", text(state)], more].concat());
}

fn usage(state: &Path, more: &[&str]) -> Vec<Value> {
    let rows = json(&[&["usage", "--json", "--state", text(state)], more].concat());
    rows.as_array().expect("rows").iter().map(|r| r["row"].clone()).collect()
}

/// Tokens of prompts and answers in all.
fn tokens(rows: &[Value]) -> u64 {
    let one = |r: &Value, name: &str| r[name].as_u64().expect("a count");
    rows.iter().map(|r| one(r, "prompt_tokens") + one(r, "completion_tokens")).sum()
}

fn chat(service: &Service, key: &str, more: Value) -> Response {
    let mut body = object!({ "model": "guide", "messages": [{ "role": "user", "content": "What is Deephold?" }], "temperature": 0 });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    service.post_as(key, "/v1/chat/completions", &body.to_string())
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    let of =
        |line: &'a str| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    response.head.lines().find_map(of)
}

#[test]
fn what_is_used_is_known_to_the_token_and_survives_a_kill() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let price = ["--price", "guide=1.5/0.5/4"];
    let mut service = Service::start(&state, &price);
    let (bank, grid) = (key(&state, "bank", &["--project", "risk"]), key(&state, "grid", &[]));
    // Tokens and requests as the answers tell them.
    let (told, requests) = (Cell::new(0), Cell::new(0));
    let take = |usage: &Value| {
        let count = |name: &str| usage[name].as_u64().expect("a count");
        told.set(told.get() + count("prompt_tokens") + count("completion_tokens"));
        requests.set(requests.get() + 1);
    };
    take(&chat(&service, &bank, object!({})).json()["usage"]);
    take(&chat(&service, &bank, object!({ "n": 3, "temperature": 1, "max_tokens": 9 })).json()["usage"]);
    let streamed =
        chat(&service, &bank, object!({ "stream": true, "stream_options": { "include_usage": true } }));
    take(&streamed.events().last().expect("usage")["usage"]);
    let completed = service.post_as(
        &bank,
        "/v1/completions",
        &object!({ "model": "guide", "prompt": ["a", "b c"], "max_tokens": 5 }).to_string(),
    );
    take(&completed.json()["usage"]);
    let embedded = service.post_as(
        &bank,
        "/v1/embeddings",
        &object!({ "model": "guide", "input": "one two" }).to_string(),
    );
    let vector = &embedded.json()["usage"];
    take(&object!({ "prompt_tokens": vector["prompt_tokens"], "completion_tokens": 0 }));
    // What is refused counts for nothing.
    assert_eq!(chat(&service, &bank, object!({ "temperature": 9 })).status, 400);
    assert_eq!(chat(&service, &grid, object!({})).status, 200);
    // Each answer's end came after its usage was durable: a kill loses nothing of it.
    service.child.kill().expect("killed");
    service.child.wait().expect("ended");
    drop(service);
    let rows = usage(&state, &["--tenant", "bank"]);
    assert_eq!((tokens(&rows), rows[0]["requests"].as_u64()), (told.get(), Some(requests.get())));
    assert_eq!((&rows[0]["project"], &rows[0]["model"]), (&object!("risk"), &object!("guide")));
    let row = &rows[0];
    let [prompt, cached, answer] =
        ["prompt_tokens", "cached_tokens", "completion_tokens"].map(|n| row[n].as_u64().expect("a count"));
    let cost = (prompt - cached) * 1_500 + cached * 500 + answer * 4_000;
    assert_eq!(row["cost_nanos"].as_u64(), Some(cost));
    assert_eq!(usage(&state, &[]).len(), 2);

    // The next server counts on, and tells each tenant its own.
    let service = Service::start(&state, &price);
    take(&chat(&service, &bank, object!({})).json()["usage"]);
    assert_eq!(tokens(&usage(&state, &["--tenant", "bank"])), told.get());
    let own = service.get_as(&bank, "/v1/usage").json();
    assert_eq!((own["data"].as_array().map(Vec::len), &own["currency"]), (Some(1), &object!("EUR")));
    assert_eq!(own["data"][0]["requests"].as_u64(), Some(requests.get()));
    assert_eq!(service.get_as(&bank, "/v1/usage?tenant=grid").status, 400);
    assert_eq!(service.get_as(&bank, "/admin/v1/usage").status, 403);
    let admin = service.get_as(&json_key(&state), "/admin/v1/usage?format=csv&tenant=grid");
    assert!(admin.head.contains("text/csv") && admin.body.lines().count() == 2, "{}", admin.body);
    let csv = ok(&["usage", "--format", "csv", "--state", text(&state)]);
    assert_eq!(csv.lines().count(), 3);
    let shown = ok(&["usage", "--state", text(&state)]);
    assert!(shown.contains("in all") && shown.contains("risk"), "{shown}");
}

/// A key of an auditor.
fn json_key(state: &Path) -> String {
    key(state, "audit", &["--role", "auditor"])
}

#[test]
fn limits_hold_and_are_told() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--price", "guide=1000/1000/1000"]);
    let bank = key(&state, "bank", &[]);
    let free = chat(&service, &bank, object!({}));
    assert!(free.status == 200 && header(&free, "x-ratelimit-limit-tokens").is_none());
    let used = free.json()["usage"]["total_tokens"].as_u64().expect("a count");

    // Tokens of a day: what is left is told, and what may go beyond it is refused before it computes.
    let limit = used + 1000;
    set(&state, "bank", &["--tokens-per-day", &limit.to_string()]);
    let bounded = chat(&service, &bank, object!({ "max_tokens": 10 }));
    assert_eq!(bounded.status, 200, "{}", bounded.body);
    assert_eq!(header(&bounded, "x-ratelimit-limit-tokens"), Some(&*limit.to_string()));
    let left: u64 =
        header(&bounded, "x-ratelimit-remaining-tokens").expect("left").parse().expect("a number");
    assert!((800..1000).contains(&left), "{left}");
    let refused = chat(&service, &bank, object!({ "max_tokens": 1000 }));
    assert_eq!(refused.status, 402, "{}", refused.body);
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"]),
        (&object!("insufficient_quota"), &object!("insufficient_quota"))
    );
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("bank") && message.contains("a day") && message.contains("max_tokens"),
        "{message}"
    );
    let wait: u64 = header(&refused, "retry-after").expect("a time").parse().expect("seconds");
    assert!(wait <= 86_400);
    // An answer that names no length is cut to what is left, not refused.
    set(&state, "bank", &["--tokens-per-day", &(limit - left + 60).to_string()]);
    let cut = chat(&service, &bank, object!({ "logit_bias": { "1": -100 } }));
    assert_eq!(
        (cut.status, &cut.json()["choices"][0]["finish_reason"]),
        (200, &object!("length")),
        "{}",
        cut.body
    );
    let spent = tokens(&usage(&state, &["--tenant", "bank"]));
    assert!(spent <= limit - left + 60, "{spent}");

    // A minute is worth waiting for; a month's costs are a budget.
    set(&state, "bank", &["--tokens-per-day", "none", "--requests-per-minute", "1", "--weight", "2"]);
    let _ = chat(&service, &bank, object!({ "max_tokens": 1 }));
    let refused = chat(&service, &bank, object!({ "max_tokens": 1 }));
    // The minute may have ended in between; then the next one is refused.
    let refused =
        if refused.status == 200 { chat(&service, &bank, object!({ "max_tokens": 1 })) } else { refused };
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &object!("rate_limit_exceeded")));
    assert!(header(&refused, "retry-after").expect("a time").parse::<u64>().expect("seconds") <= 60);
    assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), Some("0"));
    set(&state, "bank", &["--requests-per-minute", "none", "--cost-per-month", "0.000001"]);
    let refused = chat(&service, &bank, object!({ "max_tokens": 1 }));
    assert!(refused.status == 402 && refused.body.contains("EUR"), "{}", refused.body);
    let balance = service.get_as(&bank, "/user/balance").json();
    assert_eq!(balance["is_available"], false);
    assert_eq!(balance["balance_infos"][0]["currency"], "EUR");
    set(&state, "bank", &["--cost-per-month", "none", "--tokens-per-month", "1000000"]);
    let balance = service.get_as(&bank, "/user/balance").json();
    let left: u64 =
        balance["balance_infos"][0]["total_balance"].as_str().expect("text").parse().expect("a number");
    assert_eq!(
        (left, &balance["is_available"]),
        (1_000_000 - tokens(&usage(&state, &["--tenant", "bank"])), &object!(true))
    );

    // A project and a key are bounded within their tenant, each by itself.
    let risk = key(&state, "bank", &["--project", "risk", "--requests-per-day", "2"]);
    set(&state, "bank", &["--project", "risk", "--requests-per-day", "1"]);
    assert_eq!(chat(&service, &risk, object!({ "max_tokens": 1 })).status, 200);
    let refused = chat(&service, &risk, object!({ "max_tokens": 1 }));
    assert!(refused.status == 402 && refused.body.contains("project `risk`"), "{}", refused.body);
    assert_eq!(chat(&service, &bank, object!({ "max_tokens": 1 })).status, 200);
    let anthropic =
        object!({ "model": "guide", "max_tokens": 5, "messages": [{ "role": "user", "content": "x" }] });
    let other = service.post_as(&risk, "/v1/messages", &anthropic.to_string());
    assert_eq!((other.status, &other.json()["error"]["type"]), (402, &object!("billing_error")));
    assert_eq!(header(&other, "anthropic-ratelimit-requests-remaining"), Some("0"));
    let metrics = service.get("/metrics").body;
    assert!(metrics.contains("deephold_limited_requests_total{limit=\"cost_per_month\"} 1"), "{metrics}");
    let listed = ok(&["tenant", "list", "--state", text(&state)]);
    assert!(
        listed.contains("bank  weight 2  tokens per month 1000000") && listed.contains("project risk"),
        "{listed}"
    );
    assert_eq!(records(&state, "tenant").len(), 6, "every change is recorded");
}

#[test]
fn requests_at_once_and_those_that_wait_are_bounded() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--max-seqs", "1"]);
    let bank = key(&state, "bank", &[]);
    let long = || {
        let body = object!({ "model": "guide", "prompt": "a", "max_tokens": 1000, "temperature": 1.9, "seed": 3, "logit_bias": { "1": -100 }, "stream": true }).to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bank}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = service.send(head.as_bytes());
        let mut first = [0; 16];
        std::io::Read::read_exact(&mut stream, &mut first).expect("a response");
        assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
        stream
    };
    set(&state, "bank", &["--concurrent", "1"]);
    let running = long();
    let refused = chat(&service, &bank, object!({ "max_tokens": 1 }));
    assert!(refused.status == 429 && refused.body.contains("same time"), "{}", refused.body);
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    // Another tenant is not in its way.
    let grid = key(&state, "grid", &["--queue-time", "1"]);
    let waited = chat(&service, &grid, object!({ "max_tokens": 1 }));
    // The one place is taken for longer than it may wait, or was free in time on a fast machine.
    assert!(
        waited.status == 200 || (waited.status == 429 && waited.body.contains("queue_timeout")),
        "{}",
        waited.body
    );
    drop(running);
    // Whoever has hung up holds nothing: the place is free again, soon.
    let free = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        chat(&service, &bank, object!({ "max_tokens": 1 })).status == 200
    });
    assert!(free);
    set(&state, "bank", &["--concurrent", "none", "--queued", "1"]);
    let several = chat(&service, &bank, object!({ "max_tokens": 1, "n": 3, "temperature": 1 }));
    assert_eq!((several.status, &several.json()["error"]["code"]), (429, &object!("queue_full")));
    assert_eq!(chat(&service, &bank, object!({ "max_tokens": 1 })).status, 200);
}

#[test]
fn a_key_asks_what_it_may_and_administration_works_over_http() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let vectors = key(&state, "bank", &["--endpoint", "/v1/embeddings", "--endpoint", "/v1/models"]);
    assert_eq!(chat(&service, &vectors, object!({})).status, 403);
    let body = object!({ "model": "guide", "input": "x" }).to_string();
    assert_eq!(service.post_as(&vectors, "/v1/embeddings", &body).status, 200);
    assert_eq!(service.get_as(&vectors, "/v1/models/guide").status, 200);
    let nowhere = ["key", "create", "--owner", "x", "--endpoint", "/v1/emb", "--state", text(&state)];
    assert!(deephold(&nowhere).err.contains("nothing can be asked"));

    let made =
        service.post("/admin/v1/tenants", &object!({ "name": "bank", "limits": { "requests_per_day": 0 } }));
    assert_eq!((made.status, &made.json()["done"]), (200, &object!(true)), "{}", made.body);
    assert_eq!(service.post_as(&vectors, "/v1/embeddings", &body).status, 402);
    let cleared = object!({ "name": "bank", "limits": { "requests_per_day": null } });
    assert_eq!(service.post("/admin/v1/tenants", &cleared).status, 200);
    let wish = object!({ "owner": "Grace", "role": "app", "tenant": "bank", "project": "risk", "limits": { "concurrent": 3 } });
    let issued = service.post("/admin/v1/keys", &wish).json();
    let secret = issued["secret"].as_str().expect("a secret");
    assert_eq!(chat(&service, secret, object!({ "max_tokens": 1 })).status, 200);
    let id = object!({ "id": issued["key"]["id"] });
    let rotated = service.post("/admin/v1/keys/rotate", &id).json();
    assert_eq!(rotated["key"]["limits"], object!({ "concurrent": 3 }));
    assert_eq!(chat(&service, secret, object!({})).status, 401);
    assert_eq!(service.post("/admin/v1/keys/revoke", &object!({ "id": rotated["key"]["id"] })).status, 200);
    let listed = service.get("/admin/v1/keys");
    assert!(!listed.body.contains("dh_") && listed.json()["keys"].as_array().is_some_and(|k| k.len() == 4));
    let tenants = service.get("/admin/v1/tenants").json();
    assert!(tenants["projects"].as_array().is_some_and(|p| p.iter().any(|p| p["name"] == "risk")));
    for (path, body) in [
        ("/admin/v1/tenants", object!({ "name": "" })),
        ("/admin/v1/tenants", object!({ "name": "a", "weight": 0 })),
        ("/admin/v1/tenants", object!({ "name": "a", "limits": { "tokens": 1 } })),
        ("/admin/v1/tenants", object!({ "name": "a", "limits": { "queued": 0 } })),
        ("/admin/v1/tenants", object!({ "name": "a", "act": "back_up" })),
        ("/admin/v1/projects", object!({ "tenant": "nobody", "name": "a" })),
        ("/admin/v1/projects", object!({ "tenant": "bank", "name": "a", "limits": { "queued": 1 } })),
        ("/admin/v1/keys", object!({ "owner": "a", "role": "king" })),
        ("/admin/v1/keys/revoke", object!({ "id": "key-0" })),
    ] {
        assert_eq!(service.post(path, &body).status, 400, "{path} {body}");
    }
    let operator = key(&state, "ops", &["--role", "operator"]);
    let acts = deephold_server::routes().filter(|r| r.method == "POST" && r.path.starts_with("/admin"));
    acts.for_each(|r| assert_eq!(service.post_as(&operator, r.path, "{}").status, 403, "{}", r.path));
}

#[test]
fn a_request_with_a_name_is_answered_once() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--max-seqs", "1"]);
    let key = key(&state, "bank", &[]);
    let ask = |name: &str, more: Value| {
        let mut body = object!({ "model": "guide", "prompt": "a", "max_tokens": 12, "temperature": 1.9 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let body = body.to_string();
        format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Idempotency-Key: {name}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let send = |name: &str, more: Value| Response::read(service.send(ask(name, more).as_bytes()));
    let (first, second) = (send("a", object!({})), send("a", object!({})));
    assert_eq!((first.status, header(&first, "idempotent-replayed")), (200, None));
    assert_eq!((second.status, header(&second, "idempotent-replayed")), (200, Some("true")));
    assert_eq!(first.json(), second.json(), "without a seed it would differ");
    let streamed = [send("b", object!({ "stream": true })), send("b", object!({ "stream": true }))];
    assert_eq!(streamed[0].events(), streamed[1].events());
    assert!(header(&streamed[1], "content-type").is_some_and(|k| k.starts_with("text/event-stream")));
    let other = send("a", object!({ "max_tokens": 3 }));
    assert_eq!((other.status, &other.json()["error"]["code"]), (422, &object!("idempotency_key_reused")));
    // Whoever hangs up finds the answer when he asks again; meanwhile he hears that it is computed.
    let slow = object!({ "max_tokens": 400, "logit_bias": { "1": -100 } });
    drop(service.send(ask("c", slow.clone()).as_bytes()));
    let mut busy = 0;
    let answered = loop {
        match send("c", slow.clone()) {
            response if response.status == 409 => busy += 1,
            response => break response,
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(answered.status == 200 && busy < 3000, "{}", answered.body);
    // What is refused may be tried again, and another key has names of its own.
    assert_eq!(send("d", object!({ "max_tokens": 0 })).status, 400);
    assert_eq!(send("d", object!({})).status, 200);
    assert_eq!(send("\u{e9}", object!({})).status, 400);
    // Each was computed and counted once; who got it again is recorded.
    let rows = usage(&state, &["--tenant", "bank"]);
    assert_eq!(rows[0]["requests"], 4, "{rows:?}");
    assert!(records(&state, "replayed").len() >= 2);
    drop(service);
    let service = Service::start(&state, &["--keep-answers", "0"]);
    let refused = Response::read(service.send(ask("a", object!({})).as_bytes()));
    assert!(refused.status == 400 && refused.body.contains("Idempotency-Key"), "{}", refused.body);
}

#[test]
fn the_state_is_backed_up_beside_the_server_and_restored_elsewhere() {
    let dir = TempDir::new("serve");
    let (state, other, file) = (dir.join("state"), dir.join("other"), dir.join("backup.jsonl"));
    let service = Service::start(&state, &[]);
    set(&state, "bank", &["--tokens-per-month", "5000", "--weight", "3"]);
    let bank = key(&state, "bank", &["--project", "risk"]);
    let answered = chat(&service, &bank, object!({}));
    let used = answered.json()["usage"]["total_tokens"].as_u64().expect("a count");
    let backed_up = json(&["state", "backup", text(&file), "--json", "--state", text(&state)]);
    assert_eq!(backed_up["backed_up"]["keys"], 2, "{backed_up}");
    let content = std::fs::read_to_string(&file).expect("a backup");
    assert!(!content.contains(&bank) && !content.contains(&service.key), "no secret");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);
    // What is there already is not lost, and nobody restores beside a server.
    let again = deephold(&["state", "backup", text(&file), "--state", text(&state)]);
    assert!(again.code != 0 && again.err.contains("exists"), "{}", again.err);
    assert_ne!(deephold(&["state", "restore", text(&file), "--state", text(&state)]).code, 0);
    assert_eq!(json(&["state", "check", "--json", "--state", text(&state)])["ok"], true);
    assert_eq!(json(&["state", "check", "--backup", text(&file), "--json"])["ok"], true);
    drop(service);

    assert!(ok(&["state", "restore", text(&file), "--state", text(&other)]).contains("2 keys"));
    let full = deephold(&["state", "restore", text(&file), "--state", text(&other)]);
    assert!(full.code != 0 && full.err.contains("not empty"), "{}", full.err);
    let service = Service::start(&other, &[]);
    assert!(service.key.is_empty(), "there is an admin already");
    let balance = service.get_as(&bank, "/user/balance").json();
    assert_eq!(balance["balance_infos"][0]["total_balance"], (5000 - used).to_string());
    assert_eq!(chat(&service, &bank, object!({ "max_tokens": 1 })).status, 200);
    std::fs::write(&file, content.replace("\"weight\":3.0", "\"weight\":9.0")).expect("written");
    let changed = deephold(&["state", "check", "--backup", text(&file)]);
    assert!(changed.code != 0 && changed.err.contains("changed"), "{}", changed.err);
}
