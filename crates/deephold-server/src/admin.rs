//! Acts of administration: the same code and the same audit record, whether a command reaches a running server over its socket in the
//! state folder (mode 0600: whoever may open it owns the state) or opens the state itself.
//!
//! Over the socket a request is one line of JSON, and so is its answer.

use std::io::BufWriter;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deephold_audit::{AuditLog, create_private_file};
use deephold_state::{
    ApiKey, Contents, Limits, Project, StateError, Store, Tenant, UsageFilter, UsageRow, write_backup,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::ServerError;
use crate::access::{IssuedKey, KeyWish, issue_key, lies_below};
use crate::app::App;
use crate::backends::{self, LoadProgress, ModelFacts, ServedModel};

/// The longest line.
const LINE_MAX: u64 = 64 << 10;
/// Shares of the machine that a tenant may have.
const WEIGHTS: RangeInclusive<f64> = 0.01..=100.0;
/// How often a caller hears that its work goes on.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// A caller that says nothing for so long is cut off.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Makes a key; its tenant and project too, with no limits, where they are not there.
    CreateKey(KeyWish),
    /// Makes a tenant, or changes it.
    SetTenant {
        /// Which.
        name: String,
        /// Its share of the machine; as it was, or 1, where none is given.
        #[serde(default)]
        weight: Option<f64>,
        /// Limits by name: a number sets one, null takes it away, others stay.
        #[serde(default)]
        limits: Map<String, Value>,
    },
    /// Makes a project, or changes it.
    SetProject {
        /// Whose; it must be there.
        tenant: String,
        /// Which.
        name: String,
        /// As for tenants.
        #[serde(default)]
        limits: Map<String, Value>,
    },
    /// All tenants and projects.
    ListTenants,
    /// What was used.
    Usage(UsageFilter),
    /// Writes a backup of the state.
    BackUp {
        /// A file that is not there yet.
        path: PathBuf,
    },
    /// Makes a key like another one, which is revoked.
    RotateKey {
        /// The other one.
        id: String,
    },
    /// Ends a key at once.
    RevokeKey {
        /// Which.
        id: String,
    },
    /// All keys.
    ListKeys,
    /// Loads a model into a running server.
    LoadModel {
        /// What requests call it.
        name: String,
        /// Where it lies, as the server sees it.
        path: String,
    },
    /// Takes one away.
    UnloadModel {
        /// Which.
        name: String,
    },
    /// All loaded models.
    ListModels,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminAnswer {
    /// A new key, and its secret, which is shown this once.
    Issued {
        /// As it is stored.
        key: Box<ApiKey>,
        /// What its holder sends.
        secret: String,
    },
    /// Done.
    Revoked,
    /// The keys.
    Keys(Vec<ApiKey>),
    /// It holds from now on.
    Changed,
    /// The tenants and their projects.
    Tenants {
        /// By name.
        tenants: Vec<Tenant>,
        /// By tenant and name.
        projects: Vec<Project>,
    },
    /// What was used, by day, tenant, project, key and model.
    Usage(Vec<UsageRow>),
    /// What a backup holds.
    BackedUp(Contents),
    /// A model is loaded, or gone.
    ModelChanged,
    /// The loaded models.
    Models(Vec<LoadedModel>),
    /// Work goes on; the answer comes later.
    Progress(LoadProgress),
    /// Not done, and why.
    Refused(String),
}

/// A model that answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadedModel {
    /// What requests call it.
    pub name: String,
    /// What it is.
    pub facts: ModelFacts,
    /// Sequences that compute now.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Bytes of its cache.
    pub cache_bytes: usize,
}

/// Does what is asked, and records it before it is said to be done.
///
/// # Errors
/// The store's and the log's.
pub fn execute(
    request: &AdminRequest,
    store: &dyn Store,
    log: &AuditLog,
    now_ms: i64,
) -> Result<AdminAnswer, ServerError> {
    let issued = |wish: &KeyWish, instead_of: Option<&str>| -> Result<AdminAnswer, ServerError> {
        let IssuedKey { key, secret } = issue_key(store, wish, now_ms)?;
        log.append("key", &json!({ "event": "created", "key": key, "instead_of": instead_of }))?;
        Ok(AdminAnswer::Issued { key: Box::new(key), secret })
    };
    match request {
        AdminRequest::CreateKey(wish) => {
            let names = wish.tenant.iter().chain(&wish.project).chain(&wish.models).chain([&wish.owner]);
            if let Some(bad) = names.into_iter().find(|n| !is_name(n)) {
                return Ok(no_name(bad));
            }
            if let Some(path) =
                wish.endpoints.iter().find(|e| !crate::routes().any(|r| lies_below(r.path, e)))
            {
                let shown: String = path.escape_debug().take(60).collect();
                return Ok(AdminAnswer::Refused(format!(
                    "nothing can be asked at `{shown}`; give a path of the API, as /v1/chat/completions or /v1"
                )));
            }
            if wish.limits.queued.is_some() {
                return Ok(queued_is_tenants());
            }
            let given = json!(wish.limits).as_object().cloned().unwrap_or_default();
            if let Err(why) = changed(&Limits::default(), &given) {
                return Ok(AdminAnswer::Refused(why));
            }
            if wish.expires_ms.is_some_and(|at| at < 0) {
                return Ok(AdminAnswer::Refused(
                    "the time at which a key ends must not be before 1970".into(),
                ));
            }
            issued(wish, None)
        }
        AdminRequest::SetTenant { name, weight, limits } => {
            set_tenant(name, *weight, limits, store, log, now_ms)
        }
        AdminRequest::SetProject { tenant, name, limits } => {
            if let Some(bad) = [tenant, name].into_iter().find(|n| !is_name(n)) {
                return Ok(no_name(bad));
            }
            if store.tenant(tenant)?.is_none() {
                let shown: String = tenant.escape_debug().take(60).collect();
                return Ok(AdminAnswer::Refused(format!(
                    "there is no tenant `{shown}`; `deephold tenant set` makes one"
                )));
            }
            if limits.get("queued").is_some_and(|v| !v.is_null()) {
                return Ok(queued_is_tenants());
            }
            let old = store.projects()?.into_iter().find(|p| p.tenant == *tenant && p.name == *name);
            let old = old.map_or_else(Limits::default, |p| p.limits);
            let limits = match changed(&old, limits) {
                Ok(limits) => limits,
                Err(why) => return Ok(AdminAnswer::Refused(why)),
            };
            let project = Project { tenant: tenant.clone(), name: name.clone(), limits, created_ms: now_ms };
            store.put_project(&project)?;
            log.append("tenant", &json!({ "event": "project set", "project": project }))?;
            Ok(AdminAnswer::Changed)
        }
        AdminRequest::ListTenants => {
            Ok(AdminAnswer::Tenants { tenants: store.tenants()?, projects: store.projects()? })
        }
        AdminRequest::Usage(filter) => Ok(AdminAnswer::Usage(store.usage(filter)?)),
        AdminRequest::BackUp { path } => {
            let mut file = match create_private_file(path) {
                Ok(file) => BufWriter::new(file),
                Err(e) => return Ok(AdminAnswer::Refused(format!("{} cannot be made: {e}", path.display()))),
            };
            let written = write_backup(store, env!("CARGO_PKG_VERSION"), now_ms, &mut file);
            let synced = written.and_then(|contents| {
                file.get_ref()
                    .sync_all()
                    .map_err(|source| StateError::Io { action: "write a backup of", source })?;
                Ok(contents)
            });
            match synced {
                Ok(contents) => {
                    log.append("state", &json!({ "event": "backed up", "contents": contents }))?;
                    Ok(AdminAnswer::BackedUp(contents))
                }
                Err(e) => {
                    // Half a backup is none.
                    let _ = std::fs::remove_file(path);
                    Err(e.into())
                }
            }
        }
        AdminRequest::RotateKey { id } => match store.key_by_id(id)? {
            Some(old) if old.is_valid(now_ms) => {
                let wish = KeyWish {
                    tenant: Some(old.tenant),
                    project: Some(old.project),
                    owner: old.owner,
                    role: old.role,
                    models: old.models,
                    endpoints: old.endpoints,
                    limits: old.limits,
                    expires_ms: old.expires_ms,
                };
                let answer = issued(&wish, Some(id))?;
                revoke(id, store, log, now_ms)?;
                Ok(answer)
            }
            Some(_) => Ok(AdminAnswer::Refused(format!("the key {id} holds no more; create a new one"))),
            None => Ok(no_such_key(id)),
        },
        AdminRequest::RevokeKey { id } => match revoke(id, store, log, now_ms)? {
            true => Ok(AdminAnswer::Revoked),
            false => Ok(no_such_key(id)),
        },
        AdminRequest::ListKeys => Ok(AdminAnswer::Keys(store.keys()?)),
        AdminRequest::LoadModel { .. } | AdminRequest::UnloadModel { .. } | AdminRequest::ListModels => {
            Ok(AdminAnswer::Refused("no server runs on this state; `deephold serve` starts one".into()))
        }
    }
}

fn set_tenant(
    name: &str,
    weight: Option<f64>,
    limits: &Map<String, Value>,
    store: &dyn Store,
    log: &AuditLog,
    now_ms: i64,
) -> Result<AdminAnswer, ServerError> {
    if !is_name(name) {
        return Ok(no_name(name));
    }
    let old = store.tenant(name)?;
    let weight = weight.or(old.as_ref().map(|t| t.weight)).unwrap_or(1.0);
    if !WEIGHTS.contains(&weight) {
        let (low, high) = (WEIGHTS.start(), WEIGHTS.end());
        return Ok(AdminAnswer::Refused(format!("the weight {weight} must be from {low} to {high}")));
    }
    let limits = match changed(&old.map_or_else(Limits::default, |t| t.limits), limits) {
        Ok(limits) => limits,
        Err(why) => return Ok(AdminAnswer::Refused(why)),
    };
    if limits.queued == Some(0) {
        let why = "nothing could be answered with no place to wait; `queued` must be at least 1".into();
        return Ok(AdminAnswer::Refused(why));
    }
    let tenant = Tenant { name: name.to_owned(), weight, limits, created_ms: now_ms };
    store.put_tenant(&tenant)?;
    log.append("tenant", &json!({ "event": "set", "tenant": tenant }))?;
    Ok(AdminAnswer::Changed)
}

/// Limits with what is named set, or taken away by null.
fn changed(old: &Limits, changes: &Map<String, Value>) -> Result<Limits, String> {
    let mut all = json!(old);
    for (name, value) in changes {
        match value {
            Value::Null => drop(all.as_object_mut().and_then(|map| map.remove(name))),
            Value::Number(n) if n.as_i64().is_some_and(|n| n >= 0) => all[name] = value.clone(),
            _ => return Err(format!("the limit `{name}` must be a whole number from 0, or null for none")),
        }
    }
    serde_json::from_value(all).map_err(|e| format!("the limits cannot be: {e}"))
}

fn queued_is_tenants() -> AdminAnswer {
    AdminAnswer::Refused("`queued` is a limit of tenants: their answers wait for a model together".into())
}

fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= 200 && !name.contains(char::is_control)
}

fn no_name(name: &str) -> AdminAnswer {
    let shown: String = name.escape_debug().take(60).collect();
    AdminAnswer::Refused(format!("`{shown}` is no name: 1 to 200 bytes without control characters"))
}

fn no_such_key(id: &str) -> AdminAnswer {
    let shown: String = id.escape_debug().take(60).collect();
    AdminAnswer::Refused(format!("there is no valid key {shown}; `deephold key list` shows what there is"))
}

fn revoke(id: &str, store: &dyn Store, log: &AuditLog, now_ms: i64) -> Result<bool, ServerError> {
    // First the act, then its record: a key whose revocation could not be recorded is revoked all the same.
    let revoked = store.revoke_key(id, now_ms)?;
    if revoked {
        log.append("key", &json!({ "event": "revoked", "key": id }))?;
    }
    Ok(revoked)
}

/// Asks the server that listens at `socket`; `None` where none does.
///
/// # Errors
/// A server that breaks off.
pub fn ask_server(
    socket: &Path,
    request: &AdminRequest,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Option<AdminAnswer>, ServerError> {
    use std::io::{BufRead, Read, Write};
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else { return Ok(None) };
    let io = |source| ServerError::Io { action: "ask the running server", source };
    let mut line = serde_json::to_string(request).map_err(|e| io(e.into()))?;
    line.push('\n');
    stream.set_read_timeout(Some(4 * PATIENCE)).map_err(io)?;
    stream.write_all(line.as_bytes()).map_err(io)?;
    let mut lines = std::io::BufReader::new(stream);
    loop {
        let mut answer = String::new();
        lines.by_ref().take(1 << 24).read_line(&mut answer).map_err(io)?;
        match serde_json::from_str(&answer).map_err(|e| io(e.into()))? {
            AdminAnswer::Progress(step) => progress(step),
            answer => return Ok(Some(answer)),
        }
    }
}

/// Listens at `socket`, readable by its owner alone.
///
/// # Errors
/// The system's.
pub(crate) fn listen(socket: &Path) -> Result<tokio::net::UnixListener, ServerError> {
    // What an ended server left; a running one holds the audit log, so there is none.
    let _ = std::fs::remove_file(socket);
    let io = |source| ServerError::Io { action: "make the socket in the state folder", source };
    let listener = tokio::net::UnixListener::bind(socket).map_err(io)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(socket, mode).map_err(io)?;
    Ok(listener)
}

/// Answers callers until it is dropped.
pub(crate) async fn serve(listener: tokio::net::UnixListener, app: Arc<App>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::spawn(answer(stream, Arc::clone(&app)));
    }
}

/// One caller: its line, then lines of progress as long as the work takes, then the answer.
async fn answer(stream: tokio::net::UnixStream, app: Arc<App>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LINE_MAX));
    if !matches!(tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await, Ok(Ok(1..))) {
        return;
    }
    let (report, progress) = tokio::sync::watch::channel(None);
    let mut done = tokio::task::spawn_blocking(move || {
        let request = serde_json::from_str::<AdminRequest>(&line);
        request.map_or_else(
            |e| AdminAnswer::Refused(format!("the request is malformed: {e}")),
            |request| {
                let answer = perform(&app, &request, &mut |step| _ = report.send(Some(step)));
                answer.unwrap_or_else(|e| AdminAnswer::Refused(e.to_string()))
            },
        )
    });
    // Also what takes long without a sign of progress shows that it lives.
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let answer = loop {
        tokio::select! {
            answer = &mut done => break answer,
            _ = ticks.tick() => {
                let step = progress.borrow().clone();
                // A caller that has gone does not stop the work: it would be half done.
                if let Some(step) = step {
                    send(&mut write, &AdminAnswer::Progress(step)).await;
                }
            }
        }
    };
    send(&mut write, &answer.unwrap_or_else(|_| AdminAnswer::Refused("the server failed".into()))).await;
}

async fn send(write: &mut tokio::net::unix::OwnedWriteHalf, answer: &AdminAnswer) {
    let mut text = serde_json::to_string(answer).unwrap_or_default();
    text.push('\n');
    let _ = write.write_all(text.as_bytes()).await;
}

/// Does what only a running server can do; for everything else the same as without one.
fn perform(
    app: &App,
    request: &AdminRequest,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<AdminAnswer, ServerError> {
    let changed =
        |result: Result<(), String>| result.map_or_else(AdminAnswer::Refused, |()| AdminAnswer::ModelChanged);
    match request {
        AdminRequest::LoadModel { name, .. } if !is_name(name) => Ok(no_name(name)),
        AdminRequest::LoadModel { name, path } => backends::load(app, name, path, progress).map(changed),
        AdminRequest::UnloadModel { name } => {
            progress(LoadProgress { phase: "draining".into(), done: 0, total: 0 });
            backends::unload(app, name).map(changed)
        }
        AdminRequest::ListModels => {
            let one = |m: &ServedModel| {
                let (running, waiting, cache_bytes) = match m {
                    ServedModel::Decoder(m) => {
                        let stats = m.engine.stats();
                        (stats.running, stats.waiting, stats.cache_bytes)
                    }
                    ServedModel::Encoder(m) => (0, m.waiting(), 0),
                };
                let (name, facts) = (m.name().to_owned(), m.facts().clone());
                LoadedModel { name, facts, running, waiting, cache_bytes }
            };
            Ok(AdminAnswer::Models(app.models.all().iter().map(one).collect()))
        }
        other => execute(other, &*app.store, &app.log, app.unix_ms()),
    }
}
