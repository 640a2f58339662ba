//! `GET /v1/models`.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::api::error::{ApiResult, json_response};
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
