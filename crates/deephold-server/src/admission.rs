//! The permit that every request for an answer holds. Closing it writes the audit record and the metrics from one place; one that is
//! dropped unclosed, because its reader has gone, is recorded as aborted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use deephold_audit::AuditError;
use serde_json::{Value, json};

use crate::access::Principal;
use crate::api::error::{ApiError, ApiResult};
use crate::app::{App, note_log_state};
use crate::generation::{Answer, Delta, Usage, ValidRequest, VectorRequest};
use crate::record;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    /// The reader has gone.
    Aborted,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// Refuses what could not be recorded, before anything is computed for it: after a failure the log must first take a record that
/// says so.
///
/// # Errors
/// 503 as long as the log takes nothing.
pub(crate) async fn recordable(app: &App) -> ApiResult<()> {
    if !app.limits.refuse_unrecorded || !app.log_fails.load(Ordering::SeqCst) {
        return Ok(());
    }
    resume(app).await.map_err(|_| unrecordable())
}

/// Tries the log again after a failure, with a record of what it lacks.
async fn resume(app: &App) -> Result<(), AuditError> {
    let unrecorded = app.unrecorded.load(Ordering::SeqCst);
    app.record("server", &json!({ "event": "log resumed", "unrecorded": unrecorded })).await?;
    app.unrecorded.fetch_sub(unrecorded, Ordering::SeqCst);
    Ok(())
}

fn unrecordable() -> ApiError {
    let message = "the audit log takes no records, so nothing is answered; its disk may be full";
    ApiError::unavailable("audit_unavailable", message)
}

/// The right to one answer, and the duty to record it.
pub(crate) struct Permit {
    app: Arc<App>,
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
    pub(crate) fn new(
        app: &Arc<App>,
        request_id: &str,
        endpoint: &str,
        who: &Principal,
        request: &ValidRequest,
    ) -> Self {
        let record = record::asked(app.policy, request_id, endpoint, who, request);
        let answers = vec![Answer::default(); request.num_answers()];
        let mut permit = Self::of(app, request_id, who, &request.model.name, record);
        permit.answers = answers;
        permit
    }

    /// For vectors of texts.
    pub(crate) fn of_vectors(
        app: &Arc<App>,
        request_id: &str,
        endpoint: &str,
        who: &Principal,
        request: &VectorRequest,
    ) -> Self {
        let record = record::asked_vectors(app.policy, request_id, endpoint, who, request);
        let prompt_tokens = request.prompts.iter().map(Vec::len).sum();
        let usage = Usage { prompt_tokens, ..Usage::default() };
        let mut permit = Self::of(app, request_id, who, request.model.name(), record);
        permit.usage = usage;
        permit
    }

    fn of(app: &Arc<App>, request_id: &str, who: &Principal, model: &str, record: Value) -> Self {
        Self {
            app: Arc::clone(app),
            record: Some(record),
            started: Instant::now(),
            request_id: request_id.to_owned(),
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
    /// 503 where the log does not take the record: what cannot be recorded is not answered.
    pub(crate) async fn close(&mut self, outcome: Outcome) -> ApiResult<()> {
        let Some(record) = self.finished(outcome) else { return Ok(()) };
        let start = Instant::now();
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
        if written.is_err() && self.app.limits.refuse_unrecorded { Err(unrecordable()) } else { Ok(()) }
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
