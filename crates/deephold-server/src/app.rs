//! What is configured, and what every request reaches.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deephold_audit::{AuditError, AuditLog};
use deephold_base::Clock;
use deephold_state::{StateError, Store};
use tokio::sync::oneshot;

use crate::admission::{Books, Prices};
use crate::api::error::{ApiError, ApiResult};
use crate::backends::{ModelLoader, Models};
use crate::idempotency::Running;
use crate::metrics::Metrics;
use crate::record::AuditPolicy;
use crate::tls::TlsFiles;

/// How the server listens and what it bounds.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where; port 0 takes any.
    pub bind: SocketAddr,
    /// TLS 1.3; none for plain HTTP, which only this machine should speak.
    pub tls: Option<TlsFiles>,
    /// Plain HTTP although other machines reach the address.
    pub insecure_http: bool,
    /// A socket that somebody else opened, as systemd does, instead of `bind`.
    pub inherited: Option<Arc<std::net::TcpListener>>,
    /// How much the audit log keeps.
    pub policy: AuditPolicy,
    /// Whether requests are refused while the audit log takes no records. Otherwise they are answered, counted and logged.
    pub refuse_unrecorded: bool,
    /// What was set, and by whom: noted in the audit log with the start.
    pub settings: serde_json::Value,
    /// Connections at a time.
    pub connections: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Time for a body to come.
    pub body_time: Duration,
    /// Time for the head of a request to come.
    pub head_time: Duration,
    /// Time for a whole request.
    pub request_time: Duration,
    /// Time for requests to end once the server stops.
    pub drain_time: Duration,
    /// Where commands of the state's owner reach the server.
    pub admin_socket: Option<PathBuf>,
    /// Other names of models: each with what it stands for.
    pub aliases: Vec<(String, String)>,
    /// What tokens cost.
    pub prices: Prices,
    /// What the program may do at all, for the audit log.
    pub sandbox: String,
    /// How long an answer to a request with an `Idempotency-Key` is kept.
    pub keep_answers: Duration,
    /// This server's name among those that share a store; no other may have it.
    pub replica: String,
    /// What signs thinking that comes back; without one kept, signatures hold until the next start.
    pub secret: Option<[u8; 32]>,
    /// What loads models while the server runs; none where it cannot.
    pub loader: Option<Arc<dyn ModelLoader>>,
    /// Bytes of the program in RAM, where the system says so.
    pub resident: fn() -> Option<u64>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 8000)),
            tls: None,
            insecure_http: false,
            inherited: None,
            policy: AuditPolicy::Full,
            refuse_unrecorded: true,
            settings: serde_json::Value::Null,
            connections: 4096,
            body_bytes: 8 << 20,
            body_time: Duration::from_secs(30),
            head_time: Duration::from_secs(10),
            request_time: Duration::from_secs(600),
            drain_time: Duration::from_secs(30),
            admin_socket: None,
            aliases: Vec::new(),
            prices: Prices::default(),
            sandbox: String::new(),
            keep_answers: Duration::from_secs(24 * 3600),
            replica: "only".into(),
            secret: None,
            loader: None,
            resident: || None,
        }
    }
}

/// What every request reaches.
pub(crate) struct App {
    pub(crate) store: Arc<dyn Store>,
    /// What everybody has used.
    pub(crate) books: Books,
    /// Requests with names of their own that are being computed.
    pub(crate) running: Running,
    pub(crate) log: AuditLog,
    pub(crate) models: Models,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) policy: AuditPolicy,
    pub(crate) limits: ServerConfig,
    pub(crate) is_draining: AtomicBool,
    /// The audit log did not take its last record.
    pub(crate) log_fails: Arc<AtomicBool>,
    /// Records that it did not take since then.
    pub(crate) unrecorded: Arc<AtomicU64>,
    /// Held while a model is loaded or unloaded: one at a time.
    pub(crate) loading: Mutex<()>,
    /// What signs thinking.
    pub(crate) secret: [u8; 32],
    pub(crate) clock: Arc<dyn Clock>,
    /// Of this start, so that numbers of two starts differ.
    pub(crate) run: String,
    pub(crate) next_request: AtomicU64,
}

impl App {
    /// Milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> i64 {
        self.clock.unix_ms()
    }

    /// Asks the store. One on another machine may take its time, which no other request shall wait for.
    ///
    /// # Errors
    /// 503 where it does not answer.
    pub(crate) async fn ask_store<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce(&dyn Store) -> Result<T, StateError> + Send + 'static,
    ) -> ApiResult<T> {
        let answer = if self.store.is_shared() {
            let store = Arc::clone(&self.store);
            let asked = tokio::task::spawn_blocking(move || question(&*store)).await;
            asked.map_err(|e| ApiError::internal(format!("the store failed: {e}")))?
        } else {
            question(&*self.store)
        };
        answer.map_err(|error| {
            tracing::error!(%error, "the store failed");
            ApiError::unavailable(
                "state_unavailable",
                "the store of keys does not answer; the server's log says why",
            )
        })
    }

    /// Writes a record and waits until it is durable.
    pub(crate) async fn record(
        &self,
        kind: &'static str,
        data: &serde_json::Value,
    ) -> Result<(), AuditError> {
        let (answer, written) = oneshot::channel();
        self.log.append_with(kind, data, Box::new(move |result| _ = answer.send(result.map(drop))));
        let written = written.await.unwrap_or(Err(AuditError::Closed));
        note_log_state(&self.log_fails, &written);
        written
    }

    /// A name that no other request has.
    pub(crate) fn next_request_id(&self) -> String {
        format!("{}-{}", self.run, self.next_request.fetch_add(1, Ordering::Relaxed))
    }
}

/// Keeps in mind whether the log took its last record; says so when that changes.
pub(crate) fn note_log_state(log_fails: &AtomicBool, written: &Result<(), AuditError>) {
    let failed = log_fails.swap(written.is_err(), Ordering::SeqCst);
    match written {
        Err(error) if !failed => tracing::error!(%error, "the audit log takes no records"),
        Ok(()) if failed => tracing::info!("the audit log takes records again"),
        _ => {}
    }
}
