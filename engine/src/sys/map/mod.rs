//! A file mapped for sending: read-only, shared, and guarded against everybody else.
//!
//! Another process may truncate a file that is mapped here. What then happens depends on who looks: the kernel, copying
//! from the map into a socket, gets `EFAULT` and says so; a load of our own gets `SIGBUS`, which would end the process.
//! Two answers, together: a *lease* on the file (`lease`) announces a change before it happens, and the map is given up
//! in time; a *guard* (`sys/guard.rs`) turns the signal into a map that is known to be lost, where no lease was granted or
//! somebody did not wait for it.
//!
//! Mapping, bringing in and unmapping can block: they are jobs for helpers. Nothing here knows what is in the file.

mod lease;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use self::lease::FileLease;
use super::guard::{self, Guard, GuardedFor};
use super::sim::SimFile;
use super::uring::HelperSender;

const PAGE: usize = 4096;

/// A mapped file. Clones share the map, on any thread; the last one has it unmapped by a helper.
#[derive(Clone)]
pub struct FileMap(pub(crate) MapKind);

#[derive(Clone)]
pub(crate) enum MapKind {
    Os(Arc<Closing>),
    Sim { file: SimFile, bytes: u64 },
}

/// How a map stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapState {
    /// It shows the file.
    Whole,
    /// Somebody was about to change the file, and it was given up before: whoever sends from it gets `EFAULT`. The file's
    /// bytes are to be had in other ways, with the care that all of them need.
    GivenUp,
    /// A load of our own found nothing behind it: the file is shorter than it was, and nothing of it may be believed.
    Lost,
}

/// Sends the map to a helper when the last clone is gone.
pub(crate) struct Closing {
    mapping: Option<Arc<Mapping>>,
    closer: HelperSender,
}

/// The mapping itself.
pub(crate) struct Mapping {
    start: usize,
    /// Of the file.
    bytes: u64,
    guard: Guard,
    lease: OnceLock<FileLease>,
    lease_refusal: OnceLock<String>,
    given_up: AtomicBool,
    /// Held by who loads from the map in user space, and by who takes it away: a load from a map that was given up would
    /// be a plain violation.
    loads: Mutex<()>,
}

impl FileMap {
    pub(super) fn of_kernel(mapping: Arc<Mapping>, closer: HelperSender) -> FileMap {
        FileMap(MapKind::Os(Arc::new(Closing { mapping: Some(mapping), closer })))
    }

    /// Bytes of the file that it shows, from the first on.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            MapKind::Os(closing) => closing.mapping().bytes,
            MapKind::Sim { bytes, .. } => *bytes,
        }
    }

    /// How it stands now.
    #[must_use]
    pub fn state(&self) -> MapState {
        match &self.0 {
            MapKind::Os(closing) => closing.mapping().state(),
            MapKind::Sim { .. } => MapState::Whole,
        }
    }

    /// Why the file could not be leased, so that the guard alone protects the map; `None` where it is leased.
    #[must_use]
    pub fn lease_refusal(&self) -> Option<&str> {
        match &self.0 {
            MapKind::Os(closing) => closing.mapping().lease_refusal.get().map(String::as_str),
            MapKind::Sim { .. } => None,
        }
    }

    pub(super) fn os(&self) -> &Arc<Mapping> {
        match &self.0 {
            MapKind::Os(closing) => closing.mapping(),
            MapKind::Sim { .. } => unreachable!("a simulated map on the kernel's ring"),
        }
    }
}

impl fmt::Debug for FileMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileMap({} bytes, {:?})", self.bytes(), self.state())
    }
}

impl Closing {
    fn mapping(&self) -> &Arc<Mapping> {
        self.mapping.as_ref().expect("a map is there until it is dropped")
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let mapping = self.mapping.take().expect("a map is dropped once");
        self.closer.send_unanswered(super::op::Job::Unmap(mapping));
    }
}

impl Mapping {
    /// Maps the first `bytes` of `file`, and leases it if that is granted. For helpers.
    pub(super) fn of(file: BorrowedFd<'_>, bytes: u64) -> io::Result<Arc<Mapping>> {
        let length = usize::try_from(bytes).ok().filter(|&length| length > 0);
        let length = length.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{bytes} bytes cannot be mapped"))
        })?;
        let reserved = length.next_multiple_of(PAGE);
        let guard = Guard::reserve(GuardedFor::Sending)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        guard.watch(start as usize, reserved);
        let mapping = Arc::new(Mapping {
            start: start as usize,
            bytes,
            guard,
            lease: OnceLock::new(),
            lease_refusal: OnceLock::new(),
            given_up: AtomicBool::new(false),
            loads: Mutex::new(()),
        });
        match FileLease::take(file.as_fd(), &mapping) {
            Ok(lease) => drop(mapping.lease.set(lease)),
            Err(error) => drop(mapping.lease_refusal.set(error.to_string())),
        }
        Ok(mapping)
    }

    pub(super) fn state(&self) -> MapState {
        match (self.guard.is_lost(), self.given_up.load(Ordering::Acquire)) {
            (true, _) => MapState::Lost,
            (false, true) => MapState::GivenUp,
            (false, false) => MapState::Whole,
        }
    }

    fn reserved(&self) -> usize {
        (self.bytes as usize).next_multiple_of(PAGE)
    }

    /// Where position `at` lies, for the kernel to read from.
    pub(super) fn pointer(&self, at: u64, bytes: u64) -> *const libc::c_void {
        assert!(at + bytes <= self.bytes, "{bytes} bytes at {at} of a map of {}", self.bytes);
        (self.start + at as usize) as *const libc::c_void
    }

    /// Brings `[from, to)` into the page cache and into the map. For helpers.
    ///
    /// # Errors
    /// `EFAULT` when the file ends before, or the map was given up; or what the disk said.
    pub(super) fn populate(&self, from: u64, to: u64) -> io::Result<()> {
        let from = from as usize / PAGE * PAGE;
        let bytes = to as usize - from;
        let start = self.pointer(from as u64, bytes as u64).cast_mut();
        // SAFETY: the range lies within the mapping (asserted by `pointer`), which stays as long as `self`; the advice
        // only brings pages in.
        if unsafe { libc::madvise(start, bytes, libc::MADV_POPULATE_READ) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Linux before 5.14.
            Some(libc::EINVAL) => self.touch(from, bytes),
            // The range is no longer mapped from the file.
            Some(libc::ENOMEM) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            _ => Err(error),
        }
    }

    /// Loads a byte of every page from `from` on. Where the file ends before that, the guard puts pages of zeros there and
    /// notes it.
    fn touch(&self, from: usize, bytes: usize) -> io::Result<()> {
        guard::stand_by()?;
        let _loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        for page in (from..from + bytes).step_by(PAGE) {
            if self.state() != MapState::Whole {
                break;
            }
            // SAFETY: the page lies within the mapping, which nobody takes away while `loads` is held; behind the end of
            // a file that was truncated the load raises SIGBUS, which the guard answers with a page of zeros.
            unsafe { ((self.start + page) as *const u8).read_volatile() };
        }
        match self.state() {
            MapState::Whole => Ok(()),
            MapState::GivenUp | MapState::Lost => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }

    /// Takes the file out of the map, at once and for good: the kernel finds nothing to copy there from now on.
    fn give_up(&self) {
        let _loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        self.given_up.store(true, Ordering::Release);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range is exactly the mapping of `self`, which is replaced as a whole; nobody loads from it (`loads`
        // is held), and the kernel's own copies from it end with an error.
        let replaced = unsafe {
            let at = self.start as *mut libc::c_void;
            libc::mmap(at, self.reserved(), libc::PROT_NONE, flags, -1, 0)
        };
        assert!(
            replaced as usize == self.start,
            "a mapping could not be given up: {}",
            io::Error::last_os_error()
        );
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard.leave();
        // SAFETY: the mapping is ours, and nobody is left who could use it: every use holds an `Arc` of it.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.reserved()) };
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes, {:?})", self.bytes, self.state())
    }
}
