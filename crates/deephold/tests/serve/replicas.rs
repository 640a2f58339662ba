//! Two servers behind one address, over one PostgreSQL database that speaks TLS.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use deephold_testkit::{PostgresServer, TempDir};
use serde_json::json as object;

use crate::common::{deephold, json, ok, text};
use crate::service::{Response, Service};

fn file(dir: &TempDir, name: &str, content: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("a file");
    path
}

fn chat(service: &Service, key: &str) -> Response {
    let body = object!({ "model": "guide", "messages": [{ "role": "user", "content": "x" }], "max_tokens": 4, "temperature": 0 });
    service.post_as(key, "/v1/chat/completions", &body.to_string())
}

/// Until it holds; how long that took.
fn until(what: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not come to hold");
        std::thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

#[test]
fn replicas_share_keys_limits_and_usage_and_outlive_the_database() {
    let dir = TempDir::new("replicas");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time");
    let files =
        deephold_server::local_certificate(&dir.join("tls"), &["localhost".into(), "127.0.0.1".into()], now)
            .expect("a certificate");
    let Some(mut postgres) = PostgresServer::start(&["fsync=off"]) else { return };
    let read = |path: &Path| std::fs::read(path).expect("a file");
    let certificate = postgres.file("server.pem", &read(&files.certificate));
    let key = postgres.file("server.key", &read(&files.key));
    let url = postgres.database("deephold");
    for (name, value) in [("ssl_cert_file", text(&certificate)), ("ssl_key_file", text(&key)), ("ssl", "on")]
    {
        postgres.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    postgres.kill();
    postgres.resume();

    let password = file(&dir, "password", &format!("{}\n", PostgresServer::PASSWORD));
    let authority = dir.join("tls/ca.pem");
    let config = file(
        &dir,
        "deephold.toml",
        &format!(
            "store = \"{url}?sslmode=require\"\nstore_password_file = {:?}\nstore_ca = {:?}\n",
            text(&password),
            text(&authority)
        ),
    );
    let config = text(&config);
    let (first, second) = (dir.join("first"), dir.join("second"));
    let start = |state: &Path| Service::start(state, &["--config", config]);
    let one = start(&first);
    // The second finds an admin's key already, and takes the first's.
    let two = start(&second);
    assert!(!one.key.is_empty() && two.key.is_empty());
    assert_eq!(chat(&two, &one.key).status, 200);
    let shown = json(&["config", "show", "--config", config, "--json"]).to_string();
    assert!(shown.contains("sslmode") && !shown.contains(PostgresServer::PASSWORD), "{shown}");

    // A key that one makes holds on the other, and ends there at once.
    let issued = one.post(
        "/admin/v1/keys",
        &object!({ "owner": "Ada", "role": "app", "tenant": "bank", "limits": { "requests_per_day": 6 } }),
    );
    let issued = issued.json();
    let secret = issued["secret"].as_str().expect("a secret").to_owned();
    let answers = [&one, &two, &two].map(|s| chat(s, &secret).status);
    assert_eq!(answers, [200; 3]);

    // Limits hold across replicas, but for what the others admit between two exchanges.
    std::thread::sleep(Duration::from_millis(600));
    let mut answered = 3;
    for i in 0..12 {
        let service = if i % 2 == 0 { &one } else { &two };
        match chat(service, &secret).status {
            200 => answered += 1,
            402 => {}
            other => panic!("{other}"),
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!((6..=7).contains(&answered), "{answered} of 6");
    let rows = json(&["usage", "--json", "--tenant", "bank", "--config", config, "--state", text(&first)]);
    assert_eq!(rows[0]["row"]["requests"].as_u64(), Some(answered), "{rows}");
    let own = |service: &Service| service.get_as(&secret, "/v1/usage").json()["data"][0]["requests"].as_u64();
    assert_eq!((own(&one), own(&two)), (Some(answered), Some(answered)));
    let id = issued["key"]["id"].as_str().expect("an id");
    ok(&["key", "revoke", id, "--config", config, "--state", text(&second)]);
    assert_eq!((chat(&one, &secret).status, chat(&two, &secret).status), (401, 401));

    // Without its database a server says so, and goes on when it is back; what was used is there.
    let key = one.key.clone();
    postgres.kill();
    let away = chat(&one, &key);
    assert_eq!(
        (away.status, &away.json()["error"]["code"]),
        (503, &object!("state_unavailable")),
        "{}",
        away.body
    );
    assert!(away.head.to_ascii_lowercase().contains("retry-after") && one.get("/healthz").status == 200);
    postgres.resume();
    until(|| chat(&one, &key).status == 200);
    until(|| chat(&two, &key).status == 200);
    drop((one, two));

    // The state goes from one kind of store to the other.
    let backup = dir.join("backup.jsonl");
    ok(&["state", "backup", text(&backup), "--config", config, "--state", text(&first)]);
    ok(&["state", "restore", text(&backup), "--state", text(&dir.join("alone"))]);
    let alone = Service::start(&dir.join("alone"), &[]);
    assert_eq!((chat(&alone, &key).status, chat(&alone, &secret).status), (200, 401));

    // What would not be safe is refused.
    let refused = |url: &str, words: &str| {
        let out = deephold(&["serve", "--state", text(&dir.join("refused")), "--store", url]);
        assert!(out.code != 0 && out.err.contains(words), "{}", out.err);
        assert!(!out.err.contains("secret-word"), "{}", out.err);
    };
    refused("postgres://me:secret-word@127.0.0.1/x", "--store-password-file");
    refused("postgres://me@db.example/x", "--store-ca");
    let stranger = dir.join("stranger");
    let other =
        deephold_server::local_certificate(&stranger, &["localhost".into()], now).expect("a certificate");
    assert!(other.certificate.exists());
    let args = ["serve", "--config", config, "--store-ca"];
    let wrong = deephold(&[&args[..], &[text(&stranger.join("ca.pem")), "--state", text(&second)]].concat());
    assert!(wrong.code != 0 && wrong.err.contains("does not answer"), "{}", wrong.err);
}
