//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::WeightsError;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A file under a temporary name in the target's folder. [`AtomicFile::commit`] gives it its name; dropped before, it
/// is removed.
pub(crate) struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    pub(crate) fn create(target: &Path) -> Result<Self, WeightsError> {
        let Some(name) = target.file_name() else {
            return Err(WeightsError::malformed(target.display().to_string(), "does not name a file"));
        };
        // Process id and a count: two writers in one folder do not meet.
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{count}.partial", std::process::id()));
        let temporary = target.with_file_name(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(WeightsError::io("create", &temporary))?;
        Ok(Self { target: target.to_owned(), temporary, file: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// Flushes to disk and renames.
    pub(crate) fn commit(mut self) -> Result<(), WeightsError> {
        let file = self.file.take().expect("taken only here");
        let file = file.into_inner().map_err(|e| WeightsError::io("write", &self.temporary)(e.into_error()));
        let result = file.and_then(|file| {
            file.sync_all().map_err(WeightsError::io("write", &self.temporary))?;
            drop(file);
            std::fs::rename(&self.temporary, &self.target)
                .map_err(WeightsError::io("rename", &self.temporary))
        });
        if result.is_err() {
            // Best effort: the error that matters is already on its way.
            let _ = std::fs::remove_file(&self.temporary);
            return result;
        }
        // The name is on disk only when its folder is; systems that cannot sync folders say so and lose nothing else.
        let folder = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    fn file(&mut self) -> &mut BufWriter<File> {
        self.file.as_mut().expect("there until commit")
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file().seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
