//! Against the published vocabularies, templates and encodings.

mod chat;
mod dialects;
mod properties;
mod streams;
mod vectors;
