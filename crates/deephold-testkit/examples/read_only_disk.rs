//! A library that makes every file of the program that it is loaded into (`LD_PRELOAD`) read-only while the first byte of the file
//! `READ_ONLY_DISK` is not 0: what a system does that remounts a disk after an error. Sockets and pipes go on. The file is mapped at
//! the first look, so that a sandbox does not matter.
#![allow(missing_docs, reason = "a library for tests")]
#![cfg(target_os = "linux")]

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

fn is_read_only() -> bool {
    static MAPPED: OnceLock<Option<&'static AtomicU8>> = OnceLock::new();
    let mapped = MAPPED.get_or_init(|| {
        let path = std::env::var_os("READ_ONLY_DISK")?;
        let file = std::fs::File::open(path).ok()?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new mapping of a byte of an open file, checked for failure below.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 1, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the mapping is never unmapped and holds a byte; writers change it as a whole.
        Some(unsafe { &*at.cast::<AtomicU8>() })
    });
    mapped.is_some_and(|byte| byte.load(Ordering::Relaxed) != 0)
}

/// Whether a descriptor is a file's on such a disk; then `errno` says so.
fn refuses(fd: c_int) -> bool {
    if !is_read_only() {
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
