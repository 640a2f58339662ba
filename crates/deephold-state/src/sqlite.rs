//! The store in one SQLite file.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{ApiKey, Keys, NewKey, Role, StateError};

/// Each takes the database from its index to the next version; never changed once released.
const MIGRATIONS: [&str; 1] = ["CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    role TEXT NOT NULL,
    models TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    revoked_ms INTEGER
) STRICT"];

/// Between the models of a key in one column; no model's name holds it.
const SEPARATOR: char = '\n';

/// An open database.
pub struct SqliteStore(Mutex<Connection>);

impl SqliteStore {
    /// Opens or makes the database, readable by its owner alone, and brings it to the newest version.
    ///
    /// # Errors
    /// The system's; a file that is no database, is damaged, or was written by a newer program.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        make_private(path).map_err(|source| StateError::Io { action: "make", source })?;
        Self::prepare(Connection::open(path)?)
    }

    /// A database in memory, for tests.
    ///
    /// # Errors
    /// The database's.
    pub fn in_memory() -> Result<Self, StateError> {
        Self::prepare(Connection::open_in_memory()?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, StateError> {
        connection.busy_timeout(Duration::from_secs(5))?;
        // What a command was told is done must survive a loss of power; readers do not wait for writers.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let known = MIGRATIONS.len() as i64;
        if found > known || found < 0 {
            return Err(StateError::Newer { found, known });
        }
        for migration in &MIGRATIONS[found as usize..] {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", known)?;
        transaction.commit()?;
        Ok(Self(Mutex::new(connection)))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one(&self, condition: &str, value: &dyn rusqlite::ToSql) -> Result<Option<ApiKey>, StateError> {
        let sql = format!("SELECT * FROM api_keys WHERE {condition} = ?1");
        let connection = self.connection();
        let found = connection.prepare_cached(&sql)?.query_row([value], |row| Ok(read(row))).optional()?;
        found.transpose()
    }
}

/// An empty file of its owner's, where there is none: SQLite would make one that others may read.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

fn read(row: &Row<'_>) -> Result<ApiKey, StateError> {
    let role: String = row.get("role")?;
    let hash: Vec<u8> = row.get("hash")?;
    let models: String = row.get("models")?;
    Ok(ApiKey {
        id: row.get("id")?,
        hash: hash
            .try_into()
            .map_err(|_| StateError::Value { what: "hash of a key", value: "of another length".into() })?,
        tenant: row.get("tenant")?,
        owner: row.get("owner")?,
        role: Role::from_name(&role).ok_or(StateError::Value { what: "role", value: role })?,
        models: models.split(SEPARATOR).filter(|m| !m.is_empty()).map(str::to_owned).collect(),
        created_ms: row.get("created_ms")?,
        expires_ms: row.get("expires_ms")?,
        revoked_ms: row.get("revoked_ms")?,
    })
}

impl Keys for SqliteStore {
    fn create_key(&self, key: &NewKey, now_ms: i64) -> Result<ApiKey, StateError> {
        let models = key.models.join(&SEPARATOR.to_string());
        self.connection().execute(
            "INSERT INTO api_keys (id, hash, tenant, owner, role, models, created_ms, expires_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![key.id, key.hash, key.tenant, key.owner, key.role.name(), models, now_ms, key.expires_ms],
        )?;
        Ok(ApiKey {
            id: key.id.clone(),
            hash: key.hash,
            tenant: key.tenant.clone(),
            owner: key.owner.clone(),
            role: key.role,
            models: key.models.clone(),
            created_ms: now_ms,
            expires_ms: key.expires_ms,
            revoked_ms: None,
        })
    }

    fn key_by_hash(&self, hash: &[u8; 32]) -> Result<Option<ApiKey>, StateError> {
        self.one("hash", &hash.as_slice())
    }

    fn key_by_id(&self, id: &str) -> Result<Option<ApiKey>, StateError> {
        self.one("id", &id)
    }

    fn keys(&self) -> Result<Vec<ApiKey>, StateError> {
        let connection = self.connection();
        let mut statement = connection.prepare_cached("SELECT * FROM api_keys ORDER BY created_ms, id")?;
        let rows = statement.query_map([], |row| Ok(read(row)))?;
        rows.map(|row| row.map_err(StateError::from)?).collect()
    }

    fn revoke_key(&self, id: &str, now_ms: i64) -> Result<bool, StateError> {
        let sql = "UPDATE api_keys SET revoked_ms = ?2 WHERE id = ?1 AND revoked_ms IS NULL";
        Ok(self.connection().execute(sql, params![id, now_ms])? == 1)
    }
}
