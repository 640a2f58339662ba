//! CPU arithmetic behind one seam: everything a model computes is a method of [`Ops`].
//!
//! Models call it; the engine lends it the cache's blocks. It never decides which tokens are computed, never reads a file, and
//! knows no architecture.
//!
//! Promise: an output element is a pure function of its own row's inputs. The same bits come out whatever the number of
//! rows, the chunking of a prompt, the number of threads or the neighbours in a batch. Each op therefore has one
//! summation order, written at the head of its module, and tiles only change which elements are computed together.

mod attention;
mod cache;
pub mod ceilings;
pub mod check;
mod elementwise;
mod error;
mod isa;
mod linear;
mod memory;
mod norm;
mod ops;
mod pool;
mod rope;
mod route;
mod simd;
mod tensor;
#[cfg(test)]
mod tests;
pub mod topology;
#[cfg(all(test, target_arch = "x86_64"))]
mod x86_model;

pub use attention::{AttentionContext, Selection, SeqRows};
pub use cache::{CacheDType, CacheSpec, EntryOrder, KvCache};
pub use elementwise::{EmbeddingTable, HeadColumns};
pub use error::KernelError;
pub use isa::{Isa, UnknownIsa};
pub use linear::{Activations, PackedMatrix, PairRows};
pub use ops::Ops;
pub use pool::{PoolOptions, ThreadPool};
pub use rope::{RopeSlice, RopeStyle, RopeTable};
pub use route::{ExpertPlan, GroupScore, RouteSpec, Scoring};
pub use tensor::Tensor;
