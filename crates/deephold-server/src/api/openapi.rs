//! `GET /openapi.json`: the service described by the table of routes and by what each handler reads and writes.

use axum::body::Body;
use axum::http::{Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::error::{ApiResult, ErrorStyle, json_response};
use crate::call::Call;
use crate::routes::{ROUTES, Route};

/// One operation as its handler's module describes it.
pub(crate) struct Operation {
    /// What it does, in a few words.
    pub(crate) summary: &'static str,
    /// JSON schema of the body; none where there is none.
    pub(crate) request: Option<Value>,
    /// Media types of the answer with their schemas.
    pub(crate) answers: Vec<(&'static str, Value)>,
    /// Whether what it refuses is anything but the key or the method.
    pub(crate) may_be_unavailable: bool,
}

pub(crate) async fn document(_: Call) -> ApiResult<Response<Body>> {
    Ok(json_response(StatusCode::OK, &describe()))
}

/// The whole document.
pub(crate) fn describe() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let method = if route.method == Method::GET { "get" } else { "post" };
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Deephold",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Private DeepSeek: OpenAI's API over models inside your own walls.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer", "bearerFormat": "dh_ and 64 hex digits" } },
            "schemas": { "Error": error_schema(), "AnthropicError": anthropic_error_schema() },
        },
    })
}

fn operation(route: &Route) -> Value {
    let described = (route.describe)();
    let content: Map<String, Value> = described
        .answers
        .into_iter()
        .map(|(kind, schema)| (kind.to_owned(), json!({ "schema": schema })))
        .collect();
    let mut responses = json!({ "200": { "description": "Done", "content": content } });
    let errors = match route.errors {
        ErrorStyle::OpenAi | ErrorStyle::DeepSeek => "#/components/schemas/Error",
        ErrorStyle::Anthropic => "#/components/schemas/AnthropicError",
    };
    let mut parameters = json!([]);
    let mut refusals = Vec::new();
    if !route.roles.is_empty() {
        refusals.extend([("401", "The key is missing or not valid"), ("403", "The key may not do this")]);
    }
    if described.request.is_some() {
        refusals.extend([
            ("400", "A field is wrong; `param` names it"),
            ("404", "There is no such model"),
            ("408", "The body did not come in time, or the time for the request was up"),
            ("413", "The body is too large"),
            ("500", "A defect; the server's log says more"),
        ]);
    }
    if route.errors == ErrorStyle::DeepSeek && described.request.is_some() {
        refusals.push(("422", "A field is wrong; `param` names it"));
    }
    if described.may_be_unavailable {
        if described.request.is_some() {
            refusals.extend([
                ("402", "A budget of a day or a month is used up; the message names it"),
                ("429", "A limit is reached; `Retry-After` says when it is worth trying again"),
            ]);
        }
        refusals.push(("503", "Not now; `Retry-After` says when it is worth trying again"));
    }
    for (status, description) in refusals {
        responses[status] = json!({
            "description": description,
            "content": { "application/json": { "schema": { "$ref": errors } } },
        });
    }
    if let Some(name) = route.path.split_once('{').map(|(_, name)| name.trim_end_matches('}')) {
        responses["404"] = json!({
            "description": "There is no such thing",
            "content": { "application/json": { "schema": { "$ref": errors } } },
        });
        parameters = json!([{ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }]);
    }
    if !route.query.is_empty() {
        let parameter = |(name, about): &(&str, &str)| {
            let schema = match *name {
                "from" | "to" => json!({ "type": "string", "format": "date", "pattern": "^20[0-9]{2}-" }),
                "format" => json!({ "enum": ["json", "csv"] }),
                _ => json!({ "type": "string" }),
            };
            json!({ "name": name, "in": "query", "description": about, "schema": schema })
        };
        parameters = route.query.iter().map(parameter).collect();
        responses["400"] = json!({
            "description": "A parameter is wrong; `param` names it",
            "content": { "application/json": { "schema": { "$ref": errors } } },
        });
    }
    let roles: Vec<&str> = route.roles.iter().map(|r| r.name()).collect();
    let mut out = json!({ "summary": described.summary, "parameters": parameters, "responses": responses });
    if let Some(schema) = described.request {
        out["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if !roles.is_empty() {
        out["security"] = json!([{ "key": [] }]);
        out["description"] = format!("For keys of these roles: {}.", roles.join(", ")).into();
    }
    out
}

fn error_schema() -> Value {
    object(
        &["error"],
        json!({ "error": object(&["message", "type", "param", "code"], json!({
            "message": { "type": "string" },
            "type": { "type": "string" },
            "param": { "type": ["string", "null"] },
            "code": { "type": "string" },
        })) }),
    )
}

fn anthropic_error_schema() -> Value {
    let error = object(
        &["type", "message"],
        json!({ "type": { "type": "string" }, "message": { "type": "string" } }),
    );
    object(&["type", "error"], json!({ "type": { "const": "error" }, "error": error }))
}

/// An object of an answer, which later versions may add to.
pub(crate) fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

/// A body: nothing but these fields, each of which may be null unless it is required. Null says nothing, so it is taken for any
/// other field as well: clients send it for what they do not use.
pub(crate) fn body(required: &[&str], properties: Value) -> Value {
    let mut out = object(required, properties);
    out["additionalProperties"] = json!({ "type": "null" });
    for (name, schema) in out["properties"].as_object_mut().into_iter().flatten() {
        if !required.contains(&name.as_str()) {
            *schema = json!({ "anyOf": [schema.take(), { "type": "null" }] });
        }
    }
    out
}
