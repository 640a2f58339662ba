//! API keys: who may ask, as whom. The secret itself is never stored, only its SHA-256: it has 256 random bits, so nothing can
//! be guessed back from that.

use crate::{Limits, StateError};

/// What a key's holder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, keys included.
    Admin,
    /// Models, metrics and requests.
    Operator,
    /// Reading audit records and metrics.
    Auditor,
    /// Requests to models.
    App,
}

impl Role {
    /// As it is stored and typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::App => "app",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Admin, Self::Operator, Self::Auditor, Self::App].into_iter().find(|r| r.name() == name)
    }
}

/// A key to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Its public name, which lists and records show.
    pub id: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// Whose requests these are: quota, cache and fair share go by tenant.
    pub tenant: String,
    /// The tenant's part that it belongs to.
    pub project: String,
    /// The person who answers for it.
    pub owner: String,
    /// What its holder may do.
    pub role: Role,
    /// Models that it may use; all where empty.
    pub models: Vec<String>,
    /// Paths that it may ask, each with what lies below; all where empty.
    pub endpoints: Vec<String>,
    /// What it may use, within what its project and tenant may.
    pub limits: Limits,
    /// Milliseconds since 1970 after which it holds no more.
    pub expires_ms: Option<i64>,
}

/// A stored key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ApiKey {
    /// Its public name.
    pub id: String,
    /// SHA-256 of the secret; never shown.
    #[serde(skip)]
    pub hash: [u8; 32],
    /// As in [`NewKey`].
    pub tenant: String,
    /// As in [`NewKey`].
    #[serde(default = "default_project")]
    pub project: String,
    /// As in [`NewKey`].
    pub owner: String,
    /// As in [`NewKey`].
    pub role: Role,
    /// As in [`NewKey`].
    pub models: Vec<String>,
    /// As in [`NewKey`].
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// As in [`NewKey`].
    #[serde(default)]
    pub limits: Limits,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// As in [`NewKey`].
    pub expires_ms: Option<i64>,
    /// When it was revoked.
    pub revoked_ms: Option<i64>,
}

fn default_project() -> String {
    crate::DEFAULT_PROJECT.to_owned()
}

/// A key with what bounds its holder.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// The key, valid or not.
    pub key: ApiKey,
    /// The tenant's share.
    pub weight: f64,
    /// What its tenant may use.
    pub tenant_limits: Limits,
    /// What its project may use.
    pub project_limits: Limits,
}

impl ApiKey {
    /// Whether it holds at this time.
    pub fn is_valid(&self, now_ms: i64) -> bool {
        self.revoked_ms.is_none() && self.expires_ms.is_none_or(|at| now_ms < at)
    }
}

/// Where keys lie. Safe to ask from several threads; each call is one transaction.
pub trait Keys: Send + Sync {
    /// Stores a key; its tenant and project, with no limits, where they are not there.
    ///
    /// # Errors
    /// The store's; an id or hash that is there already.
    fn create_key(&self, key: &NewKey, now_ms: i64) -> Result<ApiKey, StateError>;

    /// The key with this hash, valid or not, and what bounds its holder.
    ///
    /// # Errors
    /// The store's.
    fn holder(&self, hash: &[u8; 32]) -> Result<Option<Holder>, StateError>;

    /// The key of this id, valid or not.
    ///
    /// # Errors
    /// The store's.
    fn key_by_id(&self, id: &str) -> Result<Option<ApiKey>, StateError>;

    /// All keys, the oldest first.
    ///
    /// # Errors
    /// The store's.
    fn keys(&self) -> Result<Vec<ApiKey>, StateError>;

    /// Revokes a key; false where there is none of that id or it was revoked before.
    ///
    /// # Errors
    /// The store's.
    fn revoke_key(&self, id: &str, now_ms: i64) -> Result<bool, StateError>;
}
