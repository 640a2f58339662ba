//! Several engines on one machine.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use deephold_base::SystemClock;
use deephold_kernels::{
    AttentionContext, CacheDType, CacheSpec, EntryOrder, Isa, Ops, PoolOptions, Tensor, ThreadPool,
};
use deephold_models::{Model, ModelError, ModelInfo};

use crate::request::{Request, SamplingParams};
use crate::{EngineConfig, EngineCore, EngineError, EngineHandle, Machine, MemoryBudget, SchedulerPolicy};

/// Notes when it computes; panics where another does at the same time.
struct Lonely {
    info: ModelInfo,
    name: usize,
    busy: Arc<AtomicBool>,
    order: Arc<Mutex<Vec<usize>>>,
}

impl Model for Lonely {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn cache_layers(&self) -> Vec<Vec<CacheSpec>> {
        vec![vec![CacheSpec { name: "k", heads: 1, width: 256, order: EntryOrder::Rows }]]
    }

    fn hidden(&self, ctx: &AttentionContext<'_>, _: &[u32], rows: &[usize]) -> Result<Tensor, ModelError> {
        assert!(!self.busy.swap(true, Ordering::SeqCst), "two models compute at once");
        self.order.lock().unwrap().push(self.name);
        // Long enough that the other engine asks for the pool meanwhile.
        std::thread::sleep(std::time::Duration::from_millis(2));
        self.busy.store(false, Ordering::SeqCst);
        Ok(ctx.ops().zeros(rows.len(), 1))
    }

    fn head(&self, ops: &Ops, hidden: &Tensor) -> Tensor {
        ops.zeros(hidden.rows(), 8)
    }
}

fn config() -> EngineConfig {
    EngineConfig {
        block_size: 16,
        num_blocks: 16,
        max_num_seqs: 2,
        max_num_batched_tokens: 64,
        max_model_len: 200,
        max_waiting: 8,
        cache_dtype: CacheDType::F32,
        enable_prefix_cache: true,
        policy: SchedulerPolicy::default(),
    }
}

#[test]
fn engines_take_turns_step_by_step() {
    let pool = Arc::new(ThreadPool::new(PoolOptions { threads: 2, pin: false }));
    let machine = Machine::new(Arc::new(Ops::new(Isa::detect(), pool)), 1 << 30);
    let (busy, order) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let spawn = |name| {
        let info = ModelInfo { vocab_size: 8, max_model_len: 200, ..ModelInfo::default() };
        let model = Arc::new(Lonely { info, name, busy: Arc::clone(&busy), order: Arc::clone(&order) });
        let clock = Arc::new(SystemClock::default());
        EngineHandle::spawn(EngineCore::new(model, Arc::clone(&machine), config(), clock).unwrap()).unwrap()
    };
    let engines = [spawn(0), spawn(1)];
    let streams: Vec<_> = (0..2)
        .map(|i| {
            let params = SamplingParams { max_tokens: 100, ignore_eos: true, ..SamplingParams::default() };
            engines[i].submit(Request::new(1, vec![1, 2, 3], params)).unwrap()
        })
        .collect();
    for mut stream in streams {
        let mut tokens = 0;
        while let Some(output) = stream.next_output() {
            assert!(output.message.is_none(), "{:?}", output.message);
            tokens += output.tokens.len();
        }
        assert_eq!(tokens, 100);
    }
    let order = order.lock().unwrap();
    // While both have work they alternate; one may run alone at the beginning and the end, and an engine that is
    // still delivering when the other is done may miss a turn.
    let both = order.len().min(180);
    let changes = order[..both].windows(2).filter(|w| w[0] != w[1]).count();
    assert!(changes > both / 2, "{changes} changes in {both} steps: {order:?}");
}

#[test]
fn memory_is_lent_once_and_given_back() {
    let budget = MemoryBudget::new(100);
    let weights = budget.reserve("the weights", 60).unwrap();
    let error = budget.reserve("the cache", 41).unwrap_err();
    assert!(matches!(error, EngineError::Memory { left: 40, total: 100, .. }), "{error}");
    assert_eq!(error.code(), deephold_base::ErrorCode::OutOfMemory);
    let cache = budget.reserve("the cache", 40).unwrap();
    assert_eq!((budget.used(), budget.total()), (100, 100));
    drop(weights);
    assert_eq!(budget.used(), 40);
    drop(cache);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_cache_counts_against_the_machines_memory() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let pool = Arc::new(ThreadPool::new(PoolOptions { threads: 1, pin: false }));
    let ops = Arc::new(Ops::new(Isa::Scalar, pool));
    // 16 blocks of 16 positions of 256 floats.
    let cache = 16 * 16 * 256 * 4;
    let machine = Machine::new(ops, 2 * cache);
    let make = || {
        let info = ModelInfo { vocab_size: 8, max_model_len: 200, ..ModelInfo::default() };
        let name = MADE.fetch_add(1, Ordering::SeqCst);
        let model = Lonely { info, name, busy: Arc::default(), order: Arc::default() };
        EngineCore::new(Arc::new(model), Arc::clone(&machine), config(), Arc::new(SystemClock::default()))
    };
    let (first, second) = (make().unwrap(), make().unwrap());
    assert_eq!(machine.memory().used(), 2 * cache);
    assert!(matches!(make(), Err(EngineError::Memory { .. })));
    drop(first);
    make().unwrap();
    drop(second);
    assert_eq!(machine.memory().used(), 0);
}
