//! What can go wrong between a checkpoint and a model.

use deephold_base::ErrorCode;
use deephold_kernels::KernelError;
use deephold_quant::QuantError;
use deephold_weights::{Checkpoint, WeightsError};

/// The file that keys come from where nothing else is said.
pub(crate) const CONFIG: &str = "config.json";

/// Why a model cannot be loaded, described or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A key of config.json has a value that no model can have.
    #[error("{file}: `{key}` {problem}")]
    Config {
        /// `config.json`, or the metadata of a GGUF file.
        file: &'static str,
        /// The key as it is written, with its section where it has one.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A well-formed configuration that asks for something not built yet.
    #[error("{file}: `{key}` = {value} is not supported: {hint}")]
    UnsupportedConfig {
        /// As of [`Self::Config`].
        file: &'static str,
        /// The key as it is written.
        key: String,
        /// Its value.
        value: String,
        /// What would be supported, or what to do.
        hint: String,
    },
    /// An architecture that this build does not know.
    #[error("architecture `{found}` is not supported; supported: {supported}{hint}")]
    UnknownArchitecture {
        /// What config.json says.
        found: String,
        /// Everything that can be loaded.
        supported: String,
        /// More about this one, or empty.
        hint: String,
    },
    /// An encoder where a model that writes text is wanted.
    #[error(
        "`{0}` is an encoder: it gives vectors, not text\nhint: serve it, and ask /v1/embeddings or /v1/rerank"
    )]
    Encoder(String),
    /// A model that writes text where an encoder is wanted.
    #[error("`{0}` is no encoder")]
    NoEncoder(String),
    /// A text with no tokens or more than the encoder has positions.
    #[error("a text of {tokens} tokens; the encoder takes 1 to {limit}")]
    TextLength {
        /// Tokens of the text.
        tokens: usize,
        /// Positions that the encoder has.
        limit: usize,
    },
    /// The configuration calls for a tensor that no file holds.
    #[error(
        "tensor `{name}` {shape:?} is missing\nhint: config.json calls for it; is a shard missing? see `deephold model verify`"
    )]
    MissingTensor {
        /// Hugging Face name.
        name: String,
        /// The shape that the configuration calls for.
        shape: Vec<usize>,
    },
    /// A tensor has another shape than the configuration calls for.
    #[error(
        "tensor `{name}` is {found:?}, expected {expected:?} by config.json\nhint: compare digests with `deephold model verify`"
    )]
    Shape {
        /// Hugging Face name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration calls for.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a format that cannot be used in its place.
    #[error("tensor `{name}` is stored as {dtype}, which cannot be used here: {hint}")]
    Format {
        /// Hugging Face name.
        name: String,
        /// How it is stored.
        dtype: &'static str,
        /// What would be accepted.
        hint: String,
    },
    /// A norm, a bias or a scale holds NaN or infinity.
    #[error("tensor `{name}` holds a value that is not finite at [{at}]")]
    NotFinite {
        /// Hugging Face name.
        name: String,
        /// Index in row-major order.
        at: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The id.
        token: u32,
        /// How many there are.
        vocab_size: usize,
    },
    /// Logits were asked of a row that the batch does not have.
    #[error("row {row} was asked for of a batch of {rows} rows")]
    Row {
        /// The row asked for.
        row: usize,
        /// How many there are.
        rows: usize,
    },
    /// From the weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// From the kernels.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// From a conversion between formats.
    #[error(transparent)]
    Quant(#[from] QuantError),
}

impl ModelError {
    /// The error with the names that the files themselves use.
    pub(crate) fn placed(self, checkpoint: &Checkpoint) -> Self {
        match self {
            Self::Config { file: CONFIG, key, problem } => {
                let (file, key) = checkpoint.place_of(&key);
                Self::Config { file, key, problem }
            }
            Self::UnsupportedConfig { file: CONFIG, key, value, hint } => {
                let (file, key) = checkpoint.place_of(&key);
                Self::UnsupportedConfig { file, key, value, hint }
            }
            other => other,
        }
    }

    /// The closed code from which exit codes and statuses are derived.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnsupportedConfig { .. }
            | Self::UnknownArchitecture { .. }
            | Self::Format { .. }
            | Self::Encoder(_)
            | Self::NoEncoder(_) => ErrorCode::Unsupported,
            Self::Config { .. }
            | Self::MissingTensor { .. }
            | Self::Shape { .. }
            | Self::NotFinite { .. }
            | Self::Token { .. }
            | Self::TextLength { .. } => ErrorCode::InvalidInput,
            Self::Row { .. } => ErrorCode::Internal,
            Self::Weights(e) => e.code(),
            Self::Kernel(e) => e.code(),
            Self::Quant(e) => e.code(),
        }
    }
}
