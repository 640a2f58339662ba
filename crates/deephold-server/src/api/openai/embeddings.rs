//! `POST /v1/embeddings`: a vector of length 1 for each text, an encoder's or the mean of a decoder's hidden states.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use deephold_base::TokenId;
use serde_json::{Value, json};

use super::params::{self, Fields};
use crate::admission::{Outcome, Permit, recordable};
use crate::api::error::{ApiError, ApiResult, json_response};
use crate::api::openapi::{Operation, body, object};
use crate::call::Call;
use crate::generation::{VectorRequest, embed};

/// Inputs of a request at most.
const INPUTS_MAX: usize = 256;
const ENDPOINT: &str = "/v1/embeddings";

pub(crate) async fn embeddings(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.vector_model(&mut fields)?;
    let prompts = params::prompts(&mut fields, "input", INPUTS_MAX, model.tokenizer())?;
    if prompts.iter().any(|p| p.ids.is_empty() || p.text.as_deref() == Some("")) {
        return Err(ApiError::param("input", "must not be empty"));
    }
    let mut prompts: Vec<Vec<TokenId>> = prompts.into_iter().map(|p| p.ids).collect();
    let as_base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::param("encoding_format", "must be float or base64")),
    };
    let size = model.hidden_size();
    let dimensions = fields.integer("dimensions", 1, size as i64)?.map_or(size, |n| n as usize);
    if let Some(longest) = fields.integer("truncate_prompt_tokens", -1, i64::from(u32::MAX))? {
        let longest = usize::try_from(longest).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
        prompts.iter_mut().for_each(|ids| truncate(ids, longest.min(model.text_len_max())));
    }
    let timeout = params::timeout(&mut fields, call.app.limits.request_time)?;
    fields.string("user")?;
    fields.finish()?;
    recordable(&call.app).await?;
    let request = VectorRequest { model, prompts, timeout };
    let (vectors, tokens) = recorded(&call, ENDPOINT, &request).await?;
    let entry = |(index, vector): (usize, Vec<f32>)| {
        let vector = unit(&vector[..dimensions]);
        let embedding = match as_base64 {
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            }
            false => json!(vector),
        };
        json!({ "object": "embedding", "index": index, "embedding": embedding })
    };
    let data: Vec<Value> = vectors.into_iter().enumerate().map(entry).collect();
    let body = json!({
        "object": "list", "model": request.model.name(), "data": data,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// Vectors of a request and how many tokens it had, once the audit log has its record.
pub(super) async fn recorded(
    call: &Call,
    endpoint: &str,
    request: &VectorRequest,
) -> ApiResult<(Vec<Vec<f32>>, usize)> {
    let mut permit = Permit::of_vectors(call, endpoint, request)?;
    let tokens = permit.usage.prompt_tokens;
    match embed(request, call.who()?).await {
        Ok(vectors) => {
            permit.add_vectors(&vectors);
            permit.close(Outcome::Completed).await?;
            Ok((vectors, tokens))
        }
        Err(e) => {
            permit.close(Outcome::of_error(&e)).await?;
            Err(e)
        }
    }
}

/// Leaves `longest` tokens at most; the last one stays the last, because it may be the mark that ends a text.
pub(super) fn truncate(ids: &mut Vec<TokenId>, longest: usize) {
    if let (true, Some(last)) = (ids.len() > longest, ids.last().copied()) {
        ids.truncate(longest.saturating_sub(1));
        ids.push(last);
    }
}

/// Scaled to length 1; a vector of zeros stays.
pub(super) fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(|x| (f64::from(*x) * scale) as f32).collect()
}

pub(crate) fn describe() -> Operation {
    let text = json!({ "type": "string", "minLength": 1 });
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX }, "minItems": 1 });
    let list =
        |items: &Value| json!({ "type": "array", "items": items, "minItems": 1, "maxItems": INPUTS_MAX });
    let request = body(
        &["model", "input"],
        json!({
            "model": { "type": "string" },
            "input": { "anyOf": [text, ids, list(&text), list(&ids)] },
            "encoding_format": { "enum": ["float", "base64"] },
            "dimensions": { "type": "integer", "minimum": 1, "description": "The first of the vector, scaled to length 1 again" },
            "truncate_prompt_tokens": { "type": "integer", "minimum": -1, "maximum": u32::MAX, "description": "Longer texts are cut to this; -1 for what the model takes. Without it they are refused" },
            "timeout": { "type": "number", "minimum": 0.001, "maximum": 600 },
            "user": { "type": "string" },
        }),
    );
    let entry = object(
        &["object", "index", "embedding"],
        json!({
            "object": { "const": "embedding" }, "index": { "type": "integer" },
            "embedding": { "anyOf": [{ "type": "array", "items": { "type": "number" } }, { "type": "string" }] },
        }),
    );
    let answer = object(
        &["object", "model", "data", "usage"],
        json!({
            "object": { "const": "list" }, "model": { "type": "string" }, "data": { "type": "array", "items": entry },
            "usage": object(&["prompt_tokens", "total_tokens"], json!({})),
        }),
    );
    Operation {
        summary: "Texts to vectors, by an encoder or by the mean of a model's hidden states",
        request: Some(request),
        answers: vec![("application/json", answer)],
        may_be_unavailable: true,
    }
}
