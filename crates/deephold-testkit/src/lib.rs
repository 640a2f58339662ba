//! Development only: golden vectors, closeness, seeded randomness and tiny checkpoints for the tests of other crates.
//!
//! Everything here panics with a clear message instead of returning errors: a test whose data is
//! missing fails, except for other people's data, which is skipped loudly ([`skip_without_shared`]).

mod close;
mod data;
mod golden;
pub mod hostile;
mod postgres;
mod rng;
mod safetensors;
mod synthetic;
mod temp;

#[cfg(test)]
mod tests;

pub use close::{assert_close, assert_same_bits, max_abs_diff};
pub use data::{fetched_model, guide_dir, shared, skip, skip_without_shared, testdata};
pub use golden::{GOLDEN_MODELS, Golden, GoldenPrompt, argmax, golden_dir};
pub use postgres::PostgresServer;
pub use rng::Rng;
pub use safetensors::{RawTensor, SafeTensors, write_safetensors};
pub use synthetic::{FP8_BLOCK, SyntheticModel};
pub use temp::TempDir;
