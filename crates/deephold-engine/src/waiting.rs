//! Sequences that wait, and whose turn it is: the highest priority first, within it the tenant that was served least.
//!
//! A tenant's account counts the tokens computed for it, divided by its weight (the virtual token counter of Sheng et al.,
//! "Fairness in Serving Large Language Models", OSDI 2024). A tenant that comes back from idleness starts no lower than
//! the least served of those that are there: idleness earns no credit. Of tenants that were served alike the one with fewer
//! running sequences goes first, so a newcomer does not wait behind what a flood queued before it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::sequence::{SeqKey, Sequence};

#[derive(Default)]
struct Account {
    served: f64,
    /// What the tenant's last sequence brought.
    weight: f64,
    /// Sequences in the engine, waiting or running.
    live: usize,
    waiting: usize,
}

/// The waiting sequences of all tenants.
#[derive(Default)]
pub(crate) struct WaitingQueue {
    seqs: BTreeMap<SeqKey, Sequence>,
    /// Arrivals by priority and tenant.
    turns: BTreeMap<Reverse<i32>, HashMap<Arc<str>, BTreeSet<u64>>>,
    accounts: HashMap<Arc<str>, Account>,
}

impl WaitingQueue {
    pub(crate) fn len(&self) -> usize {
        self.seqs.len()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Sequence> {
        self.seqs.values()
    }

    /// Sequences of one tenant that wait.
    pub(crate) fn waiting_of(&self, tenant: &str) -> usize {
        self.accounts.get(tenant).map_or(0, |a| a.waiting)
    }

    /// Tenants with sequences in the engine.
    pub(crate) fn num_tenants(&self) -> usize {
        self.accounts.values().filter(|a| a.live > 0).count()
    }

    /// Tokens computed for a tenant since it came, divided by its weight.
    pub(crate) fn served(&self, tenant: &str) -> f64 {
        self.accounts.get(tenant).map_or(0.0, |a| a.served)
    }

    /// A tenant's part of the engine, 0 to 1: its weight among those that have sequences there.
    pub(crate) fn shares(&self) -> impl Fn(&str) -> f64 {
        let all: f64 = self.accounts.values().filter(|a| a.live > 0).map(|a| a.weight).sum();
        move |tenant| self.accounts.get(tenant).map_or(0.0, |a| a.weight / all)
    }

    /// A sequence enters the engine.
    pub(crate) fn enter(&mut self, tenant: &Arc<str>, weight: f32) {
        let live = self.accounts.values().filter(|a| a.live > 0).map(|a| a.served);
        let least = live.min_by(f64::total_cmp);
        if let Some(least) = least {
            // An idle account at or below the least would be lifted when it comes back: it need not be kept.
            self.accounts.retain(|_, a| a.live > 0 || a.served > least);
        }
        let account = self.accounts.entry(Arc::clone(tenant)).or_default();
        if account.live == 0 {
            account.served = account.served.max(least.unwrap_or(0.0));
        }
        account.live += 1;
        account.weight = weight_of(weight);
    }

    /// A sequence has left the engine.
    pub(crate) fn leave(&mut self, tenant: &str) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.live = account.live.saturating_sub(1);
        }
        if self.accounts.values().all(|a| a.live == 0) {
            self.accounts.clear();
        }
    }

    /// Tokens were computed for a tenant.
    pub(crate) fn charge(&mut self, tenant: &str, tokens: usize, weight: f32) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.served += tokens as f64 / weight_of(weight);
        }
    }

    pub(crate) fn insert(&mut self, seq: Sequence) {
        let (priority, arrival) = seq.key;
        let tenants = self.turns.entry(priority).or_default();
        tenants.entry(Arc::clone(&seq.tenant)).or_default().insert(arrival);
        if let Some(account) = self.accounts.get_mut(&seq.tenant) {
            account.waiting += 1;
        }
        self.seqs.insert(seq.key, seq);
    }

    pub(crate) fn remove(&mut self, key: &SeqKey) -> Option<Sequence> {
        let seq = self.seqs.remove(key)?;
        if let Some(account) = self.accounts.get_mut(&seq.tenant) {
            account.waiting -= 1;
        }
        let tenants = self.turns.get_mut(&key.0)?;
        if let Some(arrivals) = tenants.get_mut(&seq.tenant) {
            arrivals.remove(&key.1);
            if arrivals.is_empty() {
                tenants.remove(&seq.tenant);
            }
        }
        if tenants.is_empty() {
            self.turns.remove(&key.0);
        }
        Some(seq)
    }

    /// Whose turn it is.
    pub(crate) fn next(&self) -> Option<SeqKey> {
        let (priority, tenants) = self.turns.first_key_value()?;
        let account =
            |t: &Arc<str>| self.accounts.get(t).map_or((0.0, 0), |a| (a.served, a.live - a.waiting));
        let firsts = tenants.iter().filter_map(|(t, arrivals)| Some((account(t), *arrivals.first()?)));
        let (_, arrival) =
            firsts.min_by(|(a, i), (b, j)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(i.cmp(j)))?;
        Some((*priority, arrival))
    }

    pub(crate) fn get(&self, key: &SeqKey) -> Option<&Sequence> {
        self.seqs.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &SeqKey) -> Option<&mut Sequence> {
        self.seqs.get_mut(key)
    }
}

/// No weight is so small that its tenant would never be served.
fn weight_of(weight: f32) -> f64 {
    f64::from(weight.max(1e-3))
}
