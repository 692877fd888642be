//! Processors: which ones, how much of them, and whether they are ours when we want them.

use std::io;
use std::thread;
use std::time::Duration;

use ringlog::sys::topology::{allowed_cores, quota_cores};

use super::finding::{Finding, Section, State};
use super::host::Host;
use crate::cpu::MachineSample;

/// How long the machine is watched for time that its own host takes away.
const WATCHED: Duration = Duration::from_millis(500);
/// Below this part of the time it says little.
const STEAL_SHARE_MAX: f64 = 0.01;

pub(super) fn look(host: &Host) -> Section {
    let allowed = allowed_cores().unwrap_or_default();
    let findings =
        vec![cores(host, &allowed), quota(quota_cores(), allowed.len()), steal(watch()), governor(host)];
    Section::new("processors", findings)
}

fn cores(host: &Host, allowed: &[usize]) -> Finding {
    let online = host.text("/sys/devices/system/cpu/online").map_or(0, |list| count(&list));
    let finding =
        Finding::good("cores", format!("{} of {online} allowed: {}", allowed.len(), ranges(allowed)));
    if allowed.len() >= online {
        return finding;
    }
    finding.but(
        State::Degraded,
        "the affinity mask leaves the others unused: a shard runs on each allowed core",
        format!("taskset -c 0-{} ringlog-broker serve ..", online - 1),
    )
}

/// Cores in a list of the kernel's: `0-3,8`.
fn count(list: &str) -> usize {
    let parts = list.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        Some((last + 1).saturating_sub(first))
    });
    parts.sum()
}

/// The same list of cores, short: `0-3,8`.
fn ranges(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let words = parts.iter().map(
        |&(first, last)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        },
    );
    words.collect::<Vec<_>>().join(",")
}

fn quota(quota: Option<f64>, allowed: usize) -> Finding {
    let Some(quota) = quota else { return Finding::good("quota", "none in this cgroup") };
    let finding = Finding::good("quota", format!("{quota} cores' worth of time in this cgroup"));
    let shards = allowed.min((quota.floor() as usize).max(1));
    if quota >= allowed as f64 {
        return finding;
    }
    finding.but(
        State::Degraded,
        format!(
            "{shards} of {allowed} cores get a shard, and whoever uses up the quota stands still for the rest of a \
             period (mostly 100 ms)"
        ),
        format!("docker run --cpus {allowed} (systemd: CPUQuota={}%)", allowed * 100),
    )
}

/// The part of all cores' time that was stolen while we watched.
fn watch() -> io::Result<f64> {
    let before = MachineSample::take()?;
    thread::sleep(WATCHED);
    let cores = MachineSample::take()?.since(&before);
    let stolen: f64 = cores.values().map(|core| core.steal).sum();
    Ok(stolen / (WATCHED.as_secs_f64() * cores.len().max(1) as f64))
}

fn steal(share: io::Result<f64>) -> Finding {
    let share = match share {
        Ok(share) => share,
        Err(error) => return Finding::good("steal", format!("not told: {error}")),
    };
    let found = format!("{:.1} % of {} ms", share * 100.0, WATCHED.as_millis());
    let finding = Finding::good("steal", found);
    if share <= STEAL_SHARE_MAX {
        return finding;
    }
    finding.but(
        State::Degraded,
        "the machine below runs others on these cores: latencies and comparisons are theirs as much as ours",
        "dedicated cores, or a quieter hour: vmstat 1 (last but one column, st) shows when",
    )
}

fn governor(host: &Host) -> Finding {
    match host.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").as_deref() {
        None => Finding::good("frequency governor", "none to set here (usual in a guest)"),
        Some("performance") => Finding::good("frequency governor", "performance"),
        Some(other) => Finding::good("frequency governor", other).but(
            State::Degraded,
            "a core that has just woken is slow: latencies at low rates, and the first seconds of a run",
            "sudo cpupower frequency-set -g performance",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::telling;

    #[test]
    fn lists_of_cores_are_counted_and_written() {
        assert_eq!((count("0-3,8"), count("0"), count(""), count("3-1")), (5, 1, 0, 0));
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn what_is_taken_away_is_said_with_numbers() {
        assert_eq!(quota(None, 4).state, State::Good);
        assert_eq!(quota(Some(4.0), 4).state, State::Good);
        let half = quota(Some(2.5), 4);
        assert!(half.state == State::Degraded && half.consequence.starts_with("2 of 4"), "{half:?}");
        assert!(quota(Some(0.5), 4).consequence.starts_with("1 of 4"));
        assert_eq!(steal(Ok(0.001)).state, State::Good);
        let stolen = steal(Ok(0.25));
        assert!(stolen.state == State::Degraded && stolen.found == "25.0 % of 500 ms", "{stolen:?}");
    }

    #[test]
    fn affinity_and_governor_are_read() {
        let (_root, host) = telling(&[
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
        ]);
        let some = cores(&host, &[2, 3]);
        assert_eq!((some.found.as_str(), some.state), ("2 of 8 allowed: 2-3", State::Degraded));
        assert!(some.cure.contains("0-7"));
        assert_eq!(governor(&host).state, State::Degraded);
        assert_eq!(governor(&Host::below("/nowhere")).state, State::Good);
    }
}
