//! Frequencies and scales against the formulas of transformers' `modeling_rope_utils`, evaluated in Python's doubles.

use deephold_testkit::assert_close;
use serde_json::{Value, json};

use crate::config::Section;
use crate::config::rope::{RopeConfig, RopeScaling};

fn rope(config: &Value, dim: usize) -> RopeConfig {
    RopeConfig::parse(&Section::root(config).expect("an object"), dim, 512).expect("rope")
}

fn yarn(extra: &[(&str, Value)]) -> Value {
    let mut scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    for (key, value) in extra {
        scaling[*key] = value.clone();
    }
    json!({"rope_theta": 10000.0, "rope_scaling": scaling})
}

#[test]
fn both_spellings_are_one() {
    let older = json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
    let newer = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
    assert_eq!(rope(&older, 16), rope(&newer, 16));
    let plain = json!({"rope_theta": 1e6, "rope_scaling": null});
    assert_eq!(rope(&plain, 16).scaling, RopeScaling::Default);
    assert_eq!(rope(&plain, 16).theta, 1e6);
    assert_eq!(rope(&json!({}), 16).theta, 1e4);
}

#[test]
fn factors_divide_one_frequency_each() {
    let config =
        json!({"rope_theta": 1e4, "rope_scaling": {"rope_type": "factors", "factors": [1.0, 2.0, 4.0, 8.0]}});
    let plain = rope(&json!({}), 8).inv_freq();
    let expected: Vec<f32> = plain.iter().zip([1.0, 2.0, 4.0, 8.0]).map(|(f, by)| f / by).collect();
    assert_close(&rope(&config, 8).inv_freq(), &expected, 1e-8, "factors");
    for bad in [json!([1.0]), json!([1.0, 2.0, 0.0, 1.0]), json!("x"), json!([1, 2, null, 4])] {
        let config = json!({"rope_scaling": {"rope_type": "factors", "factors": bad}});
        let section = Section::root(&config).expect("an object");
        assert!(RopeConfig::parse(&section, 8, 512).is_err(), "{config}");
    }
}

#[test]
fn llama3_bands() {
    let config = json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
    assert_close(&rope(&config, 16).inv_freq(), &LLAMA3, 1e-8, "llama3");
}

#[test]
fn yarn_ramp() {
    assert_close(&rope(&yarn(&[]), 8).inv_freq(), &YARN, 1e-8, "yarn");
    let config = yarn(&[("truncate", json!(false))]);
    assert_close(&rope(&config, 8).inv_freq(), &YARN_EXACT, 1e-8, "yarn without truncation");
    let published = json!({"rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32,
        "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}});
    let every_fourth: Vec<f32> = rope(&published, 64).inv_freq().into_iter().step_by(4).collect();
    assert_close(&every_fourth, &YARN_V3, 1e-8, "V3's yarn");
}

#[test]
fn mscale_goes_where_it_belongs() {
    // No mscale: cos and sin grow, the softmax scale does not.
    let plain = rope(&yarn(&[]), 8);
    assert!((plain.attention_factor() - 1.138_629_436_111_989).abs() < 1e-12);
    assert_eq!(plain.softmax_scale_factor(), 1.0);
    // Both alike, as DeepSeek publishes: cos and sin stay, the softmax scale takes the square.
    let v2 = [("factor", json!(40)), ("mscale", json!(0.707)), ("mscale_all_dim", json!(0.707))];
    let v2 = rope(&yarn(&v2), 8);
    assert_eq!(v2.attention_factor(), 1.0);
    assert!(
        (v2.softmax_scale_factor() - 1.589_626_165_120_873_6).abs() < 1e-12,
        "{}",
        v2.softmax_scale_factor()
    );
    // A given attention_factor wins.
    assert_eq!(rope(&yarn(&[("attention_factor", json!(0.5))]), 8).attention_factor(), 0.5);
}

const LLAMA3: [f32; 8] = [
    1.0,
    0.079_403_01,
    0.004_700_754,
    0.000_911_583_1,
    0.000_176_776_7,
    3.428_102_2e-5,
    6.647_87e-6,
    1.289_173_2e-6,
];
const YARN: [f32; 4] = [1.0, 0.0625, 0.0025, 0.00025];
const YARN_EXACT: [f32; 4] = [1.0, 0.025_595_246, 0.0025, 0.00025];
const YARN_V3: [f32; 8] =
    [1.0, 0.316_227_77, 0.1, 0.026_879_36, 0.0055, 0.000_790_569_4, 2.5e-5, 7.905_694e-6];
