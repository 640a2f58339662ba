//! What answers: our own engines and encoders today.

mod encoding;
mod engine;
mod hosting;

pub use encoding::HostedEncoder;
pub(crate) use engine::Hosted;
pub use engine::{HostedModel, ModelFacts};
pub use hosting::{LoadProgress, ModelLoader, NewModel};
pub(crate) use hosting::{Models, ServedModel, load, start, unload};
