//! The limit of locked memory, and what part of the engine's memory can be registered with it.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use ringlog::sys::probe::RingOffer;

use super::finding::{Finding, State};
use super::host::{Host, RIGHT_TO_LOCK, RIGHT_TO_RAISE_LIMITS};

/// What the shards of an engine may take for moving bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arena {
    pub shards: usize,
    pub bytes_each: u64,
}

impl Arena {
    pub(super) fn bytes(self) -> u64 {
        self.shards as u64 * self.bytes_each
    }
}

pub(super) fn look(host: &Host, offer: &RingOffer, arena: Arena) -> Finding {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(RLIM_INFINITY, |(soft, _)| soft);
    let limit = (limit != RLIM_INFINITY).then_some(limit);
    judge(host, limit, offer, arena)
}

fn judge(host: &Host, limit: Option<u64>, offer: &RingOffer, arena: Arena) -> Finding {
    let mib = |bytes: u64| bytes >> 20;
    let limit = match limit {
        None => "no limit".to_owned(),
        Some(limit) if host.has_right(RIGHT_TO_LOCK) => {
            format!("a limit of {} KiB that CAP_IPC_LOCK overrides", limit >> 10)
        }
        Some(limit) => format!("a limit of {} KiB", limit >> 10),
    };
    let whose = format!("arena ({} of {} MiB)", shards(arena.shards), mib(arena.bytes_each));
    let (registered, all) = (offer.registered_bytes, arena.bytes());
    let Some(refusal) = &offer.refusal else {
        let part = if offer.asked_bytes >= all {
            format!("all of the {whose}")
        } else {
            format!("{} MiB of the {whose}, as much as was tried,", mib(registered))
        };
        return Finding::good("memlock", format!("{limit}: {part} can be registered"));
    };
    let part = (registered as f64 / all as f64 * 100.0).floor();
    let found = format!(
        "{limit}: {} MiB of the {whose}, {part} %, can be registered now ({refusal})",
        mib(registered)
    );
    Finding::good("memlock", found).but(
        State::Degraded,
        "the rest is used unregistered, its pages pinned anew for every operation; and as the limit is one for all \
         processes of a user, the servers of one comparison get unequal parts of it: rows that are compared are \
         then not alike (the page of a run says how far)",
        cure(host),
    )
}

fn shards(count: usize) -> String {
    if count == 1 { "1 shard".to_owned() } else { format!("{count} shards") }
}

/// How the limit is raised, by whoever may.
pub(super) fn cure(host: &Host) -> String {
    cure_above(host, getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(_, hard)| hard))
}

fn cure_above(host: &Host, hard: u64) -> String {
    let words = if hard == RLIM_INFINITY || host.has_right(RIGHT_TO_RAISE_LIMITS) {
        "ulimit -l unlimited: no memlock limit in this shell (of a service: LimitMEMLOCK=infinity)"
    } else if host.is_container() {
        "docker run --ulimit memlock=-1"
    } else {
        "sudo prlimit --memlock=unlimited --pid $$ (of a service: LimitMEMLOCK=infinity)"
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::telling;

    #[test]
    fn the_part_that_can_be_registered_is_told_and_what_follows_for_comparisons() {
        let offer = |asked: u64, registered: u64| RingOffer {
            setup: ringlog::sys::Setup::default(),
            operations: Vec::new(),
            clones_buffers: None,
            registered_bytes: registered << 20,
            asked_bytes: asked << 20,
            refusal: (registered < asked).then(|| std::io::Error::from_raw_os_error(12)),
        };
        let nobody = Host::below("/nowhere");
        let arena = Arena { shards: 2, bytes_each: 512 << 20 };
        let some = judge(&nobody, Some(8 << 20), &offer(1024, 6), arena);
        assert_eq!(some.state, State::Degraded);
        assert!(some.found.contains("a limit of 8192 KiB: 6 MiB of the arena (2 shards of 512 MiB), 0 %"));
        assert!(some.consequence.contains("servers of one comparison get unequal parts"));
        assert_eq!(some.cure, cure(&nobody));
        let all = judge(&nobody, None, &offer(1024, 1024), arena);
        assert_eq!(all.found, "no limit: all of the arena (2 shards of 512 MiB) can be registered");
        let large = Arena { shards: 64, ..arena };
        let tried = judge(&nobody, None, &offer(2048, 2048), large);
        assert!(tried.state == State::Good && tried.found.contains("2048 MiB of the arena (64 shards"));
    }

    #[test]
    fn the_cure_is_one_that_this_user_can_take() {
        let (_root, host) = telling(&[]);
        assert!(cure_above(&host, 8 << 20).starts_with("sudo prlimit"));
        assert!(cure_above(&host, RLIM_INFINITY).starts_with("ulimit -l unlimited"));
        let (_root, host) = telling(&[(".dockerenv", "")]);
        assert_eq!(cure_above(&host, 8 << 20), "docker run --ulimit memlock=-1");
        let (_root, host) =
            telling(&[(".dockerenv", ""), ("proc/self/status", "CapEff:\t0000000001000000\n")]);
        assert!(cure_above(&host, 8 << 20).starts_with("ulimit -l unlimited"), "CAP_SYS_RESOURCE suffices");
    }
}
