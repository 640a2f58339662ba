//! Connections: accepted within a limit, served, drained.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deephold_audit::AuditLog;
use deephold_base::Clock;
use deephold_engine::Shutdown;
use deephold_state::Store;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::admission::Books;
use crate::app::{App, ServerConfig};
use crate::backends::{self, Models, NewModel};
use crate::idempotency::Running;
use crate::metrics::Metrics;
use crate::tls::Tls;
use crate::{ServerError, admin, routes};

/// A server that listens.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    /// Where commands reach it.
    admin: Option<tokio::net::UnixListener>,
}

impl Server {
    /// Listens; every model does a real forward pass first, and the audit log notes the start.
    ///
    /// # Errors
    /// An address that cannot be had or must not speak plain HTTP, a log that takes no record, a model that cannot compute.
    pub async fn start(
        config: ServerConfig,
        store: Arc<dyn Store>,
        log: AuditLog,
        models: Vec<NewModel>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ServerError> {
        let bind = |source| ServerError::Bind { address: config.bind.to_string(), source };
        let inherited = config.inherited.as_deref().map(std::net::TcpListener::try_clone).transpose();
        let inherited = inherited.map_err(bind)?;
        let address =
            inherited.as_ref().map_or(Ok(config.bind), std::net::TcpListener::local_addr).map_err(bind)?;
        if config.tls.is_none() && !address.ip().is_loopback() && !config.insecure_http {
            return Err(ServerError::Plaintext(address));
        }
        let listener = match inherited {
            None => TcpListener::bind(address).await,
            Some(socket) => socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)),
        };
        let listener = listener.map_err(bind)?;
        let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let metrics = Arc::new(Metrics::new(clock.unix_time()));
        let now_s = clock.unix_time().as_secs();
        let mut run = [0; 6];
        aws_lc_rs::rand::fill(&mut run).map_err(|_| ServerError::Random)?;
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| ServerError::Random)?;
        let replica = config.replica.clone();
        let (asked, of) = (Arc::clone(&store), Arc::clone(&clock));
        let books = tokio::task::spawn_blocking(move || Books::open(asked, of, replica));
        let books = books.await.map_err(|e| ServerError::Io {
            action: "read what was used",
            source: std::io::Error::other(e),
        })??;
        let app = Arc::new(App {
            books,
            running: Running::default(),
            secret: config.secret.unwrap_or(secret),
            store,
            log,
            models: Models::new(config.aliases.clone()),
            metrics,
            policy: config.policy,
            limits: config,
            is_draining: AtomicBool::new(false),
            log_fails: Arc::default(),
            unrecorded: Arc::default(),
            loading: Mutex::default(),
            clock,
            run: deephold_audit::hex(&run),
            next_request: AtomicU64::new(1),
        });
        let warming = Arc::clone(&app);
        let warm = tokio::task::spawn_blocking(move || -> Result<(), ServerError> {
            for model in models {
                warming.models.add(backends::start(model, &warming.metrics, now_s)?);
            }
            Ok(())
        });
        warm.await.map_err(|e| ServerError::Io { action: "warm up", source: std::io::Error::other(e) })??;
        let admin = app.limits.admin_socket.as_deref().map(admin::listen).transpose()?;
        let server = Self { app, listener, tls, admin };
        note(&server.app, server.address(), "start").await?;
        Ok(server)
    }

    /// Whether clients must speak TLS.
    pub fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.app.limits.bind)
    }

    /// What loads changed certificates: call it after a signal with `true`, and now and then with `false`. Connections go on
    /// with what they began with.
    pub fn tls_reloader(&self) -> impl Fn(bool) -> Result<bool, ServerError> + Send + Sync + use<> {
        let tls = self.tls.clone();
        move |always| tls.as_ref().map_or(Ok(false), |tls| tls.reload(always))
    }

    /// Serves until `stop` resolves; then takes nothing new, lets requests end within the drain's time, and ends the rest.
    ///
    /// # Errors
    /// The log's, where it does not take the record of the stop.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        let router = routes::router(&self.app);
        let limits = &self.app.limits;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        let head_time = limits.head_time;
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(head_time)
            .max_buf_size(64 << 10)
            .max_headers(100);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256).max_header_list_size(64 << 10);
        let socket = self.admin.map(|listener| tokio::spawn(admin::serve(listener, Arc::clone(&self.app))));
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(limits.connections));
        tokio::pin!(stop);
        loop {
            // A place first: connections beyond the limit wait in the system's queue.
            let place = tokio::select! {
                () = &mut stop => break,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let (socket, _) = tokio::select! {
                () = &mut stop => break,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    // Too many open files, or a peer that has gone already: neither ends the server.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            // Tokens go out one by one: waiting to fill a packet would hold them back.
            let _ = socket.set_nodelay(true);
            let service = TowerToHyperService::new(router.clone());
            let (builder, watcher) = (builder.clone(), graceful.watcher());
            let tls = self.tls.as_ref().map(|tls| TlsAcceptor::from(tls.current()));
            tokio::spawn(async move {
                let _place = place;
                // A peer that breaks off, or speaks no TLS 1.3, is no failure of ours.
                match tls {
                    None => {
                        let connection = builder.serve_connection(TokioIo::new(socket), service).into_owned();
                        let _ = watcher.watch(connection).await;
                    }
                    Some(tls) => {
                        let Ok(Ok(stream)) = tokio::time::timeout(head_time, tls.accept(socket)).await else {
                            return;
                        };
                        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
                        let _ = watcher.watch(connection).await;
                    }
                }
            });
        }

        self.app.is_draining.store(true, Ordering::SeqCst);
        let drained = tokio::time::timeout(limits.drain_time, graceful.shutdown()).await;
        let app = Arc::clone(&self.app);
        let how = if drained.is_ok() { Shutdown::Drain(Duration::ZERO) } else { Shutdown::Now };
        let ended = tokio::task::spawn_blocking(move || {
            app.models.decoders().iter().for_each(|m| m.engine.shutdown(how));
        });
        let _ = ended.await;
        // Streams that the shutdown ended still write their records.
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Some(socket) = socket {
            socket.abort();
        }
        note(&self.app, self.listener.local_addr().unwrap_or(self.app.limits.bind), "stop").await
    }
}

/// A record of the server's own life.
async fn note(app: &App, address: SocketAddr, what: &'static str) -> Result<(), ServerError> {
    let models: Vec<_> =
        app.models.all().iter().map(|m| json!({ "name": m.name(), "facts": m.facts() })).collect();
    let data = json!({
        "event": what, "program": env!("CARGO_PKG_VERSION"), "address": address.to_string(),
        "models": models, "tls": app.limits.tls.is_some(), "insecure_http": app.limits.insecure_http,
        "policy": format!("{:?}", app.policy).to_lowercase(), "sandbox": app.limits.sandbox, "settings": app.limits.settings,
    });
    Ok(app.record("server", &data).await?)
}
