//! What the bytes leave by, and what that does to the copies that a strategy declares.
//!
//! A strategy declares what the CPU copies where the card gathers. The one place that knows the rest.

use ringlog::Egress;
use ringlog::transfer::FreeSignal;
use serde::{Deserialize, Serialize};

/// What lies between server and peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// The same machine.
    Loopback,
    /// A card that gathers: what it sends may lie in many places.
    Gather,
    /// A card that does not: the kernel puts each packet together for it.
    NoGather,
}

impl Link {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Link::Loopback => "loopback",
            Link::Gather => "gather",
            Link::NoGather => "no gather",
        }
    }

    /// Copies per byte that leaves by an ordinary send: the socket takes one, packets put together for the card another.
    #[must_use]
    pub fn copies_of_a_send(self) -> f64 {
        match self {
            Link::Loopback | Link::Gather => 1.0,
            Link::NoGather => 2.0,
        }
    }

    /// CPU copies per payload byte on the sender's side, by what `egress` declares.
    #[must_use]
    pub fn sender_copies(self, egress: Egress) -> f64 {
        let declared = egress.profile().cpu_copies;
        match self {
            _ if !egress.delivers() => declared,
            Link::Gather => declared,
            Link::NoGather => declared + 1.0,
            // The loopback hands the very pages to the receiver, who may keep them: memory that is to be given back is
            // copied first.
            Link::Loopback if is_told_later(egress) => declared + 1.0,
            Link::Loopback => declared,
        }
    }

    /// Whether the kernel's report of zero-copy sends says anything here. It does not where packets are put together:
    /// bytes copied late, by segmentation, are not reported.
    #[must_use]
    pub fn reports_truly(self) -> bool {
        self != Link::NoGather
    }
}

/// Whether the kernel tells later, by a notice of its own, that the source may change: a zero-copy send.
#[must_use]
pub fn is_told_later(egress: Egress) -> bool {
    egress.free_signal() == FreeSignal::Release
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_copies_by_link_are_those_measured_on_bare_sockets() {
        let of = |name: &str| {
            let egress: Egress = name.parse().ok()?;
            Some([Link::Gather, Link::NoGather, Link::Loopback].map(|link| link.sender_copies(egress)))
        };
        let expected = [
            ("copy", [2.0, 3.0, 2.0]),
            ("mmap", [1.0, 2.0, 1.0]),
            ("direct", [1.0, 2.0, 1.0]),
            ("tail", [1.0, 2.0, 1.0]),
            ("sendfile", [0.0, 1.0, 0.0]),
            ("splice", [0.0, 1.0, 0.0]),
            ("ring_splice", [0.0, 1.0, 0.0]),
            ("tee", [0.0, 1.0, 0.0]),
            ("vmsplice", [0.0, 1.0, 0.0]),
            ("direct_zc", [0.0, 1.0, 1.0]),
            ("tail_zc", [0.0, 1.0, 1.0]),
            ("null", [0.0, 0.0, 0.0]),
        ];
        for (name, copies) in expected {
            assert!(of(name).is_none_or(|found| found == copies), "{name}: {:?}", of(name));
        }
    }
}
