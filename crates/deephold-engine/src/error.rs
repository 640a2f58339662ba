//! What the engine refuses.

use deephold_base::ErrorCode;
use deephold_kernels::KernelError;
use deephold_models::ModelError;

/// Why a request or a step was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A sampling parameter outside its range.
    #[error("`{param}` {problem}")]
    Parameter {
        /// Its name.
        param: &'static str,
        /// What is wrong, with the value and the range.
        problem: String,
    },
    /// A configuration that cannot work.
    #[error("engine configuration: `{param}` {problem}")]
    Config {
        /// Its name.
        param: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A prompt without tokens.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// A token that the model does not know.
    #[error("prompt token {index} is {token}, beyond the vocabulary of {vocab_size}")]
    Token {
        /// Its place in the prompt.
        index: usize,
        /// The token.
        token: u32,
        /// V.
        vocab_size: usize,
    },
    /// A prompt that leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, but the context holds {max_model_len} with the answer; shorten it"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The longest context.
        max_model_len: usize,
    },
    /// A request that the whole cache could not hold.
    #[error(
        "the request needs {needed} cache blocks, but the cache has {blocks}; raise the cache memory or shorten it"
    )]
    CacheTooSmall {
        /// Blocks for prompt and longest answer.
        needed: usize,
        /// Blocks in all.
        blocks: usize,
    },
    /// The waiting queue is full.
    #[error("{waiting} sequences wait already, the most that may; try again later")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// A request with an id that is in use.
    #[error("request {0} exists already")]
    Duplicate(u64),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The cache could not be made.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl EngineError {
    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Parameter { .. } | Self::Config { .. } | Self::EmptyPrompt | Self::Token { .. } => {
                ErrorCode::InvalidInput
            }
            Self::PromptTooLong { .. } | Self::CacheTooSmall { .. } => ErrorCode::LimitExceeded,
            Self::Busy { .. } => ErrorCode::Busy,
            Self::Duplicate(_) => ErrorCode::InvalidInput,
            Self::Stopped => ErrorCode::Internal,
            Self::Model(e) => e.code(),
            Self::Kernel(e) => e.code(),
        }
    }
}
