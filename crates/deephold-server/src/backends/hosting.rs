//! Which models answer: loaded at the start, or while the server runs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use deephold_engine::{Request, SamplingParams, Shutdown};
use deephold_tokenizer::Tokenizer;
use serde_json::json;

use super::ModelFacts;
use super::encoding::{EncoderHost, HostedEncoder};
use super::engine::{Hosted, HostedModel};
use crate::ServerError;
use crate::api::error::{ApiError, ApiResult};
use crate::app::App;
use crate::metrics::Metrics;

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

/// A model that comes into the service.
pub enum NewModel {
    /// It writes text.
    Decoder(Box<HostedModel>),
    /// It gives vectors.
    Encoder(Box<HostedEncoder>),
}

impl From<HostedModel> for NewModel {
    fn from(model: HostedModel) -> Self {
        Self::Decoder(Box::new(model))
    }
}

impl From<HostedEncoder> for NewModel {
    fn from(model: HostedEncoder) -> Self {
        Self::Encoder(Box::new(model))
    }
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
    ) -> Result<NewModel, String>;
}

/// A model that has computed something: each gives vectors, a decoder from its states.
#[derive(Clone)]
pub(crate) enum ServedModel {
    Decoder(Arc<Hosted>),
    Encoder(Arc<EncoderHost>),
}

impl ServedModel {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Decoder(m) => &m.name,
            Self::Encoder(m) => &m.name,
        }
    }

    pub(crate) fn facts(&self) -> &ModelFacts {
        match self {
            Self::Decoder(m) => &m.facts,
            Self::Encoder(m) => &m.facts,
        }
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        match self {
            Self::Decoder(m) => &m.tokenizer,
            Self::Encoder(m) => &m.tokenizer,
        }
    }

    /// H.
    pub(crate) fn hidden_size(&self) -> usize {
        match self {
            Self::Decoder(m) => m.hidden_size,
            Self::Encoder(m) => m.hidden_size,
        }
    }

    /// Tokens of a text at most: an engine computes one token beyond its prompt.
    pub(crate) fn text_len_max(&self) -> usize {
        match self {
            Self::Decoder(m) => m.max_model_len - 1,
            Self::Encoder(m) => m.max_model_len,
        }
    }

    pub(crate) fn created_s(&self) -> u64 {
        match self {
            Self::Decoder(m) => m.created_s,
            Self::Encoder(m) => m.created_s,
        }
    }
}

/// All loaded models.
pub(crate) struct Models {
    served: RwLock<Vec<ServedModel>>,
    /// Other names, and the models that they stand for.
    aliases: Vec<(String, String)>,
}

impl Models {
    pub(crate) fn new(aliases: Vec<(String, String)>) -> Self {
        Self { served: RwLock::default(), aliases }
    }

    /// In the order in which they came.
    pub(crate) fn all(&self) -> Vec<ServedModel> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those that write text.
    pub(crate) fn decoders(&self) -> Vec<Arc<Hosted>> {
        let decoder = |model| match model {
            ServedModel::Decoder(model) => Some(model),
            ServedModel::Encoder(_) => None,
        };
        self.all().into_iter().filter_map(decoder).collect()
    }

    pub(crate) fn aliases(&self) -> &[(String, String)] {
        &self.aliases
    }

    pub(crate) fn add(&self, model: ServedModel) {
        self.served.write().unwrap_or_else(PoisonError::into_inner).push(model);
    }

    fn remove(&self, name: &str) -> Option<ServedModel> {
        let mut models = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let at = models.iter().position(|m| m.name() == name)?;
        Some(models.remove(at))
    }

    fn named(&self, name: &str) -> Option<ServedModel> {
        let models = self.served.read().unwrap_or_else(PoisonError::into_inner);
        models.iter().find(|m| m.name() == name).cloned()
    }

    /// By its name, else by another one.
    pub(crate) fn find(&self, name: &str) -> ApiResult<ServedModel> {
        let of_alias = || self.named(&self.aliases.iter().find(|(alias, _)| alias == name)?.1);
        self.named(name).or_else(of_alias).ok_or_else(|| {
            let name: String = name.chars().take(100).collect();
            let names: Vec<String> = self.all().iter().take(20).map(|m| m.name().to_owned()).collect();
            let message = format!("there is no model `{name}`; loaded: {}", names.join(", "));
            ApiError { code: "model_not_found", param: Some("model".into()), ..ApiError::not_found(message) }
        })
    }
}

/// Starts a model's engine and lets it compute.
///
/// # Errors
/// Its thread cannot be started, or it cannot compute.
pub(crate) fn start(
    model: NewModel,
    metrics: &Arc<Metrics>,
    created_s: u64,
) -> Result<ServedModel, ServerError> {
    match model {
        NewModel::Decoder(model) => {
            let hosted = Hosted::start(*model, metrics, created_s)?;
            warm_up(&hosted)?;
            Ok(ServedModel::Decoder(Arc::new(hosted)))
        }
        NewModel::Encoder(model) => {
            Ok(ServedModel::Encoder(Arc::new(EncoderHost::start(*model, created_s)?)))
        }
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
    if app.models.named(name).is_some() {
        return Ok(Err(format!("a model is called `{name}` already; unload it, or give another name")));
    }
    let model = match loader.load(name, path, progress) {
        Ok(model) => model,
        Err(why) => return Ok(Err(why)),
    };
    let started = start(model, &app.metrics, app.clock.unix_time().as_secs())?;
    app.log.append("model", &json!({ "event": "loaded", "model": name, "facts": started.facts() }))?;
    tracing::info!(model = name, digest = started.facts().digest, "model loaded");
    app.models.add(started);
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
    // Requests hold an encoder until they end; an engine is told to.
    if let ServedModel::Decoder(model) = &model {
        model.engine.shutdown(Shutdown::Drain(app.limits.drain_time));
    }
    app.metrics.forget(name);
    tracing::info!(model = name, "model unloaded");
    app.log.append("model", &json!({ "event": "unloaded", "model": name, "facts": model.facts() }))?;
    Ok(Ok(()))
}

/// One token.
///
/// # Errors
/// The model cannot compute.
fn warm_up(model: &Hosted) -> Result<(), ServerError> {
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
    Ok(())
}
