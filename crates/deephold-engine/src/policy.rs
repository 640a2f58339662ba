//! The scheduler's policy, by name.

use std::time::Duration;

use crate::EngineError;

/// How a step's time is divided. Chunking changes no bit of an answer, so every knob trades only speed against waiting.
///
/// Decoding sequences come first in every step, each with its one token. What is left of the step's time goes to prompts:
///
/// 1. the oldest running prompt (by priority, then arrival) gets its part;
/// 2. [`newcomer_share`](Self::newcomer_share) of the time goes to the others: first to those that can finish within it,
///    then to waiting ones in their turn (`WaitingQueue`). A waiting prompt starts only where at least half of it, or
///    [`min_chunk`](Self::min_chunk) tokens, fit: so a prompt of up to twice `min_chunk` has its first token within two steps of
///    its start. Where the waiting one's tenant was served less than the running one's, it has all of the time but a token;
/// 3. what is then left over goes to the running prompts, the oldest first.
///
/// Of one priority the prompts of the tenant that was served least stand before those of others, so "oldest" is the oldest of
/// that tenant. Where places or cache blocks run out, a tenant below its share takes them from the one furthest above
/// ([`preempt_for_share`](Self::preempt_for_share)), and a step that brings a first token to one that is not above its share takes no
/// prompts of those that are. Beside others theirs leave half of a step's time free, but for the oldest's part.
///
/// So the oldest prompt always advances, every prompt becomes the oldest, and newcomers never wait for the end of a long one.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerPolicy {
    /// What a step should take while others decode or wait: the gap between two tokens of an answer beside a long prompt.
    /// `None`: only the token budget counts.
    pub step_target: Option<Duration>,
    /// What a step may take while a prompt has the engine to itself. An abort or a newcomer waits this long at most. `None`: no
    /// limit beside the token budget.
    pub solo_target: Option<Duration>,
    /// Part of a step's prompt time that is kept from the oldest prompt while others wait; 0 to 0.9.
    pub newcomer_share: f64,
    /// Tokens that newcomers together are given at least in a step, even where its target is then missed; at least 1. The
    /// oldest prompt is given at least one token, and as much time as reading the weights takes.
    pub min_chunk: usize,
    /// A waiting sequence of higher priority takes the place and the blocks of running ones of lower priority.
    pub preempt_for_priority: bool,
    /// A waiting sequence whose tenant has less than its share of places and blocks takes those of a tenant that has more.
    pub preempt_for_share: bool,
    /// How long a request may be paused for its slow reader before it ends with `FinishReason::SlowReader`.
    pub pause_limit: Duration,
}

impl Default for SchedulerPolicy {
    fn default() -> Self {
        Self {
            step_target: Some(Duration::from_millis(100)),
            solo_target: Some(Duration::from_secs(1)),
            newcomer_share: 0.5,
            min_chunk: 32,
            preempt_for_priority: true,
            preempt_for_share: true,
            pause_limit: Duration::from_secs(60),
        }
    }
}

impl SchedulerPolicy {
    /// Only the token budget limits a step: the fastest for one caller who waits for nothing, as a benchmark does.
    pub fn throughput() -> Self {
        Self { step_target: None, solo_target: None, ..Self::default() }
    }

    pub(crate) fn validate(&self) -> Result<(), EngineError> {
        let bad = |param, problem: String| Err(EngineError::Config { param, problem });
        for (param, target) in [("step_target", self.step_target), ("solo_target", self.solo_target)] {
            if target.is_some_and(|t| t.is_zero()) {
                return bad(param, "must be above zero, or none".into());
            }
        }
        // Written so that NaN fails.
        if !(0.0..=0.9).contains(&self.newcomer_share) {
            return bad("newcomer_share", format!("= {} must be from 0 to 0.9", self.newcomer_share));
        }
        if self.min_chunk == 0 {
            return bad("min_chunk", "must be at least 1".into());
        }
        Ok(())
    }
}
