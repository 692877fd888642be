//! The fault guard: touching a guarded map behind the end of its file does not end the process.
//!
//! One handler of `SIGBUS` for the process, put in place with the first guarded map, and one table of the maps: segments
//! mapped for sending (`map`) and windows that are received into (`write_map`). For an address within one of them it
//! puts a page of zeros there and notes that the map is lost: the access goes on, and whoever made it finds out before it
//! believes what it read or wrote. Any other address is the previous handler's business, and gets to it as if nobody stood
//! in between. The handler runs on the thread's alternate stack, does one system call, and reads atomics: nothing else is
//! allowed there.

use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Maps for sending that can be guarded at once in a process; more are refused.
pub const GUARDED_MAPS_MAX: usize = 1024;
/// Windows to receive into that a process may have at a time; the next one is refused until one is used up.
pub(super) const MAPPINGS_MAX: usize = 8192;

const PAGE: usize = 4096;
/// Bytes of an alternate stack, for threads that came without one.
const STACK_BYTES: usize = 64 << 10;
/// A place that is being filled or emptied: no address is at or behind it.
const BUSY: usize = usize::MAX;

/// What a map is for: how many there may be, and what may be done to a page of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuardedFor {
    /// A segment, to send from.
    Sending,
    /// The end of a segment, to receive into.
    Receiving,
}

/// A range of addresses, for the handler to read. Vacant when `start` is 0.
struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static PLACES: [Place; GUARDED_MAPS_MAX + MAPPINGS_MAX] =
    [const { Place { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        GUARDED_MAPS_MAX + MAPPINGS_MAX];
/// Places that were ever used lie below.
static PLACES_USED: AtomicUsize = AtomicUsize::new(0);
static PREVIOUS: OnceLock<Result<libc::sigaction, i32>> = OnceLock::new();

/// One guarded map's place.
pub(super) struct Guard(&'static Place);

impl GuardedFor {
    /// Its places in the table: neither kind takes those of the other.
    fn places(self) -> Range<usize> {
        match self {
            GuardedFor::Sending => 0..GUARDED_MAPS_MAX,
            GuardedFor::Receiving => GUARDED_MAPS_MAX..GUARDED_MAPS_MAX + MAPPINGS_MAX,
        }
    }

    fn of_place(index: usize) -> GuardedFor {
        if index < GUARDED_MAPS_MAX { GuardedFor::Sending } else { GuardedFor::Receiving }
    }

    fn access(self) -> libc::c_int {
        match self {
            GuardedFor::Sending => libc::PROT_READ,
            GuardedFor::Receiving => libc::PROT_READ | libc::PROT_WRITE,
        }
    }

    fn full(self) -> io::Error {
        match self {
            GuardedFor::Sending => {
                let message = format!("{GUARDED_MAPS_MAX} files are mapped already");
                io::Error::new(io::ErrorKind::QuotaExceeded, message)
            }
            // It passes: places come free as windows are used up.
            GuardedFor::Receiving => {
                let message = format!("{MAPPINGS_MAX} ranges of files are mapped already");
                io::Error::new(io::ErrorKind::WouldBlock, message)
            }
        }
    }
}

impl Guard {
    /// A place, and the handler in place.
    pub(super) fn reserve(guarded_for: GuardedFor) -> io::Result<Guard> {
        install()?;
        for index in guarded_for.places() {
            let place = &PLACES[index];
            if place.start.compare_exchange(0, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                PLACES_USED.fetch_max(index + 1, Ordering::AcqRel);
                return Ok(Guard(place));
            }
        }
        Err(guarded_for.full())
    }

    pub(super) fn watch(&self, start: usize, bytes: usize) {
        self.0.lost.store(false, Ordering::Relaxed);
        self.0.end.store(start + bytes, Ordering::Release);
        self.0.start.store(start, Ordering::Release);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// Before the range is unmapped.
    pub(super) fn leave(&self) {
        self.0.start.store(BUSY, Ordering::Release);
        self.0.end.store(0, Ordering::Release);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.leave();
        self.0.start.store(0, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    let previous = PREVIOUS.get_or_init(|| {
        // SAFETY: all zeros is a valid `sigaction`; the kernel fills it in.
        let mut previous = unsafe { std::mem::zeroed::<libc::sigaction>() };
        // SAFETY: asks only; `previous` outlives the call.
        let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) };
        if asked == 0 { Ok(previous) } else { Err(last_errno()) }
    });
    previous.as_ref().map_err(|&errno| io::Error::from_raw_os_error(errno))?;
    // Known before the first signal can come to the handler.
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeros is a valid `sigaction`, with an empty mask.
        let mut action = unsafe { std::mem::zeroed::<libc::sigaction>() };
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and lives as long as the program.
        let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        if set == 0 { Ok(()) } else { Err(last_errno()) }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Gives this thread an alternate stack if it has none: the handler must not need what a full stack has not.
pub(super) fn stand_by() -> io::Result<()> {
    // SAFETY: all zeros is a valid `stack_t`; the kernel fills it in.
    let mut stack = unsafe { std::mem::zeroed::<libc::stack_t>() };
    // SAFETY: asks only; `stack` outlives the call.
    if unsafe { libc::sigaltstack(std::ptr::null(), &raw mut stack) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if stack.ss_flags & libc::SS_DISABLE == 0 {
        return Ok(());
    }
    // It stays for as long as the process: threads of foreign making may end without a word.
    let memory = Box::leak(vec![0u8; STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_BYTES };
    // SAFETY: the memory was leaked for this and is nobody else's.
    match unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

/// The guarded map that `address` lies in, and what it is for.
fn place_of(address: usize) -> Option<(&'static Place, GuardedFor)> {
    let index = PLACES[..PLACES_USED.load(Ordering::Acquire)].iter().position(|place| {
        let start = place.start.load(Ordering::Acquire);
        let within = start <= address && address < place.end.load(Ordering::Acquire);
        // A place that changed meanwhile was not this address's: whoever uses a map keeps its place.
        within && place.start.load(Ordering::Acquire) == start
    })?;
    Some((&PLACES[index], GuardedFor::of_place(index)))
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    // A positive code says that the kernel raised it, for an access to an address.
    if code > 0
        && let Some((place, guarded_for)) = place_of(address)
    {
        // Before the page is there: another thread that finds it must find this as well.
        place.lost.store(true, Ordering::Release);
        let page = (address & !(PAGE - 1)) as *mut libc::c_void;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page lies within a map that is registered here, has no memory of anybody's behind it (that is why
        // we are called), and stays part of that map's range, which is unmapped as a whole.
        let replaced = unsafe { libc::mmap(page, PAGE, guarded_for.access(), flags, -1, 0) };
        if replaced == page {
            return;
        }
    }
    pass_on(signal, code, info, context);
}

/// As if nobody stood between the signal and whoever handled it before.
fn pass_on(signal: libc::c_int, code: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(Ok(previous)) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all zeros is `SIG_DFL` without flags. The access that failed is repeated on return and ends the
            // process; one that was sent is sent again, to the same end.
            unsafe {
                let default = std::mem::zeroed::<libc::sigaction>();
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: whoever installed it with SA_SIGINFO gave a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO gave a function of this type.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}
