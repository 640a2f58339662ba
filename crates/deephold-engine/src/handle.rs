//! The engine on a thread of its own.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::request::{FinishReason, Request, RequestId, RequestOutput};
use crate::{EngineCore, EngineError, EngineStats, StepOutput};

/// Commands that may stand in the queue; beyond them the engine is busy.
const COMMANDS: usize = 4096;

/// Takes a request's outputs on the engine's thread, so it must not wait; false ends the request.
pub type OutputSink = Box<dyn FnMut(RequestOutput) -> bool + Send>;

/// Hears whether a request was accepted, on the engine's thread.
pub type Accepted = Box<dyn FnOnce(Result<(), EngineError>) + Send>;

/// Sees every step, on the engine's thread.
pub type StepObserver = Box<dyn FnMut(&StepOutput) + Send>;

enum Command {
    Add(Box<Request>, OutputSink, Accepted),
    Abort(RequestId),
}

/// Runs an [`EngineCore`]; when it and all streams are dropped, the thread ends after the requests in it.
pub struct EngineHandle {
    commands: SyncSender<Command>,
    stats: Arc<Mutex<EngineStats>>,
}

/// The outputs of one request; dropping it aborts the request.
pub struct RequestStream {
    id: RequestId,
    outputs: Receiver<RequestOutput>,
    commands: SyncSender<Command>,
    /// Sequences that have not finished.
    open: usize,
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
        let (commands, queue) = sync_channel(COMMANDS);
        let stats = Arc::new(Mutex::new(core.stats()));
        let server = Server { core, sinks: HashMap::new(), stats: Arc::clone(&stats), observer };
        std::thread::Builder::new().name("engine".into()).spawn(move || server.run(&queue))?;
        Ok(Self { commands, stats })
    }

    /// Queues a request; never waits. `accepted` hears what [`EngineCore::add_request`] says, then `sink` the outputs.
    ///
    /// # Errors
    /// [`EngineError::Stopped`], or [`EngineError::Busy`] where too many commands stand before it.
    pub fn submit_with(
        &self,
        request: Request,
        sink: OutputSink,
        accepted: Accepted,
    ) -> Result<(), EngineError> {
        self.commands.try_send(Command::Add(Box::new(request), sink, accepted)).map_err(|e| match e {
            TrySendError::Full(_) => EngineError::Busy { waiting: COMMANDS },
            TrySendError::Disconnected(_) => EngineError::Stopped,
        })
    }

    /// Ends a request before its next step, without further output.
    pub fn abort(&self, id: RequestId) {
        // A full queue means a busy engine; the engine notices the closed sink at its next output.
        let _ = self.commands.try_send(Command::Abort(id));
    }

    /// Queues a request and waits until it is accepted.
    ///
    /// # Errors
    /// What [`EngineCore::add_request`] refuses.
    pub fn submit(&self, request: Request) -> Result<RequestStream, EngineError> {
        let (id, open) = (request.id, request.params.n);
        // One place for each output that can ever come, so that the engine never waits for a slow reader; the engine
        // cuts max_tokens to the context in the same way. Channels grow as they fill.
        let places = request.params.max_tokens.min(1 << 24).saturating_add(1).saturating_mul(open);
        let (outputs, receiver) = bounded(places);
        let (answer, answered) = sync_channel(1);
        let sink = Box::new(move |output| outputs.try_send(output).is_ok());
        self.submit_with(request, sink, Box::new(move |result| _ = answer.send(result)))?;
        answered.recv().map_err(|_| EngineError::Stopped)??;
        Ok(RequestStream { id, outputs: receiver, commands: self.commands.clone(), open })
    }

    /// Counters and state after the last step or command.
    pub fn stats(&self) -> EngineStats {
        self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
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
        let received = match timeout {
            None => self.outputs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(timeout) => self.outputs.recv_timeout(timeout),
        };
        match received {
            Ok(output) => {
                self.open -= usize::from(output.finish_reason.is_some());
                Some(output)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.open = 0;
                None
            }
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if self.open > 0 {
            // A full queue means a busy engine; the engine notices the closed channel at its next output.
            let _ = self.commands.try_send(Command::Abort(self.id));
        }
    }
}

fn bounded(places: usize) -> (SyncSender<RequestOutput>, Receiver<RequestOutput>) {
    // The array of a bounded channel is allocated whole; answers are rarely as long as they may be.
    sync_channel(places.min(1 << 16))
}

/// What the thread owns.
struct Server {
    core: EngineCore,
    sinks: HashMap<RequestId, OutputSink>,
    stats: Arc<Mutex<EngineStats>>,
    observer: StepObserver,
}

impl Server {
    fn run(mut self, queue: &Receiver<Command>) {
        loop {
            if !self.core.has_work() {
                match queue.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = queue.try_recv() {
                self.obey(command);
            }
            if self.core.has_work() {
                self.step();
            }
            *self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = self.core.stats();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add(request, sink, accepted) => {
                let id = request.id;
                let added = self.core.add_request(*request);
                if added.is_ok() {
                    self.sinks.insert(id, sink);
                }
                accepted(added);
            }
            Command::Abort(id) => {
                self.core.abort(id);
                self.sinks.remove(&id);
            }
        }
    }

    /// One step; a failure or a panic in it ends the requests, not the engine.
    fn step(&mut self) {
        let message = match catch_unwind(AssertUnwindSafe(|| self.core.step())) {
            Ok(Ok(out)) => {
                (self.observer)(&out);
                for output in out.outputs {
                    self.deliver(output);
                }
                return;
            }
            Ok(Err(e)) => e.to_string(),
            Err(_) => "the engine failed in a step; this is a defect".to_owned(),
        };
        self.core.abort_all();
        for (id, mut sink) in self.sinks.drain() {
            sink(RequestOutput {
                id,
                seq_idx: 0,
                tokens: Vec::new(),
                finish_reason: Some(FinishReason::Error),
                message: Some(message.clone()),
                cached_tokens: 0,
                queue_time: Duration::ZERO,
                embedding: None,
            });
        }
    }

    fn deliver(&mut self, output: RequestOutput) {
        let id = output.id;
        let Some(sink) = self.sinks.get_mut(&id) else { return };
        let wanted = sink(output);
        if !wanted {
            self.core.abort(id);
        }
        if !self.core.is_live(id) {
            self.sinks.remove(&id);
        }
    }
}
