//! What everybody has used and may use: pure, with the time as an argument.
//!
//! A request first holds what it may take at most. When it has ended, what it held becomes what it used, which is no more. So within a
//! window the sum of what was used and what is held never goes beyond a limit, and no answer has to be cut off.
//!
//! Replicas that share a store see each other's figures as of the last exchange: together they may go beyond a limit by what the others
//! admitted since then.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use deephold_base::{rfc3339, utc_day};
use deephold_state::{Amount, Limits, Spending, SpendingRow, Subject, UsageRow, Window};

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;
/// What a replica holds counts as long as it has been heard of within this time: one that died holds nothing.
const HEARD_MS: i64 = 60_000;

/// A window of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Period {
    Minute,
    Day,
    Month,
}

impl Period {
    const ALL: [Self; 3] = [Self::Minute, Self::Day, Self::Month];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// When the window of a time began.
    fn start_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Minute => now_ms.div_euclid(MINUTE_MS) * MINUTE_MS,
            Self::Day => day_of(now_ms) * DAY_MS,
            Self::Month => (day_of(now_ms) - day_of_month(now_ms) + 1) * DAY_MS,
        }
    }

    /// When it ends.
    fn end_ms(self, now_ms: i64) -> i64 {
        let start = self.start_ms(now_ms);
        match self {
            Self::Minute => start + MINUTE_MS,
            Self::Day => start + DAY_MS,
            // No month is longer than 31 days, and 31 days after its start the next one has begun.
            Self::Month => self.start_ms(start + 31 * DAY_MS),
        }
    }

    /// When the windows begin whose counts hold at this time: this time's, and the next one, which a clock that was set back since had
    /// begun. One that begins later still is of a clock that was wrong, and would hold for as long as that was.
    fn holding(self, now_ms: i64) -> RangeInclusive<i64> {
        self.start_ms(now_ms)..=self.end_ms(now_ms)
    }

    fn of(self, spending: &Spending) -> Window {
        match self {
            Self::Minute => spending.minute,
            Self::Day => spending.day,
            Self::Month => spending.month,
        }
    }
}

/// Days since 1970.
pub(crate) fn day_of(now_ms: i64) -> i64 {
    now_ms.div_euclid(DAY_MS)
}

/// From 1.
fn day_of_month(now_ms: i64) -> i64 {
    let day = utc_day(Duration::from_millis(now_ms.max(0).unsigned_abs()));
    day.rsplit('-').next().and_then(|d| d.parse().ok()).unwrap_or(1)
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Requests,
    Tokens,
    Cost,
}

impl Unit {
    const ALL: [Self; 3] = [Self::Requests, Self::Tokens, Self::Cost];

    pub(crate) fn of(self, amount: Amount) -> u64 {
        match self {
            Self::Requests => amount.requests,
            Self::Tokens => amount.tokens,
            Self::Cost => amount.cost_nanos,
        }
    }
}

/// The limit of a window and a unit.
fn limit_of(limits: &Limits, period: Period, unit: Unit) -> Option<u64> {
    match (period, unit) {
        (Period::Minute, Unit::Requests) => limits.requests_per_minute,
        (Period::Day, Unit::Requests) => limits.requests_per_day,
        (Period::Month, Unit::Requests) => limits.requests_per_month,
        (Period::Minute, Unit::Tokens) => limits.tokens_per_minute,
        (Period::Day, Unit::Tokens) => limits.tokens_per_day,
        (Period::Month, Unit::Tokens) => limits.tokens_per_month,
        (Period::Month, Unit::Cost) => limits.nanos_per_month,
        (Period::Minute | Period::Day, Unit::Cost) => None,
    }
}

/// A subject and what it may use.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) subject: Subject,
    pub(crate) limits: Limits,
}

/// Why a request may not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// As many requests run as may.
    Concurrent { subject: Subject, limit: u64 },
    /// A window's limit.
    Window {
        subject: Subject,
        period: Period,
        unit: Unit,
        limit: u64,
        left: u64,
        needed: u64,
        retry_after_s: u64,
        until: String,
    },
}

/// What is left of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) period: Period,
    pub(crate) limit: u64,
    pub(crate) left: u64,
    /// When the window ends.
    pub(crate) end_ms: i64,
}

#[derive(Default)]
struct Account {
    own: Spending,
    /// By replica, with when it wrote.
    others: HashMap<String, (i64, Spending)>,
}

impl Account {
    fn held(&self, now_ms: i64) -> Amount {
        let heard = |seen: i64| now_ms.saturating_sub(seen) < HEARD_MS;
        let others = self.others.values().filter(|(seen, _)| heard(*seen));
        others.fold(self.own.held, |sum, (_, s)| sum.plus(s.held))
    }

    /// What was used in the window of this time, and what is held.
    fn taken(&self, period: Period, now_ms: i64) -> Amount {
        let holding = period.holding(now_ms);
        let all = std::iter::once(&self.own).chain(self.others.values().map(|(_, s)| s));
        let spent = all.map(|s| period.of(s)).filter(|w| holding.contains(&w.start_ms)).map(|w| w.spent);
        spent.fold(self.held(now_ms), Amount::plus)
    }
}

/// What one request used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    pub(crate) tenant: String,
    pub(crate) project: String,
    pub(crate) key: String,
    pub(crate) model: String,
    pub(crate) requests: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) cost_nanos: u64,
}

/// The day, the key and the model of a row of usage.
type RowKey = (i64, String, String);

/// The accounts of all subjects.
#[derive(Default)]
pub(crate) struct Ledger {
    accounts: HashMap<Subject, Account>,
    rows: HashMap<RowKey, UsageRow>,
    changed_accounts: HashSet<Subject>,
    changed_rows: HashSet<RowKey>,
}

/// What is to be written.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) rows: Vec<UsageRow>,
    pub(crate) spending: Vec<(Subject, Spending)>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.spending.is_empty()
    }
}

impl Ledger {
    /// As a replica left it; what it held ended with it.
    pub(crate) fn load(replica: &str, rows: Vec<UsageRow>, spending: Vec<SpendingRow>) -> Self {
        let mut ledger = Self::default();
        for row in rows {
            ledger.rows.insert((row.day, row.key.clone(), row.model.clone()), row);
        }
        let (own, others): (Vec<_>, Vec<_>) = spending.into_iter().partition(|r| r.replica == replica);
        for row in own {
            let spending = Spending { held: Amount::default(), ..row.spending };
            if row.spending.held != Amount::default() {
                ledger.changed_accounts.insert(row.subject.clone());
            }
            ledger.accounts.entry(row.subject).or_default().own = spending;
        }
        ledger.hear(others);
        ledger
    }

    /// Takes note of what other replicas wrote.
    pub(crate) fn hear(&mut self, rows: Vec<SpendingRow>) {
        for row in rows {
            let account = self.accounts.entry(row.subject).or_default();
            account.others.insert(row.replica, (row.seen_ms, row.spending));
        }
    }

    /// The limits of this unit, each with what is left.
    fn lefts<'a>(
        &'a self,
        bounds: &'a [Bound],
        unit: Unit,
        now_ms: i64,
    ) -> impl Iterator<Item = (&'a Bound, Left)> + 'a {
        let periods = |bound| Period::ALL.into_iter().map(move |period| (bound, period));
        bounds.iter().flat_map(periods).filter_map(move |(bound, period)| {
            let limit = limit_of(&bound.limits, period, unit)?;
            let account = self.accounts.get(&bound.subject);
            let taken = account.map_or(0, |a| unit.of(a.taken(period, now_ms)));
            let left = limit.saturating_sub(taken);
            Some((bound, Left { period, limit, left, end_ms: period.end_ms(now_ms) }))
        })
    }

    /// The limit of this unit of which least is left.
    pub(crate) fn tightest(&self, bounds: &[Bound], unit: Unit, now_ms: i64) -> Option<Left> {
        self.lefts(bounds, unit, now_ms).map(|(_, left)| left).min_by_key(|l| l.left)
    }

    /// What is left within the month.
    pub(crate) fn budget(&self, bounds: &[Bound], unit: Unit, now_ms: i64) -> Option<Left> {
        let of_months =
            self.lefts(bounds, unit, now_ms).map(|(_, l)| l).filter(|l| l.period == Period::Month);
        of_months.min_by_key(|l| l.left)
    }

    /// Holds what a request may take at most, or says why it cannot.
    pub(crate) fn hold(&mut self, bounds: &[Bound], most: Amount, now_ms: i64) -> Result<(), Refusal> {
        for Bound { subject, limits } in bounds {
            let running = self.accounts.get(subject).map_or(0, |a| a.held(now_ms).requests);
            if let Some(limit) = limits.concurrent.filter(|limit| running >= *limit) {
                return Err(Refusal::Concurrent { subject: subject.clone(), limit });
            }
        }
        for unit in Unit::ALL {
            let needed = unit.of(most);
            // The one that opens last: before that a second attempt would fail as well.
            let missing = self.lefts(bounds, unit, now_ms).filter(|(_, left)| left.left < needed);
            if let Some((bound, left)) = missing.max_by_key(|(_, left)| left.end_ms) {
                let wait_ms = left.end_ms.saturating_sub(now_ms).max(0).unsigned_abs();
                return Err(Refusal::Window {
                    subject: bound.subject.clone(),
                    period: left.period,
                    unit,
                    limit: left.limit,
                    left: left.left,
                    needed,
                    retry_after_s: wait_ms.div_ceil(1000),
                    until: rfc3339(Duration::from_millis(left.end_ms.max(0).unsigned_abs())),
                });
            }
        }
        for bound in bounds {
            let account = self.accounts.entry(bound.subject.clone()).or_default();
            account.own.held = account.own.held.plus(most);
            self.changed_accounts.insert(bound.subject.clone());
        }
        Ok(())
    }

    /// Turns what was held into what was used.
    pub(crate) fn settle(&mut self, subjects: &[Subject], held: Amount, used: &Used, now_ms: i64) {
        let tokens = used.prompt_tokens.saturating_add(used.completion_tokens);
        let amount = Amount { requests: used.requests, tokens, cost_nanos: used.cost_nanos };
        for subject in subjects {
            let spending = &mut self.accounts.entry(subject.clone()).or_default().own;
            spending.held = spending.held.minus(held);
            self.changed_accounts.insert(subject.clone());
            let windows = [
                (Period::Minute, &mut spending.minute),
                (Period::Day, &mut spending.day),
                (Period::Month, &mut spending.month),
            ];
            for (period, window) in windows {
                let holding = period.holding(now_ms);
                if !holding.contains(&window.start_ms) {
                    *window = Window { start_ms: *holding.start(), spent: Amount::default() };
                }
                window.spent = window.spent.plus(amount);
            }
        }
        if amount == Amount::default() {
            return;
        }
        let day = day_of(now_ms);
        let key = (day, used.key.clone(), used.model.clone());
        let row = self.rows.entry(key.clone()).or_insert_with(|| UsageRow {
            day,
            tenant: used.tenant.clone(),
            project: used.project.clone(),
            key: used.key.clone(),
            model: used.model.clone(),
            ..UsageRow::default()
        });
        row.requests += used.requests;
        row.prompt_tokens = row.prompt_tokens.saturating_add(used.prompt_tokens);
        row.cached_tokens = row.cached_tokens.saturating_add(used.cached_tokens);
        row.completion_tokens = row.completion_tokens.saturating_add(used.completion_tokens);
        row.cost_nanos = row.cost_nanos.saturating_add(used.cost_nanos);
        self.changed_rows.insert(key);
    }

    /// What is to be written; it counts as written until [`put_back`](Self::put_back) says otherwise.
    pub(crate) fn take_changes(&mut self, now_ms: i64) -> Changes {
        let rows = self.changed_rows.drain().filter_map(|key| self.rows.get(&key).cloned()).collect();
        let accounts = self.changed_accounts.drain();
        let spending = accounts.filter_map(|s| self.accounts.get(&s).map(|a| (s, a.own))).collect();
        // Rows of days that are over change no more, unless a clock is set back: then they are there for a day longer.
        let today = day_of(now_ms);
        self.rows.retain(|(day, ..), _| *day >= today - 1);
        Changes { rows, spending }
    }

    /// What could not be written.
    pub(crate) fn put_back(&mut self, changes: &Changes) {
        for row in &changes.rows {
            let key = (row.day, row.key.clone(), row.model.clone());
            self.rows.entry(key.clone()).or_insert_with(|| row.clone());
            self.changed_rows.insert(key);
        }
        self.changed_accounts.extend(changes.spending.iter().map(|(subject, _)| subject.clone()));
    }

    /// Marks what is held, so that other replicas hear that it still is.
    pub(crate) fn repeat_held(&mut self) {
        let held = self.accounts.iter().filter(|(_, a)| a.own.held != Amount::default());
        let subjects: Vec<Subject> = held.map(|(subject, _)| subject.clone()).collect();
        self.changed_accounts.extend(subjects);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-30 23:59:30, half a minute before a minute, a day and a month end.
    const LATE_MS: i64 = 1_796_083_170_000;

    fn bound(name: &str, limits: Limits) -> Bound {
        Bound { subject: Subject::Tenant(name.into()), limits }
    }

    fn amount(tokens: u64) -> Amount {
        Amount { requests: 1, tokens, cost_nanos: 0 }
    }

    fn used(tokens: u64) -> Used {
        let (tenant, project, key, model) = ("t".into(), "p".into(), "k".into(), "m".into());
        Used { tenant, project, key, model, requests: 1, completion_tokens: tokens, ..Used::default() }
    }

    #[test]
    fn windows_are_the_calendars() {
        assert_eq!(rfc3339(Duration::from_millis(LATE_MS as u64)), "2026-11-30T23:59:30.000Z");
        for period in Period::ALL {
            assert_eq!(period.end_ms(LATE_MS), LATE_MS + 30_000, "{period:?}");
            assert_eq!(period.start_ms(LATE_MS + 30_000), LATE_MS + 30_000);
        }
        assert_eq!(LATE_MS - Period::Month.start_ms(LATE_MS), 30 * DAY_MS - 30_000);
        // A leap day, and a clock before 1970.
        let leap_ms = 1_709_164_800_000;
        assert_eq!(rfc3339(Duration::from_millis(leap_ms as u64)), "2024-02-29T00:00:00.000Z");
        assert_eq!(Period::Month.end_ms(leap_ms), leap_ms + DAY_MS);
        assert_eq!(Period::Minute.start_ms(-1), -MINUTE_MS);
    }

    #[test]
    fn what_is_held_counts_and_what_is_over_does_not() {
        let mut ledger = Ledger::default();
        let limits = Limits { tokens_per_minute: Some(100), concurrent: Some(2), ..Limits::default() };
        let bounds = [bound("a", limits)];
        let subjects = [bounds[0].subject.clone()];
        assert_eq!(ledger.hold(&bounds, amount(60), LATE_MS), Ok(()));
        // It may still take 60, so only 40 are left.
        let Err(Refusal::Window { left: 40, needed: 50, retry_after_s: 30, period: Period::Minute, .. }) =
            ledger.hold(&bounds, amount(50), LATE_MS)
        else {
            panic!("refused");
        };
        assert_eq!(ledger.hold(&bounds, amount(40), LATE_MS), Ok(()));
        let refused = ledger.hold(&bounds, amount(0), LATE_MS);
        assert!(matches!(refused, Err(Refusal::Concurrent { limit: 2, .. })), "{refused:?}");
        // The first took only 10: 50 are free again.
        ledger.settle(&subjects, amount(60), &used(10), LATE_MS);
        assert_eq!(ledger.tightest(&bounds, Unit::Tokens, LATE_MS).map(|l| l.left), Some(50));
        // A new minute has nothing but what is held.
        assert_eq!(ledger.tightest(&bounds, Unit::Tokens, LATE_MS + 30_000).map(|l| l.left), Some(60));
        ledger.settle(&subjects, amount(40), &used(40), LATE_MS + 30_000);
        assert_eq!(ledger.tightest(&bounds, Unit::Tokens, LATE_MS + 30_000).map(|l| l.left), Some(60));
        // A clock that is set back by the minute gives nothing back.
        assert_eq!(ledger.tightest(&bounds, Unit::Tokens, LATE_MS).map(|l| l.left), Some(60));
        let changes = ledger.take_changes(LATE_MS + 30_000);
        let rows: Vec<_> = changes.rows.iter().map(|r| r.completion_tokens).collect();
        assert_eq!(rows.len(), 2, "two days: {rows:?}");
        assert!(ledger.take_changes(LATE_MS).is_empty());
        ledger.put_back(&changes);
        assert_eq!(ledger.take_changes(LATE_MS).rows.len(), 2);
    }

    #[test]
    fn a_clock_that_was_wrong_by_a_year_does_not_hold_limits_for_one() {
        let limits = Limits {
            tokens_per_minute: Some(100),
            tokens_per_day: Some(100),
            tokens_per_month: Some(100),
            ..Limits::default()
        };
        let mut ledger = Ledger::default();
        let bounds = [bound("a", limits)];
        let subjects = [bounds[0].subject.clone()];
        let left = |ledger: &Ledger, now| ledger.tightest(&bounds, Unit::Tokens, now).map(|l| l.left);
        ledger.settle(&subjects, Amount::default(), &used(90), LATE_MS + 365 * DAY_MS);
        assert_eq!(left(&ledger, LATE_MS + 365 * DAY_MS), Some(10));
        assert_eq!(left(&ledger, LATE_MS), Some(100));
        ledger.settle(&subjects, Amount::default(), &used(20), LATE_MS);
        assert_eq!(left(&ledger, LATE_MS), Some(80));
    }

    #[test]
    fn a_month_is_a_budget_and_the_latest_window_is_named() {
        let mut ledger = Ledger::default();
        let limits = Limits {
            requests_per_minute: Some(1),
            requests_per_month: Some(1),
            nanos_per_month: Some(10),
            ..Limits::default()
        };
        let bounds = [bound("a", Limits::default()), bound("b", limits)];
        let most = Amount { requests: 1, tokens: 5, cost_nanos: 7 };
        let now = LATE_MS - 3 * DAY_MS;
        assert_eq!(ledger.hold(&bounds, most, now), Ok(()));
        let Err(Refusal::Window { period: Period::Month, unit: Unit::Requests, until, .. }) =
            ledger.hold(&bounds, most, now)
        else {
            panic!("refused");
        };
        assert_eq!(until, "2026-12-01T00:00:00.000Z");
        assert_eq!(ledger.budget(&bounds, Unit::Cost, now).map(|l| l.left), Some(3));
        assert_eq!(ledger.budget(&bounds, Unit::Tokens, now), None);
    }

    #[test]
    fn replicas_add_up_and_the_dead_hold_nothing() {
        let limits = Limits { tokens_per_day: Some(100), ..Limits::default() };
        let bounds = [bound("a", limits)];
        let now = LATE_MS;
        let spent = |tokens, held| Spending {
            day: Window { start_ms: Period::Day.start_ms(now), spent: amount(tokens) },
            held: amount(held),
            ..Spending::default()
        };
        let row = |replica: &str, seen_ms, spending| SpendingRow {
            subject: bounds[0].subject.clone(),
            replica: replica.into(),
            seen_ms,
            spending,
        };
        let rows = vec![
            row("me", now, spent(10, 1000)),
            row("alive", now - 1_000, spent(20, 5)),
            row("dead", now - 2 * HEARD_MS, spent(30, 7)),
        ];
        let mut ledger = Ledger::load("me", Vec::new(), rows);
        // 10 + 20 + 30 used, 5 held; what this one held before it ended is held no more, and is written so.
        assert_eq!(ledger.tightest(&bounds, Unit::Tokens, now).map(|l| l.left), Some(35));
        assert_eq!(ledger.take_changes(now).spending.len(), 1);
        ledger.hear(vec![row("alive", now, spent(50, 0))]);
        assert_eq!(ledger.tightest(&bounds, Unit::Tokens, now).map(|l| l.left), Some(10));
    }

    proptest! {
        /// Whatever comes in whatever order, also while the clock goes on: what was used and is held stays within each limit, and
        /// in the end the rows say what was used.
        #[test]
        fn no_limit_is_ever_passed(
            steps in prop::collection::vec((0_usize..3, 0_u64..80, 0_u64..100, 0_i64..40_000), 1..120)
        ) {
            let mut ledger = Ledger::default();
            let of_tenant = Limits {
                tokens_per_minute: Some(150), tokens_per_day: Some(400), requests_per_minute: Some(5), concurrent: Some(3),
                ..Limits::default()
            };
            let of_key = Limits { tokens_per_minute: Some(90), ..Limits::default() };
            let bounds = [bound("t", of_tenant), Bound { subject: Subject::Key("k".into()), limits: of_key }];
            let subjects: Vec<Subject> = bounds.iter().map(|b| b.subject.clone()).collect();
            let (mut open, mut total, mut requests, mut now) = (Vec::new(), 0, 0, LATE_MS - 60_000);
            for (what, most, part, wait) in steps {
                now += wait;
                match what {
                    0 | 1 => if ledger.hold(&bounds, amount(most), now).is_ok() {
                        open.push(most);
                    },
                    _ => if let Some(most) = open.pop() {
                        let tokens = most * part / 100;
                        ledger.settle(&subjects, amount(most), &used(tokens), now);
                        total += tokens;
                        requests += 1;
                    },
                }
                for bound in &bounds {
                    let account = ledger.accounts.get(&bound.subject);
                    for period in Period::ALL {
                        for unit in Unit::ALL {
                            let taken = account.map_or(0, |a| unit.of(a.taken(period, now)));
                            if let Some(limit) = limit_of(&bound.limits, period, unit) {
                                prop_assert!(taken <= limit, "{taken} of {limit} {period:?} {unit:?}");
                            }
                        }
                    }
                }
                prop_assert!(open.len() <= 3);
            }
            let rows = ledger.take_changes(now).rows;
            prop_assert_eq!(rows.iter().map(|r| r.completion_tokens).sum::<u64>(), total);
            prop_assert_eq!(rows.iter().map(|r| r.requests).sum::<u64>(), requests);
        }
    }
}
