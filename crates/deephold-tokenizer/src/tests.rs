//! Against the published vocabularies, templates and encodings.

mod chat;
mod dialects;
mod pre_tokenizers;
mod properties;
mod streams;
mod vectors;
