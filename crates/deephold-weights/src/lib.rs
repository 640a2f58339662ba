//! Checkpoints on disk: safetensors and GGUF, mapped and checked; verified, quantized, converted.
//!
//! Models load from it, the tokenizer reads vocabularies and templates through it, and the binary verifies and quantizes with
//! it. It never trusts a size in a file, never changes an input, and computes nothing of a model.
//!
//! [`Checkpoint`] shows both formats alike: tensors under their Hugging Face names, a config.json-like value, and the
//! tokenizer's sources. The parsers ([`safetensors::parse_header`], [`gguf::parse`], [`config::parse`]) are pure
//! functions on bytes: they never panic, and allocate in proportion to the bytes they are given.

mod atomic;
mod checkpoint;
pub mod config;
mod error;
pub mod files;
pub mod fp8;
pub mod gguf;
mod mapped;
pub mod names;
pub mod quantize;
pub mod safetensors;
mod shape;
pub mod verify;
mod vocab;

pub use checkpoint::{
    Checkpoint, FileInfo, Finding, FindingKind, Kind, RopeStyleHint, TensorInfo, TensorView,
};
pub use error::WeightsError;
pub use vocab::GgufVocab;
