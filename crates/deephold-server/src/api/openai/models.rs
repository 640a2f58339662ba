//! `GET /v1/models`.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::api::error::{ApiResult, json_response};
use crate::api::openapi::{Operation, object};
use crate::call::Call;

pub(crate) async fn list(call: Call) -> ApiResult<Response<Body>> {
    let who = call.who()?;
    let models = call.app.models.all();
    let data: Vec<Value> = models
        .iter()
        .filter(|m| who.may_use(&m.name))
        .map(|m| {
            json!({
                "id": m.name, "object": "model", "created": m.created_s, "owned_by": "deephold",
                "max_model_len": m.max_model_len, "architecture": m.facts.architecture,
                "parameters": m.facts.parameters, "license": m.facts.license, "digest": m.facts.digest,
            })
        })
        .collect();
    Ok(json_response(StatusCode::OK, &json!({ "object": "list", "data": data })))
}

pub(crate) fn describe() -> Operation {
    let model = object(
        &["id", "object", "created", "owned_by", "max_model_len", "digest"],
        json!({
            "id": { "type": "string" },
            "object": { "const": "model" },
            "created": { "type": "integer" },
            "owned_by": { "type": "string" },
            "max_model_len": { "type": "integer", "description": "Tokens of prompt and answer together at most" },
            "architecture": { "type": "string" },
            "parameters": { "type": "integer" },
            "license": { "type": ["string", "null"] },
            "digest": { "type": "string", "description": "SHA-256 over the weights" },
        }),
    );
    let list = object(
        &["object", "data"],
        json!({ "object": { "const": "list" }, "data": { "type": "array", "items": model } }),
    );
    let answers = vec![("application/json", list)];
    Operation {
        summary: "The models that this key may use",
        request: None,
        answers,
        may_be_unavailable: false,
    }
}
