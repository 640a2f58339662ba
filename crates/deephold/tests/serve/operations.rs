//! What those who run the service meet: settings, logs, systemd, a log that fails.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use deephold_testkit::TempDir;
use serde_json::{Value, json as object};

use crate::common::{deephold, json, text};
use crate::service::Service;
use crate::{openai_python, records};

fn file(dir: &TempDir, content: &str) -> std::path::PathBuf {
    let path = dir.join("deephold.toml");
    std::fs::write(&path, content).expect("a file");
    path
}

/// The program without what this process's environment says.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deephold"));
    command.env_remove("DEEPHOLD_CONFIG");
    command
}

#[test]
fn settings_come_from_a_file_the_environment_and_flags() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let config = file(
        &dir,
        &format!(
            "state = {:?}\nmodels = [\"wise=guide\"]\naudit_policy = \"hash\"\nmax_seqs = 3\n",
            text(&state)
        ),
    );
    let mut command = program();
    command.env("DEEPHOLD_MAX_SEQS", "5").env("DEEPHOLD_CONFIG", &config);
    // The state's folder comes from the file, for the server and for commands beside it.
    let service = Service::start_with(command, &["--log", "off"]);
    assert!(
        service.banner.contains("`wise`") && service.banner.contains("deephold.toml"),
        "{}",
        service.banner
    );
    let started = &records(&state, "server")[0]["data"];
    assert_eq!(started["policy"], "hash");
    let expected = object!({ "value": 5, "origin": "DEEPHOLD_MAX_SEQS" });
    assert_eq!(started["settings"]["max_seqs"], expected);
    assert_eq!(started["settings"]["log"]["origin"], "flag");
    let keys = json(&["key", "list", "--json", "--config", text(&config)]);
    assert_eq!(keys.as_array().map(Vec::len), Some(1));
    drop(service);

    let config = text(&config);
    assert!(deephold(&["config", "check", "--config", config]).out.contains("valid"));
    let shown = deephold(&["config", "show", "--origin", "--config", config]).out;
    let line = shown.lines().find(|l| l.starts_with("max_seqs")).expect("a line");
    assert!(line.starts_with("max_seqs = 3 ") && line.ends_with("deephold.toml line 4"), "{line}");
    assert!(deephold(&["config", "reference"]).out.contains("DEEPHOLD_MAX_SEQS"));
    // The file that is named is the only one: another in the current folder says nothing, not even where the state is.
    let (elsewhere, named) = (dir.join("elsewhere"), dir.join("named.toml"));
    std::fs::create_dir(&elsewhere).expect("a folder");
    std::fs::write(elsewhere.join("deephold.toml"), "state = \"wrong\"\n").expect("a file");
    std::fs::write(&named, "max_seqs = 2\n").expect("a file");
    let mut command = program();
    command.current_dir(&elsewhere).env("XDG_STATE_HOME", dir.join("home")).stderr(Stdio::null());
    drop(Service::start_with(command, &["--config", text(&named)]));
    assert!(dir.join("home/deephold/state.db").exists() && !elsewhere.join("wrong").exists());
    std::fs::write(config, "bnd = \"x\"\n").expect("a file");
    for command in [
        &["config", "check", "--config", config][..],
        &["serve", "--config", config],
        &["key", "list", "--config", config],
    ] {
        let out = deephold(command);
        assert!(
            out.code == 65 && out.err.contains("line 1") && out.err.contains("did you mean `bind`"),
            "{}",
            out.err
        );
    }
    let absent = deephold(&["config", "check", "--config", "absent.toml"]);
    assert!(absent.code != 0 && absent.err.contains("absent.toml"), "{}", absent.err);
}

#[test]
fn every_request_is_logged_by_its_id_without_what_was_said() {
    let dir = TempDir::new("serve");
    let log = dir.join("log");
    let mut command = program();
    command.stderr(std::fs::File::create(&log).expect("a file"));
    let service = Service::start_logged(command, &dir.join("state"), &["--log", "json"]);
    let secret = "a-word-that-nobody-logs";
    let body =
        object!({ "model": "guide", "max_tokens": 3, "messages": [{ "role": "user", "content": secret }] });
    let answer = service.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200);
    let id = answer.json()["id"].as_str().expect("an id").trim_start_matches("chatcmpl-").to_owned();
    assert!(answer.head.contains(&id), "the client gets it");
    assert_eq!(service.post_as("dh_wrong", "/v1/chat/completions", "{}").status, 401);
    assert_eq!(service.get("/metrics").status, 200);
    let lines = std::fs::read_to_string(&log).expect("the log");
    let events: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let of_request: Vec<&Value> = events.iter().filter(|e| e["request_id"] == id.as_str()).collect();
    assert_eq!(of_request.len(), 2, "{lines}");
    let answered = of_request.iter().find(|e| e["message"] == "answered").expect("the answer");
    assert_eq!((&answered["outcome"], &answered["completion_tokens"]), (&object!("completed"), &object!(3)));
    assert!(events.iter().any(|e| e["status"] == 401));
    assert!(!events.iter().any(|e| e["route"] == "/metrics"), "scrapes are no news");
    assert!(!lines.contains(secret) && !lines.contains(&service.key), "{lines}");
}

/// Where answers are worth more than their records, that is said: in the log, in metrics, and in the record that ends the gap.
#[test]
fn answers_go_on_unrecorded_where_that_is_wanted() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start_limited(&state, &["--audit-failure", "answer"]);
    let ask = || service.ask(crate::long_question()).status;
    let lost = |name: &str| {
        let metrics = service.get("/metrics").body;
        let line = metrics.lines().find(|l| l.starts_with(name)).expect("a metric").to_owned();
        line.rsplit(' ').next().and_then(|v| v.parse::<u64>().ok()).expect("a number")
    };
    let mut asked = 0;
    while lost("deephold_unrecorded_requests_total") < 3 {
        assert_eq!(ask(), 200);
        asked += 1;
        assert!(asked < 500, "the limit does not hold");
    }
    assert_eq!(service.get("/readyz").status, 200);
    service.lift_limit();
    assert_eq!(ask(), 200);
    let recorded = records(&state, "request").len();
    // A small record may fit where a request's does not: then there are several gaps.
    let gaps = records(&state, "server").into_iter().filter(|r| r["data"]["event"] == "log resumed");
    let unrecorded: u64 = gaps.map(|r| r["data"]["unrecorded"].as_u64().expect("a number")).sum();
    assert_eq!((unrecorded, recorded as u64), (3, asked + 1 - 3));
    assert_eq!(json(&["audit", "verify", "--state", text(&state), "--json"])["ok"], true);
}

#[test]
fn systemd_is_told_when_the_server_is_ready_and_when_it_stops() {
    let dir = TempDir::new("serve");
    let socket = UnixDatagram::bind(dir.join("notify")).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    let heard = |words: &str| {
        let mut bytes = [0; 1000];
        loop {
            let n = socket.recv(&mut bytes).expect("a word");
            if String::from_utf8_lossy(&bytes[..n]).contains(words) {
                return;
            }
        }
    };
    let mut command = program();
    command
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .env_remove("WATCHDOG_PID");
    let mut service = Service::start_by(command, &dir.join("state"), &[]);
    heard("READY=1");
    heard("WATCHDOG=1");
    heard("WATCHDOG=1");
    let pid = service.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().expect("kill").success());
    heard("RELOADING=1");
    heard("READY=1");
    service.terminate();
    heard("STOPPING=1");
}

/// A socket that was opened before, as by systemd, also for an address that the program itself could not have.
/// What the kernel says of a server: the start's record and the process's own state. What is refused is shown beside the sandbox's code.
#[test]
fn a_server_is_confined_unless_that_is_turned_off() {
    let dir = TempDir::new("serve");
    for (sandbox, recorded, mode) in [("require", "full", "2"), ("off", "off", "0")] {
        let state = dir.join(sandbox);
        let service = Service::start(&state, &["--sandbox", sandbox]);
        assert_eq!(service.ask(object!({ "max_tokens": 1 })).status, 200);
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", service.child.id())).expect("a status");
        let line = status.lines().find_map(|l| l.strip_prefix("Seccomp:")).expect("a line");
        assert_eq!(
            (line.trim(), &records(&state, "server")[0]["data"]["sandbox"]),
            (mode, &object!(recorded))
        );
    }
}

#[test]
fn a_socket_may_be_inherited() {
    let Some(python) = openai_python() else { return };
    let dir = TempDir::new("serve");
    let script = "import os, socket, sys
s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()
if s.fileno() != 3: os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])";
    let mut command = Command::new(python);
    command.args(["-c", script, env!("CARGO_BIN_EXE_deephold")]);
    // The address of the settings would be refused: it is not this machine's.
    let service = Service::start_by(command, &dir.join("state"), &["--bind", "192.0.2.1:1"]);
    assert!(service.address.starts_with("127.0.0.1:"), "{}", service.address);
    assert_eq!(service.get("/readyz").status, 200);
}

/// What stands between a start and its state, each with a clear word, and nothing is lost by trying.
#[test]
fn a_state_that_cannot_be_used_is_named() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--tls"]);
    let key = service.key.clone();
    drop(service);
    let log = state.join("audit/audit-00000001.jsonl");
    let run = |more: &[&str]| {
        let mut command = program();
        command.args(["serve", "--state", text(&state), "--bind", "127.0.0.1:0"]).args(more);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.try_wait().expect("a state").is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("it serves from a spoilt state");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let out = child.wait_with_output().expect("its words");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let spoilt = |path: &Path, content: &[u8], more: &[&str], words: &[&str]| {
        let kept = std::fs::read(path).expect("a file");
        std::fs::write(path, content).expect("a file");
        let (code, err) = run(more);
        assert!(
            code.is_some_and(|c| c > 1) && words.iter().all(|w| err.contains(w)),
            "{}: {code:?} {err}",
            path.display()
        );
        std::fs::write(path, kept).expect("a file");
    };
    let records = std::fs::read_to_string(&log).expect("the log");
    let changed = records.replacen("first start", "other start", 1);
    assert_ne!(records, changed);
    spoilt(&log, changed.as_bytes(), &[], &["audit-00000001.jsonl", "changed afterwards"]);
    spoilt(&state.join("audit/log.json"), b"{}", &[], &["log.json"]);
    spoilt(&state.join("keys/audit.key"), b"short", &[], &["signing key"]);
    spoilt(&state.join("tls/server.pem"), b"-----BEGIN", &["--tls"], &["server.pem"]);
    spoilt(&state.join("tls/server.key"), b"nothing", &["--tls"], &["server.key"]);
    let (_, err) = run(&["--tls-cert", text(&state.join("tls/server.pem"))]);
    assert!(err.contains("tls_key"), "{err}");
    let (_, err) = run(&["absent-model.gguf"]);
    assert!(err.contains("absent-model.gguf"), "{err}");
    // As it was: the key still holds.
    let mut service = Service::start(&state, &[]);
    service.key = key;
    assert_eq!(service.ask(object!({ "max_tokens": 1 })).status, 200);
    assert_eq!(json(&["audit", "verify", "--state", text(&state), "--json"])["ok"], true);
    // A place where nothing can be written. (For root every folder is writable, but no file is a folder.)
    let out = deephold(&["serve", "--state", "/dev/null/state", "--bind", "127.0.0.1:0"]);
    assert!(out.code > 1 && out.err.contains("/dev/null/state"), "{}", out.err);
}

#[test]
fn records_go_to_those_who_audit() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let formula = "=HYPERLINK(\"http://x\")";
    let create = [
        "key",
        "create",
        "--owner",
        formula,
        "--tenant",
        "payments",
        "--project",
        "risk",
        "--concurrent",
        "8",
    ];
    let key = json(&[&create[..], &["--json", "--state", text(&state)]].concat());
    let list = deephold(&["key", "list", "--state", text(&state)]).out;
    assert!(list.contains("  payments/risk  ") && list.contains("  concurrent 8\n"), "{list}");
    let body = object!({ "model": "guide", "prompt": "secret words", "max_tokens": 2 }).to_string();
    for _ in 0..3 {
        let secret = key["secret"].as_str().expect("a secret");
        assert_eq!(service.post_as(secret, "/v1/completions", &body).status, 200);
    }
    let table = dir.join("requests.csv");
    let args = ["audit", "export", "--state", text(&state), "--format", "csv", "--output", text(&table)];
    assert!(deephold(&args).err.contains("records in"));
    let again = deephold(&args);
    assert!(again.code != 0 && again.err.contains("requests.csv"), "{}", again.err);
    let csv = std::fs::read_to_string(&table).expect("a table");
    let columns: Vec<&str> = csv.lines().next().expect("names").split(',').collect();
    let at = |name: &str| columns.iter().position(|c| *c == name).expect("a column");
    let requests: Vec<Vec<&str>> = csv
        .lines()
        .map(|l| l.split(',').collect())
        .filter(|row: &Vec<&str>| row[at("kind")] == "request")
        .collect();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|r| (r[at("tenant")], r[at("project")]) == ("payments", "risk")));
    assert!(requests.iter().all(|r| r[at("completion_tokens")] == "2" && r[at("outcome")] == "completed"));
    assert!(!csv.contains("secret words"), "a table has no prompts");
    assert!(requests[0][at("owner")].starts_with("\"'=HYPER"), "a formula is no formula any more: {csv}");

    // Whole lines, from a copy of the log, between two times; together they are the log.
    let copy = dir.join("copy");
    std::fs::create_dir(&copy).expect("a folder");
    for name in ["log.json", "audit-00000001.jsonl"] {
        std::fs::copy(state.join("audit").join(name), copy.join(name)).expect("a copy");
    }
    let lines = |more: &[&str]| deephold(&[&["audit", "export", "--log", text(&copy)], more].concat()).out;
    assert_eq!(lines(&[]), std::fs::read_to_string(copy.join("audit-00000001.jsonl")).expect("the log"));
    assert_eq!(lines(&["--kind", "request"]).lines().count(), 3);
    assert_eq!(lines(&["--kind", "request", "--project", "risk"]).lines().count(), 3);
    assert_eq!(lines(&["--kind", "request", "--project", "fraud"]), "");
    let day = &requests[0][at("time")][..10];
    assert_eq!(lines(&["--since", day, "--kind", "request"]).lines().count(), 3);
    assert_eq!(lines(&["--until", day]), "");
    assert_eq!(lines(&["--since", "2199-01-01"]), "");
    let owner = requests[0][at("tenant")];
    assert_eq!(lines(&["--tenant", owner]).lines().count(), 3);
    assert!(deephold(&["audit", "export", "--since", "yesterday"]).err.contains("2026-11-25"));
    let keys = lines(&["--kind", "key"]);
    assert!(keys.contains("HYPERLINK"));
    let shown = deephold(&["audit", "show", "--log", text(&copy), "--kind", "request", "--limit", "1"]).out;
    assert_eq!(shown.lines().count(), 1);
    let verified = deephold(&[
        "audit",
        "verify",
        "--log",
        text(&copy),
        "--public-key",
        text(&state.join("keys/audit.pub")),
    ]);
    assert_eq!(verified.code, 0, "{}", verified.err);
}

#[test]
fn models_come_and_go_while_others_answer() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--cache-memory", "64MiB"]);
    let model = |args: &[&str]| deephold(&[&["model"], args, &["--state", text(&state), "--json"]].concat());
    let ask = |name: &str| {
        let body = object!({ "model": name, "prompt": "Hello", "max_tokens": 900, "temperature": 1.9, "seed": 3, "logit_bias": { "1": -100 } });
        service.post("/v1/completions", &body)
    };
    assert_eq!(ask("second").status, 404);
    let gguf = dir.join("guide copy.gguf");
    let quantize = ["quantize", "guide", text(&gguf), "--format", "q8_0", "--json"];
    assert_eq!(deephold(&quantize).code, 0);
    let loaded = model(&["load", &format!("second={}", text(&gguf))]);
    assert_eq!(loaded.code, 0, "{}", loaded.err);
    let list: Value = serde_json::from_str(&model(&["list"]).out).expect("JSON");
    assert_eq!((&list[0]["name"], &list[1]["name"]), (&object!("guide"), &object!("second")));
    let ids = service.get("/v1/models").json();
    assert_eq!(ids["data"][1]["digest"], list[1]["facts"]["digest"]);
    for (args, words) in [
        (["load", "guide"], "called `guide` already"),
        (["load", "x=/absent/model.gguf"], "/absent/model.gguf"),
        (["load", "=guide"], "NAME=PATH"),
        (["unload", "absent"], "no model `absent`"),
    ] {
        let refused = model(&args);
        assert!(refused.code != 0 && refused.err.contains(words), "{args:?}: {}", refused.err);
    }
    // What runs on it comes to its end, nothing new begins, and its place is free again.
    std::thread::scope(|scope| {
        let running = scope.spawn(|| ask("second"));
        let mut waited = 0;
        while serde_json::from_str::<Value>(&model(&["list"]).out).expect("JSON")[1]["running"] == 0 {
            waited += 1;
            assert!(waited < 500, "the request does not run");
        }
        assert_eq!(model(&["unload", "second"]).code, 0);
        let whole = running.join().expect("an answer").json();
        assert_eq!(whole["usage"]["completion_tokens"], 900);
    });
    assert_eq!((ask("second").status, ask("guide").status), (404, 200));
    assert!(!service.get("/metrics").body.contains("deephold_requests_running{model_name=\"second\"}"));
    assert_eq!(model(&["load", &format!("second={}", text(&gguf))]).code, 0);
    assert_eq!(ask("second").status, 200);
    let events: Vec<Value> = records(&state, "model").iter().map(|r| r["data"]["event"].clone()).collect();
    assert_eq!(events, ["loaded", "unloaded", "loaded"]);
    // Without any model it lives but is not ready.
    for name in ["guide", "second"] {
        assert_eq!(model(&["unload", name]).code, 0);
    }
    let statuses = ["/readyz", "/healthz", "/v1/models"].map(|path| service.get(path).status);
    assert_eq!(statuses, [503, 200, 200]);
    drop(service);
    assert!(model(&["list"]).err.contains("no server runs"));
}

/// A refusal that says when to come again is no failure for a client that does.
#[test]
fn clients_come_again_after_a_refusal() {
    let Some(python) = openai_python() else { return };
    let dir = TempDir::new("serve");
    let service = Service::start_limited(&dir.join("state"), &[]);
    let mut asked = 0;
    while service.ask(crate::long_question()).status == 200 {
        asked += 1;
        assert!(asked < 1000, "the limit does not hold");
    }
    let refused = || {
        let metrics = service.get("/metrics").body;
        let line = metrics.lines().find(|l| l.contains("completions") && l.contains("status=\"503\""));
        line.and_then(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).expect("a count")
    };
    let before = refused();
    let script = "import sys, openai
c = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=20)
print(c.chat.completions.create(model='guide', max_tokens=4, messages=[{'role': 'user', 'content': 'x'}]).choices[0].finish_reason)";
    let base = format!("http://{}/v1", service.address);
    let mut command = Command::new(python);
    command.args(["-c", script, &base, &service.key]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let client = command.spawn().expect("python");
    // Until it was refused itself.
    let mut waited = 0;
    while refused() == before {
        std::thread::sleep(Duration::from_millis(20));
        waited += 1;
        assert!(waited < 3000, "the client does not come");
    }
    service.lift_limit();
    let out = client.wait_with_output().expect("its words");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
