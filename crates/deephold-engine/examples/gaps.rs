//! Gaps between the tokens of an answer while a long prompt runs and short ones arrive, on a real model.
//!
//! `cargo run --release -p deephold-engine --example gaps -- MODEL [PROMPT_TOKENS]`
#![allow(missing_docs, reason = "a program to measure with")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deephold_base::{Clock, SystemClock};
use deephold_engine::{EngineConfig, EngineCore, Machine, Request, SamplingParams};
use deephold_kernels::{CacheDType, Isa, Ops, PoolOptions, ThreadPool};
use deephold_models::LoadOptions;
use deephold_weights::Checkpoint;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: gaps MODEL [PROMPT_TOKENS]")?;
    let prompt_tokens: usize = args.next().map_or(Ok(32_000), |n| n.parse())?;
    let ops =
        Arc::new(Ops::new(Isa::detect(), Arc::new(ThreadPool::new(PoolOptions { threads: 0, pin: false }))));
    let checkpoint = Arc::new(Checkpoint::open(std::path::Path::new(&path))?);
    let model = Arc::from(deephold_models::load(&checkpoint, &ops, &LoadOptions::default(), &mut |_| {})?);
    let clock = Arc::new(SystemClock::default());
    let model: Arc<dyn deephold_models::Model> = model;
    let config = EngineConfig::for_model(model.info(), prompt_tokens + 64, 16, CacheDType::F16, 8 << 30)?;
    let target = config.policy.step_target.unwrap_or_default();
    let mut core = EngineCore::new(model, Machine::new(ops, u64::MAX), config, clock.clone())?;
    let request = |id: u64, prompt: usize, max_tokens: usize| {
        let params = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
        Request::new(
            id,
            (0..prompt).map(|i| ((i as u64 * 31 + id * 7) % 40_000) as u32 + 100).collect(),
            params,
        )
    };
    core.add_request(request(0, 16, prompt_tokens))?;
    (0..8).for_each(|_| _ = core.step());
    core.add_request(request(1, prompt_tokens, 1))?;
    let start = clock.now();
    let (mut last, mut gaps, mut arrived, mut waits) = (start, Vec::new(), BTreeMap::new(), Vec::new());
    let (mut next_arrival, mut next_id) = (Duration::from_secs(2), 100);
    'long: loop {
        if clock.now() - start > next_arrival {
            next_arrival += Duration::from_secs(10);
            for _ in 0..8 {
                let id = next_id;
                next_id += 1;
                core.add_request(request(id, 64 - id as usize % 20, 8))?;
                arrived.insert(id, clock.now());
            }
        }
        for output in core.step().outputs {
            match output.id.0 {
                0 => {
                    gaps.push(clock.now() - last);
                    last = clock.now();
                }
                1 => break 'long,
                id => waits.extend(arrived.remove(&id).map(|at| clock.now() - at)),
            }
        }
    }
    let seconds = (clock.now() - start).as_secs_f64();
    println!(
        "prompt of {prompt_tokens} tokens: {seconds:.1} s, {:.0} tokens/s beside the others",
        prompt_tokens as f64 / seconds
    );
    for (name, times) in [("gaps", &mut gaps), ("first tokens of short prompts", &mut waits)] {
        times.sort_unstable();
        let at =
            |q: f64| times.get(((times.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or_default();
        let over = times.iter().filter(|t| **t > 2 * target).count();
        println!(
            "{name}: {} of them, median {:.0?}, 99 % below {:.0?}, longest {:.0?}, {over} above twice the target of {target:?}",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    Ok(())
}
