//! From logits to a token.
//!
//! Order: log probabilities of the model's own distribution, bias, penalties, temperature, then top-k, top-p and min-p,
//! then a draw. A draw depends on the seed, the sequence's number and the token's place alone, so the same request gives
//! the same answer whatever the batch.

use std::collections::HashMap;

use deephold_base::TokenId;

use crate::constraint::TokenMask;
use crate::request::{SampledToken, SamplingParams};

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

/// Chooses the next token.
///
/// `tokens` are prompt and answer so far, the answer from `num_prompt` on; `mask` says which tokens may come.
///
/// # Errors
/// Logits that are not numbers, or a mask, a bias and the minimal length that together leave no token.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    mask: Option<&TokenMask>,
    seed: u64,
    seq_idx: usize,
    tokens: &[TokenId],
    num_prompt: usize,
) -> Result<SampledToken, String> {
    // One infinite logit or NaN would make every probability NaN; minus infinity only forbids a token.
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) || logits.iter().all(|x| x.is_infinite()) {
        return Err("the model's logits are not numbers; verify its weights".into());
    }
    let mut changed = adjusted(logits, params, tokens, num_prompt);
    if let Some(mask) = mask {
        let changed = changed.get_or_insert_with(|| logits.to_vec());
        for (id, x) in changed.iter_mut().enumerate() {
            if !mask.allows(id as TokenId) {
                *x = f32::NEG_INFINITY;
            }
        }
        if changed.iter().all(|x| *x == f32::NEG_INFINITY) {
            return Err("no token may come next: the constraint, logit_bias and min_tokens contradict".into());
        }
    }
    let adjusted = changed.as_deref().unwrap_or(logits);
    let id = if params.temperature == 0.0 {
        argmax(adjusted)
    } else {
        draw(adjusted, params, uniform(seed, seq_idx as u64, (tokens.len() - num_prompt) as u64))
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

/// Logits after bias, penalties and forbidden ends; `None` where nothing changes them.
fn adjusted(logits: &[f32], p: &SamplingParams, tokens: &[TokenId], num_prompt: usize) -> Option<Vec<f32>> {
    let too_short = tokens.len() - num_prompt < p.min_tokens;
    let penalised = p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
    if !(penalised || too_short || !p.logit_bias.is_empty()) {
        return None;
    }
    let mut out = logits.to_vec();
    for (token, bias) in &p.logit_bias {
        out[*token as usize] += bias;
    }
    if penalised {
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
    Some(out)
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

fn draw(logits: &[f32], p: &SamplingParams, u: f64) -> TokenId {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let temperature = f64::from(p.temperature);
    let weight = |x: f32| ((f64::from(x) - max) / temperature).exp();
    // min-p compares with the best token's probability, whose weight is 1.
    let mut kept: Vec<(f64, TokenId)> = logits
        .iter()
        .enumerate()
        .map(|(i, x)| (weight(*x), i as TokenId))
        .filter(|(w, _)| *w > 0.0 && *w >= f64::from(p.min_p))
        .collect();
    let best_first = |a: &(f64, TokenId), b: &(f64, TokenId)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if p.top_k > 0 && p.top_k < kept.len() {
        kept.select_nth_unstable_by(p.top_k - 1, best_first);
        kept.truncate(p.top_k);
    }
    if p.top_p < 1.0 {
        kept.sort_unstable_by(best_first);
        let total: f64 = kept.iter().map(|k| k.0).sum();
        let mut sum = 0.0;
        let enough = kept.iter().position(|k| {
            sum += k.0;
            sum >= f64::from(p.top_p) * total
        });
        kept.truncate(enough.map_or(kept.len(), |i| i + 1));
    }
    // By id, so that the walk does not depend on how the sorts treat equals.
    kept.sort_unstable_by_key(|k| k.1);
    let total: f64 = kept.iter().map(|k| k.0).sum();
    let mut left = u * total;
    for (w, id) in &kept {
        left -= w;
        if left < 0.0 {
            return *id;
        }
    }
    kept.last().map_or(0, |k| k.1)
}

/// ln softmax of `id` and of the `k` best, in f64.
fn logprobs(logits: &[f32], id: TokenId, k: usize) -> (f32, Vec<(TokenId, f32)>) {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    let logprob = |x: f32| (f64::from(x) - max - sum.ln()) as f32;
    let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    let best_first =
        |a: &TokenId, b: &TokenId| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let k = k.min(order.len());
    if k > 0 && k < order.len() {
        order.select_nth_unstable_by(k - 1, best_first);
    }
    order.truncate(k);
    order.sort_unstable_by(best_first);
    let top = order.into_iter().map(|t| (t, logprob(logits[t as usize]))).collect();
    (logprob(logits[id as usize]), top)
}
