//! A library that shifts the system's time for the program that it is loaded into (`LD_PRELOAD`), by the seconds that the file
//! `SHIFTED_CLOCK` holds (see `mapped`).
#![allow(missing_docs, reason = "a library for tests")]
#![cfg(target_os = "linux")]

mod mapped;

use std::ffi::c_int;

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
        unsafe { (*time).tv_sec += mapped::number("SHIFTED_CLOCK") };
    }
    result as c_int
}
