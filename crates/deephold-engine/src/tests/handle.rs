//! The engine's thread: every request that was accepted ends with exactly one reason, whatever its caller does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deephold_base::{ManualClock, TokenId};
use deephold_testkit::Rng;

use super::simulation::engine;
use crate::request::{FinishReason, Request, RequestId, RequestOutput, SamplingParams};
use crate::{Constraint, Delivery, EngineError, EngineHandle, Shutdown, TokenMask};

fn request(id: u64, max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
    Request::new(id, vec![1, 2, (id % 90) as TokenId], params)
}

fn spawn() -> EngineHandle {
    EngineHandle::spawn(engine(200, 8, 64, ManualClock::default())).unwrap()
}

/// Submits with a sink that sends everything to a channel and always says `Ready`.
fn submit(handle: &EngineHandle, request: Request) -> Receiver<RequestOutput> {
    let (sender, receiver) = channel();
    let sink = Box::new(move |output| {
        let _ = sender.send(output);
        Delivery::Ready
    });
    handle.submit_with(request, sink, Box::new(|_| {})).unwrap();
    receiver
}

/// Finish reasons by sequence; panics where one has two.
fn reasons(outputs: impl IntoIterator<Item = RequestOutput>) -> HashMap<(u64, usize), FinishReason> {
    let mut ended = HashMap::new();
    for o in outputs {
        assert!(!ended.contains_key(&(o.id.0, o.seq_idx)), "an output after the end: {o:?}");
        if let Some(reason) = o.finish_reason {
            ended.insert((o.id.0, o.seq_idx), reason);
        }
    }
    ended
}

/// Aborts from many threads while thousands of requests fill the box: the first design lost them.
#[test]
fn an_abort_is_never_lost_and_every_sequence_has_one_reason() {
    let handle = Arc::new(spawn());
    let threads: Vec<_> = (0..4u64)
        .map(|t| {
            let handle = Arc::clone(&handle);
            std::thread::spawn(move || {
                let mut rng = Rng::new(t);
                let mut all = Vec::new();
                for i in 0..300 {
                    let mut r = request(t * 1_000_000 + i, 90);
                    r.params.n = 1 + rng.below(3);
                    let (id, n) = (r.id, r.params.n);
                    let (sender, receiver) = channel();
                    let refused = Arc::new(AtomicBool::new(false));
                    let sink = Box::new(move |o| {
                        let _ = sender.send(o);
                        Delivery::Ready
                    });
                    let note = Arc::clone(&refused);
                    let accepted = Box::new(move |result: Result<(), EngineError>| {
                        note.store(result.is_err(), Ordering::SeqCst);
                    });
                    if handle.submit_with(r, sink, accepted).is_ok() {
                        handle.abort(id);
                        all.push((n, receiver, refused));
                    }
                }
                let mut aborted = 0;
                for (n, receiver, refused) in all {
                    let ended = reasons(receiver.iter());
                    if refused.load(Ordering::SeqCst) {
                        assert!(ended.is_empty());
                        continue;
                    }
                    assert_eq!(ended.len(), n);
                    aborted += ended.values().filter(|r| **r == FinishReason::Abort).count();
                    assert!(ended.values().all(|r| matches!(r, FinishReason::Abort | FinishReason::Length)));
                }
                aborted
            })
        })
        .collect();
    let aborted: usize = threads.into_iter().map(|t| t.join().unwrap()).sum();
    assert!(aborted > 100, "{aborted}");
    handle.shutdown(Shutdown::Now);
    assert_eq!(handle.stats().running + handle.stats().waiting, 0);
}

/// No token of the step in which the abort came, and none after.
#[test]
fn an_abort_holds_for_the_running_step() {
    let handle = Arc::new(spawn());
    let other = Arc::clone(&handle);
    let (sender, receiver) = channel();
    let mut seen = 0;
    let sink = Box::new(move |o: RequestOutput| {
        seen += o.tokens.len();
        if seen == 3 {
            // On the engine's own thread: the step that follows finds the abort in the box.
            other.abort(RequestId(1));
        }
        let _ = sender.send((seen, o.finish_reason));
        Delivery::Ready
    });
    handle.submit_with(request(1, 90), sink, Box::new(|_| {})).unwrap();
    let all: Vec<_> = receiver.iter().collect();
    assert_eq!(all.last(), Some(&(3, Some(FinishReason::Abort))), "{all:?}");
    assert_eq!(all.len(), 4);
}

#[test]
fn a_panic_of_the_callers_code_ends_its_request_alone() {
    struct Fails;
    impl Constraint for Fails {
        fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
            panic!("a constraint of a test")
        }
        fn accept(&mut self, _: TokenId) -> Result<(), String> {
            Ok(())
        }
        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(Self)
        }
    }
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&steps);
    let observer = Box::new(move |_: &_| {
        assert!(counted.fetch_add(1, Ordering::SeqCst) < 2, "an observer of a test");
    });
    let handle = EngineHandle::spawn_observed(engine(200, 8, 64, ManualClock::default()), observer).unwrap();
    let healthy = submit(&handle, request(1, 90));
    // A sink.
    let sink = Box::new(|_| -> Delivery { panic!("a sink of a test") });
    handle.submit_with(request(2, 90), sink, Box::new(|_| {})).unwrap();
    // The word of acceptance; its sink is told the end.
    let (sender, receiver) = channel();
    let sink = Box::new(move |o| {
        let _ = sender.send(o);
        Delivery::Ready
    });
    handle.submit_with(request(3, 90), sink, Box::new(|_| panic!("a callback of a test"))).unwrap();
    assert_eq!(reasons(receiver.iter()), HashMap::from([((3, 0), FinishReason::Abort)]));
    // One that panics because its id is taken must not end the other request of that id.
    handle
        .submit_with(request(1, 5), Box::new(|_| Delivery::Ready), Box::new(|_| panic!("a callback")))
        .unwrap();
    // A constraint.
    let mut r = request(4, 90);
    r.constraint = Some(Box::new(Fails));
    let outputs: Vec<_> = submit(&handle, r).iter().collect();
    assert_eq!(outputs[0].finish_reason, Some(FinishReason::Error));
    assert!(outputs[0].message.as_deref().unwrap().contains("constraint"));
    assert_eq!(reasons(healthy.iter()), HashMap::from([((1, 0), FinishReason::Length)]));
    assert_eq!(steps.load(Ordering::SeqCst), 3, "an observer that panics is not called again");
    handle.shutdown(Shutdown::Drain(Duration::from_secs(60)));
    assert_eq!(handle.stats().running + handle.stats().waiting, 0);
}

#[test]
fn a_slow_reader_is_paused_and_loses_nothing() {
    // 90 tokens of 7 answers: more than a buffer holds.
    let r = || {
        let mut r = request(1, 90);
        r.params.n = 7;
        r
    };
    let collect = |slow: bool| {
        let handle = spawn();
        let mut stream = handle.submit(r()).unwrap();
        if slow {
            // The reader is away until its request is paused and all else is done.
            while handle.stats().paused == 0 {
                std::thread::yield_now();
            }
            let stats = handle.stats();
            assert_eq!((stats.running, stats.used_blocks), (0, 0), "a paused request holds nothing");
            // Meanwhile others are served.
            assert_eq!(reasons(submit(&handle, request(2, 20)).iter())[&(2, 0)], FinishReason::Length);
        }
        let mut ids: HashMap<usize, Vec<TokenId>> = HashMap::new();
        let mut all = Vec::new();
        while let Some(o) = stream.next_output() {
            ids.entry(o.seq_idx).or_default().extend(o.tokens.iter().map(|t| t.id));
            all.push(o);
        }
        assert!(!stream.is_open());
        assert_eq!(reasons(all).len(), 7);
        ids
    };
    assert_eq!(collect(true), collect(false));
}

#[test]
fn shutdowns_end_every_request_and_the_thread() {
    // A drain lets requests end.
    let handle = spawn();
    let first = submit(&handle, request(1, 90));
    handle.shutdown(Shutdown::Drain(Duration::from_secs(60)));
    assert_eq!(reasons(first.iter())[&(1, 0)], FinishReason::Length);
    assert!(matches!(handle.submit(request(2, 1)), Err(EngineError::Stopped)));
    handle.shutdown(Shutdown::Now);

    // One without patience, and one at once, abort what is left; a reader that waits is woken.
    for how in [Shutdown::Drain(Duration::ZERO), Shutdown::Now] {
        let handle = spawn();
        let receivers: Vec<_> = (0..10).map(|id| submit(&handle, request(id, 90))).collect();
        let mut stream = handle.submit(request(100, 90)).unwrap();
        let reader = std::thread::spawn(move || {
            let mut last = None;
            while let Some(o) = stream.next_output() {
                last = o.finish_reason.or(last);
            }
            last
        });
        handle.shutdown(how);
        assert!(reader.join().unwrap().is_some());
        let mut aborted = 0;
        for (id, receiver) in receivers.into_iter().enumerate() {
            match reasons(receiver.iter())[&(id as u64, 0)] {
                FinishReason::Abort => aborted += 1,
                FinishReason::Length => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(aborted > 0, "{how:?} was too late to test anything");
    }
}

/// The handle goes first; the stream still reads to its end, and a dropped stream's request still stops.
#[test]
fn streams_outlive_the_handle() {
    let handle = spawn();
    let mut stream = handle.submit(request(1, 90)).unwrap();
    let dropped = handle.submit(request(2, 90)).unwrap();
    drop(handle);
    drop(dropped);
    let mut tokens = 0;
    while let Some(o) = stream.next_output() {
        tokens += o.tokens.len();
    }
    assert_eq!(tokens, 90);
}

/// A closed sink ends the request, so that nobody computes for a caller that is gone.
#[test]
fn a_closed_sink_ends_its_request() {
    let handle = spawn();
    let calls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&calls);
    let sink = Box::new(move |_| {
        *counted.lock().unwrap() += 1;
        Delivery::Closed
    });
    handle.submit_with(request(1, 90), sink, Box::new(|_| {})).unwrap();
    handle.shutdown(Shutdown::Drain(Duration::from_secs(60)));
    assert_eq!(*calls.lock().unwrap(), 1);
    assert_eq!(handle.stats().sampled_tokens, 1);
}
