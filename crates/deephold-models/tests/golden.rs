//! The reference's logits and greedy continuations, whatever the chunking and the batch.
//!
//! Tolerance, relative to the largest logit of a row. Both sides compute in float32 (unit roundoff u = 2^-24) from the same
//! exact weights, and differ only in the order of sums. A sum of K terms in another order differs by about sqrt(K) u of
//! its magnitude; K is at most 160 here, so 7.5e-7. About 30 such sums lie behind a logit (three layers of eight
//! products, norms and softmax, and the head) on each side; independent errors add as squares: sqrt(60) * 7.5e-7 = 5.8e-6.
//! Five such standard deviations are 3e-5. Measured: at most 4.2e-6 (v2; 1.4e-6 for V3.2).

mod support;

use deephold_models::{LoadOptions, Model};
use deephold_testkit::{Golden, GoldenPrompt, SyntheticModel, TempDir, argmax, assert_close, golden_dir};
use support::{Driver, load, logits, ops};

const TOLERANCE: f32 = 3e-5;
/// Below this margin float32 rounding may decide between two tokens: twice the tolerance of logits up to 52.
const MARGIN: f32 = 0.004;

fn assert_logits(actual: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: rows");
    for (t, (a, e)) in actual.iter().zip(expected).enumerate() {
        let largest = e.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert_close(a, e, TOLERANCE * largest, &format!("{what}, position {t}"));
    }
}

fn check_logits(model: &dyn Model, prompts: &[GoldenPrompt], what: &str) {
    let ops = ops(2);
    for (i, p) in prompts.iter().enumerate() {
        for chunk in [usize::MAX, 64, 5, 1] {
            let rows = logits(model, &ops, &p.ids, chunk);
            assert_logits(&rows, &p.logits, &format!("{what}, prompt {i}, chunks of {chunk}"));
        }
    }
    let mut driver = Driver::new(model, &ops);
    let parts: Vec<(usize, usize)> = prompts.iter().map(|p| (driver.add(&p.ids), p.ids.len())).collect();
    let mut rows = driver.step(&parts);
    for (i, p) in prompts.iter().enumerate() {
        let rest = rows.split_off(p.ids.len());
        assert_logits(&rows, &p.logits, &format!("{what}, prompt {i}, batched"));
        rows = rest;
    }
}

fn check_greedy(model: &dyn Model, prompts: &[GoldenPrompt], what: &str) {
    let ops = ops(2);
    for (i, p) in prompts.iter().enumerate() {
        let mut driver = Driver::new(model, &ops);
        let s = driver.add(&p.ids);
        let mut rows = driver.finish(s, usize::MAX);
        for (step, expected) in p.greedy.iter().enumerate() {
            let best = argmax(rows.last().expect("a row"));
            if p.margin[step] > MARGIN {
                assert_eq!(best, *expected, "{what}, prompt {i}, greedy step {step}");
            }
            // The reference's own token, so that a step within the margin does not spoil the rest.
            driver.push(s, *expected);
            rows = driver.step(&[(s, 1)]);
        }
    }
}

/// Both spellings of the configuration.
fn each_spelling(name: &str, check: impl Fn(&dyn Model, &str)) {
    let ops = ops(2);
    for older in [false, true] {
        let what = format!("{name}{}", if older { " (older config)" } else { "" });
        let dir = TempDir::new("golden");
        SyntheticModel::golden(name, older).write(dir.path());
        let path = if older { dir.path().to_owned() } else { golden_dir(name) };
        let model = load(&path, &ops, &LoadOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
        check(&*model, &what);
    }
}

fn check(name: &str) {
    let golden = Golden::load(name);
    each_spelling(name, |model, what| {
        check_logits(model, &golden.prompts, what);
        check_greedy(model, &golden.prompts, what);
    });
}

#[test]
fn llama() {
    check("r1-distill-llama");
}

#[test]
fn qwen2() {
    check("r1-distill-qwen");
}

#[test]
fn qwen2_tied() {
    check("r1-distill-qwen-tied");
}

#[test]
fn qwen3() {
    check("r1-0528-qwen3");
}

#[test]
fn deepseek_v2_lite() {
    check("v2-lite");
}

#[test]
fn deepseek_v2() {
    check("v2");
}

#[test]
fn deepseek_v3() {
    check("v3");
}

#[test]
fn deepseek_v32() {
    check("v3.2");
}
