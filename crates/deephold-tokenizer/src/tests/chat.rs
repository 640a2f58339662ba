use deephold_testkit::{guide_dir, shared, skip_without_shared};
use std::path::Path;

use deephold_weights::Checkpoint;
use serde_json::{Value, json};

use crate::{ChatFormat, ChatTemplate, DeepSeekEncoding, RenderOptions, Tokenizer};

/// Templates in `shared/golden/chat`.
const PUBLISHED: [&str; 9] = [
    "qwen2.5",
    "qwen3",
    "r1-distill-llama",
    "r1-distill-qwen",
    "r1-tools",
    "v3.1",
    "v3.2",
    "v4",
    "v4-flash-0731",
];

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("file")).expect("JSON")
}

#[test]
fn every_published_template_renders_as_the_reference() {
    if skip_without_shared() {
        return;
    }
    let mut cases = 0;
    for name in PUBLISHED {
        let source = std::fs::read_to_string(shared(&format!("golden/chat/{name}.jinja"))).expect("template");
        let template = ChatTemplate::with_markers(&source, None, None).expect("compiles");
        for case in read(&shared(&format!("golden/chat/{name}.json"))).as_array().expect("cases") {
            let options = RenderOptions {
                tools: Some(case["tools"].clone()),
                add_generation_prompt: case["add_generation_prompt"].as_bool().expect("flag"),
                variables: case["variables"].as_object().expect("variables").clone(),
                ..RenderOptions::default()
            };
            let text = template.render(&case["messages"], &options).expect("renders");
            assert_eq!(text, case["expected"].as_str().expect("text"), "{name}: {}", case["case"]);
            cases += 1;
        }
    }
    assert!(cases > 80, "{cases}");
}

/// Messages and tools of a fixture; a bare list has no tools.
fn fixture(path: &str) -> (Value, Option<Value>) {
    match read(&shared(path)) {
        Value::Object(mut map) => (map.remove("messages").expect("messages"), map.remove("tools")),
        list => (list, None),
    }
}

#[test]
fn published_encodings_are_equal_byte_for_byte() {
    if skip_without_shared() {
        return;
    }
    let v32 = DeepSeekEncoding::V32;
    let v4 = DeepSeekEncoding::V4;
    for (encoding, input, output) in [
        (v32, "deepseek_v32/test_input", "deepseek_v32/test_output_vllm_parity"),
        (v32, "deepseek_v32/test_input_search_w_date", "deepseek_v32/test_output_search_w_date"),
        (v4, "deepseek_v4/test_input_1", "deepseek_v4/test_output_1"),
        (v4, "deepseek_v4/test_input_2", "deepseek_v4/test_output_2"),
    ] {
        let (messages, tools) = fixture(&format!("golden/chat/official/{input}.json"));
        let options = RenderOptions { tools, thinking: Some(true), ..RenderOptions::default() };
        let text = ChatFormat::DeepSeek(encoding).render(&messages, &options).expect("renders");
        let expected =
            std::fs::read_to_string(shared(&format!("golden/chat/official/{output}.txt"))).expect("text");
        assert_eq!(text, expected, "{input}");
    }
}

/// The V4 template takes arguments as text as well, as clients send them.
#[test]
fn the_v4_template_agrees_with_the_encoding() {
    if skip_without_shared() {
        return;
    }
    let source = std::fs::read_to_string(shared("golden/chat/v4.jinja")).expect("template");
    let bos = "<｜begin▁of▁sentence｜>".to_owned();
    let template = ChatFormat::Template(Box::new(
        ChatTemplate::with_markers(&source, Some(bos), None).expect("compiles"),
    ));
    let encoding = ChatFormat::DeepSeek(DeepSeekEncoding::V4);
    for input in ["test_input_1", "test_input_2"] {
        let (messages, tools) = fixture(&format!("golden/chat/official/deepseek_v4/{input}.json"));
        for thinking in [true, false] {
            for add_generation_prompt in [true, false] {
                let tools = tools.clone();
                let o = RenderOptions {
                    tools,
                    add_generation_prompt,
                    thinking: Some(thinking),
                    ..Default::default()
                };
                let a = template.render(&messages, &o).expect("renders");
                assert_eq!(encoding.render(&messages, &o).expect("renders"), a, "{input} {thinking}");
            }
        }
    }
}

#[test]
fn the_guide_s_template_gives_its_prompts() {
    let guide = Checkpoint::open(&guide_dir()).expect("checkpoint");
    let t = Tokenizer::from_checkpoint(&guide).expect("tokenizer");
    let format = ChatFormat::from_checkpoint(&guide, &t).expect("template");
    for case in read(&guide_dir().join("expected.json")).as_array().expect("cases") {
        let messages = json!([{ "role": "user", "content": case["question"] }]);
        let o = RenderOptions { add_generation_prompt: true, ..Default::default() };
        let ids = t.encode(&format.render(&messages, &o).expect("renders")).expect("encodes");
        assert_eq!(json!(ids), case["prompt_ids"], "{}", case["question"]);
    }
}

#[test]
fn hostile_templates_end_with_an_error() {
    let render = |source: &str| {
        let template = ChatTemplate::with_markers(source, None, None).map_err(|e| e.to_string())?;
        template
            .render(&json!([{ "role": "user", "content": "x" }]), &RenderOptions::default())
            .map_err(|e| e.to_string())
    };
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 100000000000 }}",
        "{{ 'x' * 100000000 }}{{ 'x' * 100000000 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% include 'chat' %}",
        "{% extends 'chat' %}",
        "{{ messages.nothing.at_all }}",
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ (((((((((((((((((((((((((",
    ] {
        let error = render(source).expect_err(source);
        assert!(error.starts_with("chat template: "), "{source}: {error}");
    }
    assert!(render(&"x".repeat(2 << 20)).is_err());
    // What is refused here or rendered must do neither with the stack of a test's thread, nor with much time.
    for (name, source) in deephold_testkit::hostile::templates() {
        let outcome = render(&source);
        if std::env::var_os("DEEPHOLD_SHOW").is_some() {
            println!("{name}: {:?}", outcome.as_ref().map(String::len));
        }
        assert!(outcome.as_ref().map_or(true, |text| text.len() < 256 << 20), "{name}");
    }
}

/// The limits on templates are far from what the published ones need: a million tokens of conversation, and one long text.
#[test]
fn long_conversations_fit_every_published_template() {
    if skip_without_shared() {
        return;
    }
    let mut turns = vec![json!({ "role": "system", "content": "Be short." })];
    for i in 0..500 {
        let call = json!({ "id": format!("c{i}"), "type": "function", "function": { "name": "f", "arguments": "{\"x\": [1, 2]}" } });
        turns.push(json!({ "role": "user", "content": "why? ".repeat(1000) }));
        turns.push(json!({ "role": "assistant", "content": "so ".repeat(100), "tool_calls": [call] }));
        turns.push(
            json!({ "role": "tool", "tool_call_id": format!("c{i}"), "content": "it is ".repeat(600) }),
        );
        turns.push(json!({ "role": "assistant", "content": "<think>hm</think>therefore ".repeat(20) }));
    }
    turns.push(json!({ "role": "user", "content": "and?" }));
    let long = json!(turns);
    let one = json!([{ "role": "user", "content": "a long text ".repeat(650_000) }]);
    for name in PUBLISHED {
        let source = std::fs::read_to_string(shared(&format!("golden/chat/{name}.jinja"))).expect("template");
        let template = ChatTemplate::with_markers(&source, None, None).expect("compiles");
        for (messages, least) in [(&long, 4 << 20), (&one, 7_800_000)] {
            let text = template
                .render(messages, &RenderOptions { add_generation_prompt: true, ..Default::default() });
            let text = text.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(text.len() > least, "{name}: {}", text.len());
        }
        let beyond = json!([{ "role": "user", "content": "x".repeat(9 << 20) }]);
        let refused = template.render(&beyond, &RenderOptions::default()).expect_err("too long");
        assert_eq!(refused.code(), deephold_base::ErrorCode::LimitExceeded);
    }
}

#[test]
fn python_s_ways_of_printing() {
    let render = |source: &str| {
        ChatTemplate::with_markers(source, None, None)
            .expect("compiles")
            .render(
                &json!([{ "role": "user", "content": null, "n": [1, "it's", true, null] }]),
                &RenderOptions::default(),
            )
            .expect("renders")
    };
    assert_eq!(
        render("{{ messages[0].content }}|{{ true }}|{{ messages[0]['n'] }}"),
        "None|True|[1, \"it's\", True, None]"
    );
    assert_eq!(render("{{ strftime_now('%Y') }}"), "1970");
    assert_eq!(render("a{%- generation -%} b {%- endgeneration %} c\n"), "ab c");
    assert_eq!(render("{{ '{\"a\": [1]}' | from_json | tojson }}"), "{\"a\": [1]}");
}

/// What each published template knows of tools, and that every one of them tells a model of the tools that it may call.
#[test]
fn every_template_tells_of_tools() {
    if skip_without_shared() {
        return;
    }
    let tools = json!([{ "type": "function", "function": {
        "name": "weather_in", "description": "d", "parameters": { "type": "object", "properties": { "city": { "type": "string" } } }
    } }]);
    for (name, knows, as_text) in [
        ("qwen2.5", true, false),
        ("qwen3", true, false),
        ("r1-distill-llama", false, true),
        ("r1-distill-qwen", false, false),
        ("r1-tools", true, false),
        ("v3.1", false, false),
        ("v3.2", true, false),
        ("v4", true, false),
        ("v4-flash-0731", true, false),
    ] {
        let source = std::fs::read_to_string(shared(&format!("golden/chat/{name}.jinja"))).expect("template");
        let template = ChatTemplate::with_markers(&source, None, None).expect("compiles");
        assert_eq!(
            (template.traits().knows_tools, template.traits().takes_arguments_as_text),
            (knows, as_text),
            "{name}"
        );
        let format = ChatFormat::Template(Box::new(template));
        let arguments = json!({ "city": "Rom" });
        let arguments = if as_text { arguments.to_string().into() } else { arguments };
        let messages = json!([
            { "role": "system", "content": "Be short." },
            { "role": "user", "content": "Rain?" },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "weather_in", "arguments": arguments } }
            ] },
            { "role": "tool", "tool_call_id": "c1", "content": "sunny" },
        ]);
        let options = RenderOptions {
            tools: Some(tools.clone()),
            add_generation_prompt: true,
            ..RenderOptions::default()
        };
        let text = format.render(&messages, &options).expect("renders");
        for part in ["Be short.", "Rain?", "weather_in", "\"city\"", "Rom", "sunny"] {
            assert!(text.contains(part), "{name} lacks {part}: {text}");
        }
        // The description and the call that was made.
        assert!(text.matches("weather_in").count() >= 2, "{name}: {text}");
    }
}

/// A template without any form for tools: everything is said in words, and what the model answers is parsed in that form.
#[test]
fn tools_go_in_words_where_a_template_knows_none() {
    let source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let template = ChatTemplate::with_markers(source, None, None).expect("compiles");
    let format = ChatFormat::Template(Box::new(template));
    let call =
        |name: &str| json!({ "type": "function", "function": { "name": name, "arguments": { "x": 1 } } });
    let messages = json!([
        { "role": "user", "content": "go" },
        { "role": "assistant", "content": "ok", "tool_calls": [call("f"), call("g")] },
        { "role": "tool", "content": "one" },
        { "role": "tool", "content": "two" },
        { "role": "user", "content": "and?" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let options =
        RenderOptions { tools: Some(tools), add_generation_prompt: true, ..RenderOptions::default() };
    let text = format.render(&messages, &options).expect("renders");
    let turns = "[user] go\n[assistant] ok\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"x\": 1}}\n</tool_call>\n\
                 [user] <tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\n[user] and?\n[assistant]";
    assert!(text.starts_with("[system] # Tools\n") && text.ends_with(turns), "{text}");
    let dialect = format.tool_dialect();
    let parsed = crate::parse_answer(
        dialect,
        &text,
        true,
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
    );
    assert_eq!(parsed.tool_calls.len(), 1);
    // Without tools and calls the template sees what it was given.
    let plain = json!([{ "role": "user", "content": "hi" }]);
    assert_eq!(format.render(&plain, &RenderOptions::default()).expect("renders"), "[user] hi\n");
}
