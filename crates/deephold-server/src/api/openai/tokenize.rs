//! `POST /v1/tokenize`: `prompt` to ids, as `POST /v1/completions` would see it; `POST /v1/detokenize`: `tokens` to text.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use deephold_base::TokenId;
use deephold_tokenizer::{Detokenizer, Tokenizer};
use serde_json::{Value, json};

use super::params::{Fields, token_ids};
use crate::api::error::{ApiError, ApiResult, json_response};
use crate::api::openapi::{Operation, body, object};
use crate::call::Call;

pub(crate) async fn tokenize(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.model(&mut fields)?;
    let text = fields.need_string("prompt")?;
    fields.finish()?;
    let ids = model.tokenizer.encode_prompt(&text)?;
    let body = json!({ "tokens": ids, "count": ids.len(), "max_model_len": model.max_model_len });
    Ok(json_response(StatusCode::OK, &body))
}

pub(crate) async fn detokenize(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.model(&mut fields)?;
    let list = fields.array("tokens")?.ok_or_else(|| ApiError::param("tokens", "is missing"))?;
    fields.finish()?;
    let size = model.tokenizer.vocab_size();
    let ids = token_ids(&list).filter(|ids| ids.iter().all(|id| (*id as usize) < size));
    let ids = ids.ok_or_else(|| ApiError::param("tokens", format!("must be a list of ids below {size}")))?;
    let body = json!({ "prompt": text_of(&model.tokenizer, &ids) });
    Ok(json_response(StatusCode::OK, &body))
}

/// The text of a prompt's ids, markers included: what was tokenized comes back.
pub(super) fn text_of(tokenizer: &Tokenizer, ids: &[TokenId]) -> String {
    let mut detokenizer = Detokenizer::new().keep_control(true);
    let mut text: String = ids.iter().map(|id| detokenizer.push(tokenizer, *id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

const IDS: fn() -> Value =
    || json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX } });

pub(crate) fn describe_tokenize() -> Operation {
    let request = json!({ "model": { "type": "string" }, "prompt": { "type": "string" } });
    let answer =
        json!({ "tokens": IDS(), "count": { "type": "integer" }, "max_model_len": { "type": "integer" } });
    Operation {
        summary: "Text to token ids, as /v1/completions sees it",
        request: Some(body(&["model", "prompt"], request)),
        answers: vec![("application/json", object(&["tokens", "count", "max_model_len"], answer))],
        may_be_unavailable: false,
    }
}

pub(crate) fn describe_detokenize() -> Operation {
    Operation {
        summary: "Token ids to text",
        request: Some(body(&["model", "tokens"], json!({ "model": { "type": "string" }, "tokens": IDS() }))),
        answers: vec![("application/json", object(&["prompt"], json!({ "prompt": { "type": "string" } })))],
        may_be_unavailable: false,
    }
}
