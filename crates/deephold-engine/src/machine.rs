//! What the engines of one process share: the thread pool, lent step by step, and one memory budget.
//!
//! Without the arbiter two models would take turns inside each other's steps, at every product, and each would run on the
//! other's cold caches. With it a step runs to its end (its time is bounded by the policy), then the engine that has waited
//! longest is next.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use deephold_kernels::Ops;

use crate::EngineError;

/// One machine's arithmetic and memory.
pub struct Machine {
    ops: Arc<Ops>,
    arbiter: StepArbiter,
    memory: MemoryBudget,
}

impl Machine {
    /// Arithmetic over `ops`; weights and caches of all models together may take `memory_bytes`.
    pub fn new(ops: Arc<Ops>, memory_bytes: u64) -> Arc<Self> {
        Arc::new(Self { ops, arbiter: StepArbiter::default(), memory: MemoryBudget::new(memory_bytes) })
    }

    /// The arithmetic.
    pub fn ops(&self) -> &Arc<Ops> {
        &self.ops
    }

    /// Who may compute now.
    pub fn arbiter(&self) -> &StepArbiter {
        &self.arbiter
    }

    /// What weights and caches may take.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }
}

/// Lends the thread pool to one engine at a time, in the order in which they asked.
#[derive(Default)]
pub struct StepArbiter {
    tickets: Mutex<Tickets>,
    changed: Condvar,
}

#[derive(Default)]
struct Tickets {
    next: u64,
    serving: u64,
}

/// The right to compute until it is dropped.
pub struct StepPermit<'a>(&'a StepArbiter);

impl StepArbiter {
    /// Waits for the thread pool.
    pub fn acquire(&self) -> StepPermit<'_> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let own = tickets.next;
        tickets.next += 1;
        while tickets.serving != own {
            tickets = self.changed.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        StepPermit(self)
    }
}

impl Drop for StepPermit<'_> {
    fn drop(&mut self) {
        self.0.tickets.lock().unwrap_or_else(PoisonError::into_inner).serving += 1;
        self.0.changed.notify_all();
    }
}

/// Bytes that weights and caches of all models may take together. Weights count as they lie packed in memory, which is what
/// `deephold_models::packed_bytes` foretells, not as the file stores them.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Mutex<Ledger>>);

#[derive(Debug)]
struct Ledger {
    total: u64,
    used: u64,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct MemoryLease {
    ledger: Arc<Mutex<Ledger>>,
    bytes: u64,
}

impl MemoryBudget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self(Arc::new(Mutex::new(Ledger { total, used: 0 })))
    }

    /// Takes `bytes` for `what`, a noun phrase for the error.
    ///
    /// # Errors
    /// [`EngineError::Memory`] where less is left; nothing is taken then.
    pub fn reserve(&self, what: &str, bytes: u64) -> Result<MemoryLease, EngineError> {
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = ledger.total - ledger.used;
        if bytes > left {
            return Err(EngineError::Memory { what: what.to_owned(), bytes, left, total: ledger.total });
        }
        ledger.used += bytes;
        Ok(MemoryLease { ledger: Arc::clone(&self.0), bytes })
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// Bytes taken.
    pub fn used(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).used
    }
}

impl MemoryLease {
    /// How many bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).used -= self.bytes;
    }
}
