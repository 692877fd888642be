//! **ringlog**: a partitioned, append-only log on io_uring, one thread per core.
//!
//! The house and its layers are described in `ARCHITECTURE.md` beside this crate, the bytes on disk in
//! `FORMAT.md`. Arrows point one way: `types` and `sys` know nothing of a log, `log` does no I/O, `transfer`
//! moves bytes, `shard` is one core, `engine` is the facade for everybody else.
#![warn(missing_docs)]

mod engine;
pub mod log;
pub mod shard;
pub mod sys;
pub mod transfer;
pub mod types;

pub use engine::{
    Appended, DRAIN_TIME_MAX, Engine, EngineConfig, EngineCounters, EngineError, PartitionHandle,
    StageSummary, block_on,
};
pub use shard::{Ack, Shard, ShardConfig, TopicConfig};
pub use transfer::{Egress, Ingress};
