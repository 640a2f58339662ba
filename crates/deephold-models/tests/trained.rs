//! Really trained models answer as their publishers recorded, from full weights and from quantised ones.

mod support;

use std::path::{Path, PathBuf};

use deephold_models::LoadOptions;
use deephold_quant::DType;
use deephold_testkit::{guide_dir, shared, skip_without_shared};
use serde_json::Value;
use support::{Driver, load, ops};

struct Case {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

fn cases(path: PathBuf, answer: &str) -> Vec<Case> {
    let text =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let json: Value = serde_json::from_str(&text).expect("cases");
    let one = |c: &Value| Case { prompt: ids(&c["prompt_ids"]), answer: ids(&c[answer]) };
    json.as_array().expect("a list of cases").iter().map(one).collect()
}

fn check(path: &Path, cases: &[Case], options: &LoadOptions) {
    let ops = ops(2);
    let model = load(path, &ops, options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for case in cases {
        let mut driver = Driver::new(&*model, &ops);
        let s = driver.add(&case.prompt);
        assert_eq!(driver.greedy(s, case.answer.len()), case.answer, "prompt {:?}, {options:?}", case.prompt);
    }
}

#[test]
fn the_story_teller_tells_its_stories() {
    if skip_without_shared() {
        return;
    }
    let cases = cases(shared("models/stories260k/greedy.json"), "ids");
    assert!(!cases.is_empty());
    check(&shared("models/stories260k"), &cases, &LoadOptions::default());
}

#[test]
fn the_guide_gives_every_answer() {
    let cases = cases(guide_dir().join("expected.json"), "answer_ids");
    assert!(cases.len() > 5);
    check(&guide_dir(), &cases, &LoadOptions::default());
}

#[test]
fn the_guide_gives_every_answer_in_q8_0() {
    let cases = cases(guide_dir().join("expected.json"), "answer_ids");
    let options = LoadOptions { quantize_to: Some(DType::Q8_0) };
    check(&guide_dir(), &cases, &options);
}
