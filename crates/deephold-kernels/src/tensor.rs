//! Activations: f32 rows in aligned buffers that return to their `Ops` when dropped.

use std::alloc::{Layout, handle_alloc_error};
use std::sync::{Arc, Mutex, PoisonError};

use crate::memory::Memory;

/// Buffers kept for reuse: at most this many, the smallest go first.
const KEPT: usize = 64;

/// Returned buffers, so that a forward pass allocates only the first time.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Vec<Memory>>);

impl Buffers {
    /// A buffer of at least `bytes`; its contents are whatever it held before.
    fn take(&self, bytes: usize) -> Memory {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The tightest fit, so that a decode step does not take a prompt's large buffers.
        let fit = kept.iter().enumerate().filter(|(_, b)| b.len() >= bytes && b.len() / 4 <= bytes);
        match fit.min_by_key(|(_, b)| b.len()).map(|(i, _)| i) {
            Some(i) => kept.swap_remove(i),
            None => {
                drop(kept);
                let size = bytes.next_power_of_two();
                let layout = || Layout::from_size_align(size, 64).unwrap_or(Layout::new::<u8>());
                Memory::alone(size).unwrap_or_else(|| handle_alloc_error(layout()))
            }
        }
    }

    fn give(&self, buffer: Memory) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            let smallest = kept.iter().enumerate().min_by_key(|(_, b)| b.len()).map(|(i, _)| i);
            if let Some(i) = smallest {
                kept.swap_remove(i);
            }
        }
        kept.push(buffer);
    }
}

/// A matrix of f32, row-major [rows, cols], 64-byte aligned.
pub struct Tensor {
    rows: usize,
    cols: usize,
    /// `None` only while it is dropped.
    buffer: Option<Memory>,
    home: Arc<Buffers>,
}

impl Tensor {
    /// Contents are arbitrary; the caller writes every element.
    pub(crate) fn dirty(home: &Arc<Buffers>, rows: usize, cols: usize) -> Self {
        let buffer = home.take((rows * cols * size_of::<f32>()).max(64));
        Self { rows, cols, buffer: Some(buffer), home: Arc::clone(home) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All elements, [rows * cols].
    pub fn data(&self) -> &[f32] {
        let Some(buffer) = &self.buffer else { return &[] };
        // SAFETY: `dirty` took at least rows * cols f32, 64-byte aligned, all of which hold some number.
        unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<f32>(), self.rows * self.cols) }
    }

    /// All elements, [rows * cols].
    pub fn data_mut(&mut self) -> &mut [f32] {
        let Some(buffer) = &mut self.buffer else { return &mut [] };
        // SAFETY: as in `data`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr().cast::<f32>(), self.rows * self.cols) }
    }

    /// Row `i`, \[cols\].
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data()[i * self.cols..][..self.cols]
    }

    /// Row `i`, \[cols\].
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let cols = self.cols;
        &mut self.data_mut()[i * cols..][..cols]
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.home.give(buffer);
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor[{}, {}]", self.rows, self.cols)
    }
}

/// A place that several tasks write to, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut(*mut f32, usize);

// SAFETY: `slice` is unsafe, and its callers promise disjoint parts.
unsafe impl Send for SharedOut {}
// SAFETY: as above.
unsafe impl Sync for SharedOut {}

impl SharedOut {
    pub(crate) fn new(x: &mut [f32]) -> Self {
        Self(x.as_mut_ptr(), x.len())
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No other task touches these elements meanwhile, and the slice that this was made from is still borrowed.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.1 && len <= self.1 - start, "a task writes outside its tensor");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Where a product's output lies in a tensor that several tasks write to.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) out: SharedOut,
    /// The tensor's row and column of the product's first element.
    pub(crate) row0: usize,
    pub(crate) col0: usize,
    /// Columns of the product that lie before the tensor's.
    pub(crate) skip: usize,
    /// Elements of a row of the tensor.
    pub(crate) stride: usize,
}

impl Window {
    /// All of `x`, which stays borrowed by promise alone: whoever writes to the window ends before `x` is used again.
    pub(crate) fn whole(x: &mut Tensor) -> Self {
        let stride = x.cols();
        Self { out: SharedOut::new(x.data_mut()), row0: 0, col0: 0, skip: 0, stride }
    }

    /// `width` elements of the product's row `row` from its column `col` on.
    ///
    /// # Safety
    /// As [`SharedOut::slice`].
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, row: usize, col: usize, width: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.out.slice((self.row0 + row) * self.stride + self.col0 + col - self.skip, width) }
    }
}
