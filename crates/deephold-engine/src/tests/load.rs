//! Many arrivals on a machine whose steps take a known time: what tenants wait for beside each other, and a whole day.

use std::collections::HashMap;
use std::time::Duration;

use deephold_base::{Clock, ManualClock};
use deephold_loadtest::{Arrivals, Length, Lengths, Plan, Planned, Sorted, TraceOptions, read_trace};
use deephold_testkit::{shared, skip_without_shared};

use super::timed::{request, timed_with};
use crate::{EngineCore, EngineError, SchedulerPolicy};

/// What became of a tenant's requests.
#[derive(Default)]
struct Seen {
    /// Seconds until the first token, for each that had one.
    ttft: Vec<f64>,
    answered: usize,
    refused: usize,
}

impl Seen {
    fn quantile(&self, q: f64) -> f64 {
        let sorted: Sorted = self.ttft.iter().copied().collect();
        sorted.quantile(q).expect("a first token")
    }
}

/// Lets requests arrive as planned, each with the number of whom it counts for, until all that were taken have ended.
fn replay(core: &mut EngineCore, clock: &ManualClock, arrivals: &[(usize, &Planned)]) -> Vec<Seen> {
    let groups = arrivals.iter().map(|a| a.0 + 1).max().unwrap_or(0);
    let mut seen: Vec<Seen> = (0..groups).map(|_| Seen::default()).collect();
    let mut waiting_for_first: HashMap<u64, (usize, Duration)> = HashMap::new();
    let mut next = 0;
    while next < arrivals.len() || core.has_work() {
        if !core.has_work() {
            clock.advance(arrivals[next].1.at.saturating_sub(clock.now()));
        }
        while next < arrivals.len() && arrivals[next].1.at <= clock.now() {
            let (tenant, planned) = arrivals[next];
            let id = next as u64;
            let mut r = request(id, planned.prompt_tokens, planned.output_tokens);
            r.tenant = tenant.to_string().into();
            match core.add_request(r) {
                Ok(()) => _ = waiting_for_first.insert(id, (tenant, planned.at)),
                Err(EngineError::Busy { .. }) => seen[tenant].refused += 1,
                Err(e) => panic!("{e}"),
            }
            next += 1;
        }
        for o in core.step().outputs {
            let tenant = arrivals[o.id.0 as usize].0;
            if let Some((_, arrived)) = waiting_for_first.remove(&o.id.0) {
                seen[tenant].ttft.push((clock.now() - arrived).as_secs_f64());
            }
            seen[tenant].answered += usize::from(o.finish_reason.is_some());
        }
    }
    seen
}

/// The arrivals of several plans in one order, each with the number of its plan, until the first plan ends.
fn merged(plans: &[Plan]) -> Vec<(usize, &Planned)> {
    let end = plans[0].requests.last().map_or(Duration::ZERO, |r| r.at);
    let numbered = plans.iter().enumerate();
    let all = numbered.flat_map(|(tenant, plan)| plan.requests.iter().map(move |r| (tenant, r)));
    let mut all: Vec<_> = all.filter(|r| r.1.at <= end).collect();
    all.sort_by_key(|a| a.1.at);
    all
}

/// Requests of the tenant that is measured.
const MEASURED: usize = 1500;

/// One tenant asks for a tenth of what the machine holds. Another asks for its fair half, then for three times the machine: the
/// first tenant's 99th percentile until the first token moves by less than a fifth.
#[test]
fn a_flood_does_not_move_anothers_first_token() {
    // Seconds of a step, of a token, of a position attended to: slow in computing, slow in reading the weights, fast in both.
    for seconds in [[0.008, 0.0007, 1e-8], [0.020, 0.0002, 1e-8], [0.002, 0.00005, 1e-9]] {
        for output in [24.0, 100.0] {
            let of_mean = |mean: f64| Length { mean, spread: mean / 4.0 };
            let lengths = Lengths { prompt: of_mean(64.0), output: of_mean(output) };
            let plan = |rate: f64, count: usize, seed| {
                Plan::new(Arrivals::Poisson(rate), lengths, Some(count), None, seed).expect("a plan")
            };
            let run = |policy: &SchedulerPolicy, plans: &[Plan]| {
                let (mut core, clock) = timed_with(policy.clone(), seconds, |c| {
                    (c.max_num_seqs, c.max_waiting) = (32, 1024);
                });
                let seen = replay(&mut core, &clock, &merged(plans));
                (seen, clock.now().as_secs_f64())
            };
            let policy = SchedulerPolicy::default();
            let (all, took) = run(&policy, &[plan(1e4, 1000, 9)]);
            let capacity = all[0].answered as f64 / took;
            let beside = |policy: &SchedulerPolicy, share: f64| {
                let measured = plan(0.1 * capacity, MEASURED, 3);
                let count = (12.0 * share * MEASURED as f64) as usize;
                let (seen, took) = run(policy, &[measured, plan(share * capacity, count, 4)]);
                assert_eq!((seen[0].answered, seen[0].refused), (MEASURED, 0));
                let answered = seen[0].answered + seen[1].answered;
                (seen[0].quantile(0.99), answered as f64 / took / capacity)
            };
            let ((fair, _), (flooded, used)) = (beside(&policy, 0.5), beside(&policy, 3.0));
            assert!(flooded < 1.2 * fair, "{seconds:?}, {output} tokens: {fair} s, flooded {flooded} s");
            // What the flood may have it gets: shares cost the machine next to nothing.
            assert!(used > 0.9, "{seconds:?}, {output} tokens: {used} of the capacity");
        }
    }
}

/// Azure's trace of coding assistants, repeated over a day, on a machine that its bursts overload for a minute at a time: every request
/// is answered, first tokens come no later than from a queue, every block comes back. `DEEPHOLD_DAY=whole` takes 24 hours instead of
/// three, and prints them.
#[test]
fn a_day_of_arrivals_is_answered() {
    if skip_without_shared() {
        return;
    }
    let is_whole = std::env::var_os("DEEPHOLD_DAY").is_some_and(|v| v == "whole");
    let trace = shared("data/traces/AzureLLMInferenceTrace_code.csv");
    let options = TraceOptions { speed: 1.0, count: None, duration: None, is_day: true, seed: 11 };
    let mut plan = read_trace(&trace, &options).expect("a trace");
    let hour = |r: &Planned| r.at.as_secs() as usize / 3600;
    if !is_whole {
        plan.requests.retain(|r| (9..12).contains(&hour(r)));
    }
    // Seconds of a step, of a token, of a position attended to: 16,000 to 19,000 prompt tokens a second. The trace's own pace is 5,300.
    let seconds = [0.010, 0.00005, 5e-9];
    let (mut core, clock) = timed_with(SchedulerPolicy::default(), seconds, |c| {
        (c.max_num_seqs, c.max_waiting, c.num_blocks) = (32, 1024, 4000);
    });
    let arrivals: Vec<(usize, &Planned)> = plan.requests.iter().map(|r| (hour(r), r)).collect();
    let hours = replay(&mut core, &clock, &arrivals);
    let queue = in_a_queue(&arrivals, seconds);
    println!("{:7}{:>7} {:>28} {:>36}", "", "", "first token here, s", "in a queue, s");
    println!(
        "{:7}{:>7} {:>36} {:>36}",
        "hour", "answers", "median    99 %   longest", "median    99 %   longest"
    );
    let mut answered = 0;
    for (hour, (seen, queued)) in hours.iter().zip(&queue).enumerate().filter(|h| h.1.0.answered > 0) {
        answered += seen.answered;
        let [ours, theirs] = [seen, queued].map(|s| [0.5, 0.99, 1.0].map(|q| s.quantile(q)));
        let row = |q: [f64; 3]| q.map(|v| format!("{v:9.3}")).join(" ");
        println!("{hour:2}:00  {:7} {:>36} {:>36}", seen.answered, row(ours), row(theirs));
        // Short prompts go before long ones, and answers take time of their own: half is sooner, the last is a little later.
        assert!(ours[0] < theirs[0] && ours[1] < 1.1 * theirs[1] && ours[2] < 1.1 * theirs[2], "{hour}");
    }
    println!("{answered} answered of {}", plan.requests.len());
    assert_eq!(answered, plan.requests.len());
    assert_eq!((core.stats().used_blocks, core.stats().waiting), (0, 0));
}

/// What they wait for where one prompt after the other is computed in whole steps, and nothing else: answers cost nothing.
fn in_a_queue(arrivals: &[(usize, &Planned)], [step, token, position]: [f64; 3]) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut free_at = 0.0f64;
    for (group, planned) in arrivals {
        seen.resize_with(seen.len().max(group + 1), Seen::default);
        let n = planned.prompt_tokens as f64;
        let work = (n / 512.0).ceil() * step + n * token + n * n / 2.0 * position;
        let at = planned.at.as_secs_f64();
        free_at = free_at.max(at) + work;
        seen[*group].ttft.push(free_at - at);
    }
    seen
}
