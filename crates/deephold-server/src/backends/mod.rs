//! What answers: our own engine today.

mod engine;
mod hosting;

pub(crate) use engine::Hosted;
pub use engine::{HostedModel, ModelFacts};
pub use hosting::{LoadProgress, ModelLoader};
pub(crate) use hosting::{Models, load, unload, warm_up};
