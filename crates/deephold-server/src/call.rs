//! A request on its way from the table of routes to its handler.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;

use crate::access::Principal;
use crate::admission::Rates;
use crate::api::error::{ApiError, ApiResult};
use crate::api::fields::Fields;
use crate::app::App;
use crate::backends::{Hosted, ServedModel};

/// A request that passed the table: who asks, and what.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) request_id: String,
    /// None where the route is open.
    pub(crate) principal: Option<Principal>,
    pub(crate) path: String,
    /// What stands behind the path's question mark.
    pub(crate) query: String,
    /// What is left of the caller's limits, for the response.
    pub(crate) rates: Arc<OnceLock<Rates>>,
    pub(crate) body: Bytes,
}

impl Call {
    /// The body as JSON; nesting is bounded by the parser.
    pub(crate) fn json(&self) -> ApiResult<Value> {
        serde_json::from_slice(&self.body).map_err(|e| {
            let message = format!("the body is not valid JSON: {e}");
            ApiError { code: "invalid_json", ..ApiError::bad_request(message) }
        })
    }

    /// The model of that name, where the request's key may use it.
    pub(crate) fn model_named(&self, name: &str) -> ApiResult<ServedModel> {
        let model = self.app.models.find(name)?;
        if !self.who()?.may_use(model.name()) {
            return Err(ApiError::forbidden(format!("this key may not use the model `{}`", model.name())));
        }
        Ok(model)
    }

    /// The model that a request names, for vectors.
    pub(crate) fn vector_model(&self, fields: &mut Fields) -> ApiResult<ServedModel> {
        self.model_named(&fields.need_string("model")?)
    }

    /// The model that a request names, for text.
    pub(crate) fn model(&self, fields: &mut Fields) -> ApiResult<Arc<Hosted>> {
        match self.vector_model(fields)? {
            ServedModel::Decoder(model) => Ok(model),
            ServedModel::Encoder(_) => Err(ApiError::param(
                "model",
                "is an encoder: it gives vectors, not text; ask /v1/embeddings or /v1/rerank",
            )),
        }
    }

    /// Who asks; a route that is not open has somebody.
    pub(crate) fn who(&self) -> ApiResult<&Principal> {
        self.principal.as_ref().ok_or_else(|| ApiError::internal("a route without access control"))
    }
}
