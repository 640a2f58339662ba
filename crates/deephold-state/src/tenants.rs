//! Tenants, their projects, and what each may use.

use crate::StateError;

/// The project of keys that name none.
pub const DEFAULT_PROJECT: &str = "default";

/// What a tenant, a project or a key may use; nothing bounds what is not set. Windows are those of the calendar in UTC. Tokens are
/// those of prompts and answers together.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests within a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Requests within a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_day: Option<u64>,
    /// Requests within a month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_month: Option<u64>,
    /// Tokens within a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens within a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Tokens within a month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_month: Option<u64>,
    /// Costs within a month, in billionths of the currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nanos_per_month: Option<u64>,
    /// Requests at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u64>,
    /// Answers that may wait for a model at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
    /// Milliseconds that an answer may wait for a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<u64>,
}

/// Whose requests these are: share, cache and audit go by tenant.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its share of the machine against others', finite and above 0.
    pub weight: f64,
    /// What all its keys together may use.
    pub limits: Limits,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

/// A part of a tenant with limits of its own.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Project {
    /// Whose.
    pub tenant: String,
    /// Its name within the tenant.
    pub name: String,
    /// What all its keys together may use.
    pub limits: Limits,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

/// Where tenants and projects lie. Each call is one transaction.
pub trait Tenants: Send + Sync {
    /// Stores a tenant, or changes its weight and limits.
    ///
    /// # Errors
    /// The store's.
    fn put_tenant(&self, tenant: &Tenant) -> Result<(), StateError>;

    /// Stores a project, or changes its limits.
    ///
    /// # Errors
    /// The store's; a tenant that is not there.
    fn put_project(&self, project: &Project) -> Result<(), StateError>;

    /// The tenant of that name.
    ///
    /// # Errors
    /// The store's.
    fn tenant(&self, name: &str) -> Result<Option<Tenant>, StateError>;

    /// All tenants by name.
    ///
    /// # Errors
    /// The store's.
    fn tenants(&self) -> Result<Vec<Tenant>, StateError>;

    /// All projects by tenant and name.
    ///
    /// # Errors
    /// The store's.
    fn projects(&self) -> Result<Vec<Project>, StateError>;
}
