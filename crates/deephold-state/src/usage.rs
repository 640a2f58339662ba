//! What was used: rows for accounts, and the spending that limits are held against.
//!
//! Several servers may share a store. Each is a replica with a name of its own, writes only its own figures, and writes them whole:
//! a write that is repeated because its answer was lost changes nothing. What all have used is the sum.

use crate::StateError;

/// Figures of one kind of use that add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Amount {
    /// Requests.
    pub requests: u64,
    /// Tokens of prompts and answers.
    pub tokens: u64,
    /// Billionths of the currency.
    pub cost_nanos: u64,
}

impl Amount {
    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
            cost_nanos: self.cost_nanos.saturating_add(other.cost_nanos),
        }
    }

    /// The difference; 0 where it would be below.
    pub fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            tokens: self.tokens.saturating_sub(other.tokens),
            cost_nanos: self.cost_nanos.saturating_sub(other.cost_nanos),
        }
    }
}

/// What was used in a window of the calendar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// When it began, in milliseconds since 1970.
    pub start_ms: i64,
    /// What requests used that ended within it.
    pub spent: Amount,
}

/// What one subject has used, and what its running requests may still use at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spending {
    /// The last minute in which anything ended.
    pub minute: Window,
    /// The last such day.
    pub day: Window,
    /// The last such month.
    pub month: Window,
    /// What running requests hold back.
    pub held: Amount,
}

/// Whose spending it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// All keys of a tenant.
    Tenant(String),
    /// All keys of a tenant's project.
    Project(String, String),
    /// One key, by its id.
    Key(String),
}

/// The spending of one subject on one replica.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SpendingRow {
    /// Whose.
    pub subject: Subject,
    /// On which replica.
    pub replica: String,
    /// When it was written.
    pub seen_ms: i64,
    /// How much.
    pub spending: Spending,
}

/// What a key used of a model on a day, by the day on which requests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UsageRow {
    /// Days since 1970, in UTC.
    pub day: i64,
    /// Whose.
    pub tenant: String,
    /// Its part.
    pub project: String,
    /// The key's id.
    pub key: String,
    /// The model that answered.
    pub model: String,
    /// Requests.
    pub requests: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Those of them that were found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Billionths of the currency, by the prices of that time.
    pub cost_nanos: u64,
}

/// Which rows; all where nothing is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UsageFilter {
    /// The first day.
    pub from_day: Option<i64>,
    /// The last day.
    pub to_day: Option<i64>,
    /// Of one tenant.
    pub tenant: Option<String>,
    /// Of one project.
    pub project: Option<String>,
    /// Of one key.
    pub key: Option<String>,
    /// Of one model.
    pub model: Option<String>,
}

/// Where usage lies. Each call is one transaction.
pub trait Usage: Send + Sync {
    /// Replaces these rows and this spending of a replica; durable when it returns.
    ///
    /// # Errors
    /// The store's.
    fn write_usage(
        &self,
        replica: &str,
        rows: &[UsageRow],
        spending: &[(Subject, Spending)],
        now_ms: i64,
    ) -> Result<(), StateError>;

    /// Rows of all replicas together, by day, tenant, project, key and model.
    ///
    /// # Errors
    /// The store's.
    fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StateError>;

    /// One replica's rows of a day.
    ///
    /// # Errors
    /// The store's.
    fn usage_of_replica(&self, replica: &str, day: i64) -> Result<Vec<UsageRow>, StateError>;

    /// The spending of every subject on every replica; or on those other than one, as far as written since a time.
    ///
    /// # Errors
    /// The store's.
    fn spending(&self, others_since: Option<(&str, i64)>) -> Result<Vec<SpendingRow>, StateError>;

    /// Whether other servers may write to it at the same time.
    fn is_shared(&self) -> bool;
}
