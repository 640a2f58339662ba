//! The run: requests go out when the plan says, whatever the server does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{Client, Plan, Texts};

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Gaps between tokens that a run keeps at most, over all its requests: 80 MB.
const GAPS_MAX: usize = 20_000_000;

/// Text that is written before a run begins, in bytes.
const WRITTEN_MAX: usize = 256 << 20;

/// How a run is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Requests at once at most. With a bound the loop is closed: a slow server slows its arrivals down.
    pub at_once_max: Option<usize>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sent so far.
    pub sent: usize,
    /// Ended, well or not.
    pub ended: usize,
    /// Of these, not well.
    pub failed: usize,
}

/// One request as it went.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Its place in the plan.
    pub place: usize,
    /// When it was sent, from the run's start.
    pub sent: Duration,
    /// Between its planned arrival and its sending.
    pub late: Duration,
    /// From its sending to the first part of the answer (TTFT).
    pub first: Option<Duration>,
    /// From its sending to the answer's end (E2E).
    pub whole: Duration,
    /// Between parts of the answer, in µs.
    pub gaps: Vec<u32>,
    /// Events that carried a part of the answer.
    pub events: u32,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server counts them.
    pub output_tokens: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
}

/// All that came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Every request that ended, in the order of the plan.
    pub requests: Vec<Measured>,
    /// From the first sending to the last end.
    pub wall: Duration,
    /// Requests that were under way at once, at most.
    pub at_once_max: usize,
    /// Whether it was stopped before its end.
    pub is_stopped: bool,
}

/// Keeps to the plan. `go_on` is told how it stands and says whether to go on; where not, what is under way is dropped.
pub async fn run(
    client: Arc<Client>,
    plan: &Plan,
    texts: &Texts,
    options: Options,
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Outcome {
    let state = Arc::new(State::default());
    let places = options.at_once_max.map(|n| Arc::new(Semaphore::new(n.max(1))));
    let mut tasks = JoinSet::new();
    let mut outcome = Outcome::default();
    let mut progress = Progress::default();
    // Where many come at once, the last would be late by the time that all texts take.
    let mut bytes = 0;
    let at_once = plan.requests.iter().take_while(|r| r.at.is_zero()).map(|r| texts.prompt(r));
    let mut written = at_once
        .take_while(|text| {
            bytes += text.len();
            bytes <= WRITTEN_MAX
        })
        .collect::<Vec<_>>()
        .into_iter();
    let start = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    let mut take = |ended: Measured, progress: &mut Progress| {
        progress.ended += 1;
        progress.failed += usize::from(ended.error.is_some());
        outcome.requests.push(ended);
    };
    'plan: for (place, planned) in plan.requests.iter().enumerate() {
        // Written before its time comes, so that long prompts are not sent late.
        let prompt = written.next().unwrap_or_else(|| texts.prompt(planned));
        let turn = async {
            tokio::time::sleep_until((start + planned.at).into()).await;
            match &places {
                Some(places) => Arc::clone(places).acquire_owned().await.ok(),
                None => None,
            }
        };
        tokio::pin!(turn);
        let permit = loop {
            tokio::select! {
                permit = &mut turn => break permit,
                Some(Ok(ended)) = tasks.join_next() => take(ended, &mut progress),
                _ = ticks.tick() => if !go_on(progress) {
                    outcome.is_stopped = true;
                    break 'plan;
                },
            }
        };
        let (client, state) = (Arc::clone(&client), Arc::clone(&state));
        let (at, output_tokens) = (planned.at, planned.output_tokens);
        progress.sent += 1;
        tasks.spawn(async move {
            let sent = start.elapsed();
            let under_way = state.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            state.most.fetch_max(under_way, Ordering::SeqCst);
            let mut measured = client.ask(&prompt, output_tokens).await;
            state.under_way.fetch_sub(1, Ordering::SeqCst);
            drop(permit);
            let gaps = state.gaps.fetch_add(measured.gaps.len(), Ordering::Relaxed);
            if gaps > GAPS_MAX {
                measured.gaps = Vec::new();
            }
            Measured { place, sent, late: sent.saturating_sub(at), ..measured }
        });
    }
    while !outcome.is_stopped && !tasks.is_empty() {
        tokio::select! {
            Some(Ok(ended)) = tasks.join_next() => take(ended, &mut progress),
            _ = ticks.tick() => outcome.is_stopped = !go_on(progress),
        }
    }
    outcome.wall = start.elapsed();
    tasks.shutdown().await;
    outcome.at_once_max = state.most.load(Ordering::SeqCst);
    outcome.requests.sort_by_key(|r| r.place);
    outcome
}

#[derive(Default)]
struct State {
    under_way: AtomicUsize,
    most: AtomicUsize,
    gaps: AtomicUsize,
}
