//! One folder an API: from the wire's JSON to a valid request, and from deltas to the wire.

pub(crate) mod admin;
pub(crate) mod anthropic;
pub(crate) mod conversation;
pub(crate) mod deepseek;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod openai;
pub(crate) mod openapi;
pub(crate) mod ops;
pub(crate) mod sse;
