//! A library that shifts the system's time for the program that it is loaded into (`LD_PRELOAD`), by the seconds that the file
//! `SHIFTED_CLOCK` holds (eight bytes, native order). The file is mapped at the first look, so that a sandbox does not matter.
#![allow(missing_docs, reason = "a library for tests")]
#![cfg(target_os = "linux")]

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// The mapped shift; none where the variable is not set.
fn shift() -> i64 {
    static MAPPED: OnceLock<Option<&'static AtomicI64>> = OnceLock::new();
    let mapped = MAPPED.get_or_init(|| {
        let path = std::env::var_os("SHIFTED_CLOCK")?;
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
    mapped.map_or(0, |shift| shift.load(Ordering::Relaxed))
}

/// As the system's, but for CLOCK_REALTIME.
///
/// # Safety
/// As the system's: `time` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: the caller's promise, handed on.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if result == 0 && clock == libc::CLOCK_REALTIME {
        // SAFETY: the kernel has just written it.
        unsafe { (*time).tv_sec += shift() };
    }
    result as c_int
}
