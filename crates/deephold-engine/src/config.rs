//! The engine's bounds, all known at start.

use deephold_kernels::CacheDType;
use deephold_models::ModelInfo;

use crate::{EngineError, SchedulerPolicy};

/// Sizes and limits of one engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Positions a cache block.
    pub block_size: usize,
    /// Cache blocks in all.
    pub num_blocks: usize,
    /// Sequences that compute at the same time.
    pub max_num_seqs: usize,
    /// Tokens of one step, over all sequences; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// The longest context, prompt and answer together.
    pub max_model_len: usize,
    /// Sequences that may wait.
    pub max_waiting: usize,
    /// How the cache stores entries.
    pub cache_dtype: CacheDType,
    /// Whether prefixes are kept and shared, within the bounds that requests set.
    pub enable_prefix_cache: bool,
    /// How a step's time is divided.
    pub policy: SchedulerPolicy,
}

impl EngineConfig {
    /// Defaults for a model: as many blocks as `cache_bytes` holds, at most what `max_num_seqs` full contexts need.
    ///
    /// # Errors
    /// [`EngineError::Config`] where not even one full context fits.
    pub fn for_model(
        info: &ModelInfo,
        max_model_len: usize,
        max_num_seqs: usize,
        cache_dtype: CacheDType,
        cache_bytes: u64,
    ) -> Result<Self, EngineError> {
        let block_size = 16;
        let max_model_len = max_model_len.min(info.max_model_len);
        let block_bytes = (info.cache_bytes_per_token(cache_dtype) * block_size as u64).max(1);
        let wanted = (max_num_seqs * max_model_len.div_ceil(block_size)) as u64;
        let num_blocks = (cache_bytes / block_bytes).min(wanted) as usize;
        if num_blocks * block_size < max_model_len {
            let fits = num_blocks * block_size;
            return Err(EngineError::Config {
                param: "cache_bytes",
                problem: format!(
                    "= {} holds {fits} positions, fewer than one context of {max_model_len}; \
                     raise it or lower the context",
                    deephold_base::human_bytes(cache_bytes)
                ),
            });
        }
        Ok(Self {
            block_size,
            num_blocks,
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs.max(512),
            max_model_len,
            max_waiting: 1024,
            cache_dtype,
            enable_prefix_cache: true,
            policy: SchedulerPolicy::default(),
        })
    }

    pub(crate) fn validate(&self, info: &ModelInfo) -> Result<(), EngineError> {
        let bad = |param, problem: String| Err(EngineError::Config { param, problem });
        if self.block_size == 0 || self.block_size > 4096 {
            return bad("block_size", format!("= {} must be from 1 to 4096", self.block_size));
        }
        if self.max_num_seqs == 0 {
            return bad("max_num_seqs", "must be at least 1".into());
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            let (tokens, seqs) = (self.max_num_batched_tokens, self.max_num_seqs);
            return bad(
                "max_num_batched_tokens",
                format!(
                    "= {tokens} must be at least max_num_seqs = {seqs}: each decoding sequence needs one"
                ),
            );
        }
        self.policy.validate()?;
        if self.max_model_len < 2 || self.max_model_len > info.max_model_len {
            let problem = match info.max_model_len {
                0 | 1 => "leaves no room: the model itself has a context of one token".to_owned(),
                most => format!("= {} must be from 2 to {most}", self.max_model_len),
            };
            return bad("max_model_len", problem);
        }
        if self.num_blocks == 0 {
            return bad("num_blocks", "must be at least 1".into());
        }
        Ok(())
    }
}
