//! What survives a restart: API keys today; tenants, usage and releases as they come.
//!
//! The server asks it for every request, the binary's `key` commands write to it. Nothing here decides anything: who may do what
//! is the server's. Records are plain, time comes in as an argument, and no SQL stands outside of `sqlite`.

mod error;
mod keys;
mod sqlite;
#[cfg(test)]
mod tests;

pub use error::StateError;
pub use keys::{ApiKey, Keys, NewKey, Role};
pub use sqlite::SqliteStore;
