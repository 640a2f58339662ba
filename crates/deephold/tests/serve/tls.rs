//! TLS as clients meet it.

use std::process::{Command, Stdio};
use std::time::Duration;

use deephold_testkit::TempDir;
use serde_json::json as object;

use crate::common::{deephold, text};
use crate::service::Service;
use crate::{QUESTION, openai_python};

/// curl's exit code and output.
fn curl(args: &[&str]) -> (i32, String) {
    let out =
        Command::new("curl").args([&["-sS", "--max-time", "20"], args].concat()).output().expect("curl");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.code().unwrap_or(-1), text)
}

#[test]
fn tls_is_new_and_its_certificates_change_while_it_serves() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let mut service = Service::start(&state, &["--tls"]);
    let port = service.address.rsplit(':').next().expect("a port").to_owned();
    let (authority, url) = (state.join("tls/ca.pem"), format!("https://localhost:{port}/healthz"));
    let trusted = |more: &[&str]| curl(&[&["--cacert", text(&authority), &url], more].concat());
    assert!(trusted(&["--http1.1"]).1.contains("alive"));
    assert!(trusted(&["--http2"]).1.contains("alive"));
    assert!(trusted(&["--tlsv1.3", "-v"]).1.contains("TLSv1.3"));
    assert_ne!(trusted(&["--tls-max", "1.2"]).0, 0, "TLS 1.2 is refused");
    assert_ne!(curl(&[&url]).0, 0, "an unknown authority is not trusted");
    assert_ne!(curl(&["--cacert", text(&authority), &format!("http://localhost:{port}/healthz")]).0, 0);
    let line = service.banner.lines().find(|l| l.trim().starts_with("curl")).expect("a line for curl");
    let out = Command::new("bash").args(["-c", line]).output().expect("bash");
    assert!(String::from_utf8_lossy(&out.stdout).contains("chat.completion"), "{out:?}");
    if let Some(python) = openai_python() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/openai_client.py");
        let base = format!("https://localhost:{port}/v1");
        let mut command = Command::new(&python);
        command.env("SSL_CERT_FILE", &authority).args([script, &base, &service.key, "guide", "yes"]);
        let out = command.output().expect("python");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    #[cfg(unix)]
    for file in ["ca.key", "server.key"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(state.join("tls").join(file)).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // A certificate of another authority takes the old one's place; a stream that runs is not cut off.
    let other = dir.join("other");
    drop(Service::start(&other, &["--tls"]));
    let body = object!({ "model": "guide", "stream": true, "max_tokens": 300, "temperature": 1.9, "logit_bias": { "1": -100 },
        "messages": [{ "role": "user", "content": QUESTION }] })
    .to_string();
    let bearer = format!("Authorization: Bearer {}", service.key);
    let chat = format!("https://localhost:{port}/v1/chat/completions");
    let (args, cacert) =
        (["-sSN", "--limit-rate", "60k", "-H", &bearer, "-d", &body, &chat], text(&authority));
    let stream = Command::new("curl")
        .args(["--cacert", cacert])
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl");
    std::thread::sleep(Duration::from_millis(150));
    for file in ["server.pem", "server.key"] {
        std::fs::copy(other.join("tls").join(file), state.join("tls").join(file)).expect("copied");
    }
    let pid = service.child.id().to_string();
    Command::new("kill").args(["-HUP", &pid]).status().expect("kill");
    let new = other.join("tls/ca.pem");
    let mut tries = 0;
    while !curl(&["--cacert", text(&new), &url]).1.contains("alive") {
        tries += 1;
        assert!(tries < 100, "the new certificate is not in use");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_ne!(trusted(&[]).0, 0, "the old one is no longer shown");
    let out = stream.wait_with_output().expect("the stream ends");
    assert!(String::from_utf8_lossy(&out.stdout).contains("[DONE]"));
    // A broken file changes nothing.
    std::fs::write(state.join("tls/server.pem"), "no certificate").expect("written");
    Command::new("kill").args(["-HUP", &pid]).status().expect("kill");
    std::thread::sleep(Duration::from_millis(300));
    assert!(curl(&["--cacert", text(&new), &url]).1.contains("alive"));
    service.terminate();
    assert!(service.child.wait().expect("an end").success());
}

#[test]
fn clients_must_show_a_certificate_where_that_is_asked() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let client = |file: &str| dir.join(file);
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("an authority");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["ada".to_owned()]).expect("a name");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority.pem(), authority_key).expect("an issuer");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let (shown, secret) = (certificate.pem(), key.serialize_pem());
    for (file, pem) in [("ca.pem", authority.pem()), ("ada.pem", shown), ("ada.key", secret)] {
        std::fs::write(client(file), pem).expect("written");
    }
    let service = Service::start(&state, &["--tls-client-ca", text(&client("ca.pem"))]);
    let port = service.address.rsplit(':').next().expect("a port");
    let url = format!("https://localhost:{port}/healthz");
    let authority = state.join("tls/ca.pem");
    assert_ne!(curl(&["--cacert", text(&authority), &url]).0, 0, "without a certificate nobody is let in");
    let (pem, key) = (client("ada.pem"), client("ada.key"));
    let shown = ["--cacert", text(&authority), "--cert", text(&pem), "--key", text(&key), &url];
    let answer = curl(&shown);
    assert!(answer.1.contains("alive"), "{answer:?}");
    let refused = deephold(&["serve", "--state", text(&dir.join("x")), "--tls-client-ca", text(&key)]);
    assert!(refused.code == 65 && refused.err.contains("ada.key"), "{}", refused.err);
}

/// Beyond this machine there is TLS without being asked.
#[test]
fn other_addresses_speak_tls() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &["--bind", "0.0.0.0:0", "--tls-name", "deephold.test"]);
    assert!(
        service.banner.contains("https://localhost:") && service.banner.contains("deephold.test"),
        "{}",
        service.banner
    );
    let port = service.address.rsplit(':').next().expect("a port");
    let (resolve, url) =
        (format!("deephold.test:{port}:127.0.0.1"), format!("https://deephold.test:{port}/healthz"));
    let answer = curl(&["--cacert", text(&state.join("tls/ca.pem")), "--resolve", &resolve, &url]);
    assert!(answer.1.contains("alive"), "{answer:?}");
}
