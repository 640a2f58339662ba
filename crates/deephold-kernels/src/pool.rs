//! Our own threads: a fork and join takes well under a microsecond while workers spin, and idle workers sleep.
//!
//! A task_set is open while `OPEN` is set in `state`; above that bit `state` counts the workers inside it. Workers join by
//! compare-and-swap, so that the caller, who works too, never waits for a worker that has not woken up: it takes all
//! tasks itself, closes the task_set and waits only for those who joined.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Pauses before a worker sleeps: some tens of microseconds, longer than the serial gaps of a forward pass.
const SPINS: u32 = 3000;
const OPEN: usize = 1;
const JOINED: usize = 2;

thread_local! {
    /// The worker that runs on this thread, while it runs a task.
    static WORKER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// How many threads, and where.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolOptions {
    /// Threads that compute, the caller included; 0 means as many as this process may use.
    pub threads: usize,
    /// Bind each worker to a core of its own (the caller stays free).
    pub pin: bool,
}

type Task = dyn Fn(usize, usize) + Sync;

struct TaskSet {
    /// Lifetime erased; valid while the task_set is open or a worker is inside.
    f: *const Task,
    tasks: usize,
}

struct Shared {
    state: AtomicUsize,
    epoch: AtomicU64,
    next: AtomicUsize,
    stop: AtomicBool,
    task_set: UnsafeCell<TaskSet>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: Vec<AtomicBool>,
}

// SAFETY: `task_set` is written only by the holder of `ThreadPool::submit` while `state` is 0, and read only by workers that
// joined an open task_set; everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `task_set` is to a `Sync` closure, and is followed only while that closure is borrowed by `run`.
unsafe impl Send for Shared {}

/// A fixed set of threads; the caller of `run` is worker 0.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    submit: Mutex<()>,
}

impl ThreadPool {
    /// Starts the workers; where the system refuses one, the pool is smaller.
    pub fn new(options: PoolOptions) -> Self {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            task_set: UnsafeCell::new(TaskSet { f: &(|_, _| {}) as &Task as *const Task, tasks: 0 }),
            panic: Mutex::new(None),
            sleeping: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let cpus = if options.pin { crate::topology::allowed_cpus() } else { Vec::new() };
        let mut workers = Vec::new();
        for worker in 1..threads {
            let shared = Arc::clone(&shared);
            let cpu = cpus.get(worker).copied();
            let thread = std::thread::Builder::new().name(format!("kernels-{worker}")).spawn(move || {
                if let Some(cpu) = cpu {
                    crate::topology::pin_to(cpu);
                }
                shared.serve(worker);
            });
            match thread {
                Ok(handle) => workers.push(handle),
                Err(_) => break,
            }
        }
        let handles = workers.iter().map(|w| w.thread().clone()).collect();
        Self { shared, workers, handles, submit: Mutex::new(()) }
    }

    /// A pool that all callers who do not care may share.
    pub fn global() -> &'static Arc<ThreadPool> {
        static POOL: OnceLock<Arc<ThreadPool>> = OnceLock::new();
        POOL.get_or_init(|| Arc::new(Self::new(PoolOptions::default())))
    }

    /// Threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(task_idx, worker_idx)` once for each task, in any order, and returns when all are done.
    ///
    /// Inside a task it runs inline on the same worker. A panic of a task is raised again here, after the others stopped.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        if let Some(worker) = WORKER.get() {
            (0..tasks).for_each(|task| f(task, worker));
            return;
        }
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|task| f(task, 0));
            return;
        }
        let submit = self.submit.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased, and this call outlives every use: below it waits until no worker is inside.
        let f: *const Task =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync), *const Task>(f) };
        // SAFETY: `state` is 0 (the last task_set drained) and `submit` is held, so nobody reads the task_set now.
        unsafe { *shared.task_set.get() = TaskSet { f, tasks } };
        shared.next.store(0, Ordering::Relaxed);
        shared.state.store(OPEN, Ordering::Release);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        // No more helpers than tasks: waking a sleeper costs microseconds.
        for (sleeping, thread) in shared.sleeping.iter().zip(&self.handles).take(tasks - 1) {
            if sleeping.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.work(0);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(submit);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait(worker, seen) {
            seen = epoch;
            if self.join() {
                self.work(worker);
                self.state.fetch_sub(JOINED, Ordering::Release);
            }
        }
    }

    /// The next epoch after `seen`; `None` at the end of the pool.
    fn wait(&self, worker: usize, seen: u64) -> Option<u64> {
        let mut spins = 0u32;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            let epoch = self.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                return Some(epoch);
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            let sleeping = &self.sleeping[worker - 1];
            sleeping.store(true, Ordering::SeqCst);
            // Whoever raises the epoch looks at `sleeping` afterwards, so one of the two sees the other.
            if self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            sleeping.store(false, Ordering::SeqCst);
        }
    }

    fn join(&self) -> bool {
        let enter = |s: usize| if s & OPEN != 0 { Some(s + JOINED) } else { None };
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok()
    }

    /// Takes tasks until none is left.
    fn work(&self, worker: usize) {
        // SAFETY: the caller is `run` itself or a worker that joined: the task_set is not written until it left.
        let task_set = unsafe { &*self.task_set.get() };
        // SAFETY: `run` keeps the closure borrowed until every worker left.
        let f = unsafe { &*task_set.f };
        WORKER.set(Some(worker));
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= task_set.tasks {
                    break;
                }
                f(task, worker);
            }
        }));
        WORKER.set(None);
        if let Err(payload) = result {
            // The others finish what they hold and find nothing more.
            self.next.store(task_set.tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_panics_come_back() {
        for threads in [1, 2, 3, 7] {
            let pool = ThreadPool::new(PoolOptions { threads, pin: false });
            for tasks in [0, 1, 2, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|t, w| {
                    assert!(w < threads);
                    counts[t].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(50, &|t, _| assert!(t != 7, "seven"))));
            assert!(caught.is_err());
            let inner = AtomicUsize::new(0);
            pool.run(5, &|_, _| pool.run(3, &|_, _| _ = inner.fetch_add(1, Ordering::Relaxed)));
            assert_eq!(inner.load(Ordering::Relaxed), 15);
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = ThreadPool::new(PoolOptions { threads: 3, pin: true });
        let sum = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    (0..200).for_each(|_| pool.run(8, &|_, _| _ = sum.fetch_add(1, Ordering::Relaxed)))
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 200 * 8);
    }
}
