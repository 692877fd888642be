//! A log that is sent: one topic, its first segment sealed and exactly full.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringlog::transfer::Piece;
use ringlog::types::Offset;
use ringlog::{Ack, Egress, Engine, Shard, TopicConfig, block_on};

use super::ground::make_memory;
use super::load::batch;

/// Memory beside what is stored.
const SPARE_BYTES: u64 = 4 << 20;
/// How long sealing a segment may take.
const SEALING_PATIENCE: Duration = Duration::from_secs(20);
/// Between a file that is there and the shard that knows it.
const HEARING: Duration = Duration::from_millis(50);

/// The first segment of a topic's partition 0, one record in each batch.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    topic: String,
    batches: u64,
    batch_bytes: u64,
}

impl Stored {
    /// Makes the topic, with about `bytes` in its first segment and a few batches behind it, and waits until that segment
    /// is sealed.
    pub(super) fn make(engine: &Engine, topic: &str, bytes: u64, about_batch_bytes: usize) -> Result<Stored> {
        let batches = (bytes / about_batch_bytes as u64).max(1);
        let batch_bytes = batch(about_batch_bytes, 0).len() as u64;
        let stored = Stored { topic: topic.to_owned(), batches, batch_bytes };
        // Memory that is there already: what has to be made first costs the tail cache as much.
        make_memory(engine, stored.bytes() + SPARE_BYTES)?;
        let data = block_on(engine.on_shard(|shard| async move { shard.config().data_dir.clone() }))?;
        let mut config = TopicConfig { ack: Ack::Durable, ..TopicConfig::default() };
        config.log.segment_bytes_max = stored.bytes();
        block_on(engine.create_topic(topic, 1, config))?;
        let partition = block_on(engine.partition(topic, 0))?;
        for number in 0..batches + 2 {
            block_on(partition.append(&batch(about_batch_bytes, number), None))?;
        }
        // What is sealed is cut to its length and flushed, and gets its indexes, the offset index last.
        let path = data.join(format!("{topic}-0/00000000000000000000.index"));
        let begun = Instant::now();
        while !path.exists() {
            let waited = begun.elapsed();
            ensure!(waited < SEALING_PATIENCE, "{} is not there after {waited:?}", path.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        // And the shard hears of it from a helper.
        block_on(engine.on_shard(|shard| async move { shard.ring().sleep(HEARING).await }))?;
        Ok(stored)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.batches * self.batch_bytes
    }

    /// The pieces from `position` on, which a batch begins at: whole batches, about `bytes_max` of them.
    pub(super) async fn pieces(
        &self,
        shard: &Shard,
        position: u64,
        bytes_max: u64,
        egress: Egress,
    ) -> Result<Vec<Piece>> {
        let topic = shard.topic(&self.topic).context("the topic is gone")?;
        let partition = topic.here(0).context("the partition is on another core")?;
        let offset = Offset((position / self.batch_bytes) as i64);
        let mut pieces = Vec::new();
        let fetched = partition.fetch(offset, bytes_max, egress, &mut pieces).await?;
        ensure!(fetched.bytes > 0, "{} has nothing at offset {offset}", self.topic);
        Ok(pieces)
    }
}
