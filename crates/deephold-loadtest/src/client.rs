//! One streamed answer from a server with OpenAI's API, and when each part of it came.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Calibration, LoadError, Measured, Texts};

/// A line of an event stream at most; a longer one is no answer of a model.
const LINE_BYTES_MAX: usize = 4 << 20;

/// The body of a whole answer, or of an error, at most.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Of a server's words in an error.
const MESSAGE_CHARS_MAX: usize = 200;

/// Words of the two prompts that a server's way to count is learned from.
const PROBE_WORDS: (usize, usize) = (8, 48);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(String);

impl std::str::FromStr for Url {
    type Err = LoadError;

    /// `http://HOST:PORT`, also with a path, also ending in `/v1`.
    fn from_str(text: &str) -> Result<Self, LoadError> {
        let bad = |problem: &str| LoadError::Url { url: text.to_owned(), problem: problem.to_owned() };
        let uri: Uri = text.parse().map_err(|_| bad("is no address"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad("begins with neither http:// nor https://"));
        }
        let authority = uri.authority().ok_or_else(|| bad("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("holds a name or a password; keys belong into a file"));
        }
        if uri.query().is_some() {
            return Err(bad("has a query"));
        }
        let base = text.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/');
        Ok(Self(base.to_owned()))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

impl Api {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }
}

/// How a server is spoken to.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// What is asked.
    pub api: Api,
    /// The bearer key.
    pub key: Option<String>,
    /// The authority whose certificates the server may show (PEM); none: those that this system trusts.
    pub ca: Option<PathBuf>,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

/// Speaks to one model of one server. Connections are kept and used again, one answer at a time on each.
#[derive(Debug)]
pub struct Client {
    url: Url,
    options: ClientOptions,
    model: String,
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    takes: Takes,
}

/// Fields beyond the oldest form of the API that the server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Takes {
    /// `ignore_eos`: answers as long as asked.
    ignore_eos: bool,
    /// `stream_options.include_usage`: it says how many tokens there were.
    usage: bool,
}

impl Client {
    /// Makes a client; asks nothing yet.
    ///
    /// # Errors
    /// Certificates that cannot be read, or a system that trusts nobody.
    pub fn new(url: Url, options: ClientOptions) -> Result<Self, LoadError> {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        http.set_connect_timeout(Some(Duration::from_secs(30)));
        let roots = match (&options.ca, url.0.starts_with("https")) {
            (_, false) => RootCertStore::empty(),
            (Some(file), true) => roots_of(file)?,
            (None, true) => system_roots()?,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls =
            tls.map_err(|e| certificates("TLS", e))?.with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        let takes = Takes { ignore_eos: true, usage: true };
        Ok(Self { url, options, model: String::new(), pool, takes })
    }

    /// The model that is asked.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether answers are as long as asked; else they end where the model ends them.
    pub fn keeps_lengths(&self) -> bool {
        self.takes.ignore_eos
    }

    /// Chooses the model: the one named, or the server's first.
    ///
    /// # Errors
    /// The server does not answer, refuses, or has no model.
    pub async fn choose_model(&mut self, named: Option<&str>) -> Result<(), LoadError> {
        if let Some(name) = named {
            self.model = name.to_owned();
            return Ok(());
        }
        let url = format!("{}/v1/models", self.url);
        let request = self.request("GET", &url, Bytes::new());
        let (status, body) = self.whole(&url, request?).await?;
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status != 200 {
            return Err(LoadError::Refused { url, status, message: message_of(&body) });
        }
        let first = list["data"][0]["id"].as_str();
        let none = || LoadError::Plan(format!("{url} lists no model; name one with --model"));
        self.model = first.ok_or_else(none)?.to_owned();
        Ok(())
    }

    /// Learns from two short requests which fields the server takes and how it counts tokens.
    ///
    /// # Errors
    /// The server does not answer, or refuses also the oldest form of the API.
    pub async fn calibrate(&mut self, seed: u64) -> Result<Option<Calibration>, LoadError> {
        let texts = Texts::new(Calibration::ASSUMED, 0);
        let (few, many) = PROBE_WORDS;
        let mut measured = self.probe(&texts.of_words(few, seed)).await;
        for takes in [
            Takes { ignore_eos: false, usage: true },
            Takes { ignore_eos: true, usage: false },
            Takes { ignore_eos: false, usage: false },
        ] {
            if !matches!(measured, Err(LoadError::Refused { status: 400 | 422, .. })) {
                break;
            }
            self.takes = takes;
            measured = self.probe(&texts.of_words(few, seed)).await;
        }
        let (first, second) = (measured?, self.probe(&texts.of_words(many, seed ^ 1)).await?);
        Ok(first.zip(second).and_then(|(a, b)| Calibration::measured((few, a), (many, b))))
    }

    /// The tokens that the server counts in a prompt, by a request for one token.
    async fn probe(&self, prompt: &str) -> Result<Option<u64>, LoadError> {
        let url = format!("{}{}", self.url, self.options.api.path());
        let request = self.request("POST", &url, self.body(prompt, 1))?;
        let (status, body) = self.whole(&url, request).await?;
        if status != 200 {
            return Err(LoadError::Refused { url, status, message: message_of(&body) });
        }
        let text = String::from_utf8_lossy(&body);
        let events = text.lines().filter_map(data).filter_map(|d| serde_json::from_str::<Event>(d).ok());
        Ok(events.filter_map(|e| e.usage?.prompt_tokens).next_back())
    }

    fn request(&self, method: &str, url: &str, body: Bytes) -> Result<Request<Full<Bytes>>, LoadError> {
        let mut request = Request::builder().method(method).uri(url).header(header::ACCEPT, "*/*");
        if let Some(key) = &self.options.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request.body(Full::new(body)).map_err(|e| LoadError::Plan(format!("no request can be made: {e}")))
    }

    fn body(&self, prompt: &str, output_tokens: usize) -> Bytes {
        let mut body = json!({
            "model": self.model, "max_tokens": output_tokens, "temperature": 0.0, "stream": true,
        });
        match self.options.api {
            Api::Chat => body["messages"] = json!([{ "role": "user", "content": prompt }]),
            Api::Completions => body["prompt"] = prompt.into(),
        }
        if self.takes.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        if self.takes.usage {
            body["stream_options"] = json!({ "include_usage": true });
        }
        body.to_string().into()
    }

    /// A whole answer: its status and its body.
    async fn whole(&self, url: &str, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), LoadError> {
        let failed = |problem: String| LoadError::Unreachable { url: url.to_owned(), problem };
        let work = async {
            let response = self.pool.request(request).await.map_err(|e| failed(chain(&e)))?;
            let status = response.status().as_u16();
            let body = http_body_util::Limited::new(response.into_body(), BODY_BYTES_MAX);
            let body = body.collect().await.map_err(|e| failed(e.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let late = |_| failed(format!("no answer within {} s", self.options.timeout.as_secs()));
        tokio::time::timeout(self.options.timeout, work).await.map_err(late)?
    }

    /// Asks for one streamed answer and measures it. Never fails: what went wrong is part of the measurement.
    pub async fn ask(&self, prompt: &str, output_tokens: usize) -> Measured {
        let url = format!("{}{}", self.url, self.options.api.path());
        let request = self.request("POST", &url, self.body(prompt, output_tokens));
        let mut measured = Measured::default();
        let start = Instant::now();
        let work = async {
            let request = request.map_err(|e| e.to_string())?;
            let response = self.pool.request(request).await.map_err(|e| chain(&e))?;
            read(response, start, &mut measured).await
        };
        let ended = tokio::time::timeout(self.options.timeout, work).await;
        measured.whole = start.elapsed();
        measured.error = match ended {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_) => Some(format!("no end within {} s", self.options.timeout.as_secs())),
        };
        measured
    }
}

/// Reads an event stream to its end.
async fn read(response: Response<Incoming>, start: Instant, measured: &mut Measured) -> Result<(), String> {
    let status = response.status().as_u16();
    if status != 200 {
        let body = http_body_util::Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map(|b| b.to_bytes()).unwrap_or_default();
        return Err(format!("status {status}: {}", message_of(&body)));
    }
    let mut body = response.into_body();
    let mut lines = Lines::default();
    let (mut last, mut is_done) = (None, false);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| format!("the answer broke off: {}", chain(&e)))?;
        let Ok(bytes) = frame.into_data() else { continue };
        let now = start.elapsed();
        lines.push(&bytes)?;
        while let Some(line) = lines.next_line() {
            let Some(data) = data(&line) else { continue };
            if data == "[DONE]" {
                is_done = true;
                continue;
            }
            let event: Event = serde_json::from_str(data).map_err(|e| format!("an event is no JSON: {e}"))?;
            if let Some(error) = event.error {
                return Err(format!(
                    "an error instead of the answer's end: {}",
                    shortened(&error.to_string())
                ));
            }
            if let Some(usage) = event.usage {
                measured.prompt_tokens = usage.prompt_tokens.or(measured.prompt_tokens);
                measured.output_tokens = usage.completion_tokens.or(measured.output_tokens);
            }
            if event.choices.iter().any(Choice::has_text) {
                measured.events += 1;
                match last {
                    None => measured.first = Some(now),
                    Some(before) => measured.gaps.push(micros(now - before)),
                }
                last = Some(now);
            }
        }
    }
    if !is_done {
        return Err("the answer broke off before its end".to_owned());
    }
    // Tokens whose text is not shown, as ends of a turn are, count as well.
    match last.is_some() || measured.output_tokens > Some(0) {
        true => Ok(()),
        false => Err("an answer without a token".to_owned()),
    }
}

fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

/// The payload of a line of an event stream.
fn data(line: &str) -> Option<&str> {
    line.strip_prefix("data:").map(str::trim)
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Value>,
}

impl Choice {
    /// Whether it carries a part of the answer, not only a role or an end.
    fn has_text(&self) -> bool {
        let some = |t: &Option<String>| t.as_ref().is_some_and(|t| !t.is_empty());
        let of_delta = |d: &Delta| {
            some(&d.content) || some(&d.reasoning_content) || some(&d.reasoning) || d.tool_calls.is_some()
        };
        some(&self.text) || self.delta.as_ref().is_some_and(of_delta)
    }
}

/// Bytes to lines, with a bound on what waits for its end.
#[derive(Default)]
pub(crate) struct Lines {
    waiting: Vec<u8>,
    read: usize,
}

impl Lines {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.waiting.drain(..self.read);
        self.read = 0;
        self.waiting.extend_from_slice(bytes);
        let open = self.waiting.iter().rev().take_while(|b| **b != b'\n').count();
        if open > LINE_BYTES_MAX {
            return Err(format!("a line of more than {LINE_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    /// The next whole line, without its end.
    pub(crate) fn next_line(&mut self) -> Option<String> {
        let rest = &self.waiting[self.read..];
        let end = rest.iter().position(|b| *b == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned();
        self.read += end + 1;
        Some(line)
    }
}

/// What a server says of an error: the message of OpenAI's form, or its beginning.
fn message_of(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value["error"]["message"].as_str().or(value["message"].as_str());
    match message {
        Some(message) => shortened(message),
        None => shortened(&String::from_utf8_lossy(body)),
    }
}

fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

fn certificates(what: &str, problem: impl std::fmt::Display) -> LoadError {
    LoadError::Certificates { what: what.to_owned(), problem: problem.to_string() }
}

fn roots_of(file: &Path) -> Result<RootCertStore, LoadError> {
    let bad = |e: &dyn std::fmt::Display| certificates(&file.display().to_string(), e);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| bad(&e))? {
        roots.add(certificate.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    }
    if roots.is_empty() {
        return Err(bad(&"holds no certificate"));
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, LoadError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(certificates("this system", "trusts no authority; name the server's with --ca"));
    }
    Ok(roots)
}
