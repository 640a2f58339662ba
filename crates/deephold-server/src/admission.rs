//! The permit that every request for an answer holds. Closing it writes the audit record and the metrics from one place; one that is
//! dropped unclosed, because its reader has gone, is recorded as aborted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::access::Principal;
use crate::api::error::{ApiError, ApiResult};
use crate::app::App;
use crate::generation::{Answer, Delta, Usage, ValidRequest};
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
    if !app.log_fails.load(Ordering::SeqCst) {
        return Ok(());
    }
    append(app, "server", &json!({ "event": "log resumed" })).await
}

/// Writes a record and waits until it is durable.
async fn append(app: &App, kind: &'static str, record: &Value) -> ApiResult<()> {
    let (answer, answered) = oneshot::channel();
    app.log.append_with(kind, record, Box::new(move |result| _ = answer.send(result.is_ok())));
    let is_written = answered.await.unwrap_or(false);
    app.log_fails.store(!is_written, Ordering::SeqCst);
    if is_written {
        return Ok(());
    }
    let message = "the audit log takes no records, so nothing is answered; its disk may be full";
    Err(ApiError::unavailable("audit_unavailable", message))
}

/// The right to one answer, and the duty to record it.
pub(crate) struct Permit {
    app: Arc<App>,
    record: Option<Value>,
    model: String,
    /// What was answered so far.
    pub(crate) answers: Vec<Answer>,
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
        Self {
            app: Arc::clone(app),
            record: Some(record::asked(app.policy, request_id, endpoint, who, request)),
            model: request.model.name.clone(),
            answers: vec![Answer::default(); request.num_answers()],
            usage: Usage::default(),
        }
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
        let start = std::time::Instant::now();
        let written = append(&self.app, "request", &record).await;
        self.app.metrics.audit(start.elapsed());
        written
    }

    fn finished(&mut self, outcome: Outcome) -> Option<Value> {
        let mut record = self.record.take()?;
        record::answered(self.app.policy, &mut record, &self.answers, self.usage, outcome.name());
        self.app.metrics.answered(&self.model, self.usage, outcome.name());
        Some(record)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(record) = self.finished(Outcome::Aborted) {
            // Nobody waits for it; where the log does not take it, the next request is refused.
            let fails = Arc::clone(&self.app.log_fails);
            let note = move |result: Result<_, _>| fails.store(result.is_err(), Ordering::SeqCst);
            self.app.log.append_with("request", &record, Box::new(note));
        }
    }
}
