//! Continuous batching over a paged cache. The engine sees token ids, never text.
//!
//! The binary and the server call it: through [`EngineHandle`], which runs an [`EngineCore`] on a thread of its own, or step by
//! step. It never tokenizes, never speaks a protocol, reads no clock but the one it is given, and does no arithmetic of a model.
//!
//! Life of a request: [`EngineCore::add_request`] validates it and queues its sequences -> the [`Scheduler`], by its
//! [`SchedulerPolicy`], gives each step a number of tokens that fits its time, first to decoding sequences, then to prompts ->
//! the [`KvCacheManager`] finds blocks, shared where a prefix is cached -> one forward pass, when the [`Machine`] lends its
//! thread pool -> [`sampler`] for every sequence that caught up -> [`StepOutput`]. A sequence that loses its blocks to another
//! is preempted: it waits again with all its tokens and computes them anew, to the same bits.

mod block_pool;
mod config;
mod constraint;
mod core;
mod cost;
mod error;
mod handle;
mod kv_cache_manager;
mod machine;
mod mailbox;
mod masks;
mod policy;
mod request;
mod runner;
pub mod sampler;
mod scheduler;
mod sequence;
mod sink;
#[cfg(test)]
mod tests;
mod waiting;

pub use block_pool::{BlockId, BlockPool};
pub use config::EngineConfig;
pub use constraint::{Constraint, TokenMask};
pub use core::{EngineCore, EngineStats, StepOutput};
pub use cost::{StepCostModel, StepWork};
pub use error::EngineError;
pub use handle::{EngineHandle, RequestStream, StepObserver};
pub use kv_cache_manager::KvCacheManager;
pub use machine::{Machine, MemoryBudget, MemoryLease, StepArbiter, StepPermit};
pub use mailbox::Shutdown;
pub use policy::SchedulerPolicy;
pub use request::{
    CacheSharing, FinishReason, Pooling, Request, RequestId, RequestOutput, SampledToken, SamplingParams,
};
pub use scheduler::{ScheduledSeq, Scheduler, SchedulerOutput};
pub use sink::{Accepted, Delivery, OutputSink};
