//! A disk that fails in every way that disks do, thousands of times, from seeds.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use deephold_base::ManualClock;

use crate::format::Receipt;
use crate::storage::Storage;
use crate::verify::verify_files;
use crate::writer::Writer;
use crate::{AuditError, FsyncPolicy, Options, SigningKey, VerifyReport};

const SECTOR: usize = 64;

/// SplitMix64; the audit crate stands below the test kit.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

#[derive(Default)]
struct MemoryFile {
    /// What the process sees.
    current: Vec<u8>,
    /// What survives a loss of power.
    durable: Vec<u8>,
    /// Since the last sync.
    pending: Vec<Change>,
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes: new } => {
            let end = at + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(new);
        }
        Change::Truncate(length) => bytes.truncate(*length),
    }
}

/// Files in memory, with what a disk may do to them.
struct Disk {
    files: BTreeMap<String, MemoryFile>,
    rng: Rng,
    /// One call in so many fails; 0 for none.
    fail_one_in: usize,
    read_only: bool,
    syncs: usize,
}

impl Disk {
    fn new(seed: u64) -> Self {
        Self { files: BTreeMap::new(), rng: Rng(seed), fail_one_in: 0, read_only: false, syncs: 0 }
    }

    fn fails(&mut self) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let fails = self.fail_one_in > 0 && self.rng.one_in(self.fail_one_in);
        if fails { Err(io::Error::other("the disk failed")) } else { Ok(()) }
    }

    /// The power goes: of what was not synced, any sectors may have reached the disk, and a cut may not have.
    fn lose_power(&mut self) {
        let rng = &mut self.rng;
        for file in self.files.values_mut() {
            for change in std::mem::take(&mut file.pending) {
                match change {
                    Change::Write { at, bytes } => {
                        let mut sector = at;
                        while sector < at + bytes.len() {
                            let end = (sector / SECTOR * SECTOR + SECTOR).min(at + bytes.len());
                            if rng.one_in(2) {
                                let bytes = bytes[sector - at..end - at].to_vec();
                                apply(&mut file.durable, &Change::Write { at: sector, bytes });
                            }
                            sector = end;
                        }
                    }
                    truncate if rng.one_in(2) => apply(&mut file.durable, &truncate),
                    Change::Truncate(_) => {}
                }
            }
            file.current = file.durable.clone();
        }
    }

    fn change(&mut self, name: &str, change: Change) -> io::Result<()> {
        let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        apply(&mut file.current, &change);
        file.pending.push(change);
        Ok(())
    }
}

impl Storage for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.files.get(name).ok_or(io::ErrorKind::NotFound)?.current.as_slice()))
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let at = self.files.get(name).ok_or(io::ErrorKind::NotFound)?.current.len();
        if let Err(e) = self.fails() {
            if !self.read_only {
                // Full after a part.
                let part = bytes[..self.rng.below(bytes.len() + 1)].to_vec();
                self.change(name, Change::Write { at, bytes: part })?;
            }
            return Err(e);
        }
        self.change(name, Change::Write { at, bytes: bytes.to_vec() })
    }

    fn overwrite(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let failed = self.fails();
        let bytes = if failed.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        let file = &self.files.get(name).ok_or(io::ErrorKind::NotFound)?.current;
        assert_eq!(&file[at as usize..at as usize + bytes.len()], bytes, "the same bytes again");
        if !self.read_only {
            self.change(name, Change::Write { at: at as usize, bytes: bytes.to_vec() })?;
        }
        failed
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.fails()?;
        self.change(name, Change::Truncate(length as usize))
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        if self.files.get(name).is_some_and(|f| !f.current.is_empty()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let failed = self.fails();
        // The file may be there although its folder could not be synced.
        if failed.is_ok() || (!self.read_only && self.rng.one_in(2)) {
            self.files.insert(name.to_owned(), MemoryFile::default());
        }
        failed
    }

    fn write_whole(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.fails()?;
        let (current, durable) = (bytes.to_vec(), bytes.to_vec());
        self.files.insert(name.to_owned(), MemoryFile { current, durable, pending: Vec::new() });
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.syncs += 1;
        let failed = self.fails();
        let lossy = failed.is_err();
        let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        for change in std::mem::take(&mut file.pending) {
            // After a failed sync the system believes the pages clean, whether they were written or not: they are never
            // written again.
            if !lossy || self.rng.one_in(2) {
                apply(&mut file.durable, &change);
            }
        }
        failed
    }
}

fn key() -> SigningKey {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::Ed25519KeyPair;
    use std::sync::OnceLock;
    static KEY: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes =
        KEY.get_or_init(|| Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap().as_ref().to_vec());
    SigningKey::from_pkcs8(bytes).unwrap()
}

fn verified(disk: &Disk, expected: Option<Receipt>) -> VerifyReport {
    let open = |name: &str| disk.read(name).map_err(|e| AuditError::named("read", name, e));
    verify_files(&disk.names().unwrap(), &open, &key().public_key(), expected).unwrap()
}

fn options(rng: &mut Rng, fsync: FsyncPolicy) -> Options {
    Options {
        fsync,
        segment_bytes: 300 + rng.below(4000) as u64,
        checkpoint_every: 1 + rng.below(6) as u64,
        checkpoint_after: Duration::from_millis(20),
    }
}

/// Opens, with failures now and then; a failing disk may refuse, but must not be called damaged.
fn open(mut disk: Disk, options: &Options, clock: &ManualClock, seed: u64) -> Writer<Disk> {
    loop {
        let (files, rng, failing) = (disk.files, disk.rng, disk.fail_one_in);
        // A refused opening takes the storage with it; what it did to the files is kept by way of a shared copy.
        let shared = Arc::new(std::sync::Mutex::new(Disk {
            files,
            rng,
            fail_one_in: failing,
            read_only: false,
            syncs: 0,
        }));
        let attempt =
            Writer::open(Shared(Arc::clone(&shared)), key(), options.clone(), Arc::new(clock.clone()));
        match attempt {
            Ok(writer) => {
                drop(writer);
                let Ok(shared) = Arc::try_unwrap(shared) else { panic!("a copy is left") };
                disk = shared.into_inner().unwrap();
                disk.fail_one_in = 0;
                return Writer::open(disk, key(), options.clone(), Arc::new(clock.clone()))
                    .unwrap_or_else(|e| panic!("seed {seed}: opened once, not twice: {e}"));
            }
            Err(AuditError::Io { .. }) => {
                let Ok(shared) = Arc::try_unwrap(shared) else { panic!("a copy is left") };
                disk = shared.into_inner().unwrap();
                disk.fail_one_in = if disk.rng.one_in(3) { 0 } else { failing };
            }
            Err(e) => panic!("seed {seed}: {e}"),
        }
    }
}

struct Shared(Arc<std::sync::Mutex<Disk>>);

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }
}

impl Storage for Shared {
    fn names(&self) -> io::Result<Vec<String>> {
        self.with(|d| d.names())
    }
    fn read(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let mut bytes = Vec::new();
        self.with(|d| d.read(name).and_then(|mut r| r.read_to_end(&mut bytes)))?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.with(|d| d.append(name, bytes))
    }
    fn overwrite(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|d| d.overwrite(name, at, bytes))
    }
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.with(|d| d.truncate(name, length))
    }
    fn create(&mut self, name: &str) -> io::Result<()> {
        self.with(|d| d.create(name))
    }
    fn write_whole(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.with(|d| d.write_whole(name, bytes))
    }
    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.with(|d| d.sync(name))
    }
}

/// One life of a log on a failing disk: several times opened, written and cut short. `survives` says whether what was
/// acknowledged must be there after a loss of power.
fn life(seed: u64, fsync: FsyncPolicy, power: bool) {
    let mut rng = Rng(seed ^ 0x5eed);
    let clock = ManualClock::default();
    let options = options(&mut rng, fsync);
    let survives = !power || fsync == FsyncPolicy::Always;
    let mut disk = Disk::new(seed);
    let mut acknowledged: Vec<Receipt> = Vec::new();
    for _ in 0..4 {
        disk.fail_one_in = [0, 3, 12][rng.below(3)];
        let mut writer = open(disk, &options, &clock, seed);
        if survives && let Some(last) = acknowledged.last() {
            assert!(writer.head().seq >= last.seq, "seed {seed}: {} was acknowledged", last.seq);
        } else {
            acknowledged.retain(|r| r.seq <= writer.head().seq);
        }
        for _ in 0..rng.below(12) {
            writer.storage_mut().fail_one_in = [0, 0, 2, 6][rng.below(4)];
            writer.storage_mut().read_only = rng.one_in(20);
            clock.advance(Duration::from_millis(rng.below(30) as u64));
            match rng.below(8) {
                0 => _ = writer.checkpoint(),
                1 => _ = writer.idle(),
                _ => {
                    let pad = format!("{{\"pad\":\"{}\"}}", "y".repeat(rng.below(200)));
                    let batch: Vec<(&str, &str)> =
                        (0..1 + rng.below(4)).map(|_| ("x", pad.as_str())).collect();
                    if let Ok(receipts) = writer.write(&batch) {
                        assert_eq!(receipts.len(), batch.len());
                        acknowledged.extend(receipts);
                    }
                }
            }
        }
        disk = writer.into_storage();
        disk.read_only = false;
        if power {
            disk.lose_power();
        }
    }
    disk.fail_one_in = 0;
    let disk = open(disk, &options, &clock, seed).into_storage();
    let last = if survives { acknowledged.last().copied() } else { None };
    let report = verified(&disk, last);
    assert!(report.ok, "seed {seed}: {:?}", report.finding);
    if survives {
        // Not only the last: every acknowledged record stands where it was said to.
        let receipts: BTreeMap<u64, Receipt> = acknowledged.iter().map(|r| (r.seq, *r)).collect();
        let mut found = 0;
        for name in disk.names().unwrap().iter().filter(|n| n.starts_with("audit-")) {
            let mut lines = crate::lines::Lines::new(disk.read(name).unwrap());
            while let Some(line) = lines.next().unwrap() {
                let line = crate::format::Line::parse(line.bytes).unwrap();
                if let Some(receipt) = receipts.get(&line.seq) {
                    assert_eq!(receipt.hash, line.hash, "seed {seed}: record {}", line.seq);
                    found += 1;
                }
            }
        }
        assert_eq!(found, receipts.len(), "seed {seed}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    (0..2500).for_each(|seed| life(seed, FsyncPolicy::Always, true));
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_dies() {
    for seed in 0..500 {
        life(seed, FsyncPolicy::Interval(Duration::from_millis(50)), false);
        life(seed, FsyncPolicy::Never, false);
    }
}

/// Without a sync records may be lost with the power, but the log opens and verifies: what is left is a beginning.
#[test]
fn a_log_that_is_synced_rarely_is_whole_after_a_loss_of_power() {
    for seed in 0..1000 {
        life(seed, FsyncPolicy::Interval(Duration::from_millis(50)), true);
        life(seed, FsyncPolicy::Never, true);
    }
}

/// The first design synced only when no record came.
#[test]
fn an_interval_is_kept_under_load() {
    let clock = ManualClock::default();
    let fsync = FsyncPolicy::Interval(Duration::from_millis(50));
    let options = Options { fsync, ..Options::default() };
    let mut writer = Writer::open(Disk::new(1), key(), options, Arc::new(clock.clone())).unwrap();
    let before = writer.storage_mut().syncs;
    for _ in 0..100 {
        clock.advance(Duration::from_millis(10));
        writer.write(&[("x", "{}")]).unwrap();
    }
    let syncs = writer.storage_mut().syncs - before;
    assert!((15..=25).contains(&syncs), "{syncs} syncs in a second");
    // And what is left over follows when it is quiet.
    clock.advance(Duration::from_millis(10));
    writer.write(&[("x", "{}")]).unwrap();
    let before = writer.storage_mut().syncs;
    assert!(writer.idle().is_some());
    clock.advance(Duration::from_millis(50));
    writer.idle();
    assert!(writer.storage_mut().syncs > before);
}

#[test]
fn a_quiet_log_is_signed_to_its_end() {
    let clock = ManualClock::default();
    let mut writer = Writer::open(Disk::new(1), key(), Options::default(), Arc::new(clock.clone())).unwrap();
    writer.write(&[("x", "{}")]).unwrap();
    assert_eq!(writer.idle(), Some(Duration::from_secs(10)));
    clock.advance(Duration::from_secs(10));
    assert_eq!(writer.idle(), None);
    let report = verified(&writer.into_storage(), None);
    assert!(report.ok && report.unsigned == 0 && report.records == 2, "{report:?}");
}
