//! `POST /v1/embeddings`: the mean of a prompt's hidden states, of length 1.

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
use crate::generation::{Usage, ValidRequest, embed, with_seed};

/// Inputs of a request at most.
const INPUTS_MAX: usize = 256;
const ENDPOINT: &str = "/v1/embeddings";

pub(crate) async fn embeddings(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.model(&mut fields)?;
    let prompts = params::prompts(&mut fields, "input", INPUTS_MAX, &model.tokenizer)?;
    if prompts.iter().any(|p| p.ids.is_empty() || p.text.as_deref() == Some("")) {
        return Err(ApiError::param("input", "must not be empty"));
    }
    let prompts: Vec<Vec<TokenId>> = prompts.into_iter().map(|p| p.ids).collect();
    let as_base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::param("encoding_format", "must be float or base64")),
    };
    let size = model.hidden_size;
    let dimensions = fields.integer("dimensions", 1, size as i64)?.map_or(size, |n| n as usize);
    let timeout = params::timeout(&mut fields, call.app.limits.request_time)?;
    fields.string("user")?;
    fields.finish()?;
    recordable(&call.app).await?;
    let usage = Usage { prompt_tokens: prompts.iter().map(Vec::len).sum(), ..Usage::default() };
    let request = ValidRequest {
        params: with_seed(model.defaults.clone()),
        model,
        prompts,
        chat: None,
        stops: Vec::new(),
        timeout,
        guide: None,
        priority: 0,
        cache_salt: Vec::new(),
    };
    let who = call.who()?;
    let mut permit = Permit::new(&call.app, &call.request_id, ENDPOINT, who, &request);
    permit.usage = usage;
    let vectors = match embed(&request, who.tenant.clone()).await {
        Ok(vectors) => vectors,
        Err(e) => {
            permit.close(Outcome::Failed).await?;
            return Err(e);
        }
    };
    permit.close(Outcome::Completed).await?;
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
    let tokens = usage.prompt_tokens;
    let body = json!({
        "object": "list", "model": request.model.name, "data": data,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// Scaled to length 1; a vector of zeros stays.
fn unit(vector: &[f32]) -> Vec<f32> {
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
        summary: "Texts to vectors: the mean of a model's hidden states",
        request: Some(request),
        answers: vec![("application/json", answer)],
        may_be_unavailable: true,
    }
}
