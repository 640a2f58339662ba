//! Answers, whatever the format, the threads and the way of asking.
#![allow(missing_docs, reason = "a test")]

mod common;

use common::{deephold, json, ok, text, with_input};
use deephold_testkit::{TempDir, fetched_model, guide_dir, shared, skip_without_shared, testdata};
use serde_json::Value;

fn cases() -> Vec<Value> {
    let bytes = std::fs::read(guide_dir().join("expected.json")).expect("cases");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[test]
fn the_guide_answers_from_its_copy_in_the_program() {
    for case in cases().iter().step_by(24) {
        let question = case["question"].as_str().expect("question");
        let answer = case["answer"].as_str().expect("answer");
        let out = json(&["generate", "guide", "--prompt", question, "--json"]);
        assert_eq!(out["prompt_ids"], case["prompt_ids"], "{question}");
        assert_eq!(out["ids"], case["answer_ids"], "{question}");
        assert_eq!(out["text"], case["answer"]);
        assert_eq!(out["finish_reason"], "stop");
        assert_eq!(ok(&["chat", "--prompt", question]), format!("{answer}\n"));
        let piped = with_input(&["chat"], &format!("{question}\n"));
        assert_eq!((piped.code, piped.out), (0, format!("{answer}\n")));
    }
}

#[test]
fn every_written_format_answers_alike() {
    let dir = TempDir::new("formats");
    let guide = guide_dir();
    let chosen: Vec<Value> = cases().into_iter().step_by(40).collect();
    for format in ["q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "bf16"] {
        let file = dir.join(&format!("{format}.gguf"));
        let report = json(&["quantize", text(&guide), text(&file), "--format", format, "--json"]);
        let worst = report["tensors"].as_array().expect("tensors").iter();
        let worst = worst.map(|t| t["relative_rmse"].as_f64().expect("error")).fold(0.0, f64::max);
        // Half a step of 4 bits over values of unit spread is below 0.12; bf16 keeps 8 bits.
        assert!(worst < if format == "bf16" { 1e-9 } else { 0.12 }, "{format}: {worst}");
        for case in &chosen {
            let question = case["question"].as_str().expect("question");
            let out = json(&["generate", text(&file), "--prompt", question, "--json"]);
            assert_eq!(out["text"], case["answer"], "{format}: {question}");
        }
        let again = deephold(&["quantize", text(&guide), text(&file), "--format", format]);
        assert!(again.code == 73 && again.err.contains("--force"), "{}", again.err);
        let seen = json(&["model", "inspect", text(&file), "--json"]);
        assert_eq!(seen["architecture"], "DeepseekV3ForCausalLM");
        assert_eq!(seen["unsupported"].as_array().expect("list").len(), 0);
        let verified = json(&["model", "verify", text(&file), "--json"]);
        assert_eq!(verified["sound"], true, "{verified}");
    }
}

#[test]
fn a_trained_llama_tells_its_story() {
    if skip_without_shared() {
        return;
    }
    let stories = shared("models/stories260k");
    let bytes = std::fs::read(shared("models/stories260k/greedy.json")).expect("reference");
    let reference: Vec<Value> = serde_json::from_slice(&bytes).expect("JSON");
    for case in &reference {
        let ids: Vec<String> =
            case["prompt_ids"].as_array().expect("ids").iter().map(Value::to_string).collect();
        let out = json(&["generate", text(&stories), "--prompt-ids", &ids.join(","), "-n", "200", "--json"]);
        assert_eq!(out["ids"], case["ids"], "{}", case["prompt"]);
        assert_eq!(out["finish_reason"], "length");
    }
    let story = std::fs::read_to_string(shared("models/stories260k/greedy.txt")).expect("text");
    assert_eq!(ok(&["generate", text(&stories), "--prompt", "", "-n", "200"]), format!("{story}\n"));
}

#[test]
fn the_same_seed_gives_the_same_text() {
    if skip_without_shared() {
        return;
    }
    let stories = shared("models/stories260k");
    let tell = |more: &[&str]| {
        let base =
            ["generate", text(&stories), "--prompt", "Once upon a time", "-n", "40", "--temperature", "0.9"];
        ok(&[&base[..], more].concat())
    };
    let told = tell(&["--seed", "7"]);
    assert_eq!(told, tell(&["--seed", "7", "--threads", "1"]));
    assert_eq!(told, tell(&["--seed", "7", "--threads", "3", "--isa", "scalar"]).as_str().to_owned());
    assert_ne!(told, tell(&["--seed", "8"]));
}

#[test]
fn logprobs_are_natural_and_ordered() {
    if skip_without_shared() {
        return;
    }
    let stories = shared("models/stories260k");
    let out =
        json(&["generate", text(&stories), "--prompt-ids", "1", "-n", "5", "--logprobs", "512", "--json"]);
    let logprobs = out["logprobs"].as_array().expect("logprobs");
    assert_eq!(logprobs.len(), 5);
    for (token, id) in logprobs.iter().zip(out["ids"].as_array().expect("ids")) {
        let top = token["top"].as_array().expect("top");
        let values: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().expect("number")).collect();
        assert!(values.is_sorted_by(|a, b| a >= b));
        // All 512 tokens together are certain; each rounded to f32.
        let total: f64 = values.iter().map(|x| x.exp()).sum();
        assert!((total - 1.0).abs() < 1e-4, "{total}");
        assert_eq!(&token["id"], id);
        assert_eq!(token["logprob"], top[0]["logprob"], "greedy takes the best");
    }
    let usage = &out["usage"];
    assert_eq!((usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64()), (Some(1), Some(5)));
}

#[test]
fn answers_end_where_they_are_told_to() {
    let ask = |more: &[&str]| {
        json(&[&["generate", "guide", "--prompt", "What is Deephold?", "--json"], more].concat())
    };
    let whole = ask(&[]);
    let text = whole["text"].as_str().expect("text");
    let stopped = ask(&["--stop", "DeepSeek models", "--stop", "never said"]);
    let before = text.split("DeepSeek models").next().expect("text");
    assert_eq!((stopped["text"].as_str(), stopped["finish_reason"].as_str()), (Some(before), Some("stop")));
    let id = whole["ids"][3].to_string();
    let by_id = ask(&["--stop-id", &id]);
    assert_eq!(by_id["ids"].as_array().map(Vec::len), Some(4));
    let short = ask(&["-n", "3"]);
    assert_eq!(
        (short["ids"].as_array().map(Vec::len), short["finish_reason"].as_str()),
        (Some(3), Some("length"))
    );
    let on = ask(&["--ignore-eos", "-n", "60"]);
    assert_eq!(on["ids"].as_array().map(Vec::len), Some(60));
    let biased = ask(&["--logit-bias", &format!("{id}=-100")]);
    assert!(!biased["ids"].as_array().expect("ids").contains(&whole["ids"][3]));
}

/// SmolLM2's pre-tokenizer, template, weights in 4 bits and end tokens, together as a user meets them.
#[test]
fn a_fetched_model_chats_and_is_scored() {
    let Some(model) = fetched_model("smollm2-135m-instruct.q4_1.gguf") else { return };
    let read = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(testdata(file)).expect("reference")).expect("JSON")
    };
    let greedy = read("smollm2/greedy.json");
    let ask = [
        "generate",
        text(&model),
        "--prompt",
        "Explain what gravity is in two sentences.",
        "-n",
        "31",
        "--json",
    ];
    let out = json(&ask);
    assert_eq!(out["prompt_ids"], greedy["prompt_ids"], "the template's ids");
    // Activations in int8 may turn a close decision later on; the first words are sure (see the models' own test).
    let first = |v: &Value| v.as_array().expect("ids")[..4].to_vec();
    assert_eq!(first(&out["ids"]), first(&greedy["greedy_ids"]));
    let answer = ok(&[
        "chat",
        text(&model),
        "--prompt",
        "Explain what gravity is in two sentences.",
        "-n",
        "31",
        "--temperature",
        "0",
    ]);
    assert_eq!(answer.trim_end(), out["text"].as_str().expect("text"));

    if skip_without_shared() {
        return;
    }
    let shakespeare = shared("data/text/shakespeare.txt");
    let args =
        ["eval", "perplexity", text(&model), text(&shakespeare), "-c", "256", "--windows", "4", "--json"];
    let scored = json(&args);
    let reference = read("smollm2/reference.json");
    let windows = reference["windows"].as_array().expect("windows");
    // Second halves, as the command scores them: the predictions of positions 128 to 254.
    let logprobs = windows.iter().flat_map(|w| &w["logprobs"].as_array().expect("numbers")[128..]);
    let logprobs: Vec<f64> = logprobs.map(|x| x.as_f64().expect("a number")).collect();
    assert_eq!(scored["scored_tokens"].as_u64(), Some(logprobs.len() as u64));
    let expected = -logprobs.iter().sum::<f64>() / logprobs.len() as f64;
    let nll = scored["nll"].as_f64().expect("a number");
    // Five standard errors of 508 tokens at 0.1 nats, and the bias: derived in the models' own test.
    assert!((nll - expected).abs() < 0.028, "{nll} is not {expected}");
}

/// The form of an answer from files, as the API takes them.
#[test]
fn an_answer_has_the_form_that_is_asked_for() {
    let dir = TempDir::new("guided");
    let file = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).expect("a file");
        path
    };
    let schema = r#"{"type":"object","properties":{"days":{"type":"integer","minimum":1,"maximum":9}},"required":["days"],"additionalProperties":false}"#;
    let schema_file = file("schema.json", schema);
    let ask = |more: &[&str]| {
        let common =
            ["generate", "guide", "-p", "How long?", "-n", "120", "--temperature", "1", "--thinking=false"];
        deephold(&[&common[..], more].concat())
    };
    for seed in ["1", "2", "3"] {
        let out = ask(&["--seed", seed, "--json-schema", text(&schema_file)]);
        let value: Value =
            serde_json::from_str(&out.out).unwrap_or_else(|e| panic!("{e}: {} {}", out.out, out.err));
        assert!((1..=9).contains(&value["days"].as_u64().expect("days")), "{value}");
        let out = ask(&["--seed", seed, "--regex", "[0-9]{4}-(ab|cd)"]).out;
        assert!(out.trim_end().len() == 7 && (out.contains("-ab") || out.contains("-cd")), "{out}");
        let lark = file("lark", "start: \"a\" b \"c\"\nb: /[xy]{1,3}/\n");
        let out = ask(&["--seed", seed, "--grammar", text(&lark)]).out;
        assert!(out.starts_with('a') && out.trim_end().ends_with('c'), "{out}");
    }
    let tools = file(
        "tools.json",
        &format!(
            r#"[{{"name":"wait","parameters":{schema}}},{{"type":"function","function":{{"name":"go"}}}}]"#
        ),
    );
    let out = ask(&["--seed", "4", "--tools", text(&tools), "--tool-choice", "wait"]).out;
    let call: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("text")).expect("JSON");
    assert!(call["name"] == "wait" && (1..=9).contains(&arguments["days"].as_u64().expect("days")), "{call}");
    let report: Value =
        serde_json::from_str(&ask(&["--seed", "4", "--tools", text(&tools), "--json"]).out).expect("JSON");
    assert!(report["tool_calls"].is_array() && report["content"].is_string());
    let broken = file("broken.json", "{");
    for (args, words) in [
        (&["--json-schema", text(&broken)][..], "broken.json is not JSON"),
        (&["--json-schema", "absent.json"], "absent.json"),
        (&["--regex", "("], "regular expression"),
        (&["--tools", text(&schema_file)], "no list of tools"),
        (&["--tools", text(&tools), "--tool-choice", "stay"], "names no function"),
        (&["--tools", text(&tools), "--raw"], "--raw"),
        (&["--regex", "a", "--json-schema", text(&schema_file)], "--regex"),
    ] {
        let out = ask(args);
        assert!(out.code != 0 && out.err.contains(words), "{args:?}: {}", out.err);
    }
}
