//! Writing, without threads: records to lines, lines to a storage, and a storage after a crash to a log again.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use deephold_base::{Clock, rfc3339};
use sha2::{Digest, Sha256};

use crate::format::{
    CHECKPOINT, CHECKPOINT_EVERY_MAX, HEADER, Hash, Header, Line, MAX_HEADER, NewRecord, REPAIR, Receipt,
    append_line, segment_name, segment_number, signed_bytes, torn_name,
};
use crate::lines::Lines;
use crate::options::{FsyncPolicy, Options};
use crate::storage::Storage;
use crate::{AuditError, SigningKey, hex};

/// The most that is kept of a torn end: a segment of the usual size.
const KEPT_MAX: u64 = 64 << 20;

/// The log's end, and how to continue it.
pub(crate) struct Writer<S> {
    storage: S,
    header: Header,
    key: SigningKey,
    options: Options,
    clock: Arc<dyn Clock>,
    segment: u32,
    /// Bytes of the segment that are whole records.
    length: u64,
    head: Receipt,
    /// The last record that is on the disk, and where it ends in the segment.
    durable: u64,
    durable_length: u64,
    /// A sync failed, or an earlier process may have seen one fail: the system may believe pages behind `durable_length`
    /// clean that never reached the disk, and would not write them at the next sync.
    suspect: bool,
    /// Ordinary records behind the last checkpoint.
    unsigned: u64,
    /// When the first of them was written, on the clock.
    unsigned_since: Duration,
    /// Something after `length` may lie in the file.
    torn: bool,
    /// When the file was last synced, on the clock.
    synced_at: Duration,
}

impl<S: Storage> Writer<S> {
    /// Opens or begins the log. What a crash left behind of records that were never acknowledged is cut off and kept apart,
    /// and a record tells of it.
    pub(crate) fn open(
        mut storage: S,
        key: SigningKey,
        options: Options,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuditError> {
        let names = storage.names().map_err(|e| AuditError::named("read", "folder", e))?;
        let mut segments: Vec<u32> = names.iter().filter_map(|n| segment_number(n)).collect();
        segments.sort_unstable();
        let (header, genesis) = header(&mut storage, &names, &segments, &key, &options)?;
        let number = segments.last().copied().unwrap_or(1);
        let name = segment_name(number);
        if let Some(missing) = (1..=number).find(|n| !segments.is_empty() && !segments.contains(n)) {
            return Err(AuditError::damaged(&segment_name(missing), 0, "the segment is missing"));
        }
        let before = match number {
            1 => Receipt { seq: 0, hash: genesis },
            // Only its end matters; the whole log is verified elsewhere.
            _ => last_record(&storage, &segment_name(number - 1))?,
        };
        if segments.is_empty() {
            storage.create(&name).map_err(|e| AuditError::named("make", &name, e))?;
        }
        let scan = Scan::of(&storage, &name, before)?;
        let kept = scan.torn.is_some().then(|| keep_torn(&mut storage, &names, &name, &scan)).transpose()?;
        let now = clock.now();
        let mut writer = Self {
            storage,
            header,
            key,
            options,
            clock,
            segment: number,
            length: scan.length,
            head: scan.head,
            durable: 0,
            durable_length: scan.durable_length.min(scan.length),
            suspect: true,
            unsigned: scan.unsigned,
            unsigned_since: now,
            torn: scan.torn.is_some(),
            synced_at: now,
        };
        writer.repair()?;
        // What is read may lie in the system's memory alone.
        writer.sync()?;
        if let (Some(torn), Some(kept)) = (scan.torn, kept) {
            let (bytes, sha256) = (torn.bytes, hex(&torn.sha256));
            let data = format!("{{\"bytes\":{bytes},\"sha256\":\"{sha256}\",\"kept\":\"{kept}\"}}");
            writer.write(&[(REPAIR, &data)])?;
        }
        Ok(writer)
    }

    pub(crate) fn head(&self) -> Receipt {
        self.head
    }

    #[cfg(test)]
    pub(crate) fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    #[cfg(test)]
    pub(crate) fn into_storage(self) -> S {
        self.storage
    }

    /// Writes a batch of records (kind, JSON) and, where it is due, a checkpoint. On failure nothing of it stays: none was
    /// acknowledged.
    pub(crate) fn write(&mut self, batch: &[(&str, &str)]) -> Result<Vec<Receipt>, AuditError> {
        self.repair()?;
        if self.length >= self.options.segment_bytes {
            self.next_segment()?;
        }
        let (mut head, mut unsigned) = (self.head, self.unsigned);
        let mut bytes = Vec::new();
        let mut receipts = Vec::with_capacity(batch.len());
        let time = rfc3339(self.clock.unix_time());
        if unsigned >= self.header.checkpoint_every {
            // A crash took the checkpoint that was due.
            head = self.append_checkpoint(&mut bytes, &head, &time);
            unsigned = 0;
        }
        if let Some(name) = self.storage.take_restored() {
            let data = format!("{{\"deleted\":\"{name}\"}}");
            let record = NewRecord { time: &time, kind: REPAIR, durable: self.durable, data: &data };
            head = append_line(&mut bytes, &head, &record);
            unsigned += 1;
        }
        for (kind, data) in batch {
            let record = NewRecord { time: &time, kind, durable: self.durable, data };
            head = append_line(&mut bytes, &head, &record);
            receipts.push(head);
            unsigned += 1;
            if unsigned >= self.header.checkpoint_every {
                head = self.append_checkpoint(&mut bytes, &head, &time);
                unsigned = 0;
            }
        }
        self.write_bytes(&bytes, head, unsigned)?;
        Ok(receipts)
    }

    /// Signs what is not signed yet.
    pub(crate) fn checkpoint(&mut self) -> Result<(), AuditError> {
        if self.unsigned == 0 {
            return Ok(());
        }
        self.repair()?;
        let mut bytes = Vec::new();
        let time = rfc3339(self.clock.unix_time());
        let head = self.append_checkpoint(&mut bytes, &self.head, &time);
        self.write_bytes(&bytes, head, 0)
    }

    fn append_checkpoint(&self, bytes: &mut Vec<u8>, head: &Receipt, time: &str) -> Receipt {
        let signature = self.key.sign(&signed_bytes(&self.header.id, head.seq + 1, &head.hash));
        let data = format!("{{\"signature\":\"{signature}\"}}");
        append_line(bytes, head, &NewRecord { time, kind: CHECKPOINT, durable: self.durable, data: &data })
    }

    fn write_bytes(&mut self, bytes: &[u8], head: Receipt, unsigned: u64) -> Result<(), AuditError> {
        let name = segment_name(self.segment);
        let now = self.clock.now();
        self.torn = true;
        let due = match self.options.fsync {
            FsyncPolicy::Always => true,
            FsyncPolicy::Interval(interval) => now.saturating_sub(self.synced_at) >= interval,
            FsyncPolicy::Never => false,
        };
        let mut written = self.storage.append(&name, bytes).map_err(|e| AuditError::named("write", &name, e));
        if written.is_ok() && due {
            written = self.sync_file(self.length + bytes.len() as u64);
        }
        if let Err(e) = written {
            // What cannot be repaired now is tried again before the next batch.
            let _ = self.repair();
            return Err(e);
        }
        self.torn = false;
        self.length += bytes.len() as u64;
        self.head = head;
        if self.unsigned == 0 {
            self.unsigned_since = now;
        }
        self.unsigned = unsigned;
        if due {
            self.note_synced();
        }
        Ok(())
    }

    fn note_synced(&mut self) {
        (self.durable, self.durable_length) = (self.head.seq, self.length);
        self.synced_at = self.clock.now();
    }

    /// Cuts off what a failed write may have left.
    fn repair(&mut self) -> Result<(), AuditError> {
        if self.torn {
            let name = segment_name(self.segment);
            let cut = self.storage.truncate(&name, self.length);
            cut.map_err(|e| AuditError::named("repair", &name, e))?;
            self.sync_file(self.length)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Makes durable what is written.
    pub(crate) fn sync(&mut self) -> Result<(), AuditError> {
        self.sync_file(self.length)?;
        self.note_synced();
        Ok(())
    }

    /// Syncs the segment, which has `length` bytes. After a sync that failed, what it may have lost is written once more first.
    fn sync_file(&mut self, length: u64) -> Result<(), AuditError> {
        let name = segment_name(self.segment);
        if self.suspect {
            let bytes = read_part(&self.storage, &name, self.durable_length, length - self.durable_length)?;
            let written = self.storage.overwrite(&name, self.durable_length, &bytes);
            let written = written.and_then(|()| self.storage.truncate(&name, length));
            written.map_err(|e| AuditError::named("write", &name, e))?;
        }
        let synced = self.storage.sync(&name).map_err(|e| AuditError::named("sync", &name, e));
        self.suspect = synced.is_err();
        synced
    }

    /// What is to be done although no record comes: a sync or a checkpoint whose time has come. Gives how long until the next.
    pub(crate) fn idle(&mut self) -> Option<Duration> {
        let now = self.clock.now();
        let mut next: Vec<Duration> = Vec::new();
        if let FsyncPolicy::Interval(interval) = self.options.fsync
            && self.durable < self.head.seq
        {
            let due = self.synced_at.saturating_add(interval);
            // A sync that fails is tried again after the same time.
            if due <= now && self.sync().is_err() {
                self.synced_at = now;
            }
            next.extend((self.durable < self.head.seq).then_some(self.synced_at.saturating_add(interval)));
        }
        if self.unsigned > 0 {
            let due = self.unsigned_since.saturating_add(self.options.checkpoint_after);
            if due <= now && self.checkpoint().is_err() {
                self.unsigned_since = now;
            }
            let due = self.unsigned_since.saturating_add(self.options.checkpoint_after);
            next.extend((self.unsigned > 0).then_some(due));
        }
        next.into_iter().min().map(|at| at.saturating_sub(now))
    }

    fn next_segment(&mut self) -> Result<(), AuditError> {
        // A segment ends with a checkpoint and is durable before there is another: so only the last one can be torn, and its
        // beginning has nothing unsigned before it.
        self.checkpoint()?;
        self.sync()?;
        let name = segment_name(self.segment + 1);
        self.storage.create(&name).map_err(|e| AuditError::named("make", &name, e))?;
        (self.segment, self.length, self.durable_length) = (self.segment + 1, 0, 0);
        Ok(())
    }
}

/// The header: from its file, or a new one where the log is to begin.
fn header(
    storage: &mut impl Storage,
    names: &[String],
    segments: &[u32],
    key: &SigningKey,
    options: &Options,
) -> Result<(Header, Hash), AuditError> {
    if names.iter().any(|n| n == HEADER) {
        let mut bytes = Vec::new();
        let read = storage.read(HEADER).and_then(|f| f.take(MAX_HEADER as u64 + 1).read_to_end(&mut bytes));
        read.map_err(|e| AuditError::named("read", HEADER, e))?;
        let (header, genesis) =
            Header::parse(&bytes).map_err(|e| AuditError::damaged(HEADER, 1, format!("it {e}")))?;
        if header.public_key != hex(&key.public_key()) {
            return Err(AuditError::Key("it is not the one that this log was begun with"));
        }
        return Ok((header, genesis));
    }
    if !segments.is_empty() {
        return Err(AuditError::damaged(HEADER, 0, "it is missing, but there are records"));
    }
    if options.checkpoint_every == 0 || options.checkpoint_every > CHECKPOINT_EVERY_MAX {
        return Err(AuditError::Options(format!(
            "checkpoint_every = {} must be 1..={CHECKPOINT_EVERY_MAX}",
            options.checkpoint_every
        )));
    }
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).map_err(|_| AuditError::Key("the system gives no randomness"))?;
    let header = Header {
        format: Header::FORMAT,
        id: hex(&id),
        public_key: hex(&key.public_key()),
        checkpoint_every: options.checkpoint_every,
    };
    let bytes = serde_json::to_vec(&header).map_err(|e| AuditError::damaged(HEADER, 0, e.to_string()))?;
    storage.write_whole(HEADER, &bytes).map_err(|e| AuditError::named("write", HEADER, e))?;
    Header::parse(&bytes).map_err(|e| AuditError::damaged(HEADER, 0, e))
}

/// What the last segment holds.
struct Scan {
    /// Bytes of whole, chained records.
    length: u64,
    /// Bytes up to the last record that a later one calls durable.
    durable_length: u64,
    head: Receipt,
    unsigned: u64,
    torn: Option<Torn>,
}

/// What lies behind the last whole record: left by a crash, never acknowledged.
struct Torn {
    bytes: u64,
    sha256: Hash,
}

impl Scan {
    /// Follows the chain from `before` to its end or to the first line that does not continue it. From there on nothing may be
    /// left but what a crash can leave: a later record that says of the damaged one that it was on the disk proves that it
    /// was changed afterwards, and the log is refused.
    fn of(storage: &impl Storage, name: &str, before: Receipt) -> Result<Self, AuditError> {
        let io = |e| AuditError::named("read", name, e);
        let mut lines = Lines::new(storage.read(name).map_err(io)?);
        let mut scan = Self { length: 0, durable_length: 0, head: before, unsigned: 0, torn: None };
        // Ends of records that no later record calls durable so far.
        let mut open_ends: VecDeque<(u64, u64)> = VecDeque::new();
        let mut torn: Option<(u64, Sha256)> = None;
        while let Some(line) = lines.next().map_err(io)? {
            if torn.is_none() {
                let next = line.whole.then(|| Line::parse(line.bytes)).and_then(Result::ok);
                let next = next
                    .filter(|l| l.is_consistent && l.seq == scan.head.seq + 1 && l.prev == scan.head.hash);
                if let Some(next) = next {
                    scan.length += line.bytes.len() as u64 + 1;
                    scan.unsigned = if next.kind == CHECKPOINT { 0 } else { scan.unsigned + 1 };
                    scan.head = Receipt { seq: next.seq, hash: next.hash };
                    while open_ends.front().is_some_and(|(seq, _)| *seq <= next.durable) {
                        scan.durable_length = open_ends.pop_front().map_or(0, |(_, end)| end);
                    }
                    open_ends.push_back((next.seq, scan.length));
                    continue;
                }
            }
            let (bytes, hasher) = torn.get_or_insert_with(|| (0, Sha256::new()));
            *bytes += line.bytes.len() as u64 + u64::from(line.whole);
            hasher.update(line.bytes);
            if line.whole {
                hasher.update(b"\n");
            }
            let lost = scan.head.seq + 1;
            if let Some(witness) = later_records(line.bytes).find(|w| w.durable >= lost) {
                let problem = format!(
                    "record {lost} is damaged, and record {} says that it was on the disk: it was changed afterwards",
                    witness.seq
                );
                return Err(AuditError::damaged(name, lost, problem));
            }
        }
        scan.torn = torn.map(|(bytes, hasher)| Torn { bytes, sha256: hasher.finalize().into() });
        Ok(scan)
    }
}

/// Copies what lies behind the last whole record into a file of its own, and names it.
fn keep_torn(
    storage: &mut impl Storage,
    names: &[String],
    segment: &str,
    scan: &Scan,
) -> Result<String, AuditError> {
    // A crash during the repair may leave another end behind the same record.
    let mut nth = 1;
    while names.contains(&torn_name(scan.head.seq + 1, nth)) {
        nth += 1;
    }
    let kept = torn_name(scan.head.seq + 1, nth);
    let bytes = read_part(storage, segment, scan.length, KEPT_MAX)?;
    storage.write_whole(&kept, &bytes).map_err(|e| AuditError::named("write", &kept, e))?;
    Ok(kept)
}

/// Up to `length` bytes of a file.
fn read_part(storage: &impl Storage, name: &str, from: u64, length: u64) -> Result<Vec<u8>, AuditError> {
    let mut bytes = Vec::new();
    let read = storage.read(name).and_then(|mut file| {
        std::io::copy(&mut (&mut file).take(from), &mut std::io::sink())?;
        file.take(length).read_to_end(&mut bytes)
    });
    read.map_err(|e| AuditError::named("read", name, e))?;
    Ok(bytes)
}

/// The last record of a segment that is not the last one.
fn last_record(storage: &impl Storage, name: &str) -> Result<Receipt, AuditError> {
    let io = |e| AuditError::named("read", name, e);
    let mut lines = Lines::new(storage.read(name).map_err(io)?);
    let (mut last, mut number) = (Vec::new(), 0);
    while let Some(line) = lines.next().map_err(io)? {
        number += 1;
        if !line.whole {
            return Err(AuditError::damaged(name, number, "the record is not whole"));
        }
        last.clear();
        last.extend_from_slice(line.bytes);
    }
    let bad = |problem: &str| AuditError::damaged(name, number, format!("the last record {problem}"));
    let line = Line::parse(&last).map_err(bad)?;
    if !line.is_consistent {
        return Err(bad("has been edited"));
    }
    Ok(Receipt { seq: line.seq, hash: line.hash })
}

/// Whole records anywhere in a line: a hole before them may have taken their newline.
fn later_records(line: &[u8]) -> impl Iterator<Item = Line<'_>> {
    const BEGIN: &[u8] = b"{\"seq\":";
    let starts = (0..line.len()).filter(|at| line[*at..].starts_with(BEGIN));
    starts.filter_map(|at| Line::parse(&line[at..]).ok().filter(|l| l.is_consistent))
}
