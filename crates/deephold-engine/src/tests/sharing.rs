//! Tenants beside each other, constraints, pooled vectors.

use std::collections::HashMap;

use deephold_base::{ManualClock, TokenId};

use super::simulation::{VOCAB, engine, engine_with};
use crate::request::{CacheSharing, FinishReason, Pooling, Request, RequestId, SamplingParams};
use crate::{Constraint, EngineCore, EngineError, SchedulerPolicy, TokenMask};

fn request(id: u64, tenant: &str, prompt: usize, max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    let mut request = Request::new(id, (0..prompt).map(|i| (i % 7) as TokenId).collect(), params);
    request.tenant = tenant.into();
    request.cache_sharing = CacheSharing::Tenant { salt: id.to_le_bytes().to_vec() };
    request
}

/// Computed tokens by tenant after `steps` steps with both always waiting.
fn shares(weights: [f32; 2], steps: usize) -> [f64; 2] {
    let mut core = engine(60, 2, 8, ManualClock::default());
    let mut id = 0;
    let mut tokens = HashMap::new();
    for _ in 0..steps {
        for (tenant, weight) in ["a", "b"].into_iter().zip(weights) {
            loop {
                id += 1;
                let mut r = request(id, tenant, 4, 4);
                r.weight = weight;
                if core.add_request(r).is_err() {
                    break;
                }
                tokens.insert(id, tenant);
            }
        }
        core.step();
    }
    let mut done = [0.0; 2];
    for (id, tenant) in tokens {
        if !core.is_live(RequestId(id)) {
            done[usize::from(tenant == "b")] += 1.0;
        }
    }
    done
}

#[test]
fn tenants_share_by_weight() {
    let [a, b] = shares([1.0, 1.0], 400);
    assert!((a / b - 1.0).abs() < 0.05, "equal weights: {a} and {b}");
    let [a, b] = shares([3.0, 1.0], 400);
    assert!((a / b - 3.0).abs() < 0.2, "three to one: {a} and {b}");
}

#[test]
fn a_flood_neither_delays_nor_shuts_out_a_newcomer() {
    let mut core = engine(60, 1, 8, ManualClock::default());
    let mut id = 0;
    loop {
        id += 1;
        match core.add_request(request(id, "flood", 4, 4)) {
            Ok(()) => {}
            Err(EngineError::Busy { .. }) => break,
            Err(e) => panic!("{e}"),
        }
    }
    core.step();
    core.add_request(request(1000, "quiet", 4, 4)).expect("a place of its own");
    let mut others = 0;
    for _ in 0..100 {
        for output in core.step().outputs.into_iter().filter(|o| o.finish_reason.is_some()) {
            if output.id == RequestId(1000) {
                assert!(others <= 2, "{others} of the flood went before");
                return;
            }
            others += 1;
        }
    }
    panic!("the newcomer starved");
}

/// A flood holds what there is of `seats` places and of blocks; the newcomer's first token, counted in steps.
fn steps_of_a_newcomer(policy: SchedulerPolicy, num_blocks: usize, seats: usize, prompt: usize) -> usize {
    let mut core = engine_with(num_blocks, seats, 32, ManualClock::default(), policy);
    for id in 0..10 {
        core.add_request(request(id, "flood", 8, 60)).expect("a place");
    }
    for _ in 0..40 {
        core.step();
    }
    core.add_request(request(1000, "quiet", prompt, 4)).expect("a place");
    let mut first = None;
    let mut tokens: HashMap<u64, usize> = HashMap::new();
    for step in 1.. {
        for output in core.step().outputs {
            first = first.or((output.id.0 == 1000).then_some(step));
            *tokens.entry(output.id.0).or_default() += output.tokens.len();
        }
        if !core.has_work() {
            break;
        }
    }
    assert_eq!(tokens[&1000], 4);
    assert_eq!(tokens[&9], 60, "who gave way has its whole answer as well");
    first.expect("a token")
}

#[test]
fn a_tenant_below_its_share_takes_a_place_and_blocks() {
    let policy = SchedulerPolicy::default();
    let none = SchedulerPolicy { preempt_for_share: false, ..policy.clone() };
    // Places run out first, then blocks: what the flood's growing answers leave does not hold the newcomer's prompt.
    for (num_blocks, seats, prompt) in [(200, 4, 8), (41, 8, 28)] {
        assert!(steps_of_a_newcomer(policy.clone(), num_blocks, seats, prompt) <= 3);
        assert!(steps_of_a_newcomer(none.clone(), num_blocks, seats, prompt) > 5);
    }
}

#[test]
fn shares_take_no_more_than_a_share() {
    let mut core = engine(200, 4, 32, ManualClock::default());
    for id in 0..8 {
        core.add_request(request(id, "a", 8, 60)).expect("a place");
    }
    core.step();
    for id in 8..16 {
        core.add_request(request(id, "b", 8, 60)).expect("a place");
    }
    // Two of four places change hands, and then none: nobody takes them back.
    for _ in 0..40 {
        core.step();
    }
    assert_eq!(core.stats().preemptions, 2);
    // Of a higher priority nothing is taken.
    let mut core = engine(200, 4, 32, ManualClock::default());
    for id in 0..4 {
        let mut urgent = request(id, "a", 8, 60);
        urgent.priority = 1;
        core.add_request(urgent).expect("a place");
    }
    core.step();
    core.add_request(request(8, "b", 8, 60)).expect("a place");
    for _ in 0..40 {
        core.step();
    }
    assert_eq!(core.stats().preemptions, 0);
}

#[test]
fn an_answer_goes_on_beside_a_long_prompt() {
    let mut core = engine(60, 4, 8, ManualClock::default());
    // The prompt is older, so it stands first in the order.
    core.add_request(request(1, "a", 60, 2)).unwrap();
    core.step();
    core.add_request(request(2, "a", 1, 20)).unwrap();
    let mut answered = 0;
    for _ in 0..12 {
        answered += core.step().outputs.iter().filter(|o| o.id == RequestId(2)).count();
    }
    // While the prompt runs, no token is left for a newcomer; from then on each step brings one.
    assert!(answered >= 4, "{answered} tokens");
    let mut core = engine(60, 4, 8, ManualClock::default());
    core.add_request(request(2, "a", 1, 20)).unwrap();
    core.step();
    let mut urgent = request(1, "a", 60, 2);
    urgent.priority = 1;
    core.add_request(urgent).unwrap();
    for _ in 0..8 {
        assert!(core.step().outputs.iter().any(|o| o.id == RequestId(2)), "the answer waited");
    }
}

#[test]
fn a_request_waits_no_longer_than_it_may_but_runs_as_long_as_it_likes() {
    let clock = ManualClock::default();
    let mut core = engine(60, 1, 8, clock.clone());
    for id in [1, 2] {
        let mut r = request(id, "a", 4, 20);
        r.queue_deadline = Some(std::time::Duration::from_millis(3));
        core.add_request(r).unwrap();
    }
    let mut ended = HashMap::new();
    while core.has_work() {
        clock.advance(std::time::Duration::from_millis(1));
        for o in core.step().outputs {
            if let Some(reason) = o.finish_reason {
                ended.insert(o.id.0, reason);
            }
        }
    }
    assert_eq!(ended[&1], FinishReason::Length, "it ran before its time was up");
    assert_eq!(ended[&2], FinishReason::Deadline, "it never ran");
}

/// Allows the tokens of a list one after another, then only token 0.
struct Script(Vec<TokenId>, usize);

impl Constraint for Script {
    fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
        let mut mask = TokenMask::none(VOCAB);
        mask.allow(self.0.get(self.1).copied().unwrap_or(0));
        Ok(Some(mask))
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        assert_eq!(token, self.0.get(self.1).copied().unwrap_or(0));
        self.1 += 1;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self(self.0.clone(), self.1))
    }
}

fn run(core: &mut EngineCore) -> HashMap<(u64, usize), Vec<TokenId>> {
    let mut answers: HashMap<(u64, usize), Vec<TokenId>> = HashMap::new();
    while core.has_work() {
        for o in core.step().outputs {
            answers.entry((o.id.0, o.seq_idx)).or_default().extend(o.tokens.iter().map(|t| t.id));
        }
    }
    answers
}

#[test]
fn a_constraint_is_obeyed_by_every_sequence_and_survives_preemption() {
    let mut core = engine(9, 3, 8, ManualClock::default());
    let mut r = request(1, "a", 3, 20);
    r.params.n = 3;
    r.params.temperature = 1.0;
    r.params.stop_token_ids = vec![0];
    r.constraint = Some(Box::new(Script(vec![5, 96, 7, 31, 5, 5, 8, 9, 10, 11, 12, 13], 0)));
    core.add_request(r).unwrap();
    let answers = run(&mut core);
    assert_eq!(answers.len(), 3);
    for ids in answers.values() {
        assert_eq!(ids, &[5, 96, 7, 31, 5, 5, 8, 9, 10, 11, 12, 13, 0]);
    }
    assert!(core.stats().preemptions > 0, "the cache was too large to test preemption");
}

#[test]
fn a_mask_that_allows_nothing_ends_the_sequence_with_words() {
    let mut core = engine(12, 1, 8, ManualClock::default());
    let mut r = request(1, "a", 3, 5);
    r.constraint = Some(Box::new(Script(vec![5000], 0)));
    core.add_request(r).unwrap();
    let out = core.step().outputs;
    assert_eq!(out[0].finish_reason, Some(FinishReason::Error));
    assert!(out[0].message.as_deref().unwrap().contains("no token"));
}

#[test]
fn a_pooled_prompt_gives_the_same_vector_however_it_is_chunked() {
    for how in [Pooling::Mean, Pooling::Last] {
        let vector = |budget: usize| {
            let mut core = engine(30, 2, budget, ManualClock::default());
            core.add_request(request(1, "a", 3, 30)).unwrap();
            let mut r = request(2, "a", 23, 1);
            r.pooling = Some(how);
            core.add_request(r).unwrap();
            let mut found = None;
            while core.has_work() {
                for o in core.step().outputs.into_iter().filter(|o| o.id == RequestId(2)) {
                    assert_eq!(o.finish_reason, Some(FinishReason::Stop));
                    found = o.embedding;
                }
            }
            found.expect("a vector").iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let whole = vector(100);
        assert_eq!(whole.len(), 16);
        assert!(whole.iter().any(|b| *b != 0));
        assert_eq!(whole, vector(2));
        assert_eq!(whole, vector(7));
    }
}
