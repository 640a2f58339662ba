//! `deephold serve`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ArgMatches;
use deephold_base::{Clock, ErrorCode, SystemClock};
use deephold_engine::Machine;
use deephold_server::access::KeyWish;
use deephold_server::admin::{AdminAnswer, AdminRequest, execute};
use deephold_server::{
    AuditPolicy, HostedEncoder, HostedModel, LoadProgress, ModelFacts, ModelLoader, NewModel, Prices, Server,
    ServerConfig, TlsFiles, local_certificate,
};
use deephold_state::{Limits, Role, Store};
use deephold_weights::verify;
use sd_notify::NotifyState;

use crate::answer::recommended;
use crate::cli::{AuditFailureArg, AuditPolicyArg, EngineArgs, LogArg, SandboxArg, ServeArgs, value_name};
use crate::config::{self, Settings};
use crate::console::{self, note};
use crate::fail::{bad_argument, fail};
use crate::loaded::{Progress, chat_format, digest, load_checkpoint, load_encoder, machine, open};
use crate::sandbox::{self, Needs};
use crate::state_dir::StateDir;
use crate::{guide, system, terminal};

pub(crate) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let (args, settings) = config::serve(matches)?;
    start_log(args.log);
    serve(&args, &settings)
}

/// Events go to standard error; what the server answers has its own place.
fn start_log(log: LogArg) {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    match log {
        LogArg::Off => {}
        LogArg::Text => builder.init(),
        LogArg::Json => builder.json().flatten_event(true).init(),
    }
}

fn serve(args: &ServeArgs, settings: &Settings) -> Result<ExitCode> {
    let state = StateDir::of(&args.state)?.with_store(&args.store);
    let inherited = listenfd::ListenFd::from_env().take_tcp_listener(0)?;
    let sandbox = confine(args, &state, inherited.is_some())?;
    let (store, log) = state.open().with_context(|| format!("the state in {}", state.path().display()))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let machine = machine(&args.engine)?;
    let models = all_named(&args.models)?;
    let loader = Loader { machine, engine: args.engine.clone(), max_seqs: args.max_seqs };
    let hosted =
        models.iter().map(|(name, path)| loader.host(name, Path::new(path), &mut terminal::phases()));
    let hosted: Vec<NewModel> = hosted.collect::<Result<_>>()?;
    let first_key = first_key(&store, &log, &*clock)?;
    let bind = inherited.as_ref().map_or(Ok(args.bind), std::net::TcpListener::local_addr)?;
    let tls = tls(args, bind, &state, &*clock)?;
    let authority = tls.as_ref().filter(|_| args.tls_cert.is_none()).map(|_| state.tls_dir().join("ca.pem"));
    let config = ServerConfig {
        bind,
        tls,
        insecure_http: args.insecure_http,
        policy: match args.audit_policy {
            AuditPolicyArg::Full => AuditPolicy::Full,
            AuditPolicyArg::Hash => AuditPolicy::Hash,
            AuditPolicyArg::Redacted => AuditPolicy::Redacted,
        },
        refuse_unrecorded: matches!(args.audit_failure, AuditFailureArg::Refuse),
        settings: settings.to_json(),
        inherited: inherited.map(Arc::new),
        connections: args.connections as usize,
        body_bytes: usize::try_from(args.body_size)?,
        request_time: Duration::from_secs(args.request_time.into()),
        drain_time: Duration::from_secs(args.drain_time.into()),
        admin_socket: Some(state.socket()),
        secret: Some(state.thinking_secret()?),
        aliases: args.aliases.iter().map(|a| alias(a)).collect::<Result<_>>()?,
        keep_answers: Duration::from_secs(u64::from(args.keep_answers) * 3600),
        sandbox,
        replica: state.replica()?,
        prices: Prices::parse(&args.currency, &args.prices).map_err(bad_argument)?,
        loader: Some(Arc::new(loader)),
        resident: system::resident,
        ..ServerConfig::default()
    };
    // A descriptor for each connection, where the system allows so many.
    system::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::start(config, Arc::new(store), log, hosted, clock).await?;
        let stop = stopped();
        let key = first_key.as_deref();
        let welcome = welcome(&server, args, settings, &models[0].0, key, authority.as_deref());
        // Nobody may be there to read it.
        let _ = console::write(&welcome);
        watch_certificates(&server);
        tell_systemd(&[NotifyState::Ready]);
        keep_watchdog_calm();
        server.serve(stop).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Enters the sandbox before any other thread is there; how far the kernel had the means, for the audit log.
fn confine(args: &ServeArgs, state: &StateDir, has_socket: bool) -> Result<String> {
    if args.sandbox == SandboxArg::Off {
        return Ok("off".to_owned());
    }
    state.make().with_context(|| format!("the state in {}", state.path().display()))?;
    let listens = (!has_socket).then_some(args.bind.port());
    let granted = sandbox::enter(&Needs { state: state.path(), listens, connects: &state.connects()? })?;
    if !granted.is_whole() {
        let words = format!("landlock: {}, seccomp: {}", granted.landlock, granted.seccomp);
        if args.sandbox == SandboxArg::Require {
            let hint =
                "Linux 6.7 with Landlock and seccomp has the means; `--sandbox auto` takes what there is";
            return Err(fail(
                ErrorCode::Unsupported,
                format!("the kernel grants no whole sandbox ({words}); {hint}"),
            ));
        }
        tracing::warn!(
            landlock = granted.landlock,
            seccomp = granted.seccomp,
            "the kernel grants no whole sandbox"
        );
        return Ok(words);
    }
    Ok("full".to_owned())
}

/// A word to systemd, where it started the program and listens.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd does not listen");
    }
}

/// Twice as often as systemd wants to hear that the program is alive, where it does. The runtime itself sends it: a runtime that
/// hangs sends nothing.
fn keep_watchdog_calm() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        loop {
            tell_systemd(&[NotifyState::Watchdog]);
            tokio::time::sleep(limit / 2).await;
        }
    });
}

/// Certificates where the server speaks TLS: given ones, or a local authority's.
fn tls(args: &ServeArgs, bind: SocketAddr, state: &StateDir, clock: &dyn Clock) -> Result<Option<TlsFiles>> {
    let wanted =
        args.tls || args.tls_cert.is_some() || args.tls_key.is_some() || args.tls_client_ca.is_some();
    if !wanted && (bind.ip().is_loopback() || args.insecure_http) {
        return Ok(None);
    }
    let files = match (&args.tls_cert, &args.tls_key) {
        (Some(_), None) | (None, Some(_)) => {
            return Err(bad_argument(
                "a certificate and its key go together: give both tls_cert and tls_key",
            ));
        }
        (Some(certificate), Some(key)) => {
            TlsFiles { certificate: certificate.clone(), key: key.clone(), client_authority: None }
        }
        _ => {
            let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
            let ip = bind.ip();
            if !ip.is_unspecified() {
                names.push(ip.to_string());
            }
            names.extend(args.tls_names.iter().cloned());
            names.sort();
            names.dedup();
            local_certificate(&state.tls_dir(), &names, clock.unix_time())?
        }
    };
    Ok(Some(TlsFiles { client_authority: args.tls_client_ca.clone(), ..files }))
}

/// Loads certificates anew after SIGHUP, or within a few seconds of a change.
fn watch_certificates(server: &Server) {
    use tokio::signal::unix::{SignalKind, signal};
    let reload = server.tls_reloader();
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    tokio::spawn(async move {
        loop {
            let always = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(Duration::from_secs(2)) => false,
            };
            if always && let Ok(now) = NotifyState::monotonic_usec_now() {
                tell_systemd(&[NotifyState::Reloading, now]);
            }
            match reload(always) {
                Ok(true) => tracing::info!("certificates loaded anew"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "the old certificates stay in use"),
            }
            if always {
                tell_systemd(&[NotifyState::Ready]);
            }
        }
    });
}

/// `PATH` or `NAME=PATH`; a path alone is called by its last part.
pub(crate) fn named(text: &str) -> Result<(String, String)> {
    let (name, path) = match text.split_once('=') {
        Some((name, path)) if !name.contains('/') => (name.to_owned(), path.to_owned()),
        _ => {
            let stem =
                Path::new(text).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            (stem.trim_end_matches(".gguf").to_owned(), text.to_owned())
        }
    };
    if name.is_empty() || name.len() > 200 || path.is_empty() || name.contains(char::is_control) {
        return Err(bad_argument(format!("`{text}` is no model; give PATH or NAME=PATH")));
    }
    Ok((name, path))
}

fn alias(text: &str) -> Result<(String, String)> {
    let parts = text.split_once('=').filter(|(name, model)| !name.is_empty() && !model.is_empty());
    let (name, model) =
        parts.ok_or_else(|| bad_argument(format!("`{text}` is no alias; give NAME=MODEL")))?;
    Ok((name.to_owned(), model.to_owned()))
}

/// The models of the start, the guide where none is given.
fn all_named(models: &[String]) -> Result<Vec<(String, String)>> {
    if models.is_empty() {
        return Ok(vec![(guide::NAME.to_owned(), guide::NAME.to_owned())]);
    }
    let named: Vec<(String, String)> = models.iter().map(|m| named(m)).collect::<Result<_>>()?;
    for (i, (name, _)) in named.iter().enumerate() {
        if named[..i].iter().any(|other| other.0 == *name) {
            return Err(bad_argument(format!(
                "two models are called `{name}`; give them names as NAME=PATH"
            )));
        }
    }
    Ok(named)
}

/// How models come into a service, at its start and later.
struct Loader {
    machine: Arc<Machine>,
    engine: EngineArgs,
    max_seqs: usize,
}

impl Loader {
    fn host(&self, name: &str, path: &Path, progress: &mut Progress<'_>) -> Result<NewModel> {
        let checkpoint = Arc::new(open(path)?);
        let facts = ModelFacts {
            digest: digest(&checkpoint, progress),
            template: checkpoint.chat_template().map(|t| verify::text_digest(&t)),
            isa: self.machine.ops().isa().name().to_owned(),
            cache_type: value_name(&self.engine.cache_type),
            load_as: self.engine.load_as.as_ref().map(value_name),
            ..ModelFacts::default()
        };
        if deephold_models::is_encoder(&checkpoint)? {
            let (encoder, tokenizer, memory) =
                load_encoder(&checkpoint, &self.machine, &self.engine, progress)?;
            let info = encoder.info();
            let facts = ModelFacts {
                architecture: info.architecture.clone(),
                parameters: info.parameters_total,
                template: None,
                cache_type: String::new(),
                ..facts
            };
            let machine = Arc::clone(&self.machine);
            let name = name.to_owned();
            return Ok(HostedEncoder { name, encoder, machine, tokenizer, facts, memory }.into());
        }
        let loaded = load_checkpoint(checkpoint, &self.machine, &self.engine, Instant::now(), progress)?;
        let mut core = loaded.engine(&self.engine, self.max_seqs, |_| ())?;
        let mut defaults = recommended(&loaded.checkpoint);
        let info = loaded.model.info();
        let facts = ModelFacts {
            architecture: info.architecture.clone(),
            parameters: info.parameters_total,
            ..facts
        };
        let (tokenizer, checkpoint, memory) = loaded.into_parts()?;
        core.hold(memory);
        defaults.stop_token_ids = tokenizer.stop_ids().to_vec();
        let chat = chat_format(&checkpoint, &tokenizer)?;
        Ok(HostedModel { name: name.to_owned(), core, tokenizer, chat, defaults, facts }.into())
    }
}

impl ModelLoader for Loader {
    fn load(
        &self,
        name: &str,
        path: &str,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<NewModel, String> {
        let mut report = |phase: &'static str, done, total| {
            progress(LoadProgress { phase: phase.to_owned(), done, total });
        };
        self.host(name, Path::new(path), &mut report).map_err(|e| format!("{e:#}"))
    }
}

/// An admin's key where there is no valid one: shown once. Not where systemd keeps what the program prints: whoever may read its
/// journal would have the key.
fn first_key(store: &dyn Store, log: &deephold_audit::AuditLog, clock: &dyn Clock) -> Result<Option<String>> {
    let now_ms = clock.unix_ms();
    if store.keys()?.iter().any(|k| k.role == Role::Admin && k.is_valid(now_ms)) {
        return Ok(None);
    }
    if system::output_is_journal() {
        tracing::warn!(
            "there is no valid admin key; make one with `deephold key create --owner NAME --role admin`"
        );
        return Ok(None);
    }
    let request = AdminRequest::CreateKey(KeyWish {
        tenant: None,
        project: None,
        owner: "first start".into(),
        role: Role::Admin,
        models: Vec::new(),
        endpoints: Vec::new(),
        limits: Limits::default(),
        expires_ms: None,
    });
    match execute(&request, store, log, now_ms)? {
        AdminAnswer::Issued { secret, .. } => Ok(Some(secret)),
        _ => Ok(None),
    }
}

/// What to do next, in lines that work when pasted.
fn welcome(
    server: &Server,
    args: &ServeArgs,
    settings: &Settings,
    model: &str,
    key: Option<&str>,
    authority: Option<&Path>,
) -> String {
    let host = match server.address() {
        // The address of all interfaces is no place to connect to; this machine's own name always is in the certificate.
        address if address.ip().is_unspecified() => format!("localhost:{}", address.port()),
        address => address.to_string(),
    };
    let base = format!("{}://{host}", if server.speaks_tls() { "https" } else { "http" });
    let mut lines = vec![format!("deephold serves `{model}` at {base}")];
    lines.extend(settings.file().map(|file| format!("settings are from {}", file.display())));
    lines.extend(
        args.tls_names
            .first()
            .map(|name| format!("clients reach it as https://{name}:{}", server.address().port())),
    );
    lines.extend(authority.map(|file| format!("clients trust the authority in {}", file.display())));
    let trust = authority.map_or_else(String::new, |file| format!("--cacert {} ", file.display()));
    let environment = authority.map_or_else(String::new, |file| format!("SSL_CERT_FILE={} ", file.display()));
    lines.extend(key.map(|key| format!("admin key, shown this once:\n  {key}")));
    let shown = key.unwrap_or("$DEEPHOLD_KEY");
    let question = "What is Deephold?";
    let messages = format!(r#"[{{"role": "user", "content": "{question}"}}]"#);
    lines.push(format!(
        r#"try:
  curl -sS {trust}{base}/v1/chat/completions -H "Authorization: Bearer {shown}" -H "Content-Type: application/json" -d '{{"model": "{model}", "messages": {messages}}}'
or with the openai package:
  {environment}python3 -c 'import openai; c = openai.OpenAI(base_url="{base}/v1", api_key="{shown}"); print(c.chat.completions.create(model="{model}", messages={messages}).choices[0].message.content)'
more keys: deephold key create --owner NAME; Ctrl-C stops
"#
    ));
    lines.join("\n")
}

/// Resolves with Ctrl-C or SIGTERM; a second one ends the program at once.
///
/// They are listened for from the call on, so that whoever has read that the server serves can stop it.
fn stopped() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
            // Without signals only a kill ends the server.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tell_systemd(&[NotifyState::Stopping]);
        note!("stopping: requests may end, nothing new is taken; once more to stop at once");
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(130);
        });
    }
}
