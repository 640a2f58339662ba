//! Tool calls: what the published templates write for earlier calls is read back, and no cut changes the parse.

use proptest::prelude::*;
use serde_json::Value;

use crate::dialect::DsmlSection;
use crate::{AnswerParser, Dialect, ParsedAnswer, parse_answer};
use deephold_testkit::{shared, skip_without_shared};

const MARKS: Dialect = Dialect::DeepSeekMarks { fenced: false };
const V4: Dialect = Dialect::Dsml { section: DsmlSection::ToolCalls };

fn streamed(dialect: Dialect, prompt: &str, parts: &[&str]) -> ParsedAnswer {
    let mut parser = AnswerParser::new(dialect, prompt, true);
    let mut out = ParsedAnswer::default();
    for part in parts {
        parser.push(part).into_iter().for_each(|e| out.add(e));
    }
    parser.finish().into_iter().for_each(|e| out.add(e));
    out
}

fn calls(dialect: Dialect, prompt: &str, text: &str) -> (String, Vec<(String, String)>) {
    let whole = parse_answer(dialect, prompt, true, text);
    for (at, _) in text.char_indices() {
        assert_eq!(streamed(dialect, prompt, &[&text[..at], &text[at..]]), whole, "cut at {at}: {text}");
    }
    (whole.content, whole.tool_calls.into_iter().map(|c| (c.name, c.arguments)).collect())
}

fn one(name: &str, arguments: &str) -> Vec<(String, String)> {
    vec![(name.into(), arguments.into())]
}

#[test]
fn every_published_template_has_its_dialect_and_its_calls_are_read_back() {
    if skip_without_shared() {
        return;
    }
    let mut read = 0;
    let expected = [
        ("r1-tools", Dialect::DeepSeekMarks { fenced: true }),
        ("v3.1", Dialect::DeepSeekMarks { fenced: false }),
        ("v3.2", Dialect::Dsml { section: DsmlSection::FunctionCalls }),
        ("v4", V4),
        ("qwen2.5", Dialect::Qwen),
        ("qwen3", Dialect::Qwen),
    ];
    for (name, dialect) in expected {
        let source = std::fs::read_to_string(shared(&format!("golden/chat/{name}.jinja"))).unwrap();
        assert_eq!(Dialect::of_template(&source), dialect, "{name}");
        let cases = std::fs::read(shared(&format!("golden/chat/{name}.json"))).unwrap();
        let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
        for case in cases {
            let messages = case["messages"].as_array().unwrap();
            let Some(wanted) = messages.iter().find_map(|m| m["tool_calls"].as_array()) else { continue };
            let text = case["expected"].as_str().unwrap();
            // What the assistant is shown to have written: from its first mark to its end of sentence.
            let opening = dialect.opening().unwrap();
            // The last one: a system prompt may explain the format before.
            let Some(start) = text.rfind(opening) else { continue };
            let rest = &text[start..];
            let end = ["<｜end▁of▁sentence｜>", "<|im_end|>"].iter().filter_map(|e| rest.find(e)).min();
            let (content, got) = calls(dialect, "</think>", &rest[..end.unwrap_or(rest.len())]);
            assert_eq!(content, "", "{name} {}", case["case"]);
            let last = wanted.last().unwrap();
            let arguments = match &last["function"]["arguments"] {
                Value::String(s) => serde_json::from_str(s).unwrap(),
                other => other.clone(),
            };
            let got = got.last().expect("a call");
            assert_eq!(Value::from(got.0.as_str()), last["function"]["name"]);
            assert_eq!(serde_json::from_str::<Value>(&got.1).unwrap(), arguments);
            read += 1;
        }
    }
    assert!(read >= 6, "only {read} cases with calls");
}

#[test]
fn calls_in_every_dialect() {
    let text = "Let me look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"</tool_call>\"}}\n</tool_call>\n\
                <tool_call>{\"name\":\"g\"}</tool_call>\n";
    let (content, got) = calls(Dialect::Qwen, "", text);
    assert_eq!(content, "Let me look.");
    assert_eq!(got, [one("f", r#"{"x":"</tool_call>"}"#), one("g", "{}")].concat());

    let text = "好的<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜>\n\
                <｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{\"b\": [2]}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let (content, got) = calls(MARKS, "", text);
    assert_eq!(
        (content.as_str(), got),
        ("好的", [one("f", r#"{"a":1}"#), one("g", r#"{"b":[2]}"#)].concat())
    );

    let text = "x\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n\
                <｜DSML｜parameter name=\"s\" string=\"true\">a\n\"b\"</｜DSML｜parameter>\n\
                <｜DSML｜parameter name=\"n\" string=\"false\">[1, 2]</｜DSML｜parameter>\n</｜DSML｜invoke>\n\
                <｜DSML｜invoke name=\"g\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    let (content, got) = calls(V4, "", text);
    assert_eq!(content, "x");
    assert_eq!(got, [one("f", r#"{"s":"a\n\"b\"","n":[1,2]}"#), one("g", "{}")].concat());
}

/// Qwen2.5-Coder 0.5B, for one, forgets the marks that its template asks for.
#[test]
fn a_call_of_qwen_counts_without_its_marks() {
    let text = "{\"name\": \"f\", \"arguments\": {\"x\": 1}}";
    assert_eq!(calls(Dialect::Qwen, "", text), (String::new(), one("f", r#"{"x":1}"#)));
    let marked = "<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";
    let (content, got) = calls(Dialect::Qwen, "", &format!("{{\"a\": 1}} {marked}"));
    assert_eq!((content.as_str(), got), ("{\"a\": 1}", one("g", "{}")));
}

#[test]
fn an_answer_that_is_json_is_a_call_of_llama() {
    let template = "{%- if message.role == 'ipython' %}{{ '\"parameters\": ' }}{% endif %}";
    assert_eq!(Dialect::of_template(template), Dialect::Llama3);
    for (text, expected) in [
        (" <|python_tag|>{\"name\": \"f\", \"parameters\": {\"x\": [1]}}\n", one("f", r#"{"x":[1]}"#)),
        (
            "{\"name\": \"f\", \"arguments\": {}}; {\"name\": \"g\", \"parameters\": {}}",
            [one("f", "{}"), one("g", "{}")].concat(),
        ),
    ] {
        assert_eq!(calls(Dialect::Llama3, "", text), (String::new(), expected));
    }
    for text in [
        "It rains.",
        " {\"city\": \"Oslo\"}",
        "{\"name\": \"f\", \"parameters\": 3}",
        "{\"name\": \"f\", \"parameters\": {}} and more",
        "<|python_tag|>print(1)",
        "<|python",
        "{",
        "; {\"name\": \"f\", \"parameters\": {}}",
    ] {
        assert_eq!(calls(Dialect::Llama3, "", text), (text.to_owned(), vec![]), "{text}");
    }
}

#[test]
fn a_missing_think_end_and_malformed_calls_lose_nothing() {
    let text = "hm<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let parsed = parse_answer(MARKS, "…<think>\n", true, text);
    assert_eq!((parsed.reasoning.as_str(), parsed.tool_calls.len()), ("hm", 1));
    for text in [
        "a <tool_call>{\"name\": 3}</tool_call> b",
        "a <tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call> b",
        "a <tool_call>not json</tool_call> b",
        "a <tool_call>{\"name\": \"f\"",
        "a <tool_c",
    ] {
        assert_eq!(calls(Dialect::Qwen, "", text), (text.to_owned(), vec![]));
    }
    for text in ["x<｜tool▁calls▁begin｜>oops", "x <｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"]
    {
        assert_eq!(calls(MARKS, "", text), (text.to_owned(), vec![]));
    }
    let parsed = parse_answer(Dialect::Qwen, "", false, "<tool_call>{\"name\":\"f\"}</tool_call>");
    assert!(parsed.tool_calls.is_empty() && parsed.content.starts_with("<tool_call>"), "no tools, no calls");
}

const PIECES: &[&str] = &[
    "<think>",
    "</think>",
    "\n",
    " ",
    "a",
    "文",
    "<",
    "{\"name\": \"f\", \"arguments\": {\"x\": \"y\"}}",
    "<|python_tag|>",
    ";",
    "{}",
    "\"",
    "<tool_call>",
    "</tool_call>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "f<｜tool▁sep｜>",
    "function<｜tool▁sep｜>f\n```json\n",
    "\n```",
    "<｜DSML｜tool_calls>",
    "</｜DSML｜tool_calls>",
    "<｜DSML｜invoke name=\"f\">",
    "</｜DSML｜invoke>",
    "<｜DSML｜parameter name=\"s\" string=\"true\">",
    "</｜DSML｜parameter>",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn deltas_joined_equal_the_whole_parse(
        pieces in prop::collection::vec(0..PIECES.len(), 0..14),
        cuts in prop::collection::vec(0.0..1.0f64, 0..8),
        opened in any::<bool>(),
    ) {
        let text: String = pieces.iter().map(|i| PIECES[*i]).collect();
        let mut places: Vec<usize> = cuts.iter().map(|c| (c * text.len() as f64) as usize).collect();
        places.retain(|p| text.is_char_boundary(*p));
        places.extend([0, text.len()]);
        places.sort_unstable();
        let parts: Vec<&str> = places.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        let prompt = if opened { "<think>" } else { "" };
        for dialect in [Dialect::Plain, MARKS, V4, Dialect::Qwen, Dialect::Llama3] {
            let whole = parse_answer(dialect, prompt, true, &text);
            prop_assert_eq!(&streamed(dialect, prompt, &parts), &whole);
            for call in &whole.tool_calls {
                prop_assert!(serde_json::from_str::<Value>(&call.arguments).unwrap().is_object());
            }
        }
    }
}

/// Streams that made earlier parsers look at the same text again and again: every byte is looked at a few times at most,
/// whether the stream comes whole or by single characters.
#[test]
fn the_work_is_linear_in_the_stream() {
    let many = |s: &str| s.repeat(4000);
    let cases = [
        (Dialect::Qwen, format!("<tool_call>{{\"name\":\"{}", many("</tool_call>"))),
        (Dialect::Qwen, many("<tool_call>{\"name\":\"f\"}</tool_call>\n")),
        (Dialect::Qwen, many("<tool_call>{\"name\":</tool_call>")),
        (Dialect::Qwen, many("<tool_call>")),
        (Dialect::Qwen, many("</tool_call>")),
        (Dialect::Qwen, many(" \n")),
        (Dialect::Qwen, format!("<think>{}", many("\n"))),
        (Dialect::Qwen, format!("<think>{}", many("</thin\n"))),
        (Dialect::Qwen, many("<tool_cal \n<")),
        (MARKS, format!("<｜tool▁calls▁begin｜>{}", many("<｜tool▁call▁begin｜>"))),
        (
            MARKS,
            format!(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>[\"{}",
                many("<｜tool▁call▁end｜>")
            ),
        ),
        (MARKS, many("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>x<｜tool▁call▁end｜>")),
        (MARKS, format!("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}", many(" "))),
        (MARKS, format!("<｜tool▁calls▁begin｜>{}", many("\n "))),
        (
            V4,
            format!(
                "<｜DSML｜tool_calls><｜DSML｜invoke name=\"f\">{}",
                many("<｜DSML｜parameter name=\"a\">")
            ),
        ),
        (
            V4,
            format!(
                "<｜DSML｜tool_calls><｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"a\">{}",
                many("</｜DSML｜invoke>")
            ),
        ),
    ];
    for (i, (dialect, text)) in cases.iter().enumerate() {
        let mut characters = AnswerParser::new(*dialect, "", true);
        let mut whole = AnswerParser::new(*dialect, "", true);
        let mut buffer = [0u8; 4];
        for c in text.chars() {
            characters.push(c.encode_utf8(&mut buffer));
        }
        whole.push(text);
        for parser in [&mut characters, &mut whole] {
            parser.finish();
            // Thinking and calls each look once; a mark's beginning is looked at again with every character that could go on
            // with it, and no mark is longer than 40 bytes.
            let most = 42 * text.len();
            assert!(
                parser.examined() <= most,
                "case {i}: {} bytes looked at in {}",
                parser.examined(),
                text.len()
            );
        }
    }
}
