//! Files in memory without reading them.

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::WeightsError;
use crate::files::open_regular;

/// A file mapped read-only, or one that is part of the program.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Map(Mmap),
    Static(&'static [u8]),
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = open_regular(path)?;
        let metadata = file.metadata().map_err(WeightsError::io("read", path))?;
        // An empty mapping is refused by some systems.
        let source = if metadata.len() == 0 {
            Source::Static(&[])
        } else {
            // SAFETY: the mapping is private and read-only. Whoever truncates the file while it is open makes reads
            // fault (SIGBUS), as with every mapped reader; the documentation tells operators to replace files by
            // renaming, which leaves this mapping intact. No reference is handed out that outlives `self`.
            Source::Map(unsafe { Mmap::map(&file) }.map_err(WeightsError::io("map", path))?)
        };
        Ok(Self { path: path.to_owned(), source })
    }

    pub(crate) fn from_static(path: &Path, bytes: &'static [u8]) -> Self {
        Self { path: path.to_owned(), source: Source::Static(bytes) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Map(map) => map,
            Source::Static(bytes) => bytes,
        }
    }

    /// Tells the system that this range will not be read again soon, so that streaming through a file larger than
    /// memory does not push everything else out. Advice only: failure changes nothing.
    pub(crate) fn done_with(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        if let Source::Map(map) = &self.source {
            // SAFETY: MADV_DONTNEED on a read-only file mapping drops clean pages, which are read again from the file
            // when touched; contents cannot change through it.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
        }
    }
}
