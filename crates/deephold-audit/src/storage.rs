//! Where the log's files lie: a folder, or in tests a disk that fails.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::AuditError;

/// Files in one folder, by name.
pub(crate) trait Storage: Send {
    /// All names.
    fn names(&self) -> io::Result<Vec<String>>;

    /// A file from its beginning.
    fn read(&self, name: &str) -> io::Result<Box<dyn Read + '_>>;

    /// Appends to a file, which must exist. May fail after a part.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Writes bytes over those that a file has at `at`.
    fn overwrite(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file.
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;

    /// Makes an empty file, and its name durable. One that is there and empty, from an attempt that failed half-way, will do.
    fn create(&mut self, name: &str) -> io::Result<()>;

    /// Writes a whole file, durable under its name or not there at all.
    fn write_whole(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was appended to a file and how it was cut.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Since it was last asked: the file that somebody deleted while it was written, and that was written anew at a sync.
    fn take_restored(&mut self) -> Option<String> {
        None
    }
}

/// A folder on a disk, locked for one writer.
pub(crate) struct Folder {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
    /// The segment that is written, open.
    open: Option<(String, File)>,
    restored: Option<String>,
}

/// A lock that was let go may be held a moment longer by a child that is being started and has its parent's files still.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

impl Folder {
    /// Makes the folder where it is missing, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Self, AuditError> {
        create_private_dir(path).map_err(|e| AuditError::io("make", path, e))?;
        let lock_path = path.join("lock");
        let open = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path);
        let lock = open.map_err(|e| AuditError::io("open", &lock_path, e))?;
        let patience = Instant::now() + LOCK_PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), _lock: lock, open: None, restored: None }),
                Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => return Err(AuditError::Locked),
                Err(TryLockError::Error(e)) => return Err(AuditError::io("lock", &lock_path, e)),
            }
        }
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if self.open.as_ref().is_none_or(|o| o.0 != name) {
            let file = OpenOptions::new().read(true).append(true).open(self.path.join(name))?;
            self.open = Some((name.to_owned(), file));
        }
        self.open.as_mut().map(|o| &mut o.1).ok_or_else(|| io::Error::other("no file is open"))
    }
}

impl Storage for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(BufReader::with_capacity(1 << 16, File::open(self.path.join(name))?)))
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all(bytes)
    }

    fn overwrite(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        // A file that is open for appending writes at its end whatever it is told.
        let mut file = OpenOptions::new().write(true).open(self.path.join(name))?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(self.path.join(name))?;
        if file.metadata()?.len() > 0 {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.open = Some((name.to_owned(), file));
        sync_dir(&self.path)
    }

    fn write_whole(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        write_whole(&self.path.join(name), bytes, None)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        // Not only the data: a file that has grown or was cut has a new length.
        self.file(name)?.sync_all()?;
        self.restore_if_deleted(name)
    }

    fn take_restored(&mut self) -> Option<String> {
        self.restored.take()
    }
}

impl Folder {
    /// What is written into a file without a name would be lost with the process. As long as it is open, its bytes are there.
    #[cfg(unix)]
    fn restore_if_deleted(&mut self, name: &str) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let path = self.path.join(name);
        let held = self.file(name)?;
        let ours = held.metadata()?;
        match std::fs::metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(()),
            Ok(_) => return Err(io::Error::other("another file stands in its place")),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Err(_) => {}
        }
        let mut bytes = Vec::new();
        held.seek(SeekFrom::Start(0))?;
        held.read_to_end(&mut bytes)?;
        write_whole(&path, &bytes, None)?;
        self.open = None;
        self.restored = Some(name.to_owned());
        Ok(())
    }

    #[cfg(not(unix))]
    fn restore_if_deleted(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Writes beside the file, syncs, renames, and syncs the folder. `mode` is the file's, on Unix.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: Option<u32>) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = folder.join(format!(".{name}.partial"));
    let _ = std::fs::remove_file(&partial);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if let Some(mode) = mode {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    }
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(&partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&partial, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&partial);
    })?;
    sync_dir(folder)
}

/// Writes a file that its owner alone may read: whole and durable, or not at all.
///
/// # Errors
/// The system's.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, Some(0o600))
}

/// Makes a file that is not there yet, for its owner alone.
///
/// # Errors
/// The system's; a file that is there.
pub fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes a folder and those above it, for its owner alone, each durable in the one that holds it.
///
/// # Errors
/// The system's.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_private_dir(parent)?;
    let mut builder = std::fs::DirBuilder::new();
    // The log tells who asked what: it is nobody else's business.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    sync_dir(parent)
}

/// A new file's name is durable only with its folder.
fn sync_dir(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(path)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
