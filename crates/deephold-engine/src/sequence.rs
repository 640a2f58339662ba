//! One of a request's `n` answers while it is in the engine.
//!
//! ```text
//!  add_request          admitted              caught up, sampled ... finished
//!  ───────────► waiting ────────► running ───────────────────────────────────► gone
//!                  ▲ ▲ │            │ │
//!                  │ │ │ preempted  │ │ its reader is slow
//!                  │ └─┼────────────┘ │
//!                  │   └───────┐      │
//!                  │  resumed  ▼      ▼
//!                  └───────────── paused
//! ```
//!
//! Only running sequences hold cache blocks. A waiting or paused one keeps its tokens alone and computes them again, or
//! finds them in the prefix cache, once it runs again; the bits are the same.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;

use crate::kv_cache_manager::SeqBlocks;
use crate::masks::Masked;
use crate::request::{Pooling, RequestId, SampledToken, SamplingParams};

/// A sequence's place in the order of service: higher priority first, then earlier arrival. Unique in an engine.
pub(crate) type SeqKey = (Reverse<i32>, u64);

/// One of a request's sequences.
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    /// Which of the request's `n`.
    pub(crate) seq_idx: usize,
    pub(crate) key: SeqKey,
    /// Prompt, then answer.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt: usize,
    /// Tokens whose entries are in the cache.
    pub(crate) num_computed: usize,
    /// Prompt tokens that came out of the prefix cache when it first ran.
    pub(crate) cached_tokens: usize,
    pub(crate) blocks: SeqBlocks,
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) seed: u64,
    pub(crate) deadline: Option<Duration>,
    pub(crate) queue_deadline: Option<Duration>,
    pub(crate) tenant: Arc<str>,
    pub(crate) weight: f32,
    pub(crate) constraint: Option<Masked>,
    pub(crate) pooled: Option<PooledSums>,
    /// The prompt's tokens whose log probabilities are known, in order, until they are handed out.
    pub(crate) scored: Option<Vec<SampledToken>>,
    pub(crate) arrived: Duration,
    /// When it first ran.
    pub(crate) started: Option<Duration>,
    /// When its reader was last found slow, while it is paused.
    pub(crate) paused: Option<Duration>,
}

/// A sequence that ends in a vector of its prompt's hidden states instead of tokens.
pub(crate) struct PooledSums {
    pub(crate) how: Pooling,
    /// Sums over positions, in their order.
    pub(crate) sums: Vec<f64>,
}

impl Sequence {
    pub(crate) fn output_len(&self) -> usize {
        self.tokens.len() - self.num_prompt
    }

    /// Tokens that are known but not computed; 1 while decoding.
    pub(crate) fn num_missing(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// Whether positions of the prompt are still to be read that no cache keeps: all for a vector, logits for log probabilities.
    pub(crate) fn needs_every_position(&self) -> bool {
        self.pooled.is_some() || self.scored.as_ref().is_some_and(|s| s.len() < self.num_prompt)
    }

    /// Positions of a part up to `end` whose logits give the log probability of the prompt's token behind them.
    pub(crate) fn to_score(&self, end: usize) -> Range<usize> {
        match &self.scored {
            // What was known before a preemption is not read again.
            Some(scored) => {
                let end = end.min(self.num_prompt - 1);
                self.num_computed.max(scored.len() - 1).min(end)..end
            }
            None => 0..0,
        }
    }

    /// Forgets what was computed; its blocks must be free already.
    pub(crate) fn reset(&mut self) {
        self.num_computed = 0;
        if let Some(pooled) = &mut self.pooled {
            pooled.sums.fill(0.0);
        }
    }
}
