//! The engine on a thread of its own.
//!
//! Every request that was accepted ends with exactly one finish reason for each of its `n` sequences, whatever happens: its
//! own end, an abort, a deadline, a slow reader, a failure, a shutdown. What callers hand in (sinks, observers, the word of
//! acceptance) runs on the engine's thread; a panic in it ends the request that it belongs to, never the engine.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use deephold_base::Clock;

use crate::mailbox::{ADDS_MAX, Command, Mailbox, Refused, Shutdown};
use crate::request::{FinishReason, Request, RequestId, RequestOutput};
use crate::sink::{Accepted, Delivery, OutputSink};
use crate::{EngineCore, EngineError, EngineStats, StepOutput};

/// Sees every step, on the engine's thread. One that panics is not called again.
pub type StepObserver = Box<dyn FnMut(&StepOutput) + Send>;

/// Runs an [`EngineCore`]. When it is dropped, the thread ends after the requests in it; [`Self::shutdown`] ends it sooner
/// and waits for it.
pub struct EngineHandle {
    mailbox: Arc<Mailbox>,
    stats: Arc<Mutex<EngineStats>>,
    clock: Arc<dyn Clock>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EngineHandle {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, where it gives no thread.
    pub fn spawn(core: EngineCore) -> std::io::Result<Self> {
        Self::spawn_observed(core, Box::new(|_| {}))
    }

    /// As [`Self::spawn`]; `observer` sees every step.
    ///
    /// # Errors
    /// The system's, where it gives no thread.
    pub fn spawn_observed(core: EngineCore, observer: StepObserver) -> std::io::Result<Self> {
        let mailbox = Arc::new(Mailbox::default());
        let stats = Arc::new(Mutex::new(core.stats()));
        let clock = Arc::clone(core.clock());
        let mut thread = EngineThread {
            core,
            sinks: HashMap::new(),
            mailbox: Arc::clone(&mailbox),
            stats: Arc::clone(&stats),
            observer: Some(observer),
            drain_until: None,
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || thread.run())?;
        Ok(Self { mailbox, stats, clock, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a request; never waits. `accepted` hears what [`EngineCore::add_request`] says, then `sink` the outputs.
    ///
    /// # Errors
    /// [`EngineError::Stopped`], or [`EngineError::Busy`] where too many requests lie before it.
    pub fn submit_with(
        &self,
        request: Request,
        sink: OutputSink,
        accepted: Accepted,
    ) -> Result<(), EngineError> {
        self.mailbox.add(request, sink, accepted).map_err(|refused| match refused {
            Refused::Full => EngineError::Busy { waiting: ADDS_MAX },
            Refused::Closed => EngineError::Stopped,
        })
    }

    /// Ends a request by the end of the running step: no token comes after that, only [`FinishReason::Abort`]. Always taken;
    /// an id that is not live is ignored.
    pub fn abort(&self, id: RequestId) {
        self.mailbox.abort(id);
    }

    /// Lets a request go on that its sink paused.
    pub fn resume(&self, id: RequestId) {
        self.mailbox.resume(id);
    }

    /// Queues a request and waits until it is accepted.
    ///
    /// # Errors
    /// What [`EngineCore::add_request`] refuses.
    pub fn submit(&self, request: Request) -> Result<RequestStream, EngineError> {
        let (id, open) = (request.id, request.num_sequences());
        let buffer = Arc::new(OutputBuffer::default());
        let writer = BufferWriter(Arc::clone(&buffer));
        let sink = Box::new(move |output| writer.push(output));
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let stream = RequestStream { id, buffer, mailbox: Arc::clone(&self.mailbox), open };
        self.submit_with(request, sink, Box::new(move |result| _ = answer.send(result)))?;
        answered.recv().map_err(|_| EngineError::Stopped)??;
        Ok(stream)
    }

    /// Time on the engine's clock, which deadlines are given in.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Counters and state after the last step or command.
    pub fn stats(&self) -> EngineStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the thread as `how` says, and waits for it. Requests that are still there get [`FinishReason::Abort`].
    pub fn shutdown(&self, how: Shutdown) {
        self.mailbox.shut_down(how);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread catches the panics of everything it calls; its own would be a defect and is over with it.
            let _ = thread.join();
        }
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// Outputs that a stream's buffer holds before its request is paused. Memory grows with what was produced and not read,
/// up to this many and what one step adds.
const BUFFERED_MAX: usize = 256;

/// Outputs between the engine's thread and a reader.
#[derive(Default)]
struct OutputBuffer {
    state: Mutex<Buffered>,
    changed: Condvar,
}

#[derive(Default)]
struct Buffered {
    outputs: VecDeque<RequestOutput>,
    paused: bool,
    /// The reader is gone.
    closed: bool,
    /// The engine's side is gone.
    ended: bool,
}

impl OutputBuffer {
    fn lock(&self) -> MutexGuard<'_, Buffered> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's side of a buffer. A reader must not wait for ever for a sink that was dropped.
struct BufferWriter(Arc<OutputBuffer>);

impl BufferWriter {
    fn push(&self, output: RequestOutput) -> Delivery {
        let mut state = self.0.lock();
        if state.closed {
            return Delivery::Closed;
        }
        state.outputs.push_back(output);
        self.0.changed.notify_all();
        state.paused |= state.outputs.len() >= BUFFERED_MAX;
        if state.paused { Delivery::Pause } else { Delivery::Ready }
    }
}

impl Drop for BufferWriter {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

/// The outputs of one request; dropping it aborts the request. A reader that leaves 256 outputs lying pauses the request, which
/// goes on when half of them are read.
pub struct RequestStream {
    id: RequestId,
    buffer: Arc<OutputBuffer>,
    mailbox: Arc<Mailbox>,
    /// Sequences that have not finished.
    open: usize,
}

impl RequestStream {
    /// The next output; `None` after the last.
    pub fn next_output(&mut self) -> Option<RequestOutput> {
        self.wait(None)
    }

    /// As [`Self::next_output`], but gives up after `timeout`: then `None` while [`Self::is_open`].
    pub fn next_within(&mut self, timeout: Duration) -> Option<RequestOutput> {
        self.wait(Some(timeout))
    }

    /// Whether outputs are still to come.
    pub fn is_open(&self) -> bool {
        self.open > 0
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Option<RequestOutput> {
        if self.open == 0 {
            return None;
        }
        let idle = |s: &mut Buffered| s.outputs.is_empty() && !s.ended;
        let state = self.buffer.lock();
        let mut state = match timeout {
            None => self.buffer.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.buffer.changed.wait_timeout_while(state, timeout, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        let Some(output) = state.outputs.pop_front() else {
            if state.ended {
                self.open = 0;
            }
            return None;
        };
        if state.paused && state.outputs.len() <= BUFFERED_MAX / 2 {
            state.paused = false;
            self.mailbox.resume(self.id);
        }
        self.open -= usize::from(output.finish_reason.is_some());
        Some(output)
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.buffer.lock().closed = true;
        if self.open > 0 {
            self.mailbox.abort(self.id);
        }
    }
}

/// A request's sink, and how many of its sequences it has not heard the end of: the core may be further than what was
/// delivered.
struct OpenSink {
    sink: OutputSink,
    open: usize,
}

/// What the engine's thread owns.
struct EngineThread {
    core: EngineCore,
    sinks: HashMap<RequestId, OpenSink>,
    mailbox: Arc<Mailbox>,
    stats: Arc<Mutex<EngineStats>>,
    observer: Option<StepObserver>,
    /// When a drain's patience ends.
    drain_until: Option<Instant>,
}

impl EngineThread {
    fn run(&mut self) {
        loop {
            for command in self.mailbox.take() {
                self.handle_command(command);
            }
            if self.must_end() {
                break;
            }
            if self.core.has_work() || self.core.next_expiry().is_some_and(|at| at <= self.core.now()) {
                self.step();
            } else {
                // Only paused requests are left, if any.
                let expiry = self.core.next_expiry().map(|at| at.saturating_sub(self.core.now()));
                let drain = self.drain_until.map(|at| at.saturating_duration_since(Instant::now()));
                let timeout = expiry.into_iter().chain(drain).min();
                self.mailbox.wait(timeout);
            }
            self.publish_stats();
        }
        // Nothing new is taken from here on; what came in the meantime is told so.
        for command in self.mailbox.end() {
            if let Command::Add(_, _, accepted) = command {
                let _ = catch_unwind(AssertUnwindSafe(|| accepted(Err(EngineError::Stopped))));
            }
        }
        let ended = self.core.end_all(FinishReason::Abort, None);
        self.deliver_all(ended);
        self.publish_stats();
    }

    fn publish_stats(&self) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.core.stats();
    }

    /// Whether the thread's end has come: at once, after a drain, or because nobody can ask for anything any more.
    fn must_end(&mut self) -> bool {
        let is_idle = !self.core.has_work() && self.core.next_expiry().is_none();
        match self.mailbox.shutdown() {
            Some(Shutdown::Now) => true,
            Some(Shutdown::Drain(patience)) => {
                let until = *self.drain_until.get_or_insert_with(|| {
                    let now = Instant::now();
                    now.checked_add(patience).unwrap_or(now + Duration::from_secs(1 << 30))
                });
                is_idle || Instant::now() >= until
            }
            None => is_idle && self.mailbox.is_closed(),
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Add(request, sink, accepted) => {
                let id = request.id;
                let open = request.num_sequences();
                let added = self.core.add_request(*request);
                let is_live = added.is_ok();
                if is_live {
                    self.sinks.insert(id, OpenSink { sink, open });
                }
                if catch_unwind(AssertUnwindSafe(|| accepted(added))).is_err() && is_live {
                    self.abort(id);
                }
            }
            Command::Abort(id) => self.abort(id),
            Command::Resume(id) => self.core.resume(id),
        }
    }

    fn abort(&mut self, id: RequestId) {
        let ended = self.core.abort(id);
        self.deliver_all(ended);
    }

    /// One step. A panic in it (a defect) ends the requests with an error, not the engine.
    fn step(&mut self) {
        let outputs = match catch_unwind(AssertUnwindSafe(|| self.core.step())) {
            Ok(step) => {
                self.observe(&step);
                step.outputs
            }
            Err(_) => {
                let message = "the engine failed in a step; this is a defect";
                self.core.end_all(FinishReason::Error, Some(message))
            }
        };
        // An abort that came during the step holds for the step's own tokens. A sequence that ended in it has its reason.
        let aborted = self.mailbox.aborted();
        let wanted = |o: &RequestOutput| o.finish_reason.is_some() || !aborted.contains(&o.id);
        self.deliver_all(outputs.into_iter().filter(wanted).collect());
        aborted.iter().for_each(|id| self.abort(*id));
    }

    fn observe(&mut self, step: &StepOutput) {
        if let Some(mut observer) = self.observer.take()
            && catch_unwind(AssertUnwindSafe(|| observer(step))).is_ok()
        {
            self.observer = Some(observer);
        }
    }

    fn deliver_all(&mut self, outputs: Vec<RequestOutput>) {
        for output in outputs {
            self.deliver(output);
        }
    }

    fn deliver(&mut self, output: RequestOutput) {
        let id = output.id;
        let Some(OpenSink { sink, open }) = self.sinks.get_mut(&id) else { return };
        *open = open.saturating_sub(usize::from(output.finish_reason.is_some()));
        let is_last = *open == 0;
        let delivery = catch_unwind(AssertUnwindSafe(|| sink(output)));
        match delivery {
            Ok(Delivery::Ready) => {}
            Ok(Delivery::Pause) => self.core.pause(id),
            Ok(Delivery::Closed) | Err(_) => {
                self.sinks.remove(&id);
                self.core.abort(id);
                return;
            }
        }
        if is_last {
            self.sinks.remove(&id);
        }
    }
}
