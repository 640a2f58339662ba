//! Bearer keys: made, hashed, and turned into who is asking.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use axum::http::{HeaderMap, header};
use deephold_audit::hex;
use deephold_state::{ApiKey, Keys, NewKey, Role};
use sha2::{Digest, Sha256};

use crate::ServerError;
use crate::api::error::{ApiError, ApiResult};

const PREFIX: &str = "dh_";

/// A key that was just made. Its secret is shown once and then known to its holder alone.
pub struct IssuedKey {
    /// As it is stored.
    pub key: ApiKey,
    /// What its holder sends: `dh_` and 256 random bits in hex.
    pub secret: String,
}

/// What a new key shall be.
#[derive(Clone, Debug)]
pub struct KeyWish {
    /// Whose requests these are; a tenant of its own where none is given.
    pub tenant: Option<String>,
    /// The person who answers for it.
    pub owner: String,
    /// What its holder may do.
    pub role: Role,
    /// Models that it may use; all where empty.
    pub models: Vec<String>,
    /// Milliseconds since 1970 after which it holds no more.
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
        owner: wish.owner.clone(),
        role: wish.role,
        models: wish.models.clone(),
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
    pub(crate) owner: String,
    pub(crate) role: Role,
    models: Vec<String>,
}

impl Principal {
    /// Whether it may ask this model.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|m| m == model)
    }
}

/// The principal of a request's bearer key. Asked of the store each time, so a revocation holds at once.
pub(crate) fn authenticate(headers: &HeaderMap, store: &dyn Keys, now_ms: i64) -> ApiResult<Principal> {
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
    let found = store.key_by_hash(&hash).map_err(|error| {
        tracing::error!(%error, "the key store failed");
        ApiError::internal("the key store failed; the server's log says why")
    })?;
    // The store looks up by the hash of 256 random bits, whose timing tells nothing of the secret; compared once more in
    // constant time, so that no index decides alone.
    let key = found
        .filter(|k| verify_slices_are_equal(&k.hash, &hash).is_ok() && k.is_valid(now_ms))
        .ok_or_else(wrong)?;
    Ok(Principal {
        key_id: key.id,
        tenant: key.tenant.into(),
        owner: key.owner,
        role: key.role,
        models: key.models,
    })
}
