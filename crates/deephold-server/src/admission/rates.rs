//! What callers are told of their limits: in headers of every answer, and in the errors that refuse one.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use deephold_base::rfc3339;
use deephold_state::Subject;

use super::ledger::{Bound, Ledger, Left, Period, Refusal, Unit};
use super::prices::amount_text;
use crate::api::error::{ApiError, ErrorStyle};

/// The limit of requests and the one of tokens of which least is left.
#[derive(Clone, Debug)]
pub(crate) struct Rates {
    requests: Option<Left>,
    tokens: Option<Left>,
    now_ms: i64,
}

impl Rates {
    pub(super) fn of(ledger: &Ledger, bounds: &[Bound], now_ms: i64) -> Self {
        let tightest = |unit| ledger.tightest(bounds, unit, now_ms);
        Self { requests: tightest(Unit::Requests), tokens: tightest(Unit::Tokens), now_ms }
    }

    /// As OpenAI's or Anthropic's clients look for them.
    pub(crate) fn write(&self, style: ErrorStyle, headers: &mut HeaderMap) {
        for (left, what) in [(&self.requests, "requests"), (&self.tokens, "tokens")] {
            let Some(left) = left else { continue };
            let wait_ms = left.end_ms.saturating_sub(self.now_ms).max(0);
            let [limit, remaining, reset] = match style {
                ErrorStyle::OpenAi | ErrorStyle::DeepSeek => {
                    ["limit", "remaining", "reset"].map(|f| format!("x-ratelimit-{f}-{what}"))
                }
                ErrorStyle::Anthropic => {
                    ["limit", "remaining", "reset"].map(|f| format!("anthropic-ratelimit-{what}-{f}"))
                }
            };
            let end = match style {
                ErrorStyle::OpenAi | ErrorStyle::DeepSeek => {
                    format!("{}s", wait_ms.unsigned_abs().div_ceil(1000))
                }
                ErrorStyle::Anthropic => rfc3339(Duration::from_millis(left.end_ms.max(0).unsigned_abs())),
            };
            for (name, value) in
                [(limit, left.limit.to_string()), (remaining, left.left.to_string()), (reset, end)]
            {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

fn name_of(subject: &Subject) -> String {
    match subject {
        Subject::Tenant(name) => format!("the tenant `{name}`"),
        Subject::Project(_, name) => format!("the project `{name}`"),
        Subject::Key(id) => format!("the key {id}"),
    }
}

impl Refusal {
    /// The limit's name, for metrics.
    pub(super) fn limit(&self) -> &'static str {
        match self {
            Self::Concurrent { .. } => "concurrent",
            Self::Window { period, unit, .. } => match (unit, period) {
                (Unit::Requests, Period::Minute) => "requests_per_minute",
                (Unit::Requests, Period::Day) => "requests_per_day",
                (Unit::Requests, Period::Month) => "requests_per_month",
                (Unit::Tokens, Period::Minute) => "tokens_per_minute",
                (Unit::Tokens, Period::Day) => "tokens_per_day",
                (Unit::Tokens, Period::Month) => "tokens_per_month",
                (Unit::Cost, _) => "cost_per_month",
            },
        }
    }

    /// 429 where it is worth waiting, 402 where a budget is used up: clients repeat the one by themselves and not the other.
    pub(super) fn into_error(self, currency: &str) -> ApiError {
        match self {
            Self::Concurrent { subject, limit } => {
                let message = format!(
                    "{} may have {limit} requests at the same time, and has; try again when one has ended",
                    name_of(&subject)
                );
                ApiError::try_again(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message, 1)
            }
            Self::Window { subject, period, unit, limit, left, needed, retry_after_s, until } => {
                let show = |value: u64| match unit {
                    Unit::Requests => format!("{value} requests"),
                    Unit::Tokens => format!("{value} tokens"),
                    Unit::Cost => format!("{} {currency}", amount_text(value)),
                };
                let lower =
                    if unit == Unit::Requests { "" } else { ", or ask for fewer tokens with `max_tokens`" };
                let message = format!(
                    "{} may use {} a {}; {} are left until {until}, and this request may take {}; try again then{lower}",
                    name_of(&subject),
                    show(limit),
                    period.name(),
                    show(left),
                    show(needed)
                );
                let (status, code) = match period {
                    Period::Minute => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
                    Period::Day | Period::Month => (StatusCode::PAYMENT_REQUIRED, "insufficient_quota"),
                };
                ApiError::try_again(status, code, message, retry_after_s)
            }
        }
    }
}
