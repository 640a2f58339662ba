//! What requests and answers bring: calls in an answer's text, grammars, parameters of the sampler.

use std::sync::{Arc, OnceLock};

use deephold_engine::SamplingParams;
use deephold_engine::sampler::Choice;
use deephold_grammar::{GrammarEngine, Guide, Thinking, ToolGuide};
use deephold_testkit::guide_dir;
use deephold_tokenizer::{AnswerParser, Dialect, DsmlSection, ParsedAnswer, Tokenizer, parse_answer};
use deephold_weights::Checkpoint;

const DIALECTS: [Dialect; 7] = [
    Dialect::Plain,
    Dialect::DeepSeekMarks { fenced: true },
    Dialect::DeepSeekMarks { fenced: false },
    Dialect::Dsml { section: DsmlSection::FunctionCalls },
    Dialect::Dsml { section: DsmlSection::ToolCalls },
    Dialect::Qwen,
    Dialect::Llama3,
];

/// The number of a dialect, then an answer in it.
pub(crate) fn dialect_seeds() -> Vec<Vec<u8>> {
    let answers = [
        "only text",
        "t</think>a<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "a<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": [1, null]}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "a\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"x\" string=\"true\">1 & 2</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "a\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"x\" string=\"false\">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        "<think>t</think>a\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"<tool_call>\"}}\n</tool_call>",
        "{\"name\": \"f\", \"parameters\": {\"x\": 1}}",
    ];
    answers.iter().enumerate().map(|(i, text)| [&[i as u8][..], text.as_bytes()].concat()).collect()
}

/// Whatever the cuts, the parts of a stream are those of the whole.
pub(crate) fn dialect_run(bytes: &[u8]) -> bool {
    let Some((first, text)) = bytes.split_first() else { return false };
    let dialect = DIALECTS[usize::from(*first) % DIALECTS.len()];
    let text = String::from_utf8_lossy(text);
    let whole = parse_answer(dialect, "", true, &text);
    let mut parser = AnswerParser::new(dialect, "", true);
    let mut streamed = ParsedAnswer::default();
    for c in text.chars() {
        parser.push(c.encode_utf8(&mut [0; 4])).into_iter().for_each(|e| streamed.add(e));
    }
    parser.finish().into_iter().for_each(|e| streamed.add(e));
    assert_eq!(streamed, whole, "the cuts matter");
    dialect == Dialect::Plain || !whole.tool_calls.is_empty()
}

/// A letter for the kind, then the text.
pub(crate) fn grammar_seeds() -> Vec<Vec<u8>> {
    [
        r#"j{"type": "object", "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 9}, "b": {"enum": ["x", "y"]}}, "required": ["a"]}"#,
        r##"j{"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "anyOf": [{"$ref": "#/$defs/n"}, {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,4}$"}, "maxItems": 3}]}"##,
        r"r[a-z]+(, [a-z]+){0,3}\.|(yes|no)",
        "lstart: \"a\" word+ | NUMBER\nword: /[a-z]+/\nNUMBER: /[0-9]{1,4}/\n",
        r#"t{"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"], "additionalProperties": false}"#,
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}

fn engine() -> &'static GrammarEngine {
    static ENGINE: OnceLock<GrammarEngine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let guide = Checkpoint::open(&guide_dir()).expect("guide");
        let tokenizer = Tokenizer::from_checkpoint(&guide).expect("tokenizer");
        GrammarEngine::new(Arc::new(tokenizer), Dialect::Qwen).expect("engine")
    })
}

/// Compiles it, and follows it some tokens far.
pub(crate) fn grammar_run(bytes: &[u8]) -> bool {
    let Some((kind, text)) = bytes.split_first() else { return false };
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let schema = || serde_json::from_str(text);
    let guide = match kind {
        b'r' => Guide::Regex(text.to_owned()),
        b'l' => Guide::Lark(text.to_owned()),
        b't' => match schema() {
            Ok(schema) => Guide::Tools(ToolGuide {
                functions: vec![("f".to_owned(), schema)],
                required: true,
                parallel: true,
                otherwise: None,
            }),
            Err(_) => return false,
        },
        _ => match schema() {
            Ok(schema) => Guide::JsonSchema(schema),
            Err(_) => return false,
        },
    };
    let Ok(mut constraint) = engine().constraint(&guide, Thinking::Closed) else { return false };
    for _ in 0..8 {
        match constraint.allowed() {
            Ok(Some(mask)) => {
                let Some(token) = (0..1536).find(|t| mask.allows(*t)) else { break };
                if constraint.accept(token).is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(_) => return false,
        }
    }
    true
}

const VOCABULARY: usize = 64;

/// Parameters as little-endian words, in the order of [`sampler_run`]; then logits.
pub(crate) fn sampler_seeds() -> Vec<Vec<u8>> {
    let words = |floats: &[f32], rest: &[u32]| -> Vec<u8> {
        let floats = floats.iter().flat_map(|f| f.to_le_bytes());
        floats.chain(rest.iter().flat_map(|w| w.to_le_bytes())).collect()
    };
    vec![
        words(&[0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], &[0, 0, 5, 16]),
        words(&[0.7, 0.9, 0.05, 1.1, 0.5, -0.5, 2.0], &[20, 3, 5, 16]),
        words(&[100.0, 1e-30, 1.0, 100.0, 100.0, -100.0, -1e6], &[1, 1000, 63, 1]),
    ]
}

/// A valid choice is a token of the vocabulary, or a refusal in words.
pub(crate) fn sampler_run(bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    let mut word = || words.next().unwrap_or(0);
    let mut float = || f32::from_bits(word());
    let [temperature, top_p, min_p] = [float(), float(), float()];
    let [repetition_penalty, presence_penalty, frequency_penalty, bias] =
        [float(), float(), float(), float()];
    let params = SamplingParams {
        temperature,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        top_k: word() as usize,
        logprobs: Some(word() as usize),
        logit_bias: vec![(word(), bias)],
        ..SamplingParams::default()
    };
    let tokens: Vec<u32> = (0..word() % 64).collect();
    let mut logits: Vec<f32> = (0..VOCABULARY).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
    logits.iter_mut().zip(words).for_each(|(logit, bits)| *logit = f32::from_bits(bits));
    if params.validate(VOCABULARY).is_err() {
        return false;
    }
    let choice = Choice {
        logits: &logits,
        params: &params,
        mask: None,
        seed: 1,
        seq_idx: 0,
        tokens: &tokens,
        num_prompt: tokens.len() / 2,
    };
    let Ok(token) = choice.sample() else { return false };
    assert!((token.id as usize) < VOCABULARY, "token {}", token.id);
    assert!(token.logprob.is_none_or(|p| p <= 0.0), "log probability {:?}", token.logprob);
    true
}
