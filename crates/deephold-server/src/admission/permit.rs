//! The permit that every request for an answer holds. It is given within the limits of who asks; closing it writes usage, the audit
//! record and the metrics from one place; one that is dropped unclosed, because its reader has gone, is recorded as aborted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::http::StatusCode;
use deephold_audit::AuditError;
use serde_json::{Value, json};

use super::books::Hold;
use super::ledger::{Unit, Used};
use super::rates::Rates;
use crate::access::Principal;
use crate::api::error::{ApiError, ApiResult};
use crate::app::{App, note_log_state};
use crate::call::Call;
use crate::generation::{Answer, Delta, Usage, ValidRequest, VectorRequest};
use crate::record;

/// An answer that names no length is cut to what the limits leave, but not below so many tokens.
const SHORTEST: u64 = 16;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    /// It did not begin: it counts for nothing.
    Refused,
    Failed,
    /// The reader has gone.
    Aborted,
}

impl Outcome {
    /// What an error makes of a request: only one that was taken and broke off has used anything.
    pub(crate) fn of_error(error: &ApiError) -> Self {
        match error.status {
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::REQUEST_TIMEOUT => Self::Failed,
            _ => Self::Refused,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused | Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// Refuses what could not be recorded, before anything is computed for it: after a failure the log must first take a record that
/// says so, and the state the usage that it lacks.
///
/// # Errors
/// 503 as long as one of them takes nothing.
pub(crate) async fn recordable(app: &App) -> ApiResult<()> {
    if !app.limits.refuse_unrecorded {
        return Ok(());
    }
    if app.log_fails.load(Ordering::SeqCst) {
        resume(app).await.map_err(|_| unrecordable())?;
    }
    if app.books.are_written().await { Ok(()) } else { Err(uncountable()) }
}

/// Tries the log again after a failure, with a record of what it lacks.
async fn resume(app: &App) -> Result<(), AuditError> {
    let unrecorded = app.unrecorded.load(Ordering::SeqCst);
    app.record("server", &json!({ "event": "log resumed", "unrecorded": unrecorded })).await?;
    app.unrecorded.fetch_sub(unrecorded, Ordering::SeqCst);
    Ok(())
}

pub(crate) fn unrecordable() -> ApiError {
    let message = "the audit log takes no records, so nothing is answered; its disk may be full";
    ApiError::unavailable("audit_unavailable", message)
}

fn uncountable() -> ApiError {
    let message =
        "the state takes no usage, so nothing is answered; its disk may be full, or its database away";
    ApiError::unavailable("state_unavailable", message)
}

/// Tokens that all answers of a request may have at most.
fn completion_most(request: &ValidRequest) -> u64 {
    let context = request.model.max_model_len;
    let of = |prompt: &Vec<_>| request.params.max_tokens.min(context.saturating_sub(prompt.len())) as u64;
    request.prompts.iter().map(of).sum::<u64>().saturating_mul(request.params.n as u64)
}

/// Cuts answers that name no length to what is left of tokens and costs, where that is enough for one.
fn shorten(app: &App, who: &Principal, request: &mut ValidRequest) {
    let (longest, shortest) =
        request.prompts.iter().fold((0, usize::MAX), |(l, s), p| (l.max(p.len()), s.min(p.len())));
    let rest = request.model.max_model_len.saturating_sub(longest);
    // A length that the caller named below this is his.
    if request.prompts.is_empty()
        || request.params.max_tokens < request.model.max_model_len.saturating_sub(shortest)
    {
        return;
    }
    let left =
        |unit| app.books.ask(|ledger, now_ms| ledger.tightest(&who.bounds, unit, now_ms)).map(|l| l.left);
    let prompt: u64 = request.prompts.iter().map(|p| p.len() as u64).sum();
    let answers = (request.num_answers() as u64).max(1);
    let of_tokens = left(Unit::Tokens).map(|left| left.saturating_sub(prompt) / answers);
    let (model, prices) = (&request.model.name, &app.limits.prices);
    let each = prices.cost_nanos(model, 0, 0, 1).saturating_mul(answers);
    let of_costs = left(Unit::Cost).map(|left| {
        left.saturating_sub(prices.most(model, prompt, 0).cost_nanos).checked_div(each).unwrap_or(u64::MAX)
    });
    if let Some(most) = of_tokens.into_iter().chain(of_costs).min()
        && (SHORTEST.min(rest as u64)..rest as u64).contains(&most)
    {
        request.params.max_tokens = most as usize;
    }
}

/// Holds what a request may take at most within the limits of who asks, and notes for the response what is left of them.
fn hold(call: &Call, model: &str, prompt: u64, completion: u64) -> ApiResult<Hold> {
    let (app, bounds) = (&call.app, &call.who()?.bounds);
    let most = app.limits.prices.most(model, prompt, completion);
    let held = app.books.hold(bounds, most);
    let _ = call.rates.set(app.books.ask(|ledger, now_ms| Rates::of(ledger, bounds, now_ms)));
    held.map_err(|refusal| {
        app.metrics.limited(refusal.limit());
        refusal.into_error(app.limits.prices.currency())
    })
}

/// The right to one answer, and the duty to record it.
pub(crate) struct Permit {
    app: Arc<App>,
    /// What it may take at most; none once that is settled.
    hold: Option<Hold>,
    project: String,
    record: Option<Value>,
    started: Instant,
    request_id: String,
    key_id: String,
    tenant: Arc<str>,
    model: String,
    /// What was answered so far.
    pub(crate) answers: Vec<Answer>,
    /// What was answered with vectors instead.
    vectors: Vec<Value>,
    pub(crate) usage: Usage,
}

impl Permit {
    /// Within the limits of who asks; an answer that names no length may be cut to what they leave.
    ///
    /// # Errors
    /// 429 or 402, with when to try again.
    pub(crate) fn new(call: &Call, endpoint: &str, request: &mut ValidRequest) -> ApiResult<Self> {
        let (app, who) = (&call.app, call.who()?);
        shorten(app, who, request);
        let prompt = request.prompts.iter().map(|p| p.len() as u64).sum();
        let hold = hold(call, &request.model.name, prompt, completion_most(request))?;
        let record = record::asked(app.policy, &call.request_id, endpoint, who, request);
        let answers = vec![Answer::default(); request.num_answers()];
        let mut permit = Self::of(call, who, &request.model.name, record, hold);
        permit.answers = answers;
        Ok(permit)
    }

    /// For vectors of texts.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn of_vectors(call: &Call, endpoint: &str, request: &VectorRequest) -> ApiResult<Self> {
        let who = call.who()?;
        let prompt_tokens = request.prompts.iter().map(Vec::len).sum();
        let hold = hold(call, request.model.name(), prompt_tokens as u64, 0)?;
        let record = record::asked_vectors(call.app.policy, &call.request_id, endpoint, who, request);
        let mut permit = Self::of(call, who, request.model.name(), record, hold);
        permit.usage = Usage { prompt_tokens, ..Usage::default() };
        Ok(permit)
    }

    fn of(call: &Call, who: &Principal, model: &str, record: Value, hold: Hold) -> Self {
        Self {
            app: Arc::clone(&call.app),
            hold: Some(hold),
            project: who.project.clone(),
            record: Some(record),
            started: Instant::now(),
            request_id: call.request_id.clone(),
            key_id: who.key_id.clone(),
            tenant: Arc::clone(&who.tenant),
            model: model.to_owned(),
            answers: Vec::new(),
            vectors: Vec::new(),
            usage: Usage::default(),
        }
    }

    /// Takes note of vectors: the record gets their digests.
    pub(crate) fn add_vectors(&mut self, vectors: &[Vec<f32>]) {
        self.vectors = vectors.iter().map(|v| record::vector(v)).collect();
    }

    /// Takes note of what goes to the reader.
    pub(crate) fn add(&mut self, delta: &Delta, usage: Usage) {
        self.answers[delta.index].add(delta);
        self.usage = usage;
    }

    /// Records the end. The answer's own end is sent only after this.
    ///
    /// # Errors
    /// 503 where the log does not take the record or the state not the usage: what cannot be recorded is not answered.
    pub(crate) async fn close(&mut self, outcome: Outcome) -> ApiResult<()> {
        let Some(record) = self.finished(outcome) else { return Ok(()) };
        let start = Instant::now();
        // Both are on their way to the disk at the same time.
        let counted = self.settle(outcome);
        let written = match self.app.log_fails.load(Ordering::SeqCst) {
            true => resume(&self.app).await,
            false => Ok(()),
        };
        let written = match written {
            Ok(()) => self.app.record("request", &record).await,
            failed => failed,
        };
        self.app.metrics.audit(start.elapsed());
        if written.is_err() {
            self.app.unrecorded.fetch_add(1, Ordering::SeqCst);
            self.app.metrics.unrecorded();
        }
        let is_counted = match counted {
            Some(counted) => counted.await.unwrap_or(false),
            None => true,
        };
        match (self.app.limits.refuse_unrecorded, written.is_ok(), is_counted) {
            (false, ..) | (true, true, true) => Ok(()),
            (true, false, _) => Err(unrecordable()),
            (true, true, false) => Err(uncountable()),
        }
    }

    /// Turns what was held into what was used.
    fn settle(&mut self, outcome: Outcome) -> Option<tokio::sync::oneshot::Receiver<bool>> {
        let hold = self.hold.take()?;
        if outcome == Outcome::Refused {
            return None;
        }
        let Usage { prompt_tokens, cached_tokens, completion_tokens, .. } = self.usage;
        let (prompt, cached, completion) =
            (prompt_tokens as u64, cached_tokens as u64, completion_tokens as u64);
        let prices = &self.app.limits.prices;
        Some(hold.settle(&Used {
            tenant: self.tenant.to_string(),
            project: self.project.clone(),
            key: self.key_id.clone(),
            model: self.model.clone(),
            requests: 1,
            prompt_tokens: prompt,
            cached_tokens: cached,
            completion_tokens: completion,
            cost_nanos: prices.cost_nanos(&self.model, prompt, cached, completion),
        }))
    }

    fn finished(&mut self, outcome: Outcome) -> Option<Value> {
        let mut record = self.record.take()?;
        record::answered(self.app.policy, &mut record, &self.answers, self.usage, outcome.name());
        if !self.vectors.is_empty() {
            record["vectors"] = json!(self.vectors);
        }
        self.app.metrics.answered(&self.model, self.usage, outcome.name());
        let Usage { prompt_tokens, cached_tokens, completion_tokens, .. } = self.usage;
        tracing::info!(
            request_id = self.request_id,
            key_id = self.key_id,
            tenant = &*self.tenant,
            model = self.model,
            outcome = outcome.name(),
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            seconds = self.started.elapsed().as_secs_f64(),
            "answered"
        );
        Some(record)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(record) = self.finished(Outcome::Aborted) {
            drop(self.settle(Outcome::Aborted));
            // Nobody waits for it; where the log does not take it, the next request is refused.
            let (fails, unrecorded) = (Arc::clone(&self.app.log_fails), Arc::clone(&self.app.unrecorded));
            let note = move |result: Result<_, _>| {
                unrecorded.fetch_add(u64::from(result.is_err()), Ordering::SeqCst);
                note_log_state(&fails, &result.map(drop));
            };
            self.app.log.append_with("request", &record, Box::new(note));
        }
    }
}
