//! What callers ask of the engine's thread, in order.
//!
//! New requests are bounded in number. Aborts, resumptions and the shutdown are always taken: there is at most one of each kind
//! for a request in the box, so they are bounded by the requests themselves, and none is ever dropped.

use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::request::{Request, RequestId};
use crate::sink::{Accepted, OutputSink};

/// New requests that may lie in the box; beyond them the engine is busy.
pub(crate) const ADDS_MAX: usize = 4096;

/// One thing to do.
pub(crate) enum Command {
    Add(Box<Request>, OutputSink, Accepted),
    Abort(RequestId),
    Resume(RequestId),
}

/// How the engine's thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Nothing new is taken; requests go on for at most so long, then they are aborted.
    Drain(Duration),
    /// All requests are aborted at the end of the running step.
    Now,
}

/// Why a request was not taken.
pub(crate) enum Refused {
    Full,
    Closed,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    num_adds: usize,
    /// Requests with an abort, or a resumption, among `commands`.
    aborts: HashSet<RequestId>,
    resumes: HashSet<RequestId>,
    shutdown: Option<Shutdown>,
    /// The handle is gone: no request comes any more, though streams may still abort and resume theirs.
    closed: bool,
    /// The thread looks no more.
    ended: bool,
    /// Rises with every close and shutdown, so that a waiting thread notices each once.
    notices: u64,
    seen: u64,
}

/// The box.
#[derive(Default)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, request: Request, sink: OutputSink, accepted: Accepted) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed || state.ended || state.shutdown.is_some() {
            return Err(Refused::Closed);
        }
        if state.num_adds >= ADDS_MAX {
            return Err(Refused::Full);
        }
        state.num_adds += 1;
        state.commands.push_back(Command::Add(Box::new(request), sink, accepted));
        self.changed.notify_all();
        Ok(())
    }

    pub(crate) fn abort(&self, id: RequestId) {
        let mut state = self.lock();
        if !state.ended && state.aborts.insert(id) {
            state.commands.push_back(Command::Abort(id));
            self.changed.notify_all();
        }
    }

    pub(crate) fn resume(&self, id: RequestId) {
        let mut state = self.lock();
        if !state.ended && state.resumes.insert(id) {
            state.commands.push_back(Command::Resume(id));
            self.changed.notify_all();
        }
    }

    /// Of two wishes to end the more urgent holds.
    pub(crate) fn shut_down(&self, how: Shutdown) {
        let mut state = self.lock();
        if state.shutdown != Some(Shutdown::Now) {
            state.shutdown = Some(how);
        }
        state.notices += 1;
        self.changed.notify_all();
    }

    /// No request will come any more; those in the engine go on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.notices += 1;
        self.changed.notify_all();
    }

    /// The thread's last look: what still lies in the box. Nothing is taken afterwards.
    pub(crate) fn end(&self) -> VecDeque<Command> {
        let mut state = self.lock();
        state.ended = true;
        std::mem::take(&mut state.commands)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn shutdown(&self) -> Option<Shutdown> {
        self.lock().shutdown
    }

    /// All that lies in the box, in order.
    pub(crate) fn take(&self) -> VecDeque<Command> {
        let mut state = self.lock();
        state.num_adds = 0;
        state.aborts.clear();
        state.resumes.clear();
        std::mem::take(&mut state.commands)
    }

    /// Requests that an abort lies in the box for.
    pub(crate) fn aborted(&self) -> HashSet<RequestId> {
        self.lock().aborts.clone()
    }

    /// Waits until something lies in the box, it is closed or shut down since the last wait, or `timeout` has passed.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let idle = |s: &mut State| s.commands.is_empty() && s.notices == s.seen;
        let state = self.lock();
        let mut state = match timeout {
            None => self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.changed.wait_timeout_while(state, timeout, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.seen = state.notices;
    }
}
