//! What the engine will choose on this host when nobody tells it otherwise.

use ringlog::ShardConfig;
use ringlog::sys::probe::RingOffer;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::memlock::Arena;

/// What an engine does here by itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Cores that get a shard.
    pub cores: Vec<usize>,
    /// Set-up flags of their rings.
    pub ring_flags: Vec<String>,
    /// To what the memory of all shards may grow.
    pub arena_bytes: u64,
    /// What of it can be registered now, as far as was tried.
    pub registered_bytes: u64,
    /// How batches get to disk.
    pub ingress: String,
    /// How they get to sockets.
    pub egress: String,
    /// Whether writes and reads go past the page cache.
    pub direct: bool,
    /// Whether appends may wait for `durable`, the default; where not, a server that is not told otherwise does not start.
    pub durable: bool,
}

impl Choice {
    pub(super) fn of(cores: Vec<usize>, offer: &RingOffer, arena: Arena, disk: &Disk) -> Choice {
        let usual = ShardConfig::new("");
        Choice {
            cores,
            ring_flags: offer.setup.granted.iter().map(|flag| (*flag).to_owned()).collect(),
            arena_bytes: arena.bytes(),
            registered_bytes: offer.registered_bytes,
            ingress: usual.ingress.to_string(),
            egress: usual.egress.to_string(),
            direct: disk.is_direct,
            durable: disk.is_durable,
        }
    }

    /// The same in sentences.
    pub(super) fn words(&self) -> Vec<String> {
        let flags =
            if self.ring_flags.is_empty() { "no flags".to_owned() } else { self.ring_flags.join(" | ") };
        let past = if self.direct { "past the page cache" } else { "through the page cache" };
        let mib = |bytes: u64| bytes >> 20;
        vec![
            format!("a shard on each of the cores {:?}, with rings of {flags}", self.cores),
            format!(
                "arenas of up to {} MiB in all, {} MiB of it registered as far as was tried",
                mib(self.arena_bytes),
                mib(self.registered_bytes)
            ),
            format!("ingress {} {past}, egress {}", self.ingress, self.egress),
            match self.durable {
                true => "appends wait for durable".to_owned(),
                false => "no start with the default ack durable; with --ack written or memory".to_owned(),
            },
        ]
    }
}
