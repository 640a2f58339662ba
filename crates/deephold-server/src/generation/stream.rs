//! From the engine's token ids to text as it becomes certain.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use deephold_base::TokenId;
use deephold_engine::{
    CacheSharing, Constraint, Delivery, FinishReason, Request, RequestId, RequestOutput, SampledToken,
    SamplingParams,
};
use deephold_tokenizer::{AnswerEvent, AnswerParser, Detokenizer, Dialect, StopMatcher, ToolCall};
use tokio::sync::{mpsc, oneshot};

use super::{ChatContext, Usage, ValidRequest};
use crate::access::Principal;
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
    /// Which of the request's answers.
    pub(crate) index: usize,
    /// The prompt's tokens, where their log probabilities were asked for: before anything else of the first answer to it.
    pub(crate) prompt: Vec<SampledToken>,
    pub(crate) reasoning: String,
    pub(crate) content: String,
    /// Whole calls.
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) tokens: Vec<TokenDelta>,
    /// All new ids, the end's included.
    pub(crate) ids: Vec<TokenId>,
    pub(crate) end: Option<End>,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
}

struct Sequence {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// None for plain completions.
    parser: Option<AnswerParser>,
    is_open: bool,
    /// Its first output has come.
    is_counted: bool,
}

/// A request's prompts in the engine. Dropping it ends its work by the end of the running step.
pub(crate) struct Generation {
    model: Arc<Hosted>,
    /// One for each prompt.
    ids: Vec<RequestId>,
    /// With the prompt's number.
    outputs: mpsc::UnboundedReceiver<(usize, RequestOutput)>,
    unread: Arc<AtomicUsize>,
    /// `n` for each prompt.
    sequences: Vec<Sequence>,
    n: usize,
    /// On the engine's clock.
    deadline: Duration,
    queue_deadline: Option<Duration>,
    pub(crate) usage: Usage,
    pub(crate) started: Instant,
    pub(crate) first_token: Option<Duration>,
    pub(crate) queue_time: Duration,
}

impl Generation {
    /// Gives all prompts to the engine and waits until they are accepted; where one is not, none is computed.
    pub(crate) async fn start(
        request: &ValidRequest,
        constraint: Option<Box<dyn Constraint>>,
        who: &Principal,
    ) -> ApiResult<Self> {
        let model = Arc::clone(&request.model);
        let deadline = model.engine.now().saturating_add(request.timeout);
        let queue_deadline = who.queue_time.map(|time| model.engine.now().saturating_add(time));
        let (sender, outputs) = mpsc::unbounded_channel();
        let (n, prompts) = (request.params.n, &request.prompts);
        // From here on, dropping it ends what was accepted.
        let mut generation = Self {
            ids: Vec::with_capacity(prompts.len()),
            outputs,
            unread: Arc::default(),
            sequences: prompts
                .iter()
                .flat_map(|prompt| (0..n).map(move |_| Sequence::new(request, prompt)))
                .collect(),
            n,
            deadline,
            queue_deadline,
            usage: Usage { prompt_tokens: prompts.iter().map(Vec::len).sum(), ..Usage::default() },
            started: Instant::now(),
            first_token: None,
            queue_time: Duration::ZERO,
            model,
        };
        let mut all_accepted = Vec::with_capacity(prompts.len());
        for (number, prompt) in prompts.iter().enumerate() {
            let id = generation.model.next_id();
            let mut engine_request = Request::new(id, prompt.clone(), request.params.clone());
            engine_request.tenant = Arc::clone(&who.tenant);
            engine_request.weight = who.weight;
            engine_request.tenant_waiting_max = who.queued;
            engine_request.queue_deadline = queue_deadline;
            engine_request.deadline = Some(deadline);
            engine_request.priority = request.priority;
            engine_request.cache_sharing = CacheSharing::Tenant { salt: request.cache_salt.clone() };
            engine_request.constraint.clone_from(&constraint);
            // Bounded by pausing: the sink says so when too many lie unread, and one step adds one a sequence at most.
            let (sender, counted) = (sender.clone(), Arc::clone(&generation.unread));
            let sink = Box::new(move |output: RequestOutput| {
                let lying = counted.fetch_add(1, Ordering::SeqCst) + 1;
                match sender.send((number, output)) {
                    Err(_) => Delivery::Closed,
                    Ok(()) if lying >= UNREAD_MAX => Delivery::Pause,
                    Ok(()) => Delivery::Ready,
                }
            });
            let (answer, accepted) = oneshot::channel();
            let answer = Box::new(move |result| _ = answer.send(result));
            generation.model.engine.submit_with(engine_request, sink, answer)?;
            generation.ids.push(RequestId(id));
            all_accepted.push(accepted);
        }
        for accepted in all_accepted {
            accepted.await.map_err(|_| ApiError::from(deephold_engine::EngineError::Stopped))??;
        }
        Ok(generation)
    }

    /// What becomes certain next; `None` after every answer has ended.
    pub(crate) async fn next(&mut self) -> Option<ApiResult<Delta>> {
        while self.sequences.iter().any(|s| s.is_open) {
            let Some((prompt, output)) = self.outputs.recv().await else {
                tracing::error!(model = self.model.name, "the engine ended without a word");
                return Some(Err(ApiError::internal("the engine ended; the server's log says so")));
            };
            let before = self.unread.fetch_sub(1, Ordering::SeqCst);
            // Half the bound read: the engine may go on, if it was paused.
            if before == UNREAD_MAX / 2 {
                self.ids.iter().for_each(|id| self.model.engine.resume(*id));
            }
            match self.take(prompt, output) {
                Ok(Some(delta)) => return Some(Ok(delta)),
                Ok(None) => {}
                Err(e) => return Some(Err(e)),
            }
        }
        None
    }

    fn take(&mut self, prompt: usize, output: RequestOutput) -> ApiResult<Option<Delta>> {
        if output.finish_reason == Some(FinishReason::Error) {
            let message = output.message.unwrap_or_else(|| "the engine failed".to_owned());
            tracing::error!(model = self.model.name, message, "a request failed in the engine");
            return Err(ApiError::internal(message));
        }
        // It did not begin: its time in the queue was up before its own.
        if output.finish_reason == Some(FinishReason::Deadline)
            && self.first_token.is_none()
            && self.queue_deadline.is_some_and(|at| at <= self.model.engine.now() && at < self.deadline)
        {
            let message = "the tenant's time in the queue is up; try again later";
            return Err(ApiError::try_again(StatusCode::TOO_MANY_REQUESTS, "queue_timeout", message, 1));
        }
        let index = prompt * self.n + output.seq_idx;
        // An answer that ended at a stop string may still get tokens that were on their way.
        let Some(sequence) = self.sequences.get_mut(index).filter(|s| s.is_open) else { return Ok(None) };
        if output.seq_idx == 0 && !sequence.is_counted {
            sequence.is_counted = true;
            self.usage.cached_tokens += output.cached_tokens;
            self.queue_time = self.queue_time.max(output.queue_time);
        }
        if !output.tokens.is_empty() && self.first_token.is_none() {
            self.first_token = Some(self.started.elapsed());
        }
        let mut delta = Delta { index, prompt: output.prompt, ..Delta::default() };
        let stopped = output.finish_reason == Some(FinishReason::Stop);
        let count = output.tokens.len();
        for (i, token) in output.tokens.into_iter().enumerate() {
            self.usage.completion_tokens += 1;
            delta.ids.push(token.id);
            // The token that ends an answer is no part of its text.
            if stopped && i + 1 == count {
                break;
            }
            let is_reasoning = sequence.parser.as_ref().is_some_and(AnswerParser::is_reasoning);
            self.usage.reasoning_tokens += usize::from(is_reasoning);
            let text = sequence.detokenizer.push(&self.model.tokenizer, token.id);
            delta.tokens.push(TokenDelta { token, is_reasoning });
            if sequence.read(&text, &mut delta) {
                sequence.is_open = false;
                sequence.finish_text(&mut delta);
                delta.end = Some(End::Stop);
                // Other answers to the prompt go on; this one's tokens are no longer read.
                let of_prompt = prompt * self.n..(prompt + 1) * self.n;
                if self.sequences[of_prompt].iter().all(|s| !s.is_open) {
                    self.model.engine.abort(self.ids[prompt]);
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
            self.ids.iter().for_each(|id| self.model.engine.abort(*id));
        }
    }
}

impl Sequence {
    fn new(request: &ValidRequest, prompt: &[TokenId]) -> Self {
        let tokenizer = &request.model.tokenizer;
        let marks = request.chat.as_ref().map_or(&[][..], |chat| match chat.has_tools {
            true => chat.dialect.visible_tokens(),
            false => Dialect::Plain.visible_tokens(),
        });
        let shown = marks.iter().filter_map(|mark| tokenizer.token_to_id(mark)).collect();
        let parser = |chat: &ChatContext| AnswerParser::new(chat.dialect, &chat.prompt, chat.has_tools);
        Self {
            detokenizer: Detokenizer::after(tokenizer, prompt).show(shown),
            stops: StopMatcher::new(request.stops.iter().cloned()),
            parser: request.chat.as_ref().map(parser),
            is_open: true,
            is_counted: false,
        }
    }

    /// Reads text; whether a stop string ended it. Stop strings end the answer, not the thinking: clients choose them for what
    /// they will see.
    fn read(&mut self, text: &str, delta: &mut Delta) -> bool {
        if self.parser.as_ref().is_some_and(AnswerParser::is_reasoning) {
            self.split(text, delta);
            return false;
        }
        let found = self.stops.push(text);
        self.split(&found.text, delta);
        delta.stop = found.stop;
        delta.stop.is_some()
    }

    fn split(&mut self, text: &str, delta: &mut Delta) {
        match &mut self.parser {
            None => delta.content.push_str(text),
            Some(parser) => parser.push(text).into_iter().for_each(|e| delta.add(e)),
        }
    }

    fn finish_text(&mut self, delta: &mut Delta) {
        let last = self.parser.as_mut().map(AnswerParser::finish).unwrap_or_default();
        last.into_iter().for_each(|e| delta.add(e));
    }
}

impl Delta {
    fn add(&mut self, event: AnswerEvent) {
        match event {
            AnswerEvent::Reasoning(text) => self.reasoning.push_str(&text),
            AnswerEvent::Content(text) => self.content.push_str(&text),
            AnswerEvent::ToolCall(call) => self.tool_calls.push(call),
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
