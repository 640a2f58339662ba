//! Loaded models and the engines on them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use deephold_engine::{EngineCore, EngineHandle, SamplingParams};
use deephold_grammar::GrammarEngine;
use deephold_tokenizer::{ChatFormat, Dialect, Tokenizer};

use crate::ServerError;
use crate::error::{ApiError, ApiResult};
use crate::metrics::ModelMetrics;

/// A model as whoever loaded it hands it over.
pub struct LoadedModel {
    /// The engine on it.
    pub core: EngineCore,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// How it wants messages; none for base models.
    pub chat: Option<ChatFormat>,
    /// What its authors recommend.
    pub defaults: SamplingParams,
    /// SHA-256 over its tensors and configuration, as `sha256:…`.
    pub digest: String,
    /// Parameters.
    pub parameters: u64,
}

/// Loads a model from a place that only the binary understands.
pub type Loader = Arc<dyn Fn(&str) -> Result<LoadedModel, String> + Send + Sync>;

/// A model that answers.
pub(crate) struct Hosted {
    pub(crate) id: String,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat: Option<ChatFormat>,
    pub(crate) dialect: Dialect,
    pub(crate) defaults: SamplingParams,
    pub(crate) digest: String,
    pub(crate) architecture: String,
    pub(crate) parameters: u64,
    pub(crate) packed_bytes: u64,
    pub(crate) max_model_len: usize,
    pub(crate) max_waiting: usize,
    pub(crate) vocab_size: usize,
    pub(crate) created: u64,
    /// A real forward pass has been done.
    pub(crate) warm: AtomicBool,
    pub(crate) metrics: Arc<ModelMetrics>,
    /// Made when the first request needs it.
    grammar: OnceLock<Result<Arc<GrammarEngine>, String>>,
}

impl Hosted {
    pub(crate) fn new(
        id: String,
        loaded: LoadedModel,
        created: u64,
        metrics: Arc<ModelMetrics>,
    ) -> Result<Self, ServerError> {
        let info = loaded.core.model().info();
        let (architecture, packed_bytes, vocab_size) =
            (info.architecture.clone(), info.packed_bytes, info.vocab_size);
        let (max_model_len, max_waiting) = (loaded.core.config().max_model_len, loaded.core.config().max_waiting);
        let observer = {
            let metrics = Arc::clone(&metrics);
            Box::new(move |step: &deephold_engine::StepOutput| metrics.step(step))
        };
        let engine = EngineHandle::spawn_observed(loaded.core, observer)
            .map_err(|e| ServerError::State(format!("cannot start the engine's thread: {e}")))?;
        let dialect = loaded.chat.as_ref().map_or(Dialect::Plain, Dialect::of);
        Ok(Self {
            id,
            engine,
            tokenizer: Arc::new(loaded.tokenizer),
            chat: loaded.chat,
            dialect,
            defaults: loaded.defaults,
            digest: loaded.digest,
            architecture,
            parameters: loaded.parameters,
            packed_bytes,
            max_model_len,
            max_waiting,
            vocab_size,
            created,
            warm: AtomicBool::new(false),
            metrics,
            grammar: OnceLock::new(),
        })
    }

    pub(crate) fn grammar(&self) -> ApiResult<Arc<GrammarEngine>> {
        let made = self.grammar.get_or_init(|| {
            let made = GrammarEngine::new(Arc::clone(&self.tokenizer), self.dialect);
            made.map(Arc::new).map_err(|e| e.to_string())
        });
        made.clone().map_err(|e| ApiError::unsupported("response_format", e))
    }
}

/// All loaded models; the first is the default.
pub(crate) struct Models {
    loaded: RwLock<Vec<Arc<Hosted>>>,
    /// Folder that the admin API may load from.
    pub(crate) folder: Option<PathBuf>,
    next_request: AtomicU64,
}

impl Models {
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        Self { loaded: RwLock::default(), folder, next_request: AtomicU64::new(1) }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Hosted>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a model; one of the same name is replaced and ends after the requests in it.
    pub(crate) fn put(&self, model: Arc<Hosted>) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        match loaded.iter_mut().find(|m| m.id == model.id) {
            Some(place) => *place = model,
            None => loaded.push(model),
        }
    }

    /// Takes a model out; its engine ends after the requests in it.
    pub(crate) fn remove(&self, id: &str) -> bool {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let before = loaded.len();
        loaded.retain(|m| m.id != id);
        loaded.len() < before
    }

    /// By name; without one the default.
    pub(crate) fn find(&self, id: Option<&str>) -> ApiResult<Arc<Hosted>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let found = match id {
            None => loaded.first(),
            Some(id) => loaded.iter().find(|m| m.id == id),
        };
        found.cloned().ok_or_else(|| {
            let message = match id {
                Some(id) => {
                    let id: String = id.chars().take(100).collect();
                    let names: Vec<&str> = loaded.iter().take(20).map(|m| m.id.as_str()).collect();
                    format!("there is no model `{id}`; loaded: {}", names.join(", "))
                }
                None => "no model is loaded".to_owned(),
            };
            ApiError { code: "model_not_found", param: Some("model".into()), ..ApiError::not_found(message) }
        })
    }

    /// A number for an engine request.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }
}
