//! Loaded models and the engines on them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use deephold_engine::{Constraint, EngineCore, EngineHandle, SamplingParams, StepOutput};
use deephold_grammar::{GrammarEngine, Guide, Thinking};
use deephold_tokenizer::{ChatFormat, Dialect, Tokenizer};
use tokio::sync::Semaphore;

use crate::ServerError;
use crate::metrics::Metrics;

/// A model as the binary hands it over.
pub struct HostedModel {
    /// What requests call it.
    pub name: String,
    /// The engine on it.
    pub core: EngineCore,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// How it wants messages; none for base models.
    pub chat: Option<ChatFormat>,
    /// What its authors recommend.
    pub defaults: SamplingParams,
    /// What records and lists say of it.
    pub facts: ModelFacts,
}

/// What identifies a model and how it is computed: enough to compute an answer again.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ModelFacts {
    /// SHA-256 over its files, `sha256:…`.
    pub digest: String,
    /// SHA-256 of its chat template.
    pub template: Option<String>,
    /// As config.json names it.
    pub architecture: String,
    /// Parameters in all.
    pub parameters: u64,
    /// As the model's files state it.
    pub license: Option<String>,
    /// Instruction set.
    pub isa: String,
    /// How the cache stores entries.
    pub cache_type: String,
    /// What matrices were quantized to while loading.
    pub load_as: Option<String>,
    /// Tokens of prompt and answer together at most.
    pub context: usize,
}

/// Grammars that are compiled at the same time, for each model.
const COMPILING_MAX: usize = 2;

/// A model that answers.
pub(crate) struct Hosted {
    pub(crate) name: String,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat: Option<ChatFormat>,
    /// Made when a request first needs it: a vocabulary takes half a second.
    grammars: OnceLock<Result<GrammarEngine, String>>,
    /// Who may compile a grammar now: hostile ones take seconds, and answers need the processors too.
    pub(crate) compiling: Semaphore,
    pub(crate) defaults: SamplingParams,
    pub(crate) facts: ModelFacts,
    pub(crate) max_model_len: usize,
    /// H: the length of its vectors.
    pub(crate) hidden_size: usize,
    pub(crate) max_waiting: usize,
    pub(crate) created_s: u64,
    next_request: AtomicU64,
}

impl Hosted {
    pub(crate) fn start(
        model: HostedModel,
        metrics: &Arc<Metrics>,
        created_s: u64,
    ) -> Result<Self, ServerError> {
        let (max_model_len, max_waiting) =
            (model.core.config().max_model_len, model.core.config().max_waiting);
        let hidden_size = model.core.model().info().hidden_size;
        let seen = Arc::clone(metrics);
        let name = model.name.clone();
        let observer = Box::new(move |step: &StepOutput| seen.step(&name, step));
        let engine = EngineHandle::spawn_observed(model.core, observer)
            .map_err(|source| ServerError::Io { action: "start an engine's thread", source })?;
        let facts = ModelFacts { context: max_model_len, ..model.facts };
        Ok(Self {
            name: model.name,
            engine,
            tokenizer: Arc::new(model.tokenizer),
            chat: model.chat,
            grammars: OnceLock::new(),
            compiling: Semaphore::new(COMPILING_MAX),
            defaults: model.defaults,
            facts,
            max_model_len,
            hidden_size,
            max_waiting,
            created_s,
            next_request: AtomicU64::new(1),
        })
    }

    /// What the sampler follows for an answer of this model. Takes its time at first; not for an asynchronous task.
    ///
    /// # Errors
    /// Why the guide cannot be followed, in words for who asked.
    pub(crate) fn constraint(
        &self,
        guide: &Guide,
        thinking: Thinking,
    ) -> Result<Box<dyn Constraint>, String> {
        let grammars = self.grammars.get_or_init(|| {
            let dialect = self.chat.as_ref().map_or(Dialect::Plain, ChatFormat::tool_dialect);
            GrammarEngine::new(Arc::clone(&self.tokenizer), dialect).map_err(|e| e.to_string())
        });
        grammars.as_ref().map_err(String::clone)?.constraint(guide, thinking).map_err(|e| e.to_string())
    }

    /// A number for an engine request.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }
}
