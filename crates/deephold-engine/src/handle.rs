//! The engine on a thread of its own.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::request::{FinishReason, Request, RequestId, RequestOutput};
use crate::{EngineCore, EngineError, EngineStats};

/// Commands that may stand in the queue; more callers wait.
const COMMANDS: usize = 256;

enum Command {
    Add(Box<Request>, SyncSender<RequestOutput>, SyncSender<Result<(), EngineError>>),
    Abort(RequestId),
    Stats(SyncSender<EngineStats>),
}

/// Runs an [`EngineCore`]; dropping it ends the thread and with it all requests.
pub struct EngineHandle {
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
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
    pub fn spawn(core: EngineCore) -> std::io::Result<Self> {
        let (commands, queue) = sync_channel(COMMANDS);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || serve(core, &queue))?;
        Ok(Self { commands: Some(commands), thread: Some(thread) })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// What [`EngineCore::add_request`] refuses.
    pub fn submit(&self, request: Request) -> Result<RequestStream, EngineError> {
        let (id, open) = (request.id, request.params.n);
        let commands = self.commands.clone().ok_or(EngineError::Stopped)?;
        // One place for each output that can ever come, so that the engine never waits for a slow reader; the engine
        // cuts max_tokens to the context in the same way. Channels grow as they fill.
        let places = request.params.max_tokens.min(1 << 24).saturating_add(1).saturating_mul(open);
        let (outputs, receiver) = bounded(places);
        let (answer, answered) = sync_channel(1);
        commands.send(Command::Add(Box::new(request), outputs, answer)).map_err(|_| EngineError::Stopped)?;
        answered.recv().map_err(|_| EngineError::Stopped)??;
        Ok(RequestStream { id, outputs: receiver, commands, open })
    }

    /// Counters and state.
    ///
    /// # Errors
    /// [`EngineError::Stopped`].
    pub fn stats(&self) -> Result<EngineStats, EngineError> {
        let (answer, answered) = sync_channel(1);
        let commands = self.commands.as_ref().ok_or(EngineError::Stopped)?;
        commands.send(Command::Stats(answer)).map_err(|_| EngineError::Stopped)?;
        answered.recv().map_err(|_| EngineError::Stopped)
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Streams hold senders too: the thread ends when the last is gone. Joining here would wait for them.
            drop(thread);
        }
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

type Readers = HashMap<RequestId, SyncSender<RequestOutput>>;

fn serve(mut core: EngineCore, queue: &Receiver<Command>) {
    let mut readers = Readers::new();
    loop {
        if !core.has_work() {
            match queue.recv() {
                Ok(command) => obey(&mut core, &mut readers, command),
                Err(_) => return,
            }
        }
        while let Ok(command) = queue.try_recv() {
            obey(&mut core, &mut readers, command);
        }
        if core.has_work() {
            step(&mut core, &mut readers);
        }
    }
}

fn obey(core: &mut EngineCore, readers: &mut Readers, command: Command) {
    match command {
        Command::Add(request, outputs, answer) => {
            let id = request.id;
            let added = core.add_request(*request);
            if added.is_ok() {
                readers.insert(id, outputs);
            }
            if answer.send(added).is_err() {
                core.abort(id);
                readers.remove(&id);
            }
        }
        Command::Abort(id) => {
            core.abort(id);
            readers.remove(&id);
        }
        Command::Stats(answer) => {
            let _ = answer.send(core.stats());
        }
    }
}

/// One step; a failure or a panic in it ends the requests, not the engine.
fn step(core: &mut EngineCore, readers: &mut Readers) {
    let message = match catch_unwind(AssertUnwindSafe(|| core.step())) {
        Ok(Ok(out)) => {
            for output in out.outputs {
                deliver(core, readers, output);
            }
            return;
        }
        Ok(Err(e)) => e.to_string(),
        Err(_) => "the engine failed in a step; this is a defect".to_owned(),
    };
    core.abort_all();
    for (id, reader) in readers.drain() {
        let _ = reader.try_send(RequestOutput {
            id,
            seq_idx: 0,
            tokens: Vec::new(),
            finish_reason: Some(FinishReason::Error),
            message: Some(message.clone()),
            cached_tokens: 0,
        });
    }
}

fn deliver(core: &mut EngineCore, readers: &mut Readers, output: RequestOutput) {
    let id = output.id;
    let Some(reader) = readers.get(&id) else { return };
    match reader.try_send(output) {
        Ok(()) => {}
        // Gone, or so slow that a whole answer waits: either way nobody reads it.
        Err(TrySendError::Disconnected(_) | TrySendError::Full(_)) => {
            core.abort(id);
            readers.remove(&id);
        }
    }
}
