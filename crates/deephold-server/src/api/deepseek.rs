//! What DeepSeek's service has beside OpenAI's API: its other paths are in the table of routes, its fields in the handlers of chat and
//! plain completions. Source: api-docs.deepseek.com.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::json;

use super::error::{ApiResult, json_response};
use super::openapi::{Operation, object};
use crate::call::Call;

/// Whether a request came as clients of DeepSeek's service send it: without `/v1`, or under `/beta`.
pub(crate) fn is_own_path(path: &str) -> bool {
    ["/chat/completions", "/completions", "/beta/"].iter().any(|own| path.starts_with(own))
}

/// `GET /user/balance`: what is left to the tenant. Nothing limits a tenant yet, so there is no figure, and it is available.
pub(crate) async fn balance(_: Call) -> ApiResult<Response<Body>> {
    Ok(json_response(StatusCode::OK, &json!({ "is_available": true, "balance_infos": [] })))
}

pub(crate) fn describe_balance() -> Operation {
    let info = object(
        &["currency", "total_balance"],
        json!({
            "currency": { "type": "string" }, "total_balance": { "type": "string" },
        }),
    );
    let schema = object(
        &["is_available", "balance_infos"],
        json!({
            "is_available": { "type": "boolean" }, "balance_infos": { "type": "array", "items": info },
        }),
    );
    let answers = vec![("application/json", schema)];
    let summary = "What is left of the tenant's budget; no entry where nothing limits it";
    Operation { summary, request: None, answers, may_be_unavailable: false }
}
