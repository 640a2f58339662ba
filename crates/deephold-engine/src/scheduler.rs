//! Who computes how many tokens in the next step. Pure: state in, decision out; no time, no arithmetic.
//!
//! Running sequences stand in one order, by priority, then arrival. Those that lack one token come first, so that nobody's
//! long prompt delays another's answer; then the others, each as many tokens as it lacks and the budget allows. What is
//! left goes to waiting ones, by [`WaitingQueue`]'s turns. Where blocks run out, the last running sequence gives its blocks
//! up and waits in its old place. So the first running sequence always advances, and every one becomes first.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;

use crate::constraint::Constraint;
use crate::kv_cache_manager::{KvCacheManager, SeqBlocks};
use crate::request::{Pooling, RequestId, SamplingParams};
use crate::waiting::WaitingQueue;

/// A place in the order: higher priority first, then earlier arrival.
pub(crate) type Rank = (Reverse<i32>, u64);

/// One of a request's sequences.
pub(crate) struct Seq {
    pub(crate) id: RequestId,
    pub(crate) seq_idx: usize,
    pub(crate) rank: Rank,
    /// Prompt, then answer.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt: usize,
    pub(crate) num_computed: usize,
    /// Prompt tokens that came out of the cache when it first ran.
    pub(crate) cached_tokens: usize,
    pub(crate) blocks: SeqBlocks,
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) seed: u64,
    pub(crate) salt: Arc<[u8]>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) queue_deadline: Option<Duration>,
    pub(crate) tenant: Arc<str>,
    pub(crate) weight: f32,
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) pooled: Option<Pooled>,
    pub(crate) arrived: Duration,
    /// When it first ran.
    pub(crate) started: Option<Duration>,
}

/// A sequence that ends in a vector instead of tokens.
pub(crate) struct Pooled {
    pub(crate) how: Pooling,
    /// Sums over positions, in their order.
    pub(crate) sum: Vec<f64>,
}

impl Seq {
    pub(crate) fn output_len(&self) -> usize {
        self.tokens.len() - self.num_prompt
    }

    fn missing(&self) -> usize {
        self.tokens.len() - self.num_computed
    }
}

/// A sequence's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSeq {
    pub(crate) rank: Rank,
    /// Tokens to compute, from the first that is not computed.
    pub num_tokens: usize,
}

/// A step's plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerOutput {
    /// Who computes how much, in order.
    pub seqs: Vec<ScheduledSeq>,
    /// Tokens in all.
    pub num_tokens: usize,
    /// Sequences that lost their blocks.
    pub preempted: usize,
}

/// All sequences and the cache's bookkeeping.
pub struct Scheduler {
    pub(crate) running: BTreeMap<Rank, Seq>,
    pub(crate) waiting: WaitingQueue,
    pub(crate) kv: KvCacheManager,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    preemptions: u64,
}

impl Scheduler {
    /// An empty scheduler over `kv`.
    pub fn new(kv: KvCacheManager, max_num_seqs: usize, max_num_batched_tokens: usize) -> Self {
        Self {
            running: BTreeMap::new(),
            waiting: WaitingQueue::default(),
            kv,
            max_num_seqs,
            max_num_batched_tokens,
            preemptions: 0,
        }
    }

    /// Sequences that hold blocks.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Times that a sequence lost its blocks.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Decides the next step; the chosen sequences hold the blocks that it needs. `now` is noted as the start of those
    /// that run for the first time.
    pub fn schedule(&mut self, now: Duration) -> SchedulerOutput {
        let mut out = SchedulerOutput::default();
        let (answers, prompts): (Vec<Rank>, Vec<Rank>) =
            self.running.keys().partition(|rank| self.running[rank].missing() == 1);
        for rank in answers.into_iter().chain(prompts) {
            let budget = self.max_num_batched_tokens - out.num_tokens;
            if budget == 0 {
                break;
            }
            let num_tokens = self.advance(rank, budget, &mut out);
            if num_tokens > 0 {
                out.num_tokens += num_tokens;
                out.seqs.push(ScheduledSeq { rank, num_tokens });
            }
        }
        // Whoever just lost blocks would take them from the next: admit nobody in such a step.
        while out.preempted == 0 && self.running.len() < self.max_num_seqs {
            let budget = self.max_num_batched_tokens - out.num_tokens;
            if budget == 0 {
                break;
            }
            let Some((rank, num_tokens)) = self.admit(budget, now) else { break };
            out.num_tokens += num_tokens;
            out.seqs.push(ScheduledSeq { rank, num_tokens });
        }
        out
    }

    /// Tokens for a running sequence; 0 where it was itself preempted.
    fn advance(&mut self, rank: Rank, budget: usize, out: &mut SchedulerOutput) -> usize {
        loop {
            let Some(seq) = self.running.get_mut(&rank) else { return 0 };
            let num_tokens = seq.missing().min(budget);
            if self.kv.grow(&mut seq.blocks, seq.num_computed + num_tokens) {
                return num_tokens;
            }
            let Some((last, mut victim)) = self.running.pop_last() else { return 0 };
            self.kv.free(&mut victim.blocks);
            victim.num_computed = 0;
            if let Some(pooled) = &mut victim.pooled {
                pooled.sum.fill(0.0);
            }
            self.waiting.insert(victim);
            self.preemptions += 1;
            out.preempted += 1;
            // It may have been chosen in this very step.
            if let Some(i) = out.seqs.iter().position(|s| s.rank == last) {
                out.num_tokens -= out.seqs.remove(i).num_tokens;
            }
        }
    }

    /// Moves the waiting sequence whose turn it is to the running ones, if the cache has room for its first chunk.
    fn admit(&mut self, budget: usize, now: Duration) -> Option<(Rank, usize)> {
        let rank = self.waiting.next()?;
        let seq = self.waiting.get_mut(&rank)?;
        // A pooled sequence needs every position's hidden state, which no cache keeps.
        let cached = match seq.pooled {
            Some(_) => 0,
            None => self.kv.take_prefix(&mut seq.blocks, &seq.tokens, &seq.salt),
        };
        let num_tokens = (seq.tokens.len() - cached).min(budget);
        if !self.kv.grow(&mut seq.blocks, cached + num_tokens) {
            self.kv.free(&mut seq.blocks);
            return None;
        }
        seq.num_computed = cached;
        if seq.started.is_none() {
            seq.started = Some(now);
            seq.cached_tokens = cached.min(seq.num_prompt);
        }
        let seq = self.waiting.remove(&rank)?;
        self.running.insert(rank, seq);
        Some((rank, num_tokens))
    }

    /// Notes that a scheduled share was computed; true where the sequence has caught up and a token can be sampled.
    pub(crate) fn computed(&mut self, share: &ScheduledSeq) -> bool {
        let Some(seq) = self.running.get_mut(&share.rank) else { return false };
        seq.num_computed += share.num_tokens;
        self.waiting.charge(&seq.tenant, share.num_tokens, seq.weight);
        if seq.pooled.is_none() {
            self.kv.publish(&mut seq.blocks, &seq.tokens, seq.num_computed, &seq.salt);
        }
        seq.num_computed == seq.tokens.len()
    }

    /// A new sequence.
    pub(crate) fn add(&mut self, seq: Seq) {
        self.waiting.enter(&seq.tenant);
        self.waiting.insert(seq);
    }

    /// Takes a sequence out, wherever it stands, and frees its blocks.
    pub(crate) fn remove(&mut self, rank: &Rank) -> Option<Seq> {
        let mut seq = self.running.remove(rank).or_else(|| self.waiting.remove(rank))?;
        self.kv.free(&mut seq.blocks);
        self.waiting.leave(&seq.tenant);
        Some(seq)
    }

    /// Every sequence, running ones first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Seq> {
        self.running.values().chain(self.waiting.values())
    }
}
