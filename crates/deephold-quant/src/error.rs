//! What can be wrong with bytes or values that are to be decoded or encoded.

use deephold_base::ErrorCode;

use crate::DType;

/// Why decoding or encoding was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// The number of bytes does not hold the number of elements.
    #[error("{elements} elements of {} do not fit {bytes} bytes: a block is {} elements in {} bytes",
        dtype.name(), dtype.block_len(), dtype.block_bytes())]
    Size {
        /// Format of the bytes.
        dtype: DType,
        /// Elements asked for.
        elements: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// A value is NaN or infinite and the format has no code for it.
    #[error("element {index} is {value}, which {} cannot hold", dtype.name())]
    NotFinite {
        /// Format asked for.
        dtype: DType,
        /// Position of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The format is not made of numbers that this function handles.
    #[error("{} cannot be converted here; supported are the floating and quantized formats", dtype.name())]
    Unsupported {
        /// Format asked for.
        dtype: DType,
    },
}

impl QuantError {
    /// The closed code that exit codes and statuses come from.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Size { .. } | Self::NotFinite { .. } => ErrorCode::InvalidInput,
            Self::Unsupported { .. } => ErrorCode::Unsupported,
        }
    }
}
