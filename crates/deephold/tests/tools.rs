//! Looking into models, checking, measuring; and what is said when something is wrong.
#![allow(missing_docs, reason = "a test")]

mod common;

use common::{copy_folder, deephold, json, ok, text};
use deephold_testkit::{GOLDEN_MODELS, TempDir, golden_dir, guide_dir, shared, skip_without_shared};

#[test]
fn every_golden_model_is_inspected_and_sound() {
    for name in GOLDEN_MODELS {
        let path = golden_dir(name);
        let seen = json(&["model", "inspect", text(&path), "--json"]);
        assert_eq!(seen["unsupported"].as_array().map(Vec::len), Some(0), "{name}: {seen}");
        assert!(seen["parameters"]["total"].as_u64() >= seen["parameters"]["active"].as_u64(), "{name}");
        assert!(seen["cache_bytes_per_token"]["f16"].as_u64() > Some(0), "{name}");
        let verified = json(&["model", "verify", text(&path), "--json"]);
        assert_eq!(verified["sound"], true, "{name}: {verified}");
    }
    let v4 = json(&["model", "inspect", text(&golden_dir("v4")), "--json"]);
    assert!(v4["unsupported"][0].as_str().expect("reason").contains("V4"), "{v4}");
    let listed = ok(&["model", "inspect", "guide", "--tensors"]);
    assert!(listed.contains("model.layers.3.self_attn.kv_b_proj.weight"), "{listed}");
}

#[test]
fn verify_notices_what_changed() {
    let dir = TempDir::new("verify");
    let model = dir.join("guide");
    copy_folder(&guide_dir(), &model);
    let written = ok(&["model", "verify", text(&model), "--write-manifest"]);
    assert!(written.contains("manifest written"), "{written}");
    assert!(ok(&["model", "verify", text(&model)]).contains("digests equal the manifest's"));
    let weights = model.join("model.safetensors");
    let sound = std::fs::read(&weights).expect("weights");
    // One bit near the end of the data: still finite, but not what was signed off.
    let mut bytes = sound.clone();
    let at = bytes.len() - 2;
    bytes[at] ^= 1;
    std::fs::write(&weights, &bytes).expect("write");
    let run = deephold(&["model", "verify", text(&model)]);
    assert!(run.code == 65 && run.out.contains("model.safetensors"), "{} {}", run.out, run.err);
    // A NaN is named with its tensor.
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(&weights, &bytes).expect("write");
    let run = deephold(&["model", "verify", text(&model), "--json"]);
    assert!(run.code == 65 && run.out.contains("not_finite"), "{}", run.out);
    std::fs::write(&weights, &sound[..sound.len() - 100]).expect("write");
    let run = deephold(&["model", "verify", text(&model)]);
    assert!(run.code == 65 && run.err.contains("truncated"), "{}", run.err);
}

#[test]
fn mistakes_are_named_with_an_exit_code() {
    let dir = TempDir::new("mistakes");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).expect("write");
        text(&path).to_owned()
    };
    let noise = file("noise.gguf", b"not a model at all, just text");
    let empty = file("empty.gguf", b"");
    let giant =
        file("giant.gguf", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x7f");
    let binary = file("prompt.txt", b"\xff\xfe\x00");
    let template = file(
        "loop.jinja",
        b"{% for i in range(100000) %}{% for j in range(100000) %}.{% endfor %}{% endfor %}",
    );
    let folder = dir.join("folder");
    std::fs::create_dir(&folder).expect("folder");
    let no_template = dir.join("no-template");
    copy_folder(&guide_dir(), &no_template);
    std::fs::remove_file(no_template.join("tokenizer_config.json")).expect("removed");
    let guide = guide_dir();
    let (guide, folder) = (text(&guide), text(&folder));
    let v4 = golden_dir("v4");
    let golden = golden_dir("v3");
    for (args, code, part) in [
        (vec!["generate", "absent", "-p", "x"], 66, "absent"),
        (vec!["generate", folder, "-p", "x"], 66, "config.json"),
        (vec!["generate", &noise, "-p", "x"], 65, "not a GGUF file"),
        (vec!["model", "inspect", &empty], 65, "empty.gguf"),
        (vec!["model", "inspect", &giant], 65, "giant.gguf"),
        (vec!["generate", text(&v4), "--prompt-ids", "1"], 69, "DeepSeek-V4"),
        (vec!["generate", text(&golden), "-p", "x"], 66, "tokenizer.json"),
        (vec!["generate", guide, "--prompt-ids", "1536"], 65, "1536"),
        (vec!["generate", guide, "--prompt-ids", "1", "-c", "100000"], 64, "--context"),
        (vec!["generate", guide, "-p", &"word ".repeat(1200)], 65, "context"),
        (vec!["generate", guide, "-f", &binary], 65, "UTF-8"),
        (vec!["generate", guide, "-p", "x", "--top-p", "2"], 64, "--top-p"),
        (vec!["generate", guide, "-p", "x", "--cache-memory", "1KiB"], 64, "cache"),
        (vec!["generate", "guide", "-p", "x", "--template", &template], 65, "more steps"),
        (vec!["generate", guide, "-p", "x", "--isa", "mmx"], 64, "mmx"),
        (vec!["generate", guide], 64, "--prompt"),
        (vec!["chat", text(&no_template), "-p", "x"], 66, "template"),
        (vec!["quantize", guide, "/no/such/folder/x.gguf", "-f", "q8_0"], 66, "/no/such/folder"),
        (vec!["quantize", guide, "x.gguf", "-f", "q1"], 64, "q4_k_m"),
    ] {
        let run = deephold(&args);
        assert_eq!(run.code, code, "{args:?}: {} {}", run.out, run.err);
        assert!(run.err.contains(part), "{args:?}: {}", run.err);
        assert!(!run.err.contains("panicked"), "{args:?}: {}", run.err);
    }
}

/// A depth is filled once and decoded from; figures say so.
#[test]
fn bench_decodes_from_a_depth() {
    let args = ["bench", "guide", "-p", "16", "-n", "6", "-d", "40", "-b", "1,3", "-r", "2", "--json"];
    let out = json(&args);
    let figures = out["figures"].as_array().expect("figures");
    let names: Vec<&str> = figures.iter().filter_map(|f| f["name"].as_str()).collect();
    assert_eq!(names, ["prompt 16", "decode 6 x 1 at 40", "decode 6 x 3 at 40"]);
    for figure in figures {
        let runs = figure["runs"].as_array().expect("runs");
        assert!(runs.len() == 2 && runs.iter().all(|r| r.as_f64().is_some_and(|r| r > 0.0)), "{figure}");
    }
    let too_many = deephold(&["bench", "guide", "-d", "8", "-b", "65"]);
    assert!(too_many.code == 64 && too_many.err.contains("--depth"), "{}", too_many.err);
}

#[test]
fn perplexity_compares_models() {
    if skip_without_shared() {
        return;
    }
    let dir = TempDir::new("perplexity");
    let stories = shared("models/stories260k");
    let sample = dir.join("text.txt");
    let text_bytes =
        std::fs::read_to_string(shared("models/stories260k/greedy.txt")).expect("text").repeat(3);
    std::fs::write(&sample, text_bytes).expect("write");
    let (model, sample) = (text(&stories), text(&sample));
    let same = json(&["eval", "perplexity", model, sample, "--reference", model, "-c", "128", "--json"]);
    assert_eq!(same["reference"]["kl_max"], 0.0);
    assert_eq!(same["reference"]["same_best_token"], 1.0);
    assert_eq!(same["perplexity"], same["reference"]["perplexity"]);
    assert!(same["perplexity"].as_f64().expect("number") < 20.0, "{same}");
    let file = dir.join("q4.gguf");
    ok(&["quantize", model, text(&file), "-f", "q4_0"]);
    let coarse =
        json(&["eval", "perplexity", text(&file), sample, "--reference", model, "-c", "128", "--json"]);
    let kl = coarse["reference"]["kl_mean"].as_f64().expect("number");
    assert!(kl > 0.0 && kl < 0.5, "{kl}");
    let error = coarse["reference"]["kl_standard_error"].as_f64().expect("number");
    assert!(error > 0.0 && error < kl, "{error} of {kl}");
}

#[test]
fn measurements_and_scripts_come_out() {
    let out = json(&["bench", "guide", "-p", "16", "-n", "4", "-b", "1,2", "-r", "1", "--json"]);
    let figures = out["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), 3);
    assert!(figures.iter().all(|f| f["tokens_per_s"].as_f64() > Some(0.0)), "{out}");
    assert!(out["ceilings"]["read_bytes_per_s"].as_f64() > Some(0.0));
    let doctor = json(&["doctor", "--json"]);
    assert!(doctor["isa_available"].as_array().expect("list").contains(&doctor["isa"]));
    let kernels = doctor["kernels"].as_array().expect("list");
    assert_eq!(kernels.len() + 1, doctor["isa_available"].as_array().expect("list").len());
    for set in kernels {
        assert!(set["compared"].as_array().is_some_and(|c| c.len() > 15), "{set}");
        assert_eq!(set["differ"], serde_json::Value::Array(Vec::new()), "{set}");
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(ok(&["completions", shell]).contains("perplexity"), "{shell}");
    }
    assert!(ok(&["--version"]).starts_with("deephold "));
}
