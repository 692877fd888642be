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

/// Cores' worth of time that the cgroup grants per second, if it is limited: `cpu.max`, or `cpu.cfs_quota_us` of the older
/// hierarchies.
#[must_use]
pub fn quota_cores() -> Option<f64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    quota_of(&read("/proc/self/cgroup")?, read)
}

fn quota_of(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<f64> {
    groups.lines().find_map(|line| {
        let mut words = line.splitn(3, ':');
        let (_number, controllers, group) = (words.next()?, words.next()?, words.next()?);
        // A container may see its own group as the root, and still be told the name that it has outside.
        [group.trim_end_matches('/'), ""].iter().find_map(|group| {
            let (quota, period) = if controllers.is_empty() {
                let text = read(&format!("/sys/fs/cgroup{group}/cpu.max"))?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.to_owned(), period.to_owned())
            } else if controllers.split(',').any(|name| name == "cpu") {
                let of = |name: &str| read(&format!("/sys/fs/cgroup/{controllers}{group}/cpu.cfs_{name}_us"));
                (of("quota")?, of("period")?)
            } else {
                return None;
            };
            // Without a limit it is "max", in the older hierarchies -1.
            let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_core_that_does_not_exist_is_refused_by_name() {
        let error = super::pin_to(1023).unwrap_err().to_string();
        assert!(error.contains("1023"), "{error}");
        assert!(!super::allowed_cores().unwrap().is_empty());
    }

    #[test]
    fn a_quota_is_found_in_either_hierarchy_and_in_containers() {
        let of = |groups: &str, files: &[(&str, &str)]| {
            super::quota_of(groups, |path| {
                let found = files.iter().find(|(known, _)| *known == path);
                found.map(|(_, text)| (*text).to_owned())
            })
        };
        let (v2, v1) = ("0::/a.slice\n", "4:memory:/x\n3:cpu,cpuacct:/x\n0::/\n");
        assert_eq!(of(v2, &[("/sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n")]), Some(1.5));
        assert_eq!(of(v2, &[("/sys/fs/cgroup/a.slice/cpu.max", "max 100000\n")]), None);
        assert_eq!(of(v2, &[("/sys/fs/cgroup/cpu.max", "50000 100000\n")]), Some(0.5));
        let old = |quota| {
            of(
                v1,
                &[
                    ("/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", quota),
                    ("/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n"),
                ],
            )
        };
        assert_eq!((old("250000\n"), old("-1\n"), of("", &[])), (Some(2.5), None, None));
    }
}
