//! Random arrivals on a small cache with a model whose answers depend on every token before them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deephold_base::{ManualClock, TokenId};
use deephold_kernels::{
    AttentionContext, CacheDType, CacheSpec, EntryOrder, Isa, Ops, PoolOptions, Tensor, ThreadPool,
};
use deephold_models::{Model, ModelError, ModelInfo};
use deephold_testkit::Rng;

use crate::request::{FinishReason, Request, RequestId, SamplingParams};
use crate::{EngineConfig, EngineCore, EngineError, Machine, SchedulerPolicy};

pub(super) const VOCAB: usize = 97;

/// The next token is a function of the tokens' running average, read through the real paged cache.
struct Averaging(ModelInfo);

impl Averaging {
    fn new() -> Self {
        Self(ModelInfo { vocab_size: VOCAB, max_model_len: 200, ..ModelInfo::default() })
    }
}

impl Model for Averaging {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn cache_layers(&self) -> Vec<Vec<CacheSpec>> {
        let spec = |name| CacheSpec { name, heads: 1, width: 16, order: EntryOrder::Rows };
        vec![vec![spec("k"), spec("v")]]
    }

    fn hidden(
        &self,
        ctx: &AttentionContext<'_>,
        tokens: &[TokenId],
        rows: &[usize],
    ) -> Result<Tensor, ModelError> {
        let ops = ctx.ops();
        let mut x = ops.zeros(tokens.len(), 16);
        for (i, t) in tokens.iter().enumerate() {
            x.row_mut(i)[*t as usize % 16] = 1.0 + *t as f32;
        }
        ctx.write(0, 0, &x);
        ctx.write(0, 1, &x);
        let y = ctx.attend_gqa(0, &x, 1e-4);
        let mut hidden = ops.zeros(rows.len(), 16);
        for (i, row) in rows.iter().enumerate() {
            hidden.row_mut(i).copy_from_slice(y.row(*row));
        }
        Ok(hidden)
    }

    fn head(&self, ops: &Ops, hidden: &Tensor) -> Tensor {
        let mut logits = ops.zeros(hidden.rows(), VOCAB);
        for i in 0..hidden.rows() {
            let hash = hidden.row(i).iter().fold(7u32, |h, v| h.wrapping_mul(31) ^ v.to_bits());
            logits.row_mut(i)[hash as usize % VOCAB] = 1.0;
        }
        logits
    }
}

pub(super) fn engine(
    num_blocks: usize,
    max_num_seqs: usize,
    budget: usize,
    clock: ManualClock,
) -> EngineCore {
    engine_with(num_blocks, max_num_seqs, budget, clock, SchedulerPolicy::default())
}

pub(super) fn engine_with(
    num_blocks: usize,
    max_num_seqs: usize,
    budget: usize,
    clock: ManualClock,
    policy: SchedulerPolicy,
) -> EngineCore {
    let pool = Arc::new(ThreadPool::new(PoolOptions { threads: 1, pin: false }));
    let config = EngineConfig {
        block_size: 4,
        num_blocks,
        max_num_seqs,
        max_num_batched_tokens: budget,
        max_model_len: 100,
        max_waiting: 16,
        cache_dtype: CacheDType::F32,
        enable_prefix_cache: true,
        policy,
    };
    let machine = Machine::new(Arc::new(Ops::new(Isa::Scalar, pool)), u64::MAX);
    EngineCore::new(Arc::new(Averaging::new()), machine, config, Arc::new(clock)).unwrap()
}

/// The answer of a request that has an engine to itself.
fn alone(request: &Request) -> Vec<TokenId> {
    let mut core = engine(50, 1, 1000, ManualClock::default());
    core.add_request(request.clone()).unwrap();
    let mut ids = Vec::new();
    while core.has_work() {
        for out in core.step().outputs {
            ids.extend(out.tokens.iter().map(|t| t.id));
        }
    }
    ids
}

#[test]
fn no_token_is_lost_and_every_request_ends_as_if_alone() {
    let mut preemptions = 0;
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let clock = ManualClock::default();
        let max_num_seqs = 1 + (rng.next_u64() % 6) as usize;
        let budget = max_num_seqs + (rng.next_u64() % 20) as usize;
        let mut core = engine(26, max_num_seqs, budget, clock.clone());
        let mut requests: HashMap<RequestId, Request> = HashMap::new();
        let mut answers: HashMap<RequestId, Vec<TokenId>> = HashMap::new();
        let mut ended: HashMap<RequestId, FinishReason> = HashMap::new();
        let mut aborted = 0;
        for step in 0..3000u64 {
            clock.advance(Duration::from_millis(1));
            if step < 200 && rng.next_u64().is_multiple_of(3) {
                let prompt: Vec<u32> = (0..1 + rng.next_u64() % 30).map(|i| (i % 5) as u32).collect();
                let max_tokens = 1 + (rng.next_u64() % 50) as usize;
                let params = SamplingParams { max_tokens, ..SamplingParams::default() };
                let mut request = Request::new(step, prompt, params);
                request.priority = (rng.next_u64() % 3) as i32;
                match core.add_request(request.clone()) {
                    Ok(()) => _ = requests.insert(request.id, request),
                    Err(EngineError::Busy { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            if rng.next_u64().is_multiple_of(40)
                && let Some(id) = requests.keys().filter(|id| !ended.contains_key(id)).min().copied()
            {
                let ended_now = core.abort(id);
                assert_eq!(ended_now.len(), 1);
                assert_eq!(ended_now[0].finish_reason, Some(FinishReason::Abort));
                ended.insert(id, FinishReason::Abort);
                aborted += 1;
            }
            let out = core.step();
            assert!(out.num_tokens <= budget, "over budget");
            assert!(out.num_tokens > 0 || !core.has_work(), "work, but no progress");
            for o in out.outputs {
                assert!(!ended.contains_key(&o.id), "an output of an ended request");
                answers.entry(o.id).or_default().extend(o.tokens.iter().map(|t| t.id));
                if let Some(reason) = o.finish_reason {
                    ended.insert(o.id, reason);
                }
            }
        }
        assert!(!core.has_work());
        assert_eq!(ended.len(), requests.len());
        assert_eq!(core.stats().used_blocks, 0);
        preemptions += core.stats().preemptions;
        for (id, reason) in &ended {
            if *reason == FinishReason::Length {
                assert_eq!(answers[id], alone(&requests[id]), "seed {seed} {id:?}");
            }
        }
        assert!(aborted < requests.len());
    }
    assert!(preemptions > 100, "the cache was too large to test preemption: {preemptions}");
}

#[test]
fn deadlines_end_requests_and_priorities_go_first() {
    let clock = ManualClock::default();
    let mut core = engine(50, 1, 8, clock.clone());
    let params = SamplingParams { max_tokens: 90, ..SamplingParams::default() };
    let mut late = Request::new(1, vec![1], params.clone());
    late.deadline = Some(Duration::from_millis(5));
    core.add_request(late).unwrap();
    core.step();
    clock.advance(Duration::from_millis(5));
    let out = core.step().outputs;
    assert_eq!(out[0].finish_reason, Some(FinishReason::Deadline));
    assert!(!core.has_work());

    core.add_request(Request::new(2, vec![1], SamplingParams { max_tokens: 1, ..params.clone() })).unwrap();
    let mut urgent = Request::new(3, vec![2], SamplingParams { max_tokens: 1, ..params });
    urgent.priority = 1;
    core.add_request(urgent).unwrap();
    assert_eq!(core.step().outputs[0].id, RequestId(3));
    assert_eq!(core.step().outputs[0].id, RequestId(2));
}

#[test]
fn what_cannot_work_is_refused_with_numbers() {
    let mut core = engine(5, 2, 8, ManualClock::default());
    let add = |core: &mut EngineCore, prompt: Vec<u32>, max_tokens| {
        let params = SamplingParams { max_tokens, ..SamplingParams::default() };
        core.add_request(Request::new(prompt.len() as u64, prompt, params)).map_err(|e| e.to_string())
    };
    assert!(add(&mut core, vec![], 1).unwrap_err().contains("empty"));
    assert!(add(&mut core, vec![1, 97], 1).unwrap_err().contains("prompt token 1 is 97"));
    assert!(add(&mut core, vec![1; 100], 1).unwrap_err().contains("100 tokens"));
    assert!(add(&mut core, vec![1; 20], 2).unwrap_err().contains("6 cache blocks"));
    add(&mut core, vec![1; 20], 1).unwrap();
    assert!(add(&mut core, vec![1; 20], 1).unwrap_err().contains("exists"));
}
