//! OpenAI's API: chat and plain completions, models, tokens.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod describe;
pub(crate) mod embeddings;
mod messages;
pub(crate) mod models;
mod params;
pub(crate) mod rerank;
pub(crate) mod responses;
pub(crate) mod tokenize;
pub(crate) mod tools;
mod write;
