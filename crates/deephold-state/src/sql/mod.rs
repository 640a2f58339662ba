//! The store over SQL: one set of statements and one schema for every database, in the part of SQL that all of them share.
//!
//! A database opens transactions ([`Session`]) and carries values. Parameters are `$1`, `$2`, …

mod archive;
mod kept;
mod migrations;
mod postgres;
mod sqlite;
mod statements;

use std::path::Path;

use postgres::Postgres;
pub use postgres::PostgresOptions;
use sqlite::Sqlite;

use crate::StateError;

/// A value on its way into or out of a database.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Blob(value.to_vec())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A row, whose columns are taken one after the other.
pub(crate) struct Row(std::vec::IntoIter<Value>);

impl Row {
    pub(crate) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    fn wrong(what: &'static str, value: Option<Value>) -> StateError {
        let value = match value {
            None => "nothing".to_owned(),
            Some(Value::Text(_)) => "a text".to_owned(),
            Some(Value::Blob(_)) => "bytes".to_owned(),
            Some(other) => format!("{other:?}"),
        };
        StateError::Value { what, value }
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<String, StateError> {
        match self.0.next() {
            Some(Value::Text(text)) => Ok(text),
            other => Err(Self::wrong(what, other)),
        }
    }

    pub(crate) fn blob(&mut self, what: &'static str) -> Result<Vec<u8>, StateError> {
        match self.0.next() {
            Some(Value::Blob(bytes)) => Ok(bytes),
            other => Err(Self::wrong(what, other)),
        }
    }

    pub(crate) fn real(&mut self, what: &'static str) -> Result<f64, StateError> {
        match self.0.next() {
            Some(Value::Real(value)) => Ok(value),
            other => Err(Self::wrong(what, other)),
        }
    }

    pub(crate) fn optional(&mut self, what: &'static str) -> Result<Option<i64>, StateError> {
        match self.0.next() {
            Some(Value::Null) => Ok(None),
            Some(Value::Integer(value)) => Ok(Some(value)),
            other => Err(Self::wrong(what, other)),
        }
    }

    pub(crate) fn integer(&mut self, what: &'static str) -> Result<i64, StateError> {
        self.optional(what)?.ok_or_else(|| Self::wrong(what, Some(Value::Null)))
    }

    /// An integer that counts something.
    pub(crate) fn count(&mut self, what: &'static str) -> Result<u64, StateError> {
        let value = self.integer(what)?;
        u64::try_from(value).map_err(|_| Self::wrong(what, Some(Value::Integer(value))))
    }
}

/// A transaction.
pub(crate) trait Session {
    /// The rows of a query.
    fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, StateError>;

    /// Changes rows; how many.
    fn run(&mut self, sql: &str, values: &[Value]) -> Result<u64, StateError>;
}

/// A store over SQL.
pub struct SqlStore(Database);

enum Database {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

impl SqlStore {
    /// Opens or makes the database in one file, readable by its owner alone, and brings it to the newest version.
    ///
    /// # Errors
    /// The system's; a file that is no database, is damaged, or was written by a newer program.
    pub fn sqlite(path: &Path) -> Result<Self, StateError> {
        Sqlite::open(path).map(|s| Self(Database::Sqlite(s)))
    }

    /// Connects to a database that several servers may share, and brings it to the newest version.
    ///
    /// # Errors
    /// An address that cannot be read or would not be safe; a database that cannot be reached or was written by a newer program.
    pub fn postgres(options: &PostgresOptions) -> Result<Self, StateError> {
        Postgres::open(options).map(|p| Self(Database::Postgres(p)))
    }

    /// Reads; each query sees the newest state.
    fn read<T>(&self, work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>) -> Result<T, StateError> {
        match &self.0 {
            Database::Sqlite(s) => s.read(work),
            Database::Postgres(p) => p.read(work),
        }
    }

    /// Reads one state of everything.
    fn snapshot<T>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        match &self.0 {
            Database::Sqlite(s) => s.read(work),
            Database::Postgres(p) => p.snapshot(work),
        }
    }

    /// Changes all or nothing; durable when it returns.
    fn write<T>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        match &self.0 {
            Database::Sqlite(s) => s.write(work),
            Database::Postgres(p) => p.write(work),
        }
    }

    /// Whether several servers may hold it.
    fn shared(&self) -> bool {
        match &self.0 {
            Database::Sqlite(_) => false,
            Database::Postgres(_) => true,
        }
    }

    /// What the database itself finds wrong with its content.
    fn damages(&self) -> Result<Vec<String>, StateError> {
        match &self.0 {
            Database::Sqlite(s) => s.damages(),
            // It checks its pages itself where it is set up to, and no reference can break.
            Database::Postgres(_) => Ok(Vec::new()),
        }
    }
}
