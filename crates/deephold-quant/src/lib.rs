//! Element types and quantized block formats: pure functions on bytes.
//!
//! The kernels pack from it and the weights crate reads and writes files with it. It allocates nothing that its caller did not
//! size, touches no file, and never multiplies matrices.
//!
//! Every format is first taken apart into [`Block`] (integer codes, group scales, two f32 factors); decoding, and
//! packing for the kernels, start from that one form, so that they cannot disagree about a format's bits.

mod blocks;
mod dtype;
mod error;
mod fp8;
mod quantize;
#[cfg(test)]
mod tests;
mod unpack;

pub use blocks::*;
pub use dtype::DType;
pub use error::QuantError;
pub use fp8::{f8e4m3_to_f32, f32_to_f8e4m3};
pub use quantize::quantize;
pub use unpack::{Block, IQ4_VALUES, dequantize, q4k_scales, unpack_block};
