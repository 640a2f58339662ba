//! One vector a prompt.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use deephold_base::TokenId;
use deephold_engine::{Delivery, EngineError, FinishReason, Pooling, Request, RequestId, RequestOutput};
use tokio::sync::mpsc;

use super::with_seed;
use crate::access::Principal;
use crate::api::error::{ApiError, ApiResult};
use crate::backends::{Hosted, ServedModel};

/// Texts that shall become vectors.
pub(crate) struct VectorRequest {
    pub(crate) model: ServedModel,
    /// None is empty.
    pub(crate) prompts: Vec<Vec<TokenId>>,
    /// From now on, for the whole request.
    pub(crate) timeout: Duration,
}

/// Ends the work of what was accepted when nobody waits for it any more.
struct Pending {
    model: Arc<Hosted>,
    ids: Vec<RequestId>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.ids.iter().for_each(|id| self.model.engine.abort(*id));
    }
}

/// A vector for each prompt, in their order: an encoder's, or the mean of a decoder's hidden states.
pub(crate) async fn embed(request: &VectorRequest, who: &Principal) -> ApiResult<Vec<Vec<f32>>> {
    match &request.model {
        ServedModel::Encoder(encoder) => encoder.encode(&request.prompts, request.timeout).await,
        ServedModel::Decoder(model) => pooled(model, request, who).await,
    }
}

async fn pooled(model: &Arc<Hosted>, request: &VectorRequest, who: &Principal) -> ApiResult<Vec<Vec<f32>>> {
    let model = Arc::clone(model);
    let params = with_seed(model.defaults.clone());
    let deadline = model.engine.now().saturating_add(request.timeout);
    let mut pending = Pending { model: Arc::clone(&model), ids: Vec::new() };
    let (sender, mut outputs) = mpsc::unbounded_channel();
    for (number, prompt) in request.prompts.iter().enumerate() {
        let id = model.next_id();
        let mut engine_request = Request::new(id, prompt.clone(), params.clone());
        engine_request.tenant = Arc::clone(&who.tenant);
        engine_request.weight = who.weight;
        engine_request.tenant_waiting_max = who.queued;
        engine_request.deadline = Some(deadline);
        engine_request.pooling = Some(Pooling::Mean);
        let (done, refused) = (sender.clone(), sender.clone());
        let sink = Box::new(move |output: RequestOutput| match done.send((number, Ok(output))) {
            Ok(()) => Delivery::Ready,
            Err(_) => Delivery::Closed,
        });
        let accepted = Box::new(move |result: Result<(), EngineError>| {
            if let Err(e) = result {
                let _ = refused.send((number, Err(e)));
            }
        });
        model.engine.submit_with(engine_request, sink, accepted)?;
        pending.ids.push(RequestId(id));
    }
    drop(sender);
    let mut vectors = vec![Vec::new(); request.prompts.len()];
    while let Some((number, output)) = outputs.recv().await {
        let output = output?;
        match (output.embedding, output.finish_reason) {
            (Some(vector), _) => vectors[number] = vector,
            (None, Some(FinishReason::Deadline)) => {
                let message = "the time for this request was up";
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message));
            }
            (None, _) => {
                let message = output.message.unwrap_or_else(|| "the engine ended the request".to_owned());
                tracing::error!(model = model.name, message, "a request failed in the engine");
                return Err(ApiError::internal(message));
            }
        }
    }
    if vectors.iter().any(Vec::is_empty) {
        return Err(ApiError::internal("the engine ended without a word"));
    }
    Ok(vectors)
}
