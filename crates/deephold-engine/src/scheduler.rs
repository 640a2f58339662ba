//! Who computes how many tokens in the next step. Pure: state in, decision out; it reads no clock and computes nothing.
//!
//! A sequence is only known tokens and computed tokens; there is no prefill or decode phase. What a step aims at and how its
//! time is divided is [`SchedulerPolicy`]'s; whose turn it is among the waiting is [`WaitingQueue`]'s. Where blocks run out,
//! the running sequence of lowest priority that arrived last gives its blocks up and waits in its old place. So the first
//! running sequence always advances, and every one becomes first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::cost::{StepCostModel, StepWork};
use crate::kv_cache_manager::KvCacheManager;
use crate::policy::SchedulerPolicy;
use crate::sequence::{SeqKey, Sequence};
use crate::waiting::WaitingQueue;

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSeq {
    pub(crate) key: SeqKey,
    /// Tokens to compute, from the first that is not computed.
    pub num_tokens: usize,
}

/// A step's plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchedulerOutput {
    /// Who computes how much, in order.
    pub seqs: Vec<ScheduledSeq>,
    /// Tokens in all.
    pub num_tokens: usize,
    /// What the step's time depends on.
    pub work: StepWork,
    /// Sequences that lost their blocks.
    pub preempted: usize,
}

impl SchedulerOutput {
    fn push(&mut self, key: SeqKey, num_tokens: usize) {
        self.num_tokens += num_tokens;
        match self.seqs.iter_mut().find(|s| s.key == key) {
            Some(scheduled) => scheduled.num_tokens += num_tokens,
            None => self.seqs.push(ScheduledSeq { key, num_tokens }),
        }
    }

    fn remove(&mut self, key: SeqKey) {
        if let Some(i) = self.seqs.iter().position(|s| s.key == key) {
            self.num_tokens -= self.seqs.remove(i).num_tokens;
        }
    }

    fn tokens_of(&self, key: SeqKey) -> usize {
        self.seqs.iter().find(|s| s.key == key).map_or(0, |s| s.num_tokens)
    }
}

/// What is left of a step for prompts.
#[derive(Clone, Copy)]
struct Budget {
    tokens: usize,
    /// Infinite where the policy aims at no time.
    seconds: f64,
    /// Tokens that may be given although the time is up.
    floor: usize,
}

impl Budget {
    const NOTHING: Self = Self { tokens: 0, seconds: 0.0, floor: 0 };

    fn less(self, spent: Self) -> Self {
        let seconds =
            if self.seconds.is_finite() { (self.seconds - spent.seconds).max(0.0) } else { self.seconds };
        Self {
            tokens: self.tokens.saturating_sub(spent.tokens),
            seconds,
            floor: self.floor.saturating_sub(spent.tokens),
        }
    }
}

/// What a tenant has of the engine.
struct Holding {
    /// The larger of its parts of the places and of the blocks, 0 to 1 (dominant resource fairness: Ghodsi et al., NSDI 2011).
    part: f64,
    /// One sequence is everybody's.
    is_single: bool,
    /// Its last running sequence.
    last: SeqKey,
}

impl Holding {
    fn is_above(&self, share: f64) -> bool {
        !self.is_single && self.part > share
    }
}

/// All sequences and the cache's bookkeeping.
pub struct Scheduler {
    pub(crate) running: BTreeMap<SeqKey, Sequence>,
    pub(crate) waiting: WaitingQueue,
    /// Sequences whose readers are slow; they hold no blocks.
    pub(crate) paused: BTreeMap<SeqKey, Sequence>,
    pub(crate) kv: KvCacheManager,
    pub(crate) cost: StepCostModel,
    policy: SchedulerPolicy,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    preemptions: u64,
}

impl Scheduler {
    /// An empty scheduler over `kv`.
    pub fn new(
        kv: KvCacheManager,
        policy: SchedulerPolicy,
        max_num_seqs: usize,
        max_num_batched_tokens: usize,
    ) -> Self {
        Self {
            running: BTreeMap::new(),
            waiting: WaitingQueue::default(),
            paused: BTreeMap::new(),
            kv,
            cost: StepCostModel::default(),
            policy,
            max_num_seqs,
            max_num_batched_tokens,
            preemptions: 0,
        }
    }

    /// Sequences that hold blocks.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for their turn.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Times that a sequence lost its blocks to another.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Decides the next step; the chosen sequences hold the blocks that it needs. `now` is noted as the start of those
    /// that run for the first time.
    pub fn schedule(&mut self, now: Duration) -> SchedulerOutput {
        let mut out = SchedulerOutput::default();
        let (decoding, mut prompts): (Vec<SeqKey>, Vec<SeqKey>) =
            self.running.keys().partition(|key| self.running[key].num_missing() == 1);
        // Of one priority the tenant's that was served least goes first, of one tenant the oldest.
        prompts.sort_by(|a, b| {
            let served = |key| self.running.get(key).map_or(0.0, |seq| self.waiting.served(&seq.tenant));
            a.0.cmp(&b.0).then(served(a).total_cmp(&served(b))).then(a.1.cmp(&b.1))
        });
        let crowded = !decoding.is_empty() || prompts.len() > 1 || self.waiting.len() > 0;
        for key in decoding {
            if out.num_tokens < self.max_num_batched_tokens {
                self.advance(key, 1, &mut out);
            }
        }
        let above = self.tenants_above_share();
        let mut left = self.budget_for_prompts(&out, crowded);
        let mut kept = self.keep_for_newcomers(left, &prompts);
        // 1. The oldest prompt's part.
        if let Some(key) = prompts.first().copied() {
            let mut own = Budget { floor: 1, ..left.less(kept) };
            // As much time as a step costs anyway: where reading the weights takes longer than the target, prompts would
            // otherwise crawl at the pace of decoding.
            own.seconds = own.seconds.max(self.cost.fixed());
            left = left.less(self.advance_within(key, own, &mut out));
        }
        // 2. Those that can finish, the shortest first, then those that wait.
        let mut others: Vec<SeqKey> = prompts.iter().skip(1).copied().collect();
        others.sort_by_key(|key| self.running.get(key).map(|seq| (seq.num_missing(), *key)));
        for key in others {
            let Some(seq) = self.running.get(&key) else { continue };
            if self.fitting(seq.num_computed, seq.num_missing(), kept) == seq.num_missing() {
                let spent = self.advance_within(key, kept, &mut out);
                (left, kept) = (left.less(spent), kept.less(spent));
            }
        }
        // What a short prompt left of the first part is the newcomers' as well.
        kept = Budget { floor: kept.floor, ..left };
        loop {
            let next = self.waiting.next().and_then(|key| self.waiting.get(&key));
            if next.is_some_and(|seq| above.contains(&seq.tenant)) && self.has_first_token_for(&out, &above) {
                break;
            }
            let budget = self.part_of(next, kept, &above);
            let Some((spent, again)) = self.admit(budget, now, &mut out) else { break };
            (left, kept) = (left.less(spent), kept.less(spent));
            if !again {
                break;
            }
        }
        // 3. What is left over, the oldest first.
        let is_closed = self.has_first_token_for(&out, &above);
        for key in prompts {
            if is_closed && self.running.get(&key).is_some_and(|seq| above.contains(&seq.tenant)) {
                continue;
            }
            let budget = self.part_of(self.running.get(&key), left, &above);
            left = left.less(self.advance_within(key, budget, &mut out));
        }
        out.work = self.work(&out);
        out
    }

    /// Whether the plan brings a first token to a tenant that is not among those above their share. Their prompts then wait for the
    /// next step instead of making this one longer.
    fn has_first_token_for(&self, plan: &SchedulerOutput, above: &HashSet<Arc<str>>) -> bool {
        let brings = |scheduled: &ScheduledSeq| {
            self.running.get(&scheduled.key).is_some_and(|seq| {
                seq.num_missing() > 1
                    && seq.num_missing() == scheduled.num_tokens
                    && !above.contains(&seq.tenant)
            })
        };
        !above.is_empty() && plan.seqs.iter().any(brings)
    }

    /// What the plan's time depends on.
    fn work(&self, plan: &SchedulerOutput) -> StepWork {
        let mut work = StepWork::default();
        for scheduled in &plan.seqs {
            if let Some(seq) = self.running.get(&scheduled.key) {
                work.add(StepWork::of(seq.num_computed, scheduled.num_tokens));
            }
        }
        work
    }

    /// What decoding leaves of the step's tokens and time.
    fn budget_for_prompts(&self, decoding: &SchedulerOutput, crowded: bool) -> Budget {
        let tokens = self.max_num_batched_tokens - decoding.num_tokens;
        let target = if crowded { self.policy.step_target } else { self.policy.solo_target };
        let (most, seconds) = match target {
            Some(target) if self.cost.is_known() => {
                (tokens, (target.as_secs_f64() - self.cost.predict(self.work(decoding))).max(0.0))
            }
            // The first step is a small one: nothing is known of the machine yet.
            Some(_) => (tokens.min(4 * self.policy.min_chunk), f64::INFINITY),
            None => (tokens, f64::INFINITY),
        };
        Budget { tokens: most, seconds, floor: 0 }
    }

    /// What of a budget a sequence's prompt may take: where its tenant is above its share, half of the step's time stays free. The next
    /// step, which others may be waiting for, then begins sooner.
    fn part_of(&self, seq: Option<&Sequence>, budget: Budget, above: &HashSet<Arc<str>>) -> Budget {
        match (seq, self.policy.step_target) {
            (Some(seq), Some(target)) if above.contains(&seq.tenant) => {
                Budget { seconds: (budget.seconds - target.as_secs_f64() / 2.0).max(0.0), ..budget }
            }
            _ => budget,
        }
    }

    /// The part of `left` that the oldest prompt must leave to newcomers, where there may be any.
    fn keep_for_newcomers(&self, left: Budget, prompts: &[SeqKey]) -> Budget {
        let floor = self.policy.min_chunk;
        if prompts.is_empty() {
            return Budget { floor, ..left };
        }
        let newcomers = prompts.len() > 1 || self.waiting.len() > 0;
        if !newcomers || self.policy.newcomer_share == 0.0 {
            return Budget::NOTHING;
        }
        let owed = self.is_owed(prompts[0]);
        let share = if owed { 1.0 } else { self.policy.newcomer_share };
        // At least `min_chunk`, but the oldest keeps a token.
        let tokens = ((left.tokens as f64 * share) as usize).max(floor).min(left.tokens.saturating_sub(1));
        Budget { tokens, seconds: left.seconds * share, floor }
    }

    /// Whether the waiting sequence whose turn it is goes before a running prompt: its tenant was served less.
    fn is_owed(&self, prompt: SeqKey) -> bool {
        let (Some(next), Some(running)) = (self.waiting.next(), self.running.get(&prompt)) else {
            return false;
        };
        let Some(waiting) = self.waiting.get(&next) else { return false };
        next.0 <= prompt.0
            && waiting.tenant != running.tenant
            && self.waiting.served(&waiting.tenant) <= self.waiting.served(&running.tenant)
    }

    /// How many of `missing` tokens behind `context` computed ones fit into a budget.
    fn fitting(&self, context: usize, missing: usize, budget: Budget) -> usize {
        let most = missing.min(budget.tokens);
        if budget.seconds.is_infinite() {
            return most;
        }
        self.cost.tokens_within(budget.seconds, context, most).max(budget.floor.min(most))
    }

    /// Gives a running prompt what fits into `budget`, beyond what the plan gives it already.
    fn advance_within(&mut self, key: SeqKey, budget: Budget, out: &mut SchedulerOutput) -> Budget {
        let Some(seq) = self.running.get(&key) else { return Budget::NOTHING };
        let planned = out.tokens_of(key);
        let context = seq.num_computed + planned;
        let num_tokens = self.fitting(context, seq.num_missing() - planned, budget);
        if num_tokens == 0 || self.advance(key, num_tokens, out) == 0 {
            return Budget::NOTHING;
        }
        self.spent(context, num_tokens)
    }

    fn spent(&self, context: usize, tokens: usize) -> Budget {
        Budget { tokens, seconds: self.cost.marginal(StepWork::of(context, tokens)), floor: 0 }
    }

    /// Plans more tokens for a running sequence, whose blocks then cover them; 0 where it was itself preempted for them.
    fn advance(&mut self, key: SeqKey, num_tokens: usize, out: &mut SchedulerOutput) -> usize {
        loop {
            let Some(seq) = self.running.get_mut(&key) else { return 0 };
            let end = seq.num_computed + out.tokens_of(key) + num_tokens;
            if self.kv.grow(&mut seq.blocks, end) {
                out.push(key, num_tokens);
                return num_tokens;
            }
            let Some(last) = self.running.last_key_value().map(|(key, _)| *key) else { return 0 };
            self.preempt(last, out);
        }
    }

    /// Takes a running sequence's blocks; it waits again in its old place.
    fn preempt(&mut self, key: SeqKey, out: &mut SchedulerOutput) {
        if let Some(mut seq) = self.running.remove(&key) {
            self.kv.free(&mut seq.blocks);
            seq.reset();
            self.waiting.insert(seq);
            self.preemptions += 1;
            out.preempted += 1;
            // It may have been chosen in this very step.
            out.remove(key);
        }
    }

    /// Moves the waiting sequence whose turn it is to the running ones, where a place, blocks and a good part of its prompt fit.
    /// Gives what that costs, and whether another may follow.
    fn admit(&mut self, budget: Budget, now: Duration, out: &mut SchedulerOutput) -> Option<(Budget, bool)> {
        let key = self.waiting.next()?;
        let seq = self.waiting.get_mut(&key)?;
        let cached = match seq.needs_every_position() {
            true => 0,
            false => self.kv.cached_prefix(&mut seq.blocks, &seq.tokens),
        };
        let missing = seq.tokens.len() - cached;
        let num_tokens = self.fitting(cached, missing, budget);
        let enough = missing.div_ceil(2).min(self.policy.min_chunk);
        if num_tokens == 0 || (num_tokens < enough && !out.seqs.is_empty()) {
            return None;
        }
        // A preempted sequence went back to the queue. Admitting in the same step would hand out the blocks that it just gave
        // up, and the next step would preempt again; so a step that preempts admits only whom it preempted for.
        if out.preempted > 0 {
            return None;
        }
        while self.running.len() >= self.max_num_seqs {
            self.preempt_for(key, out)?;
        }
        loop {
            let seq = self.waiting.get_mut(&key)?;
            // Preempted sequences leave their blocks in the prefix cache: what was found before is still there, unless taken.
            if self.kv.admit(&mut seq.blocks, cached, cached + num_tokens) {
                break;
            }
            self.preempt_for(key, out)?;
        }
        let mut seq = self.waiting.remove(&key)?;
        seq.num_computed = cached;
        if seq.started.is_none() {
            seq.started = Some(now);
            seq.cached_tokens = cached.min(seq.num_prompt);
            self.kv.count_query(seq.num_prompt, seq.cached_tokens);
        }
        self.running.insert(key, seq);
        out.push(key, num_tokens);
        Some((self.spent(cached, num_tokens), out.preempted == 0))
    }

    /// Preempts a running sequence for a waiting one: the last, if its priority is lower; else the last of the tenant that is
    /// furthest above its share, if the waiting one's tenant is below its own.
    fn preempt_for(&mut self, key: SeqKey, out: &mut SchedulerOutput) -> Option<()> {
        let last = self.running.last_key_value().map(|(key, _)| *key)?;
        // The first part of a key is the priority reversed: greater means lower.
        if self.policy.preempt_for_priority && last.0 > key.0 {
            self.preempt(last, out);
            return Some(());
        }
        let last = self.last_above_share(key)?;
        self.preempt(last, out);
        Some(())
    }

    /// The sequence that has to make room for a waiting one whose tenant has less than its share. Everybody keeps one sequence, so
    /// every tenant's oldest advances; and nobody falls below its share, so none is taken back.
    fn last_above_share(&self, key: SeqKey) -> Option<SeqKey> {
        if !self.policy.preempt_for_share {
            return None;
        }
        let mine = &self.waiting.get(&key)?.tenant;
        let (holdings, share) = (self.holdings(), self.waiting.shares());
        let place = 1.0 / self.max_num_seqs as f64;
        if holdings.get(mine).is_some_and(|has| has.part + place > share(mine)) {
            return None;
        }
        let above =
            holdings.iter().filter(|(tenant, has)| has.is_above(share(tenant)) && has.last.0 >= key.0);
        let furthest = above.max_by(|(t, a), (u, b)| {
            (a.part / share(t)).total_cmp(&(b.part / share(u))).then(a.last.cmp(&b.last))
        });
        furthest.map(|(_, has)| has.last)
    }

    /// Tenants that have more than their share while others have work.
    fn tenants_above_share(&self) -> HashSet<Arc<str>> {
        if !self.policy.preempt_for_share || self.waiting.num_tenants() < 2 {
            return HashSet::new();
        }
        let share = self.waiting.shares();
        let above = self.holdings().into_iter().filter(|(tenant, has)| has.is_above(share(tenant)));
        above.map(|(tenant, _)| tenant).collect()
    }

    /// What each tenant has.
    fn holdings(&self) -> HashMap<Arc<str>, Holding> {
        let place = 1.0 / self.max_num_seqs as f64;
        let block = 1.0 / self.kv.pool().num_blocks() as f64;
        let mut parts: HashMap<&Arc<str>, (usize, usize, SeqKey)> = HashMap::new();
        for (key, seq) in &self.running {
            let (places, blocks, last) = parts.entry(&seq.tenant).or_insert((0, 0, *key));
            (*places, *blocks, *last) = (*places + 1, *blocks + seq.blocks.table.len(), *key);
        }
        let holding = |(places, blocks, last)| {
            let part = (places as f64 * place).max(blocks as f64 * block);
            Holding { part, is_single: places == 1, last }
        };
        parts.into_iter().map(|(tenant, has)| (Arc::clone(tenant), holding(has))).collect()
    }

    /// Notes that a scheduled part was computed; true where the sequence has caught up and a token can be sampled.
    pub(crate) fn computed(&mut self, scheduled: &ScheduledSeq) -> bool {
        let Some(seq) = self.running.get_mut(&scheduled.key) else { return false };
        seq.num_computed += scheduled.num_tokens;
        self.waiting.charge(&seq.tenant, scheduled.num_tokens, seq.weight);
        if seq.pooled.is_none() {
            self.kv.publish(&mut seq.blocks, &seq.tokens, seq.num_computed);
        }
        seq.num_computed == seq.tokens.len()
    }

    /// A new sequence.
    pub(crate) fn add(&mut self, seq: Sequence) {
        self.waiting.enter(&seq.tenant, seq.weight);
        self.waiting.insert(seq);
    }

    /// Takes a sequence out, wherever it stands, and frees its blocks.
    pub(crate) fn remove(&mut self, key: &SeqKey) -> Option<Sequence> {
        let mut seq = self.take(key)?;
        self.kv.free(&mut seq.blocks);
        self.waiting.leave(&seq.tenant);
        Some(seq)
    }

    fn take(&mut self, key: &SeqKey) -> Option<Sequence> {
        let running = self.running.remove(key);
        running.or_else(|| self.waiting.remove(key)).or_else(|| self.paused.remove(key))
    }

    /// Sets a sequence aside until [`Self::resume`]; it gives its blocks back, which stay in the prefix cache until others
    /// take them.
    pub(crate) fn pause(&mut self, key: &SeqKey, now: Duration) {
        if let Some(mut seq) = self.take(key) {
            self.kv.free(&mut seq.blocks);
            seq.reset();
            seq.paused.get_or_insert(now);
            self.paused.insert(*key, seq);
        }
    }

    /// Lets a paused sequence wait for its turn again, in its old place.
    pub(crate) fn resume(&mut self, key: &SeqKey) {
        if let Some(mut seq) = self.paused.remove(key) {
            seq.paused = None;
            self.waiting.insert(seq);
        }
    }

    /// How long a sequence may be paused.
    pub(crate) fn pause_limit(&self) -> Duration {
        self.policy.pause_limit
    }

    /// A sequence, wherever it stands.
    pub(crate) fn get(&self, key: &SeqKey) -> Option<&Sequence> {
        self.running.get(key).or_else(|| self.waiting.get(key)).or_else(|| self.paused.get(key))
    }

    /// Every sequence, running ones first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().chain(self.waiting.values()).chain(self.paused.values())
    }
}
