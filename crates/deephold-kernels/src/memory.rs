//! Large zeroed memory: in huge pages where the system gives them, and first touched by whoever first writes it.
//!
//! A pass over the weights reads every page once, so that with pages of 4 KiB the translation of addresses costs as much as a
//! good part of the reading. Packed matrices share chunks, since most are smaller than a huge page.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::KernelError;

/// What matrices share: the untouched rest of a chunk takes no memory.
const CHUNK: usize = 64 << 20;
/// Of every buffer: a cache line.
const ALIGN: usize = 64;
/// What huge pages are on the machines that have them; smaller mappings get none.
const HUGE: usize = 2 << 20;

/// Memory from the system, given back when dropped.
struct Chunk {
    /// As allocated.
    block: NonNull<u8>,
    /// The first line in it.
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory; who may touch which part of it is decided by the owners of the parts.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// With the allocator's own alignment: beyond it, zeroed memory would be written by the allocator, page by page.
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(ALIGN)?, 16).ok()
    }

    /// Zeroed memory; `None` where there is no more.
    fn new(bytes: usize) -> Option<Self> {
        // SAFETY: the layout is not empty.
        let block = NonNull::new(unsafe { alloc_zeroed(Self::layout(bytes)?) })?;
        let start = block.as_ptr().wrapping_add(block.as_ptr().align_offset(ALIGN));
        let chunk = Self { block, start, bytes };
        chunk.ask_for_huge_pages();
        Some(chunk)
    }

    /// A hint: where it is refused, everything works with small pages.
    fn ask_for_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if self.bytes >= 2 * HUGE {
            let from = self.start.wrapping_add(self.start.align_offset(HUGE));
            let whole = (self.start as usize + self.bytes).saturating_sub(from as usize) / HUGE * HUGE;
            // SAFETY: the range lies within this chunk; advice changes no contents.
            unsafe { libc::madvise(from.cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.block.as_ptr(), layout) };
        }
    }
}

/// Zeroed bytes of fixed number, 64-byte aligned.
pub(crate) struct Memory {
    chunk: Arc<Chunk>,
    at: usize,
    len: usize,
}

/// The chunk that the next small buffers come from, and how much of it is given out.
static OPEN: Mutex<Option<(Arc<Chunk>, usize)>> = Mutex::new(None);

impl Memory {
    /// `bytes` zeros for `what`.
    ///
    /// # Errors
    /// Memory is short.
    pub(crate) fn zeroed(what: &'static str, bytes: usize) -> Result<Self, KernelError> {
        let short = || KernelError::Memory { what, bytes };
        if bytes > CHUNK / 4 {
            return Self::alone(bytes).ok_or_else(short);
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(chunk, used): &&mut (Arc<Chunk>, usize)| chunk.bytes - *used >= bytes;
        if let Some((chunk, used)) = open.as_mut().filter(fits) {
            let at = *used;
            *used = (at + bytes).next_multiple_of(ALIGN).min(chunk.bytes);
            return Ok(Self { chunk: Arc::clone(chunk), at, len: bytes });
        }
        let chunk = Arc::new(Chunk::new(CHUNK).ok_or_else(short)?);
        *open = Some((Arc::clone(&chunk), bytes.next_multiple_of(ALIGN)));
        Ok(Self { chunk, at: 0, len: bytes })
    }

    /// Zeros that share no chunk, for what comes and goes; `None` where memory is short.
    pub(crate) fn alone(bytes: usize) -> Option<Self> {
        Some(Self { chunk: Arc::new(Chunk::new(bytes)?), at: 0, len: bytes })
    }

    /// The first byte, for whoever shares the memory between threads by rules of its own.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        // Within the chunk, since `at` is.
        self.chunk.start.wrapping_add(self.at)
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: this part of the chunk was given out once, was zeroed, and is written through `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_apart() {
        let sizes =
            [0, 1, 63, 64, 65, 1 << 20, CHUNK / 4, CHUNK / 4 + 1, CHUNK / 4, CHUNK / 4, CHUNK / 4, 100];
        let mut all: Vec<Memory> =
            sizes.iter().map(|n| Memory::zeroed("a test", *n).expect("memory")).collect();
        for (i, m) in all.iter_mut().enumerate() {
            assert_eq!(m.len(), sizes[i]);
            assert_eq!(m.as_ptr() as usize % ALIGN, 0);
            assert!(m.first().is_none_or(|b| *b == 0) && m.last().is_none_or(|b| *b == 0));
            let len = m.len();
            m[..len.min(1 << 16)].fill(i as u8 + 1);
            m[len.saturating_sub(1 << 16)..].fill(i as u8 + 1);
        }
        for (i, m) in all.iter().enumerate() {
            assert!(
                m.first().is_none_or(|b| *b == i as u8 + 1) && m.last().is_none_or(|b| *b == i as u8 + 1)
            );
        }
        assert!(Memory::zeroed("a test", usize::MAX / 2).is_err());
    }
}
