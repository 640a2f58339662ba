//! What DeepSeek's service has beside OpenAI's API: its other paths are in the table of routes, its fields in the handlers of chat and
//! plain completions. Source: api-docs.deepseek.com.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use super::error::{ApiResult, json_response};
use super::openapi::{Operation, object};
use crate::admission::{Unit, amount_text};
use crate::call::Call;

/// Whether a request came as clients of DeepSeek's service send it: without `/v1`, or under `/beta`.
pub(crate) fn is_own_path(path: &str) -> bool {
    ["/chat/completions", "/completions", "/beta/"].iter().any(|own| path.starts_with(own))
}

/// `GET /user/balance`: what the key's tenant, project and key leave of the month, in the currency and in tokens; no entry where nothing
/// limits it.
pub(crate) async fn balance(call: Call) -> ApiResult<Response<Body>> {
    let bounds = &call.who()?.bounds;
    let budget =
        |unit| call.app.books.ask(|ledger, now_ms| ledger.budget(bounds, unit, now_ms)).map(|l| l.left);
    let [requests, tokens, cost] = [Unit::Requests, Unit::Tokens, Unit::Cost].map(budget);
    let entry = |currency: &str, total: String| json!({ "currency": currency, "total_balance": total, "granted_balance": total, "topped_up_balance": "0" });
    let currency = call.app.limits.prices.currency();
    let of_cost = cost.map(|left| entry(currency, amount_text(left)));
    let of_tokens = tokens.map(|left| entry("tokens", left.to_string()));
    let infos: Vec<Value> = of_cost.into_iter().chain(of_tokens).collect();
    let is_available = [requests, tokens, cost].iter().flatten().all(|left| *left > 0);
    Ok(json_response(StatusCode::OK, &json!({ "is_available": is_available, "balance_infos": infos })))
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
