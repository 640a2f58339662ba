//! A machine whose steps take a known time.

use std::sync::Arc;
use std::time::Duration;

use deephold_base::{ManualClock, TokenId};
use deephold_kernels::{
    AttentionContext, CacheDType, CacheSpec, EntryOrder, Isa, Ops, PoolOptions, Tensor, ThreadPool,
};
use deephold_models::{Model, ModelError, ModelInfo};

use crate::request::{CacheSharing, Request, SamplingParams};
use crate::{EngineConfig, EngineCore, Machine, SchedulerPolicy};

pub(super) const VOCAB: usize = 16;

/// Does nothing, and moves the clock by what a step would take: for the weights, for each token, for each position that a
/// token attends to.
pub(super) struct Timed {
    info: ModelInfo,
    clock: ManualClock,
    seconds: [f64; 3],
}

impl Model for Timed {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn cache_layers(&self) -> Vec<Vec<CacheSpec>> {
        vec![vec![CacheSpec { name: "k", heads: 1, width: 1, order: EntryOrder::Rows }]]
    }

    fn hidden(
        &self,
        ctx: &AttentionContext<'_>,
        tokens: &[TokenId],
        rows: &[usize],
    ) -> Result<Tensor, ModelError> {
        let attended: f64 = ctx.positions().iter().map(|p| f64::from(*p) + 1.0).sum();
        let [step, token, position] = self.seconds;
        let seconds = step + token * tokens.len() as f64 + position * attended;
        self.clock.advance(Duration::from_secs_f64(seconds));
        Ok(ctx.ops().zeros(rows.len(), 1))
    }

    fn head(&self, ops: &Ops, hidden: &Tensor) -> Tensor {
        ops.zeros(hidden.rows(), VOCAB)
    }
}

/// A machine of about 2,000 prompt tokens a second at the start of a context and 400 at position 32K.
pub(super) const SECONDS: [f64; 3] = [0.010, 0.0005, 6e-8];

pub(super) fn timed(policy: SchedulerPolicy, seconds: [f64; 3]) -> (EngineCore, ManualClock) {
    timed_with(policy, seconds, |_| ())
}

/// The same with another configuration.
pub(super) fn timed_with(
    policy: SchedulerPolicy,
    seconds: [f64; 3],
    change: impl FnOnce(&mut EngineConfig),
) -> (EngineCore, ManualClock) {
    let clock = ManualClock::default();
    let info = ModelInfo { vocab_size: VOCAB, max_model_len: 40_000, ..ModelInfo::default() };
    let mut config = EngineConfig {
        block_size: 64,
        num_blocks: 2000,
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        max_model_len: 40_000,
        max_waiting: 64,
        cache_dtype: CacheDType::F32,
        enable_prefix_cache: true,
        policy,
    };
    change(&mut config);
    let pool = Arc::new(ThreadPool::new(PoolOptions { threads: 1, pin: false }));
    let machine = Machine::new(Arc::new(Ops::new(Isa::Scalar, pool)), u64::MAX);
    let model = Arc::new(Timed { info, clock: clock.clone(), seconds });
    (EngineCore::new(model, machine, config, Arc::new(clock.clone())).unwrap(), clock)
}

pub(super) fn request(id: u64, prompt: usize, max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
    let mut request = Request::new(id, vec![1; prompt], params);
    request.cache_sharing = CacheSharing::Tenant { salt: id.to_le_bytes().to_vec() };
    request
}
