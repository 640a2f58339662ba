//! From deltas to an answer on the wire: whole, or as events. Both walk the same way for every API; only the [`Writer`] differs. The end
//! goes out only after the audit log has taken the record.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use deephold_engine::Constraint;
use serde_json::Value;

use crate::admission::{Outcome, Permit, recordable};
use crate::api::error::{ApiError, ApiResult, json_response};
use crate::api::sse::{EventSender, Gone, stream};
use crate::call::Call;
use crate::generation::{Answer, Delta, Generation, Usage, ValidRequest};

/// How long a stream may be silent before a sign shows that it lives: proxies close what is quiet.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How one API writes an answer. Events are whole frames.
pub(crate) trait Writer: Send + Sync + 'static {
    /// Before the first token.
    fn begin(&mut self, events: &mut Vec<String>);

    /// What became certain; it is already among `answers`.
    fn delta(&mut self, delta: &Delta, answers: &[Answer], events: &mut Vec<String>);

    /// The end, which is recorded.
    fn end(&mut self, answers: &[Answer], usage: Usage, events: &mut Vec<String>);

    /// The end of what failed after it had begun.
    fn failed(&mut self, error: &ApiError) -> String;

    /// While nothing comes.
    fn quiet(&self) -> String {
        ": waiting\n\n".to_owned()
    }

    /// All of it in one body.
    fn whole(&mut self, answers: &[Answer], usage: Usage) -> Value;
}

/// What is to be done, and how it is told.
pub(crate) struct Task {
    /// The API's name in the audit log.
    pub(crate) endpoint: &'static str,
    pub(crate) request: ValidRequest,
    /// What the sampler follows.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    /// Events instead of one body.
    pub(crate) streaming: bool,
    pub(crate) writer: Box<dyn Writer>,
}

/// Generates and writes the answer.
pub(crate) async fn answer(call: Call, task: Task) -> ApiResult<Response<Body>> {
    let Task { endpoint, request, constraint, streaming, writer } = task;
    recordable(&call.app).await?;
    let who = call.who()?;
    let mut permit = Permit::new(&call.app, &call.request_id, endpoint, who, &request);
    let generation = match Generation::start(&request, constraint, who.tenant.clone()).await {
        Ok(generation) => generation,
        Err(e) => {
            permit.close(Outcome::Failed).await?;
            return Err(e);
        }
    };
    let walk = Walk { model: request.model.name.clone(), call, generation, permit, writer };
    if !streaming {
        return walk.whole().await;
    }
    let (events, response) = stream();
    tokio::spawn(async move {
        // A reader that is gone needs no word; the permit records it.
        let _ = walk.events(&events).await;
    });
    Ok(response)
}

/// One answer on its way out.
struct Walk {
    call: Call,
    model: String,
    generation: Generation,
    permit: Permit,
    writer: Box<dyn Writer>,
}

impl Walk {
    /// The next delta, noted in the permit.
    async fn next(&mut self) -> Option<ApiResult<Delta>> {
        let delta = self.generation.next().await?;
        if let Ok(delta) = &delta {
            self.permit.add(delta, self.generation.usage);
        }
        Some(delta)
    }

    /// Records the end, whatever it is.
    async fn close(&mut self, outcome: Outcome) -> ApiResult<()> {
        self.call.app.metrics.finished(&self.model, &self.generation);
        self.permit.close(outcome).await
    }

    async fn whole(mut self) -> ApiResult<Response<Body>> {
        while let Some(delta) = self.next().await {
            if let Err(e) = delta {
                self.close(Outcome::Failed).await?;
                return Err(e);
            }
        }
        self.close(Outcome::Completed).await?;
        let body = self.writer.whole(&self.permit.answers, self.generation.usage);
        Ok(json_response(StatusCode::OK, &body))
    }

    async fn events(mut self, events: &EventSender) -> Result<(), Gone> {
        let mut frames = Vec::new();
        self.writer.begin(&mut frames);
        send(events, &mut frames).await?;
        let gaps = self.call.app.metrics.gaps(&self.model);
        let mut last = Instant::now();
        loop {
            let delta = tokio::select! {
                // A reader that has gone ends the work, also while nothing is to be sent.
                () = events.closed() => return Err(Gone),
                delta = tokio::time::timeout(KEEP_ALIVE, self.next()) => match delta {
                    Err(_) => {
                        events.raw(self.writer.quiet()).await?;
                        continue;
                    }
                    Ok(None) => break,
                    Ok(Some(Err(e))) => {
                        let _ = self.close(Outcome::Failed).await;
                        return events.raw(self.writer.failed(&e)).await;
                    }
                    Ok(Some(Ok(delta))) => delta,
                },
            };
            gaps.observe(last.elapsed().as_secs_f64());
            last = Instant::now();
            self.writer.delta(&delta, &self.permit.answers, &mut frames);
            send(events, &mut frames).await?;
        }
        if let Err(e) = self.close(Outcome::Completed).await {
            // Never a clean end without its record.
            return events.raw(self.writer.failed(&e)).await;
        }
        self.writer.end(&self.permit.answers, self.generation.usage, &mut frames);
        send(events, &mut frames).await
    }
}

/// In one write: a reader wakes once.
async fn send(events: &EventSender, frames: &mut Vec<String>) -> Result<(), Gone> {
    if frames.is_empty() {
        return Ok(());
    }
    let text = frames.concat();
    frames.clear();
    events.raw(text).await
}
