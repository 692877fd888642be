//! What a file shows when somebody changes it: its size, and when its bytes were last modified.
//!
//! The kernel moves both before it changes a byte: who read bytes first and then finds the stamp that it knew has read
//! what was there all the time. Renaming, removing and linking a file leave its stamp alone, as its bytes. What a stamp
//! cannot show is a change by somebody who puts the time of modification back, or one within the same tick of the
//! kernel's clock as the last one before it was taken (a few milliseconds, before Linux 6.13).

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

/// Size and time of modification of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Its size.
    pub bytes: u64,
    /// When its bytes were last modified: nanoseconds of the wall clock. In the simulated world, how often.
    pub modified_nanos: i64,
}

pub(super) fn stamp_of(fd: RawFd) -> io::Result<FileStamp> {
    // SAFETY: the caller's handle keeps the descriptor open for the whole call.
    let stat = nix::sys::stat::fstat(unsafe { BorrowedFd::borrow_raw(fd) })?;
    let modified_nanos = stat.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec);
    Ok(FileStamp { bytes: stat.st_size as u64, modified_nanos })
}
