//! The reference's logits and greedy continuations, whatever the chunking and the batch.
//!
//! Tolerance 1e-3: the issue's own number. Both sides sum in float32 in different orders over a few hundred terms.

mod support;

use deephold_models::{LoadOptions, Model};
use deephold_testkit::{Golden, GoldenPrompt, SyntheticModel, TempDir, assert_close, golden_dir};
use support::{Driver, load, logits, ops};

const TOLERANCE: f32 = 1e-3;
/// Below this margin float32 rounding may decide between two tokens.
const MARGIN: f32 = 0.01;

fn assert_logits(actual: &[Vec<f32>], prompt: &GoldenPrompt, what: &str) {
    assert_eq!(actual.len(), prompt.logits.len(), "{what}: rows");
    for (t, (a, e)) in actual.iter().zip(&prompt.logits).enumerate() {
        assert_close(a, e, TOLERANCE, &format!("{what}, position {t}"));
    }
}

fn check_batched(model: &dyn Model, golden: &Golden, what: &str) {
    let ops = ops(2);
    let mut driver = Driver::new(model, &ops);
    let parts: Vec<(usize, usize)> =
        golden.prompts.iter().map(|p| (driver.add(&p.ids), p.ids.len())).collect();
    let mut rows = driver.step(&parts);
    for (i, p) in golden.prompts.iter().enumerate() {
        let rest = rows.split_off(p.ids.len());
        assert_logits(&rows, p, &format!("{what}, prompt {i}, batched"));
        rows = rest;
    }
}

fn check_greedy(model: &dyn Model, golden: &Golden, what: &str) {
    let ops = ops(2);
    for (i, p) in golden.prompts.iter().enumerate() {
        let mut driver = Driver::new(model, &ops);
        let s = driver.add(&p.ids);
        let mut rows = driver.finish(s, usize::MAX);
        for (step, expected) in p.greedy.iter().enumerate() {
            let best = deephold_testkit::argmax(rows.last().expect("a row"));
            if p.margin[step] > MARGIN {
                assert_eq!(best, *expected, "{what}, prompt {i}, greedy step {step}");
            }
            // The reference's own token, so that a step within the margin does not spoil the rest.
            driver.push(s, *expected);
            rows = driver.step(&[(s, 1)]);
        }
    }
}

fn check(name: &str) {
    let golden = Golden::load(name);
    let ops = ops(2);
    for older in [false, true] {
        let what = format!("{name}{}", if older { " (older config)" } else { "" });
        let dir = TempDir::new("golden");
        SyntheticModel::golden(name, older).write(dir.path());
        let path = if older { dir.path().to_owned() } else { golden_dir(name) };
        let model = load(&path, &ops, &LoadOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
        for (i, p) in golden.prompts.iter().enumerate() {
            for chunk in [usize::MAX, 64, 5, 1] {
                let rows = logits(&*model, &ops, &p.ids, chunk);
                assert_logits(&rows, p, &format!("{what}, prompt {i}, chunks of {chunk}"));
            }
        }
        check_batched(&*model, &golden, &what);
        check_greedy(&*model, &golden, &what);
    }
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
