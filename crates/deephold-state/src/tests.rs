//! One contract for every store, and what only a file can do.

use deephold_testkit::TempDir;

use crate::{Keys, NewKey, Role, SqliteStore, StateError};

fn key(id: &str, byte: u8) -> NewKey {
    NewKey {
        id: id.into(),
        hash: [byte; 32],
        tenant: "bank".into(),
        owner: "Ada".into(),
        role: Role::App,
        models: vec!["guide".into(), "r1".into()],
        expires_ms: Some(2_000),
    }
}

/// What every store of keys must do.
fn keys_contract(store: &dyn Keys) {
    assert!(store.keys().unwrap().is_empty());
    let made = store.create_key(&key("k1", 1), 1_000).unwrap();
    assert_eq!(store.key_by_hash(&[1; 32]).unwrap().as_ref(), Some(&made));
    assert_eq!(store.key_by_id("k1").unwrap().as_ref(), Some(&made));
    assert_eq!(store.key_by_hash(&[2; 32]).unwrap(), None);
    assert_eq!(store.key_by_id("k1' OR '1'='1").unwrap(), None);
    assert!(made.is_valid(1_999) && !made.is_valid(2_000));
    // Neither an id nor a secret twice, and nothing changes by trying.
    assert!(store.create_key(&key("k1", 9), 1_000).is_err());
    assert!(store.create_key(&key("k9", 1), 1_000).is_err());
    let everything = NewKey { role: Role::Admin, models: vec![], expires_ms: None, ..key("k2", 2) };
    let other = store.create_key(&everything, 1_001).unwrap();
    assert!(other.is_valid(i64::MAX));
    assert_eq!(store.keys().unwrap(), [made, other]);
    assert!(store.revoke_key("k2", 5_000).unwrap());
    assert!(!store.revoke_key("k2", 6_000).unwrap() && !store.revoke_key("k3", 6_000).unwrap());
    let revoked = store.key_by_hash(&[2; 32]).unwrap().unwrap();
    assert_eq!(revoked.revoked_ms, Some(5_000));
    assert!(!revoked.is_valid(4_999), "a revocation holds at once, whatever the clocks say");
}

#[test]
fn sqlite_keeps_the_contract() {
    keys_contract(&SqliteStore::in_memory().unwrap());
    let dir = TempDir::new("state");
    keys_contract(&SqliteStore::open(&dir.join("state.db")).unwrap());
}

#[test]
fn a_file_is_private_shared_by_processes_and_survives() {
    let dir = TempDir::new("state");
    let path = dir.join("state.db");
    let first = SqliteStore::open(&path).unwrap();
    let second = SqliteStore::open(&path).unwrap();
    first.create_key(&key("k1", 1), 1).unwrap();
    assert!(second.revoke_key("k1", 2).unwrap());
    assert!(first.key_by_id("k1").unwrap().unwrap().revoked_ms.is_some(), "seen at once");
    drop((first, second));
    assert_eq!(SqliteStore::open(&path).unwrap().keys().unwrap().len(), 1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn what_is_no_store_of_ours_is_refused() {
    let dir = TempDir::new("state");
    let path = dir.join("noise.db");
    std::fs::write(&path, "no database ".repeat(1000)).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StateError::Database(_))));
    assert_eq!(std::fs::read(&path).unwrap().len(), 12_000, "nothing of it is lost");
    let path = dir.join("newer.db");
    drop(SqliteStore::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(SqliteStore::open(&path), Err(StateError::Newer { found: 99, .. })));
    assert!(matches!(SqliteStore::open(&dir.join("no/such/folder.db")), Err(StateError::Io { .. })));
}
