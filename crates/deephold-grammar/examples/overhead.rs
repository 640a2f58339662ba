//! What a schema costs a token: the same number of tokens, free and within a schema, in turns.
//!
//! `cargo run --release -p deephold-grammar --example overhead -- MODEL [SEQUENCES [TOKENS [ROUNDS]]]`
#![allow(missing_docs, reason = "a program to measure with")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use deephold_base::SystemClock;
use deephold_engine::{Constraint, EngineConfig, EngineCore, Machine, Request, SamplingParams};
use deephold_grammar::{GrammarEngine, Guide, Thinking};
use deephold_kernels::{CacheDType, Isa, Ops, PoolOptions, ThreadPool};
use deephold_models::LoadOptions;
use deephold_tokenizer::{Dialect, Tokenizer};
use deephold_weights::Checkpoint;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: overhead MODEL [SEQUENCES [TOKENS [ROUNDS]]]")?;
    let mut number = |default: usize| args.next().map_or(Ok(default), |n| n.parse());
    let (sequences, tokens, rounds) = (number(8)?, number(64)?, number(9)?);

    let pool = ThreadPool::new(PoolOptions { threads: 0, pin: false });
    let machine = Machine::new(Arc::new(Ops::new(Isa::detect(), Arc::new(pool))), u64::MAX);
    let checkpoint = Arc::new(Checkpoint::open(Path::new(&path))?);
    let model = deephold_models::load(&checkpoint, machine.ops(), &LoadOptions::default(), &mut |_| {})?;
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint)?);
    let config = EngineConfig::for_model(model.info(), 128 + tokens, sequences, CacheDType::F16, 1 << 30)?;
    let mut core = EngineCore::new(Arc::from(model), machine, config, Arc::new(SystemClock::default()))?;

    // Records of texts, numbers and words, more of them than there are tokens.
    let schema = json!({ "type": "array", "minItems": 500, "items": {
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 40 },
            "kind": { "enum": ["bank", "grid", "city", "factory"] },
            "size": { "type": "integer", "minimum": 0, "maximum": 5000 },
            "notes": { "type": "array", "items": { "type": "string" }, "minItems": 2 },
        },
        "required": ["name", "kind", "size", "notes"],
        "additionalProperties": false,
    } });
    let start = Instant::now();
    let grammars = GrammarEngine::new(Arc::clone(&tokenizer), Dialect::Plain)?;
    let vocabulary = start.elapsed();
    let start = Instant::now();
    let constraint = grammars.constraint(&Guide::JsonSchema(schema), Thinking::Closed)?;
    println!(
        "vocabulary {:.1} ms once, schema {:.2} ms",
        1e3 * vocabulary.as_secs_f64(),
        1e3 * start.elapsed().as_secs_f64()
    );

    let prompt = tokenizer.encode("A list of sites in JSON:\n")?;
    let mut run = |constraint: Option<&dyn Constraint>| -> Result<f64, Box<dyn Error>> {
        for id in 0..sequences {
            let params = SamplingParams {
                max_tokens: tokens,
                temperature: 0.8,
                seed: Some(id as u64),
                ignore_eos: true,
                ..Default::default()
            };
            let mut request = Request::new(id as u64, prompt.clone(), params);
            request.constraint = constraint.map(Constraint::fork);
            core.add_request(request)?;
        }
        // The prompts' step is not what is measured.
        core.step();
        let (start, mut steps) = (Instant::now(), 0);
        while core.has_work() {
            for output in core.step().outputs {
                if let Some(message) = output.message {
                    return Err(message.into());
                }
            }
            steps += 1;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(steps))
    };
    let (mut free, mut bound) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (a, b) = (run(None)?, run(Some(&*constraint))?);
        if round > 0 {
            free.push(a);
            bound.push(b);
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (free, bound) = (median(free), median(bound));
    println!(
        "{sequences} sequences, {tokens} tokens, {rounds} rounds, medians: {:.3} ms a step free, {:.3} ms within the schema: {:+.1} %",
        1e3 * free,
        1e3 * bound,
        100.0 * (bound / free - 1.0)
    );
    Ok(())
}
