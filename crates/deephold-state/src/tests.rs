//! One contract for every store, and what only a file can do.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use deephold_testkit::{PostgresServer, TempDir};

use crate::{
    Amount, Claim, Claimed, Contents, KEPT_MAX, KeptAnswer, Limits, NewKey, PostgresOptions, Project, Record,
    Role, Spending, SqlStore, StateError, Store, Subject, Tenant, UsageFilter, UsageRow, Window, read_backup,
    write_backup,
};

fn key(id: &str, byte: u8) -> NewKey {
    NewKey {
        id: id.into(),
        hash: [byte; 32],
        tenant: "bank".into(),
        project: "risk".into(),
        owner: "Ada".into(),
        role: Role::App,
        models: vec!["guide".into(), "r1".into()],
        endpoints: vec!["/v1/chat".into()],
        limits: Limits { tokens_per_day: Some(1_000), ..Limits::default() },
        expires_ms: Some(2_000),
    }
}

/// What every store of keys must do.
fn keys_contract(store: &dyn Store) {
    assert!(store.keys().unwrap().is_empty());
    let made = store.create_key(&key("k1", 1), 1_000).unwrap();
    let holder = store.holder(&[1; 32]).unwrap().unwrap();
    assert_eq!((&holder.key, holder.weight), (&made, 1.0));
    assert_eq!(store.key_by_id("k1").unwrap().as_ref(), Some(&made));
    assert_eq!(store.holder(&[2; 32]).unwrap(), None);
    assert_eq!(store.key_by_id("k1' OR '1'='1").unwrap(), None);
    assert!(made.is_valid(1_999) && !made.is_valid(2_000));
    // Neither an id nor a secret twice, and nothing changes by trying.
    assert!(store.create_key(&key("k1", 9), 1_000).is_err());
    let elsewhere = NewKey { tenant: "nobody's".into(), ..key("k9", 1) };
    assert!(store.create_key(&elsewhere, 1_000).is_err());
    assert_eq!(store.tenant("nobody's").unwrap(), None);
    let everything = NewKey {
        role: Role::Admin,
        models: vec![],
        endpoints: vec![],
        limits: Limits::default(),
        expires_ms: None,
        ..key("k2", 2)
    };
    let other = store.create_key(&everything, 1_001).unwrap();
    assert!(other.is_valid(i64::MAX));
    assert_eq!(store.keys().unwrap(), [made, other]);
    assert!(store.revoke_key("k2", 5_000).unwrap());
    assert!(!store.revoke_key("k2", 6_000).unwrap() && !store.revoke_key("k3", 6_000).unwrap());
    let revoked = store.holder(&[2; 32]).unwrap().unwrap().key;
    assert_eq!(revoked.revoked_ms, Some(5_000));
    assert!(!revoked.is_valid(4_999), "a revocation holds at once, whatever the clocks say");
}

/// What every store of tenants must do, after [`keys_contract`].
fn tenants_contract(store: &dyn Store) {
    // A key brings its tenant and project.
    assert_eq!(store.tenants().unwrap().len(), 1);
    let limits = Limits { requests_per_minute: Some(60), concurrent: Some(4), ..Limits::default() };
    let bank = Tenant { name: "bank".into(), weight: 2.5, limits: limits.clone(), created_ms: 9 };
    store.put_tenant(&bank).unwrap();
    let stored = store.tenant("bank").unwrap().unwrap();
    assert_eq!((stored.weight, &stored.limits, stored.created_ms), (2.5, &limits, 1_000));
    let of_project = Limits { nanos_per_month: Some(5), queued: Some(1), ..Limits::default() };
    let project = |tenant: &str, name: &str| Project {
        tenant: tenant.into(),
        name: name.into(),
        limits: of_project.clone(),
        created_ms: 9,
    };
    store.put_project(&project("bank", "risk")).unwrap();
    store.put_project(&project("bank", "Änderung")).unwrap();
    assert!(store.put_project(&project("nobody", "x")).is_err(), "a project without a tenant");
    let holder = store.holder(&[1; 32]).unwrap().unwrap();
    assert_eq!((holder.weight, holder.tenant_limits), (2.5, limits));
    assert_eq!(holder.project_limits, of_project);
    assert_eq!(holder.key.limits.tokens_per_day, Some(1_000));
    // By bytes, not by somebody's alphabet.
    let names: Vec<String> = store.projects().unwrap().into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["risk", "Änderung"]);
    store.put_tenant(&Tenant { name: "Zoo".into(), ..bank }).unwrap();
    let names: Vec<String> = store.tenants().unwrap().into_iter().map(|t| t.name).collect();
    assert_eq!(names, ["Zoo", "bank"]);
}

fn row(day: i64, tenant: &str, model: &str, requests: u64) -> UsageRow {
    UsageRow {
        day,
        tenant: tenant.into(),
        project: "risk".into(),
        key: "k1".into(),
        model: model.into(),
        requests,
        prompt_tokens: 10 * requests,
        cached_tokens: requests,
        completion_tokens: 5 * requests,
        cost_nanos: 7 * requests,
    }
}

/// What every store of usage must do.
fn usage_contract(store: &dyn Store) {
    let subject = Subject::Project("bank".into(), "risk".into());
    let spending = |requests| {
        let spent = Amount { requests, tokens: 2, cost_nanos: 3 };
        Spending { minute: Window { start_ms: 60_000, spent }, held: spent, ..Spending::default() }
    };
    let write = |replica: &str, rows: &[UsageRow], requests, now_ms| {
        store.write_usage(replica, rows, &[(subject.clone(), spending(requests))], now_ms).unwrap();
    };
    write("a", &[row(1, "bank", "guide", 1), row(2, "bank", "guide", 2)], 1, 10);
    // Written again, because the first answer was lost, and then with more: figures are whole, not added.
    write("a", &[row(2, "bank", "guide", 2)], 1, 11);
    write("a", &[row(2, "bank", "guide", 3)], 4, 12);
    write("b", &[row(2, "bank", "guide", 4), row(2, "bank", "r1", 1), row(2, "Zoo", "guide", 1)], 9, 13);
    let all = store.usage(&UsageFilter::default()).unwrap();
    let expected = [
        row(1, "bank", "guide", 1),
        row(2, "Zoo", "guide", 1),
        row(2, "bank", "guide", 7),
        row(2, "bank", "r1", 1),
    ];
    assert_eq!(all, expected);
    let filtered = |filter: UsageFilter| store.usage(&filter).unwrap().len();
    assert_eq!(filtered(UsageFilter { from_day: Some(2), ..UsageFilter::default() }), 3);
    assert_eq!(filtered(UsageFilter { to_day: Some(1), ..UsageFilter::default() }), 1);
    let of_model = UsageFilter {
        tenant: Some("bank".into()),
        project: Some("risk".into()),
        key: Some("k1".into()),
        model: Some("r1".into()),
        ..UsageFilter::default()
    };
    assert_eq!(filtered(of_model), 1);
    assert_eq!(filtered(UsageFilter { tenant: Some("' OR ''='".into()), ..UsageFilter::default() }), 0);
    assert_eq!(store.usage_of_replica("a", 2).unwrap(), [row(2, "bank", "guide", 3)]);
    let rows = store.spending(None).unwrap();
    let seen: Vec<_> = rows.iter().map(|r| (&*r.replica, r.seen_ms, r.spending)).collect();
    assert_eq!(seen, [("a", 12, spending(4)), ("b", 13, spending(9))]);
    assert!(rows.iter().all(|r| r.subject == subject));
    let others = |replica, since| store.spending(Some((replica, since))).unwrap().len();
    assert_eq!((others("a", 13), others("a", 14), others("b", 12), others("c", 0)), (1, 0, 1, 2));
}

/// What every store must give back, after the other contracts, into an empty one of any kind.
fn archive_contract(store: &dyn Store, empty: &dyn Store) {
    assert_eq!(store.check().unwrap(), [""; 0]);
    let mut file = Vec::new();
    let contents = write_backup(store, "9.9", 1_000, &mut file).unwrap();
    let expected = Contents { tenants: 2, projects: 2, keys: 2, usage_rows: 5, spending_rows: 2 };
    assert_eq!(contents, expected);
    let (records, again) = read_backup(&mut BufReader::new(&file[..])).unwrap();
    assert_eq!(again, contents);
    assert!(matches!(store.import(&records), Err(StateError::NotEmpty)));
    empty.import(&records).unwrap();
    assert_eq!(empty.export().unwrap(), records);
    assert_eq!(empty.check().unwrap(), [""; 0]);
    assert!(empty.holder(&[1; 32]).unwrap().is_some());
    // A file that was cut, changed or swapped is refused, whatever byte it is.
    let text = String::from_utf8(file.clone()).unwrap();
    let refused = |bytes: &[u8]| {
        let error = read_backup(&mut BufReader::new(bytes)).expect_err("refused");
        assert!(
            matches!(error, StateError::Backup { .. } | StateError::Io { .. } | StateError::Value { .. }),
            "{error}"
        );
    };
    for cut in [0, 1, 100, text.len() / 2, text.rfind("{\"end").unwrap()] {
        refused(&file[..cut]);
    }
    for place in (0..file.len()).step_by(37) {
        let mut changed = file.clone();
        changed[place] ^= 1;
        refused(&changed);
    }
    refused(text.replace("\"format\":1", "\"format\":2").as_bytes());
    refused(format!("{}{text}", text.lines().next().map(|l| format!("{l}\n")).unwrap()).as_bytes());
}

/// What every store of kept answers must do.
fn answers_contract(store: &dyn Store) {
    let claim = |name: &str, replica: &str| Claim {
        key: "k1".into(),
        name: name.into(),
        fingerprint: [7; 32],
        replica: replica.into(),
        until_ms: 100,
    };
    let (mine, theirs) = (claim("a", "one"), claim("a", "two"));
    assert_eq!(store.claim(&mine, 0).unwrap(), Claimed::New);
    assert_eq!(store.claim(&theirs, 1).unwrap(), Claimed::Running { replica: "one".into() });
    assert_eq!(store.claim(&Claim { key: "k2".into(), ..mine.clone() }, 1).unwrap(), Claimed::New);
    // Only whoever claimed it ends the claim.
    let answer = KeptAnswer { status: 200, content_type: "text/plain".into(), body: vec![0, 255, 10] };
    store.release(&theirs).unwrap();
    store.keep(&theirs, &answer, 500).unwrap();
    assert_eq!(store.claim(&mine, 1).unwrap(), Claimed::Running { replica: "one".into() });
    store.keep(&mine, &answer, 500).unwrap();
    store.release(&mine).unwrap();
    assert_eq!(store.claim(&theirs, 200).unwrap(), Claimed::Answered(answer.clone()));
    assert_eq!(store.claim(&Claim { fingerprint: [8; 32], ..mine.clone() }, 200).unwrap(), Claimed::Other);
    assert_eq!(store.claim(&mine, 500).unwrap(), Claimed::New, "its time is over");
    store.release(&mine).unwrap();
    // However many a key has, so many are kept, and the oldest go.
    for i in 0..KEPT_MAX as i64 + 5 {
        let one = claim(&i.to_string(), "one");
        let one = Claim { until_ms: 10_000 + i, ..one };
        assert_eq!(store.claim(&one, 600).unwrap(), Claimed::New);
        store.keep(&one, &answer, 10_000 + i).unwrap();
    }
    assert_eq!(store.claim(&claim("6", "one"), 600).unwrap(), Claimed::Answered(answer));
    assert_eq!(store.claim(&claim("5", "one"), 600).unwrap(), Claimed::New);
}

/// All contracts over two empty stores.
fn contract(store: &dyn Store, empty: &dyn Store) {
    keys_contract(store);
    tenants_contract(store);
    usage_contract(store);
    archive_contract(store, empty);
    answers_contract(store);
}

#[test]
fn sqlite_keeps_the_contract() {
    let dir = TempDir::new("state");
    let open = |name: &str| SqlStore::sqlite(&dir.join(name)).unwrap();
    contract(&open("one.db"), &open("other.db"));
}

fn at(url: String) -> PostgresOptions {
    PostgresOptions { url, password: Some(PostgresServer::PASSWORD.into()), authority: None }
}

#[test]
fn postgres_keeps_the_contract() {
    let Some(server) = PostgresServer::start(&["fsync=off"]) else { return };
    let open = |name: &str| SqlStore::postgres(&at(server.database(name))).unwrap();
    contract(&open("one"), &open("other"));
    // From one kind of database to the other and back.
    let dir = TempDir::new("state");
    let (file, third): (&dyn Store, &dyn Store) =
        (&SqlStore::sqlite(&dir.join("s.db")).unwrap(), &open("third"));
    keys_contract(file);
    third.import(&file.export().unwrap()).unwrap();
    assert_eq!(third.export().unwrap(), file.export().unwrap());
}

#[test]
fn postgres_is_migrated_once_comes_back_and_bounds_its_connections() {
    let Some(mut server) = PostgresServer::start(&["fsync=off", "max_connections=12"]) else { return };
    let options = at(server.database("shared"));
    // Several servers that start at the same time agree on who makes the tables.
    std::thread::scope(|scope| {
        let open = || SqlStore::postgres(&options).map(drop);
        let all: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
        all.into_iter().for_each(|one| one.join().unwrap().unwrap());
    });
    let store = SqlStore::postgres(&options).unwrap();
    let store: &dyn Store = &store;
    store.create_key(&key("k1", 1), 1).unwrap();
    // Many callers share a few connections.
    std::thread::scope(|scope| {
        let ask = || (0..20).all(|_| store.holder(&[1; 32]).unwrap().is_some());
        let all: Vec<_> = (0..32).map(|_| scope.spawn(ask)).collect();
        assert!(all.into_iter().all(|one| one.join().unwrap()));
    });
    server.kill();
    let away = store.keys().unwrap_err();
    assert!(matches!(away, StateError::Unavailable(_)), "{away}");
    assert!(!away.to_string().contains(PostgresServer::PASSWORD));
    server.resume();
    // What lay idle is of the old server: one call may find that out.
    let _ = store.keys();
    assert_eq!(store.keys().unwrap().len(), 1);
    let wrong = PostgresOptions { password: Some("wrong".into()), ..options.clone() };
    let refused = SqlStore::postgres(&wrong).err().unwrap().to_string();
    assert!(refused.contains("28P01"), "{refused}");
    server.sql("shared", "UPDATE deephold_schema SET version = 99");
    assert!(matches!(SqlStore::postgres(&options), Err(StateError::Newer { found: 99, .. })));
}

#[test]
fn a_file_is_private_shared_by_processes_and_survives() {
    let dir = TempDir::new("state");
    let path = dir.join("state.db");
    let first: &dyn Store = &SqlStore::sqlite(&path).unwrap();
    let second: &dyn Store = &SqlStore::sqlite(&path).unwrap();
    first.create_key(&key("k1", 1), 1).unwrap();
    assert!(second.revoke_key("k1", 2).unwrap());
    assert!(first.key_by_id("k1").unwrap().unwrap().revoked_ms.is_some(), "seen at once");
    let again: &dyn Store = &SqlStore::sqlite(&path).unwrap();
    assert_eq!(again.keys().unwrap().len(), 1);
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
    assert!(matches!(SqlStore::sqlite(&path), Err(StateError::Database(_))));
    assert_eq!(std::fs::read(&path).unwrap().len(), 12_000, "nothing of it is lost");
    let path = dir.join("newer.db");
    drop(SqlStore::sqlite(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(SqlStore::sqlite(&path), Err(StateError::Newer { found: 99, .. })));
    assert!(matches!(SqlStore::sqlite(&dir.join("no/such/folder.db")), Err(StateError::Io { .. })));
}

/// A copy of a file that an older program wrote.
fn old(dir: &TempDir, name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    let path = dir.join(name);
    std::fs::copy(golden, &path).unwrap();
    path
}

#[test]
fn files_of_older_programs_are_brought_forward_and_lose_nothing() {
    let dir = TempDir::new("state");
    let store: &dyn Store = &SqlStore::sqlite(&old(&dir, "v1.db")).unwrap();
    let keys = store.keys().unwrap();
    let ids: Vec<&str> = keys.iter().map(|k| &*k.id).collect();
    assert_eq!(ids, ["key-0001", "key-0002", "key-0003"]);
    assert_eq!((keys[1].models.len(), keys[1].expires_ms), (2, Some(9_000_000_000_000)));
    assert_eq!((keys[2].role, keys[2].revoked_ms), (Role::Auditor, Some(4_000)));
    assert!(keys.iter().all(|k| k.project == "default" && k.limits == Limits::default()));
    let holder = store.holder(&[1; 32]).unwrap().unwrap();
    assert_eq!((&*holder.key.tenant, holder.weight), ("bank", 1.0));
    let tenants: Vec<_> = store.tenants().unwrap().into_iter().map(|t| (t.name, t.created_ms)).collect();
    assert_eq!(tenants, [("bank".to_owned(), 1_000), ("grid".to_owned(), 3_000)]);
    assert_eq!(store.check().unwrap(), [""; 0]);

    let store: &dyn Store = &SqlStore::sqlite(&old(&dir, "v2.db")).unwrap();
    let bank = store.tenant("bank").unwrap().unwrap();
    assert_eq!((bank.weight, bank.limits.tokens_per_month), (2.0, Some(5_000)));
    let key = store.keys().unwrap().remove(0);
    assert_eq!(
        (&*key.project, &*key.endpoints, key.limits.requests_per_day),
        ("risk", &["/v1".to_owned()][..], Some(9))
    );
    let rows = store.usage(&UsageFilter::default()).unwrap();
    assert_eq!((rows.len(), rows[0].completion_tokens, rows[0].cost_nanos), (1, 4, 8_000));
    assert_eq!(store.spending(None).unwrap().len(), 3);
    assert_eq!(store.check().unwrap(), [""; 0]);
}

#[test]
fn damage_is_found() {
    let dir = TempDir::new("state");
    let path = dir.join("state.db");
    let store: &dyn Store = &SqlStore::sqlite(&path).unwrap();
    store.create_key(&key("k1", 1), 1).unwrap();
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.pragma_update(None, "foreign_keys", false).unwrap();
    raw.execute("UPDATE api_keys SET project = 'gone'", []).unwrap();
    raw.execute("DELETE FROM tenants", []).unwrap();
    let found = store.check().unwrap();
    assert!(
        found.iter().any(|f| f.contains("k1")) && found.iter().any(|f| f.contains("tenants")),
        "{found:?}"
    );
    raw.execute("UPDATE api_keys SET limits = '{\"tokens_per_dya\": 1}'", []).unwrap();
    assert!(store.check().unwrap().iter().any(|f| f.contains("tokens_per_dya")));
}

#[test]
fn a_backup_holds_no_secret_and_restores_elsewhere() {
    let record = Record::of_key(
        SqlStore::sqlite(&TempDir::new("state").join("s.db"))
            .and_then(|s| crate::Keys::create_key(&s, &key("k1", 0xab), 1))
            .unwrap(),
    );
    let text = serde_json::to_string(&record).unwrap();
    assert!(text.contains(&"ab".repeat(32)) && !text.contains("\"secret\""), "{text}");
}
