//! Health and metrics.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::error::{ApiError, ApiResult, json_response};
use super::openapi::{Operation, object};
use crate::admission::recordable;
use crate::call::Call;

/// The process is alive.
pub(crate) async fn healthz(_: Call) -> ApiResult<Response<Body>> {
    Ok(json_response(StatusCode::OK, &json!({ "status": "alive" })))
}

/// Requests will be answered: every model has done a real forward pass (one that has not is not there yet), no queue is full, the audit log takes records, and the
/// server does not drain.
pub(crate) async fn readyz(call: Call) -> ApiResult<Response<Body>> {
    if call.app.is_draining.load(Ordering::SeqCst) {
        return Err(ApiError::unavailable("draining", "the server is shutting down"));
    }
    recordable(&call.app).await?;
    if call.app.models.all().is_empty() {
        return Err(ApiError::unavailable("no_model", "no model is loaded"));
    }
    for model in call.app.models.decoders() {
        if model.engine.stats().waiting >= model.max_waiting {
            return Err(ApiError::unavailable(
                "queue_full",
                format!("the queue of `{}` is full", model.name),
            ));
        }
    }
    Ok(json_response(StatusCode::OK, &json!({ "status": "ready" })))
}

/// Prometheus' text.
pub(crate) async fn metrics(call: Call) -> ApiResult<Response<Body>> {
    let text =
        call.app.metrics.text(call.app.models.decoders().iter().map(|m| &**m), (call.app.limits.resident)());
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

fn status(summary: &'static str, word: &str, may_be_unavailable: bool) -> Operation {
    let schema = object(&["status"], json!({ "status": { "const": word } }));
    Operation { summary, request: None, answers: vec![("application/json", schema)], may_be_unavailable }
}

pub(crate) fn describe_healthz() -> Operation {
    status("Whether the process is alive", "alive", false)
}

pub(crate) fn describe_readyz() -> Operation {
    status("Whether requests will be answered", "ready", true)
}

pub(crate) fn describe_openapi() -> Operation {
    let answers = vec![("application/json", json!({ "type": "object" }))];
    Operation { summary: "This document", request: None, answers, may_be_unavailable: false }
}

pub(crate) fn describe_metrics() -> Operation {
    let answers = vec![("application/openmetrics-text", json!({ "type": "string" }))];
    Operation { summary: "Metrics for Prometheus", request: None, answers, may_be_unavailable: false }
}
