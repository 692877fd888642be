//! What a broker may be told.

use std::net::SocketAddr;
use std::time::Duration;

use ringlog::sys::TASKS_MAX;

use crate::wire::FrameLimits;

/// How a broker serves.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether other shards of this node listen on the same address.
    pub shared: bool,
    /// Where clients are told to come; the listening address where this is `None`.
    pub advertise: Option<(String, u16)>,
    /// Partitions of a topic that a client's question creates, or that is created without a number.
    pub default_partitions: i32,
    /// Whether a client's question may create a topic.
    pub auto_create_topics: bool,
    /// The largest frames.
    pub frames: FrameLimits,
    /// Connections at a time, at most [`CONNECTIONS_MAX`]; more are closed at once.
    pub connections_max: usize,
    /// A connection that is silent for that long, and waits for nothing, is closed; Kafka's `connections.max.idle.ms`. So
    /// is one that takes less than 64 KiB of an answer under way in that time. When somebody waits for
    /// memory, who holds some and moves nothing for a second goes at once.
    pub silence_max: Duration,
}

/// Requests of one connection between its reader and its writer; then the reader waits.
pub(crate) const REQUESTS_IN_FLIGHT_MAX: usize = 64;
/// Partitions that one request may read from: far more than a client follows, and looked through within milliseconds.
pub(crate) const REQUEST_PARTITIONS_MAX: usize = 100_000;
/// Partitions that one request may create; Kafka's own limit.
pub(crate) const REQUEST_CREATIONS_MAX: i32 = 10_000;
/// Bytes of these requests, Produce aside, beyond which the reader waits too.
pub(crate) const BYTES_IN_FLIGHT_MAX: usize = 1 << 20;
/// The most connections of one shard: each is two of the [`TASKS_MAX`] tasks, and half of them are others'.
pub const CONNECTIONS_MAX: usize = TASKS_MAX / 4;

impl BrokerConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(listen: SocketAddr) -> BrokerConfig {
        let frames =
            FrameLimits { frame_bytes_max: ringlog::sys::LEASE_BYTES_MAX - 4, ..FrameLimits::default() };
        BrokerConfig {
            listen,
            shared: false,
            advertise: None,
            default_partitions: 1,
            auto_create_topics: true,
            frames,
            connections_max: 8192,
            silence_max: Duration::from_secs(600),
        }
    }
}
