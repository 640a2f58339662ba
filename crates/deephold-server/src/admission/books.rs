//! The ledger of a running server and the thread that writes it: an answer's end waits for its usage to be durable, and all answers that
//! end while a write is under way share the next one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use deephold_base::Clock;
use deephold_state::{Amount, StateError, Store, Subject};
use tokio::sync::oneshot;

use super::ledger::{Bound, Changes, Ledger, Refusal, Used, day_of};
use crate::ServerError;

/// How often replicas that share a store exchange their figures.
const EXCHANGE: Duration = Duration::from_millis(250);
/// Exchanges after which what is held is written again although nothing changed.
const REPEAT_HELD: u32 = 40;
/// How far the clocks of replicas may differ.
const CLOCK_SKEW_MS: i64 = 5 * 60_000;

/// What everybody has used, kept in a store.
pub(crate) struct Books {
    inner: Arc<Inner>,
    writer: Option<JoinHandle<()>>,
}

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    replica: String,
    state: Mutex<State>,
    wake: Condvar,
    /// The last write failed.
    fails: AtomicBool,
}

struct State {
    ledger: Ledger,
    /// Who waits for the next write.
    waiters: Vec<oneshot::Sender<bool>>,
    is_closed: bool,
}

/// What a running request may take at most. Dropping it unsettled gives all of it back.
pub(crate) struct Hold {
    inner: Arc<Inner>,
    subjects: Vec<Subject>,
    most: Amount,
    is_open: bool,
}

impl Books {
    /// Reads what this replica wrote and starts its writer.
    ///
    /// # Errors
    /// The store's; no thread.
    pub(crate) fn open(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        replica: String,
    ) -> Result<Self, ServerError> {
        let rows = store.usage_of_replica(&replica, day_of(clock.unix_ms()))?;
        let ledger = Ledger::load(&replica, rows, store.spending(None)?);
        let state = State { ledger, waiters: Vec::new(), is_closed: false };
        let inner = Arc::new(Inner {
            store,
            clock,
            replica,
            state: Mutex::new(state),
            wake: Condvar::new(),
            fails: AtomicBool::new(false),
        });
        let writing = Arc::clone(&inner);
        let writer = std::thread::Builder::new().name("usage".into()).spawn(move || writing.run());
        let writer = writer.map_err(|source| ServerError::Io { action: "start a thread", source })?;
        Ok(Self { inner, writer: Some(writer) })
    }

    /// Holds what a request may take at most.
    pub(crate) fn hold(&self, bounds: &[Bound], most: Amount) -> Result<Hold, Refusal> {
        self.inner.lock().ledger.hold(bounds, most, self.now_ms())?;
        let subjects = bounds.iter().map(|b| b.subject.clone()).collect();
        Ok(Hold { inner: Arc::clone(&self.inner), subjects, most, is_open: true })
    }

    /// Asks the ledger.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(&Ledger, i64) -> T) -> T {
        question(&self.inner.lock().ledger, self.now_ms())
    }

    /// Whether what was used can be written: after a failure that is tried first.
    pub(crate) async fn are_written(&self) -> bool {
        if !self.inner.fails.load(Ordering::SeqCst) {
            return true;
        }
        let (done, written) = oneshot::channel();
        self.inner.lock().waiters.push(done);
        self.inner.wake.notify_one();
        written.await.unwrap_or(false)
    }

    fn now_ms(&self) -> i64 {
        self.inner.clock.unix_ms()
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        self.inner.lock().is_closed = true;
        self.inner.wake.notify_one();
        // What the last requests used is written before the program ends.
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let is_shared = self.store.is_shared();
        let mut quiet = 0;
        loop {
            let (changes, waiters, is_closed) = {
                let mut state = self.lock();
                if state.waiters.is_empty() && !state.is_closed {
                    // A store of one server alone has nobody to exchange with.
                    let patience = if is_shared { EXCHANGE } else { Duration::from_secs(10) };
                    let woken = self.wake.wait_timeout(state, patience);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                quiet += 1;
                if is_shared && quiet >= REPEAT_HELD {
                    quiet = 0;
                    state.ledger.repeat_held();
                }
                let changes = state.ledger.take_changes(self.clock.unix_ms());
                (changes, std::mem::take(&mut state.waiters), state.is_closed)
            };
            let written = self.exchange(&changes, is_shared, !waiters.is_empty());
            if let Err(error) = &written {
                self.lock().ledger.put_back(&changes);
                if !self.fails.swap(true, Ordering::SeqCst) {
                    tracing::error!(%error, "the state takes no usage");
                }
            } else if self.fails.swap(false, Ordering::SeqCst) {
                tracing::info!("the state takes usage again");
            }
            for waiter in waiters {
                let _ = waiter.send(written.is_ok());
            }
            if is_closed {
                return;
            }
            if written.is_err() {
                std::thread::sleep(EXCHANGE);
            }
        }
    }

    /// Writes what changed and hears what others wrote. A write without changes shows whether the store takes any.
    fn exchange(&self, changes: &Changes, is_shared: bool, is_asked: bool) -> Result<(), StateError> {
        let now_ms = self.clock.unix_ms();
        let is_failing = self.fails.load(Ordering::SeqCst);
        if !changes.is_empty() || (is_asked && is_failing) {
            self.store.write_usage(&self.replica, &changes.rows, &changes.spending, now_ms)?;
        }
        if is_shared {
            let rows = self.store.spending(Some((&self.replica, now_ms - CLOCK_SKEW_MS)))?;
            self.lock().ledger.hear(rows);
        }
        Ok(())
    }
}

impl Hold {
    /// Turns it into what was used; what comes back says whether that is durable.
    pub(crate) fn settle(mut self, used: &Used) -> oneshot::Receiver<bool> {
        self.is_open = false;
        let (done, written) = oneshot::channel();
        let mut state = self.inner.lock();
        state.ledger.settle(&self.subjects, self.most, used, self.inner.clock.unix_ms());
        state.waiters.push(done);
        drop(state);
        self.inner.wake.notify_one();
        written
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.is_open {
            let now_ms = self.inner.clock.unix_ms();
            self.inner.lock().ledger.settle(&self.subjects, self.most, &Used::default(), now_ms);
        }
    }
}
