//! The load test against this server and one that speaks less.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use deephold_testkit::{TempDir, shared, skip_without_shared};
use serde_json::Value;

use crate::common::{deephold, json, text};
use crate::service::Service;

/// The file with the service's key.
fn key_file(dir: &TempDir, service: &Service) -> String {
    let path = dir.join("key");
    std::fs::write(&path, format!("{}\n", service.key)).expect("a key file");
    text(&path).to_owned()
}

#[test]
fn a_plan_is_kept_to_and_its_figures_are_reported() {
    let dir = TempDir::new("loadtest");
    let service = Service::start(&dir.join("state"), &["--tls"]);
    let (key, svg, csv) = (key_file(&dir, &service), dir.join("run.svg"), dir.join("run.csv"));
    let authority = dir.join("state").join("tls/ca.pem");
    let url = format!("https://localhost:{}/v1", service.address.rsplit(':').next().expect("a port"));
    let flags =
        ["--key-file", &key, "--ca", text(&authority), "-n", "40", "-r", "40", "-p", "60:15", "-o", "20:5"];
    let more =
        ["--slo-ttft", "60000", "--slo-e2e", "60000", "--svg", text(&svg), "--csv", text(&csv), "--json"];
    let report = json(&[&["loadtest", &url], &flags[..], &more].concat());
    assert_eq!((&report["succeeded"], &report["failed"]), (&40.into(), &0.into()), "{report}");
    assert_eq!(report["model"], "guide");
    let mean = |name: &str| report[name]["mean"].as_f64().expect("a mean");
    // Words are not tokens: prompts are as long as asked to about a tenth.
    assert!((45.0..80.0).contains(&mean("prompt_tokens")), "{report}");
    // Answers are exactly as long as drawn, also beyond where the model would end.
    assert!((17.0..24.0).contains(&mean("output_tokens")), "{report}");
    assert!(mean("ttft_s") > 0.0 && mean("ttft_s") < mean("e2e_s"));
    assert_eq!(report["goodput"]["share"], 1.0);
    let table = std::fs::read_to_string(&csv).expect("a table");
    assert_eq!(table.lines().count(), 41);
    assert!(std::fs::read_to_string(&svg).expect("a picture").contains("Until the first token"));
    // Without the authority nothing is trusted; without a key nothing is answered.
    let run = deephold(&["loadtest", &url, "--key-file", &key, "-n", "1"]);
    assert_eq!(run.code, 74, "{}", run.err);
    let run = deephold(&["loadtest", &url, "--ca", text(&authority), "-n", "1"]);
    assert!(run.code == 65 && run.err.contains("401"), "{} {}", run.code, run.err);
}

#[test]
fn a_trace_is_replayed_at_speed() {
    if skip_without_shared() {
        return;
    }
    let dir = TempDir::new("loadtest");
    let service = Service::start(&dir.join("state"), &[]);
    let (key, url) = (key_file(&dir, &service), format!("http://{}", service.address));
    for trace in ["AzureLLMInferenceTrace_code.csv", "mooncake_synthetic.jsonl"] {
        let path = shared("data/traces").join(trace);
        let flags =
            ["--trace", text(&path), "--speed", "4", "-n", "30", "--prompt-max", "300", "--output-max", "12"];
        let report = json(&[&["loadtest", &url, "--key-file", &key, "--json"], &flags[..]].concat());
        assert_eq!(report["succeeded"], 30, "{report}");
        assert!(report["shortened"].as_u64().expect("a count") > 10);
        assert!(report["output_tokens"]["max"].as_f64() <= Some(12.0));
    }
}

/// The issue's floor: nothing fails, and the server's memory has a bound.
#[cfg(target_os = "linux")]
#[test]
fn a_thousand_streams_at_once_are_held_within_bounded_memory() {
    let dir = TempDir::new("loadtest");
    let service = Service::start(&dir.join("state"), &[]);
    let (key, url) = (key_file(&dir, &service), format!("http://{}", service.address));
    let at_once = ["--arrivals", "at-once", "-p", "24", "-o", "12", "--json"];
    let burst = |n: &str| json(&[&["loadtest", &url, "--key-file", &key, "-n", n], &at_once[..]].concat());
    let peak = || {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", service.child.id())).expect("a status");
        let line = status.lines().find(|l| l.starts_with("VmHWM")).expect("a peak");
        line.split_whitespace().nth(1).expect("KiB").parse::<u64>().expect("a number")
    };
    let few = burst("50");
    assert_eq!(few["failed"], 0, "{few}");
    let before = peak();
    let many = burst("1000");
    assert_eq!((&many["succeeded"], &many["failed"]), (&1000.into(), &0.into()), "{}", many["errors"]);
    assert!(many["at_once_max"].as_u64() > Some(900), "{}", many["at_once_max"]);
    // A connection's buffers (twice 16 KiB), its task, and a request's tokens and events: 128 KiB each is twice that and more.
    let grown = peak() - before;
    assert!(grown < 950 * 128, "{grown} KiB for 950 streams more");
}

/// More than may wait for a model: the flood is told so, and another tenant is answered meanwhile, every time.
#[test]
fn a_flood_leaves_room_for_others() {
    let dir = TempDir::new("loadtest");
    let service = Service::start(&dir.join("state"), &[]);
    let made = service
        .post("/admin/v1/keys", &serde_json::json!({ "owner": "Eve", "role": "app", "tenant": "flooding" }));
    let key = dir.join("key");
    std::fs::write(&key, made.json()["secret"].as_str().expect("a secret")).expect("a key file");
    let url = format!("http://{}", service.address);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (flood, statuses) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let flags = ["--arrivals", "at-once", "-n", "2500", "-p", "24", "-o", "40", "--json"];
            let report = json(&[&["loadtest", &url, "--key-file", text(&key)], &flags[..]].concat());
            is_over.store(true, std::sync::atomic::Ordering::SeqCst);
            report
        });
        let mut statuses = Vec::new();
        while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
            statuses.push(service.ask(serde_json::json!({ "max_tokens": 4 })).status);
        }
        (flood.join().expect("a report"), statuses)
    });
    assert!(statuses.len() > 3 && statuses.iter().all(|s| *s == 200), "{statuses:?}");
    let (answered, refused) = (&flood["succeeded"], &flood["failed"]);
    assert!(answered.as_u64() > Some(1000) && refused.as_u64() > Some(0), "{answered}, {refused}");
    let kinds = flood["errors"].as_object().expect("kinds of errors");
    assert!(kinds.keys().all(|kind| kind.starts_with("status 503")), "{kinds:?}");
}

#[test]
fn servers_that_know_less_are_measured_too() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve_plainly(stream));
        }
    });
    let args = ["loadtest", &url, "-n", "12", "-r", "100", "-o", "5"];
    let run = deephold(&[&args[..], &["--json"]].concat());
    let report: Value = serde_json::from_str(&run.out).expect("JSON");
    assert!(run.err.contains("does not take `ignore_eos`") && run.err.contains("estimates"), "{}", run.err);
    // Every third answer breaks off; the others count by their events.
    assert_eq!(report["failed"], 4, "{report}");
    assert_eq!(report["errors"]["the answer broke off before its end"], 4);
    assert_eq!(report["output_tokens"]["max"], 3.0);
    // What refuses everything is named before the test begins.
    let run = deephold(&["loadtest", &url, "--model", "none"]);
    assert!(run.code == 65 && run.err.contains("status 404: no such model"), "{}", run.err);
    let run = deephold(&["loadtest", "http://127.0.0.1:1", "-n", "1"]);
    assert!(run.code == 74 && run.err.contains("does not answer"), "{}", run.err);
    assert_eq!(deephold(&["loadtest", "127.0.0.1:1"]).code, 64);
    assert_eq!(deephold(&["loadtest", &url, "-r", "0"]).code, 65);
}

/// A server in the oldest form of the API: it refuses what it does not know, counts nothing, and every third answer breaks off.
fn serve_plainly(stream: std::net::TcpStream) {
    static ASKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    let mut out = stream;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|t| t.lines().next()?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    let _ = reader.read_exact(&mut body);
    let body = String::from_utf8_lossy(&body).into_owned();
    let whole = |status: &str, text: &str| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}", text.len())
    };
    let answer = if head.starts_with("GET /v1/models") {
        whole("200 OK", "{\"data\": [{\"id\": \"plain\"}]}")
    } else if body.contains("\"none\"") {
        whole("404 Not Found", "{\"error\": {\"message\": \"no such model\"}}")
    } else if body.contains("ignore_eos") || body.contains("stream_options") {
        whole("400 Bad Request", "{\"error\": {\"message\": \"unknown field\"}}")
    } else {
        let piece = "data: {\"choices\": [{\"delta\": {\"content\": \"a\"}}]}\n\n";
        // Two requests before the measurement learn how the server counts, two more warm it up.
        let place = ASKED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let end = if place >= 4 && place.is_multiple_of(3) { "" } else { "data: [DONE]\n\n" };
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}{end}", piece.repeat(3))
    };
    let _ = out.write_all(answer.as_bytes());
}
