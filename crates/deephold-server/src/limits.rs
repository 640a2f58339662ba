//! What a tenant may use: requests and tokens by minute, day and month, and how many at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deephold_base::{Clock, utc_day};

use crate::error::{ApiError, ApiResult};
use crate::store::{TenantLimits, Usage};

/// A bucket that holds a minute's worth and refills evenly.
#[derive(Default)]
struct Bucket {
    used: f64,
    at: Duration,
}

impl Bucket {
    /// What is used now, after what time has given back.
    fn level(&mut self, per_minute: f64, now: Duration) -> f64 {
        let back = now.saturating_sub(self.at).as_secs_f64() * per_minute / 60.0;
        self.used = (self.used - back).max(0.0);
        self.at = now;
        self.used
    }
}

/// Requests, tokens and which day they belong to.
#[derive(Default)]
struct Period {
    name: String,
    requests: u64,
    tokens: u64,
}

impl Period {
    fn turn(&mut self, name: &str) {
        if self.name != name {
            *self = Self { name: name.to_owned(), ..Self::default() };
        }
    }
}

#[derive(Default)]
struct Account {
    requests: Bucket,
    tokens: Bucket,
    day: Period,
    month: Period,
    concurrent: u64,
}

/// All tenants' accounts.
pub(crate) struct Limits {
    accounts: Mutex<HashMap<String, Account>>,
    clock: Arc<dyn Clock>,
}

/// A request that was let in; dropping it gives its place back.
pub(crate) struct Admission {
    limits: Arc<Limits>,
    tenant: String,
}

impl Limits {
    /// Accounts as they stood: `usage` of this month.
    pub(crate) fn new(clock: Arc<dyn Clock>, usage: &[Usage]) -> Self {
        let today = utc_day(clock.unix_time());
        let mut accounts: HashMap<String, Account> = HashMap::new();
        for u in usage {
            let account = accounts.entry(u.tenant.clone()).or_default();
            account.day.turn(&today);
            account.month.turn(&today[..7]);
            let tokens = u.prompt_tokens + u.completion_tokens;
            for (period, name) in [(&mut account.day, today.as_str()), (&mut account.month, &today[..7])] {
                if u.day.starts_with(name) {
                    period.requests += u.requests;
                    period.tokens += tokens;
                }
            }
        }
        Self { accounts: Mutex::new(accounts), clock }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request of `tokens` prompt tokens in, or says how long to wait.
    pub(crate) fn admit(
        self: &Arc<Self>,
        tenant: &str,
        limits: &TenantLimits,
        tokens: u64,
    ) -> ApiResult<Admission> {
        let (now, unix) = (self.clock.now(), self.clock.unix_time());
        let today = utc_day(unix);
        let mut accounts = self.lock();
        let account = accounts.entry(tenant.to_owned()).or_default();
        account.day.turn(&today);
        account.month.turn(&today[..7]);
        let refuse = |what: &str, limit: u64, wait: f64| {
            let wait = (wait.ceil() as u64).clamp(1, 86_400);
            Err(ApiError::rate_limited(format!("the limit of {limit} {what} is reached; try again in {wait} s"), wait))
        };
        if let Some(limit) = limits.concurrent_requests.filter(|l| account.concurrent >= *l) {
            return refuse("requests at the same time", limit, 1.0);
        }
        if let Some(limit) = limits.requests_per_minute {
            let level = account.requests.level(limit as f64, now);
            if level + 1.0 > limit as f64 {
                return refuse("requests a minute", limit, (level + 1.0 - limit as f64) * 60.0 / limit.max(1) as f64);
            }
        }
        if let Some(limit) = limits.tokens_per_minute {
            let level = account.tokens.level(limit as f64, now);
            // A prompt larger than the limit is let in when nothing else is used: otherwise it never could be.
            if level + tokens as f64 > limit as f64 && level > 0.0 {
                let over = (level + tokens as f64 - limit as f64).min(level);
                return refuse("tokens a minute", limit, over * 60.0 / limit.max(1) as f64);
            }
        }
        let to_midnight = 86_400.0 - (unix.as_secs() % 86_400) as f64;
        if let Some(limit) = limits.requests_per_day.filter(|l| account.day.requests >= *l) {
            return refuse("requests a day", limit, to_midnight);
        }
        if let Some(limit) = limits.tokens_per_day.filter(|l| account.day.tokens >= *l) {
            return refuse("tokens a day", limit, to_midnight);
        }
        if let Some(limit) = limits.tokens_per_month.filter(|l| account.month.tokens >= *l) {
            return refuse("tokens a month", limit, 86_400.0);
        }
        account.concurrent += 1;
        account.requests.used += 1.0;
        account.day.requests += 1;
        account.month.requests += 1;
        account.charge(tokens);
        Ok(Admission { limits: Arc::clone(self), tenant: tenant.to_owned() })
    }

    /// Books tokens that came after admission.
    pub(crate) fn charge(&self, tenant: &str, tokens: u64) {
        if let Some(account) = self.lock().get_mut(tenant) {
            account.charge(tokens);
        }
    }
}

impl Account {
    fn charge(&mut self, tokens: u64) {
        self.tokens.used += tokens as f64;
        self.day.tokens += tokens;
        self.month.tokens += tokens;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(account) = self.limits.lock().get_mut(&self.tenant) {
            account.concurrent = account.concurrent.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deephold_base::ManualClock;

    fn wait(result: ApiResult<Admission>) -> Option<u64> {
        result.err().map(|e| e.retry_after.unwrap())
    }

    #[test]
    fn minutes_refill_evenly_and_days_turn_at_midnight() {
        let clock = ManualClock::default();
        let limits = Arc::new(Limits::new(Arc::new(clock.clone()), &[]));
        let l = TenantLimits { requests_per_minute: Some(2), tokens_per_day: Some(100), ..TenantLimits::default() };
        assert_eq!(wait(limits.admit("a", &l, 10)), None);
        assert_eq!(wait(limits.admit("a", &l, 10)), None);
        assert_eq!(wait(limits.admit("a", &l, 10)), Some(30));
        assert_eq!(wait(limits.admit("b", &l, 10)), None, "another tenant");
        clock.advance(Duration::from_secs(30));
        assert_eq!(wait(limits.admit("a", &l, 10)), None);
        limits.charge("a", 70);
        clock.advance(Duration::from_secs(60));
        assert_eq!(wait(limits.admit("a", &l, 10)), Some(86_400 - 90));
        clock.advance(Duration::from_secs(86_400 - 90));
        assert_eq!(wait(limits.admit("a", &l, 10)), None);
    }

    #[test]
    fn places_come_back_and_large_prompts_are_let_in_alone() {
        let limits = Arc::new(Limits::new(Arc::new(ManualClock::default()), &[]));
        let l = TenantLimits { concurrent_requests: Some(1), ..TenantLimits::default() };
        let held = limits.admit("a", &l, 1).unwrap();
        assert_eq!(wait(limits.admit("a", &l, 1)), Some(1));
        drop(held);
        assert_eq!(wait(limits.admit("a", &l, 1)), None);
        let l = TenantLimits { tokens_per_minute: Some(60), ..TenantLimits::default() };
        assert_eq!(wait(limits.admit("b", &l, 90)), None);
        assert_eq!(wait(limits.admit("b", &l, 1)), Some(31));
    }

    #[test]
    fn usage_of_this_month_survives_a_restart() {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(86_400));
        let used = Usage { tenant: "a".into(), day: "1970-01-01".into(), completion_tokens: 50, ..Usage::default() };
        let limits = Arc::new(Limits::new(Arc::new(clock), &[used]));
        let l = TenantLimits { tokens_per_day: Some(10), ..TenantLimits::default() };
        assert_eq!(wait(limits.admit("a", &l, 1)), None, "yesterday's do not count today");
        let l = TenantLimits { tokens_per_month: Some(50), ..TenantLimits::default() };
        assert!(wait(limits.admit("a", &l, 1)).is_some());
    }
}
