//! The protocol under a model checker: every order in which two threads can run with few preemptions, and every value that
//! an atomic may then be seen to have, by the C11 memory model (loom).

#[allow(
    dead_code,
    clippy::duplicate_mod,
    reason = "the same code over other primitives; panics are not modelled"
)]
#[path = "protocol.rs"]
mod protocol;

/// The model checker's primitives.
mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(super) use loom::thread::{park, yield_now};

    /// A worker goes to sleep soon: those are the orders that matter.
    pub(super) const PAUSES: u32 = 1;

    pub(super) fn pause() {
        yield_now();
    }
}

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use protocol::{Shared, Task};

/// Places that tasks write without any lock: the checker fails where two accesses are not ordered.
struct Places(Vec<UnsafeCell<usize>>);

// SAFETY: the pool gives each task to one thread; that this holds is what is checked.
unsafe impl Sync for Places {}
// SAFETY: as above.
unsafe impl Send for Places {}

/// One worker beside the caller, `rounds` task sets of `tasks` tasks.
fn check(rounds: usize, tasks: usize, preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let shared = Arc::new(Shared::new(1));
        let worker = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let mut seen = 0;
                while let Some(epoch) = shared.wait(0, seen) {
                    seen = epoch;
                    if shared.join() {
                        // SAFETY: joined, and not left yet.
                        unsafe { shared.work(1) };
                        shared.leave();
                    }
                }
            })
        };
        for round in 0..rounds {
            let places = Places((0..tasks).map(|_| UnsafeCell::new(0)).collect());
            let f = |task: usize, _: usize| {
                let places = &places;
                // SAFETY: see `Places`.
                places.0[task].with_mut(|place| unsafe { *place += round + 1 });
            };
            let f: *const (dyn Fn(usize, usize) + Sync) = &f;
            // SAFETY: only the lifetime is erased; the task set is closed before `f` goes.
            let f: *const Task =
                unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync), *const Task>(f) };
            // SAFETY: one caller, and `f` lives until the task set is closed.
            unsafe { shared.open(f, tasks, |_| worker.thread().unpark()) };
            // SAFETY: open, and not closed yet.
            unsafe { shared.work(0) };
            shared.close();
            // Each task ran once, and what it wrote is seen here without any other lock.
            for place in &places.0 {
                // SAFETY: nobody is inside any more.
                assert_eq!(place.with(|place| unsafe { *place }), round + 1);
            }
        }
        shared.stop();
        worker.thread().unpark();
        worker.join().expect("the worker ends");
    });
}

#[test]
fn no_order_loses_a_task_or_hangs() {
    check(1, 3, 3);
    check(2, 2, 3);
    check(3, 2, 2);
}
