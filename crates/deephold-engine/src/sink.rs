//! Where a request's outputs go.

use crate::EngineError;
use crate::request::RequestOutput;

/// Takes a request's outputs on the engine's thread, so it must not wait.
pub type OutputSink = Box<dyn FnMut(RequestOutput) -> Delivery + Send>;

/// Hears whether a request was accepted, on the engine's thread.
pub type Accepted = Box<dyn FnOnce(Result<(), EngineError>) + Send>;

/// What a sink says of an output, which it has taken in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// More may come.
    Ready,
    /// The reader is slow: the request pauses until [`crate::EngineHandle::resume`].
    Pause,
    /// The reader is gone: the request ends with [`crate::FinishReason::Abort`], which the sink is not told.
    Closed,
}
