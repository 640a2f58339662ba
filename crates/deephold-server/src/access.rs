//! Bearer keys: made, hashed, and turned into who is asking.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use axum::http::{HeaderMap, header};
use deephold_audit::hex;
use deephold_state::{ApiKey, DEFAULT_PROJECT, Holder, Keys, Limits, NewKey, Role, Subject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ServerError;
use crate::admission::Bound;
use crate::api::error::{ApiError, ApiResult};
use crate::app::App;

const PREFIX: &str = "dh_";

/// A key that was just made. Its secret is shown once and then known to its holder alone.
pub struct IssuedKey {
    /// As it is stored.
    pub key: ApiKey,
    /// What its holder sends: `dh_` and 256 random bits in hex.
    pub secret: String,
}

/// What a new key shall be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyWish {
    /// Whose requests these are; a tenant of its own where none is given.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The tenant's part; `default` where none is given.
    #[serde(default)]
    pub project: Option<String>,
    /// The person who answers for it.
    pub owner: String,
    /// What its holder may do.
    pub role: Role,
    /// Models that it may use; all where empty.
    #[serde(default)]
    pub models: Vec<String>,
    /// Paths that it may ask, each with what lies below; all where empty.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// What it may use, within what its project and tenant may.
    #[serde(default)]
    pub limits: Limits,
    /// Milliseconds since 1970 after which it holds no more.
    #[serde(default)]
    pub expires_ms: Option<i64>,
}

/// Makes and stores a key.
///
/// # Errors
/// The store's, and no randomness.
pub fn issue_key(store: &dyn Keys, wish: &KeyWish, now_ms: i64) -> Result<IssuedKey, ServerError> {
    let random = SystemRandom::new();
    let (mut secret, mut id) = ([0; 32], [0; 6]);
    random.fill(&mut secret).and_then(|()| random.fill(&mut id)).map_err(|_| ServerError::Random)?;
    let (secret, id) = (format!("{PREFIX}{}", hex(&secret)), format!("key-{}", hex(&id)));
    let new = NewKey {
        hash: hash(&secret),
        tenant: wish.tenant.clone().unwrap_or_else(|| format!("tenant-{}", &id[4..])),
        id,
        project: wish.project.clone().unwrap_or_else(|| DEFAULT_PROJECT.to_owned()),
        owner: wish.owner.clone(),
        role: wish.role,
        models: wish.models.clone(),
        endpoints: wish.endpoints.clone(),
        limits: wish.limits.clone(),
        expires_ms: wish.expires_ms,
    };
    let key = store.create_key(&new, now_ms)?;
    Ok(IssuedKey { key, secret })
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Who is asking.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) key_id: String,
    pub(crate) tenant: Arc<str>,
    pub(crate) project: String,
    pub(crate) owner: String,
    pub(crate) role: Role,
    models: Vec<String>,
    endpoints: Vec<String>,
    /// The tenant, the project and the key, each with what it may use.
    pub(crate) bounds: Vec<Bound>,
    /// The tenant's share of the machine.
    pub(crate) weight: f32,
    /// Answers of the tenant that may wait for a model.
    pub(crate) queued: Option<usize>,
    /// How long one may.
    pub(crate) queue_time: Option<Duration>,
}

impl Principal {
    /// Whether it may ask this model.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|m| m == model)
    }

    /// Whether it may ask at this path of the table.
    pub(crate) fn may_ask(&self, route: &str) -> bool {
        self.endpoints.is_empty() || self.endpoints.iter().any(|e| lies_below(route, e))
    }
}

/// Whether a path of the table is another one or lies below it.
pub(crate) fn lies_below(route: &str, path: &str) -> bool {
    route.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The principal of a request's bearer key. Asked of the store each time, so a revocation or a new limit holds at once.
pub(crate) async fn authenticate(headers: &HeaderMap, app: &Arc<App>) -> ApiResult<Principal> {
    let missing = || {
        let hint = "send `Authorization: Bearer dh_...`; `deephold key create` makes a key";
        ApiError::unauthorized(format!("an API key is missing: {hint}"))
    };
    let bearer = headers.get(header::AUTHORIZATION).map(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    // As Anthropic's clients send it.
    let secret = bearer.or_else(|| headers.get("x-api-key").map(|v| v.to_str().ok()));
    let secret = secret.flatten().map(str::trim).ok_or_else(missing)?;
    let wrong = || ApiError::unauthorized("the API key is unknown, expired or revoked");
    if secret.len() != PREFIX.len() + 64 {
        return Err(wrong());
    }
    let hash = hash(secret);
    let found = app.ask_store(move |store| store.holder(&hash)).await?;
    found.filter(|holder| is_of(holder, &hash, app.unix_ms())).map(Principal::from).ok_or_else(wrong)
}

/// Whether a holder's key is the one with this hash, and holds. The store looks up by the hash of 256 random bits, whose timing tells nothing
/// of the secret; compared once more in constant time, so that no index or collation decides alone.
fn is_of(holder: &Holder, hash: &[u8; 32], now_ms: i64) -> bool {
    verify_slices_are_equal(&holder.key.hash, hash).is_ok() && holder.key.is_valid(now_ms)
}

impl From<Holder> for Principal {
    fn from(holder: Holder) -> Self {
        let Holder { key, weight, tenant_limits, project_limits } = holder;
        let all = [&tenant_limits, &project_limits, &key.limits];
        let queue_ms = all.iter().filter_map(|l| l.queue_ms).min();
        let queued = tenant_limits.queued;
        let bounds = vec![
            Bound { subject: Subject::Tenant(key.tenant.clone()), limits: tenant_limits },
            Bound {
                subject: Subject::Project(key.tenant.clone(), key.project.clone()),
                limits: project_limits,
            },
            Bound { subject: Subject::Key(key.id.clone()), limits: key.limits },
        ];
        Self {
            key_id: key.id,
            tenant: key.tenant.into(),
            project: key.project,
            owner: key.owner,
            role: key.role,
            models: key.models,
            endpoints: key.endpoints,
            bounds,
            weight: weight as f32,
            queued: queued.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            queue_time: queue_ms.map(Duration::from_millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_hash_whatever_the_store_found() {
        let secret = hash("dh_0");
        let key = ApiKey {
            id: "key-1".into(),
            hash: secret,
            tenant: "t".into(),
            project: "p".into(),
            owner: "o".into(),
            role: Role::App,
            models: vec!["a".into()],
            endpoints: vec!["/v1/chat".into()],
            limits: Limits::default(),
            created_ms: 0,
            expires_ms: Some(10),
            revoked_ms: None,
        };
        let holder =
            Holder { key, weight: 1.0, tenant_limits: Limits::default(), project_limits: Limits::default() };
        assert!(is_of(&holder, &secret, 9) && !is_of(&holder, &secret, 10));
        for bit in 0..256 {
            let mut other = secret;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_of(&holder, &other, 9), "bit {bit}");
        }
        let who = Principal::from(holder);
        assert!(who.may_use("a") && !who.may_use("b"));
        assert!(who.may_ask("/v1/chat/completions") && who.may_ask("/v1/chat") && !who.may_ask("/v1/chats"));
    }
}
