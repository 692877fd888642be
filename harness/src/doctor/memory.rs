//! Memory: how much there is for the arenas, whether it stays, in what pages.

use super::finding::{Finding, Section, State};
use super::host::{Host, chosen, field};
use super::memlock::Arena;

pub(super) fn look(host: &Host, arena: Arena) -> Section {
    let meminfo = host.text("/proc/meminfo").unwrap_or_default();
    let findings =
        vec![available(host, &meminfo, arena), swap(&meminfo), transparent(host), reserved(&meminfo)];
    Section::new("memory", findings)
}

/// A line of `/proc/meminfo`, `name: 12 kB`, in KiB; plain counts as they are.
fn kib(meminfo: &str, name: &str) -> Option<u64> {
    field(meminfo, name)?.split(' ').next()?.parse().ok()
}

fn available(host: &Host, meminfo: &str, arena: Arena) -> Finding {
    let mib = |bytes: u64| bytes >> 20;
    let (free, all) = (kib(meminfo, "MemAvailable"), kib(meminfo, "MemTotal"));
    let (Some(free), Some(all)) = (free, all) else {
        return Finding::good("available", "not told (/proc/meminfo)");
    };
    let (mut free, all) = (free * 1024, all * 1024);
    let mut found = format!("{} of {} MiB", mib(free), mib(all));
    if let Some(limit) = limit(host).filter(|limit| *limit < all) {
        found.push_str(&format!(", a limit of {} MiB for this cgroup", mib(limit)));
        free = free.min(limit);
    }
    found.push_str(&format!("; arenas grow to {} MiB", mib(arena.bytes())));
    let finding = Finding::good("available", found);
    if arena.bytes() <= free {
        return finding;
    }
    finding.but(
        State::Degraded,
        "with arenas at their full size the kernel takes memory back from the page cache, then from processes",
        format!("fewer shards: ringlog-broker serve --cores {}", (free / arena.bytes_each.max(1)).max(1)),
    )
}

/// Of memory, for the cgroup that this process is in: `memory.max`, or `memory.limit_in_bytes` of the older hierarchies;
/// none where it is not limited.
fn limit(host: &Host) -> Option<u64> {
    host.text("/proc/self/cgroup")?.lines().find_map(|line| {
        let mut words = line.splitn(3, ':');
        let (_number, controllers, group) = (words.next()?, words.next()?, words.next()?);
        let (hierarchy, name) = match controllers {
            "" => ("", "memory.max"),
            "memory" => ("/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        // A container may see its own group as the root, and still be told the name that it has outside.
        [group.trim_end_matches('/'), ""]
            .iter()
            .find_map(|group| host.text(&format!("/sys/fs/cgroup{hierarchy}{group}/{name}"))?.parse().ok())
    })
}

fn swap(meminfo: &str) -> Finding {
    let (all, free) = (kib(meminfo, "SwapTotal").unwrap_or(0), kib(meminfo, "SwapFree").unwrap_or(0));
    if all == 0 {
        return Finding::good("swap", "none");
    }
    Finding::good("swap", format!("{} of {} MiB in use", (all - free.min(all)) >> 10, all >> 10)).but(
        State::Degraded,
        "unregistered arena memory may go there, and a shard that touches it stands still until it is back",
        "sudo swapoff -a (or sudo sysctl vm.swappiness=1)",
    )
}

fn transparent(host: &Host) -> Finding {
    let name = "transparent huge pages";
    let text = host.text("/sys/kernel/mm/transparent_hugepage/enabled");
    match text.as_deref().and_then(chosen) {
        Some(choice @ ("always" | "madvise")) => {
            Finding::good(name, format!("{choice}: the arena asks for them and gets them"))
        }
        other => Finding::good(name, other.unwrap_or("not there")).but(
            if other.is_some() { State::Degraded } else { State::Missing },
            "the arena lies in pages of 4 KiB: 512 times as many to pin and to look up",
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
    }
}

fn reserved(meminfo: &str) -> Finding {
    let count = |name: &str| kib(meminfo, name).unwrap_or(0);
    let (all, free, size) = (count("HugePages_Total"), count("HugePages_Free"), count("Hugepagesize"));
    let found = if all == 0 {
        "none, and the engine asks for none".to_owned()
    } else {
        format!(
            "{free} of {all} pages of {size} KiB free; the engine asks for none, and nobody else gets this memory"
        )
    };
    Finding::good("reserved huge pages", found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::telling;

    const MEMINFO: &str = "MemTotal:        2048000 kB\nMemFree:  1 kB\nMemAvailable:    1048576 kB\n\
                           SwapTotal: 2097152 kB\nSwapFree: 1048576 kB\nHugePages_Total:       4\n\
                           HugePages_Free:        3\nHugepagesize:       2048 kB";

    #[test]
    fn arenas_are_held_against_what_there_is() {
        let (_root, free) = telling(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n")]);
        let arena = |shards| Arena { shards, bytes_each: 512 << 20 };
        let fits = available(&free, MEMINFO, arena(2));
        assert_eq!(
            (fits.state, fits.found.as_str()),
            (State::Good, "1024 of 2000 MiB; arenas grow to 1024 MiB")
        );
        let larger = available(&free, MEMINFO, arena(8));
        assert!(larger.state == State::Degraded && larger.cure.ends_with("--cores 2"), "{larger:?}");
        let texts = [
            ("proc/self/cgroup", "1:cpu:/x\n0::/a.slice\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "629145600"),
        ];
        let (_root, limited) = telling(&texts);
        let limited = available(&limited, MEMINFO, arena(2));
        assert!(
            limited.found.contains("a limit of 600 MiB") && limited.cure.ends_with("--cores 1"),
            "{limited:?}"
        );
        let old = [
            ("proc/self/cgroup", "4:memory:/docker/x\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "629145600\n"),
        ];
        let (_root, old) = telling(&old);
        assert_eq!(limit(&old), Some(600 << 20), "in a container the group is the root");
        assert!(available(&free, "nothing", arena(1)).found.contains("not told"));
    }

    #[test]
    fn swap_and_pages_are_read() {
        let used = swap(MEMINFO);
        assert!(used.state == State::Degraded && used.found == "1024 of 2048 MiB in use", "{used:?}");
        assert_eq!(swap("SwapTotal: 0 kB").state, State::Good);
        assert!(reserved(MEMINFO).found.starts_with("3 of 4 pages of 2048 KiB"));
        let of = |text| {
            let (_root, host) = telling(&[("sys/kernel/mm/transparent_hugepage/enabled", text)]);
            transparent(&host).state
        };
        assert_eq!(of("always [madvise] never"), State::Good);
        assert_eq!(of("always madvise [never]"), State::Degraded);
        assert_eq!(transparent(&Host::below("/nowhere")).state, State::Missing);
    }
}
