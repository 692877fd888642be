//! One core's worth of the engine: a ring, its partitions, and the tasks that write, flush, prepare and recover.
//!
//! Everything here lives on one thread and is reached through [`Shard`] and [`Partition`], which are cheap to clone
//! and never leave it. What must be told to other threads goes through the facade's lanes.

mod acks;
mod board;
mod checkpoints;
mod commit;
mod config;
mod device_flush;
mod errors;
mod fetch;
mod files;
mod indexes;
mod journal;
mod lanes;
mod manifest;
mod maps;
mod node;
mod opening;
mod owed;
mod partition;
mod placement;
mod reach;
mod recovery;
mod replay;
mod reserve;
mod reserve_file;
mod retention;
mod route;
// The shard is the noun here; a cleverer file name would only hide it.
#[allow(clippy::module_inception)]
mod shard;
mod side_by_side;
mod sleep;
mod splicing;
mod stages;
mod topics;
mod turns;
mod wakers;

pub use acks::{Ack, Acked, Ticket};
pub use board::Board;
pub use config::{Commit, Mutant, SETTINGS, Setting, SettingKind, ShardConfig, Timestamps, TopicConfig};
pub use errors::{AppendError, FetchError, OpenError, TopicError, TruncateError};
pub use fetch::Fetched;
pub use journal::{JournalConfig, JournalCounters};
pub use lanes::{LANE_CALLS_MAX, LaneCounters};
pub use maps::{MAPPED_BYTES_MAX, MAPS_MAX};
pub use node::{Identity, Node};
pub use partition::Partition;
pub use placement::{VIRTUAL_SHARDS, owner, virtual_shard};
pub use reserve::Reservation;
pub use route::{Fetching, Promise, Route};
pub use shard::{Shard, ShardCounters};
pub use splicing::Spliced;
pub use stages::{Stage, Stages};
pub use topics::Topic;
