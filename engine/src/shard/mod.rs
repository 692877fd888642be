//! One core's worth of the engine: a ring, its partitions, and the tasks that write, flush, prepare and recover.
//!
//! Everything here lives on one thread and is reached through [`Shard`] and [`Partition`], which are cheap to clone
//! and never leave it. What must be told to other threads goes through the facade's lanes.

mod acks;
mod checkpoints;
mod commit;
mod config;
mod errors;
mod fetch;
mod files;
mod open;
mod partition;
mod recovery;
// The shard is the noun here; a cleverer file name would only hide it.
#[allow(clippy::module_inception)]
mod shard;
mod stages;
mod topics;
mod wakers;

pub use acks::{Ack, Acked, Ticket};
pub use config::{Mutant, ShardConfig, TopicConfig};
pub use errors::{AppendError, FetchError, OpenError, TopicError, TruncateError};
pub use fetch::Fetched;
pub use partition::Partition;
pub use shard::{Identity, Shard, ShardCounters};
pub use stages::{Stage, Stages};
pub use topics::Topic;
