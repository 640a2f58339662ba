//! Development only: golden vectors, closeness, seeded randomness and tiny checkpoints for the tests of other crates.
//!
//! Everything here panics with a clear message instead of returning errors: a test that cannot find its data must fail.

mod close;
mod golden;
mod rng;
mod safetensors;
mod synthetic;
mod temp;

#[cfg(test)]
mod tests;

pub use close::{assert_close, assert_same_bits, max_abs_diff};
pub use golden::{GOLDEN_MODELS, Golden, GoldenPrompt, argmax, golden_dir, shared_dir};
pub use rng::Rng;
pub use safetensors::{RawTensor, SafeTensors, write_safetensors};
pub use synthetic::{FP8_BLOCK, SyntheticModel};
pub use temp::TempDir;
