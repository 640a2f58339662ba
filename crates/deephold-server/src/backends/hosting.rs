//! Which models answer: loaded at the start, or while the server runs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use deephold_engine::{Request, SamplingParams, Shutdown};
use serde_json::json;

use super::engine::{Hosted, HostedModel};
use crate::ServerError;
use crate::api::error::{ApiError, ApiResult};
use crate::app::App;

/// How far a model's loading has come.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadProgress {
    /// What is being done.
    pub phase: String,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all; 0 while that is not known.
    pub total: u64,
}

/// Makes models out of files; the binary's, which knows formats and memory.
pub trait ModelLoader: Send + Sync {
    /// Loads what lies at `path` as `name`, within the machine's memory.
    ///
    /// # Errors
    /// Why it cannot be, in words for who asked.
    fn load(
        &self,
        name: &str,
        path: &str,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<HostedModel, String>;
}

/// All loaded models.
pub(crate) struct Models {
    hosted: RwLock<Vec<Arc<Hosted>>>,
    /// Other names, and the models that they stand for.
    aliases: Vec<(String, String)>,
}

impl Models {
    pub(crate) fn new(models: Vec<Hosted>, aliases: Vec<(String, String)>) -> Self {
        Self { hosted: RwLock::new(models.into_iter().map(Arc::new).collect()), aliases }
    }

    pub(crate) fn aliases(&self) -> &[(String, String)] {
        &self.aliases
    }

    pub(crate) fn all(&self) -> Vec<Arc<Hosted>> {
        self.hosted.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Hosted>> {
        self.hosted.read().unwrap_or_else(PoisonError::into_inner).iter().find(|m| m.name == name).cloned()
    }

    fn add(&self, model: Hosted) {
        self.hosted.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(model));
    }

    fn remove(&self, name: &str) -> Option<Arc<Hosted>> {
        let mut models = self.hosted.write().unwrap_or_else(PoisonError::into_inner);
        let at = models.iter().position(|m| m.name == name)?;
        Some(models.remove(at))
    }

    /// By its name, else by another one.
    pub(crate) fn find(&self, name: &str) -> ApiResult<Arc<Hosted>> {
        let of_alias = || self.get(&self.aliases.iter().find(|(alias, _)| alias == name)?.1);
        self.get(name).or_else(of_alias).ok_or_else(|| {
            let name: String = name.chars().take(100).collect();
            let names: Vec<String> = self.all().iter().take(20).map(|m| m.name.clone()).collect();
            let message = format!("there is no model `{name}`; loaded: {}", names.join(", "));
            ApiError { code: "model_not_found", param: Some("model".into()), ..ApiError::not_found(message) }
        })
    }
}

/// Loads a model beside the others, one at a time; it answers once it has computed a token and the audit log has a record of it.
///
/// # Errors
/// The log's; everything else is a refusal in words.
pub(crate) fn load(
    app: &App,
    name: &str,
    path: &str,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Result<(), String>, ServerError> {
    let Some(loader) = &app.limits.loader else { return Ok(Err("this server loads no models".into())) };
    let _one = app.loading.lock().unwrap_or_else(PoisonError::into_inner);
    if app.is_draining.load(Ordering::SeqCst) {
        return Ok(Err("the server is shutting down".into()));
    }
    if app.models.get(name).is_some() {
        return Ok(Err(format!("a model is called `{name}` already; unload it, or give another name")));
    }
    let model = match loader.load(name, path, progress) {
        Ok(model) => model,
        Err(why) => return Ok(Err(why)),
    };
    let hosted = Hosted::start(model, &app.metrics, app.clock.unix_time().as_secs())?;
    warm_up(&hosted)?;
    app.log.append("model", &json!({ "event": "loaded", "model": name, "facts": hosted.facts }))?;
    tracing::info!(model = name, digest = hosted.facts.digest, "model loaded");
    app.models.add(hosted);
    Ok(Ok(()))
}

/// Takes a model away: nothing new reaches it, what runs may end within the drain's time, then its memory is free.
///
/// # Errors
/// The log's. The model is gone all the same.
pub(crate) fn unload(app: &App, name: &str) -> Result<Result<(), String>, ServerError> {
    let _one = app.loading.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(model) = app.models.remove(name) else {
        return Ok(Err(format!("there is no model `{}`", name.chars().take(100).collect::<String>())));
    };
    model.engine.shutdown(Shutdown::Drain(app.limits.drain_time));
    app.metrics.forget(name);
    tracing::info!(model = name, "model unloaded");
    app.log.append("model", &json!({ "event": "unloaded", "model": name, "facts": model.facts }))?;
    Ok(Ok(()))
}

/// One token.
///
/// # Errors
/// The model cannot compute.
pub(crate) fn warm_up(model: &Hosted) -> Result<(), ServerError> {
    let failed = |what: String| ServerError::Io {
        action: "compute a first token",
        source: std::io::Error::other(what),
    };
    let params = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
    let mut stream =
        model.engine.submit(Request::new(0, vec![0], params)).map_err(|e| failed(e.to_string()))?;
    let output = stream.next_output().ok_or_else(|| failed("the engine ended".into()))?;
    if let Some(message) = output.message {
        return Err(failed(message));
    }
    model.is_warm.store(true, Ordering::SeqCst);
    Ok(())
}
