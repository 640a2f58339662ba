//! What the engine refuses.

use deephold_base::{ErrorCode, human_bytes};
use deephold_kernels::KernelError;

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
        "the prompt has {tokens} tokens, but the context holds {max_model_len} with the answer; shorten it, or raise the context where the model has more"
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
    /// As many sequences of the tenant wait as may.
    #[error("{waiting} sequences of this tenant wait already, and {limit} may; try again later")]
    TenantBusy {
        /// How many wait.
        waiting: usize,
        /// How many may.
        limit: usize,
    },
    /// Weights or a cache beyond what is left of the machine's memory budget.
    #[error(
        "{what} needs {}, but {} of the memory budget of {} are left; unload a model, shorten the context or raise the budget",
        human_bytes(*bytes), human_bytes(*left), human_bytes(*total)
    )]
    Memory {
        /// What was to be held.
        what: String,
        /// How much it takes.
        bytes: u64,
        /// What is left.
        left: u64,
        /// The whole budget.
        total: u64,
    },
    /// A request with an id that is in use.
    #[error("request {0} exists already")]
    Duplicate(u64),
    /// The engine's thread has ended, or takes nothing new because it drains.
    #[error("the engine has stopped")]
    Stopped,
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
            Self::Busy { .. } | Self::TenantBusy { .. } => ErrorCode::Busy,
            Self::Memory { .. } => ErrorCode::OutOfMemory,
            Self::Duplicate(_) => ErrorCode::InvalidInput,
            Self::Stopped => ErrorCode::Internal,
            Self::Kernel(e) => e.code(),
        }
    }
}
