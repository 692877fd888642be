//! A log server that speaks the Kafka protocol over the ringlog engine.
//!
//! [`start`] puts it on an engine: a listener on every shard, all on one address. [`serve`] is what runs on each: it
//! accepts connections and answers requests, from the partitions that live there or through lanes from other shards.
//! Each connection has two tasks, a reader and a writer, with a bounded queue of requests between them. `wire` is the
//! protocol as bytes; the handlers, one a file, say what a message means.

mod config;
mod connection;
mod create_topics;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod errors;
mod fetch;
mod guard;
mod in_place;
mod list_offsets;
mod metadata;
mod offset_for_leader_epoch;
mod produce;
mod provided;
mod reader;
mod serve;
mod spliced;
mod start;
pub mod wire;
mod writer;

pub use config::{BrokerConfig, CONNECTIONS_MAX};
pub use serve::{Bound, Served, bind, serve};
pub use start::{Serving, start};
