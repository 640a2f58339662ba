//! The engine's step.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use deephold_base::Clock;
use deephold_kernels::{KvCache, Ops};
use deephold_models::Model;

use crate::kv_cache_manager::{KvCacheManager, SeqBlocks};
use crate::request::{
    FinishReason, Pooling, Request, RequestId, RequestOutput, SampledToken, SamplingParams,
};
use crate::scheduler::{Pooled, Rank, ScheduledSeq, Scheduler, Seq};
use crate::{EngineConfig, EngineError, runner, sampler};

/// One model, its cache and the sequences on it.
pub struct EngineCore {
    model: Arc<dyn Model>,
    ops: Arc<Ops>,
    cache: KvCache,
    clock: Arc<dyn Clock>,
    config: EngineConfig,
    scheduler: Scheduler,
    /// Ranks of each request's living sequences.
    ranks: HashMap<RequestId, Vec<Rank>>,
    arrivals: u64,
    stats: EngineStats,
}

/// What a step brought.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// News of sequences, in scheduling order.
    pub outputs: Vec<RequestOutput>,
    /// Tokens computed.
    pub num_tokens: usize,
    /// Sequences that took part.
    pub num_seqs: usize,
    /// How long it took.
    pub duration: Duration,
}

/// Counters since start, and the state now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Blocks in use.
    pub used_blocks: usize,
    /// Blocks in all.
    pub num_blocks: usize,
    /// Bytes reserved for the cache.
    pub cache_bytes: usize,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hit_tokens: u64,
    /// Prompt tokens looked for.
    pub prefix_query_tokens: u64,
    /// Sequences that lost their blocks.
    pub preemptions: u64,
    /// Cached blocks that were taken for other content.
    pub evictions: u64,
    /// Steps.
    pub steps: u64,
    /// Tokens computed, of prompts and answers.
    pub computed_tokens: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Time in steps.
    pub busy: Duration,
    /// How long the sequence that waits longest has waited.
    pub oldest_wait: Duration,
}

impl EngineCore {
    /// An engine for `model`; reserves its cache.
    ///
    /// # Errors
    /// A configuration that cannot work, or too little memory.
    pub fn new(
        model: Arc<dyn Model>,
        ops: Arc<Ops>,
        config: EngineConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EngineError> {
        config.validate(model.info())?;
        let cache =
            KvCache::new(&model.cache_layers(), config.num_blocks, config.block_size, config.cache_dtype)?;
        let kv = KvCacheManager::new(config.num_blocks, config.block_size, config.enable_prefix_cache);
        let scheduler = Scheduler::new(kv, config.max_num_seqs, config.max_num_batched_tokens);
        let (ranks, stats) = (HashMap::new(), EngineStats::default());
        Ok(Self { model, ops, cache, clock, config, scheduler, ranks, arrivals: 0, stats })
    }

    /// The model.
    pub fn model(&self) -> &Arc<dyn Model> {
        &self.model
    }

    /// The bounds.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A parameter out of range, a prompt that does not fit, or a full queue; nothing is queued then.
    pub fn add_request(&mut self, request: Request) -> Result<(), EngineError> {
        let Request { id, prompt, mut params, cache_salt, priority, deadline, .. } = request;
        if request.pooling.is_some() {
            // Nothing is sampled: one vector a request.
            params = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
        }
        let vocab_size = self.model.info().vocab_size;
        params.validate(vocab_size)?;
        let max_model_len = self.config.max_model_len;
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(index) = prompt.iter().position(|t| *t as usize >= vocab_size) {
            return Err(EngineError::Token { index, token: prompt[index], vocab_size });
        }
        if prompt.len() >= max_model_len {
            return Err(EngineError::PromptTooLong { tokens: prompt.len(), max_model_len });
        }
        params.max_tokens = params.max_tokens.min(max_model_len - prompt.len());
        // The last token is never computed, only returned.
        let needed = self.scheduler.kv.blocks_for(prompt.len() + params.max_tokens - 1);
        if needed > self.config.num_blocks {
            return Err(EngineError::CacheTooSmall { needed, blocks: self.config.num_blocks });
        }
        let waiting = self.scheduler.num_waiting();
        if !self.has_place(&request.tenant, params.n) {
            return Err(EngineError::Busy { waiting });
        }
        if self.ranks.contains_key(&id) {
            return Err(EngineError::Duplicate(id.0));
        }
        let seed = params.seed.unwrap_or_else(entropy);
        let arrived = self.clock.now();
        let (params, salt): (_, Arc<[u8]>) = (Arc::new(params), cache_salt.into());
        let mut ranks = Vec::with_capacity(params.n);
        for seq_idx in 0..params.n {
            let rank = (Reverse(priority), self.arrivals);
            self.arrivals += 1;
            ranks.push(rank);
            let seq = Seq {
                id,
                seq_idx,
                rank,
                num_prompt: prompt.len(),
                tokens: prompt.clone(),
                num_computed: 0,
                cached_tokens: 0,
                blocks: SeqBlocks::default(),
                params: Arc::clone(&params),
                seed,
                salt: Arc::clone(&salt),
                deadline,
                queue_deadline: request.queue_deadline,
                tenant: Arc::clone(&request.tenant),
                weight: request.weight,
                constraint: request.constraint.clone(),
                pooled: request.pooling.map(|how| Pooled { how, sum: Vec::new() }),
                arrived,
                started: None,
            };
            self.scheduler.add(seq);
        }
        self.ranks.insert(id, ranks);
        Ok(())
    }

    /// Ends a request now, without further output; false where there is none of that id.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let Some(ranks) = self.ranks.remove(&id) else { return false };
        for rank in ranks {
            self.scheduler.remove(&rank);
        }
        true
    }

    /// Ends everything: after a failure nothing of the old state is worth keeping.
    pub fn abort_all(&mut self) {
        let ids: Vec<RequestId> = self.ranks.keys().copied().collect();
        ids.into_iter().for_each(|id| _ = self.abort(id));
    }

    /// Whether a request of that id has sequences left.
    pub fn is_live(&self, id: RequestId) -> bool {
        self.ranks.contains_key(&id)
    }

    /// Whether a step would do anything.
    pub fn has_work(&self) -> bool {
        self.scheduler.num_running() + self.scheduler.num_waiting() > 0
    }

    /// One forward pass over what the scheduler chose, and the tokens that follow from it.
    ///
    /// # Errors
    /// The model refused a batch that the engine made: a defect; the requests in it have ended.
    pub fn step(&mut self) -> Result<StepOutput, EngineError> {
        let start = self.clock.now();
        let mut out = StepOutput::default();
        self.expire(start, &mut out.outputs);
        let plan = self.scheduler.schedule(start);
        (out.num_tokens, out.num_seqs) = (plan.num_tokens, plan.seqs.len());
        if plan.num_tokens > 0 {
            let forward = runner::forward(&*self.model, &self.ops, &self.cache, &self.scheduler, &plan);
            let forward = match forward {
                Ok(forward) => forward,
                Err(e) => {
                    self.fail(&plan.seqs);
                    return Err(e.into());
                }
            };
            let mut caught_up = Vec::with_capacity(plan.seqs.len());
            for share in &plan.seqs {
                caught_up.push(self.scheduler.computed(share));
            }
            for (row, share) in forward.shares.iter().enumerate() {
                let output = self.sample(forward.logits.row(row), &plan.seqs[*share]);
                out.outputs.extend(output);
            }
            for (share, rows) in &forward.pooled {
                let rows = rows.clone().map(|r| forward.hidden.row(r));
                out.outputs.extend(self.pool(rows, &plan.seqs[*share], caught_up[*share]));
            }
        }
        out.duration = self.clock.now().saturating_sub(start);
        self.stats.steps += 1;
        self.stats.computed_tokens += out.num_tokens as u64;
        self.stats.busy += out.duration;
        Ok(out)
    }

    /// Counters and state.
    pub fn stats(&self) -> EngineStats {
        let pool = self.scheduler.kv.pool();
        let (prefix_hit_tokens, prefix_query_tokens) = self.scheduler.kv.hits();
        EngineStats {
            running: self.scheduler.num_running(),
            waiting: self.scheduler.num_waiting(),
            used_blocks: pool.num_blocks() - pool.num_free(),
            num_blocks: pool.num_blocks(),
            cache_bytes: self.cache.bytes(),
            prefix_hit_tokens,
            prefix_query_tokens,
            preemptions: self.scheduler.preemptions(),
            evictions: pool.evictions(),
            oldest_wait: self
                .scheduler
                .waiting
                .values()
                .map(|s| s.arrived)
                .min()
                .map_or(Duration::ZERO, |a| self.clock.now().saturating_sub(a)),
            ..self.stats.clone()
        }
    }

    /// Whether `n` more sequences of a tenant may wait. A full queue is still open, up to twice its length, to a tenant
    /// that has fewer than its part of the places: one that floods it does not shut out the others.
    fn has_place(&self, tenant: &str, n: usize) -> bool {
        let (queue, most) = (&self.scheduler.waiting, self.config.max_waiting);
        let after = queue.len() + n;
        let fair = most / (queue.num_tenants() + 1);
        after <= most || (after <= 2 * most && queue.waiting_of(tenant) + n <= fair)
    }

    /// Samples one sequence's next token and ends it where it should.
    fn sample(&mut self, logits: &[f32], share: &ScheduledSeq) -> Option<RequestOutput> {
        let seq = self.scheduler.running.get_mut(&share.rank)?;
        let p = Arc::clone(&seq.params);
        let token = match sampled(logits, seq) {
            Ok(token) => token,
            Err(message) => return self.finish(share.rank, Vec::new(), FinishReason::Error, Some(message)),
        };
        self.stats.sampled_tokens += 1;
        seq.tokens.push(token.id);
        let stop = !p.ignore_eos && p.stop_token_ids.contains(&token.id);
        if stop && seq.output_len() >= p.min_tokens {
            return self.finish(share.rank, vec![token], FinishReason::Stop, None);
        }
        if seq.output_len() >= p.max_tokens {
            return self.finish(share.rank, vec![token], FinishReason::Length, None);
        }
        Some(RequestOutput { tokens: vec![token], ..news(seq) })
    }

    /// Adds a pooled sequence's rows; its vector when it has caught up.
    fn pool<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        share: &ScheduledSeq,
        caught_up: bool,
    ) -> Option<RequestOutput> {
        let seq = self.scheduler.running.get_mut(&share.rank)?;
        let count = seq.tokens.len() as f64;
        let pooled = seq.pooled.as_mut()?;
        for row in rows {
            pooled.sum.resize(row.len(), 0.0);
            for (sum, x) in pooled.sum.iter_mut().zip(row) {
                *sum = match pooled.how {
                    Pooling::Mean => *sum + f64::from(*x) / count,
                    Pooling::Last => f64::from(*x),
                };
            }
        }
        if !caught_up {
            return None;
        }
        let embedding: Vec<f32> = pooled.sum.iter().map(|x| *x as f32).collect();
        let output = self.finish(share.rank, Vec::new(), FinishReason::Stop, None)?;
        Some(RequestOutput { embedding: Some(embedding), ..output })
    }

    fn finish(
        &mut self,
        rank: Rank,
        tokens: Vec<SampledToken>,
        reason: FinishReason,
        message: Option<String>,
    ) -> Option<RequestOutput> {
        let seq = self.scheduler.remove(&rank)?;
        if let Some(ranks) = self.ranks.get_mut(&seq.id) {
            ranks.retain(|r| *r != rank);
            if ranks.is_empty() {
                self.ranks.remove(&seq.id);
            }
        }
        Some(RequestOutput { tokens, finish_reason: Some(reason), message, ..news(&seq) })
    }

    fn expire(&mut self, now: Duration, outputs: &mut Vec<RequestOutput>) {
        let past = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let is_late = |s: &&Seq| past(s.deadline) || (s.started.is_none() && past(s.queue_deadline));
        let late: Vec<Rank> = self.scheduler.all().filter(is_late).map(|s| s.rank).collect();
        for rank in late {
            outputs.extend(self.finish(rank, Vec::new(), FinishReason::Deadline, None));
        }
    }

    fn fail(&mut self, shares: &[ScheduledSeq]) {
        for share in shares {
            self.finish(share.rank, Vec::new(), FinishReason::Error, None);
        }
    }
}

/// An output that says only whose it is.
fn news(seq: &Seq) -> RequestOutput {
    RequestOutput {
        id: seq.id,
        seq_idx: seq.seq_idx,
        tokens: Vec::new(),
        finish_reason: None,
        message: None,
        cached_tokens: seq.cached_tokens,
        queue_time: seq.started.map_or(Duration::ZERO, |s| s.saturating_sub(seq.arrived)),
        embedding: None,
    }
}

/// The next token of a sequence, within its constraint.
fn sampled(logits: &[f32], seq: &mut Seq) -> Result<SampledToken, String> {
    let mask = match &mut seq.constraint {
        Some(constraint) => constraint.allowed()?,
        None => None,
    };
    let token = sampler::sample(
        logits,
        &seq.params,
        mask.as_ref(),
        seq.seed,
        seq.seq_idx,
        &seq.tokens,
        seq.num_prompt,
    )?;
    if let Some(constraint) = &mut seq.constraint {
        constraint.accept(token.id)?;
    }
    Ok(token)
}

/// A seed nobody asked for: the standard library's per-process hash keys, which the system's randomness feeds.
fn entropy() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
