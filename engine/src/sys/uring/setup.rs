//! Setting up an io_uring: the best flags first, fewer on older kernels, and a refusal that says what to do.

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, types::Napi};

use crate::sys::arena::PageKind;

/// Entries of the submission queue. More operations than this just mean one more visit.
const SUBMISSION_ENTRIES: u32 = 512;
/// Entries of the completion queue: standing accepts and cancels come on top of the submissions.
const COMPLETION_ENTRIES: u32 = 4096;

/// Workers of the kernel's that carry out splices of one ring at a time. Without a bound it starts one for each that waits
/// for the disk.
pub const SPLICE_WORKERS_MAX: u32 = 8;

pub(super) const ENTER_SQ_WAKEUP: u32 = 1 << 1;
pub(super) const ENTER_SQ_WAIT: u32 = 1 << 2;
pub(super) const ENTER_REGISTERED_RING: u32 = 1 << 4;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
const REGISTER_RING_FDS: libc::c_uint = 20;

/// How to set up a ring. The default is what a shard runs on; the rest is for measuring what it is worth on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringOptions {
    /// Threads for what can block.
    pub helpers: usize,
    /// A thread of the kernel's that takes submissions, so that making one is no system call. It spins on a core.
    pub sqpoll: Option<SqPoll>,
    /// Whether memory is registered with the ring, as far as the memlock limit goes.
    pub registered_buffers: bool,
    /// Whether files and sockets are.
    pub registered_files: bool,
    /// The pages that memory is made of.
    pub pages: PageKind,
    /// For so long a wait polls the network card's queues, where sockets have such.
    pub napi_busy_poll_micros: Option<u32>,
}

impl Default for UringOptions {
    fn default() -> UringOptions {
        UringOptions {
            helpers: 2,
            sqpoll: None,
            registered_buffers: true,
            registered_files: true,
            pages: PageKind::Transparent,
            napi_busy_poll_micros: None,
        }
    }
}

/// The kernel's thread that takes submissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqPoll {
    /// It sleeps after so long without any.
    pub idle_ms: u32,
    /// The core that it spins on; any, where none is given.
    pub core: Option<u32>,
}

/// What the kernel granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Flags in force, by their kernel names.
    pub granted: Vec<&'static str>,
    /// Flags that this kernel does not know.
    pub refused: Vec<&'static str>,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The kernel was built without io_uring, or is older than 5.1.
    #[error(
        "this kernel has no io_uring (ENOSYS). ringlog needs Linux 5.19 or newer with CONFIG_IO_URING; \
         inside gVisor or WSL1 there is none"
    )]
    Missing,
    /// A policy forbids it.
    #[error(
        "io_uring is refused here (EPERM); kernel.io_uring_disabled is {disabled}. Cure: as root, \
         `sysctl kernel.io_uring_disabled=0`; in a container, a seccomp profile that allows io_uring_setup, \
         io_uring_enter and io_uring_register (Docker: `--security-opt seccomp=unconfined` or a profile with these three)"
    )]
    Forbidden {
        /// The setting's value, or what could be learnt of it.
        disabled: String,
    },
    /// The memlock limit has no room for the queues (kernels before 5.12), or memory is short.
    #[error(
        "io_uring could not get memory for its queues (ENOMEM); the memlock limit is {memlock_bytes} bytes. Cure: `ulimit -l` higher, or memlock=-1 for the container"
    )]
    NoMemory {
        /// The soft limit in force.
        memlock_bytes: u64,
    },
    /// Something that an io_uring needs beside itself.
    #[error("{what} could not be set up: {source}")]
    Other {
        /// What was missing.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The steps down. Each leaves out what the step before needs a newer kernel for.
const STEPS: [&[&str]; 5] = [
    &["SUBMIT_ALL", "SINGLE_ISSUER", "DEFER_TASKRUN", "NO_SQARRAY"], // 6.6
    &["SUBMIT_ALL", "SINGLE_ISSUER", "DEFER_TASKRUN"],               // 6.1
    &["SUBMIT_ALL", "SINGLE_ISSUER", "COOP_TASKRUN", "TASKRUN_FLAG"], // 6.0
    &["SUBMIT_ALL", "COOP_TASKRUN", "TASKRUN_FLAG"],                 // 5.19
    &[],
];

/// The same where the kernel's thread submits: it runs completions too, so nothing is left to be deferred.
const SQPOLL_STEPS: [&[&str]; 3] = [
    &["SQPOLL", "SUBMIT_ALL", "SINGLE_ISSUER", "NO_SQARRAY"], // 6.6
    &["SQPOLL", "SUBMIT_ALL", "SINGLE_ISSUER"],               // 6.0
    &["SQPOLL", "SUBMIT_ALL"],                                // 5.18
];

pub(in crate::sys) fn set_up(options: &UringOptions) -> Result<(IoUring, Setup), UringError> {
    let steps: &[&[&'static str]] = if options.sqpoll.is_some() { &SQPOLL_STEPS } else { &STEPS };
    let mut last = None;
    for step in steps {
        match build(step, options.sqpoll) {
            Ok(ring) => {
                if let Some(micros) = options.napi_busy_poll_micros {
                    poll_cards(&ring, micros)?;
                }
                let refused = steps[0].iter().filter(|flag| !step.contains(flag)).copied().collect();
                return Ok((ring, Setup { granted: step.to_vec(), refused }));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(explain(error)),
        }
    }
    Err(explain(last.expect("at least one step was tried")))
}

fn build(flags: &[&str], sqpoll: Option<SqPoll>) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETION_ENTRIES);
    for flag in flags {
        match *flag {
            "SUBMIT_ALL" => builder.setup_submit_all(),
            "SINGLE_ISSUER" => builder.setup_single_issuer(),
            "DEFER_TASKRUN" => builder.setup_defer_taskrun(),
            "NO_SQARRAY" => builder.setup_no_sqarray(),
            "COOP_TASKRUN" => builder.setup_coop_taskrun(),
            "TASKRUN_FLAG" => builder.setup_taskrun_flag(),
            "SQPOLL" => {
                let SqPoll { idle_ms, core } = sqpoll.expect("a step for those who asked for it");
                if let Some(core) = core {
                    builder.setup_sqpoll_cpu(core);
                }
                builder.setup_sqpoll(idle_ms)
            }
            other => unreachable!("no such set-up flag: {other}"),
        };
    }
    builder.build(SUBMISSION_ENTRIES)
}

/// Bounds the workers for what is not about a regular file's own blocks, which here are splices. Those for files have the
/// kernel's own bound: four for each core.
pub(super) fn bound_workers(ring: &IoUring) -> io::Result<()> {
    let as_it_is = 0;
    ring.submitter().register_iowq_max_workers(&mut [as_it_is, SPLICE_WORKERS_MAX])
}

fn poll_cards(ring: &IoUring, micros: u32) -> Result<(), UringError> {
    let mut napi = Napi::new().set_busy_poll_timeout(micros);
    let refused = |source| UringError::Other { what: "NAPI busy polling", source };
    ring.submitter().register_napi(&mut napi).map_err(refused)
}

fn explain(error: io::Error) -> UringError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => UringError::Missing,
        Some(libc::EPERM | libc::EACCES) => {
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            UringError::Forbidden {
                disabled: disabled.map_or("unknown".to_owned(), |text| text.trim().to_owned()),
            }
        }
        Some(libc::ENOMEM) => {
            let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK);
            UringError::NoMemory { memlock_bytes: limit.map_or(0, |(soft, _)| soft) }
        }
        _ => UringError::Other { what: "io_uring", source: error },
    }
}

/// Whether the kernel knows an operation.
pub(super) fn knows(ring: &IoUring, code: u8) -> bool {
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe).is_ok() && probe.is_supported(code)
}

/// Registers the ring's descriptor with the calling thread, so that a visit need not look it up.
/// (The crate remembers it for one `Submitter` only; ours live for a call each.)
pub(super) fn register_ring_fd(fd: RawFd) -> io::Result<i32> {
    #[repr(C)]
    struct RsrcUpdate {
        offset: u32,
        reserved: u32,
        data: u64,
    }
    let mut update = RsrcUpdate { offset: u32::MAX, reserved: 0, data: fd as u64 };
    let arguments = &raw mut update;
    // SAFETY: `update` has the layout of `struct io_uring_rsrc_update` and outlives the call.
    let count = unsafe { libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_RING_FDS, arguments, 1) };
    if count == 1 { Ok(update.offset as i32) } else { Err(io::Error::last_os_error()) }
}

/// `io_uring_enter(2)`: submits `queued` entries, runs deferred completions, waits for `at_least`.
pub(super) fn enter(
    fd: i32,
    queued: u32,
    at_least: u32,
    flags: u32,
    timeout_nanos: Option<u64>,
) -> Result<u32, i32> {
    #[repr(C)]
    struct GetEventsArg {
        sigmask: u64,
        sigmask_bytes: u32,
        min_wait_micros: u32,
        timespec: u64,
    }
    let mut flags = flags | ENTER_GETEVENTS;
    let nanos = timeout_nanos.unwrap_or(0);
    let timespec =
        libc::timespec { tv_sec: (nanos / 1_000_000_000) as i64, tv_nsec: (nanos % 1_000_000_000) as i64 };
    let argument = GetEventsArg {
        sigmask: 0,
        sigmask_bytes: 8,
        min_wait_micros: 0,
        timespec: &raw const timespec as u64,
    };
    let (pointer, bytes) = match timeout_nanos {
        Some(_) => {
            flags |= ENTER_EXT_ARG;
            (&raw const argument as *const libc::c_void, size_of::<GetEventsArg>())
        }
        None => (std::ptr::null(), 0),
    };
    // SAFETY: `argument` has the layout of `struct io_uring_getevents_arg`; it and `timespec` outlive the call.
    let entered =
        unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, queued, at_least, flags, pointer, bytes) };
    if entered >= 0 {
        Ok(entered as u32)
    } else {
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_cause_and_cure() {
        let words = |errno| explain(io::Error::from_raw_os_error(errno)).to_string();
        assert!(words(libc::ENOSYS).contains("CONFIG_IO_URING"), "{}", words(libc::ENOSYS));
        let forbidden = words(libc::EPERM);
        assert!(forbidden.contains("seccomp") && forbidden.contains("io_uring_disabled=0"), "{forbidden}");
        assert!(words(libc::ENOMEM).contains("memlock"), "{}", words(libc::ENOMEM));
        assert!(words(libc::EIO).contains("io_uring"), "{}", words(libc::EIO));
    }

    #[test]
    fn every_step_down_asks_for_less_of_a_newer_kernel() {
        for flags in STEPS {
            match build(flags, None) {
                Ok(_) => {}
                // This kernel is older than the step.
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{flags:?}: {error}"),
            }
        }
    }
}
