//! `POST /v1/tokenize`: `prompt` to ids, as `POST /v1/completions` would see it.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::json;

use super::params::{self, Fields};
use crate::api::error::{ApiResult, json_response};
use crate::routes::Call;

pub(crate) async fn tokenize(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(params::json(&call.body)?)?;
    let model = params::model(&call, &mut fields)?;
    let text = fields.need_string("prompt")?;
    fields.finish()?;
    let ids = model.tokenizer.encode_prompt(&text)?;
    let body = json!({ "tokens": ids, "count": ids.len(), "max_model_len": model.max_model_len });
    Ok(json_response(StatusCode::OK, &body))
}
