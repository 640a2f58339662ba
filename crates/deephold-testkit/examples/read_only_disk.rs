//! A library that makes every file of the program that it is loaded into (`LD_PRELOAD`) read-only while the number in the file
//! `READ_ONLY_DISK` is not 0 (see `mapped`): what a system does that remounts a disk after an error. Sockets and pipes go on.
#![allow(missing_docs, reason = "a library for tests")]
#![cfg(target_os = "linux")]

mod mapped;

use std::ffi::{c_int, c_void};

/// Whether a descriptor is a file's on such a disk; then `errno` says so.
fn refuses(fd: c_int) -> bool {
    if mapped::number("READ_ONLY_DISK") == 0 {
        return false;
    }
    // SAFETY: a zeroed `stat` is valid, and the kernel fills it.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is valid for writing.
    let is_file =
        unsafe { libc::fstat(fd, &raw mut stat) } == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    if is_file {
        // SAFETY: the thread's own `errno`.
        unsafe { *libc::__errno_location() = libc::EROFS };
    }
    is_file
}

/// The result of a system call as the C library gives it.
fn returned(result: i64) -> isize {
    result as isize
}

/// As the system's, but files refuse.
///
/// # Safety
/// As the system's: `from` holds `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, from: *const c_void, count: usize) -> isize {
    if refuses(fd) {
        return -1;
    }
    // SAFETY: the caller's promise, handed on.
    returned(unsafe { libc::syscall(libc::SYS_write, fd, from, count) })
}

/// As the system's, but files refuse.
///
/// # Safety
/// As the system's: `from` holds `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, from: *const c_void, count: usize, offset: i64) -> isize {
    if refuses(fd) {
        return -1;
    }
    // SAFETY: the caller's promise, handed on.
    returned(unsafe { libc::syscall(libc::SYS_pwrite64, fd, from, count, offset) })
}

/// The same under its other name.
///
/// # Safety
/// As the system's: `from` holds `count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, from: *const c_void, count: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise, handed on.
    unsafe { pwrite64(fd, from, count, offset) }
}

/// As the system's, but files refuse.
///
/// # Safety
/// As the system's: `parts` holds `count` parts, each as many bytes as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize {
    if refuses(fd) {
        return -1;
    }
    // SAFETY: the caller's promise, handed on.
    returned(unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) })
}

/// As the system's, but files refuse.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    if refuses(fd) {
        return -1;
    }
    // SAFETY: no memory is handed over.
    returned(unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) }) as c_int
}

/// The same under its other name.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    ftruncate64(fd, length)
}
