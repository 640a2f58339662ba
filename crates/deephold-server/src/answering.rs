//! From deltas to an answer on the wire: whole, or as events. Both walk the same way for every API; only the [`Writer`] differs. The end
//! goes out only after the audit log has taken the record.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use deephold_engine::Constraint;
use serde_json::Value;

use crate::admission::{Outcome, Permit, recordable};
use crate::api::deepseek;
use crate::api::error::{ApiError, ApiResult, ErrorStyle, json_response};
use crate::api::sse::{EventSender, Gone, lines, stream};
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
    let Task { endpoint, mut request, constraint, streaming, writer } = task;
    recordable(&call.app).await?;
    let mut permit = Permit::new(&call, endpoint, &mut request)?;
    let generation = match Generation::start(&request, constraint, call.who()?).await {
        Ok(generation) => generation,
        Err(e) => {
            permit.close(Outcome::Refused).await?;
            return Err(e);
        }
    };
    // Whoever hangs up early has had his prompt computed all the same.
    permit.usage = generation.usage;
    let walk = Walk { model: request.model.name.clone(), call, generation, permit, writer };
    if !streaming {
        let is_deepseeks = deepseek::is_own_path(&walk.call.path);
        let body = walk.whole();
        return match is_deepseeks {
            true => patiently(body).await,
            false => Ok(json_response(StatusCode::OK, &body.await?)),
        };
    }
    let (events, response) = stream();
    tokio::spawn(async move {
        // A reader that is gone needs no word; the permit records it.
        let _ = walk.events(&events).await;
    });
    Ok(response)
}

/// A body that takes long, as DeepSeek's service sends it: a blank line every ten seconds, which readers of JSON skip. What
/// fails after the first is an error in the body of a response that has begun well.
async fn patiently(
    body: impl Future<Output = ApiResult<Value>> + Send + 'static,
) -> ApiResult<Response<Body>> {
    let mut body = Box::pin(body);
    if let Ok(done) = tokio::time::timeout(KEEP_ALIVE, &mut body).await {
        return Ok(json_response(StatusCode::OK, &done?));
    }
    let (lines, response) = lines();
    tokio::spawn(async move {
        let mut line = "\n".to_owned();
        loop {
            if lines.raw(line).await.is_err() {
                return;
            }
            line = tokio::select! {
                // Whoever hangs up ends the work.
                () = lines.closed() => return,
                done = tokio::time::timeout(KEEP_ALIVE, &mut body) => match done {
                    Err(_) => "\n".to_owned(),
                    Ok(done) => {
                        let body = done.unwrap_or_else(|e| e.body(ErrorStyle::OpenAi));
                        let _ = lines.raw(body.to_string()).await;
                        return;
                    }
                },
            };
        }
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

    async fn whole(mut self) -> ApiResult<Value> {
        while let Some(delta) = self.next().await {
            if let Err(e) = delta {
                self.close(Outcome::of_error(&e)).await?;
                return Err(e);
            }
        }
        self.close(Outcome::Completed).await?;
        Ok(self.writer.whole(&self.permit.answers, self.generation.usage))
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
                        let _ = self.close(Outcome::of_error(&e)).await;
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

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    /// The chunks of a body, in order.
    async fn chunks(response: Response<Body>) -> Vec<String> {
        let mut body = response.into_body();
        let mut out = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
        {
            let bytes = frame.expect("a frame").into_data().expect("data");
            out.push(String::from_utf8(bytes.to_vec()).expect("UTF-8"));
        }
        out
    }

    async fn after(seconds: u64, body: ApiResult<Value>) -> ApiResult<Value> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        body
    }

    #[tokio::test(start_paused = true)]
    async fn blank_lines_come_while_an_answer_takes_long() {
        let answer = serde_json::json!({ "a": 1 });
        let at_once = patiently(after(9, Ok(answer.clone()))).await.expect("answered");
        assert_eq!(chunks(at_once).await, [answer.to_string()]);
        let late = patiently(after(35, Ok(answer.clone()))).await.expect("begun");
        assert_eq!(late.headers()["content-type"], "application/json");
        assert_eq!(chunks(late).await, ["\n", "\n", "\n", &answer.to_string()]);
        // An early failure has its status, a late one its body.
        let early = patiently(after(1, Err(ApiError::bad_request("no")))).await;
        assert_eq!(early.expect_err("refused").status, StatusCode::BAD_REQUEST);
        let failed =
            chunks(patiently(after(15, Err(ApiError::bad_request("no")))).await.expect("begun")).await;
        assert!(failed[0] == "\n" && failed[1].contains("\"message\":\"no\""), "{failed:?}");
    }
}
