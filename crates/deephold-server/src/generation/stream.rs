//! From the engine's token ids to text as it becomes certain.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deephold_base::TokenId;
use deephold_engine::{
    Delivery, FinishReason, Request, RequestId, RequestOutput, SampledToken, SamplingParams,
};
use deephold_tokenizer::{Detokenizer, ReasoningSplitter, Segment, StopMatcher};
use tokio::sync::{mpsc, oneshot};

use super::{Usage, ValidRequest};
use crate::api::error::{ApiError, ApiResult};
use crate::backends::Hosted;

/// Outputs that may lie unread before the request is paused.
const UNREAD_MAX: usize = 256;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    Length,
    /// Its time was up.
    Timeout,
    /// Its reader was too slow.
    SlowReader,
    /// The server shuts down.
    Aborted,
}

/// A token that belongs to the text, with its probabilities where they were asked for.
#[derive(Clone, Debug)]
pub(crate) struct TokenDelta {
    pub(crate) token: SampledToken,
    /// Part of the thinking.
    pub(crate) is_reasoning: bool,
}

/// What became certain of one answer.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Which of the `n`.
    pub(crate) index: usize,
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) tokens: Vec<TokenDelta>,
    /// All new ids, the end's included.
    pub(crate) ids: Vec<TokenId>,
    pub(crate) end: Option<End>,
}

struct Sequence {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// None for plain completions.
    splitter: Option<ReasoningSplitter>,
    is_open: bool,
}

/// A request in the engine. Dropping it ends its work by the end of the running step.
pub(crate) struct Generation {
    model: Arc<Hosted>,
    id: RequestId,
    outputs: mpsc::UnboundedReceiver<RequestOutput>,
    unread: Arc<AtomicUsize>,
    sequences: Vec<Sequence>,
    pub(crate) usage: Usage,
    pub(crate) started: Instant,
    pub(crate) first_token: Option<Duration>,
    pub(crate) queue_time: Duration,
}

impl Generation {
    /// Gives the request to the engine and waits until it is accepted.
    pub(crate) async fn start(request: &ValidRequest, tenant: Arc<str>) -> ApiResult<Self> {
        let model = Arc::clone(&request.model);
        let id = model.next_id();
        let mut engine_request = Request::new(id, request.prompt.clone(), request.params.clone());
        engine_request.tenant = tenant;
        engine_request.deadline = Some(model.engine.now().saturating_add(request.timeout));
        // Bounded by pausing: the sink says so when too many lie unread, and one step adds `n` at most.
        let (sender, outputs) = mpsc::unbounded_channel();
        let unread = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&unread);
        let sink = Box::new(move |output: RequestOutput| {
            let lying = counted.fetch_add(1, Ordering::SeqCst) + 1;
            match sender.send(output) {
                Err(_) => Delivery::Closed,
                Ok(()) if lying >= UNREAD_MAX => Delivery::Pause,
                Ok(()) => Delivery::Ready,
            }
        });
        let (answer, accepted) = oneshot::channel();
        model.engine.submit_with(engine_request, sink, Box::new(move |result| _ = answer.send(result)))?;
        let sequences = (0..request.params.n).map(|_| Sequence::new(request)).collect();
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        let (started, id) = (Instant::now(), RequestId(id));
        let generation = Self {
            model,
            id,
            outputs,
            unread,
            sequences,
            usage,
            started,
            first_token: None,
            queue_time: Duration::ZERO,
        };
        accepted.await.map_err(|_| ApiError::from(deephold_engine::EngineError::Stopped))??;
        Ok(generation)
    }

    /// What becomes certain next; `None` after every answer has ended.
    pub(crate) async fn next(&mut self) -> Option<ApiResult<Delta>> {
        while self.sequences.iter().any(|s| s.is_open) {
            let Some(output) = self.outputs.recv().await else {
                return Some(Err(ApiError::internal(
                    "the engine ended without a word; the server's log says why",
                )));
            };
            let before = self.unread.fetch_sub(1, Ordering::SeqCst);
            // Half the bound read: the engine may go on, if it was paused.
            if before == UNREAD_MAX / 2 {
                self.model.engine.resume(self.id);
            }
            match self.take(output) {
                Ok(Some(delta)) => return Some(Ok(delta)),
                Ok(None) => {}
                Err(e) => return Some(Err(e)),
            }
        }
        None
    }

    fn take(&mut self, output: RequestOutput) -> ApiResult<Option<Delta>> {
        if output.finish_reason == Some(FinishReason::Error) {
            let message = output.message.unwrap_or_else(|| "the engine failed".to_owned());
            return Err(ApiError::internal(message));
        }
        let index = output.seq_idx;
        // An answer that ended at a stop string may still get tokens that were on their way.
        let Some(sequence) = self.sequences.get_mut(index).filter(|s| s.is_open) else { return Ok(None) };
        if index == 0 {
            (self.usage.cached_tokens, self.queue_time) = (output.cached_tokens, output.queue_time);
        }
        if !output.tokens.is_empty() && self.first_token.is_none() {
            self.first_token = Some(self.started.elapsed());
        }
        let mut delta = Delta { index, ..Delta::default() };
        let stopped = output.finish_reason == Some(FinishReason::Stop);
        let count = output.tokens.len();
        for (i, token) in output.tokens.into_iter().enumerate() {
            self.usage.completion_tokens += 1;
            delta.ids.push(token.id);
            // The token that ends an answer is no part of its text.
            if stopped && i + 1 == count {
                break;
            }
            let is_reasoning = sequence.splitter.as_ref().is_some_and(ReasoningSplitter::is_reasoning);
            self.usage.reasoning_tokens += usize::from(is_reasoning);
            let text = sequence.detokenizer.push(&self.model.tokenizer, token.id);
            delta.tokens.push(TokenDelta { token, is_reasoning });
            if sequence.read(&text, &mut delta) {
                sequence.is_open = false;
                sequence.finish_text(&mut delta);
                delta.end = Some(End::Stop);
                // Other answers of the request go on; this one's tokens are no longer read.
                if self.sequences.iter().all(|s| !s.is_open) {
                    self.model.engine.abort(self.id);
                }
                return Ok(Some(delta));
            }
        }
        if let Some(reason) = output.finish_reason {
            sequence.is_open = false;
            let text = sequence.detokenizer.finish();
            let stop_string = sequence.read(&text, &mut delta);
            if !stop_string {
                let held = sequence.stops.finish();
                sequence.split(&held, &mut delta);
            }
            sequence.finish_text(&mut delta);
            delta.end = Some(match reason {
                _ if stop_string => End::Stop,
                FinishReason::Length => End::Length,
                FinishReason::Deadline => End::Timeout,
                FinishReason::SlowReader => End::SlowReader,
                FinishReason::Abort => End::Aborted,
                FinishReason::Stop | FinishReason::Error => End::Stop,
            });
        }
        Ok(Some(delta))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.sequences.iter().any(|s| s.is_open) {
            self.model.engine.abort(self.id);
        }
    }
}

impl Sequence {
    fn new(request: &ValidRequest) -> Self {
        let tokenizer = &request.model.tokenizer;
        let marks = [deephold_tokenizer::THINK_OPEN, deephold_tokenizer::THINK_CLOSE];
        let shown = match request.chat_prompt {
            Some(_) => marks.iter().filter_map(|mark| tokenizer.token_to_id(mark)).collect(),
            None => Vec::new(),
        };
        Self {
            detokenizer: Detokenizer::after(tokenizer, &request.prompt).show(shown),
            stops: StopMatcher::new(request.stops.iter().cloned()),
            splitter: request.chat_prompt.as_deref().map(ReasoningSplitter::after_prompt),
            is_open: true,
        }
    }

    /// Reads text; whether a stop string ended it. Stop strings end the answer, not the thinking: clients choose them for what
    /// they will see.
    fn read(&mut self, text: &str, delta: &mut Delta) -> bool {
        if self.splitter.as_ref().is_some_and(ReasoningSplitter::is_reasoning) {
            self.split(text, delta);
            return false;
        }
        let found = self.stops.push(text);
        self.split(&found.text, delta);
        found.stop.is_some()
    }

    fn split(&mut self, text: &str, delta: &mut Delta) {
        match &mut self.splitter {
            None => delta.content.push_str(text),
            Some(splitter) => splitter.push(text).into_iter().for_each(|s| delta.add(s)),
        }
    }

    fn finish_text(&mut self, delta: &mut Delta) {
        if let Some(last) = self.splitter.as_mut().and_then(ReasoningSplitter::finish) {
            delta.add(last);
        }
    }
}

impl Delta {
    fn add(&mut self, segment: Segment) {
        match segment {
            Segment::Reasoning(text) => self.reasoning.push_str(&text),
            Segment::Content(text) => self.content.push_str(&text),
        }
    }
}

/// A seed for requests that name none: recorded, so that their answers can be computed again.
pub(crate) fn with_seed(mut params: SamplingParams) -> SamplingParams {
    params.seed.get_or_insert_with(|| {
        use std::hash::{BuildHasher, Hasher};
        std::hash::RandomState::new().build_hasher().finish() >> 1
    });
    params
}
