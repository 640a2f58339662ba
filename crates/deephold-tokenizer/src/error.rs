//! What can go wrong between text and ids.

use deephold_base::{ErrorCode, human_bytes};
use deephold_weights::WeightsError;

/// A tokenizer, a template or a text that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The model has no tokenizer.
    #[error("{model} has no tokenizer; add its tokenizer.json, or give token ids with --prompt-ids")]
    Missing {
        /// Where it was looked for.
        model: String,
    },
    /// A tokenizer that contradicts its format.
    #[error("{place}: {problem}")]
    Malformed {
        /// Which file or part.
        place: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A tokenizer that is well-formed but of a kind that this build does not know.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// What was found.
        what: String,
        /// What would work.
        supported: &'static str,
    },
    /// A text that the tokenizer refused.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// A template or its messages.
    #[error("chat template: {0}")]
    Template(String),
    /// The model has no chat template.
    #[error(
        "the model has no chat template; use `generate`, which takes plain text, or give one with --template"
    )]
    NoTemplate,
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] WeightsError),
    /// A limit that is known at start.
    #[error("{what} is {}, the most is {}", amount(what, *actual), amount(what, *limit))]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large.
        actual: usize,
        /// How large it may be.
        limit: usize,
    },
}

/// A number as people read it: a size where bytes are counted.
fn amount(what: &str, number: usize) -> String {
    if what.contains("size") { human_bytes(number as u64) } else { number.to_string() }
}

impl TokenizerError {
    /// The closed code that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing { .. } | Self::NoTemplate => ErrorCode::NotFound,
            Self::Malformed { .. } | Self::Encode(_) | Self::Template(_) => ErrorCode::InvalidInput,
            Self::Unsupported { .. } => ErrorCode::Unsupported,
            Self::File(e) => e.code(),
            Self::TooLarge { .. } => ErrorCode::LimitExceeded,
        }
    }

    pub(crate) fn malformed(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), problem: problem.into() }
    }
}
