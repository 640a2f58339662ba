//! What is configured, and what every request reaches.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use deephold_audit::AuditLog;
use deephold_base::Clock;
use deephold_state::Keys;

use crate::backends::Models;
use crate::metrics::Metrics;
use crate::record::AuditPolicy;
use crate::tls::TlsFiles;

/// How the server listens and what it bounds.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where; port 0 takes any.
    pub bind: SocketAddr,
    /// TLS 1.3; none for plain HTTP, which only this machine should speak.
    pub tls: Option<TlsFiles>,
    /// Plain HTTP although other machines reach the address.
    pub insecure_http: bool,
    /// How much the audit log keeps.
    pub policy: AuditPolicy,
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
    /// Bytes of the program in RAM, where the system says so.
    pub resident: fn() -> Option<u64>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 8000)),
            tls: None,
            insecure_http: false,
            policy: AuditPolicy::Full,
            connections: 1024,
            body_bytes: 8 << 20,
            body_time: Duration::from_secs(30),
            head_time: Duration::from_secs(10),
            request_time: Duration::from_secs(600),
            drain_time: Duration::from_secs(30),
            admin_socket: None,
            resident: || None,
        }
    }
}

/// What every request reaches.
pub(crate) struct App {
    pub(crate) store: Arc<dyn Keys>,
    pub(crate) log: AuditLog,
    pub(crate) models: Models,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) policy: AuditPolicy,
    pub(crate) limits: ServerConfig,
    pub(crate) is_draining: AtomicBool,
    /// The audit log did not take its last record.
    pub(crate) log_fails: Arc<AtomicBool>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Of this start, so that numbers of two starts differ.
    pub(crate) run: String,
    pub(crate) next_request: AtomicU64,
}

impl App {
    /// Milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> i64 {
        i64::try_from(self.clock.unix_time().as_millis()).unwrap_or(i64::MAX)
    }

    /// A name that no other request has.
    pub(crate) fn next_request_id(&self) -> String {
        format!("{}-{}", self.run, self.next_request.fetch_add(1, Ordering::Relaxed))
    }
}
