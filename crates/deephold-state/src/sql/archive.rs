//! All of a store at once.

use super::{Session, SqlStore, statements};
use crate::StateError;
use crate::archive::{Archive, Record};

fn records(session: &mut dyn Session) -> Result<Vec<Record>, StateError> {
    let mut out: Vec<Record> = Vec::new();
    out.extend(statements::all_tenants(session)?.into_iter().map(Record::Tenant));
    out.extend(statements::all_projects(session)?.into_iter().map(Record::Project));
    out.extend(statements::all_keys(session)?.into_iter().map(Record::of_key));
    let usage = statements::all_usage(session)?.into_iter();
    out.extend(usage.map(|(replica, row)| Record::Usage { replica, row }));
    out.extend(statements::all_spending(session)?.into_iter().map(Record::Spending));
    Ok(out)
}

impl Archive for SqlStore {
    fn export(&self) -> Result<Vec<Record>, StateError> {
        self.snapshot(records)
    }

    fn import(&self, records: &[Record]) -> Result<(), StateError> {
        self.write(|session| {
            for table in ["tenants", "api_keys", "usage", "spending"] {
                if !session.rows(&format!("SELECT 1 FROM {table} LIMIT 1"), &[])?.is_empty() {
                    return Err(StateError::NotEmpty);
                }
            }
            records.iter().try_for_each(|record| match record {
                Record::Tenant(tenant) => statements::put_tenant(session, tenant),
                Record::Project(project) => statements::put_project(session, project),
                Record::Key { key, .. } => statements::insert_key(session, key),
                Record::Usage { replica, row } => statements::put_usage(session, replica, row),
                Record::Spending(row) => statements::put_spending(session, row),
            })
        })
    }

    fn check(&self) -> Result<Vec<String>, StateError> {
        let mut found = self.damages()?;
        // Reading everything finds what no column's type forbids.
        match self.export() {
            Ok(records) => found.extend(orphans(&records)),
            Err(e) => found.push(e.to_string()),
        }
        Ok(found)
    }
}

/// Keys whose project is not there: nobody could use them.
fn orphans(records: &[Record]) -> impl Iterator<Item = String> {
    let has = |tenant: &str, project: &str| {
        records.iter().any(|r| matches!(r, Record::Project(p) if p.tenant == tenant && p.name == project))
    };
    let orphan = |record: &Record| match record {
        Record::Key { key, .. } if !has(&key.tenant, &key.project) => {
            Some(format!("the key {} belongs to a project that is not there", key.id))
        }
        _ => None,
    };
    records.iter().filter_map(orphan).collect::<Vec<_>>().into_iter()
}
