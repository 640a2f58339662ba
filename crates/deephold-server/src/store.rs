//! Tenants, keys and usage in one SQLite file.
//!
//! Several processes may have it open: the server and `deephold key`. SQLite's `data_version` tells when another one wrote.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::ServerError;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Admin,
    /// Models, status, usage, metrics.
    Operator,
    /// The audit log, usage and status; no inference.
    Auditor,
    /// Inference.
    App,
}

impl Role {
    /// As written in the database and the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::App => "app",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Admin, Self::Operator, Self::Auditor, Self::App].into_iter().find(|r| r.name() == name)
    }
}

/// A key as stored: its secret is not here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyRecord {
    /// Name of the key in logs and in the API.
    pub id: String,
    /// SHA-256 of the secret.
    #[serde(skip)]
    pub hash: [u8; 32],
    /// For people.
    pub name: String,
    /// Whose.
    pub tenant: String,
    /// A part of the tenant, for accounting.
    pub project: String,
    /// What it may do.
    pub role: Role,
    /// Models it may use; none for all.
    pub models: Option<Vec<String>>,
    /// Endpoints it may use, by name; none for all.
    pub endpoints: Option<Vec<String>>,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970.
    pub expires: Option<u64>,
    /// Seconds since 1970.
    pub revoked: Option<u64>,
    /// Seconds since 1970, to the minute.
    pub last_used: Option<u64>,
}

/// Bounds of a tenant; none for no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantLimits {
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens of prompts and answers a minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests a day (UTC).
    pub requests_per_day: Option<u64>,
    /// Tokens a day (UTC).
    pub tokens_per_day: Option<u64>,
    /// Tokens a month (UTC).
    pub tokens_per_month: Option<u64>,
    /// Requests at the same time.
    pub concurrent_requests: Option<u64>,
    /// Seconds that a request may wait before it runs.
    pub queue_seconds: Option<u64>,
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its share of the engine against others.
    pub weight: f64,
    /// Its bounds.
    pub limits: TenantLimits,
}

/// What a tenant's key used on a day with a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Whose.
    pub tenant: String,
    /// Part of the tenant.
    pub project: String,
    /// Which model.
    pub model: String,
    /// UTC day.
    pub day: String,
    /// Requests.
    pub requests: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Prompt tokens out of the prefix cache.
    pub cached_tokens: u64,
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS tenants (
    name TEXT PRIMARY KEY, weight REAL NOT NULL, limits TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL, tenant TEXT NOT NULL REFERENCES tenants(name),
    project TEXT NOT NULL, role TEXT NOT NULL, models TEXT, endpoints TEXT,
    created INTEGER NOT NULL, expires INTEGER, revoked INTEGER, last_used INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS usage (
    tenant TEXT NOT NULL, project TEXT NOT NULL, model TEXT NOT NULL, day TEXT NOT NULL,
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, PRIMARY KEY (tenant, project, model, day)
) STRICT, WITHOUT ROWID;
";

/// The version of the schema above; a newer file is refused.
const SCHEMA_VERSION: i64 = 1;

/// The open database.
pub struct Store(Mutex<Connection>);

impl Store {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// A file that is damaged, locked, read-only or of a newer version.
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        let connection = Connection::open(path).map_err(|e| ServerError::store("open", &e))?;
        let prepare = || -> rusqlite::Result<i64> {
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.pragma_query_value(None, "user_version", |row| row.get(0))
        };
        let version = prepare().map_err(|e| ServerError::store("open", &e))?;
        if version > SCHEMA_VERSION {
            return Err(ServerError::State(format!(
                "the database is of version {version}, this program knows {SCHEMA_VERSION}: use a newer program"
            )));
        }
        let create = || -> rusqlite::Result<()> {
            connection.execute_batch(SCHEMA)?;
            connection.pragma_update(None, "user_version", SCHEMA_VERSION)
        };
        create().map_err(|e| ServerError::store("prepare", &e))?;
        Ok(Self(Mutex::new(connection)))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when another connection has written.
    pub fn data_version(&self) -> Result<i64, ServerError> {
        let version = self.lock().pragma_query_value(None, "data_version", |row| row.get(0));
        version.map_err(|e| ServerError::store("read", &e))
    }

    /// All keys, revoked ones too.
    pub fn keys(&self) -> Result<Vec<KeyRecord>, ServerError> {
        let read = || -> rusqlite::Result<Vec<KeyRecord>> {
            let connection = self.lock();
            let mut statement = connection.prepare_cached(
                "SELECT id, hash, name, tenant, project, role, models, endpoints, created, expires, revoked, \
                 last_used FROM keys ORDER BY created, id",
            )?;
            statement.query_map([], key_of)?.collect()
        };
        read().map_err(|e| ServerError::store("read", &e))
    }

    /// Adds a key.
    pub fn add_key(&self, key: &KeyRecord) -> Result<(), ServerError> {
        let list = |l: &Option<Vec<String>>| l.as_ref().map(|l| serde_json::Value::from(l.clone()).to_string());
        let done = self.lock().execute(
            "INSERT INTO keys (id, hash, name, tenant, project, role, models, endpoints, created, expires) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                key.id,
                key.hash.as_slice(),
                key.name,
                key.tenant,
                key.project,
                key.role.name(),
                list(&key.models),
                list(&key.endpoints),
                key.created as i64,
                key.expires.map(|t| t as i64)
            ],
        );
        done.map(|_| ()).map_err(|e| ServerError::store("write", &e))
    }

    /// Revokes a key; false where there is no such key that is not revoked.
    pub fn revoke_key(&self, id: &str, now: u64) -> Result<bool, ServerError> {
        let sql = "UPDATE keys SET revoked = ?2 WHERE id = ?1 AND revoked IS NULL";
        let done = self.lock().execute(sql, params![id, now as i64]);
        done.map(|n| n > 0).map_err(|e| ServerError::store("write", &e))
    }

    /// Gives a key another secret; false where there is no such key that is not revoked.
    pub fn rotate_key(&self, id: &str, hash: [u8; 32]) -> Result<bool, ServerError> {
        let sql = "UPDATE keys SET hash = ?2 WHERE id = ?1 AND revoked IS NULL";
        let done = self.lock().execute(sql, params![id, hash.as_slice()]);
        done.map(|n| n > 0).map_err(|e| ServerError::store("write", &e))
    }

    /// All tenants.
    pub fn tenants(&self) -> Result<Vec<Tenant>, ServerError> {
        let read = || -> rusqlite::Result<Vec<Tenant>> {
            let connection = self.lock();
            let mut statement = connection.prepare_cached("SELECT name, weight, limits FROM tenants ORDER BY name")?;
            let of = |row: &Row<'_>| {
                let limits: String = row.get(2)?;
                let limits = serde_json::from_str(&limits).map_err(|e| {
                    rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(e))
                })?;
                Ok(Tenant { name: row.get(0)?, weight: row.get(1)?, limits })
            };
            statement.query_map([], of)?.collect()
        };
        read().map_err(|e| ServerError::store("read", &e))
    }

    /// Adds a tenant or changes it.
    pub fn put_tenant(&self, tenant: &Tenant) -> Result<(), ServerError> {
        let limits = serde_json::to_string(&tenant.limits).unwrap_or_default();
        let done = self.lock().execute(
            "INSERT INTO tenants (name, weight, limits) VALUES (?1, ?2, ?3) \
             ON CONFLICT (name) DO UPDATE SET weight = ?2, limits = ?3",
            params![tenant.name, tenant.weight, limits],
        );
        done.map(|_| ()).map_err(|e| ServerError::store("write", &e))
    }

    /// Whether a tenant exists.
    pub fn has_tenant(&self, name: &str) -> Result<bool, ServerError> {
        let found = self.lock().query_row("SELECT 1 FROM tenants WHERE name = ?1", [name], |_| Ok(())).optional();
        found.map(|f| f.is_some()).map_err(|e| ServerError::store("read", &e))
    }

    /// Adds what was used; `seen` are keys and when they were last used.
    pub fn add_usage(&self, rows: &[Usage], seen: &[(String, u64)]) -> Result<(), ServerError> {
        let write = || -> rusqlite::Result<()> {
            let mut connection = self.lock();
            let transaction = connection.transaction()?;
            for u in rows {
                transaction.execute(
                    "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
                     ON CONFLICT (tenant, project, model, day) DO UPDATE SET requests = requests + ?5, \
                     prompt_tokens = prompt_tokens + ?6, completion_tokens = completion_tokens + ?7, \
                     cached_tokens = cached_tokens + ?8",
                    params![
                        u.tenant,
                        u.project,
                        u.model,
                        u.day,
                        u.requests as i64,
                        u.prompt_tokens as i64,
                        u.completion_tokens as i64,
                        u.cached_tokens as i64
                    ],
                )?;
            }
            for (id, at) in seen {
                transaction.execute("UPDATE keys SET last_used = ?2 WHERE id = ?1", params![id, *at as i64])?;
            }
            transaction.commit()
        };
        write().map_err(|e| ServerError::store("write", &e))
    }

    /// Usage from a day on, newest day first.
    pub fn usage_since(&self, day: &str) -> Result<Vec<Usage>, ServerError> {
        let read = || -> rusqlite::Result<Vec<Usage>> {
            let connection = self.lock();
            let mut statement = connection.prepare_cached(
                "SELECT tenant, project, model, day, requests, prompt_tokens, completion_tokens, cached_tokens \
                 FROM usage WHERE day >= ?1 ORDER BY day DESC, tenant, project, model LIMIT 100000",
            )?;
            let number = |row: &Row<'_>, i| row.get::<_, i64>(i).map(|n| n.max(0) as u64);
            let of = |row: &Row<'_>| {
                Ok(Usage {
                    tenant: row.get(0)?,
                    project: row.get(1)?,
                    model: row.get(2)?,
                    day: row.get(3)?,
                    requests: number(row, 4)?,
                    prompt_tokens: number(row, 5)?,
                    completion_tokens: number(row, 6)?,
                    cached_tokens: number(row, 7)?,
                })
            };
            statement.query_map([day], of)?.collect()
        };
        read().map_err(|e| ServerError::store("read", &e))
    }
}

fn key_of(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    let bad = |i, what: String| {
        rusqlite::Error::FromSqlConversionFailure(i, rusqlite::types::Type::Text, what.into())
    };
    let role: String = row.get(5)?;
    let list = |i: usize| -> rusqlite::Result<Option<Vec<String>>> {
        let text: Option<String> = row.get(i)?;
        text.map(|t| serde_json::from_str(&t)).transpose().map_err(|e| bad(i, e.to_string()))
    };
    let time = |i: usize| row.get::<_, Option<i64>>(i).map(|t| t.map(|t| t.max(0) as u64));
    Ok(KeyRecord {
        id: row.get(0)?,
        hash: row.get(1)?,
        name: row.get(2)?,
        tenant: row.get(3)?,
        project: row.get(4)?,
        role: Role::from_name(&role).ok_or_else(|| bad(5, format!("unknown role {role}")))?,
        models: list(6)?,
        endpoints: list(7)?,
        created: time(8)?.unwrap_or(0),
        expires: time(9)?,
        revoked: time(10)?,
        last_used: time(11)?,
    })
}
