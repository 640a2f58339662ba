//! `GET /v1/models` and one of them.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use deephold_tokenizer::THINK_OPEN;
use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult, json_response};
use crate::api::openapi::{Operation, object};
use crate::backends::ServedModel;
use crate::call::Call;

pub(crate) async fn list(call: Call) -> ApiResult<Response<Body>> {
    let who = call.who()?;
    let models = call.app.models.all();
    let models = models.iter().filter(|m| who.may_use(m.name()));
    let data: Vec<Value> =
        models.flat_map(|m| names(&call, m).map(|name| entry(&name, m)).collect::<Vec<_>>()).collect();
    Ok(json_response(StatusCode::OK, &json!({ "object": "list", "data": data })))
}

/// A model's own name, then its others.
fn names<'a>(call: &'a Call, model: &'a ServedModel) -> impl Iterator<Item = String> + 'a {
    let aliases = call.app.models.aliases().iter().filter(|(_, target)| target == model.name());
    std::iter::once(model.name().to_owned()).chain(aliases.map(|(alias, _)| alias.clone()))
}

/// `GET /v1/models/{model}`.
pub(crate) async fn one(call: Call) -> ApiResult<Response<Body>> {
    let name = call.path.trim_start_matches("/v1/models/");
    let name = percent_decoded(name).ok_or_else(|| ApiError::not_found("there is no such model"))?;
    let model = call.model_named(&name)?;
    Ok(json_response(StatusCode::OK, &entry(&name, &model)))
}

/// Text of a path; none where it is no UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

fn entry(name: &str, model: &ServedModel) -> Value {
    let facts = model.facts();
    let (chat, generates) = match model {
        ServedModel::Decoder(m) => (m.chat.as_ref(), true),
        ServedModel::Encoder(_) => (None, false),
    };
    json!({
        "id": name, "object": "model", "created": model.created_s(), "owned_by": "deephold", "root": model.name(),
        "max_model_len": facts.context, "architecture": facts.architecture,
        "parameters": facts.parameters, "license": facts.license, "digest": facts.digest,
        "capabilities": {
            "completions": generates,
            "chat": chat.is_some(),
            "tools": chat.is_some(),
            "thinking": chat.is_some() && model.tokenizer().token_to_id(THINK_OPEN).is_some(),
            "fill_in_the_middle": generates && model.tokenizer().can_fill_in_the_middle(),
            "embeddings": true,
        },
    })
}

fn schema() -> Value {
    object(
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
            "root": { "type": "string", "description": "The model that an alias stands for" },
            "capabilities": { "type": "object", "additionalProperties": { "type": "boolean" } },
        }),
    )
}

pub(crate) fn describe_one() -> Operation {
    let answers = vec![("application/json", schema())];
    Operation { summary: "One model", request: None, answers, may_be_unavailable: false }
}

pub(crate) fn describe() -> Operation {
    let list = object(
        &["object", "data"],
        json!({ "object": { "const": "list" }, "data": { "type": "array", "items": schema() } }),
    );
    let answers = vec![("application/json", list)];
    Operation {
        summary: "The models that this key may use",
        request: None,
        answers,
        may_be_unavailable: false,
    }
}
