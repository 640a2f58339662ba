//! Figures of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::statistics::wilson;
use crate::{Measured, Outcome, Percentile, Plan, Sorted};

/// Kinds of errors that a report names; what is beyond is counted together.
const ERRORS_MAX: usize = 16;

/// What a good answer takes at most; what is not stated is not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Objective {
    /// Until the first token, in seconds.
    pub ttft_s: Option<f64>,
    /// A token after the first, on average over the answer, in seconds.
    pub tpot_s: Option<f64>,
    /// Until the end, in seconds.
    pub e2e_s: Option<f64>,
}

impl Objective {
    /// Whether nothing is stated.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn is_met(&self, r: &Measured) -> bool {
        let within = |limit: Option<f64>, took: Option<f64>| match (limit, took) {
            (Some(limit), Some(took)) => took <= limit,
            // An answer of one token has no time between tokens.
            _ => true,
        };
        within(self.ttft_s, seconds(r.first))
            && within(self.tpot_s, tpot(r))
            && within(self.e2e_s, Some(r.whole.as_secs_f64()))
    }
}

/// A measure over all answers, in seconds or tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// The median.
    pub p50: Percentile,
    /// The value that 90 of 100 do not exceed.
    pub p90: Percentile,
    /// Likewise 95.
    pub p95: Percentile,
    /// Likewise 99.
    pub p99: Percentile,
}

impl Summary {
    /// None where there is no value.
    pub fn of(values: &Sorted) -> Option<Self> {
        Some(Self {
            count: values.values().len(),
            mean: values.mean()?,
            min: *values.values().first()?,
            max: *values.values().last()?,
            p50: values.percentile(0.5)?,
            p90: values.percentile(0.9)?,
            p95: values.percentile(0.95)?,
            p99: values.percentile(0.99)?,
        })
    }

    /// Without intervals, for values that depend on one another, as the gaps within an answer do.
    fn without_intervals(values: &Sorted) -> Option<Self> {
        let bare = |p: Percentile| Percentile { low: None, high: None, ..p };
        let s = Self::of(values)?;
        Some(Self { p50: bare(s.p50), p90: bare(s.p90), p95: bare(s.p95), p99: bare(s.p99), ..s })
    }
}

/// Requests within the objective.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goodput {
    /// Of them, in a second.
    pub requests_per_s: f64,
    /// Of all that were sent.
    pub share: f64,
    /// Its interval of 95 % (Wilson), lower end.
    pub share_low: f64,
    /// Upper end.
    pub share_high: f64,
}

/// All figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Requests of the plan.
    pub planned: usize,
    /// Answers that came whole.
    pub succeeded: usize,
    /// Requests that ended without.
    pub failed: usize,
    /// Requests that were never sent, or dropped when the run was stopped.
    pub left_out: usize,
    /// What went wrong, and how often.
    pub errors: BTreeMap<String, usize>,
    /// From the first sending to the last end, in seconds.
    pub duration_s: f64,
    /// Arrivals a second as planned; none where all come at once.
    pub rate_planned: Option<f64>,
    /// Whole answers a second.
    pub rate_reached: f64,
    /// Requests under way at once, at most.
    pub at_once_max: usize,
    /// Between a request's planned arrival and its sending: what is large here is the fault of the machine that tests.
    pub late_s: Option<Summary>,
    /// Tokens of prompts, by request, as the server counts them.
    pub prompt_tokens: Option<Summary>,
    /// Tokens of answers likewise; events where the server does not count.
    pub output_tokens: Option<Summary>,
    /// Tokens of all answers, a second.
    pub output_tokens_per_s: f64,
    /// Until the first token, in seconds.
    pub ttft_s: Option<Summary>,
    /// A token after the first, averaged over each answer, in seconds: (E2E - TTFT) / (tokens - 1).
    pub tpot_s: Option<Summary>,
    /// Between parts of answers as they came, in seconds.
    pub itl_s: Option<Summary>,
    /// Until the end, in seconds.
    pub e2e_s: Option<Summary>,
    /// What was asked for.
    pub objective: Objective,
    /// How much of it was reached; none where nothing was asked for.
    pub goodput: Option<Goodput>,
    /// Whether the run was stopped before its end.
    pub is_stopped: bool,
}

impl Report {
    /// Figures of what came.
    pub fn new(plan: &Plan, outcome: &Outcome, objective: Objective) -> Self {
        let good: Vec<&Measured> = outcome.requests.iter().filter(|r| r.error.is_none()).collect();
        let of = |f: &dyn Fn(&Measured) -> Option<f64>| -> Option<Summary> {
            Summary::of(&good.iter().filter_map(|r| f(r)).collect())
        };
        let gaps = good.iter().flat_map(|r| r.gaps.iter().map(|us| f64::from(*us) / 1e6));
        let wall = outcome.wall.as_secs_f64().max(f64::MIN_POSITIVE);
        let late: Sorted = outcome.requests.iter().map(|r| r.late.as_secs_f64()).collect();
        Self {
            planned: plan.requests.len(),
            succeeded: good.len(),
            failed: outcome.requests.len() - good.len(),
            left_out: plan.requests.len() - outcome.requests.len(),
            errors: errors(outcome),
            duration_s: wall,
            rate_planned: plan.rate(),
            rate_reached: good.len() as f64 / wall,
            at_once_max: outcome.at_once_max,
            late_s: Summary::without_intervals(&late),
            prompt_tokens: of(&|r| Some(r.prompt_tokens? as f64)),
            output_tokens: of(&|r| Some(tokens(r))),
            output_tokens_per_s: good.iter().map(|r| tokens(r)).sum::<f64>() / wall,
            ttft_s: of(&|r| seconds(r.first)),
            tpot_s: of(&tpot),
            itl_s: Summary::without_intervals(&gaps.collect()),
            e2e_s: of(&|r| Some(r.whole.as_secs_f64())),
            objective,
            goodput: (!objective.is_empty())
                .then(|| {
                    let met = good.iter().filter(|r| objective.is_met(r)).count();
                    let (share_low, share_high) = wilson(met, outcome.requests.len())?;
                    let share = met as f64 / outcome.requests.len() as f64;
                    Some(Goodput { requests_per_s: met as f64 / wall, share, share_low, share_high })
                })
                .flatten(),
            is_stopped: outcome.is_stopped,
        }
    }
}

/// Tokens of the answer, by the server's count or else by the events.
pub(crate) fn tokens(r: &Measured) -> f64 {
    r.output_tokens.map_or(f64::from(r.events), |n| n as f64)
}

pub(crate) fn tpot(r: &Measured) -> Option<f64> {
    let after_first = r.whole.as_secs_f64() - seconds(r.first)?;
    (tokens(r) > 1.0).then(|| after_first / (tokens(r) - 1.0))
}

fn seconds(d: Option<Duration>) -> Option<f64> {
    d.map(|d| d.as_secs_f64())
}

fn errors(outcome: &Outcome) -> BTreeMap<String, usize> {
    let mut errors = BTreeMap::new();
    for problem in outcome.requests.iter().filter_map(|r| r.error.as_ref()) {
        let is_known = errors.contains_key(problem) || errors.len() < ERRORS_MAX;
        let name = if is_known { problem.clone() } else { "others".to_owned() };
        *errors.entry(name).or_insert(0) += 1;
    }
    errors
}
