//! Continuous batching over a paged cache. The engine sees token ids, never text.
//!
//! Life of a request: [`EngineCore::add_request`] validates it and queues its sequences -> [`Scheduler`] gives each step a
//! number of tokens within the budget, first to running sequences, then to waiting ones; there is no prefill or decode
//! phase, only computed tokens catching up with known ones -> the [`KvCacheManager`] finds blocks, shared where a prefix
//! is cached -> one forward pass -> [`sampler`] for every sequence that caught up -> [`StepOutput`]. A sequence that
//! loses its blocks to another is preempted: it waits again with all its tokens and computes them anew, to the same bits.

mod block_pool;
mod config;
mod constraint;
mod core;
mod error;
mod handle;
mod kv_cache_manager;
mod request;
mod runner;
pub mod sampler;
mod scheduler;
#[cfg(test)]
mod tests;
mod waiting;

pub use block_pool::{BlockId, BlockPool};
pub use config::EngineConfig;
pub use constraint::{Constraint, TokenMask};
pub use core::{EngineCore, EngineStats, StepOutput};
pub use error::EngineError;
pub use handle::{Accepted, EngineHandle, OutputSink, RequestStream, StepObserver};
pub use kv_cache_manager::KvCacheManager;
pub use request::{FinishReason, Pooling, Request, RequestId, RequestOutput, SampledToken, SamplingParams};
pub use scheduler::{ScheduledSeq, Scheduler, SchedulerOutput};
