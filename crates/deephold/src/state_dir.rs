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
use deephold_audit::{
    AuditLog, Options, SigningKey, create_private_dir, hex, read_public_key, write_private,
};
use deephold_base::SystemClock;
use deephold_state::{PostgresOptions, SqlStore};

use crate::cli::{StateArgs, StoreArgs};
use crate::config;
use crate::fail::invalid;
use crate::input::read_text_within;

pub(crate) struct StateDir {
    path: PathBuf,
    store: StoreArgs,
}

/// Large answers of name servers come over TCP.
const DNS: u16 = 53;
/// Bytes of a file with a password, and of one with certificates, at most.
const SECRET_MAX: u64 = 4 << 10;
const AUTHORITY_MAX: u64 = 1 << 20;

impl StateDir {
    /// The folder that the arguments name, or the user's.
    pub(crate) fn of(args: &StateArgs) -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let default = || {
            let state = variable("XDG_STATE_HOME").filter(|p| p.is_absolute());
            state.or_else(|| Some(variable("HOME")?.join(".local/state"))).map(|p| p.join("deephold"))
        };
        let named = args.state.clone().map_or_else(|| config::state(args), |named| Ok(Some(named)))?;
        let no_home = || invalid("there is no home folder to keep the state in; say --state DIR");
        Ok(Self { path: named.or_else(default).ok_or_else(no_home)?, store: StoreArgs::default() })
    }

    /// With keys and usage where the server's settings say.
    pub(crate) fn with_store(self, store: &StoreArgs) -> Self {
        Self { store: store.clone(), ..self }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.store.store.is_some() || self.path.join("state.db").exists()
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.path.join("audit")
    }

    pub(crate) fn public_key(&self) -> PathBuf {
        self.path.join("keys/audit.pub")
    }

    pub(crate) fn tls_dir(&self) -> PathBuf {
        self.path.join("tls")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("admin.sock")
    }

    /// What signs thinking that clients send back; made where it is missing.
    pub(crate) fn thinking_secret(&self) -> Result<[u8; 32]> {
        let path = self.path.join("keys/thinking.key");
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
        let key = SigningKey::open_or_create(&self.path.join("keys/audit.key"))?;
        let clock = std::sync::Arc::new(SystemClock::default());
        let log = AuditLog::open(&self.log_dir(), key, Options::default(), clock)?;
        Ok((self.store()?, log))
    }

    /// The store alone, also beside a running server.
    pub(crate) fn store(&self) -> Result<SqlStore> {
        match self.postgres()? {
            None => Ok(SqlStore::sqlite(&self.path.join("state.db"))?),
            Some(options) => Ok(SqlStore::postgres(&options)?),
        }
    }

    /// Where a shared store is; none for SQLite in this folder.
    fn postgres(&self) -> Result<Option<PostgresOptions>> {
        let Some(url) = &self.store.store else { return Ok(None) };
        // The end of the line is no part of a password.
        let password =
            self.store.store_password_file.as_deref().map(|file| read_text_within(file, SECRET_MAX));
        let password = password.transpose()?.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        let authority = self.store.store_ca.as_deref().map(|file| read_text_within(file, AUTHORITY_MAX));
        let authority = authority.transpose()?.map(String::into_bytes);
        Ok(Some(PostgresOptions { url: url.clone(), password, authority }))
    }

    /// The ports to which the store connects, and that of the names that its address may need.
    pub(crate) fn connects(&self) -> Result<Vec<u16>> {
        let Some(options) = self.postgres()? else { return Ok(Vec::new()) };
        Ok([options.ports()?, vec![DNS]].concat())
    }

    /// Makes the folder, for its owner alone.
    pub(crate) fn make(&self) -> Result<()> {
        Ok(create_private_dir(&self.path)?)
    }

    /// This server's name among those that share a store: it goes with the audit log's key, which no other server has.
    pub(crate) fn replica(&self) -> Result<String> {
        Ok(hex(&read_public_key(&self.public_key())?[..8]))
    }
}
