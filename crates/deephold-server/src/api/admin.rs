//! Administration over HTTP: the acts of the socket in the state folder, for keys of role admin; what was used, for whoever watches.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use deephold_base::day_number;
use deephold_state::{UsageFilter, UsageRow};
use serde_json::{Map, Value, json};

use super::error::{ApiError, ApiResult, json_response};
use super::openapi::{Operation, body, object};
use crate::admin::{AdminAnswer, AdminRequest, execute};
use crate::call::Call;
use crate::usage_table::{cost_of, date_of, usage_csv};

/// What usage can be asked for.
pub(crate) const USAGE_QUERY: &[(&str, &str)] = &[
    ("from", "The first day, as 2026-11-25"),
    ("to", "The last day"),
    ("tenant", "Only of this tenant"),
    ("project", "Only of this project"),
    ("key", "Only of this key"),
    ("model", "Only of this model"),
    ("format", "`json`, or `csv` for a spreadsheet"),
];

/// As [`USAGE_QUERY`], for a tenant's own.
pub(crate) const OWN_USAGE_QUERY: &[(&str, &str)] =
    &[USAGE_QUERY[0], USAGE_QUERY[1], USAGE_QUERY[3], USAGE_QUERY[4], USAGE_QUERY[5], USAGE_QUERY[6]];

async fn act(call: &Call, request: AdminRequest) -> ApiResult<AdminAnswer> {
    let app = call.app.clone();
    let done = tokio::task::spawn_blocking(move || execute(&request, &*app.store, &app.log, app.unix_ms()));
    let answer = done.await.map_err(|e| ApiError::internal(format!("the act failed: {e}")))?;
    match answer {
        Ok(AdminAnswer::Refused(why)) => Err(ApiError::bad_request(why)),
        Ok(answer) => Ok(answer),
        Err(error) => {
            tracing::error!(%error, "an act of administration failed");
            Err(ApiError::unavailable(
                "state_unavailable",
                "the state or the audit log failed; the server's log says why",
            ))
        }
    }
}

/// The body as an act of this name.
fn request(call: &Call, name: &str) -> ApiResult<AdminRequest> {
    let Value::Object(fields) = call.json()? else {
        return Err(ApiError::bad_request("the body must be an object"));
    };
    // Null says nothing, but among limits it takes one away.
    let mut map: Map<String, Value> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
    if map.contains_key("act") {
        return Err(ApiError::param("act", "is not a field"));
    }
    // A record would also be read from a list of its values in order.
    if map.get("limits").is_some_and(|limits| !limits.is_object()) {
        return Err(ApiError::param("limits", "must be an object"));
    }
    map.insert("act".into(), json!(name));
    serde_json::from_value(map.into()).map_err(|e| ApiError::bad_request(format!("the body is wrong: {e}")))
}

fn done(value: &Value) -> ApiResult<Response<Body>> {
    Ok(json_response(StatusCode::OK, value))
}

pub(crate) async fn create_key(call: Call) -> ApiResult<Response<Body>> {
    issued(act(&call, request(&call, "create_key")?).await?)
}

pub(crate) async fn rotate_key(call: Call) -> ApiResult<Response<Body>> {
    issued(act(&call, request(&call, "rotate_key")?).await?)
}

fn issued(answer: AdminAnswer) -> ApiResult<Response<Body>> {
    match answer {
        AdminAnswer::Issued { key, secret } => done(&json!({ "key": key, "secret": secret })),
        _ => Err(ApiError::internal("another question was answered")),
    }
}

pub(crate) async fn revoke_key(call: Call) -> ApiResult<Response<Body>> {
    act(&call, request(&call, "revoke_key")?).await?;
    done(&json!({ "done": true }))
}

pub(crate) async fn keys(call: Call) -> ApiResult<Response<Body>> {
    match act(&call, AdminRequest::ListKeys).await? {
        AdminAnswer::Keys(keys) => done(&json!({ "keys": keys })),
        _ => Err(ApiError::internal("another question was answered")),
    }
}

pub(crate) async fn set_tenant(call: Call) -> ApiResult<Response<Body>> {
    act(&call, request(&call, "set_tenant")?).await?;
    done(&json!({ "done": true }))
}

pub(crate) async fn set_project(call: Call) -> ApiResult<Response<Body>> {
    act(&call, request(&call, "set_project")?).await?;
    done(&json!({ "done": true }))
}

pub(crate) async fn tenants(call: Call) -> ApiResult<Response<Body>> {
    match act(&call, AdminRequest::ListTenants).await? {
        AdminAnswer::Tenants { tenants, projects } => {
            done(&json!({ "tenants": tenants, "projects": projects }))
        }
        _ => Err(ApiError::internal("another question was answered")),
    }
}

/// Of all tenants.
pub(crate) async fn usage(call: Call) -> ApiResult<Response<Body>> {
    let (filter, as_csv) = filter(&call.query, USAGE_QUERY)?;
    table(&call, filter, as_csv).await
}

/// Of the caller's own tenant.
pub(crate) async fn own_usage(call: Call) -> ApiResult<Response<Body>> {
    let (mut filter, as_csv) = filter(&call.query, OWN_USAGE_QUERY)?;
    filter.tenant = Some(call.who()?.tenant.to_string());
    table(&call, filter, as_csv).await
}

async fn table(call: &Call, filter: UsageFilter, as_csv: bool) -> ApiResult<Response<Body>> {
    let rows = call.app.ask_store(move |store| store.usage(&filter)).await?;
    if as_csv {
        let mut response = Response::new(Body::from(usage_csv(&rows)));
        let kind = HeaderValue::from_static("text/csv; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        return Ok(response);
    }
    let data: Vec<Value> = rows.iter().map(row_json).collect();
    done(&json!({ "currency": call.app.limits.prices.currency(), "data": data }))
}

fn row_json(row: &UsageRow) -> Value {
    json!({
        "day": date_of(row), "tenant": row.tenant, "project": row.project, "key": row.key, "model": row.model,
        "requests": row.requests, "prompt_tokens": row.prompt_tokens, "cached_tokens": row.cached_tokens,
        "completion_tokens": row.completion_tokens, "cost": cost_of(row),
    })
}

/// The parameters behind a path, each at most once and none that is not known; and whether a table is wanted.
fn filter(query: &str, known: &[(&str, &str)]) -> ApiResult<(UsageFilter, bool)> {
    let mut filter = UsageFilter::default();
    let (mut as_csv, mut seen) = (false, Vec::new());
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query)
        .map_err(|e| ApiError::bad_request(format!("the parameters cannot be read: {e}")))?;
    for (name, value) in pairs {
        if !known.iter().any(|(k, _)| *k == name) {
            let shown: String = name.chars().take(60).collect();
            return Err(ApiError::param(shown, "is no parameter here"));
        }
        if seen.contains(&name) {
            return Err(ApiError::param(name, "is given twice"));
        }
        let day =
            || day_number(&value).ok_or_else(|| ApiError::param(&*name, "must be a day, as 2026-11-25"));
        match &*name {
            "from" => filter.from_day = Some(day()?),
            "to" => filter.to_day = Some(day()?),
            "tenant" => filter.tenant = Some(value),
            "project" => filter.project = Some(value),
            "key" => filter.key = Some(value),
            "model" => filter.model = Some(value),
            _ => {
                as_csv = match &*value {
                    "json" => false,
                    "csv" => true,
                    _ => return Err(ApiError::param("format", "must be json or csv")),
                }
            }
        }
        seen.push(name);
    }
    Ok((filter, as_csv))
}

fn operation(summary: &'static str, request: Option<Value>, answer: Value) -> Operation {
    Operation { summary, request, answers: vec![("application/json", answer)], may_be_unavailable: true }
}

fn done_schema() -> Value {
    object(&["done"], json!({ "done": { "const": true } }))
}

fn name_schema() -> Value {
    let no_control = r"\x00-\x1f\x7f-\x9f";
    let pattern = format!(r"^[^{no_control}]*[^\s{no_control}][^{no_control}]*$");
    json!({ "type": "string", "minLength": 1, "maxLength": 200, "pattern": pattern })
}

/// Names of limits.
const LIMITS: [&str; 10] = [
    "requests_per_minute",
    "requests_per_day",
    "requests_per_month",
    "tokens_per_minute",
    "tokens_per_day",
    "tokens_per_month",
    "nanos_per_month",
    "concurrent",
    "queued",
    "queue_ms",
];

/// Limits, as far as a subject has them.
fn limits_schema(without: &[&str]) -> Value {
    let known = LIMITS.iter().filter(|name| !without.contains(name));
    let limit = |name: &&str| {
        let low = u64::from(*name == "queued");
        ((*name).to_owned(), json!({ "type": ["integer", "null"], "minimum": low, "maximum": i64::MAX }))
    };
    let properties: Map<String, Value> = known.map(limit).collect();
    json!({
        "type": "object", "properties": properties, "additionalProperties": false,
        "description": "Null takes a limit away; `nanos_per_month` is in billionths of the currency, `queue_ms` in milliseconds",
    })
}

fn key_answer() -> Value {
    object(
        &["key", "secret"],
        json!({ "key": { "type": "object" }, "secret": { "type": "string", "description": "Shown this once" } }),
    )
}

pub(crate) fn describe_create_key() -> Operation {
    let list = |items: Value| json!({ "type": "array", "items": items, "maxItems": 100 });
    let request = body(
        &["owner", "role"],
        json!({
            "tenant": name_schema(), "project": name_schema(), "owner": name_schema(),
            "role": { "enum": ["admin", "operator", "auditor", "app"] },
            "models": list(name_schema()),
            "endpoints": list(json!({ "enum": ["/v1", "/v1/chat/completions", "/v1/embeddings"], "description": "A path of the API, with what lies below" })),
            "limits": limits_schema(&["queued"]),
            "expires_ms": { "type": "integer", "minimum": 0, "maximum": i64::MAX, "description": "Milliseconds since 1970" },
        }),
    );
    operation("Makes a key", Some(request), key_answer())
}

fn id_body() -> Value {
    body(&["id"], json!({ "id": { "type": "string", "description": "As the list of keys shows it" } }))
}

pub(crate) fn describe_rotate_key() -> Operation {
    operation("Makes a key like another one, which ends", Some(id_body()), key_answer())
}

pub(crate) fn describe_revoke_key() -> Operation {
    operation("Ends a key at once", Some(id_body()), done_schema())
}

pub(crate) fn describe_keys() -> Operation {
    let list = json!({ "type": "array", "items": { "type": "object" } });
    operation("All keys, without secrets", None, object(&["keys"], json!({ "keys": list })))
}

pub(crate) fn describe_set_tenant() -> Operation {
    let request = body(
        &["name"],
        json!({
            "name": name_schema(),
            "weight": { "type": "number", "minimum": 0.01, "maximum": 100, "description": "Its share of the machine against others'" },
            "limits": limits_schema(&[]),
        }),
    );
    operation("Makes a tenant, or changes it", Some(request), done_schema())
}

pub(crate) fn describe_set_project() -> Operation {
    let request = body(
        &["tenant", "name"],
        json!({ "tenant": name_schema(), "name": name_schema(), "limits": limits_schema(&["queued"]) }),
    );
    operation("Makes a project of a tenant, or changes it", Some(request), done_schema())
}

pub(crate) fn describe_tenants() -> Operation {
    let list = json!({ "type": "array", "items": { "type": "object" } });
    let answer = object(&["tenants", "projects"], json!({ "tenants": list, "projects": list }));
    operation("Tenants, projects and their limits", None, answer)
}

fn usage_operation(summary: &'static str) -> Operation {
    let text = json!({ "type": "string" });
    let count = json!({ "type": "integer", "minimum": 0 });
    let row = object(
        &[
            "day",
            "tenant",
            "project",
            "key",
            "model",
            "requests",
            "prompt_tokens",
            "completion_tokens",
            "cost",
        ],
        json!({
            "day": text, "tenant": text, "project": text, "key": text, "model": text, "requests": count,
            "prompt_tokens": count, "cached_tokens": count, "completion_tokens": count, "cost": text,
        }),
    );
    let answer = object(
        &["currency", "data"],
        json!({ "currency": { "type": "string" }, "data": { "type": "array", "items": row } }),
    );
    let answers = vec![("application/json", answer), ("text/csv", json!({ "type": "string" }))];
    Operation { summary, request: None, answers, may_be_unavailable: true }
}

pub(crate) fn describe_usage() -> Operation {
    usage_operation("What was used, by day, tenant, project, key and model")
}

pub(crate) fn describe_own_usage() -> Operation {
    usage_operation("What the key's own tenant used")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_described_as_they_are_read() {
        let all: Map<String, Value> = LIMITS.iter().map(|name| ((*name).to_owned(), json!(1))).collect();
        let limits: deephold_state::Limits = serde_json::from_value(all.clone().into()).expect("limits");
        assert_eq!(json!(limits), Value::Object(all), "a limit is missing from the description");
    }

    #[test]
    fn parameters_are_known_and_given_once() {
        let (read, csv) = filter("from=2026-11-01&tenant=a%20b&format=csv", USAGE_QUERY).expect("a filter");
        assert_eq!((read.from_day, read.tenant.as_deref(), csv), (Some(20_758), Some("a b"), true));
        for bad in
            ["form=1", "from=yesterday", "from=2026-11-01&from=2026-11-02", "format=xml", "tenant=%ff%fe&x"]
        {
            assert!(filter(bad, USAGE_QUERY).is_err(), "{bad}");
        }
        assert!(filter("tenant=other", OWN_USAGE_QUERY).is_err(), "a tenant sees its own alone");
    }
}
