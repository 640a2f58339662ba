//! An allocator that remembers the largest request of this thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, watched.
pub(crate) struct Counting;

fn note(bytes: usize) {
    // While a thread ends its cell may be gone.
    let _ = LARGEST.try_with(|l| l.set(l.get().max(bytes)));
}

pub(crate) fn start() {
    LARGEST.with(|l| l.set(0));
}

/// The largest single allocation since [`start`].
pub(crate) fn largest() -> usize {
    LARGEST.with(Cell::get)
}

// SAFETY: every call goes to the system's allocator, whose promises these are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's own promises, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's own promises, handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size);
        // SAFETY: the caller's own promises, handed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promises, handed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}
