//! What survives a restart: tenants, API keys, usage; releases as they come.
//!
//! The server asks it for every request, the binary's commands write to it. Nothing here decides anything: who may do what is the
//! server's. Records are plain, time comes in as an argument, and no SQL stands outside of `sql`.

mod archive;
mod error;
mod kept;
mod keys;
mod sql;
mod tenants;
#[cfg(test)]
mod tests;
mod usage;

pub use archive::{Archive, Contents, Record, read_backup, write_backup};
pub use error::StateError;
pub use kept::{Answers, Claim, Claimed, KEPT_MAX, KeptAnswer};
pub use keys::{ApiKey, Holder, Keys, NewKey, Role};
pub use sql::{PostgresOptions, SqlStore};
pub use tenants::{DEFAULT_PROJECT, Limits, Project, Tenant, Tenants};
pub use usage::{Amount, Spending, SpendingRow, Subject, Usage, UsageFilter, UsageRow, Window};

/// Everything that a server keeps.
pub trait Store: Keys + Tenants + Usage + Answers + Archive {}

impl<S: Keys + Tenants + Usage + Answers + Archive> Store for S {}
