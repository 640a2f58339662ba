//! The state folder: what the server keeps, and where.
//!
//! ```text
//! state.db      tenants, keys, usage (SQLite)
//! audit/        the audit log
//! keys/         its signing key and public key, and what signs thinking
//! tls/          a local authority, its certificate for the server, their keys
//! admin.sock    where commands reach a running server
//! ```

use std::path::{Path, PathBuf};

use anyhow::Result;
use deephold_audit::{AuditLog, Options, SigningKey, write_private};
use deephold_base::SystemClock;
use deephold_state::SqlStore;

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

    /// What signs thinking that clients send back; made where it is missing.
    pub(crate) fn thinking_secret(&self) -> Result<[u8; 32]> {
        let path = self.0.join("keys/thinking.key");
        if !path.exists() {
            let mut secret = [0; 32];
            aws_lc_rs::rand::fill(&mut secret).map_err(|_| invalid("the system gives no randomness"))?;
            write_private(&path, &secret)?;
        }
        let bytes = std::fs::read(&path)?;
        let problem =
            || invalid(format!("{} holds no secret of 32 bytes; remove it for a new one", path.display()));
        bytes.try_into().map_err(|_| problem())
    }

    /// Opens the log, then the store; makes what is missing. The log's lock keeps a second server out.
    pub(crate) fn open(&self) -> Result<(SqlStore, AuditLog)> {
        let key = SigningKey::open_or_create(&self.0.join("keys/audit.key"))?;
        let clock = std::sync::Arc::new(SystemClock::default());
        let log = AuditLog::open(&self.log_dir(), key, Options::default(), clock)?;
        Ok((self.store()?, log))
    }

    /// The store alone, also beside a running server.
    pub(crate) fn store(&self) -> Result<SqlStore> {
        Ok(SqlStore::sqlite(&self.0.join("state.db"))?)
    }
}
