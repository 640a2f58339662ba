//! SQLite in one file.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql, TransactionBehavior, params_from_iter};

use super::migrations::{KNOWN, MIGRATIONS};
use super::{Row, Session, Value};
use crate::StateError;

/// An open file. Whoever reads does not wait until a writer's bytes are on the disk.
pub(super) struct Sqlite {
    reader: Mutex<Connection>,
    writer: Mutex<Connection>,
}

impl Sqlite {
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        make_private(path).map_err(|source| StateError::Io { action: "make", source })?;
        let mut writer = connect(path)?;
        migrate(&mut writer)?;
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(Self { reader: Mutex::new(reader), writer: Mutex::new(writer) })
    }

    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut connection = lock(&self.reader);
        let transaction = connection.transaction()?;
        work(&mut &*transaction)
    }

    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&mut dyn Session) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut connection = lock(&self.writer);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&mut &*transaction)?;
        transaction.commit()?;
        Ok(done)
    }

    pub(super) fn damages(&self) -> Result<Vec<String>, StateError> {
        let connection = lock(&self.reader);
        let mut found = Vec::new();
        let mut statement = connection.prepare("PRAGMA integrity_check")?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
        for line in lines {
            found.push(line?);
        }
        found.retain(|line| line != "ok");
        let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
            found.push(format!("a row of {table} names something that is not in {parent}"));
        }
        Ok(found)
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(path: &Path) -> Result<Connection, StateError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // What a command was told is done must survive a loss of power; readers do not wait for writers.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A server may write in its own folder alone.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), StateError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if !(0..=KNOWN).contains(&found) {
        return Err(StateError::Newer { found, known: KNOWN });
    }
    for migration in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", KNOWN)?;
    transaction.commit()?;
    Ok(())
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

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(value) => ValueRef::Integer(*value),
            Self::Real(value) => ValueRef::Real(*value),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Session for &Connection {
    fn rows(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, StateError> {
        let mut statement = self.prepare_cached(&numbered(sql))?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(values))?;
        let mut out = Vec::new();
        while let Some(row) = rows.next()? {
            let mut values = Vec::with_capacity(columns);
            for i in 0..columns {
                values.push(match row.get_ref(i)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(value) => Value::Integer(value),
                    ValueRef::Real(value) => Value::Real(value),
                    ValueRef::Text(bytes) => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
                    ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
                });
            }
            out.push(Row::new(values));
        }
        Ok(out)
    }

    fn run(&mut self, sql: &str, values: &[Value]) -> Result<u64, StateError> {
        Ok(self.prepare_cached(&numbered(sql))?.execute(params_from_iter(values))? as u64)
    }
}

/// SQLite writes numbered parameters with a question mark.
fn numbered(sql: &str) -> String {
    sql.replace('$', "?")
}
