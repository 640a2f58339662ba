//! Kept answers.

use super::{Row, Session, SqlStore, Value};
use crate::StateError;
use crate::kept::{Answers, Claim, Claimed, KEPT_MAX, KeptAnswer};

fn found(mut row: Row, claim: &Claim) -> Result<Claimed, StateError> {
    let fingerprint = row.blob("fingerprint")?;
    let replica = row.text("replica")?;
    let status = row.optional("status")?;
    if fingerprint != claim.fingerprint {
        return Ok(Claimed::Other);
    }
    let Some(status) = status else { return Ok(Claimed::Running { replica }) };
    let status = u16::try_from(status);
    let status = status.map_err(|_| StateError::Value { what: "status", value: "out of range".into() })?;
    let (content_type, body) = (row.text("media type")?, row.blob("body")?);
    Ok(Claimed::Answered(KeptAnswer { status, content_type, body }))
}

/// The claim's own row, as long as it is its own.
const OWN: &str = "api_key = $1 AND name = $2 AND replica = $3 AND status IS NULL";

fn own(claim: &Claim) -> [Value; 3] {
    [(&*claim.key).into(), (&*claim.name).into(), (&*claim.replica).into()]
}

impl Answers for SqlStore {
    fn claim(&self, claim: &Claim, now_ms: i64) -> Result<Claimed, StateError> {
        self.write(|session: &mut dyn Session| {
            session.run("DELETE FROM kept_answers WHERE until_ms <= $1", &[now_ms.into()])?;
            let oldest = "DELETE FROM kept_answers WHERE api_key = $1 AND status IS NOT NULL AND until_ms < (
                              SELECT until_ms FROM kept_answers WHERE api_key = $1
                              ORDER BY until_ms DESC LIMIT 1 OFFSET $2)";
            session.run(oldest, &[(&*claim.key).into(), Value::Integer(KEPT_MAX as i64 - 2)])?;
            let insert = "INSERT INTO kept_answers (api_key, name, fingerprint, replica, until_ms)
                          VALUES ($1, $2, $3, $4, $5) ON CONFLICT (api_key, name) DO NOTHING";
            let values = [
                (&*claim.key).into(),
                (&*claim.name).into(),
                claim.fingerprint[..].into(),
                (&*claim.replica).into(),
                claim.until_ms.into(),
            ];
            if session.run(insert, &values)? == 1 {
                return Ok(Claimed::New);
            }
            let select = "SELECT fingerprint, replica, status, content_type, body FROM kept_answers
                          WHERE api_key = $1 AND name = $2";
            let rows = session.rows(select, &[(&*claim.key).into(), (&*claim.name).into()])?;
            let row = rows.into_iter().next();
            row.map_or(Ok(Claimed::Running { replica: String::new() }), |row| found(row, claim))
        })
    }

    fn keep(&self, claim: &Claim, answer: &KeptAnswer, until_ms: i64) -> Result<(), StateError> {
        let sql = format!(
            "UPDATE kept_answers SET status = $4, content_type = $5, body = $6, until_ms = $7 WHERE {OWN}"
        );
        let [key, name, replica] = own(claim);
        let (status, body) = (Value::Integer(answer.status.into()), answer.body[..].into());
        let values = [key, name, replica, status, (&*answer.content_type).into(), body, until_ms.into()];
        self.write(|session| session.run(&sql, &values).map(drop))
    }

    fn release(&self, claim: &Claim) -> Result<(), StateError> {
        let sql = format!("DELETE FROM kept_answers WHERE {OWN}");
        self.write(|session| session.run(&sql, &own(claim)).map(drop))
    }
}
