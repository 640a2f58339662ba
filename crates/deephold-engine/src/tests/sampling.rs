use crate::request::SamplingParams;
use crate::sampler::{sample, uniform};

fn id(logits: &[f32], p: &SamplingParams, tokens: &[u32], num_prompt: usize) -> u32 {
    sample(logits, p, None, p.seed.unwrap_or(0), 0, tokens, num_prompt).unwrap().id
}

#[test]
fn greedy_takes_the_best_and_the_lowest_of_equals() {
    let p = SamplingParams::default();
    assert_eq!(id(&[1.0, 3.0, 3.0, f32::NEG_INFINITY], &p, &[0], 1), 1);
    assert!(sample(&[1.0, f32::NAN], &p, None, 0, 0, &[0], 1).is_err());
    assert!(sample(&[1.0, f32::INFINITY], &p, None, 0, 0, &[0], 1).is_err());
    assert!(sample(&[f32::NEG_INFINITY; 2], &p, None, 0, 0, &[0], 1).is_err());
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
            counts[sample(&logits, p, None, seed, 0, &[0], 1).unwrap().id as usize] += 1;
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
    let token = sample(&logits, &p, None, 0, 0, &[0], 1).unwrap();
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
