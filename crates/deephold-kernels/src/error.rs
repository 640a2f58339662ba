//! What kernels refuse. Shapes inside a forward pass are the caller's contract and are asserted instead.

use deephold_base::ErrorCode;
use deephold_quant::DType;

/// Why a matrix, a cache or a batch was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The stored bytes do not have the length that the shape needs.
    #[error("a {dtype:?} matrix [{n}, {k}] needs {expected:?} bytes, but {actual} are given")]
    Size {
        /// Storage format.
        dtype: DType,
        /// Rows.
        n: usize,
        /// Columns.
        k: usize,
        /// Bytes that the shape needs; `None` where rows are not whole blocks or the product overflows.
        expected: Option<usize>,
        /// Bytes that are there.
        actual: usize,
    },
    /// A format that no product is written for.
    #[error("{dtype:?} cannot be a weight of a matrix product; convert it to F32, F16 or BF16")]
    Format {
        /// Storage format.
        dtype: DType,
    },
    /// FP8 scales do not match the blocks.
    #[error("{what}: {actual} scales, expected {expected}")]
    Scales {
        /// Which scales.
        what: &'static str,
        /// Needed.
        expected: usize,
        /// Given.
        actual: usize,
    },
    /// Memory that could not be had.
    #[error("cannot allocate {bytes} bytes for {what}; lower the cache or the context")]
    Memory {
        /// For what.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A cache or a batch that contradicts itself.
    #[error("{what}: {problem}")]
    Invalid {
        /// What was checked.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Decoding a quantised row failed.
    #[error(transparent)]
    Quant(#[from] deephold_quant::QuantError),
}

impl KernelError {
    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Size { .. } | Self::Scales { .. } => ErrorCode::InvalidInput,
            Self::Format { .. } => ErrorCode::Unsupported,
            Self::Memory { .. } => ErrorCode::OutOfMemory,
            Self::Invalid { .. } => ErrorCode::Internal,
            Self::Quant(e) => e.code(),
        }
    }
}
