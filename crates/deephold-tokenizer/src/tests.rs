//! Against the published vocabularies, templates and encodings.

mod chat;
mod dialects;
mod properties;
mod streams;
mod vectors;

/// A file of the shared data.
fn shared(path: &str) -> std::path::PathBuf {
    deephold_testkit::shared_dir().join(path)
}
