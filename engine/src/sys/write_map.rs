//! A range of a file mapped shared and touched, so that bytes received into it are in the page cache at once.
//!
//! Another process may cut the file while it is mapped: then the pages behind its new end are gone, the kernel's own copies
//! into them fail with `EFAULT`, and ours would end the process by SIGBUS. So every mapping stands in a table, and a handler
//! of that signal puts an empty page of no file in the place of the one that is gone and notes that the mapping is lost;
//! whoever uses it asks before it believes what it read or wrote ([`WriteMap::is_lost`]). A SIGBUS anywhere else is left to
//! whoever handled it before.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that a process may have at a time.
const MAPPINGS_MAX: usize = 8192;
const PAGE_BYTES: usize = 4096;

/// A mapped range, unmapped on drop.
#[derive(Debug)]
pub(crate) struct WriteMap {
    base: NonNull<u8>,
    bytes: usize,
    /// Its place in the table, where it can lose pages.
    place: Option<usize>,
}

// SAFETY: addresses of plain memory, not tied to a thread; who reads and writes there is the leases' business.
unsafe impl Send for WriteMap {}
// SAFETY: as above.
unsafe impl Sync for WriteMap {}

struct Place {
    taken: AtomicBool,
    begin: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static PLACES: [Place; MAPPINGS_MAX] = [const {
    Place {
        taken: AtomicBool::new(false),
        begin: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MAPPINGS_MAX];

/// Who handled SIGBUS before; set once, before any mapping is made.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl WriteMap {
    /// Maps `[at, at + bytes)` of `file`, all of which must be there, and touches it for writing. Takes its time: not for a
    /// shard's thread.
    pub(crate) fn of_file(file: BorrowedFd<'_>, at: u64, bytes: usize) -> io::Result<WriteMap> {
        guard()?;
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours; the file is open.
        let raw = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, at as libc::off_t)
        };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut mapping = WriteMap {
            base: NonNull::new(raw.cast()).expect("mmap does not return null"),
            bytes,
            place: None,
        };
        mapping.place = Some(enter(raw as usize, bytes)?);
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
        Ok(WriteMap {
            base: NonNull::new(raw.cast()).expect("mmap does not return null"),
            bytes,
            place: None,
        })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a page of the file was gone when somebody looked: what lies here is not what lies there.
    pub(crate) fn is_lost(&self) -> bool {
        self.place.is_some_and(|place| PLACES[place].lost.load(Ordering::Acquire))
    }
}

impl Drop for WriteMap {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            PLACES[place].end.store(0, Ordering::Release);
            PLACES[place].taken.store(false, Ordering::Release);
        }
        // SAFETY: the mapping is ours alone, and nobody holds a lease on it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Takes a place in the table.
fn enter(begin: usize, bytes: usize) -> io::Result<usize> {
    let free = |place: &Place| {
        place.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    let Some(index) = PLACES.iter().position(free) else {
        let message = format!("{MAPPINGS_MAX} ranges of files are mapped already");
        // It passes: places come free as windows are used up.
        return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
    };
    let place = &PLACES[index];
    place.lost.store(false, Ordering::Relaxed);
    place.begin.store(begin, Ordering::Relaxed);
    place.end.store(begin + bytes, Ordering::Release);
    Ok(index)
}

/// Installs the handler, once for the process.
fn guard() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let failed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeros is a valid `sigaction`; both structures outlive the calls; the handler uses nothing but
        // atomics and system calls, as a handler may.
        unsafe {
            let mut before = std::mem::zeroed::<libc::sigaction>();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 {
                return io::Error::last_os_error().raw_os_error();
            }
            BEFORE.get_or_init(|| before);
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            match libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) {
                0 => None,
                _ => io::Error::last_os_error().raw_os_error(),
            }
        }
    });
    failed.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `info`.
    let address = unsafe { (*info).si_addr() } as usize;
    for place in &PLACES {
        let end = place.end.load(Ordering::Acquire);
        if place.begin.load(Ordering::Relaxed) <= address && address < end {
            let page = (address / PAGE_BYTES * PAGE_BYTES) as *mut libc::c_void;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            place.lost.store(true, Ordering::Release);
            // SAFETY: the page lies within a mapping of ours that somebody with a lease on it is using right now, so it
            // is not unmapped; what was there is gone already.
            let raw = unsafe { libc::mmap(page, PAGE_BYTES, access, kind, -1, 0) };
            if raw != libc::MAP_FAILED {
                return;
            }
        }
    }
    let before = BEFORE.get().copied();
    // SAFETY: the handler before is called as the kernel would, or put back so that the fault, which comes again, gets it.
    unsafe {
        match before {
            Some(before)
                if before.sa_flags & libc::SA_SIGINFO != 0 && before.sa_sigaction > libc::SIG_IGN =>
            {
                let handler = before.sa_sigaction as *const ();
                std::mem::transmute::<*const (), extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)>(
                    handler,
                )(signal, info, context);
            }
            Some(before) => drop(libc::sigaction(libc::SIGBUS, &raw const before, std::ptr::null_mut())),
            None => drop(libc::signal(libc::SIGBUS, libc::SIG_DFL)),
        }
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
