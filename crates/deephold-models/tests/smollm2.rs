//! A really trained model of 135 M parameters (SmolLM2-135M-Instruct), stored in 4 bits, against numpy over the same
//! dequantised weights (`testdata/scripts/make_smollm2_reference.py`).
//!
//! With matrices in float32 only the order of sums differs. 30 layers of 8 sums of at most 1536 terms, on both sides, give
//! sqrt(2 * 240 * 1536) u = 5e-5 of a logit's magnitude (u = 2^-24; the reasoning is that of `golden.rs`), which is at most
//! 40 here: 2e-3. Measured: 3.3e-5.
//!
//! With matrices as stored, activations are rounded to int8 in groups of 32: to steps of amax / 127, an error of
//! amax / 127 / sqrt(12), which for roughly normal groups (amax = 2.4 rms) is 0.55 % of their rms. A layer's two branches
//! have two such roundings in a row, 0.8 % each; branches add with independent errors, and the head adds its own 0.55 %:
//! 1 % of the spread of the logits, here about 9, so 0.09 nats for each token's log-probability (measured: 0.086). The mean
//! over 1020 tokens then has a standard error of 0.003, and a bias of at most half the variance, 0.005.

mod support;

use std::sync::Arc;

use deephold_kernels::{Isa, Ops, PoolOptions, ThreadPool};
use deephold_models::{LoadOptions, Model};
use deephold_quant::DType;
use deephold_testkit::{argmax, assert_same_bits, fetched_model, testdata};
use serde_json::Value;
use support::{Driver, load, logits};

/// Of a logit or log-probability, with matrices in float32.
const EXACT: f64 = 2e-3;
/// Of the mean log-probability, with activations in int8: five standard errors and the bias.
const MEAN: f64 = 0.02;
/// Root mean square of the error of a token's log-probability: the derived 0.09, doubled for what the normal groups leave out.
const RMS: f64 = 0.18;
/// A best token that leads by this much stays the best: ten times the derived error of a log-probability.
const MARGIN: f32 = 0.9;

struct Window {
    ids: Vec<u32>,
    /// Of the token after each position but the last.
    logprobs: Vec<f64>,
}

fn ops(isa: Isa) -> Ops {
    Ops::new(isa, Arc::new(ThreadPool::new(PoolOptions { threads: 2, pin: false })))
}

fn json(file: &str) -> Value {
    let bytes = std::fs::read(testdata("smollm2").join(file)).expect("a reference");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().expect("ids").iter().map(|x| x.as_u64().expect("an id") as u32).collect()
}

fn windows() -> Vec<Window> {
    let numbers =
        |v: &Value| v.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("one")).collect();
    let one = |w: &Value| Window { ids: ids(&w["ids"]), logprobs: numbers(&w["logprobs"]) };
    json("reference.json")["windows"].as_array().expect("windows").iter().map(one).collect()
}

/// Our log-probability minus the reference's, for every scored token.
fn errors(model: &dyn Model, ops: &Ops, windows: &[Window]) -> Vec<f64> {
    let mut out = Vec::new();
    for w in windows {
        let rows = logits(model, ops, &w.ids, usize::MAX);
        for (i, expected) in w.logprobs.iter().enumerate() {
            let max = f64::from(rows[i].iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = rows[i].iter().map(|x| (f64::from(*x) - max).exp()).sum();
            out.push(f64::from(rows[i][w.ids[i + 1] as usize]) - max - sum.ln() - expected);
        }
    }
    out
}

#[test]
fn smollm2_is_computed_as_numpy_does() {
    let Some(path) = fetched_model("smollm2-135m-instruct.q4_1.gguf") else { return };
    let (windows, greedy) = (windows(), json("greedy.json"));
    let (prompt, answer) = (ids(&greedy["prompt_ids"]), ids(&greedy["greedy_ids"]));
    let widest = ops(Isa::detect());
    let exact = load(&path, &widest, &LoadOptions { quantize_to: Some(DType::F32) }).expect("a model");
    let stored = load(&path, &widest, &LoadOptions::default()).expect("a model");

    // Scalar code takes a minute for a window: a short one must give the widest set's bits.
    let short: Vec<u32> = windows[0].ids[..12].to_vec();
    let expected = logits(&*stored, &widest, &short, usize::MAX);
    for isa in Isa::available() {
        let ops = ops(isa);
        let model = load(&path, &ops, &LoadOptions::default()).expect("a model");
        let rows = logits(&*model, &ops, &short, usize::MAX);
        rows.iter().zip(&expected).for_each(|(a, e)| assert_same_bits(a, e, isa.name()));
        if isa == Isa::Scalar {
            continue;
        }
        let errors = errors(&*model, &ops, &windows);
        let n = errors.len() as f64;
        let mean = errors.iter().sum::<f64>() / n;
        let rms = (errors.iter().map(|e| e * e).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < MEAN && rms < RMS, "{isa}: mean {mean}, root mean square {rms}");
    }
    for (i, error) in errors(&*exact, &widest, &windows).iter().enumerate() {
        assert!(error.abs() < EXACT, "token {i}: {error}");
    }

    let mut drivers = [Driver::new(&*exact, &widest), Driver::new(&*stored, &widest)];
    let mut rows = drivers
        .each_mut()
        .map(|d| (d.add(&prompt), d.finish(0, usize::MAX).pop().expect("a row")))
        .map(|r| r.1);
    for pair in greedy["top5_first"].as_array().expect("logits") {
        let (id, logit) = (pair[0].as_u64().expect("an id") as usize, pair[1].as_f64().expect("a logit"));
        // Written with three decimals.
        assert!(
            (f64::from(rows[0][id]) - logit).abs() < EXACT + 5e-4,
            "{id}: {} is not {logit}",
            rows[0][id]
        );
    }
    let mut sure = 0;
    for (step, token) in answer.iter().enumerate() {
        assert_eq!(argmax(&rows[0]), *token, "float32, step {step}");
        let best = rows[0][*token as usize];
        let second = (0..rows[0].len()).filter(|i| *i != *token as usize).map(|i| rows[0][i]);
        if best - second.fold(f32::NEG_INFINITY, f32::max) > MARGIN {
            assert_eq!(argmax(&rows[1]), *token, "as stored, step {step}");
            sure += 1;
        }
        for (driver, row) in drivers.iter_mut().zip(&mut rows) {
            driver.push(0, *token);
            *row = driver.step(&[(0, 1)]).pop().expect("a row");
        }
    }
    assert!(sure >= answer.len() / 2, "only {sure} steps of {} are sure", answer.len());
}
