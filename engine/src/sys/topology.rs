//! Which cores this process may use, and pinning a thread to one.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The cores that the affinity mask allows, in ascending order.
///
/// # Errors
/// What the kernel said.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect())
}

/// Pins the calling thread, and every thread it starts from here on, to `core`.
///
/// # Errors
/// When the core does not exist or is not allowed, with its number and the allowed ones.
pub fn pin_to(core: usize) -> io::Result<()> {
    let refuse = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let mut set = CpuSet::new();
    set.set(core).map_err(|_| refuse(format!("there is no core {core}")))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|errno| {
        let allowed = allowed_cores().unwrap_or_default();
        refuse(format!("cannot pin to core {core}: {errno}; allowed are {allowed:?}"))
    })
}

/// The cores to run on when nobody says: all that the mask allows, no more than the cgroup's quota pays for.
///
/// # Errors
/// What the kernel said.
pub fn usable_cores() -> io::Result<Vec<usize>> {
    let mut cores = allowed_cores()?;
    if let Some(quota) = quota_cores() {
        // A thread beyond the quota would only be throttled together with the others.
        cores.truncate((quota.floor() as usize).max(1));
    }
    Ok(cores)
}

/// Cores' worth of time that the cgroup grants per second (`cpu.max`), if it is limited.
#[must_use]
pub fn quota_cores() -> Option<f64> {
    let path = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = path.lines().find_map(|line| line.strip_prefix("0::"))?;
    let text = std::fs::read_to_string(format!("/sys/fs/cgroup{group}/cpu.max")).ok()?;
    let mut words = text.split_whitespace();
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = words.next()?.parse().ok()?;
    (period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_core_that_does_not_exist_is_refused_by_name() {
        let error = super::pin_to(1023).unwrap_err().to_string();
        assert!(error.contains("1023"), "{error}");
        assert!(!super::allowed_cores().unwrap().is_empty());
    }
}
