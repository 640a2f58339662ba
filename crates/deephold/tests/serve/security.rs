//! The list of SECURITY.md, as far as it is met on the wire.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use deephold_state::Role;
use deephold_testkit::{TempDir, skip};
use serde_json::json as object;

use crate::common::{json, ok, text};
use crate::service::{Response, Service};
use crate::{openai_python, run_script};

fn raw(service: &Service, bytes: &str) -> String {
    let mut stream = TcpStream::connect(&service.address).expect("a connection");
    // A connection that waits for more says nothing more.
    stream.set_read_timeout(Some(Duration::from_millis(700))).expect("a time limit");
    stream.write_all(bytes.as_bytes()).expect("sent");
    let mut out = Vec::new();
    let _ = stream.read_to_end(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

#[test]
fn each_role_asks_what_the_table_says() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let roles = [Role::Admin, Role::Operator, Role::Auditor, Role::App];
    let keys = roles.map(|role| {
        let args =
            ["key", "create", "--owner", "x", "--role", role.name(), "--json", "--state", text(&state)];
        (role, json(&args)["secret"].as_str().expect("a secret").to_owned())
    });
    let mut refused = 0;
    for route in deephold_server::routes() {
        let path = route.path.replace("{model}", "guide");
        for (role, key) in &keys {
            let response = match route.method {
                "GET" => service.get_as(key, &path),
                // A body that no handler takes: whoever may ask hears so.
                _ => service.post_as(key, &path, "[]"),
            };
            let may = route.roles.is_empty() || route.roles.contains(role);
            let told = if may { response.status != 403 } else { response.status == 403 };
            assert!(
                told,
                "{} {path} as {}: {} {}",
                route.method,
                role.name(),
                response.status,
                response.body
            );
            refused += usize::from(!may);
        }
    }
    assert!(refused > 30, "{refused}");
}

#[test]
fn no_request_is_smuggled_behind_another() {
    let dir = TempDir::new("serve");
    let service = Service::start(&dir.join("state"), &[]);
    let key = &service.key;
    let hidden = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = format!("POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n");
    let length = hidden.len();
    for (name, headers, body) in [
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), hidden.to_owned()),
        ("a list of lengths", format!("Content-Length: 0, {length}\r\n"), hidden.to_owned()),
        ("a length with a sign", format!("Content-Length: +{length}\r\n"), hidden.to_owned()),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n".into(), format!("0\r\n\r\n{hidden}")),
        (
            "chunked is not last",
            "Transfer-Encoding: chunked, identity\r\n".into(),
            format!("0\r\n\r\n{hidden}"),
        ),
        ("a folded line", "X: a\r\n Transfer-Encoding: chunked\r\n".into(), hidden.to_owned()),
        ("a space before the colon", "Content-Length : 0\r\n".into(), hidden.to_owned()),
        ("a bare return", "X: a\rContent-Length: 0\r\n".into(), hidden.to_owned()),
        ("a null", "X: a\0b\r\n".into(), hidden.to_owned()),
        (
            "a chunk of a size that is none",
            "Transfer-Encoding: chunked\r\n".into(),
            format!("0x5\r\nabcde\r\n0\r\n\r\n{hidden}"),
        ),
    ] {
        let all = raw(&service, &format!("{head}{headers}\r\n{body}"));
        assert!(answers(&all) <= 1 && !all.contains("alive"), "{name}: {all}");
        assert!(!all.starts_with("HTTP/1.1 200"), "{name}: {all}");
    }
    // Both a length and chunks: the chunks count, and nothing stays behind for the next one on the connection.
    let both = format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}");
    let all = raw(&service, &both);
    assert!(!all.starts_with("HTTP/1.1 200") && answers(&all) <= 2, "{all}");
    // What is well formed is answered one by one.
    assert_eq!(answers(&raw(&service, &format!("{hidden}{hidden}"))), 2);
}

#[test]
fn other_sites_hosts_and_addresses_get_nothing() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let log = dir.join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_deephold"));
    command.stderr(std::fs::File::create(&log).expect("a log"));
    let service = Service::start_logged(command, &state, &["--log", "json"]);
    let key = &service.key;
    // A page of another site may neither ask beforehand nor read an answer.
    for request in [
        "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\nConnection: close\r\n\r\n".to_owned(),
        format!("GET /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"),
    ] {
        let all = raw(&service, &request).to_ascii_lowercase();
        assert!(!all.contains("access-control"), "{all}");
        assert!(request.starts_with("GET") || all.starts_with("http/1.1 405"), "{all}");
    }
    // A request says one host, and no answer repeats it.
    for bad in ["", "Host: a\r\nHost: b\r\n", "Host: a b\r\n", "Host: user@a\r\n", "Host: \r\n"] {
        let all = raw(&service, &format!("GET /healthz HTTP/1.1\r\n{bad}Connection: close\r\n\r\n"));
        assert!(all.starts_with("HTTP/1.1 400"), "{bad:?}: {all}");
    }
    let named = raw(&service, "GET /nowhere HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(named.starts_with("HTTP/1.1 404") && !named.contains("evil"), "{named}");
    // A key in an address is none, and is written nowhere.
    let body = object!({ "model": "guide", "prompt": "x", "max_tokens": 1 }).to_string();
    for path in
        [format!("/v1/completions?api_key={key}"), format!("/v1/completions?key={key}&access_token={key}")]
    {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(Response::read(service.send(request.as_bytes())).status, 401);
    }
    // Errors name neither folders of this machine nor the key.
    let mut told = String::new();
    for (path, body) in [
        ("/v1/chat/completions", "{"),
        ("/v1/completions", r#"{"model":"absent","prompt":"x"}"#),
        ("/admin/v1/keys/revoke", r#"{"id":"key-0"}"#),
        ("/v1/completions", r#"{"model":"guide","prompt":"a secret word","temperature":9}"#),
    ] {
        told += &service.post(path, &serde_json::from_str(body).unwrap_or_default()).body;
    }
    drop(service.get("/readyz"));
    let written = std::fs::read_to_string(&log).expect("a log");
    for text_of in [&told, &written] {
        for secret in [key.as_str(), text(dir.path()), "a secret word"] {
            assert!(!text_of.contains(secret), "{secret}: {text_of}");
        }
    }
    assert!(written.contains("/v1/completions"), "{written}");
}

#[test]
fn the_list_of_parts_is_one() {
    let printed = ok(&["sbom"]);
    assert!(printed.contains("\"pkg:cargo/rustls@") && !printed.contains("pkg:cargo/windows-sys"));
    let Some(python) = openai_python() else { return };
    let dir = TempDir::new("sbom");
    let file = dir.join("sbom.cdx.json");
    std::fs::write(&file, printed).expect("a file");
    run_script(&python, None, &["sbom.py", text(&file)]);
}

/// The figure that systemd gives the shipped unit: 0 is closed, 10 is open.
#[test]
fn the_unit_of_systemd_is_hardened() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/deephold.service");
    let asked = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", text(&unit)])
        .output();
    let Some(asked) = asked.ok().filter(|out| out.status.success()) else {
        skip("needs systemd-analyze (Debian's package systemd)");
        return;
    };
    let said = String::from_utf8_lossy(&asked.stdout);
    let last = said.lines().last().and_then(|line| line.split("service: ").nth(1)).expect("a figure");
    let figure: f64 = last.split_whitespace().next().expect("a figure").parse().expect("a number");
    assert!(figure <= 1.5, "{said}");
}
