//! What answers: our own engine today.

mod engine;

pub(crate) use engine::{Hosted, Models};
pub use engine::{HostedModel, ModelFacts};
