//! From token ids to a stream of parsed answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deephold_base::TokenId;
use deephold_engine::{
    Constraint, FinishReason, Request, RequestId, RequestOutput, SampledToken, SamplingParams,
};
use deephold_tokenizer::{AnswerEvent, AnswerParser, Detokenizer, Dialect, StopMatcher};
use tokio::sync::{mpsc, oneshot};

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::hosting::Hosted;

/// What to generate.
pub(crate) struct Job {
    pub(crate) model: Arc<Hosted>,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) params: SamplingParams,
    pub(crate) n: usize,
    pub(crate) stops: Vec<String>,
    pub(crate) parse: Parse,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) priority: i32,
    pub(crate) deadline: Option<Duration>,
    pub(crate) tenant: Arc<str>,
    pub(crate) weight: f32,
    pub(crate) salt: Vec<u8>,
}

/// How the text is read.
pub(crate) enum Parse {
    /// As it comes.
    Text,
    /// Thinking, answer and, where tools were given, calls; the prompt says where it begins.
    Chat { prompt: String, tools: bool },
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    /// At one of the request's stop strings.
    StopString(String),
    Length,
    ToolCalls,
    /// The deadline passed.
    Deadline,
}

/// A token with its probabilities.
#[derive(Clone, Debug)]
pub(crate) struct TokenNews {
    pub(crate) token: SampledToken,
    /// Part of the thinking.
    pub(crate) reasoning: bool,
}

/// News of one answer.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub(crate) index: usize,
    pub(crate) events: Vec<AnswerEvent>,
    pub(crate) tokens: Vec<TokenNews>,
    pub(crate) end: Option<End>,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
    pub(crate) reasoning: usize,
}

enum Reader {
    Text,
    Chat(Box<AnswerParser>),
}

struct Seq {
    id: RequestId,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    reader: Reader,
    called: bool,
    open: bool,
}

/// A request in the engine; dropping it ends its work before the next step.
pub(crate) struct Generation {
    app: Arc<App>,
    model: Arc<Hosted>,
    outputs: mpsc::UnboundedReceiver<RequestOutput>,
    seqs: Vec<Seq>,
    pub(crate) tally: Tally,
    started: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    pub(crate) queue_time: Duration,
    /// All ids, for the audit record.
    pub(crate) ids: Vec<Vec<TokenId>>,
}

impl Generation {
    /// Queues the job.
    pub(crate) async fn start(app: &Arc<App>, job: Job) -> ApiResult<Self> {
        // Outputs are bounded by max_tokens of each sequence, which the engine cuts to the context.
        let (sender, outputs) = mpsc::unbounded_channel();
        let mut generation = Self {
            app: Arc::clone(app),
            model: Arc::clone(&job.model),
            outputs,
            seqs: Vec::new(),
            tally: Tally { prompt: job.prompt.len(), ..Tally::default() },
            started: Instant::now(),
            first: None,
            last: None,
            queue_time: Duration::ZERO,
            ids: vec![Vec::new(); job.n],
        };
        for i in 0..job.n {
            let id = RequestId(app.models.next_id());
            let mut params = job.params.clone();
            params.seed = params.seed.map(|s| s.wrapping_add(i as u64));
            let request = Request {
                id,
                prompt: job.prompt.clone(),
                params,
                cache_salt: job.salt.clone(),
                priority: job.priority,
                deadline: job.deadline,
                tenant: Arc::clone(&job.tenant),
                weight: job.weight,
                constraint: job.constraint.clone(),
                pooling: None,
            };
            let (accepted, answer) = oneshot::channel();
            let sink = {
                let sender = sender.clone();
                Box::new(move |output| sender.send(output).is_ok())
            };
            job.model.engine.submit_with(request, sink, Box::new(move |r| _ = accepted.send(r)))?;
            // Known before it is accepted, so that dropping this future takes it back.
            generation.seqs.push(generation.seq(id, &job));
            match answer.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(e.into()),
                Err(_) => return Err(ApiError::unavailable("model_unloaded", "the model has been unloaded")),
            }
        }
        Ok(generation)
    }

    fn seq(&self, id: RequestId, job: &Job) -> Seq {
        let tokenizer = &job.model.tokenizer;
        let dialect = job.model.dialect;
        let (reader, shown) = match &job.parse {
            Parse::Text => (Reader::Text, Vec::new()),
            Parse::Chat { prompt, tools } => {
                let shown = if *tools { dialect } else { Dialect::Plain }.visible_tokens();
                let shown = shown.iter().filter_map(|t| tokenizer.token_to_id(t)).collect();
                (Reader::Chat(Box::new(AnswerParser::new(dialect, prompt, *tools))), shown)
            }
        };
        Seq {
            id,
            detokenizer: Detokenizer::after(tokenizer, &job.prompt).show(shown),
            stops: StopMatcher::new(job.stops.iter().cloned()),
            reader,
            called: false,
            open: true,
        }
    }

    /// The next news; `None` after the last sequence has ended.
    pub(crate) async fn next(&mut self) -> Option<ApiResult<Delta>> {
        while self.seqs.iter().any(|s| s.open) {
            let Some(output) = self.outputs.recv().await else {
                return Some(Err(ApiError::unavailable("model_unloaded", "the model has been unloaded")));
            };
            let Some(index) = self.seqs.iter().position(|s| s.id == output.id && s.open) else { continue };
            match self.take(index, output) {
                Ok(delta) if delta.events.is_empty() && delta.tokens.is_empty() && delta.end.is_none() => {}
                other => return Some(other),
            }
        }
        None
    }

    fn take(&mut self, index: usize, output: RequestOutput) -> ApiResult<Delta> {
        if output.finish_reason == Some(FinishReason::Error) {
            self.seqs[index].open = false;
            let message = output.message.unwrap_or_else(|| "the engine failed".to_owned());
            return Err(ApiError::internal(message));
        }
        self.clock(index, &output);
        let seq = &mut self.seqs[index];
        let mut delta = Delta { index, ..Delta::default() };
        let stopped = output.finish_reason == Some(FinishReason::Stop);
        for (i, token) in output.tokens.iter().enumerate() {
            self.tally.completion += 1;
            self.ids[index].push(token.id);
            // The token that ends an answer is no part of its text.
            if stopped && i + 1 == output.tokens.len() {
                break;
            }
            let reasoning = matches!(&seq.reader, Reader::Chat(p) if p.is_reasoning());
            self.tally.reasoning += usize::from(reasoning);
            delta.tokens.push(TokenNews { token: token.clone(), reasoning });
            let text = seq.detokenizer.push(&self.model.tokenizer, token.id);
            if let Some(stop) = seq.read(&text, &mut delta.events) {
                seq.open = false;
                self.model.engine.abort(seq.id);
                seq.rest(&mut delta.events);
                delta.end = Some(seq.end(End::StopString(stop)));
                return Ok(delta);
            }
        }
        let end = match output.finish_reason {
            None => return Ok(delta),
            Some(FinishReason::Length) => End::Length,
            Some(FinishReason::Deadline) => End::Deadline,
            Some(_) => End::Stop,
        };
        seq.open = false;
        let text = seq.detokenizer.finish();
        let found = seq.read(&text, &mut delta.events);
        if found.is_none() {
            let held = seq.stops.finish();
            seq.parse(&held, &mut delta.events);
        }
        seq.rest(&mut delta.events);
        delta.end = Some(seq.end(found.map_or(end, End::StopString)));
        Ok(delta)
    }

    fn clock(&mut self, index: usize, output: &RequestOutput) {
        let now = Instant::now();
        if index == 0 {
            self.tally.cached = output.cached_tokens;
        }
        if output.tokens.is_empty() {
            return;
        }
        let metrics = &self.model.metrics;
        match self.last {
            None => {
                self.queue_time = output.queue_time;
                metrics.first_token(now - self.started, output.queue_time);
                self.first = Some(now);
            }
            Some(last) if self.seqs.len() == 1 => metrics.next_token(now - last),
            Some(_) => {}
        }
        self.last = Some(now);
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time until the first token.
    pub(crate) fn ttft(&self) -> Option<Duration> {
        self.first.map(|f| f - self.started)
    }

    pub(crate) fn model(&self) -> &Arc<Hosted> {
        &self.model
    }

    pub(crate) fn app(&self) -> &Arc<App> {
        &self.app
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        for seq in self.seqs.iter().filter(|s| s.open) {
            self.model.engine.abort(seq.id);
        }
    }
}

impl Seq {
    /// Reads text up to a stop string; gives the one that was found.
    fn read(&mut self, text: &str, events: &mut Vec<AnswerEvent>) -> Option<String> {
        // Stop strings end the answer, not the thinking: clients choose them for what they will see.
        let thinking = matches!(&self.reader, Reader::Chat(p) if p.is_reasoning());
        if thinking {
            self.parse(text, events);
            return None;
        }
        let found = self.stops.push(text);
        self.parse(&found.text, events);
        found.stop
    }

    fn parse(&mut self, text: &str, events: &mut Vec<AnswerEvent>) {
        if text.is_empty() {
            return;
        }
        match &mut self.reader {
            Reader::Text => events.push(AnswerEvent::Content(text.to_owned())),
            Reader::Chat(parser) => {
                let new = parser.push(text);
                self.called |= new.iter().any(|e| matches!(e, AnswerEvent::ToolCall(_)));
                events.extend(new);
            }
        }
    }

    fn rest(&mut self, events: &mut Vec<AnswerEvent>) {
        if let Reader::Chat(parser) = &mut self.reader {
            let new = parser.finish();
            self.called |= new.iter().any(|e| matches!(e, AnswerEvent::ToolCall(_)));
            events.extend(new);
        }
    }

    fn end(&self, end: End) -> End {
        match end {
            End::Stop | End::StopString(_) if self.called => End::ToolCalls,
            other => other,
        }
    }
}
