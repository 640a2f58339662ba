//! Encoders: models that give vectors and write no text.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use deephold_base::TokenId;
use deephold_engine::{Machine, MemoryLease};
use deephold_models::Encoder;
use deephold_tokenizer::Tokenizer;
use tokio::sync::Semaphore;

use super::ModelFacts;
use crate::ServerError;
use crate::api::error::{ApiError, ApiResult};

/// Tokens that are encoded at once: enough to fill the kernels, few enough that engines on the same machine soon have it again.
const BATCH_TOKENS: usize = 1024;
/// Requests that wait for one encoder at most.
const WAITING_MAX: usize = 256;

/// An encoder as the binary hands it over.
pub struct HostedEncoder {
    /// What requests call it.
    pub name: String,
    /// The model.
    pub encoder: Arc<dyn Encoder>,
    /// Whose thread pool it computes on, in turn with the engines.
    pub machine: Arc<Machine>,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// What records and lists say of it.
    pub facts: ModelFacts,
    /// The weights' part of the machine's memory.
    pub memory: MemoryLease,
}

/// An encoder that answers.
pub(crate) struct EncoderHost {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) facts: ModelFacts,
    /// Tokens of a text at most.
    pub(crate) max_model_len: usize,
    /// H: the length of its vectors.
    pub(crate) hidden_size: usize,
    pub(crate) created_s: u64,
    encoder: Arc<dyn Encoder>,
    machine: Arc<Machine>,
    /// Who encodes a batch now; requests take it in turn, batch by batch.
    turn: Semaphore,
    waiting: AtomicUsize,
    _memory: MemoryLease,
}

/// Counts a request while it waits and computes.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl EncoderHost {
    /// Encodes one token, so that a model that cannot compute is found now.
    pub(crate) fn start(model: HostedEncoder, created_s: u64) -> Result<Self, ServerError> {
        let info = model.encoder.info();
        let (max_model_len, hidden_size) = (info.max_model_len, info.hidden_size);
        let first = {
            let _permit = model.machine.arbiter().acquire();
            model.encoder.encode(model.machine.ops(), &[&[0]])
        };
        first.map_err(|e| ServerError::Io {
            action: "compute a first vector",
            source: std::io::Error::other(e),
        })?;
        Ok(Self {
            name: model.name,
            tokenizer: model.tokenizer,
            facts: ModelFacts { context: max_model_len, ..model.facts },
            max_model_len,
            hidden_size,
            created_s,
            encoder: model.encoder,
            machine: model.machine,
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            _memory: model.memory,
        })
    }

    /// Requests that wait or compute.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// A vector for each prompt, in their order.
    ///
    /// # Errors
    /// A prompt that is too long, a full queue, a time that is up.
    pub(crate) async fn encode(
        self: &Arc<Self>,
        prompts: &[Vec<TokenId>],
        timeout: Duration,
    ) -> ApiResult<Vec<Vec<f32>>> {
        let limit = self.max_model_len;
        if let Some(prompt) = prompts.iter().find(|p| p.len() > limit) {
            let message =
                format!("a text of {} tokens is beyond the {limit} that `{}` takes", prompt.len(), self.name);
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message));
        }
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&self.waiting);
        if before >= WAITING_MAX {
            let message = format!("{before} requests wait for `{}` already", self.name);
            return Err(ApiError::unavailable("queue_full", message));
        }
        tokio::time::timeout(timeout, self.batches(prompts)).await.unwrap_or_else(|_| {
            let message = "the time for this request was up";
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
        })
    }

    async fn batches(self: &Arc<Self>, prompts: &[Vec<TokenId>]) -> ApiResult<Vec<Vec<f32>>> {
        let closed = || ApiError::internal("the encoder failed; the server's log says why");
        let mut vectors = Vec::with_capacity(prompts.len());
        while vectors.len() < prompts.len() {
            let mut tokens = 0;
            let rest = prompts[vectors.len()..].iter();
            let batch = rest.take_while(|p| {
                let fits = tokens == 0 || tokens + p.len() <= BATCH_TOKENS;
                tokens += p.len();
                fits
            });
            let batch: Vec<Vec<TokenId>> = batch.cloned().collect();
            let _turn = self.turn.acquire().await.map_err(|_| closed())?;
            let host = Arc::clone(self);
            let encoded = tokio::task::spawn_blocking(move || {
                let texts: Vec<&[TokenId]> = batch.iter().map(Vec::as_slice).collect();
                let _permit = host.machine.arbiter().acquire();
                host.encoder.encode(host.machine.ops(), &texts)
            });
            match encoded.await {
                Ok(Ok(more)) => vectors.extend(more),
                Ok(Err(e)) => return Err(ApiError::bad_request(e.to_string())),
                Err(error) => {
                    tracing::error!(model = self.name, %error, "an encoder failed");
                    return Err(closed());
                }
            }
        }
        Ok(vectors)
    }
}
