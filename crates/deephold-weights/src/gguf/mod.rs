//! GGUF v2 and v3: metadata, tensor entries, aligned tensor data.
//!
//! ```text
//! "GGUF"  u32 version  u64 tensors  u64 keys
//! keys    string key, u32 type, value; strings are u64 length + bytes, arrays u32 type + u64 count + values
//! tensors string name, u32 dims, u64 dim (innermost first) .., u32 type, u64 offset from the start of the data
//! data    from the next multiple of `general.alignment` (32 unless said otherwise)
//! ```
//! Source: the format's description in ggml's documentation. Numbers are little-endian.

mod read;
#[cfg(test)]
mod tests;
mod value;
mod write;

use deephold_quant::DType;

pub use read::parse;
pub use value::{Array, Metadata, Value, ValueType};
pub use write::{TensorPlan, Writer};

/// What a file is taken for when it says nothing.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// A checked file: every range lies within it.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// Keys in the file's order.
    pub metadata: Metadata,
    /// In the file's order.
    pub tensors: Vec<GgufTensor>,
}

/// One tensor's place.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Name as stored, `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Outermost dimension first: the reverse of the stored order.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}
