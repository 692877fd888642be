//! A range of a file mapped shared and touched, so that bytes received into it are in the page cache at once.
//!
//! Another process may cut the file while it is mapped: then the pages behind its new end are gone, the kernel's own copies
//! into them fail with `EFAULT`, and ours would end the process by SIGBUS. So every mapping is guarded (`guard`): an empty
//! page of no file comes in the place of the one that is gone, and the mapping is known to be lost; whoever uses it asks
//! before it believes what it read or wrote ([`WriteMap::is_lost`]).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use super::guard::{Guard, GuardedFor};

/// A mapped range, unmapped on drop.
pub(crate) struct WriteMap {
    base: NonNull<u8>,
    bytes: usize,
    /// Where it can lose pages.
    guard: Option<Guard>,
}

// SAFETY: addresses of plain memory, not tied to a thread; who reads and writes there is the leases' business.
unsafe impl Send for WriteMap {}
// SAFETY: as above.
unsafe impl Sync for WriteMap {}

impl WriteMap {
    /// Maps `[at, at + bytes)` of `file`, all of which must be there, and touches it for writing. Takes its time: not for a
    /// shard's thread.
    pub(crate) fn of_file(file: BorrowedFd<'_>, at: u64, bytes: usize) -> io::Result<WriteMap> {
        let guard = Guard::reserve(GuardedFor::Receiving)?;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours; the file is open.
        let raw = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, at as libc::off_t)
        };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        guard.watch(raw as usize, bytes);
        let base = NonNull::new(raw.cast()).expect("mmap does not return null");
        let mapping = WriteMap { base, bytes, guard: Some(guard) };
        // SAFETY: advice on the mapping just made; pages that are not there are an error, not a signal.
        if unsafe { libc::madvise(raw, bytes, libc::MADV_POPULATE_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// Memory of no file, for a world that has none.
    pub(crate) fn of_nothing(bytes: usize) -> io::Result<WriteMap> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(raw.cast()).expect("mmap does not return null");
        Ok(WriteMap { base, bytes, guard: None })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a page of the file was gone when somebody looked: what lies here is not what lies there.
    pub(crate) fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_lost)
    }
}

impl Drop for WriteMap {
    fn drop(&mut self) {
        if let Some(guard) = &self.guard {
            guard.leave();
        }
        // SAFETY: the mapping is ours alone, and nobody holds a lease on it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

impl fmt::Debug for WriteMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteMap({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_that_is_cut_while_mapped_is_noticed_and_nobody_dies() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(65_536).unwrap();
        assert!(WriteMap::of_file(file.as_fd(), 0, 131_072).is_err(), "more than there is");
        let mapping = WriteMap::of_file(file.as_fd(), 0, 65_536).unwrap();
        // SAFETY: the mapping is alive and nobody else uses it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(mapping.base().as_ptr(), mapping.bytes()) };
        bytes[60_000] = 7;
        assert!(!mapping.is_lost());
        let mut found = [0];
        std::os::unix::fs::FileExt::read_at(&file, &mut found, 60_000).unwrap();
        assert_eq!(found, [7], "what is written there is in the page cache");
        file.set_len(4096).unwrap();
        bytes[100] = 1;
        assert!(!mapping.is_lost(), "that page is still there");
        assert_eq!(std::hint::black_box(bytes[60_000]), 0);
        assert!(mapping.is_lost());
        bytes[5000] = 1;
    }
}
