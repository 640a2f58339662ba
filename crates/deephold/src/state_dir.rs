//! The state folder: what the server keeps, and where.
//!
//! ```text
//! state.db      keys (SQLite)
//! audit/        the audit log
//! keys/         its signing key and public key
//! tls/          a local authority, its certificate for the server, their keys
//! admin.sock    where commands reach a running server
//! ```

use std::path::{Path, PathBuf};

use anyhow::Result;
use deephold_audit::{AuditLog, Options, SigningKey};
use deephold_base::SystemClock;
use deephold_state::SqliteStore;

use crate::cli::StateArgs;
use crate::config;
use crate::fail::invalid;

pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// The folder that the arguments name, or the user's.
    pub(crate) fn of(args: &StateArgs) -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let default = || {
            let state = variable("XDG_STATE_HOME").filter(|p| p.is_absolute());
            state.or_else(|| Some(variable("HOME")?.join(".local/state"))).map(|p| p.join("deephold"))
        };
        let named = args.state.clone().map_or_else(|| config::state(args), |named| Ok(Some(named)))?;
        let path = named.or_else(default);
        path.map(Self).ok_or_else(|| invalid("there is no home folder to keep the state in; say --state DIR"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn exists(&self) -> bool {
        self.0.join("state.db").exists()
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.0.join("audit")
    }

    pub(crate) fn public_key(&self) -> PathBuf {
        self.0.join("keys/audit.pub")
    }

    pub(crate) fn tls_dir(&self) -> PathBuf {
        self.0.join("tls")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    /// Opens the log, then the store; makes what is missing. The log's lock keeps a second server out.
    pub(crate) fn open(&self) -> Result<(SqliteStore, AuditLog)> {
        let key = SigningKey::open_or_create(&self.0.join("keys/audit.key"))?;
        let clock = std::sync::Arc::new(SystemClock::default());
        let log = AuditLog::open(&self.log_dir(), key, Options::default(), clock)?;
        let store = SqliteStore::open(&self.0.join("state.db"))?;
        Ok((store, log))
    }
}
