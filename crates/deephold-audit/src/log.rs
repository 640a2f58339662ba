//! Writing: one thread, one write and one sync for all records that wait.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use deephold_base::{Clock, rfc3339};
use serde_json::Value;

use crate::{
    AuditError, Checkpoint, Hash, LogFile, MAX_LINE, chain, genesis, hex, parse_line, segment_name, segments,
    signed_bytes,
};

/// Records that may wait to be written.
const PLACES: usize = 4096;
/// Records of one write at most.
const BATCH: usize = 1024;

/// When a record counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// On the disk: what was acknowledged survives a loss of power.
    Always,
    /// With the system: what was acknowledged survives the end of the process; the disk follows within this time.
    Interval(Duration),
    /// With the system, which decides about the disk.
    Never,
}

/// How a log is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// When a record counts as written.
    pub fsync: FsyncPolicy,
    /// A segment of this size is followed by a new one.
    pub segment_bytes: u64,
    /// Records between signed checkpoints.
    pub checkpoint_every: u64,
    /// The signing key's file, made where it is missing; none for `signing.key` in the log's folder.
    pub key_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsync: FsyncPolicy::Always, segment_bytes: 64 << 20, checkpoint_every: 1000, key_file: None }
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its number, from 1.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

type Done = Box<dyn FnOnce(Result<Receipt, AuditError>) + Send>;

struct Entry {
    kind: &'static str,
    data: String,
    done: Done,
}

/// The open log; dropping it signs the head and closes it.
pub struct AuditLog {
    entries: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    head: Arc<Mutex<Receipt>>,
    dir: PathBuf,
}

impl AuditLog {
    /// Opens or makes the log in `dir`. A torn last line, which was never acknowledged, is cut off.
    ///
    /// # Errors
    /// [`AuditError::Locked`], [`AuditError::Damaged`] for anything else that is not as it was written, and the system's.
    pub fn open(dir: &Path, options: Options, clock: Arc<dyn Clock>) -> Result<Self, AuditError> {
        let mut writer = Writer::open(dir, options, clock)?;
        let (entries, queue) = sync_channel(PLACES);
        let head = Arc::new(Mutex::new(writer.head));
        let shared = Arc::clone(&head);
        let spawned = std::thread::Builder::new().name("audit".into()).spawn(move || {
            writer.run(&queue, &shared);
        });
        let thread = spawned.map_err(|e| AuditError::io("start the writer of", dir, e))?;
        Ok(Self { entries: Some(entries), thread: Some(thread), head, dir: dir.to_owned() })
    }

    /// Appends a record; `done` hears on the writer's thread when it is durable by the policy.
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

    /// The last record.
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

struct Writer {
    dir: PathBuf,
    /// Held for its lock.
    _log_file: File,
    id: String,
    key: Ed25519KeyPair,
    options: Options,
    clock: Arc<dyn Clock>,
    segment: u32,
    file: File,
    /// Bytes of the segment that are whole records.
    length: u64,
    head: Receipt,
    signed: u64,
    /// Something after `length` may lie in the file.
    torn: bool,
    unsynced: bool,
}

impl Writer {
    fn open(dir: &Path, options: Options, clock: Arc<dyn Clock>) -> Result<Self, AuditError> {
        std::fs::create_dir_all(dir).map_err(|e| AuditError::io("make", dir, e))?;
        let key_file = options.key_file.clone().unwrap_or_else(|| dir.join("signing.key"));
        let key = signing_key(&key_file)?;
        let path = dir.join("log.json");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut log_file = open.map_err(|e| AuditError::io("open", &path, e))?;
        match log_file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(AuditError::Locked),
            Err(std::fs::TryLockError::Error(e)) => return Err(AuditError::io("lock", &path, e)),
        }
        let id = identity(&mut log_file, &path, &key)?;
        let found = segments(dir)?;
        let number = found.last().map_or(1, |s| s.0);
        let path = dir.join(segment_name(number));
        let open = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = open.map_err(|e| AuditError::io("open", &path, e))?;
        let before = match found.len() {
            0 | 1 => Receipt { seq: 0, hash: genesis(&id) },
            n => {
                // The segment before ends with the record that this one continues.
                let path = &found[n - 2].1;
                let mut file = File::open(path).map_err(|e| AuditError::io("open", path, e))?;
                last_record(&mut file, path)?
                    .1
                    .ok_or_else(|| AuditError::damaged(path, 0, "the segment is empty"))?
            }
        };
        if found.len() <= 1 && number != 1 {
            return Err(AuditError::damaged(&path, 0, "the segments before it are missing"));
        }
        let (length, last) = last_record(&mut file, &path)?;
        let head = last.unwrap_or(before);
        file.set_len(length).map_err(|e| AuditError::io("repair", &path, e))?;
        let mut writer = Self {
            dir: dir.to_owned(),
            _log_file: log_file,
            id,
            key,
            options,
            clock,
            segment: number,
            file,
            length,
            head,
            signed: 0,
            torn: false,
            unsynced: false,
        };
        writer.sync_dir()?;
        Ok(writer)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(segment_name(self.segment))
    }

    fn sync_dir(&mut self) -> Result<(), AuditError> {
        // A new file's name is durable only with its folder.
        let synced = File::open(&self.dir).and_then(|d| d.sync_all());
        synced.map_err(|e| AuditError::io("sync", &self.dir, e))
    }

    fn run(&mut self, queue: &Receiver<Entry>, shared: &Mutex<Receipt>) {
        let interval = match self.options.fsync {
            FsyncPolicy::Interval(interval) => interval,
            _ => Duration::from_secs(3600),
        };
        loop {
            let first = match queue.recv_timeout(interval) {
                Ok(entry) => entry,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    self.sync_if_due();
                    continue;
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            };
            let mut batch = vec![first];
            while batch.len() < BATCH {
                match queue.try_recv() {
                    Ok(entry) => batch.push(entry),
                    Err(_) => break,
                }
            }
            match self.write(&batch) {
                Ok(receipts) => {
                    *shared.lock().unwrap_or_else(PoisonError::into_inner) = self.head;
                    batch.into_iter().zip(receipts).for_each(|(entry, receipt)| (entry.done)(Ok(receipt)));
                }
                Err(e) => batch.into_iter().for_each(|entry| (entry.done)(Err(e.clone()))),
            }
            if self.head.seq >= self.signed + self.options.checkpoint_every {
                // A checkpoint that could not be written is tried again with the next batch.
                let _ = self.sign();
            }
        }
        self.sync_if_due();
        if self.head.seq > self.signed {
            let _ = self.sign();
        }
    }

    fn sync_if_due(&mut self) {
        if self.unsynced && self.file.sync_data().is_ok() {
            self.unsynced = false;
        }
    }

    /// Writes a batch; on failure nothing of it stays.
    fn write(&mut self, batch: &[Entry]) -> Result<Vec<Receipt>, AuditError> {
        self.repair()?;
        if self.length >= self.options.segment_bytes {
            self.next_segment()?;
        }
        let mut head = self.head;
        let mut bytes = Vec::new();
        let mut receipts = Vec::with_capacity(batch.len());
        let time = rfc3339(self.clock.unix_time());
        for entry in batch {
            let seq = head.seq + 1;
            let start = bytes.len();
            let (kind, data, prev) = (entry.kind, &entry.data, hex(&head.hash));
            bytes.extend_from_slice(
                format!("{{\"seq\":{seq},\"time\":\"{time}\",\"kind\":\"{kind}\",\"data\":{data},\"prev\":\"{prev}\"")
                    .as_bytes(),
            );
            let hash = chain(&head.hash, &bytes[start..]);
            bytes.extend_from_slice(format!(",\"hash\":\"{}\"}}\n", hex(&hash)).as_bytes());
            head = Receipt { seq, hash };
            receipts.push(head);
        }
        self.torn = true;
        let written = self.file.write_all(&bytes).and_then(|()| match self.options.fsync {
            FsyncPolicy::Always => self.file.sync_data(),
            _ => Ok(()),
        });
        if let Err(e) = written {
            let error = AuditError::io("write", &self.path(), e);
            // What cannot be repaired now is tried again before the next batch.
            let _ = self.repair();
            return Err(error);
        }
        self.torn = false;
        self.unsynced = self.options.fsync != FsyncPolicy::Always;
        self.length += bytes.len() as u64;
        self.head = head;
        Ok(receipts)
    }

    /// Cuts off what a failed write may have left.
    fn repair(&mut self) -> Result<(), AuditError> {
        if self.torn {
            let cut = self.file.set_len(self.length).and_then(|()| self.file.sync_data());
            cut.map_err(|e| AuditError::io("repair", &self.path(), e))?;
            self.torn = false;
        }
        Ok(())
    }

    fn next_segment(&mut self) -> Result<(), AuditError> {
        self.file.sync_data().map_err(|e| AuditError::io("sync", &self.path(), e))?;
        let path = self.dir.join(segment_name(self.segment + 1));
        let open = OpenOptions::new().read(true).append(true).create_new(true).open(&path);
        self.file = open.map_err(|e| AuditError::io("make", &path, e))?;
        (self.segment, self.length) = (self.segment + 1, 0);
        self.sync_dir()
    }

    fn sign(&mut self) -> Result<(), AuditError> {
        self.file.sync_data().map_err(|e| AuditError::io("sync", &self.path(), e))?;
        let signature = self.key.sign(&signed_bytes(&self.id, self.head.seq, &self.head.hash));
        let line = Checkpoint {
            seq: self.head.seq,
            hash: hex(&self.head.hash),
            time: rfc3339(self.clock.unix_time()),
            signature: hex(signature.as_ref()),
        };
        let mut line = serde_json::to_string(&line).unwrap_or_default();
        line.push('\n');
        let path = self.dir.join("checkpoints.jsonl");
        let written =
            OpenOptions::new().read(true).append(true).create(true).open(&path).and_then(|mut f| {
                // A torn line of an earlier failure ends here.
                let length = f.seek(SeekFrom::End(0))?;
                if length > 0 {
                    f.seek(SeekFrom::End(-1))?;
                    let mut last = [0];
                    f.read_exact(&mut last)?;
                    if last != *b"\n" {
                        line.insert(0, '\n');
                    }
                }
                f.write_all(line.as_bytes())?;
                f.sync_data()
            });
        written.map_err(|e| AuditError::io("write", &path, e))?;
        self.signed = self.head.seq;
        Ok(())
    }
}

/// The log's id: from the file, or a new one.
fn identity(file: &mut File, path: &Path, key: &Ed25519KeyPair) -> Result<String, AuditError> {
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).map_err(|e| AuditError::io("read", path, e))?;
    if text.is_empty() {
        let mut bytes = [0; 16];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| AuditError::Key("the system gives no randomness"))?;
        let made = LogFile { format: 1, id: hex(&bytes), public_key: hex(key.public_key().as_ref()) };
        let text = serde_json::to_string(&made).unwrap_or_default();
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|e| AuditError::io("write", path, e))?;
        return Ok(made.id);
    }
    let found: LogFile =
        serde_json::from_str(&text).map_err(|e| AuditError::damaged(path, 1, e.to_string()))?;
    if found.format != 1 {
        return Err(AuditError::damaged(path, 1, format!("format {}, this program knows 1", found.format)));
    }
    if found.public_key != hex(key.public_key().as_ref()) {
        return Err(AuditError::Key("it is not the one that this log was begun with"));
    }
    Ok(found.id)
}

fn signing_key(path: &Path) -> Result<Ed25519KeyPair, AuditError> {
    let read = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                .map_err(|_| AuditError::Key("the system gives no randomness"))?;
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let written = options.open(path).and_then(|mut f| {
                f.write_all(made.as_ref())?;
                f.sync_all()
            });
            written.map_err(|e| AuditError::io("write", path, e))?;
            made.as_ref().to_vec()
        }
        Err(e) => return Err(AuditError::io("read", path, e)),
    };
    Ed25519KeyPair::from_pkcs8(&read).map_err(|_| AuditError::Key("the file holds no Ed25519 key"))
}

/// The length of whole lines, and the last of them.
fn last_record(file: &mut File, path: &Path) -> Result<(u64, Option<Receipt>), AuditError> {
    let io = |e| AuditError::io("read", path, e);
    let size = file.seek(SeekFrom::End(0)).map_err(io)?;
    // The last line and a torn one after it.
    let window = size.min(2 * MAX_LINE as u64);
    file.seek(SeekFrom::Start(size - window)).map_err(io)?;
    let mut tail = Vec::new();
    file.take(window).read_to_end(&mut tail).map_err(io)?;
    let Some(end) = tail.iter().rposition(|b| *b == b'\n') else {
        if window < size {
            return Err(AuditError::damaged(path, 0, "a line is longer than any that is written"));
        }
        return Ok((0, None));
    };
    let start = tail[..end].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    if start == 0 && window < size {
        return Err(AuditError::damaged(path, 0, "a line is longer than any that is written"));
    }
    let line = &tail[start..end];
    let bad = |problem: &str| AuditError::damaged(path, 0, format!("the last record {problem}"));
    let parsed = parse_line(line).map_err(bad)?;
    if chain(&parsed.prev, &line[..parsed.covered]) != parsed.hash {
        return Err(bad("has been edited"));
    }
    let length = size - window + end as u64 + 1;
    Ok((length, Some(Receipt { seq: parsed.seq, hash: parsed.hash })))
}
