//! From logits to a token.
//!
//! Order: log probabilities of the model's own distribution, bias, penalties, mask, temperature, then min-p, top-k and
//! top-p, then a draw. A draw depends on the seed, the sequence's number and the token's place alone, so the same request
//! gives the same answer whatever the batch. No filter sorts the whole vocabulary: top-k selects in linear time, top-p sorts
//! as many of the best as it needs.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use deephold_base::TokenId;

use crate::constraint::TokenMask;
use crate::request::{SampledToken, SamplingParams};

const NOT_NUMBERS: &str = "the model's logits are not numbers; verify its weights";

/// A seed nobody asked for: the standard library's per-process hash keys, which the system's randomness feeds.
pub fn drawn_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A uniform number in 0..1 with 53 bits: SplitMix64's finalizer (Steele et al. 2014) over a counter.
pub fn uniform(seed: u64, seq_idx: u64, place: u64) -> f64 {
    let mut z = mix(seed ^ mix(seq_idx.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    z = mix(z.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (z >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// All that the next token depends on.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// \[V\], as the model gave them.
    pub logits: &'a [f32],
    /// How to choose; validated.
    pub params: &'a SamplingParams,
    /// Which tokens may come; all where there is none.
    pub mask: Option<&'a TokenMask>,
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's `n` sequences.
    pub seq_idx: usize,
    /// Prompt, then answer so far.
    pub tokens: &'a [TokenId],
    /// Where the answer begins in `tokens`.
    pub num_prompt: usize,
}

impl Choice<'_> {
    /// Chooses the next token.
    ///
    /// # Errors
    /// Logits that are not numbers, or a mask, a bias and the minimal length that together leave no token.
    pub fn sample(&self) -> Result<SampledToken, String> {
        let Self { logits, params, .. } = *self;
        // One infinite logit or NaN would make every probability NaN; minus infinity only forbids a token.
        if !are_usable(logits) {
            return Err(NOT_NUMBERS.into());
        }
        let changed = self.adjusted();
        let adjusted = changed.as_deref().unwrap_or(logits);
        if changed.is_some() && !are_usable(adjusted) {
            return Err(
                "no token may come next: the constraint, logit_bias, penalties and min_tokens contradict"
                    .into(),
            );
        }
        let place = (self.tokens.len() - self.num_prompt) as u64;
        let id = match params.temperature {
            0.0 => argmax(adjusted),
            _ => draw(adjusted, params, uniform(self.seed, self.seq_idx as u64, place)),
        };
        let (logprob, top) = match params.logprobs {
            Some(k) => {
                let (logprob, top) = logprobs(logits, id, k);
                (Some(logprob), top)
            }
            None => (None, Vec::new()),
        };
        Ok(SampledToken { id, logprob, top })
    }

    /// Logits after bias, penalties, forbidden ends and the mask; `None` where nothing changes them.
    fn adjusted(&self) -> Option<Vec<f32>> {
        let Self { logits, params: p, tokens, num_prompt, .. } = *self;
        let too_short = tokens.len() - num_prompt < p.min_tokens;
        let penalized =
            p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
        if !(penalized || too_short || !p.logit_bias.is_empty() || self.mask.is_some()) {
            return None;
        }
        let mut out = logits.to_vec();
        for (token, bias) in &p.logit_bias {
            out[*token as usize] += bias;
        }
        if penalized {
            let mut counts: HashMap<TokenId, u32> = HashMap::new();
            for (i, t) in tokens.iter().enumerate() {
                *counts.entry(*t).or_default() += u32::from(i >= num_prompt);
            }
            for (token, count) in counts {
                // A prompt may hold ids that the model has no row for.
                let Some(x) = out.get_mut(token as usize) else { continue };
                *x = if *x > 0.0 { *x / p.repetition_penalty } else { *x * p.repetition_penalty };
                if count > 0 {
                    *x -= p.presence_penalty + p.frequency_penalty * count as f32;
                }
            }
        }
        if too_short && !p.ignore_eos {
            for token in &p.stop_token_ids {
                if let Some(x) = out.get_mut(*token as usize) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(mask) = self.mask {
            for (id, x) in out.iter_mut().enumerate() {
                if !mask.allows(id as TokenId) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
        Some(out)
    }
}

/// A prompt's token `id` with its log probability and the `k` best of the `logits` before it.
///
/// # Errors
/// Logits that are not numbers.
pub(crate) fn score(logits: &[f32], id: TokenId, k: usize) -> Result<SampledToken, String> {
    if !are_usable(logits) {
        return Err(NOT_NUMBERS.into());
    }
    let (logprob, top) = logprobs(logits, id, k);
    Ok(SampledToken { id, logprob: Some(logprob), top })
}

/// Numbers, or minus infinity for what is forbidden, and at least one number.
fn are_usable(logits: &[f32]) -> bool {
    !logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) && logits.iter().any(|x| x.is_finite())
}

/// The best, the lowest id of equals.
fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as TokenId
}

/// A token that may be drawn: its probability against the best token's, and its id.
type Candidate = (f64, TokenId);

fn best_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Draws from usable logits by a number in 0..1.
fn draw(logits: &[f32], p: &SamplingParams, u: f64) -> TokenId {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let temperature = f64::from(p.temperature);
    // min-p compares with the best token's probability, whose weight is 1; so the best is always kept.
    let mut kept: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .map(|(i, x)| (((f64::from(*x) - max) / temperature).exp(), i as TokenId))
        .filter(|(w, _)| *w > 0.0 && *w >= f64::from(p.min_p))
        .collect();
    if p.top_k > 0 && p.top_k < kept.len() {
        kept.select_nth_unstable_by(p.top_k - 1, best_first);
        kept.truncate(p.top_k);
        // Back in the order of ids, so that sums do not depend on how the selection moved things.
        kept.sort_unstable_by_key(|c| c.1);
    }
    if p.top_p < 1.0 {
        let total: f64 = kept.iter().map(|c| c.0).sum();
        keep_nucleus(&mut kept, f64::from(p.top_p) * total);
    }
    let total: f64 = kept.iter().map(|c| c.0).sum();
    let mut left = u * total;
    for (weight, id) in &kept {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    // Rounding can leave a hair of `u * total` behind the last.
    kept.last().map_or_else(|| argmax(logits), |c| c.1)
}

/// Cuts to the fewest best that together reach `enough`, best first.
fn keep_nucleus(candidates: &mut Vec<Candidate>, enough: f64) {
    let (mut sorted, mut sum) = (0, 0.0);
    // A peaked distribution ends within the first few; a flat one costs a sort in parts.
    let mut part = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        if part < rest.len() {
            rest.select_nth_unstable_by(part - 1, best_first);
        }
        let end = part.min(rest.len());
        rest[..end].sort_unstable_by(best_first);
        for (i, candidate) in rest[..end].iter().enumerate() {
            sum += candidate.0;
            if sum >= enough {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += end;
        part *= 4;
    }
}

/// ln softmax of `id` and of the `k` best, in f64.
fn logprobs(logits: &[f32], id: TokenId, k: usize) -> (f32, Vec<(TokenId, f32)>) {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    let logprob = |x: f32| (f64::from(x) - max - sum.ln()) as f32;
    if k == 0 {
        return (logprob(logits[id as usize]), Vec::new());
    }
    let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    let best_first =
        |a: &TokenId, b: &TokenId| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let k = k.min(order.len());
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, best_first);
    }
    order.truncate(k);
    order.sort_unstable_by(best_first);
    let top = order.into_iter().map(|t| (t, logprob(logits[t as usize]))).collect();
    (logprob(logits[id as usize]), top)
}
