//! Real models: the same bits however a request is served.

use std::path::Path;
use std::sync::Arc;

use deephold_base::SystemClock;
use deephold_kernels::{CacheDType, Isa, Ops, PoolOptions, ThreadPool};
use deephold_models::{LoadOptions, Model};
use deephold_testkit::{guide_dir, shared, skip_without_shared};
use deephold_weights::Checkpoint;

use crate::request::{FinishReason, Request, SamplingParams};
use crate::{EngineConfig, EngineCore, EngineHandle, Machine};

fn ops(threads: usize) -> Arc<Ops> {
    Arc::new(Ops::new(Isa::detect(), Arc::new(ThreadPool::new(PoolOptions { threads, pin: false }))))
}

fn load(path: &Path) -> Arc<dyn Model> {
    let checkpoint = Arc::new(Checkpoint::open(path).unwrap());
    Arc::from(deephold_models::load(&checkpoint, &ops(2), &LoadOptions::default(), &mut |_| {}).unwrap())
}

fn engine(model: &Arc<dyn Model>, threads: usize, num_blocks: usize, budget: usize) -> EngineCore {
    let mut config = EngineConfig::for_model(model.info(), 512, 8, CacheDType::F16, 1 << 30).unwrap();
    config.num_blocks = num_blocks;
    config.max_num_batched_tokens = budget;
    let machine = Machine::new(ops(threads), u64::MAX);
    EngineCore::new(Arc::clone(model), machine, config, Arc::new(SystemClock::default())).unwrap()
}

type Answer = Vec<(u32, u32)>;

/// Tokens and the bits of their log probabilities, by request.
fn run(core: &mut EngineCore, count: usize) -> Vec<Answer> {
    let mut answers = vec![Vec::new(); count];
    while core.has_work() {
        for out in core.step().outputs {
            let tokens = out.tokens.iter().map(|t| (t.id, t.logprob.unwrap().to_bits()));
            answers[out.id.0 as usize].extend(tokens);
        }
    }
    answers
}

fn requests() -> Vec<Request> {
    let params = |i: u64| SamplingParams {
        max_tokens: 40,
        temperature: if i.is_multiple_of(2) { 0.8 } else { 0.0 },
        seed: Some(i),
        logprobs: Some(0),
        ..SamplingParams::default()
    };
    let prompt = |i: u64| (0..20 + 7 * i).map(|j| if j < 18 { 403 } else { (j * i % 500) as u32 }).collect();
    (0..6).map(|i| Request::new(i, prompt(i), params(i))).collect()
}

#[test]
fn an_answer_does_not_depend_on_how_it_is_served() {
    check_served_alike(&load(&guide_dir()));
    if !skip_without_shared() {
        check_served_alike(&load(&shared("models/stories260k")));
    }
}

fn check_served_alike(model: &Arc<dyn Model>) {
    let requests = requests();
    let alone: Vec<Answer> = requests
        .iter()
        .map(|r| {
            let mut core = engine(model, 1, 100, 512);
            core.add_request(r.clone()).unwrap();
            run(&mut core, requests.len()).swap_remove(r.id.0 as usize)
        })
        .collect();
    // Batched, in chunks, on other threads, with prefixes from the cache, and with preemptions.
    for (threads, blocks, budget) in [(2, 100, 512), (3, 100, 8), (1, 8, 64), (2, 9, 13)] {
        let mut core = engine(model, threads, blocks, budget);
        for round in 0..2 {
            for r in &requests {
                core.add_request(r.clone()).unwrap();
            }
            let answers = run(&mut core, requests.len());
            assert!(answers == alone, "{threads} threads, {blocks} blocks, budget {budget}, round {round}");
        }
        let stats = core.stats();
        assert!(stats.prefix_hit_tokens > 0);
        assert_eq!(stats.used_blocks, 0);
        if blocks < 10 {
            assert!(stats.preemptions > 0 && stats.evictions > 0, "{stats:?}");
        }
    }
}

#[test]
fn the_guide_answers_through_the_thread() {
    let model = load(&guide_dir());
    let text = std::fs::read_to_string(guide_dir().join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let handle = EngineHandle::spawn(engine(&model, 2, 300, 256)).unwrap();
    let ids = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
    };
    for (i, case) in expected.as_array().unwrap().iter().enumerate() {
        let params = SamplingParams { max_tokens: 200, stop_token_ids: vec![1], ..SamplingParams::default() };
        let mut stream = handle.submit(Request::new(i as u64, ids(&case["prompt_ids"]), params)).unwrap();
        let mut got = Vec::new();
        let mut reason = None;
        while let Some(out) = stream.next_output() {
            got.extend(out.tokens.iter().map(|t| t.id));
            reason = reason.or(out.finish_reason);
        }
        assert_eq!(got, ids(&case["answer_ids"]), "{}", case["question"]);
        assert_eq!(reason, Some(FinishReason::Stop));
    }
    // A dropped stream's work stops.
    let params = SamplingParams { max_tokens: 500, ignore_eos: true, ..SamplingParams::default() };
    drop(handle.submit(Request::new(1_000_000, vec![0, 2, 3], params)).unwrap());
    while handle.stats().running > 0 {
        std::thread::yield_now();
    }
}

/// The log probabilities of a prompt's tokens are those that the same tokens had when they were answered, to the bit, whatever
/// steps, threads, cached prefixes and preemptions the prompt goes through.
#[test]
fn a_prompt_is_scored_as_it_was_answered() {
    let model = load(&guide_dir());
    let mut core = engine(&model, 1, 100, 512);
    let prompt: Vec<u32> = (0..9).map(|i| i * 31 % 500).collect();
    let asked =
        SamplingParams { max_tokens: 70, logprobs: Some(3), ignore_eos: true, ..SamplingParams::default() };
    core.add_request(Request::new(0, prompt.clone(), asked)).unwrap();
    let mut answer = Vec::new();
    while core.has_work() {
        core.step().outputs.into_iter().for_each(|out| answer.extend(out.tokens));
    }
    assert_eq!(answer.len(), 70);
    let whole: Vec<u32> = prompt.iter().copied().chain(answer.iter().map(|t| t.id)).collect();
    // The engines that have room know the prefix from the first round.
    for (threads, blocks, budget) in [(1, 100, 512), (2, 100, 8), (2, 8, 8)] {
        let mut core = engine(&model, threads, blocks, budget);
        for round in 0..2 {
            let score = SamplingParams {
                max_tokens: round,
                prompt_logprobs: Some(3),
                n: 2,
                ..SamplingParams::default()
            };
            // Others that go first and grow: where blocks are few, they take those of the prompt when it is half scored.
            let params =
                SamplingParams { max_tokens: 30, n: 4, ignore_eos: true, ..SamplingParams::default() };
            let urgent = Request { priority: 1, ..Request::new(1, prompt.clone(), params) };
            core.add_request(urgent).unwrap();
            core.add_request(Request::new(0, whole.clone(), score)).unwrap();
            let (mut scored, mut ends) = (Vec::new(), Vec::new());
            while core.has_work() {
                for out in core.step().outputs.into_iter().filter(|o| o.id.0 == 0) {
                    assert!(out.prompt.is_empty() || scored.is_empty(), "once");
                    scored.extend(out.prompt);
                    ends.extend(out.finish_reason.map(|end| (end, out.tokens.len())));
                }
            }
            assert!(blocks > 8 || core.stats().preemptions > 0, "{:?}", core.stats());
            assert_eq!(ends, [(FinishReason::Length, round); 2]);
            assert_eq!(scored.iter().map(|t| t.id).collect::<Vec<_>>(), whole);
            assert_eq!((scored[0].logprob, scored[0].top.len()), (None, 0));
            assert_eq!(scored[prompt.len()..], answer);
        }
    }
}

#[test]
fn nothing_is_asked_for_only_where_the_prompt_is() {
    let mut core = engine(&load(&guide_dir()), 1, 100, 512);
    let params =
        |prompt_logprobs| SamplingParams { max_tokens: 0, prompt_logprobs, ..SamplingParams::default() };
    let refused = core.add_request(Request::new(0, vec![1], params(None))).unwrap_err();
    assert!(refused.to_string().contains("max_tokens"), "{refused}");
    assert!(core.add_request(Request::new(0, vec![1; 513], params(Some(0)))).is_err());
    // A prompt as long as the context, and the shortest one.
    for len in [512, 1] {
        core.add_request(Request::new(0, vec![1; len], params(Some(0)))).unwrap();
        let mut scored = 0;
        while core.has_work() {
            core.step().outputs.iter().for_each(|out| scored += out.prompt.len());
        }
        assert_eq!(scored, len);
    }
}
