//! Configurations: what is read, and that what no model can have is refused by name.

use deephold_testkit::{GOLDEN_MODELS, SyntheticModel};
use serde_json::{Value, json};

use crate::config::Section;
use crate::family::Family;
use crate::{ModelError, architecture, ignored_tensor, parse_family};

fn parse(config: &Value) -> Result<Box<dyn Family>, ModelError> {
    let c = Section::root(config)?;
    parse_family(&c, &architecture(&c)?)
}

fn golden(name: &str) -> Value {
    SyntheticModel::golden(name, true).config
}

#[test]
fn both_spellings_of_every_golden_configuration() {
    for name in GOLDEN_MODELS {
        let (newer, older) = (SyntheticModel::golden(name, false).config, golden(name));
        let (newer, older) = (parse(&newer).expect(name), parse(&older).expect(name));
        let mut newer_decoder = newer.decoder().clone();
        // The two V3 files announce different numbers of multi-token-prediction layers.
        newer_decoder.num_nextn_predict_layers = older.decoder().num_nextn_predict_layers;
        assert_eq!(&newer_decoder, older.decoder(), "{name}");
        assert_eq!(newer.layer_cache(0), older.layer_cache(0), "{name}");
    }
}

#[test]
fn model_type_stands_in_for_architectures() {
    let mut config = golden("v3");
    config.as_object_mut().expect("an object").remove("architectures");
    assert_eq!(
        architecture(&Section::root(&config).expect("an object")).expect("one"),
        "DeepseekV3ForCausalLM"
    );
    assert!(parse(&config).is_ok());
}

#[test]
fn unknown_architectures_name_the_known() {
    let error = parse(&json!({"architectures": ["MambaForCausalLM"]})).err().expect("refused").to_string();
    assert!(error.contains("MambaForCausalLM") && error.contains("DeepseekV32ForCausalLM"), "{error}");
    let v4 = SyntheticModel::golden("v4", false).config;
    let error = parse(&v4).err().expect("refused").to_string();
    assert!(error.contains("V4 is recognised and comes next"), "{error}");
    for config in
        [json!([]), json!(null), json!({}), json!({"architectures": 7}), json!({"architectures": []})]
    {
        assert!(parse(&config).is_err(), "{config}");
    }
}

/// (golden folder, key, hostile values)
fn hostile() -> Vec<(&'static str, &'static str, Vec<Value>)> {
    let sizes = || {
        vec![
            json!(0),
            json!(-1),
            json!(1.5),
            json!("64"),
            json!(u64::MAX),
            json!(1e300),
            json!([64]),
            json!({}),
            json!(true),
        ]
    };
    let mut cases = Vec::new();
    let common = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ];
    for key in common {
        cases.push(("r1-distill-llama", key, sizes()));
        cases.push(("v3.2", key, sizes()));
    }
    for key in ["num_key_value_heads", "head_dim"] {
        cases.push(("r1-distill-llama", key, sizes()));
    }
    let deepseek = [
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "moe_intermediate_size",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
        "index_topk",
        "index_n_heads",
        "index_head_dim",
        "moe_layer_freq",
    ];
    for key in deepseek {
        cases.push(("v3.2", key, sizes()));
    }
    cases.push((
        "r1-distill-llama",
        "rms_norm_eps",
        vec![json!(0), json!(-1e-6), json!("1e-6"), json!(2), json!(null)],
    ));
    cases.push(("r1-distill-llama", "hidden_act", vec![json!("gelu"), json!(1)]));
    cases.push(("r1-distill-llama", "rope_theta", vec![json!(0), json!(-1), json!(1e300), json!("1")]));
    cases.push(("r1-distill-llama", "rope_scaling", vec![json!("yarn"), json!([])]));
    cases.push(("r1-distill-llama", "tie_word_embeddings", vec![json!("yes"), json!(1)]));
    cases.push(("r1-distill-qwen", "use_sliding_window", vec![json!(true)]));
    cases.push(("r1-distill-qwen", "layer_types", vec![json!(["full_attention"]), json!([1]), json!("x")]));
    cases.push(("v2", "topk_method", vec![json!("noaux_tc"), json!(1)]));
    cases.push(("v2", "norm_topk_prob", vec![json!(true)]));
    cases.push(("v2", "scoring_func", vec![json!("sigmoid")]));
    cases.push(("v3", "scoring_func", vec![json!("softmax")]));
    cases.push(("v3", "routed_scaling_factor", vec![json!(0), json!(-2.5), json!("x")]));
    cases.push(("v3.2", "q_lora_rank", vec![json!(null)]));
    cases.push(("v3", "quantization_config", vec![json!(7), json!([])]));
    cases
}

#[test]
fn hostile_values_are_refused_by_name() {
    for (name, key, values) in hostile() {
        for value in values {
            let mut config = golden(name);
            config[key] = value.clone();
            let Err(error) = parse(&config) else { panic!("{name}: {key} = {value} is accepted") };
            assert!(error.to_string().contains(key), "{name}: {key} = {value}: {error}");
        }
    }
}

#[test]
fn sizes_that_do_not_fit_each_other_are_refused() {
    type Case<'a> = (&'a str, &'a [(&'a str, Value)], &'a str);
    let cases: [Case<'_>; 9] = [
        ("r1-distill-llama", &[("num_key_value_heads", json!(3))], "num_key_value_heads"),
        ("r1-distill-llama", &[("head_dim", json!(15))], "head_dim"),
        ("r1-distill-qwen", &[("num_attention_heads", json!(6))], "num_attention_heads"),
        ("v3", &[("n_group", json!(3))], "n_group"),
        ("v3", &[("topk_group", json!(5))], "topk_group"),
        ("v3", &[("num_experts_per_tok", json!(9))], "num_experts_per_tok"),
        ("v3", &[("n_group", json!(16)), ("topk_group", json!(16))], "n_group"),
        ("v3", &[("n_routed_experts", json!(4096)), ("num_hidden_layers", json!(1024))], "n_routed_experts"),
        ("v3.2", &[("index_head_dim", json!(4))], "index_head_dim"),
    ];
    for (name, changes, key) in cases {
        let mut config = golden(name);
        for (k, v) in changes {
            config[*k] = v.clone();
        }
        let Err(error) = parse(&config) else { panic!("{name}: {changes:?} is accepted") };
        assert!(error.to_string().contains(key), "{name}: {error}");
    }
}

#[test]
fn hostile_rope_is_refused_by_name() {
    let cases = [
        (json!({"rope_type": "dynamic"}), "rope_type"),
        (json!({"rope_type": "yarn", "factor": 0}), "rope_scaling.factor"),
        (json!({"rope_type": "yarn", "factor": "4"}), "rope_scaling.factor"),
        (json!({"rope_type": "yarn", "factor": 4, "beta_fast": -1}), "beta_fast"),
        (json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 0}), "original_max"),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "high_freq_factor",
        ),
        (json!({"rope_type": "llama3", "factor": 8}), "low_freq_factor"),
        (json!({"rope_type": 3}), "rope_type"),
        (json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    ];
    for (scaling, key) in cases {
        let mut config = golden("r1-distill-llama");
        config["rope_scaling"] = scaling.clone();
        let Err(error) = parse(&config) else { panic!("{scaling} is accepted") };
        assert!(error.to_string().contains(key), "{scaling}: {error}");
    }
}

#[test]
fn other_packings_are_refused_with_advice() {
    for quantization in [
        json!({"quant_method": "gptq", "bits": 4}),
        json!({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}),
        json!({"quant_method": "fp8"}),
        json!({"quant_method": "fp8", "weight_block_size": [0, 128]}),
        json!({"quant_method": "fp8", "weight_block_size": [128]}),
    ] {
        let mut config = golden("v3");
        config["quantization_config"] = quantization.clone();
        let error = parse(&config).err().unwrap_or_else(|| panic!("{quantization} is accepted"));
        assert!(error.to_string().contains("quantization_config."), "{error}");
    }
}

#[test]
fn dense_layers_come_first_or_are_named() {
    let mut config = golden("v3");
    config["moe_layer_freq"] = json!(2);
    assert!(parse(&config).is_ok());
    let mut config = golden("v3.2");
    config["mlp_layer_types"] = json!(["sparse", "dense", "sparse"]);
    assert!(parse(&config).is_ok());
    config["mlp_layer_types"] = json!(["sparse", "hash_moe", "sparse"]);
    assert!(parse(&config).is_err());
}

#[test]
fn harmless_surplus_is_recognised() {
    assert!(ignored_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", 3).is_some());
    assert!(ignored_tensor("model.layers.3.eh_proj.weight", 3).expect("a reason").contains("multi-token"));
    assert!(ignored_tensor("model.layers.2.mlp.up_proj.weight", 3).is_none());
    assert!(ignored_tensor("model.layers.x.mlp", 3).is_none());
}
