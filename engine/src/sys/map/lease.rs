//! Leases on mapped files: who wants to open one for writing, or to truncate it, waits until its map is given up.
//!
//! The kernel announces the break by a real-time signal to one thread of ours, the watcher, which has all signals blocked
//! and takes this one with `sigwaitinfo`: no handler runs anywhere, and an embedding program's signals are not touched. It
//! takes the file out of the map and gives the lease back; whoever waited goes on within a fraction of a millisecond (the
//! kernel would wait `/proc/sys/fs/lease-break-time`, 45 s). The signal only says that there is something to see: the
//! watcher asks the kernel about every lease, so a signal that was merged with another, or came as `SIGIO` because the
//! queue was full, loses nothing.
//!
//! The kernel refuses a lease where the file system has none, on files of somebody else's (without `CAP_LEASE`), and
//! while the file is open for writing anywhere.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc};
use std::time::Duration;

use super::Mapping;

/// How often a lease is asked for while the file is open for writing: our own writer may be on its way to be closed.
const TRIES: u32 = 10;
const PATIENCE: Duration = Duration::from_millis(10);

const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// `struct f_owner_ex`.
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    pid: libc::pid_t,
}

/// A lease on a file that is mapped; given back on drop.
pub(super) struct FileLease {
    number: u64,
}

/// What the watcher looks after.
struct Watched {
    number: u64,
    file: OwnedFd,
    granted: bool,
    mapping: Weak<Mapping>,
}

struct Watcher {
    thread: libc::pid_t,
    watched: Mutex<AllWatched>,
}

#[derive(Default)]
struct AllWatched {
    /// The last number that was given.
    last: u64,
    files: Vec<Watched>,
}

impl Watcher {
    fn lock(&self) -> MutexGuard<'_, AllWatched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static WATCHER: OnceLock<Result<Watcher, String>> = OnceLock::new();

/// The signal of a broken lease. It is sent to one thread, so what else it is used for in the process does not matter.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

impl FileLease {
    /// Leases `file` for reading on behalf of `mapping`.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn take(file: BorrowedFd<'_>, mapping: &std::sync::Arc<Mapping>) -> io::Result<FileLease> {
        let watcher = WATCHER.get_or_init(start).as_ref().map_err(|why| io::Error::other(why.clone()))?;
        // An open file of its own, of the same inode: leases belong to it, and there may be several maps of one file.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = OwnedFd::from(std::fs::File::open(path)?);
        let owner = Owner { kind: F_OWNER_TID, pid: watcher.thread };
        let fd = file.as_raw_fd();
        // SAFETY: `fd` is open for the calls, and `owner` has the kernel's layout and outlives them.
        unsafe {
            check(libc::fcntl(fd, F_SETSIG, signal()))?;
            check(libc::fcntl(fd, F_SETOWN_EX, &raw const owner))?;
        }
        let lease = {
            let mut watched = watcher.lock();
            watched.last += 1;
            let (number, mapping) = (watched.last, std::sync::Arc::downgrade(mapping));
            watched.files.push(Watched { number, file, granted: false, mapping });
            FileLease { number }
        };
        for _ in 0..TRIES {
            // It may be broken at once: the watcher looks when it is known here that there is one.
            let mut watched = watcher.lock();
            match set_lease(fd, libc::F_RDLCK) {
                Ok(()) => {
                    let ours = watched.files.iter_mut().find(|one| one.number == lease.number);
                    ours.expect("it is watched until the lease is dropped").granted = true;
                    return Ok(lease);
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) => return Err(refused(error, watched)),
            }
            drop(watched);
            std::thread::sleep(PATIENCE);
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "somebody has it open for writing"))
    }
}

/// The lock goes before the lease does, which takes it.
fn refused(error: io::Error, _unlocked: MutexGuard<'_, AllWatched>) -> io::Error {
    error
}

impl Drop for FileLease {
    fn drop(&mut self) {
        let Some(Ok(watcher)) = WATCHER.get() else { return };
        // With the last descriptor of its open file the lease ends.
        watcher.lock().files.retain(|one| one.number != self.number);
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_lease(fd: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: touches no memory; a descriptor that is not open is an error.
    check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, kind) }).map(drop)
}

fn start() -> Result<Watcher, String> {
    let (tell, told) = mpsc::channel();
    let body = move || {
        let signals = match block_signals() {
            Ok(signals) => signals,
            Err(error) => return drop(tell.send(Err(error.to_string()))),
        };
        // SAFETY: asks for this thread's number.
        let thread = unsafe { libc::gettid() };
        drop(tell.send(Ok(thread)));
        watch(&signals);
    };
    let spawned = std::thread::Builder::new().name("rl-leases".to_owned()).spawn(body);
    spawned.map_err(|e| format!("no thread to watch leases: {e}"))?;
    let thread = told.recv().map_err(|e| e.to_string())??;
    Ok(Watcher { thread, watched: Mutex::default() })
}

/// Blocks every signal on this thread; gives those that it waits for.
fn block_signals() -> io::Result<libc::sigset_t> {
    let (mut all, mut wanted) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: both sets are initialised by the first call on each, and live through the rest.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigemptyset(wanted.as_mut_ptr());
        libc::sigaddset(wanted.as_mut_ptr(), signal());
        libc::sigaddset(wanted.as_mut_ptr(), libc::SIGIO);
        match libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) {
            0 => Ok(wanted.assume_init()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn watch(signals: &libc::sigset_t) {
    loop {
        // SAFETY: the set is initialised; nothing is to be known of the signal but that it came.
        if unsafe { libc::sigwaitinfo(signals, std::ptr::null_mut()) } < 0 {
            continue; // A debugger.
        }
        let Some(Ok(watcher)) = WATCHER.get() else { continue };
        let mut maps = Vec::new(); // Dropped when nobody is locked out any more: the last of a map asks for the lock.
        let watched = watcher.lock();
        for one in watched.files.iter().filter(|one| one.granted) {
            let fd = one.file.as_raw_fd();
            // SAFETY: touches no memory; the descriptor is open. A lease that is being broken says what it is to become.
            let kind = unsafe { libc::fcntl(fd, libc::F_GETLEASE) };
            let Some(mapping) = one.mapping.upgrade() else { continue };
            if kind == libc::F_UNLCK {
                mapping.give_up();
                drop(set_lease(fd, libc::F_UNLCK));
            }
            maps.push(mapping);
        }
        drop(watched);
    }
}
