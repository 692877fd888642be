//! Which part of a file lies in the page cache.

use std::io;
use std::os::fd::RawFd;

/// How much of a file range is cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Pages of the range.
    pub pages: u64,
    /// Of these, pages in the cache.
    pub cached_pages: u64,
    /// Of these, pages not yet written to the disk.
    pub dirty_pages: u64,
}

/// Asks the kernel (`cachestat(2)`, Linux 6.5) about `[at, at + bytes)` of an open file.
///
/// # Errors
/// `Unsupported` on older kernels, or what the kernel said.
pub fn residency(file: &std::fs::File, at: u64, bytes: u64) -> io::Result<Residency> {
    use std::os::fd::AsRawFd;
    residency_of(file.as_raw_fd(), at, bytes)
}

pub(super) fn residency_of(fd: RawFd, at: u64, bytes: u64) -> io::Result<Residency> {
    const SYS_CACHESTAT: libc::c_long = 451; // The same number on every architecture.
    #[repr(C)]
    struct Range {
        at: u64,
        bytes: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct CacheStat {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { at, bytes };
    let mut stat = CacheStat::default();
    // SAFETY: both structures have the kernel's layout (struct cachestat_range, struct cachestat) and outlive the call.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, fd, &raw const range, &raw mut stat, 0) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ENOSYS) => io::Error::new(io::ErrorKind::Unsupported, "cachestat needs Linux 6.5"),
            _ => error,
        });
    }
    let pages = (at + bytes).div_ceil(4096) - at / 4096;
    Ok(Residency { pages, cached_pages: stat.cached, dirty_pages: stat.dirty })
}
