//! Memory for one use: anonymous pages of their own mapping, filled once, lent to the kernel, unmapped, never used again.
//!
//! `vmsplice(2)` puts pages into a pipe and never tells when the last socket has let go of them: a byte that changed after
//! the peer had acknowledged everything was still seen by its reader. So such pages are not taken from the arena, which
//! lends its memory again. Unmapping takes them from this process at once; the kernel frees each page when the last pipe
//! and socket that refer to it are done.

use std::io;
use std::ptr::NonNull;

use super::BLOCK_BYTES;

/// A mapping that may still be written, by the one operation that fills it. Unmapped on drop.
#[derive(Debug)]
pub(crate) struct FreshPages {
    base: NonNull<u8>,
    bytes: usize,
}

/// Pages with bytes in them that nobody can change any more.
pub struct Pages {
    memory: FreshPages,
    filled: usize,
}

// SAFETY: addresses of plain memory that has one owner; not tied to the thread that mapped it.
unsafe impl Send for FreshPages {}

impl FreshPages {
    /// Maps and touches `bytes`, in whole pages. Zeroing takes a quarter of a millisecond for a mebibyte.
    pub(crate) fn map(bytes: usize) -> io::Result<FreshPages> {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        let (read_write, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
        );
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), bytes, read_write, kind, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(raw.cast()).expect("mmap does not return null");
        Ok(FreshPages { base, bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Where an operation may write, from `filled` on.
    pub(super) fn rest(&mut self, filled: usize) -> (*mut u8, usize) {
        assert!(filled <= self.bytes, "{filled} bytes filled of {}", self.bytes);
        // SAFETY: the offset lies within the mapping, or one past its end.
        (unsafe { self.base.as_ptr().add(filled) }, self.bytes - filled)
    }

    /// No one writes them from here on.
    pub(super) fn fill(self, filled: usize) -> Pages {
        assert!(filled <= self.bytes, "{filled} bytes filled of {}", self.bytes);
        Pages { memory: self, filled }
    }
}

impl Drop for FreshPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone: no reference to it was ever made, and operations that write it own it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

impl Pages {
    /// The bytes in them.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an empty one is as good as any")]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Bytes of memory, in whole pages.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.memory.bytes
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes lie within the mapping and were written by the operation that has given it up;
        // there is no way to write a `Pages`.
        unsafe { std::slice::from_raw_parts(self.memory.base.as_ptr(), self.filled) }
    }

    pub(super) fn into_memory(self) -> FreshPages {
        self.memory
    }
}
