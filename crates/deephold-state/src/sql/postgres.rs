//! PostgreSQL, for several servers that share one state.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres::config::{Host, SslMode};
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, Config, GenericClient, IsolationLevel, NoTls, Statement};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::migrations::{KNOWN, MIGRATIONS};
use super::{Row, Session, Value};
use crate::StateError;

/// Connections of one server at most.
const CONNECTIONS_MAX: usize = 8;
/// How long a call waits for one of them.
const PLACE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the database may take to be reached, and to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const SESSION_OPTIONS: &str = "-c statement_timeout=5000 -c lock_timeout=4000 -c idle_in_transaction_session_timeout=10000 -c synchronous_commit=on";
/// A connection that lay idle for so long is tried before it is used.
const IDLE_TRUSTED: Duration = Duration::from_secs(1);
/// Held while the schema is brought forward, so that of several servers one does it.
const MIGRATION_LOCK: i64 = 0x6465_6570_686f_6c64;

/// Where a PostgreSQL database is, and how it is reached.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// `postgres://USER@HOST:PORT/DATABASE`, without a password.
    pub url: String,
    /// The password, from where secrets lie.
    pub password: Option<String>,
    /// PEM: whose certificates the database may show. Needed over a network, unless the address says `sslmode=disable`.
    pub authority: Option<Vec<u8>>,
}

impl PostgresOptions {
    /// The ports that its address names.
    ///
    /// # Errors
    /// An address that cannot be read.
    pub fn ports(&self) -> Result<Vec<u16>, StateError> {
        let config: Config =
            self.url.parse().map_err(|e: postgres::Error| StateError::Address(e.to_string()))?;
        Ok(if config.get_ports().is_empty() { vec![5432] } else { config.get_ports().to_vec() })
    }
}

struct Connection {
    client: Client,
    statements: HashMap<String, Statement>,
    used: Instant,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    open: usize,
}

impl Pool {
    /// The database has gone meanwhile, and with it all that lies idle.
    fn forget_idle(&mut self) {
        self.open -= self.idle.len();
        self.idle.clear();
    }
}

pub(super) struct Postgres {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    pool: Mutex<Pool>,
    freed: Condvar,
}

fn failed(error: &postgres::Error) -> StateError {
    // The server's own words, else what went wrong on the way to it; neither holds the password.
    let text = match (error.as_db_error(), error.source()) {
        (Some(db), _) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    };
    StateError::Unavailable(text)
}

impl From<postgres::Error> for StateError {
    fn from(error: postgres::Error) -> Self {
        failed(&error)
    }
}

impl Postgres {
    pub(super) fn open(options: &PostgresOptions) -> Result<Self, StateError> {
        let bad = |problem: String| StateError::Address(problem);
        let mut config: Config = options.url.parse().map_err(|e: postgres::Error| {
            bad(format!("cannot be read: {}", e.source().map_or_else(|| e.to_string(), ToString::to_string)))
        })?;
        if config.get_password().is_some() {
            let hint = "settings are recorded and shown: put it into a file and say --store-password-file";
            return Err(bad(format!("holds a password; {hint}")));
        }
        if config.get_hosts().is_empty() || config.get_dbname().is_none() {
            return Err(bad("lacks a host or a database; write postgres://USER@HOST/DATABASE".into()));
        }
        let is_local = |host: &Host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => ["localhost", "127.0.0.1", "::1"].contains(&name.as_str()),
        };
        let tls = match (&options.authority, config.get_ssl_mode()) {
            (_, SslMode::Disable) => None,
            (Some(pem), _) => {
                config.ssl_mode(SslMode::Require);
                Some(connector(pem)?)
            }
            (None, SslMode::Prefer) if config.get_hosts().iter().all(is_local) => None,
            (None, _) => {
                let hint = "say whose certificates it shows with --store-ca, or `?sslmode=disable` where the network is trusted";
                return Err(bad(format!("is reached over a network; {hint}")));
            }
        };
        if let Some(password) = &options.password {
            config.password(password);
        }
        config.application_name("deephold").options(SESSION_OPTIONS).connect_timeout(CONNECT_PATIENCE);
        config.tcp_user_timeout(2 * CONNECT_PATIENCE).keepalives_idle(Duration::from_secs(30));
        let database = Self { config, tls, pool: Mutex::default(), freed: Condvar::new() };
        database.with(migrate)?;
        Ok(database)
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Connection, StateError> {
        let client = match &self.tls {
            Some(tls) => self.config.connect(tls.clone()),
            None => self.config.connect(NoTls),
        };
        Ok(Connection { client: client?, statements: HashMap::new(), used: Instant::now() })
    }

    /// A connection that answered lately, or a new one.
    fn take(&self) -> Result<Connection, StateError> {
        let begun = Instant::now();
        let mut pool = self.lock();
        loop {
            if let Some(mut idle) = pool.idle.pop() {
                drop(pool);
                let is_trusted = idle.used.elapsed() < IDLE_TRUSTED && !idle.client.is_closed();
                if is_trusted || idle.client.is_valid(CONNECT_PATIENCE).is_ok() {
                    return Ok(idle);
                }
                pool = self.lock();
                pool.open -= 1;
                pool.forget_idle();
                continue;
            }
            if pool.open < CONNECTIONS_MAX {
                pool.open += 1;
                drop(pool);
                return self.connect().inspect_err(|_| self.give_back(None));
            }
            let left = PLACE_PATIENCE.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(StateError::Unavailable("all connections are busy".into()));
            }
            pool = self.freed.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts a connection back, or notes that one is gone.
    fn give_back(&self, connection: Option<Connection>) {
        let mut pool = self.lock();
        match connection.filter(|c| !c.client.is_closed()) {
            Some(connection) => pool.idle.push(Connection { used: Instant::now(), ..connection }),
            None => pool.open = pool.open.saturating_sub(1),
        }
        drop(pool);
        self.freed.notify_one();
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StateError>) -> Result<T, StateError> {
        let mut connection = self.take()?;
        let done = work(&mut connection);
        if done.is_err() && connection.client.is_closed() {
            self.lock().forget_idle();
        }
        // After a failure its state is not known: the next call gets a new one.
        self.give_back(done.is_ok().then_some(connection));
        done
    }

    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        self.with(|Connection { client, statements, .. }| work(&mut Asking { client, statements }))
    }

    pub(super) fn snapshot<T>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        self.with(|Connection { client, statements, .. }| {
            let builder = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
            let mut transaction = builder.read_only(true).start()?;
            let done = work(&mut Asking { client: &mut transaction, statements })?;
            transaction.commit()?;
            Ok(done)
        })
    }

    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        self.with(|Connection { client, statements, .. }| {
            let mut transaction = client.transaction()?;
            let done = work(&mut Asking { client: &mut transaction, statements })?;
            transaction.commit()?;
            Ok(done)
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Closing waits for the network, which no asynchronous task may, wherever the last owner is.
        let idle = std::mem::take(&mut self.lock().idle);
        if !idle.is_empty() {
            let _ = std::thread::spawn(move || drop(idle)).join();
        }
    }
}

/// A TLS client that believes these authorities alone, and speaks 1.3.
fn connector(pem: &[u8]) -> Result<MakeRustlsConnect, StateError> {
    let bad =
        |e: &dyn std::fmt::Display| StateError::Address(format!("has an authority that cannot be used: {e}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    }
    if roots.is_empty() {
        return Err(bad(&"it holds no certificate in PEM"));
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = builder.map_err(|e| bad(&e))?.with_root_certificates(roots).with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// SQLite's types as PostgreSQL has them. Texts compare by their bytes, as there.
fn translated(migration: &str) -> String {
    let types = [
        (") STRICT", ")"),
        (" INTEGER", " BIGINT"),
        (" BLOB", " BYTEA"),
        (" REAL", " DOUBLE PRECISION"),
        (" TEXT", " TEXT COLLATE \"C\""),
    ];
    types.iter().fold(migration.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn migrate(connection: &mut Connection) -> Result<(), StateError> {
    let mut transaction = connection.client.transaction()?;
    // Whoever waits for another server that migrates may take longer than an ordinary statement.
    transaction.batch_execute("SET LOCAL statement_timeout = 60000; SET LOCAL lock_timeout = 60000")?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK])?;
    transaction.batch_execute("CREATE TABLE IF NOT EXISTS deephold_schema (version BIGINT NOT NULL)")?;
    let row = transaction.query_opt("SELECT version FROM deephold_schema", &[])?;
    let found: i64 = row.map_or(0, |row| row.get(0));
    if !(0..=KNOWN).contains(&found) {
        return Err(StateError::Newer { found, known: KNOWN });
    }
    for migration in &MIGRATIONS[found as usize..] {
        transaction.batch_execute(&translated(migration))?;
    }
    if found < KNOWN {
        transaction.execute("DELETE FROM deephold_schema", &[])?;
        transaction.execute("INSERT INTO deephold_schema (version) VALUES ($1)", &[&KNOWN])?;
    }
    Ok(transaction.commit()?)
}

/// A connection or a transaction on it, with the statements that it knows.
struct Asking<'a, C> {
    client: &'a mut C,
    statements: &'a mut HashMap<String, Statement>,
}

impl<C: GenericClient> Asking<'_, C> {
    fn prepared(&mut self, sql: &str) -> Result<Statement, StateError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql)?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

fn borrowed(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

impl<C: GenericClient> Session for Asking<'_, C> {
    fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, StateError> {
        let statement = self.prepared(sql)?;
        let rows = self.client.query(&statement, &borrowed(values))?;
        rows.iter()
            .map(|row| (0..row.len()).map(|i| value(row, i)).collect::<Result<_, _>>().map(Row::new))
            .collect()
    }

    fn run(&mut self, sql: &str, values: &[Value]) -> Result<u64, StateError> {
        let statement = self.prepared(sql)?;
        Ok(self.client.execute(&statement, &borrowed(values))?)
    }
}

fn value(row: &postgres::Row, i: usize) -> Result<Value, StateError> {
    let kind = row.columns()[i].type_();
    Ok(match *kind {
        Type::INT8 => row.try_get::<_, Option<i64>>(i)?.into(),
        Type::INT4 => row.try_get::<_, Option<i32>>(i)?.map(i64::from).into(),
        Type::FLOAT8 => row.try_get::<_, Option<f64>>(i)?.into(),
        Type::BYTEA => row.try_get::<_, Option<&[u8]>>(i)?.into(),
        _ => row.try_get::<_, Option<&str>>(i)?.into(),
    })
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Integer(value) => value.to_sql(kind, out),
            Self::Real(value) => value.to_sql(kind, out),
            Self::Text(text) => text.to_sql(kind, out),
            Self::Blob(bytes) => bytes.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        [Type::INT8, Type::FLOAT8, Type::TEXT, Type::BYTEA].contains(kind)
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_safe_or_refused() {
        let open = |url: &str, authority: Option<&str>| {
            let authority = authority.map(|pem| pem.as_bytes().to_vec());
            Postgres::open(&PostgresOptions { url: url.into(), authority, password: None })
                .err()
                .map(|e| e.to_string())
        };
        for (url, authority, words) in [
            ("postgres://me:secret@db/x", None, "password"),
            ("postgres://me@db/x", None, "--store-ca"),
            ("postgres://me@db/x?sslmode=require", None, "--store-ca"),
            ("postgres://me@db/x", Some("nothing"), "no certificate"),
            ("postgres://me@db", None, "database"),
            ("postgres:///x", None, "host"),
            ("postgres://me@db:port/x", None, "cannot be read"),
            ("postgres://me@db/x?unknown=1", None, "cannot be read"),
        ] {
            let refused = open(url, authority).unwrap_or_else(|| panic!("{url} was taken"));
            assert!(refused.contains(words) && !refused.contains("secret"), "{url}: {refused}");
        }
        // Nobody listens there.
        let away = open("postgres://me@127.0.0.1:1/x", None).expect("refused");
        assert!(away.contains("127.0.0.1") || away.contains("refused"), "{away}");
    }

    #[test]
    fn types_are_translated_whole() {
        let all: String = MIGRATIONS.iter().map(|m| translated(m)).collect();
        for word in ["STRICT", "INTEGER", "BLOB", "REAL"] {
            assert!(!all.contains(word), "{word}");
        }
        assert!(all.contains("hash BYTEA NOT NULL") && all.contains("weight DOUBLE PRECISION"));
    }
}
