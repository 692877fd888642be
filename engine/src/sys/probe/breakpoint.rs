//! Whether an execution breakpoint may be set on a routine of the kernel.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

const TYPE_BREAKPOINT: u32 = 5;
const BREAK_ON_EXECUTION: u32 = 4;
/// Never armed: only the right to it is asked for.
const FLAG_DISABLED: u64 = 1;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// `struct perf_event_attr`, the version of 72 bytes (Linux 2.6.39).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    break_on: u32,
    address: u64,
    length: u64,
}

const _: () = assert!(size_of::<Attributes>() == 72);

/// Asks for a breakpoint on `address`, a routine of the kernel, on the first CPU, for every process; it is never armed.
///
/// # Errors
/// `EPERM` or `EACCES` without the privilege; `EINVAL` where the kernel allows none on its own routines (one without
/// `CONFIG_KPROBES` cannot tell which are safe); `ENOENT`, `ENOSPC` or `EOPNOTSUPP` where the machine has none to give.
pub fn execution_breakpoint(address: u64) -> io::Result<()> {
    let attributes = Attributes {
        kind: TYPE_BREAKPOINT,
        size: size_of::<Attributes>() as u32,
        sample_period: 1,
        flags: FLAG_DISABLED,
        break_on: BREAK_ON_EXECUTION,
        address,
        length: size_of::<libc::c_long>() as u64,
        ..Attributes::default()
    };
    let (every_process, first_cpu, no_group) = (-1, 0, -1);
    // SAFETY: the kernel reads 72 bytes of attributes, as many as `size` says and the structure has.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            every_process,
            first_cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made this descriptor, and nobody else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_breakpoint_is_set_outside_the_kernel_and_the_machine() {
        // Nobody's address: neither a program's nor the kernel's.
        let error = super::execution_breakpoint(0x8000_0000_0000_0000).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
