//! Who is calling.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::ServerError;
use crate::error::{ApiError, ApiResult};
use crate::store::{KeyRecord, Role, Store};

/// Every secret begins with this, so that scanners of source code find leaked ones.
const PREFIX: &str = "dh-";
/// The longest credential that is looked at.
const MAX_CREDENTIAL: usize = 512;

/// Who is calling, after the key was checked.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) key: Arc<KeyRecord>,
}

impl Principal {
    pub(crate) fn tenant(&self) -> &str {
        &self.key.tenant
    }

    pub(crate) fn role(&self) -> Role {
        self.key.role
    }

    /// Whether the key may use a model.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.key.models.as_ref().is_none_or(|m| m.iter().any(|x| x == model))
    }
}

/// A secret and what is stored of it.
pub struct NewSecret {
    /// Shown once.
    pub secret: String,
    /// SHA-256 of it.
    pub hash: [u8; 32],
}

/// 256 random bits as a key.
///
/// # Errors
/// The system has no randomness.
pub fn new_secret() -> Result<NewSecret, ServerError> {
    let secret = format!("{PREFIX}{}", random_text::<32>()?);
    let hash = hash(&secret);
    Ok(NewSecret { secret, hash })
}

/// `N` random bytes as text for URLs.
pub(crate) fn random_text<const N: usize>() -> Result<String, ServerError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| ServerError::State("the system gives no randomness".into()))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// All keys in memory, as fresh as the database.
pub(crate) struct KeyRing {
    store: Arc<Store>,
    /// Keys by the hash of their secret, and the database's version that they were read at.
    keys: RwLock<(i64, HashMap<[u8; 32], Arc<KeyRecord>>)>,
    /// When keys were last used, until it is written.
    seen: Mutex<HashMap<String, u64>>,
}

impl KeyRing {
    pub(crate) fn new(store: Arc<Store>) -> Result<Self, ServerError> {
        let ring = Self { store, keys: RwLock::new((i64::MIN, HashMap::new())), seen: Mutex::default() };
        ring.reload()?;
        Ok(ring)
    }

    /// Reads all keys again, after a change by this process.
    pub(crate) fn reload(&self) -> Result<(), ServerError> {
        let version = self.store.data_version()?;
        let keys = self.store.keys()?.into_iter().map(|k| (k.hash, Arc::new(k))).collect();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = (version, keys);
        Ok(())
    }

    /// The key of a secret; whatever another process has changed holds already.
    pub(crate) fn check(&self, secret: &str, now: u64) -> ApiResult<Principal> {
        let unavailable = |_| ApiError::unavailable("state_unavailable", "keys cannot be checked now");
        let version = self.store.data_version().map_err(unavailable)?;
        if self.keys.read().unwrap_or_else(PoisonError::into_inner).0 != version {
            self.reload().map_err(unavailable)?;
        }
        if !secret.starts_with(PREFIX) || secret.len() > MAX_CREDENTIAL {
            return Err(ApiError::unauthorized("the key is not valid"));
        }
        let hash = hash(secret);
        // Looked up by its hash, which tells a guesser nothing about the key; the comparison that decides is constant.
        let key = self.keys.read().unwrap_or_else(PoisonError::into_inner).1.get(&hash).cloned();
        let key = key.filter(|k| aws_lc_rs::constant_time::verify_slices_are_equal(&k.hash, &hash).is_ok());
        let Some(key) = key else { return Err(ApiError::unauthorized("the key is not valid")) };
        if key.revoked.is_some() {
            return Err(ApiError::unauthorized("the key has been revoked"));
        }
        if key.expires.is_some_and(|t| t <= now) {
            return Err(ApiError::unauthorized("the key has expired"));
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(key.id.clone(), now);
        Ok(Principal { key })
    }

    /// When keys were last used, since the last call.
    pub(crate) fn take_seen(&self) -> Vec<(String, u64)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

/// The secret in the headers: `Authorization: Bearer`, or Anthropic's `x-api-key`.
pub(crate) fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
        let (scheme, rest) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
    });
    bearer.or_else(|| headers.get("x-api-key").and_then(|v| v.to_str().ok()).map(str::trim))
}
