//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::WeightsError;

/// A file that is being written changes every few seconds.
const ABANDONED_AFTER: Duration = Duration::from_secs(600);

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
        refuse_irregular(target)?;
        sweep(target, name);
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
        if let Some(Ok(folder)) = folder_of(&self.target).map(File::open) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    fn file(&mut self) -> &mut BufWriter<File> {
        self.file.as_mut().expect("there until commit")
    }
}

/// Renaming replaces whatever has the name: a device or a pipe would be gone, and a link would be instead of what it leads to.
fn refuse_irregular(target: &Path) -> Result<(), WeightsError> {
    let Ok(found) = std::fs::symlink_metadata(target) else { return Ok(()) };
    if found.is_file() {
        return Ok(());
    }
    let what = match found.file_type() {
        t if t.is_dir() => "a folder",
        t if t.is_symlink() => "a link",
        _ => "a pipe, a socket or a device",
    };
    let problem = format!("is {what}, which would be lost; name a new file or a regular one");
    Err(WeightsError::malformed(target.display().to_string(), problem))
}

/// Removes what writers of the same file left that were killed: their process is gone, and they wrote nothing for a while.
fn sweep(target: &Path, name: &std::ffi::OsStr) {
    let (Some(name), Some(folder)) = (name.to_str(), folder_of(target)) else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let is_abandoned = |entry: &std::fs::DirEntry| -> Option<bool> {
        let file = entry.file_name();
        let middle = file.to_str()?.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.')?;
        let (process, count) = middle.strip_suffix(".partial")?.split_once('-')?;
        let (process, _): (u32, u64) = (process.parse().ok()?, count.parse().ok()?);
        // A process of another container cannot be seen here; but it would be writing.
        let idle = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
        let is_gone = Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{process}")).exists();
        Some(is_gone && idle > ABANDONED_AFTER)
    };
    for entry in entries.flatten().filter(|e| is_abandoned(e) == Some(true)) {
        let _ = std::fs::remove_file(entry.path());
    }
}

fn folder_of(target: &Path) -> Option<&Path> {
    let folder = target.parent()?;
    Some(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
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

#[cfg(test)]
mod tests {
    use deephold_testkit::TempDir;

    use super::*;

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let dir = TempDir::new("atomic");
        std::fs::write(dir.join("file"), "old").expect("written");
        std::fs::create_dir(dir.join("folder")).expect("folder");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.join("file"), dir.join("link")).expect("link");
            std::os::unix::fs::symlink(dir.join("nothing"), dir.join("dangling")).expect("link");
            let made = std::process::Command::new("mkfifo").arg(dir.join("pipe")).status().expect("mkfifo");
            assert!(made.success());
            for name in ["link", "dangling", "pipe"] {
                let error = AtomicFile::create(&dir.join(name)).err().expect(name).to_string();
                assert!(error.contains("would be lost"), "{error}");
            }
            assert!(AtomicFile::create(Path::new("/dev/null")).is_err());
        }
        assert!(AtomicFile::create(&dir.join("folder")).is_err());
        let mut file = AtomicFile::create(&dir.join("file")).expect("a regular file");
        file.write_all(b"new").and_then(|()| file.flush()).expect("written");
        file.commit().expect("renamed");
        assert_eq!(std::fs::read(dir.join("file")).expect("file"), b"new");
    }

    #[test]
    fn files_of_killed_writers_are_swept() {
        let dir = TempDir::new("sweep");
        let long_ago = std::time::SystemTime::now() - ABANDONED_AFTER * 2;
        // No process has such a number.
        let cases = [
            (".m.gguf.4294967295-0.partial", long_ago, false),
            (".m.gguf.4294967295-1.partial", std::time::SystemTime::now(), true),
            (".m.gguf.1-0.partial", long_ago, true),
            (".n.gguf.4294967295-0.partial", long_ago, true),
            (".m.gguf.x-0.partial", long_ago, true),
            ("m.gguf.4294967295-0.partial", long_ago, true),
        ];
        for (name, time, _) in cases {
            let file = File::create(dir.join(name)).expect("created");
            file.set_modified(time).expect("time");
        }
        drop(AtomicFile::create(&dir.join("m.gguf")).expect("created"));
        for (name, _, stays) in cases {
            assert_eq!(dir.join(name).exists(), stays, "{name}");
        }
    }
}
