//! `deephold key`.

use std::process::ExitCode;

use anyhow::Result;
use deephold_base::rfc3339;
use deephold_server::access::KeyWish;
use deephold_server::admin::{AdminAnswer, AdminRequest};
use deephold_state::ApiKey;
use serde_json::{Value, json};

use super::{another_question, ask, limit_words, now_ms, print_json};
use crate::cli::KeyCommand;
use crate::console::{note, out, plain};
use crate::fail::invalid;

pub(crate) fn run(command: &KeyCommand) -> Result<ExitCode> {
    let (request, state, json) = match command {
        KeyCommand::Create(a) => {
            let day_ms = 24 * 3600 * 1000;
            let expires_ms = a.days.map(|days| now_ms().saturating_add(i64::from(days) * day_ms));
            let limits = a.limits.changes().into_iter().filter(|(_, value)| !value.is_null()).collect();
            let wish = KeyWish {
                tenant: a.tenant.clone(),
                project: a.project.clone(),
                owner: a.owner.clone(),
                role: a.role,
                models: a.models.clone(),
                endpoints: a.endpoints.clone(),
                limits: serde_json::from_value(Value::Object(limits))?,
                expires_ms,
            };
            (AdminRequest::CreateKey(wish), &a.state, a.json)
        }
        KeyCommand::List(a) => (AdminRequest::ListKeys, &a.state, a.json),
        KeyCommand::Rotate(a) => (AdminRequest::RotateKey { id: a.id.clone() }, &a.state, a.json),
        KeyCommand::Revoke(a) => (AdminRequest::RevokeKey { id: a.id.clone() }, &a.state, a.json),
    };
    match ask(state, &request)? {
        AdminAnswer::Refused(why) => Err(invalid(why)),
        AdminAnswer::Revoked if json => print_json(&json!({ "revoked": true })).map(|()| ExitCode::SUCCESS),
        AdminAnswer::Revoked => {
            out!("revoked; requests with it are refused from now on")?;
            Ok(ExitCode::SUCCESS)
        }
        AdminAnswer::Issued { key, secret } if json => {
            print_json(&json!({ "key": key, "secret": secret })).map(|()| ExitCode::SUCCESS)
        }
        AdminAnswer::Issued { key, secret } => {
            out!("{secret}")?;
            note!(
                "{} for {} ({}), tenant {}, project {}; the line above is shown this once",
                key.id,
                plain(&key.owner),
                key.role.name(),
                plain(&key.tenant),
                plain(&key.project)
            );
            Ok(ExitCode::SUCCESS)
        }
        AdminAnswer::Keys(keys) if json => print_json(&json!(keys)).map(|()| ExitCode::SUCCESS),
        AdminAnswer::Keys(keys) => {
            keys.iter().try_for_each(print)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(another_question()),
    }
}

fn print(key: &ApiKey) -> Result<()> {
    let day = |ms: i64| {
        let text = rfc3339(std::time::Duration::from_millis(ms.unsigned_abs()));
        text.chars().take(10).collect::<String>()
    };
    let state = match (key.revoked_ms, key.expires_ms) {
        (Some(at), _) => format!("revoked {}", day(at)),
        (None, Some(at)) if at <= now_ms() => format!("expired {}", day(at)),
        (None, Some(at)) => format!("until {}", day(at)),
        (None, None) => "valid".to_owned(),
    };
    let models = if key.models.is_empty() { "all models".to_owned() } else { key.models.join(", ") };
    Ok(out!(
        "{}  {:8}  {}  {}/{}  {}  since {}  {}  {}",
        key.id,
        key.role.name(),
        plain(&key.owner),
        plain(&key.tenant),
        plain(&key.project),
        plain(&models),
        day(key.created_ms),
        state,
        limit_words(&key.limits)
    )?)
}
