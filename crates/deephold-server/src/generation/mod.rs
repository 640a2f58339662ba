//! What is asked, free of any API, and what comes back.

mod answer;
mod request;
mod stream;
mod vectors;

pub(crate) use answer::{Answer, Usage};
pub(crate) use request::{ChatContext, ValidRequest};
pub(crate) use stream::{Delta, End, Generation, TokenDelta, with_seed};
pub(crate) use vectors::{VectorRequest, embed};
