//! Our own threads: a fork and join takes well under a microsecond while workers spin, and idle workers sleep.

#[cfg(test)]
mod model;
mod protocol;

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};

use protocol::{Shared, Task};

/// What the protocol is built of.
mod sync {
    pub(super) use std::hint::spin_loop as pause;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(super) use std::thread::{park, yield_now};

    /// Pauses before a worker sleeps: some tens of microseconds, longer than the serial gaps of a forward pass.
    pub(super) const PAUSES: u32 = 3000;

    /// As the model checker's, which wants to see every access.
    pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(super) fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        pub(super) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        pub(super) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

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

/// The first panic of a task.
type Panic = Mutex<Option<Box<dyn Any + Send>>>;

/// A fixed set of threads; the caller of `run` is worker 0.
pub struct ThreadPool {
    shared: Arc<(Shared, Panic)>,
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
        let shared = Arc::new((Shared::new(threads.saturating_sub(1)), Panic::default()));
        let cpus = if options.pin { crate::topology::allowed_cpus() } else { Vec::new() };
        let mut workers = Vec::new();
        for worker in 1..threads {
            let shared = Arc::clone(&shared);
            let cpu = cpus.get(worker).copied();
            let thread = std::thread::Builder::new().name(format!("kernels-{worker}")).spawn(move || {
                if let Some(cpu) = cpu {
                    crate::topology::pin_to(cpu);
                }
                serve(&shared, worker);
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
        let (shared, panic) = &*self.shared;
        // SAFETY: only the lifetime is erased, and this call outlives every use: closing waits until no worker is inside.
        let f: *const Task =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync), *const Task>(f) };
        // SAFETY: `submit` is held until the task set is closed, and `f` is borrowed until then.
        unsafe { shared.open(f, tasks, |sleeper| self.handles[sleeper].unpark()) };
        // SAFETY: it was opened here and is not closed yet.
        unsafe { work(shared, panic, 0) };
        shared.close();
        let panic = panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(submit);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

/// A worker's life.
fn serve((shared, panic): &(Shared, Panic), worker: usize) {
    let mut seen = 0;
    while let Some(epoch) = shared.wait(worker - 1, seen) {
        seen = epoch;
        if shared.join() {
            // SAFETY: joined, and not left yet.
            unsafe { work(shared, panic, worker) };
            shared.leave();
        }
    }
}

/// Takes tasks until none is left; keeps the first panic.
///
/// # Safety
/// As [`Shared::work`].
unsafe fn work(shared: &Shared, panic: &Panic, worker: usize) {
    WORKER.set(Some(worker));
    // SAFETY: by the caller's contract.
    let result = catch_unwind(AssertUnwindSafe(|| unsafe { shared.work(worker) }));
    WORKER.set(None);
    if let Err(payload) = result {
        // SAFETY: by the caller's contract.
        unsafe { shared.abandon() };
        panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.0.stop();
        self.handles.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

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
