//! `POST /v1/rerank`, as Jina, Cohere and vLLM have it: documents in the order of how near they are to a query.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use super::embeddings::{recorded, truncate, unit};
use super::params::{self, Fields};
use crate::admission::recordable;
use crate::api::error::{ApiError, ApiResult, json_response};
use crate::api::openapi::{Operation, body, object};
use crate::call::Call;
use crate::generation::VectorRequest;

/// Documents of a request at most.
const DOCUMENTS_MAX: usize = 1000;
const ENDPOINT: &str = "/v1/rerank";

pub(crate) async fn rerank(call: Call) -> ApiResult<Response<Body>> {
    let mut fields = Fields::of_body(call.json()?)?;
    let model = call.vector_model(&mut fields)?;
    let query = fields.need_string("query")?;
    let documents = documents(&mut fields)?;
    let count = documents.len();
    let top = fields.integer("top_n", 1, i64::from(u32::MAX))?.map_or(count, |n| count.min(n as usize));
    let returned = fields.bool("return_documents")?.unwrap_or(true);
    let longest = fields.integer("max_tokens_per_doc", 1, i64::from(u32::MAX))?;
    let longest = longest.map_or(usize::MAX, |n| n as usize).min(model.text_len_max());
    let timeout = params::timeout(&mut fields, call.app.limits.request_time)?;
    fields.finish()?;
    let mut prompts = vec![model.tokenizer().encode_prompt(&query)?];
    for document in &documents {
        let mut ids = model.tokenizer().encode_prompt(document)?;
        truncate(&mut ids, longest);
        prompts.push(ids);
    }
    let is_empty = |index: usize, text: &str| text.is_empty() || prompts[index].is_empty();
    if is_empty(0, &query) {
        return Err(ApiError::param("query", "must not be empty"));
    }
    if documents.iter().enumerate().any(|(i, document)| is_empty(i + 1, document)) {
        return Err(ApiError::param("documents", "must not be empty"));
    }
    recordable(&call.app).await?;
    let request = VectorRequest { model, prompts, timeout };
    let (vectors, tokens) = recorded(&call, ENDPOINT, &request).await?;
    let vectors: Vec<Vec<f32>> = vectors.iter().map(|v| unit(v)).collect();
    let cosine = |index: usize| -> f64 {
        vectors[0].iter().zip(&vectors[index + 1]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let mut scored: Vec<(usize, f64)> = (0..count).map(|index| (index, cosine(index))).collect();
    // Documents that are equally near stay in the order in which they came.
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    let result = |(index, score): &(usize, f64)| {
        let mut out = json!({ "index": index, "relevance_score": score });
        if returned {
            out["document"] = json!({ "text": documents[*index] });
        }
        out
    };
    let results: Vec<Value> = scored.iter().take(top).map(result).collect();
    let body = json!({
        "id": format!("rerank-{}", call.request_id), "model": request.model.name(), "results": results,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    });
    Ok(json_response(StatusCode::OK, &body))
}

/// Texts, or objects with a `text`.
fn documents(fields: &mut Fields) -> ApiResult<Vec<String>> {
    let wrong = || ApiError::param("documents", "must be a list of texts, or of objects with a `text`");
    let Some(Value::Array(list)) = fields.take("documents") else { return Err(wrong()) };
    if list.is_empty() || list.len() > DOCUMENTS_MAX {
        let problem = format!("has {} entries; 1 to {DOCUMENTS_MAX} are taken", list.len());
        return Err(ApiError::param("documents", problem));
    }
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Object(map) => map.get("text").and_then(Value::as_str).map(str::to_owned).ok_or_else(wrong),
        _ => Err(wrong()),
    };
    list.into_iter().map(one).collect()
}

pub(crate) fn describe() -> Operation {
    let document = json!({ "anyOf": [
        { "type": "string", "minLength": 1 },
        { "type": "object", "properties": { "text": { "type": "string", "minLength": 1 } }, "required": ["text"] },
    ] });
    let request = body(
        &["model", "query", "documents"],
        json!({
            "model": { "type": "string" },
            "query": { "type": "string", "minLength": 1 },
            "documents": { "type": "array", "items": document, "minItems": 1, "maxItems": DOCUMENTS_MAX },
            "top_n": { "type": "integer", "minimum": 1, "maximum": u32::MAX },
            "return_documents": { "type": "boolean" },
            "max_tokens_per_doc": { "type": "integer", "minimum": 1, "maximum": u32::MAX, "description": "Longer documents are cut to this, and to what the model takes" },
            "timeout": { "type": "number", "minimum": 0.001, "maximum": 600 },
        }),
    );
    let result = object(
        &["index", "relevance_score"],
        json!({
            "index": { "type": "integer" },
            "relevance_score": { "type": "number", "description": "The cosine of the vectors of query and document" },
            "document": object(&["text"], json!({ "text": { "type": "string" } })),
        }),
    );
    let answer = object(
        &["id", "model", "results", "usage"],
        json!({
            "id": { "type": "string" }, "model": { "type": "string" },
            "results": { "type": "array", "items": result },
            "usage": object(&["prompt_tokens", "total_tokens"], json!({})),
        }),
    );
    Operation {
        summary: "Documents in the order of how near they are to a query",
        request: Some(request),
        answers: vec![("application/json", answer)],
        may_be_unavailable: true,
    }
}
