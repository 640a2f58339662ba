//! Random walks through the masks: whatever is chosen among the allowed tokens must parse and fit.

use std::sync::Arc;

use deephold_base::TokenId;
use deephold_testkit::{Rng, guide_dir};
use deephold_tokenizer::{Dialect, DsmlSection, Tokenizer, parse_answer};
use deephold_weights::Checkpoint;
use serde_json::{Value, json};

use crate::{GrammarEngine, Guide, Thinking, ToolGuide};

fn engine(dialect: Dialect) -> (Arc<Tokenizer>, GrammarEngine) {
    let checkpoint = Checkpoint::open(&guide_dir()).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint).unwrap());
    (Arc::clone(&tokenizer), GrammarEngine::new(tokenizer, dialect).unwrap())
}

/// Text from allowed tokens, drawn at random; `prefer` nudges towards an end. `None` where it did not end in time.
fn walk(dialect: Dialect, guide: &Guide, thinking: Thinking, script: &str, seed: u64) -> Option<String> {
    let (tokenizer, engine) = engine(dialect);
    let mut constraint = engine.constraint(guide, thinking).unwrap();
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::new();
    for id in tokenizer.encode(script).unwrap() {
        assert!(constraint.allowed().unwrap().is_none_or(|m| m.allows(id)), "the script is free text");
        constraint.accept(id).unwrap();
        bytes.extend_from_slice(tokenizer.token_bytes(id));
    }
    let vocab = tokenizer.vocab_size() as TokenId;
    for step in 0..600 {
        let mask = constraint.allowed().unwrap();
        let allows = |id: TokenId| mask.as_ref().is_none_or(|m| m.allows(id));
        if tokenizer.stop_ids().iter().any(|id| allows(*id)) {
            constraint.accept(tokenizer.stop_ids()[0]).unwrap();
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        let allowed: Vec<TokenId> = (0..vocab).filter(|id| allows(*id)).collect();
        assert!(!allowed.is_empty(), "a dead end after {:?}", String::from_utf8_lossy(&bytes));
        // Structure first: quotes and brackets close what is open, so that walks end.
        let closes = |id: &&TokenId| {
            let token = tokenizer.token_bytes(**id);
            token.iter().all(|b| b"\"}]<>/|".contains(b) || *b >= 0x80)
        };
        let closing: Vec<&TokenId> = allowed.iter().filter(closes).collect();
        let id = match closing.is_empty() || (step < 40 && rng.next_u64().is_multiple_of(3)) {
            true => allowed[(rng.next_u64() % allowed.len() as u64) as usize],
            false => *closing[(rng.next_u64() % closing.len() as u64) as usize],
        };
        constraint.accept(id).unwrap();
        bytes.extend_from_slice(tokenizer.token_bytes(id));
    }
    None
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "enum": ["Oslo", "杭州"] },
            "days": { "type": "integer", "minimum": 1, "maximum": 9 },
            "exact": { "type": "boolean" }
        },
        "required": ["city", "days"],
        "additionalProperties": false
    })
}

#[test]
fn every_walk_fits_its_schema() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let mut ended = 0;
    for seed in 0..20 {
        let guide = Guide::JsonSchema(schema());
        let Some(text) = walk(Dialect::Plain, &guide, Thinking::Closed, "", seed) else { continue };
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(validator.is_valid(&value), "{text}");
        ended += 1;
    }
    assert!(ended >= 15, "{ended} walks ended");
}

#[test]
fn expressions_and_lark_are_matched_whole() {
    for seed in 0..10 {
        let text = walk(Dialect::Plain, &Guide::Regex("[0-9]{4}-(ab|cd)".into()), Thinking::Closed, "", seed)
            .unwrap();
        assert!(text.len() == 7 && (text.ends_with("-ab") || text.ends_with("-cd")), "{text}");
        let lark = "start: \"a\" b \"c\"\nb: /[xy]+/\n".to_owned();
        if let Some(text) = walk(Dialect::Plain, &Guide::Lark(lark), Thinking::Closed, "", seed) {
            assert!(text.starts_with('a') && text.ends_with('c'), "{text}");
        }
    }
}

#[test]
fn tool_calls_are_valid_in_every_dialect_with_thinking_on_and_off() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let dialects = [
        Dialect::Qwen,
        Dialect::DeepSeekMarks { fenced: true },
        Dialect::DeepSeekMarks { fenced: false },
        Dialect::Dsml { section: DsmlSection::FunctionCalls },
        Dialect::Dsml { section: DsmlSection::ToolCalls },
    ];
    for dialect in dialects {
        let opening = dialect.opening().unwrap();
        for (required, thinking, script) in [
            (true, Thinking::Closed, String::new()),
            (true, Thinking::Opened, "let me see</think>".to_owned()),
            (false, Thinking::Closed, format!("I will look. {opening}")),
            (false, Thinking::Opened, format!("hm</think>\n{opening}")),
        ] {
            let functions = vec![
                ("weather".to_owned(), schema()),
                (
                    "clock".to_owned(),
                    json!({"type": "object", "properties": {}, "additionalProperties": false}),
                ),
            ];
            let guide = Guide::Tools(ToolGuide { functions, required, parallel: false, otherwise: None });
            let mut ended = 0;
            for seed in 0..6 {
                let Some(text) = walk(dialect, &guide, thinking, &script, seed) else { continue };
                let prompt = if thinking == Thinking::Opened { "<think>" } else { "</think>" };
                let parsed = parse_answer(dialect, prompt, true, &text);
                assert_eq!(parsed.tool_calls.len(), 1, "{dialect:?} {text}");
                let call = &parsed.tool_calls[0];
                if call.name == "weather" {
                    let value: Value = serde_json::from_str(&call.arguments).unwrap();
                    assert!(validator.is_valid(&value), "{text}");
                } else {
                    assert_eq!((call.name.as_str(), call.arguments.as_str()), ("clock", "{}"));
                }
                ended += 1;
            }
            assert!(ended > 0, "{dialect:?}: no walk ended");
        }
    }
}

#[test]
fn hostile_grammars_are_refused_with_words() {
    let (_, engine) = engine(Dialect::Plain);
    let refused = |guide: Guide| engine.constraint(&guide, Thinking::Closed).err().map(|e| e.to_string());
    for guide in [
        Guide::Regex("(".into()),
        Guide::Regex("x".repeat(300 << 10)),
        Guide::Lark("start: start2".into()),
        Guide::JsonSchema(json!({ "type": "nonsense" })),
        Guide::JsonSchema(json!({ "$ref": "http://example.com/x" })),
        Guide::Tools(ToolGuide { functions: vec![], required: true, parallel: true, otherwise: None }),
    ] {
        let shown = format!("{guide:?}").chars().take(60).collect::<String>();
        let message = refused(guide).unwrap_or_else(|| panic!("accepted: {shown}"));
        assert!(message.len() < 800 && !message.contains('\n'), "{message}");
    }
}

/// A model that forgets the mark is bound to its call all the same: an answer that begins with a brace is one.
#[test]
fn a_bare_call_of_qwen_is_bound() {
    let functions = vec![("weather".to_owned(), schema())];
    let guide = Guide::Tools(ToolGuide { functions, required: false, parallel: true, otherwise: None });
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for (thinking, script) in [
        (Thinking::Closed, " {"),
        (Thinking::Closed, "{\"name\": \"wea"),
        (Thinking::Opened, "hm</think>\n\n{"),
    ] {
        let mut ended = 0;
        for seed in 0..6 {
            let Some(text) = walk(Dialect::Qwen, &guide, thinking, script, seed) else { continue };
            let prompt = if thinking == Thinking::Opened { "<think>" } else { "</think>" };
            let parsed = parse_answer(Dialect::Qwen, prompt, true, &text);
            assert_eq!(parsed.tool_calls.len(), 1, "{text}");
            let arguments: Value = serde_json::from_str(&parsed.tool_calls[0].arguments).unwrap();
            assert!(validator.is_valid(&arguments), "{text}");
            ended += 1;
        }
        assert!(ended > 0, "{script}");
    }
    // An answer that begins otherwise is free, braces and all.
    let script = "Words, {free} as they are";
    let text = walk(Dialect::Qwen, &guide, Thinking::Closed, script, 1);
    assert!(text.is_none_or(|t| t.starts_with(script)));
}

/// Without a mark: an answer is a call or words, never half of each.
#[test]
fn llama_calls_or_speaks() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for required in [true, false] {
        let functions = vec![("weather".to_owned(), schema())];
        let guide = Guide::Tools(ToolGuide { functions, required, parallel: true, otherwise: None });
        let script = if required { "" } else { "{\"name\"" };
        let mut ended = 0;
        for seed in 0..8 {
            let Some(text) = walk(Dialect::Llama3, &guide, Thinking::Closed, script, seed) else { continue };
            let parsed = parse_answer(Dialect::Llama3, "</think>", true, &text);
            assert_eq!((parsed.content.as_str(), parsed.tool_calls.len()), ("", 1), "{text}");
            let arguments: Value = serde_json::from_str(&parsed.tool_calls[0].arguments).unwrap();
            assert!(validator.is_valid(&arguments), "{text}");
            ended += 1;
        }
        assert!(ended > 0);
        let words =
            (!required).then(|| walk(Dialect::Llama3, &guide, Thinking::Closed, "It rains, {so} be it.", 1));
        assert!(words.flatten().is_none_or(|text| text.starts_with("It rains, {so}")));
    }
}

/// Both at once: a call, or JSON of a schema, and nothing else.
#[test]
fn an_answer_is_a_call_or_fits_the_schema() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let functions = vec![("clock".to_owned(), json!({ "type": "object", "additionalProperties": false }))];
    let otherwise = Some(schema());
    let guide = Guide::Tools(ToolGuide { functions, required: false, parallel: false, otherwise });
    let (mut calls, mut values) = (0, 0);
    for seed in 0..24 {
        let Some(text) = walk(Dialect::Qwen, &guide, Thinking::Closed, "", seed) else { continue };
        let parsed = parse_answer(Dialect::Qwen, "</think>", true, &text);
        if parsed.tool_calls.is_empty() {
            let value: Value =
                serde_json::from_str(&parsed.content).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(validator.is_valid(&value), "{text}");
            values += 1;
        } else {
            assert_eq!((parsed.tool_calls[0].name.as_str(), parsed.content.as_str()), ("clock", ""));
            calls += 1;
        }
    }
    assert!(calls > 0 && values > 0, "{calls} calls, {values} values");
}

/// Grammars that would be enormous once written out: refused or followed, but soon.
#[test]
fn bombs_do_not_go_off() {
    let (_, engine) = engine(Dialect::Plain);
    let doubling: String = (0..60).map(|i| format!("a{i}: a{} a{}\n", i + 1, i + 1)).collect::<String>()
        + "a60: \"x\"\nstart: a0\n";
    let wide =
        format!("start: {}\n", (0..20_000).map(|i| format!("\"w{i}\"")).collect::<Vec<_>>().join(" | "));
    for lark in [
        doubling,
        wide,
        "start: /a{1,100000}/\n".to_owned(),
        "start: /((((a{1,50}){1,50}){1,50}){1,50}){1,50}/\n".to_owned(),
        "start: a\na: a a | \"x\"\n".to_owned(),
        format!("start: {}\"x\"{}\n", "(".repeat(5000), ")".repeat(5000)),
    ] {
        let start = std::time::Instant::now();
        let shown: String = lark.chars().take(40).collect();
        if let Ok(mut constraint) = engine.constraint(&Guide::Lark(lark), Thinking::Closed) {
            let _ = constraint.allowed();
        }
        assert!(start.elapsed().as_secs() < 30, "{shown} took {:?}", start.elapsed());
    }
}

/// A schema cannot turn the grammar engine's checks off, nor its bounds on space.
#[test]
fn options_in_a_schema_do_not_hold() {
    let (tokenizer, engine) = engine(Dialect::Plain);
    let lenient = json!({ "type": "object", "unevaluatedWonders": 1, "contains": 3, "x-guidance": { "lenient": true } });
    let refused =
        engine.constraint(&Guide::JsonSchema(lenient), Thinking::Closed).err().map(|e| e.to_string());
    assert!(refused.as_ref().is_some_and(|e| e.contains("contains")), "{refused:?}");
    let mut constraint = engine.constraint(&Guide::JsonObject, Thinking::Closed).unwrap();
    let space = tokenizer.encode(" ").unwrap()[0];
    assert!(!constraint.allowed().unwrap().unwrap().allows(space), "no space before the object");
}

#[test]
fn thinking_is_read_off_the_prompt() {
    for (prompt, can_think, thinking) in [
        ("a<think>\n", true, Thinking::Opened),
        ("a</think>", true, Thinking::Closed),
        ("a", true, Thinking::Possible),
        ("a", false, Thinking::Closed),
    ] {
        assert_eq!(Thinking::after_prompt(prompt, can_think), thinking, "{prompt}");
    }
}

/// A model that writes ones for ever is led out of the number, but not out of a text or where nothing but digits may come.
#[test]
fn numbers_end() {
    let (tokenizer, engine) = engine(Dialect::Plain);
    let row = |schema: Value, before: &str| {
        let mut constraint = engine.constraint(&Guide::JsonSchema(schema), Thinking::Closed).unwrap();
        for id in tokenizer.encode(before).unwrap() {
            constraint.accept(id).unwrap();
        }
        let one =
            (0..tokenizer.vocab_size() as TokenId).find(|id| tokenizer.token_bytes(*id) == b"1").unwrap();
        (0..200)
            .take_while(|_| {
                let may = constraint.allowed().unwrap().unwrap().allows(one);
                may && constraint.accept(one).is_ok()
            })
            .count()
    };
    assert_eq!(row(json!({ "type": "number" }), "0."), 20);
    assert_eq!(row(json!({ "type": "array", "items": { "type": "integer" } }), "["), 20);
    assert_eq!(row(json!({ "type": "string" }), "\"a"), 200);
    assert_eq!(row(json!({ "type": "string" }), "\"at 12:30 it was 5."), 200);
    let time = json!({ "type": "string", "format": "date-time" });
    assert_eq!(row(time, "\"2018-05-22T12:17:28."), 20);
    assert_eq!(row(json!({ "type": "string", "pattern": "^[0-9]{40}$" }), "\""), 40);
}
