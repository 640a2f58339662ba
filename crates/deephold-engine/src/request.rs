//! What callers ask and get.

use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;

use crate::EngineError;
use crate::constraint::Constraint;

/// A caller's name for a request; unique while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A prompt and what to do with it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name.
    pub id: RequestId,
    /// Token ids; at least one.
    pub prompt: Vec<TokenId>,
    /// How to choose tokens and when to stop.
    pub params: SamplingParams,
    /// Whose cached prefixes it may use, and who may use its own.
    pub cache_sharing: CacheSharing,
    /// Higher goes first.
    pub priority: i32,
    /// Time on the engine's clock after which the request ends as it is.
    pub deadline: Option<Duration>,
    /// Time on the engine's clock after which the request ends if it has not run yet.
    pub queue_deadline: Option<Duration>,
    /// Whose it is: tenants of one priority share the engine by what was computed for each.
    pub tenant: Arc<str>,
    /// The tenant's share against others; finite and above 0.
    pub weight: f32,
    /// Sequences of the tenant that may wait, this request's own included; none for what the queue takes.
    pub tenant_waiting_max: Option<usize>,
    /// What the answer may be; each of `n` sequences gets a copy.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Ends the request with one vector of the prompt instead of an answer; `params` are not used then.
    pub pooling: Option<Pooling>,
}

/// Who shares cached prefixes. What is cached shows in `cached_tokens` and in the time to the first token, so across tenants
/// sharing would tell one what another has asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheSharing {
    /// Requests of the same tenant and salt.
    Tenant {
        /// Divides the tenant's own requests further, by user for instance.
        salt: Vec<u8>,
    },
    /// All requests that say so, of any tenant, with the same salt: for public prompts.
    Shared {
        /// As above.
        salt: Vec<u8>,
    },
}

impl Default for CacheSharing {
    fn default() -> Self {
        Self::Tenant { salt: Vec::new() }
    }
}

/// How the positions' hidden states, behind the final norm, become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last one.
    Last,
}

impl Request {
    /// How many sequences it has, each with an end of its own: `n`, or one for a vector.
    pub fn num_sequences(&self) -> usize {
        if self.pooling.is_some() { 1 } else { self.params.n }
    }

    /// A request with defaults for everything else.
    pub fn new(id: u64, prompt: Vec<TokenId>, params: SamplingParams) -> Self {
        Self {
            id: RequestId(id),
            prompt,
            params,
            cache_sharing: CacheSharing::default(),
            priority: 0,
            deadline: None,
            queue_deadline: None,
            tenant: "".into(),
            weight: 1.0,
            tenant_waiting_max: None,
            constraint: None,
            pooling: None,
        }
    }
}

/// How tokens are chosen and when a sequence ends. Meanings and ranges are vLLM's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Tokens of the answer at most; cut to what the context leaves. 0 only with `prompt_logprobs`.
    pub max_tokens: usize,
    /// No end before this many tokens.
    pub min_tokens: usize,
    /// 0 takes the best token, the lowest id of equals.
    pub temperature: f32,
    /// Only the k best; 0 for all.
    pub top_k: usize,
    /// Only the best that together reach this probability.
    pub top_p: f32,
    /// Only those at least this fraction as likely as the best.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens in the answer, times their count.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens, each within -1e6..=1e6.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Same seed, same answer, whatever the batch; none draws one.
    pub seed: Option<u64>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<TokenId>,
    /// Go on past `stop_token_ids`.
    pub ignore_eos: bool,
    /// Log probabilities of the chosen token and of this many best; natural logarithms of the model's own distribution,
    /// before penalties and temperature.
    pub logprobs: Option<usize>,
    /// The same of the prompt's own tokens. Every position of the prompt is computed then, whatever the prefix cache holds.
    pub prompt_logprobs: Option<usize>,
    /// Answers to the same prompt.
    pub n: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            min_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            n: 1,
        }
    }
}

/// More than any logit differs from another, and far from overflow.
const LOGIT_BIAS_MAX: f32 = 1e6;

impl SamplingParams {
    /// Checks every range.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] names the first that is outside.
    pub fn validate(&self, vocab_size: usize) -> Result<(), EngineError> {
        let bad = |param, problem| Err(EngineError::Parameter { param, problem });
        let floats = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
        ];
        for (param, value, low, high) in floats {
            // Written so that NaN fails.
            if !(value >= low && value <= high) {
                let range = match param {
                    "top_p" => "above 0 and at most 1".to_owned(),
                    _ => format!("from {low} to {high}"),
                };
                return bad(param, format!("= {value} must be {range}"));
            }
        }
        let counts = [
            ("max_tokens", self.max_tokens, usize::from(self.prompt_logprobs.is_none()), usize::MAX),
            ("n", self.n, 1, 128),
            ("logprobs", self.logprobs.unwrap_or(0), 0, 1000),
            ("prompt_logprobs", self.prompt_logprobs.unwrap_or(0), 0, 1000),
            ("stop_token_ids", self.stop_token_ids.len(), 0, 1024),
            ("logit_bias", self.logit_bias.len(), 0, vocab_size),
        ];
        for (param, value, low, high) in counts {
            if value < low || value > high {
                let range = match (low, high) {
                    (low, usize::MAX) => format!("at least {low}"),
                    (0, high) => format!("at most {high}"),
                    _ => format!("from {low} to {high}"),
                };
                return bad(param, format!("= {value} must be {range}"));
            }
        }
        if self.min_tokens > self.max_tokens {
            let (least, most) = (self.min_tokens, self.max_tokens);
            return bad("min_tokens", format!("= {least} must be at most max_tokens = {most}"));
        }
        for (token, bias) in &self.logit_bias {
            if *token as usize >= vocab_size {
                return bad(
                    "logit_bias",
                    format!("names token {token}, beyond the vocabulary of {vocab_size}"),
                );
            }
            // Beyond this bound a sum of biases could reach infinity. NaN is in no range.
            if !(-LOGIT_BIAS_MAX..=LOGIT_BIAS_MAX).contains(bias) {
                let range = format!("-{LOGIT_BIAS_MAX}..={LOGIT_BIAS_MAX}");
                return bad("logit_bias", format!("of token {token} = {bias} must be {range}"));
            }
        }
        Ok(())
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A stop token.
    Stop,
    /// `max_tokens` or the context.
    Length,
    /// The caller.
    Abort,
    /// The deadline.
    Deadline,
    /// Its reader took nothing for longer than the policy allows.
    SlowReader,
    /// The model gave no usable logits, or the engine failed.
    Error,
}

/// A chosen token, or one of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub id: TokenId,
    /// Its log probability, where asked for; nothing stands before a prompt's first token, so it has none.
    pub logprob: Option<f32>,
    /// The best tokens and theirs, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// One sequence's part of a step's result: its new token, or its end, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestOutput {
    /// Whose.
    pub id: RequestId,
    /// Which of `n`.
    pub seq_idx: usize,
    /// New tokens; a stop token is among them.
    pub tokens: Vec<SampledToken>,
    /// The prompt's tokens, all of them: once, with the first sequence's first output, where
    /// [`SamplingParams::prompt_logprobs`] asked for them.
    pub prompt: Vec<SampledToken>,
    /// Set with the last output of the sequence.
    pub finish_reason: Option<FinishReason>,
    /// What went wrong, with [`FinishReason::Error`].
    pub message: Option<String>,
    /// Prompt tokens that came out of the prefix cache.
    pub cached_tokens: usize,
    /// How long the sequence waited before it first ran.
    pub queue_time: Duration,
    /// The vector that [`Request::pooling`] asked for, \[H\].
    pub embedding: Option<Vec<f32>>,
}
