//! Requests that are sent again under the same `Idempotency-Key`: the first is computed to its end, whoever hangs up meanwhile, and its
//! answer is kept for a while and sent again. Names and statuses as in the IETF's draft-ietf-httpapi-idempotency-key-header-07.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use deephold_audit::hex;
use deephold_state::{Claim, Claimed, KeptAnswer};
use http_body_util::BodyExt;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::admission::unrecordable;
use crate::api::error::{ApiError, ApiResult};
use crate::api::sse::{lines, stream};
use crate::app::App;

const NAME: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that nothing was computed.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Bytes of a name at most.
const NAME_MAX: usize = 255;
/// Larger answers are not kept.
const BODY_MAX: usize = 4 << 20;

/// Requests with names that this server computes now.
#[derive(Default)]
pub(crate) struct Running(Mutex<HashSet<(String, String)>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A claim that ends with the work, however that ends.
struct Claiming {
    app: Arc<App>,
    claim: Claim,
}

impl Drop for Claiming {
    fn drop(&mut self) {
        self.app.running.lock().remove(&(self.claim.key.clone(), self.claim.name.clone()));
    }
}

/// The name that a caller gave his request.
///
/// # Errors
/// 400 for one that is none.
pub(crate) fn name(headers: &HeaderMap, keep_answers: Duration) -> ApiResult<Option<String>> {
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    if keep_answers.is_zero() {
        return Err(ApiError::unsupported("Idempotency-Key", "is not offered: this server keeps no answers"));
    }
    let name = value.to_str().ok().map(str::trim).filter(|n| !n.is_empty() && n.len() <= NAME_MAX);
    let problem = "must be 1 to 255 printable ASCII characters";
    name.map(|n| Some(n.to_owned())).ok_or_else(|| ApiError::param("Idempotency-Key", problem))
}

/// Answers once what is asked under one name.
pub(crate) async fn once(
    app: &Arc<App>,
    key: &str,
    name: String,
    (path, body): (&str, &Bytes),
    work: impl Future<Output = ApiResult<Response<Body>>> + Send + 'static,
) -> ApiResult<Response<Body>> {
    let mut digest = Sha256::new();
    digest.update(path.as_bytes());
    digest.update([0]);
    digest.update(body);
    let patience = i64::try_from(app.limits.request_time.as_millis()).unwrap_or(i64::MAX);
    let claim = Claim {
        key: key.to_owned(),
        name,
        fingerprint: digest.finalize().into(),
        replica: app.limits.replica.clone(),
        until_ms: app.unix_ms().saturating_add(patience).saturating_add(60_000),
    };
    let in_use = || {
        let message = "a request of this Idempotency-Key is being computed; ask again when it is done";
        ApiError::try_again(StatusCode::CONFLICT, "idempotency_key_in_use", message, 1)
    };
    if !app.running.lock().insert((claim.key.clone(), claim.name.clone())) {
        return Err(in_use());
    }
    let claiming = Claiming { app: Arc::clone(app), claim };
    let mut known = ask(&claiming).await?;
    if matches!(&known, Claimed::Running { replica } if *replica == app.limits.replica) {
        // This server computes nothing of that name: the claim is of a run that has ended.
        release(&claiming).await?;
        known = ask(&claiming).await?;
    }
    match known {
        Claimed::Answered(answer) => {
            let claim = &claiming.claim;
            let record =
                json!({ "key": claim.key, "name": claim.name, "asked_sha256": hex(&claim.fingerprint) });
            // Who got an answer is recorded, also where it is an old one.
            if app.record("replayed", &record).await.is_err() && app.limits.refuse_unrecorded {
                return Err(unrecordable());
            }
            return Ok(again(answer));
        }
        Claimed::Running { .. } => return Err(in_use()),
        Claimed::Other => {
            let message =
                "this Idempotency-Key stands for another request; give each request a key of its own";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message));
        }
        Claimed::New => {}
    }
    // On a task of its own: whoever hangs up may ask again for what was computed.
    let computed = tokio::spawn(async move { compute(claiming, work).await });
    computed.await.map_err(|e| ApiError::internal(format!("the request failed: {e}")))?
}

async fn ask(claiming: &Claiming) -> ApiResult<Claimed> {
    let (claim, now_ms) = (claiming.claim.clone(), claiming.app.unix_ms());
    claiming.app.ask_store(move |store| store.claim(&claim, now_ms)).await
}

async fn release(claiming: &Claiming) -> ApiResult<()> {
    let claim = claiming.claim.clone();
    claiming.app.ask_store(move |store| store.release(&claim)).await
}

/// An answer that was given before.
fn again(answer: KeptAnswer) -> Response<Body> {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::try_from(answer.content_type) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// Does the work and keeps what was answered; a refusal or a failure is not kept: it may be tried again.
async fn compute(
    claiming: Claiming,
    work: impl Future<Output = ApiResult<Response<Body>>> + Send,
) -> ApiResult<Response<Body>> {
    let response = match work.await {
        Ok(response) if response.status() == StatusCode::OK => response,
        other => {
            release(&claiming).await?;
            return other;
        }
    };
    let (head, mut body) = response.into_parts();
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.to_owned();
    if http_body::Body::size_hint(&body).exact().is_some() {
        // All of it is there.
        let bytes = body.collect().await.map_err(|_| ApiError::internal("the answer broke off"))?.to_bytes();
        keep(&claiming, kind, bytes.to_vec()).await?;
        return Ok(Response::from_parts(head, Body::from(bytes)));
    }
    let (sender, passed) = if kind.starts_with("text/event-stream") { stream() } else { lines() };
    tokio::spawn(async move {
        let (mut kept, mut is_read) = (Vec::new(), true);
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(bytes) = frame.into_data() else { continue };
            if kept.len() <= BODY_MAX {
                kept.extend_from_slice(&bytes);
            }
            if is_read {
                is_read = sender.bytes(bytes).await.is_ok();
            }
        }
        // The reader waits for the end until it is kept.
        let _ = keep(&claiming, kind, kept).await;
        drop(sender);
    });
    Ok(Response::from_parts(head, passed.into_body()))
}

async fn keep(claiming: &Claiming, content_type: String, body: Vec<u8>) -> ApiResult<()> {
    // A stream that ended with an error is to be tried again.
    let is_whole = !content_type.starts_with("text/event-stream") || !has_failed(&body);
    if body.len() > BODY_MAX || !is_whole {
        return release(claiming).await;
    }
    let time = i64::try_from(claiming.app.limits.keep_answers.as_millis()).unwrap_or(i64::MAX);
    let until_ms = claiming.app.unix_ms().saturating_add(time);
    let (claim, answer) = (claiming.claim.clone(), KeptAnswer { status: 200, content_type, body });
    claiming.app.ask_store(move |store| store.keep(&claim, &answer, until_ms)).await
}

/// Whether the last event says that the answer failed.
fn has_failed(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let last = text.trim_end().rsplit("\n\n").next().unwrap_or_default();
    last.starts_with("event: error") || last.starts_with("data: {\"error\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_failures_are_told() {
        let of = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(NAME, HeaderValue::from_bytes(value).expect("a header"));
            name(&headers, Duration::from_secs(1))
        };
        assert_eq!(of(b" a-1 ").ok().flatten().as_deref(), Some("a-1"));
        assert_eq!(name(&HeaderMap::new(), Duration::ZERO).ok(), Some(None));
        assert!(of(b"").is_err() && of(b"\xff").is_err() && of(&[b'x'; 256]).is_err());
        assert!(
            has_failed(b"data: {}\n\ndata: {\"error\":{}}\n\n") && has_failed(b"event: error\ndata: {}\n\n")
        );
        assert!(!has_failed(b"data: {\"choices\":[]}\n\ndata: [DONE]\n\n"));
    }
}
