use proptest::prelude::*;

use crate::TokenMask;
use crate::request::SampledToken;
use crate::request::SamplingParams;
use crate::sampler::{Choice, uniform};

fn sample(
    logits: &[f32],
    params: &SamplingParams,
    mask: Option<&TokenMask>,
    seed: u64,
    tokens: &[u32],
    num_prompt: usize,
) -> Result<SampledToken, String> {
    Choice { logits, params, mask, seed, seq_idx: 0, tokens, num_prompt }.sample()
}

fn id(logits: &[f32], p: &SamplingParams, tokens: &[u32], num_prompt: usize) -> u32 {
    sample(logits, p, None, p.seed.unwrap_or(0), tokens, num_prompt).unwrap().id
}

#[test]
fn greedy_takes_the_best_and_the_lowest_of_equals() {
    let p = SamplingParams::default();
    assert_eq!(id(&[1.0, 3.0, 3.0, f32::NEG_INFINITY], &p, &[0], 1), 1);
    assert!(sample(&[1.0, f32::NAN], &p, None, 0, &[0], 1).is_err());
    assert!(sample(&[1.0, f32::INFINITY], &p, None, 0, &[0], 1).is_err());
    assert!(sample(&[f32::NEG_INFINITY; 2], &p, None, 0, &[0], 1).is_err());
}

#[test]
fn penalties_and_bias_change_the_choice_as_documented() {
    let logits = [1.0, 0.9, -1.0];
    let base = SamplingParams::default();
    // Repetition counts prompt and answer, presence and frequency the answer alone.
    let repeat = SamplingParams { repetition_penalty: 2.0, ..base.clone() };
    assert_eq!(id(&logits, &repeat, &[0], 1), 1);
    let presence = SamplingParams { presence_penalty: 0.5, ..base.clone() };
    assert_eq!(id(&logits, &presence, &[0], 1), 0);
    assert_eq!(id(&logits, &presence, &[2, 0], 1), 1);
    let frequency = SamplingParams { frequency_penalty: 0.06, ..base.clone() };
    assert_eq!(id(&logits, &frequency, &[2, 0], 1), 0);
    assert_eq!(id(&logits, &frequency, &[2, 0, 0], 1), 1);
    let bias = SamplingParams { logit_bias: vec![(2, 5.0)], ..base.clone() };
    assert_eq!(id(&logits, &bias, &[0], 1), 2);
    let end = SamplingParams { stop_token_ids: vec![0], min_tokens: 1, ..base };
    assert_eq!(id(&logits, &end, &[5], 1), 1);
    assert_eq!(id(&logits, &end, &[5, 5], 1), 0);
}

#[test]
fn draws_follow_the_distribution_and_the_filters() {
    // Probabilities 0.5, 0.3, 0.2.
    let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
    let count = |p: &SamplingParams| {
        let mut counts = [0u32; 3];
        for seed in 0..20_000 {
            counts[sample(&logits, p, None, seed, &[0], 1).unwrap().id as usize] += 1;
        }
        counts
    };
    let p = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    for (got, expected) in count(&p).into_iter().zip([10_000.0, 6_000.0, 4_000.0]) {
        // Five standard deviations of a binomial of 20,000.
        assert!((f64::from(got) - expected).abs() < 5.0 * 71.0, "{got}");
    }
    assert_eq!(count(&SamplingParams { top_k: 1, ..p.clone() }), [20_000, 0, 0]);
    assert_eq!(count(&SamplingParams { top_k: 2, ..p.clone() })[2], 0);
    assert_eq!(count(&SamplingParams { top_p: 0.5, ..p.clone() }), [20_000, 0, 0]);
    assert_eq!(count(&SamplingParams { top_p: 0.79, ..p.clone() })[2], 0);
    assert_eq!(count(&SamplingParams { min_p: 0.5, ..p.clone() })[2], 0);
    assert!(count(&SamplingParams { temperature: 0.1, ..p })[0] > 19_800);
}

#[test]
fn logprobs_are_the_model_s_own() {
    let logits = [2.0f32, 1.0, 0.0];
    let p = SamplingParams { logprobs: Some(2), logit_bias: vec![(2, 100.0)], ..SamplingParams::default() };
    let token = sample(&logits, &p, None, 0, &[0], 1).unwrap();
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    assert_eq!(token.id, 2);
    assert!((f64::from(token.logprob.unwrap()) + sum.ln()).abs() < 1e-6);
    assert_eq!(token.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn uniform_numbers_are_uniform_and_independent_of_order() {
    let mut bins = [0u32; 16];
    let n = 160_000u64;
    for i in 0..n {
        let u = uniform(i % 7, i % 3, i);
        assert!((0.0..1.0).contains(&u));
        bins[(u * 16.0) as usize] += 1;
    }
    // Chi squared with 15 degrees of freedom: above 44 in one of ten thousand.
    let expected = n as f64 / 16.0;
    let chi: f64 = bins.iter().map(|b| (f64::from(*b) - expected).powi(2) / expected).sum();
    assert!(chi < 44.0, "{chi}");
    assert_ne!(uniform(1, 0, 0), uniform(0, 1, 0));
}

#[test]
fn parameters_out_of_range_are_named() {
    let base = SamplingParams::default();
    let cases = [
        ("temperature", SamplingParams { temperature: f32::NAN, ..base.clone() }),
        ("temperature", SamplingParams { temperature: -1.0, ..base.clone() }),
        ("top_p", SamplingParams { top_p: 0.0, ..base.clone() }),
        ("min_p", SamplingParams { min_p: 1.5, ..base.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base.clone() }),
        ("max_tokens", SamplingParams { max_tokens: 0, ..base.clone() }),
        ("n", SamplingParams { n: 0, ..base.clone() }),
        ("logprobs", SamplingParams { logprobs: Some(100_000), ..base.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(10, 0.0)], ..base.clone() }),
    ];
    for (name, params) in cases {
        let e = params.validate(10).unwrap_err().to_string();
        assert!(e.contains(name), "{e}");
    }
    base.validate(10).unwrap();
}

/// What the filters keep, by sorting everything: the definition.
fn naive(logits: &[f32], p: &SamplingParams, u: f64) -> u32 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |x: f32| ((f64::from(x) - max) / f64::from(p.temperature)).exp();
    let mut all: Vec<(f64, u32)> = logits.iter().enumerate().map(|(i, x)| (weight(*x), i as u32)).collect();
    all.retain(|c| c.0 > 0.0 && c.0 >= f64::from(p.min_p));
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if p.top_k > 0 {
        all.truncate(p.top_k);
    }
    let mut by_id = all.clone();
    by_id.sort_by_key(|c| c.1);
    if p.top_p < 1.0 {
        let enough = f64::from(p.top_p) * by_id.iter().map(|c| c.0).sum::<f64>();
        let mut sum = 0.0;
        let last = all.iter().position(|c| {
            sum += c.0;
            sum >= enough
        });
        all.truncate(last.map_or(all.len(), |i| i + 1));
    } else {
        all = by_id;
    }
    let mut left = u * all.iter().map(|c| c.0).sum::<f64>();
    for (weight, id) in &all {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    all.last().expect("the best is always kept").1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn filters_keep_what_sorting_would_keep(
        shape in 0..5usize,
        seed in any::<u64>(),
        vocab in 1..700usize,
        temperature in prop_oneof![Just(1e-6f32), Just(100.0), 0.05f32..3.0],
        top_k in prop_oneof![Just(0usize), Just(1), 1..800usize],
        top_p in prop_oneof![Just(1.0f32), Just(f32::MIN_POSITIVE), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), Just(1.0), 0.0f32..0.5],
    ) {
        let mut rng = deephold_testkit::Rng::new(seed);
        let logits: Vec<f32> = (0..vocab).map(|i| match shape {
            0 => rng.normal() * 3.0,
            1 => 1.0,
            2 => if i % 3 == 0 { f32::NEG_INFINITY } else { rng.below(4) as f32 },
            3 => rng.uniform() * f32::MAX,
            _ => if i == vocab / 2 { 60.0 } else { rng.normal() },
        }).collect();
        prop_assume!(logits.iter().any(|x| x.is_finite()));
        let p = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        let got = sample(&logits, &p, None, seed, &[0], 1).unwrap().id;
        prop_assert!(logits[got as usize] > f32::NEG_INFINITY);
        prop_assert_eq!(got, naive(&logits, &p, uniform(seed, 0, 0)));
    }

    /// Whatever the parameters: an allowed token or an error, never a token that is excluded.
    #[test]
    fn an_excluded_token_never_comes(
        seed in any::<u64>(),
        allowed in prop::collection::vec(any::<bool>(), 40),
        biases in prop::collection::vec((0..40u32, prop_oneof![Just(1e6f32), Just(-1e6), -5.0f32..5.0]), 0..40),
        repetition_penalty in prop_oneof![Just(0.01f32), Just(100.0), 0.5f32..2.0],
        temperature in prop_oneof![Just(0.0f32), Just(1e-6), Just(100.0), Just(1.0)],
        min_tokens in 0..2usize,
    ) {
        let mut rng = deephold_testkit::Rng::new(seed);
        let scale = [1.0, 1e30, 3e38][rng.below(3)];
        let logits: Vec<f32> = (0..40).map(|_| rng.uniform() * scale).collect();
        let mut mask = TokenMask::none(40);
        (0..40).filter(|i| allowed[*i]).for_each(|i| mask.allow(i as u32));
        let stop_token_ids: Vec<u32> = (0..20).collect();
        let p = SamplingParams {
            temperature, repetition_penalty, min_tokens, stop_token_ids, logit_bias: biases, ..SamplingParams::default()
        };
        p.validate(40).unwrap();
        match sample(&logits, &p, Some(&mask), seed, &[3, 5, 7], 3) {
            Ok(token) => {
                prop_assert!(allowed[token.id as usize]);
                prop_assert!(min_tokens == 0 || token.id >= 20, "an end before its time");
            }
            Err(message) => prop_assert!(message.contains("no token") || message.contains("contradict")),
        }
    }
}

#[test]
fn a_bias_that_is_no_number_is_refused_and_an_exclusion_of_all_is_an_error() {
    for bias in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30] {
        let p = SamplingParams { logit_bias: vec![(1, bias)], ..SamplingParams::default() };
        assert!(p.validate(10).unwrap_err().to_string().contains("logit_bias"), "{bias}");
    }
    let p = SamplingParams { stop_token_ids: vec![0, 1], min_tokens: 2, ..SamplingParams::default() };
    let error = sample(&[1.0, 2.0], &p, None, 0, &[0], 1).unwrap_err();
    assert!(error.contains("no token"), "{error}");
}
