//! A number that a test changes while the program runs that a library is loaded into (`LD_PRELOAD`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// What the file that `variable` names holds now (eight bytes, native order); 0 where it names none. The file is mapped at the first
/// look, so that a sandbox does not matter; a library asks for one variable alone.
pub(crate) fn number(variable: &str) -> i64 {
    static MAPPED: OnceLock<Option<&'static AtomicI64>> = OnceLock::new();
    let mapped = MAPPED.get_or_init(|| {
        let path = std::env::var_os(variable)?;
        let file = std::fs::File::open(path).ok()?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new mapping of 8 bytes of an open file, checked for failure below.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 8, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the mapping is page-aligned, never unmapped, and holds 8 bytes; writers change it as a whole.
        Some(unsafe { &*at.cast::<AtomicI64>() })
    });
    mapped.map_or(0, |number| number.load(Ordering::Relaxed))
}
