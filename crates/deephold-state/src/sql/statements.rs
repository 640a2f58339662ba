//! What the traits ask, in SQL.

use super::{Row, Session, SqlStore, Value};
use crate::{
    ApiKey, Holder, Keys, Limits, NewKey, Project, Role, Spending, SpendingRow, StateError, Subject, Tenant,
    Tenants, Usage, UsageFilter, UsageRow,
};

/// Between the names in one column; no name holds it.
const SEPARATOR: char = '\n';

/// Columns of a key, as [`key`] takes them.
const KEY: &str = "k.id, k.hash, k.tenant, k.project, k.owner, k.role, k.models, k.endpoints, k.limits, \
                   k.created_ms, k.expires_ms, k.revoked_ms";

fn names(text: &str) -> Vec<String> {
    text.split(SEPARATOR).filter(|m| !m.is_empty()).map(str::to_owned).collect()
}

/// Plain records cannot fail to be written.
pub(super) fn to_json(value: &impl serde::Serialize) -> Value {
    Value::Text(serde_json::to_string(value).unwrap_or_default())
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(
    row: &mut Row,
    what: &'static str,
) -> Result<T, StateError> {
    let text = row.text(what)?;
    serde_json::from_str(&text).map_err(|e| StateError::Value { what, value: e.to_string() })
}

/// A count as SQL's integers hold it.
fn stored(count: u64) -> Value {
    Value::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

fn key(row: &mut Row) -> Result<ApiKey, StateError> {
    let id = row.text("id of a key")?;
    let hash = row.blob("hash of a key")?.try_into();
    Ok(ApiKey {
        id,
        hash: hash
            .map_err(|_| StateError::Value { what: "hash of a key", value: "of another length".into() })?,
        tenant: row.text("tenant")?,
        project: row.text("project")?,
        owner: row.text("owner")?,
        role: {
            let role = row.text("role")?;
            Role::from_name(&role).ok_or(StateError::Value { what: "role", value: role })?
        },
        models: names(&row.text("list of models")?),
        endpoints: names(&row.text("list of paths")?),
        limits: from_json(row, "set of limits")?,
        created_ms: row.integer("time")?,
        expires_ms: row.optional("time")?,
        revoked_ms: row.optional("time")?,
    })
}

fn tenant(row: &mut Row) -> Result<Tenant, StateError> {
    let tenant = Tenant {
        name: row.text("tenant")?,
        weight: row.real("weight")?,
        limits: from_json(row, "set of limits")?,
        created_ms: row.integer("time")?,
    };
    if !(tenant.weight.is_finite() && tenant.weight > 0.0) {
        return Err(StateError::Value { what: "weight", value: tenant.weight.to_string() });
    }
    Ok(tenant)
}

fn project(row: &mut Row) -> Result<Project, StateError> {
    Ok(Project {
        tenant: row.text("tenant")?,
        name: row.text("project")?,
        limits: from_json(row, "set of limits")?,
        created_ms: row.integer("time")?,
    })
}

fn usage(row: &mut Row) -> Result<UsageRow, StateError> {
    Ok(UsageRow {
        day: row.integer("day")?,
        tenant: row.text("tenant")?,
        project: row.text("project")?,
        key: row.text("id of a key")?,
        model: row.text("model")?,
        requests: row.count("count of requests")?,
        prompt_tokens: row.count("count of tokens")?,
        cached_tokens: row.count("count of tokens")?,
        completion_tokens: row.count("count of tokens")?,
        cost_nanos: row.count("cost")?,
    })
}

fn spending(row: &mut Row) -> Result<SpendingRow, StateError> {
    Ok(SpendingRow {
        subject: from_json(row, "subject")?,
        replica: row.text("replica")?,
        seen_ms: row.integer("time")?,
        spending: from_json(row, "spending")?,
    })
}

fn all<T>(rows: Vec<Row>, read: fn(&mut Row) -> Result<T, StateError>) -> Result<Vec<T>, StateError> {
    rows.into_iter().map(|mut row| read(&mut row)).collect()
}

pub(super) fn put_tenant(session: &mut dyn Session, tenant: &Tenant) -> Result<(), StateError> {
    let sql = "INSERT INTO tenants (name, weight, limits, created_ms) VALUES ($1, $2, $3, $4)
               ON CONFLICT (name) DO UPDATE SET weight = excluded.weight, limits = excluded.limits";
    let values =
        [(&*tenant.name).into(), tenant.weight.into(), to_json(&tenant.limits), tenant.created_ms.into()];
    session.run(sql, &values).map(drop)
}

pub(super) fn put_project(session: &mut dyn Session, project: &Project) -> Result<(), StateError> {
    let sql = "INSERT INTO projects (tenant, name, limits, created_ms) VALUES ($1, $2, $3, $4)
               ON CONFLICT (tenant, name) DO UPDATE SET limits = excluded.limits";
    let values = [
        (&*project.tenant).into(),
        (&*project.name).into(),
        to_json(&project.limits),
        project.created_ms.into(),
    ];
    session.run(sql, &values).map(drop)
}

pub(super) fn insert_key(session: &mut dyn Session, key: &ApiKey) -> Result<(), StateError> {
    let sql = "INSERT INTO api_keys (id, hash, tenant, project, owner, role, models, endpoints, limits,
                   created_ms, expires_ms, revoked_ms)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    let separator = SEPARATOR.to_string();
    let values = [
        (&*key.id).into(),
        key.hash[..].into(),
        (&*key.tenant).into(),
        (&*key.project).into(),
        (&*key.owner).into(),
        key.role.name().into(),
        (&*key.models.join(&separator)).into(),
        (&*key.endpoints.join(&separator)).into(),
        to_json(&key.limits),
        key.created_ms.into(),
        key.expires_ms.into(),
        key.revoked_ms.into(),
    ];
    session.run(sql, &values).map(drop)
}

pub(super) fn put_usage(session: &mut dyn Session, replica: &str, row: &UsageRow) -> Result<(), StateError> {
    let sql = "INSERT INTO usage (day, tenant, project, api_key, model, replica, requests, prompt_tokens,
                   cached_tokens, completion_tokens, cost_nanos)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
               ON CONFLICT (day, tenant, project, api_key, model, replica) DO UPDATE SET
                   requests = excluded.requests, prompt_tokens = excluded.prompt_tokens,
                   cached_tokens = excluded.cached_tokens, completion_tokens = excluded.completion_tokens,
                   cost_nanos = excluded.cost_nanos";
    let values = [
        row.day.into(),
        (&*row.tenant).into(),
        (&*row.project).into(),
        (&*row.key).into(),
        (&*row.model).into(),
        replica.into(),
        stored(row.requests),
        stored(row.prompt_tokens),
        stored(row.cached_tokens),
        stored(row.completion_tokens),
        stored(row.cost_nanos),
    ];
    session.run(sql, &values).map(drop)
}

pub(super) fn put_spending(session: &mut dyn Session, row: &SpendingRow) -> Result<(), StateError> {
    let sql = "INSERT INTO spending (subject, replica, seen_ms, spending) VALUES ($1, $2, $3, $4)
               ON CONFLICT (subject, replica) DO UPDATE SET seen_ms = excluded.seen_ms, spending = excluded.spending";
    let values = [to_json(&row.subject), (&*row.replica).into(), row.seen_ms.into(), to_json(&row.spending)];
    session.run(sql, &values).map(drop)
}

pub(super) fn all_keys(session: &mut dyn Session) -> Result<Vec<ApiKey>, StateError> {
    all(session.rows(&format!("SELECT {KEY} FROM api_keys k ORDER BY k.created_ms, k.id"), &[])?, key)
}

pub(super) fn all_tenants(session: &mut dyn Session) -> Result<Vec<Tenant>, StateError> {
    all(session.rows("SELECT name, weight, limits, created_ms FROM tenants ORDER BY name", &[])?, tenant)
}

pub(super) fn all_projects(session: &mut dyn Session) -> Result<Vec<Project>, StateError> {
    let sql = "SELECT tenant, name, limits, created_ms FROM projects ORDER BY tenant, name";
    all(session.rows(sql, &[])?, project)
}

pub(super) fn all_spending(session: &mut dyn Session) -> Result<Vec<SpendingRow>, StateError> {
    spending_of(session, "", i64::MIN)
}

/// Of replicas other than this one, as far as written since then.
fn spending_of(
    session: &mut dyn Session,
    other_than: &str,
    since_ms: i64,
) -> Result<Vec<SpendingRow>, StateError> {
    let sql = "SELECT subject, replica, seen_ms, spending FROM spending
               WHERE replica <> $1 AND seen_ms >= $2 ORDER BY subject, replica";
    all(session.rows(sql, &[other_than.into(), since_ms.into()])?, spending)
}

/// Each row with its replica.
pub(super) fn all_usage(session: &mut dyn Session) -> Result<Vec<(String, UsageRow)>, StateError> {
    let sql = "SELECT replica, day, tenant, project, api_key, model, requests, prompt_tokens, cached_tokens,
                   completion_tokens, cost_nanos
               FROM usage ORDER BY day, tenant, project, api_key, model, replica";
    all(session.rows(sql, &[])?, |row| Ok((row.text("replica")?, usage(row)?)))
}

impl Keys for SqlStore {
    fn create_key(&self, new: &NewKey, now_ms: i64) -> Result<ApiKey, StateError> {
        let key = ApiKey {
            id: new.id.clone(),
            hash: new.hash,
            tenant: new.tenant.clone(),
            project: new.project.clone(),
            owner: new.owner.clone(),
            role: new.role,
            models: new.models.clone(),
            endpoints: new.endpoints.clone(),
            limits: new.limits.clone(),
            created_ms: now_ms,
            expires_ms: new.expires_ms,
            revoked_ms: None,
        };
        self.write(|session| {
            let none = to_json(&Limits::default());
            let sql = "INSERT INTO tenants (name, weight, limits, created_ms) VALUES ($1, 1.0, $2, $3)
                       ON CONFLICT (name) DO NOTHING";
            session.run(sql, &[(&*key.tenant).into(), none.clone(), now_ms.into()])?;
            let sql = "INSERT INTO projects (tenant, name, limits, created_ms) VALUES ($1, $2, $3, $4)
                       ON CONFLICT (tenant, name) DO NOTHING";
            session.run(sql, &[(&*key.tenant).into(), (&*key.project).into(), none, now_ms.into()])?;
            insert_key(session, &key)
        })?;
        Ok(key)
    }

    fn holder(&self, hash: &[u8; 32]) -> Result<Option<Holder>, StateError> {
        let sql = format!(
            "SELECT {KEY}, t.weight, t.limits, p.limits FROM api_keys k
             JOIN tenants t ON t.name = k.tenant
             JOIN projects p ON p.tenant = k.tenant AND p.name = k.project
             WHERE k.hash = $1"
        );
        let rows = self.read(|session| session.rows(&sql, &[hash[..].into()]))?;
        let holder = |mut row: Row| {
            Ok(Holder {
                key: key(&mut row)?,
                weight: row.real("weight")?,
                tenant_limits: from_json(&mut row, "set of limits")?,
                project_limits: from_json(&mut row, "set of limits")?,
            })
        };
        rows.into_iter().next().map(holder).transpose()
    }

    fn key_by_id(&self, id: &str) -> Result<Option<ApiKey>, StateError> {
        let sql = format!("SELECT {KEY} FROM api_keys k WHERE k.id = $1");
        let rows = self.read(|session| session.rows(&sql, &[id.into()]))?;
        rows.into_iter().next().map(|mut row| key(&mut row)).transpose()
    }

    fn keys(&self) -> Result<Vec<ApiKey>, StateError> {
        self.read(all_keys)
    }

    fn revoke_key(&self, id: &str, now_ms: i64) -> Result<bool, StateError> {
        let sql = "UPDATE api_keys SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
        self.write(|session| Ok(session.run(sql, &[id.into(), now_ms.into()])? == 1))
    }
}

impl Tenants for SqlStore {
    fn put_tenant(&self, tenant: &Tenant) -> Result<(), StateError> {
        self.write(|session| put_tenant(session, tenant))
    }

    fn put_project(&self, project: &Project) -> Result<(), StateError> {
        self.write(|session| put_project(session, project))
    }

    fn tenant(&self, name: &str) -> Result<Option<Tenant>, StateError> {
        let sql = "SELECT name, weight, limits, created_ms FROM tenants WHERE name = $1";
        let rows = self.read(|session| session.rows(sql, &[name.into()]))?;
        rows.into_iter().next().map(|mut row| tenant(&mut row)).transpose()
    }

    fn tenants(&self) -> Result<Vec<Tenant>, StateError> {
        self.read(all_tenants)
    }

    fn projects(&self) -> Result<Vec<Project>, StateError> {
        self.read(all_projects)
    }
}

impl Usage for SqlStore {
    fn write_usage(
        &self,
        replica: &str,
        rows: &[UsageRow],
        spending: &[(Subject, Spending)],
        now_ms: i64,
    ) -> Result<(), StateError> {
        self.write(|session| {
            rows.iter().try_for_each(|row| put_usage(session, replica, row))?;
            spending.iter().try_for_each(|(subject, spending)| {
                let (subject, spending) = (subject.clone(), *spending);
                put_spending(
                    session,
                    &SpendingRow { subject, replica: replica.to_owned(), seen_ms: now_ms, spending },
                )
            })
        })
    }

    fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StateError> {
        let mut values: Vec<Value> =
            vec![filter.from_day.unwrap_or(i64::MIN).into(), filter.to_day.unwrap_or(i64::MAX).into()];
        let mut conditions = String::new();
        for (column, wanted) in [
            ("tenant", &filter.tenant),
            ("project", &filter.project),
            ("api_key", &filter.key),
            ("model", &filter.model),
        ] {
            if let Some(wanted) = wanted {
                values.push((&**wanted).into());
                conditions += &format!(" AND {column} = ${}", values.len());
            }
        }
        let sum = |column: &str| format!("CAST(sum({column}) AS BIGINT)");
        let sums = ["requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos"].map(sum);
        let sql = format!(
            "SELECT day, tenant, project, api_key, model, {} FROM usage
             WHERE day >= $1 AND day <= $2{conditions}
             GROUP BY day, tenant, project, api_key, model ORDER BY day, tenant, project, api_key, model",
            sums.join(", ")
        );
        self.read(|session| all(session.rows(&sql, &values)?, usage))
    }

    fn usage_of_replica(&self, replica: &str, day: i64) -> Result<Vec<UsageRow>, StateError> {
        let sql = "SELECT day, tenant, project, api_key, model, requests, prompt_tokens, cached_tokens,
                       completion_tokens, cost_nanos
                   FROM usage WHERE replica = $1 AND day = $2 ORDER BY tenant, project, api_key, model";
        self.read(|session| all(session.rows(sql, &[replica.into(), day.into()])?, usage))
    }

    fn spending(&self, others_since: Option<(&str, i64)>) -> Result<Vec<SpendingRow>, StateError> {
        let (other_than, since_ms) = others_since.unwrap_or(("", i64::MIN));
        self.read(|session| spending_of(session, other_than, since_ms))
    }

    fn is_shared(&self) -> bool {
        self.shared()
    }
}
