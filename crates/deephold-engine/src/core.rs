//! The engine's step.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use deephold_base::Clock;
use deephold_kernels::{KvCache, Tensor};
use deephold_models::Model;

use crate::kv_cache_manager::{KvCacheManager, SeqBlocks};
use crate::machine::{Machine, MemoryLease};
use crate::masks::{MaskWorker, Masked};
use crate::request::{
    CacheSharing, FinishReason, Pooling, Request, RequestId, RequestOutput, SampledToken, SamplingParams,
};
use crate::scheduler::{ScheduledSeq, Scheduler};
use crate::sequence::{PooledSums, SeqKey, Sequence};
use crate::{EngineConfig, EngineError, masks, runner, sampler};

/// Rows of logits at a time while a prompt is scored: with a vocabulary of 128 Ki they take 16 MiB.
const SCORED_ROWS: usize = 32;

/// One model, its cache and the sequences on it. Whoever owns it calls [`Self::step`] while [`Self::has_work`];
/// [`crate::EngineHandle`] does so on a thread of its own.
pub struct EngineCore {
    model: Arc<dyn Model>,
    machine: Arc<Machine>,
    cache: KvCache,
    /// Parts of the machine's memory that go back when the engine ends: the cache's, and the weights' where their holder
    /// handed them over.
    memory: Vec<MemoryLease>,
    clock: Arc<dyn Clock>,
    config: EngineConfig,
    scheduler: Scheduler,
    /// For each request, the keys of its sequences that have not ended (n > 1 gives several).
    keys: HashMap<RequestId, Vec<SeqKey>>,
    arrivals: u64,
    stats: EngineStats,
    /// Started with the first constraint.
    masks: Option<MaskWorker>,
}

/// Result of one [`EngineCore::step`]: an output for each sequence that got a token or ended in it, and what the step cost.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// In the order in which the scheduler placed the sequences (decoding ones first), behind those that ran out of time.
    pub outputs: Vec<RequestOutput>,
    /// Tokens computed.
    pub num_tokens: usize,
    /// Sequences that took part.
    pub num_seqs: usize,
    /// How long it took, without the wait for other engines on the machine.
    pub duration: Duration,
}

/// Counters since start, and the state now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Sequences that are paused for slow readers.
    pub paused: usize,
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
    /// An engine for `model`; reserves its cache within the machine's memory.
    ///
    /// # Errors
    /// A configuration that cannot work, or too little memory.
    pub fn new(
        model: Arc<dyn Model>,
        machine: Arc<Machine>,
        config: EngineConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EngineError> {
        config.validate(model.info())?;
        let layers = model.cache_layers();
        let bytes = KvCache::bytes_for(&layers, config.num_blocks, config.block_size, config.cache_dtype)?;
        let memory = machine.memory().reserve("the cache", bytes as u64)?;
        let cache = KvCache::new(&layers, config.num_blocks, config.block_size, config.cache_dtype)?;
        let kv = KvCacheManager::new(config.num_blocks, config.block_size, config.enable_prefix_cache);
        let policy = config.policy.clone();
        let scheduler = Scheduler::new(kv, policy, config.max_num_seqs, config.max_num_batched_tokens);
        Ok(Self {
            model,
            machine,
            cache,
            memory: vec![memory],
            clock,
            config,
            scheduler,
            keys: HashMap::new(),
            arrivals: 0,
            stats: EngineStats::default(),
            masks: None,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<dyn Model> {
        &self.model
    }

    /// Keeps a part of the machine's memory for as long as the engine lives: that of the model's weights.
    pub fn hold(&mut self, lease: MemoryLease) {
        self.memory.push(lease);
    }

    /// The engine's clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Time on the engine's clock.
    pub fn now(&self) -> Duration {
        self.clock.now()
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
        let Request { id, prompt, mut params, priority, deadline, .. } = request;
        if request.pooling.is_some() {
            // Nothing is sampled: one vector a request.
            params = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
        }
        let vocab_size = self.model.info().vocab_size;
        params.validate(vocab_size)?;
        if !(request.weight.is_finite() && request.weight > 0.0) {
            let problem = format!("= {} must be a finite number above 0", request.weight);
            return Err(EngineError::Parameter { param: "weight", problem });
        }
        let max_model_len = self.config.max_model_len;
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if let Some(index) = prompt.iter().position(|t| *t as usize >= vocab_size) {
            return Err(EngineError::Token { index, token: prompt[index], vocab_size });
        }
        // At least one token is answered, where any is asked for.
        if prompt.len() + params.max_tokens.min(1) > max_model_len {
            return Err(EngineError::PromptTooLong { tokens: prompt.len(), max_model_len });
        }
        params.max_tokens = params.max_tokens.min(max_model_len - prompt.len());
        // The last token is never computed, only returned.
        let needed = self.scheduler.kv.blocks_for(prompt.len() + params.max_tokens.saturating_sub(1));
        if needed > self.config.num_blocks {
            return Err(EngineError::CacheTooSmall { needed, blocks: self.config.num_blocks });
        }
        let waiting = self.scheduler.num_waiting();
        if !self.may_queue(&request.tenant, params.n) {
            return Err(EngineError::Busy { waiting });
        }
        if let Some(limit) = request.tenant_waiting_max {
            let waiting = self.scheduler.waiting.waiting_of(&request.tenant);
            if waiting + params.n > limit {
                return Err(EngineError::TenantBusy { waiting, limit });
            }
        }
        if self.keys.contains_key(&id) {
            return Err(EngineError::Duplicate(id.0));
        }
        let seed = params.seed.unwrap_or_else(sampler::drawn_seed);
        let arrived = self.clock.now();
        let salt = prefix_salt(&request.cache_sharing, &request.tenant);
        let params = Arc::new(params);
        if request.constraint.is_some() && self.masks.is_none() {
            self.masks = MaskWorker::start();
        }
        let first = SampledToken { id: prompt[0], logprob: None, top: Vec::new() };
        let mut keys = Vec::with_capacity(params.n);
        for seq_idx in 0..params.n {
            let key = (Reverse(priority), self.arrivals);
            self.arrivals += 1;
            keys.push(key);
            let seq = Sequence {
                id,
                seq_idx,
                key,
                num_prompt: prompt.len(),
                tokens: prompt.clone(),
                num_computed: 0,
                cached_tokens: 0,
                blocks: SeqBlocks::new(Arc::clone(&salt)),
                params: Arc::clone(&params),
                seed,
                deadline,
                queue_deadline: request.queue_deadline,
                tenant: Arc::clone(&request.tenant),
                weight: request.weight,
                constraint: request.constraint.clone().map(|c| Masked::new(c, self.masks.as_ref())),
                pooled: request.pooling.map(|how| PooledSums { how, sums: Vec::new() }),
                // All sequences of a request have the same prompt.
                scored: params.prompt_logprobs.filter(|_| seq_idx == 0).map(|_| vec![first.clone()]),
                arrived,
                started: None,
                paused: None,
            };
            self.scheduler.add(seq);
        }
        self.keys.insert(id, keys);
        Ok(())
    }

    /// Ends a request now: one output with [`FinishReason::Abort`] for each of its sequences that had not ended.
    pub fn abort(&mut self, id: RequestId) -> Vec<RequestOutput> {
        self.end(id, FinishReason::Abort, None)
    }

    /// Ends every request, as after a failure of the engine: nothing of the old state is worth keeping.
    pub fn end_all(&mut self, reason: FinishReason, message: Option<&str>) -> Vec<RequestOutput> {
        let mut ids: Vec<RequestId> = self.keys.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().flat_map(|id| self.end(id, reason, message)).collect()
    }

    fn end(&mut self, id: RequestId, reason: FinishReason, message: Option<&str>) -> Vec<RequestOutput> {
        let keys = self.keys.get(&id).cloned().unwrap_or_default();
        let message = |_| message.map(str::to_owned);
        keys.into_iter().filter_map(|key| self.finish(key, Vec::new(), reason, message(key))).collect()
    }

    /// Sets a request aside whose reader is slow, until [`Self::resume`]; it gives its cache blocks back. One that stays paused
    /// for longer than the policy's `pause_limit` ends with [`FinishReason::SlowReader`].
    pub fn pause(&mut self, id: RequestId) {
        let now = self.clock.now();
        for key in self.keys.get(&id).into_iter().flatten() {
            self.scheduler.pause(key, now);
        }
    }

    /// Lets a paused request go on.
    pub fn resume(&mut self, id: RequestId) {
        self.keys.get(&id).into_iter().flatten().for_each(|key| self.scheduler.resume(key));
    }

    /// Whether a request of that id has sequences left.
    pub fn is_live(&self, id: RequestId) -> bool {
        self.keys.contains_key(&id)
    }

    /// Whether a step would do anything now. Paused sequences are no work, but see [`Self::next_expiry`].
    pub fn has_work(&self) -> bool {
        self.scheduler.num_running() + self.scheduler.num_waiting() > 0
    }

    /// When the next paused request ends for want of a reader or time, on the engine's clock.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.scheduler.paused.values().map(|seq| self.expiry(seq)).min()
    }

    fn expiry(&self, seq: &Sequence) -> Duration {
        let paused = seq.paused.map(|at| at.saturating_add(self.scheduler.pause_limit()));
        let queue = seq.queue_deadline.filter(|_| seq.started.is_none());
        [paused, seq.deadline, queue].into_iter().flatten().min().unwrap_or(Duration::MAX)
    }

    /// One forward pass over what the scheduler chose, and the tokens that follow from it. Where the model refuses the batch
    /// (a defect), the requests in it end with [`FinishReason::Error`].
    pub fn step(&mut self) -> StepOutput {
        let machine = Arc::clone(&self.machine);
        let _permit = machine.arbiter().acquire();
        let start = self.clock.now();
        let mut out = StepOutput::default();
        self.expire(start, &mut out.outputs);
        let plan = self.scheduler.schedule(start);
        (out.num_tokens, out.num_seqs) = (plan.num_tokens, plan.seqs.len());
        if plan.num_tokens > 0 {
            match runner::forward(&*self.model, machine.ops(), &self.cache, &self.scheduler, &plan) {
                Ok(forward) => self.take_results(&plan.seqs, &forward, &mut out.outputs),
                Err(e) => {
                    let message = e.to_string();
                    for scheduled in &plan.seqs {
                        let ended = self.finish(
                            scheduled.key,
                            Vec::new(),
                            FinishReason::Error,
                            Some(message.clone()),
                        );
                        out.outputs.extend(ended);
                    }
                }
            }
        }
        out.duration = self.clock.now().saturating_sub(start);
        self.scheduler.cost.learn(plan.work, out.duration.as_secs_f64());
        self.stats.steps += 1;
        self.stats.computed_tokens += out.num_tokens as u64;
        self.stats.busy += out.duration;
        out
    }

    /// Samples and pools what a forward pass computed.
    fn take_results(
        &mut self,
        scheduled: &[ScheduledSeq],
        forward: &runner::Forward,
        outputs: &mut Vec<RequestOutput>,
    ) {
        for (i, rows) in &forward.scored {
            outputs.extend(self.score(&forward.hidden, rows.clone(), scheduled[*i].key));
        }
        let caught_up: Vec<bool> = scheduled.iter().map(|s| self.scheduler.computed(s)).collect();
        for (row, i) in forward.sampled_idx.iter().enumerate() {
            outputs.extend(self.sample(forward.logits.row(row), scheduled[*i].key));
        }
        for (i, rows) in &forward.pooled {
            let rows = rows.clone().map(|r| forward.hidden.row(r));
            outputs.extend(self.pool(rows, scheduled[*i].key, caught_up[*i]));
        }
    }

    /// Live requests, and whether any of their sequences has run.
    #[cfg(test)]
    pub(crate) fn started_requests(&self) -> impl Iterator<Item = (RequestId, bool)> {
        self.scheduler.all().map(|seq| (seq.id, seq.started.is_some()))
    }

    /// Counters and state.
    pub fn stats(&self) -> EngineStats {
        let pool = self.scheduler.kv.pool();
        let (prefix_hit_tokens, prefix_query_tokens) = self.scheduler.kv.hits();
        EngineStats {
            running: self.scheduler.num_running(),
            waiting: self.scheduler.num_waiting(),
            paused: self.scheduler.paused.len(),
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

    /// Whether the waiting queue takes `n` more sequences of this tenant. Beyond `max_waiting` it still takes those of a tenant
    /// with fewer than `max_waiting / tenants` of them waiting, up to `2 * max_waiting` in all: a tenant that floods the
    /// queue cannot shut out the others, and memory stays bounded.
    fn may_queue(&self, tenant: &str, n: usize) -> bool {
        let (queue, most) = (&self.scheduler.waiting, self.config.max_waiting);
        let after = queue.len() + self.scheduler.paused.len() + n;
        let fair = most / (queue.num_tenants() + 1);
        after <= most || (after <= 2 * most && queue.waiting_of(tenant) + n <= fair)
    }

    /// Samples one sequence's next token and ends it where it should.
    fn sample(&mut self, logits: &[f32], key: SeqKey) -> Option<RequestOutput> {
        let seq = self.scheduler.running.get_mut(&key)?;
        let p = Arc::clone(&seq.params);
        let prompt = seq.scored.take().unwrap_or_default();
        if p.max_tokens == 0 {
            let output = self.finish(key, Vec::new(), FinishReason::Length, None)?;
            return Some(RequestOutput { prompt, ..output });
        }
        let output = self.sample_token(logits, key, &p)?;
        Some(RequestOutput { prompt, ..output })
    }

    fn sample_token(&mut self, logits: &[f32], key: SeqKey, p: &SamplingParams) -> Option<RequestOutput> {
        let seq = self.scheduler.running.get_mut(&key)?;
        let token = match next_token(logits, seq, self.masks.as_ref()) {
            Ok(token) => token,
            Err(message) => return self.finish(key, Vec::new(), FinishReason::Error, Some(message)),
        };
        self.stats.sampled_tokens += 1;
        seq.tokens.push(token.id);
        let stop = !p.ignore_eos && p.stop_token_ids.contains(&token.id);
        if stop && seq.output_len() >= p.min_tokens {
            return self.finish(key, vec![token], FinishReason::Stop, None);
        }
        if seq.output_len() >= p.max_tokens {
            return self.finish(key, vec![token], FinishReason::Length, None);
        }
        Some(RequestOutput { tokens: vec![token], ..output_of(seq) })
    }

    /// Takes the log probabilities of a prompt's tokens from hidden states, in their order, a few rows of logits at a time; gives
    /// the end of a sequence whose logits are not numbers.
    fn score(&mut self, hidden: &Tensor, rows: Range<usize>, key: SeqKey) -> Option<RequestOutput> {
        let ops = Arc::clone(self.machine.ops());
        for start in rows.clone().step_by(SCORED_ROWS) {
            let rows = start..rows.end.min(start + SCORED_ROWS);
            let logits = self.model.head(&ops, &runner::part(&ops, hidden, rows));
            let seq = self.scheduler.running.get_mut(&key)?;
            let k = seq.params.prompt_logprobs.unwrap_or(0);
            let scored = seq.scored.as_mut()?;
            for row in 0..logits.rows() {
                match sampler::score(logits.row(row), seq.tokens[scored.len()], k) {
                    Ok(token) => scored.push(token),
                    Err(message) => return self.finish(key, Vec::new(), FinishReason::Error, Some(message)),
                }
            }
        }
        None
    }

    /// Adds a pooled sequence's rows; its vector when it has caught up.
    fn pool<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        key: SeqKey,
        caught_up: bool,
    ) -> Option<RequestOutput> {
        let seq = self.scheduler.running.get_mut(&key)?;
        let count = seq.tokens.len() as f64;
        let pooled = seq.pooled.as_mut()?;
        for row in rows {
            pooled.sums.resize(row.len(), 0.0);
            for (sum, x) in pooled.sums.iter_mut().zip(row) {
                *sum = match pooled.how {
                    Pooling::Mean => *sum + f64::from(*x) / count,
                    Pooling::Last => f64::from(*x),
                };
            }
        }
        if !caught_up {
            return None;
        }
        let embedding: Vec<f32> = pooled.sums.iter().map(|x| *x as f32).collect();
        let output = self.finish(key, Vec::new(), FinishReason::Stop, None)?;
        Some(RequestOutput { embedding: Some(embedding), ..output })
    }

    fn finish(
        &mut self,
        key: SeqKey,
        tokens: Vec<SampledToken>,
        reason: FinishReason,
        message: Option<String>,
    ) -> Option<RequestOutput> {
        let seq = self.scheduler.remove(&key)?;
        if let Some(keys) = self.keys.get_mut(&seq.id) {
            keys.retain(|k| *k != key);
            if keys.is_empty() {
                self.keys.remove(&seq.id);
            }
        }
        Some(RequestOutput { tokens, finish_reason: Some(reason), message, ..output_of(&seq) })
    }

    /// Ends the sequences whose time is up.
    fn expire(&mut self, now: Duration, outputs: &mut Vec<RequestOutput>) {
        let late: Vec<SeqKey> =
            self.scheduler.all().filter(|seq| self.expiry(seq) <= now).map(|seq| seq.key).collect();
        for key in late {
            let is_past = |seq: &Sequence| {
                let queue = seq.queue_deadline.filter(|_| seq.started.is_none());
                [seq.deadline, queue].into_iter().flatten().any(|at| at <= now)
            };
            let reason = match self.scheduler.get(&key) {
                Some(seq) if is_past(seq) => FinishReason::Deadline,
                _ => FinishReason::SlowReader,
            };
            outputs.extend(self.finish(key, Vec::new(), reason, None));
        }
    }
}

/// What a request's prefixes are keyed by. A tag and a length first, so that no salt can imitate another kind or another
/// tenant's.
fn prefix_salt(sharing: &CacheSharing, tenant: &str) -> Arc<[u8]> {
    let (tag, owner, salt): (u8, &str, &[u8]) = match sharing {
        CacheSharing::Tenant { salt } => (0, tenant, salt),
        CacheSharing::Shared { salt } => (1, "", salt),
    };
    let len = (owner.len() as u64).to_le_bytes();
    [&[tag], &len[..], owner.as_bytes(), salt].concat().into()
}

/// An output that says only whose it is.
fn output_of(seq: &Sequence) -> RequestOutput {
    RequestOutput {
        id: seq.id,
        seq_idx: seq.seq_idx,
        tokens: Vec::new(),
        prompt: Vec::new(),
        finish_reason: None,
        message: None,
        cached_tokens: seq.cached_tokens,
        queue_time: seq.started.map_or(Duration::ZERO, |s| s.saturating_sub(seq.arrived)),
        embedding: None,
    }
}

/// The next token of a sequence, within its constraint. The constraint is the caller's code: a panic in it ends this sequence
/// alone.
fn next_token(
    logits: &[f32],
    seq: &mut Sequence,
    worker: Option<&MaskWorker>,
) -> Result<SampledToken, String> {
    let ready = seq.constraint.take().map(Masked::ready);
    let (constraint, mask) = match ready {
        None => (None, None),
        Some(ready) => (ready.constraint, ready.mask?),
    };
    let choice = sampler::Choice {
        logits,
        params: &seq.params,
        mask: mask.as_ref(),
        seed: seq.seed,
        seq_idx: seq.seq_idx,
        tokens: &seq.tokens,
        num_prompt: seq.num_prompt,
    };
    let token = choice.sample()?;
    if let Some(mut constraint) = constraint {
        let accepted = catch_unwind(AssertUnwindSafe(|| constraint.accept(token.id)));
        accepted.map_err(|_| masks::DEFECT.to_owned())??;
        seq.constraint = Some(Masked::new(constraint, worker));
    }
    Ok(token)
}
