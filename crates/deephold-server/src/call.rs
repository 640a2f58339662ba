//! A request on its way from the table of routes to its handler.

use std::sync::Arc;

use bytes::Bytes;

use crate::access::Principal;
use crate::api::error::{ApiError, ApiResult};
use crate::app::App;

/// A request that passed the table: who asks, and what.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) request_id: String,
    /// None where the route is open.
    pub(crate) principal: Option<Principal>,
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

impl Call {
    /// Who asks; a route that is not open has somebody.
    pub(crate) fn who(&self) -> ApiResult<&Principal> {
        self.principal.as_ref().ok_or_else(|| ApiError::internal("a route without access control"))
    }
}
