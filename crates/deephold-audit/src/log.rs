//! The writer's thread: one write and one sync for all records that wait.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use deephold_base::Clock;
use serde_json::Value;

use crate::format::MAX_LINE;
use crate::options::Options;
use crate::storage::{Folder, Storage};
use crate::writer::Writer;
use crate::{AuditError, Receipt, SigningKey};

/// Records that may wait to be written.
const WAITING_MAX: usize = 4096;
/// Records of one write at most.
const BATCH_MAX: usize = 1024;

type Done = Box<dyn FnOnce(Result<Receipt, AuditError>) + Send>;

struct Entry {
    kind: &'static str,
    data: String,
    done: Done,
}

/// The open log. Dropping it writes what waits, signs the end and closes it.
pub struct AuditLog {
    entries: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    head: Arc<Mutex<Receipt>>,
    dir: PathBuf,
}

impl AuditLog {
    /// Opens or begins the log in `dir`. What a crash tore, which was never acknowledged, is cut off and noted in a record.
    ///
    /// # Errors
    /// [`AuditError::Locked`], [`AuditError::Damaged`] for anything else that is not as it was written,
    /// [`AuditError::Key`] for another key than the one that the log was begun with, and the system's.
    pub fn open(
        dir: &Path,
        key: SigningKey,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuditError> {
        let mut writer = Writer::open(Folder::lock(dir)?, key, options, clock)?;
        let (entries, queue) = sync_channel(WAITING_MAX);
        let head = Arc::new(Mutex::new(writer.head()));
        let shared = Arc::clone(&head);
        let spawned = std::thread::Builder::new().name("audit".into()).spawn(move || {
            run(&mut writer, &queue, &shared);
        });
        let thread = spawned.map_err(|e| AuditError::io("start the writer of", dir, e))?;
        Ok(Self { entries: Some(entries), thread: Some(thread), head, dir: dir.to_owned() })
    }

    /// Appends a record; `done` hears on the writer's thread when it is durable by the policy. `kind` is a short name
    /// without quotes or backslashes.
    pub fn append_with(&self, kind: &'static str, data: &Value, done: Done) {
        let data = data.to_string();
        // The fields around the data take less than 512 bytes.
        if data.len() + 512 > MAX_LINE {
            return done(Err(AuditError::TooLarge { bytes: data.len() }));
        }
        let Some(entries) = &self.entries else { return done(Err(AuditError::Closed)) };
        match entries.try_send(Entry { kind, data, done }) {
            Ok(()) => {}
            Err(TrySendError::Full(entry)) => (entry.done)(Err(AuditError::Busy)),
            Err(TrySendError::Disconnected(entry)) => (entry.done)(Err(AuditError::Closed)),
        }
    }

    /// Appends a record and waits until it is durable by the policy.
    ///
    /// # Errors
    /// The record is not in the log then.
    pub fn append(&self, kind: &'static str, data: &Value) -> Result<Receipt, AuditError> {
        let (answer, answered) = sync_channel(1);
        self.append_with(kind, data, Box::new(move |r| _ = answer.send(r)));
        answered.recv().unwrap_or(Err(AuditError::Closed))
    }

    /// The last record, checkpoints included. Written down elsewhere, it proves later that the log was not cut off.
    pub fn head(&self) -> Receipt {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.entries = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's life: batches as they come, and in between what is due by time.
fn run(writer: &mut Writer<impl Storage>, queue: &Receiver<Entry>, shared: &Mutex<Receipt>) {
    let publish = |writer: &Writer<_>| {
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = writer.head();
    };
    loop {
        let due = writer.idle();
        publish(writer);
        let first = match due {
            // Nothing is due: only a record or the end can come.
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => queue.recv_timeout(due),
        };
        let first = match first {
            Ok(entry) => entry,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut batch = vec![first];
        batch.extend(queue.try_iter().take(BATCH_MAX - 1));
        let records: Vec<(&str, &str)> = batch.iter().map(|e| (e.kind, e.data.as_str())).collect();
        let written = writer.write(&records);
        publish(writer);
        match written {
            Ok(receipts) => {
                batch.into_iter().zip(receipts).for_each(|(entry, receipt)| (entry.done)(Ok(receipt)))
            }
            Err(e) => batch.into_iter().for_each(|entry| (entry.done)(Err(e.clone()))),
        }
    }
    // What cannot be signed or synced at the end is signed by the next who opens the log.
    let _ = writer.checkpoint();
    let _ = writer.sync();
    publish(writer);
}
