//! Who computes how many tokens in the next step. Pure: state in, decision out; no time, no arithmetic.
//!
//! Sequences stand in one order, by priority, then arrival. Running ones are served first, each as many tokens as it
//! lacks and the budget allows; what is left goes to waiting ones. Where blocks run out, the last running sequence gives
//! its blocks up and waits in its old place. So the first sequence always advances, and every one becomes first.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;

use crate::kv_cache_manager::{KvCacheManager, SeqBlocks};
use crate::request::{RequestId, SamplingParams};

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
    pub(crate) started: bool,
}

impl Seq {
    pub(crate) fn output_len(&self) -> usize {
        self.tokens.len() - self.num_prompt
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
    pub(crate) waiting: BTreeMap<Rank, Seq>,
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
            waiting: BTreeMap::new(),
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

    /// Decides the next step; the chosen sequences hold the blocks that it needs.
    pub fn schedule(&mut self) -> SchedulerOutput {
        let mut out = SchedulerOutput::default();
        let mut budget = self.max_num_batched_tokens;
        let ranks: Vec<Rank> = self.running.keys().copied().collect();
        for rank in ranks {
            if budget == 0 {
                break;
            }
            let num_tokens = self.advance(rank, budget, &mut out.preempted);
            if num_tokens > 0 {
                budget -= num_tokens;
                out.seqs.push(ScheduledSeq { rank, num_tokens });
            }
        }
        // Whoever just lost blocks would take them from the next: admit nobody in such a step.
        while out.preempted == 0 && budget > 0 && self.running.len() < self.max_num_seqs {
            let Some((rank, num_tokens)) = self.admit(budget) else { break };
            budget -= num_tokens;
            out.seqs.push(ScheduledSeq { rank, num_tokens });
        }
        out.num_tokens = self.max_num_batched_tokens - budget;
        out
    }

    /// Tokens for a running sequence; 0 where it was itself preempted.
    fn advance(&mut self, rank: Rank, budget: usize, preempted: &mut usize) -> usize {
        loop {
            let Some(seq) = self.running.get_mut(&rank) else { return 0 };
            let num_tokens = (seq.tokens.len() - seq.num_computed).min(budget);
            if self.kv.grow(&mut seq.blocks, seq.num_computed + num_tokens) {
                return num_tokens;
            }
            let Some((last, mut victim)) = self.running.pop_last() else { return 0 };
            self.kv.free(&mut victim.blocks);
            victim.num_computed = 0;
            self.waiting.insert(last, victim);
            self.preemptions += 1;
            *preempted += 1;
        }
    }

    /// Moves the first waiting sequence to the running ones, if the cache has room for its first chunk.
    fn admit(&mut self, budget: usize) -> Option<(Rank, usize)> {
        let mut entry = self.waiting.first_entry()?;
        let seq = entry.get_mut();
        let cached = self.kv.take_prefix(&mut seq.blocks, &seq.tokens, &seq.salt);
        let num_tokens = (seq.tokens.len() - cached).min(budget);
        if !self.kv.grow(&mut seq.blocks, cached + num_tokens) {
            self.kv.free(&mut seq.blocks);
            return None;
        }
        seq.num_computed = cached;
        if !seq.started {
            seq.started = true;
            seq.cached_tokens = cached.min(seq.num_prompt);
        }
        let (rank, seq) = entry.remove_entry();
        self.running.insert(rank, seq);
        Some((rank, num_tokens))
    }

    /// Notes that a scheduled share was computed; true where the sequence has caught up and a token can be sampled.
    pub(crate) fn computed(&mut self, share: &ScheduledSeq) -> bool {
        let Some(seq) = self.running.get_mut(&share.rank) else { return false };
        seq.num_computed += share.num_tokens;
        self.kv.publish(&mut seq.blocks, &seq.tokens, seq.num_computed, &seq.salt);
        seq.num_computed == seq.tokens.len()
    }

    /// Takes a sequence out, wherever it stands, and frees its blocks.
    pub(crate) fn remove(&mut self, rank: &Rank) -> Option<Seq> {
        let mut seq = self.running.remove(rank).or_else(|| self.waiting.remove(rank))?;
        self.kv.free(&mut seq.blocks);
        Some(seq)
    }

    /// Every sequence, running ones first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Seq> {
        self.running.values().chain(self.waiting.values())
    }
}
