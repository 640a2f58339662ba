//! How a task set is opened, joined, worked off and closed; without threads of its own.
//!
//! A task set is open while `OPEN` is set in `state`; above that bit `state` counts the workers inside it. Workers join by
//! compare-and-swap, so that the caller, who works too, never waits for a worker that has not woken up: it takes all
//! tasks itself, closes the task set and waits only for those who joined.
//!
//! The primitives come from `super::sync`: those of the standard library, and in a test those of a model checker, which goes
//! through the orders in which threads can run and memory can be seen.

use super::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, PAUSES, UnsafeCell, park, pause, yield_now};

const OPEN: usize = 1;
const JOINED: usize = 2;

/// `f(task_idx, worker_idx)`
pub(super) type Task = dyn Fn(usize, usize) + Sync;

#[derive(Clone, Copy)]
struct TaskSet {
    /// Lifetime erased; valid while the task set is open or a worker is inside.
    f: *const Task,
    tasks: usize,
}

/// What the caller and the workers share.
pub(super) struct Shared {
    state: AtomicUsize,
    epoch: AtomicU64,
    next: AtomicUsize,
    stop: AtomicBool,
    task_set: UnsafeCell<TaskSet>,
    sleeping: Vec<AtomicBool>,
}

// SAFETY: `task_set` is written only by `open`, whose caller is alone and finds `state` at 0, and read only by that caller and
// by workers that joined an open task set; everything else is atomic.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `task_set` is to a `Sync` closure, and is followed only between `open` and the end of `close`.
unsafe impl Send for Shared {}

impl Shared {
    pub(super) fn new(workers: usize) -> Self {
        let nothing: &'static Task = &|_, _| {};
        Self {
            state: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            task_set: UnsafeCell::new(TaskSet { f: nothing, tasks: 0 }),
            sleeping: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Opens a task set; `wake` is called with the workers that sleep, counted from 0.
    ///
    /// # Safety
    /// One caller at a time, from here to the end of [`Self::close`], until when `f` lives.
    pub(super) unsafe fn open(&self, f: *const Task, tasks: usize, wake: impl Fn(usize)) {
        // SAFETY: `state` is 0 (the last task set drained) and nobody else opens, so nobody reads the task set now.
        self.task_set.with_mut(|set| unsafe { *set = TaskSet { f, tasks } });
        self.next.store(0, Ordering::Relaxed);
        self.state.store(OPEN, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        // No more helpers than tasks: waking a sleeper costs microseconds.
        for (worker, sleeping) in self.sleeping.iter().enumerate().take(tasks - 1) {
            if sleeping.swap(false, Ordering::SeqCst) {
                wake(worker);
            }
        }
    }

    /// Lets nobody join any more, and waits until those who did have left.
    pub(super) fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut pauses = 0u32;
        while self.state.load(Ordering::Acquire) != 0 {
            pauses += 1;
            if pauses > PAUSES { yield_now() } else { pause() }
        }
    }

    /// The next epoch after `seen`; `None` at the end of the pool. `worker` counts from 0.
    pub(super) fn wait(&self, worker: usize, seen: u64) -> Option<u64> {
        let mut pauses = 0u32;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                return Some(epoch);
            }
            if pauses < PAUSES {
                pauses += 1;
                pause();
                continue;
            }
            let sleeping = &self.sleeping[worker];
            sleeping.store(true, Ordering::SeqCst);
            // Whoever raises the epoch looks at `sleeping` afterwards, so one of the two sees the other.
            if self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                park();
            }
            sleeping.store(false, Ordering::SeqCst);
        }
    }

    /// Whether a task set is open; then the worker is inside until it calls [`Self::leave`].
    pub(super) fn join(&self) -> bool {
        let enter = |s: usize| if s & OPEN != 0 { Some(s + JOINED) } else { None };
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok()
    }

    pub(super) fn leave(&self) {
        self.state.fetch_sub(JOINED, Ordering::Release);
    }

    /// Takes tasks until none is left, as `worker`.
    ///
    /// # Safety
    /// By the caller of [`Self::open`] before it closes, or by a worker that joined and has not left.
    pub(super) unsafe fn work(&self, worker: usize) {
        // SAFETY: by the contract the task set is not written now, and its closure lives.
        let set = self.task_set.with(|set| unsafe { *set });
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= set.tasks {
                break;
            }
            // SAFETY: as above.
            unsafe { (*set.f)(task, worker) };
        }
    }

    /// Leaves no task to the others: they finish what they hold.
    ///
    /// # Safety
    /// As [`Self::work`].
    pub(super) unsafe fn abandon(&self) {
        // SAFETY: as for `work`.
        let set = self.task_set.with(|set| unsafe { *set });
        self.next.store(set.tasks, Ordering::Relaxed);
    }

    /// Ends every worker that waits; whoever sleeps must be woken afterwards.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
