//! Retention: at a named interval every partition is asked what is too old or too much, and that goes.
//!
//! First the log start moves, then the checkpoints say so, then files are removed: a crash in between leaves files that
//! are below the log start, never a log start that is below what is there. Only sealed segments go. Who still reads one
//! keeps its descriptor, and with it the bytes.

use super::partition::Partition;
use super::shard::Shard;
use crate::types::ShardId;

/// Looks at every partition of this shard, again and again until it stops.
pub(super) async fn run(shard: Shard) {
    while !shard.stops_within(shard.config().retention_interval).await {
        shard.enforce_retention().await;
    }
}

impl Shard {
    /// Removes from this shard's partitions what is beyond their topics' retention, now.
    pub async fn enforce_retention(&self) {
        // Other shards remove segments whose pages this one keeps for readers.
        self.transfers().drop_closed();
        if self.id() == ShardId(0) {
            self.0.common.make_reserve().await;
            self.retry_deletions().await;
        }
        let mut moved = Vec::new();
        for topic in self.topics() {
            for partition in topic.all_here() {
                if let Err(error) = partition.wake_if_old().await {
                    tracing::warn!("{partition}: retention: {error}");
                    continue;
                }
                let Some(to) = partition.retention_due() else { continue };
                match partition.move_log_start(to) {
                    Ok(removed) => moved.push((partition.clone(), removed)),
                    Err(error) => tracing::warn!("{partition}: retention: {error}"),
                }
            }
        }
        for (partition, removed) in &moved {
            tracing::info!("{partition}: {} segments are beyond retention", removed.len());
            partition.owe_removal(removed);
            partition.record_log_start();
        }
        if !self.topics().iter().any(|topic| topic.all_here().any(Partition::owes_removal)) {
            return;
        }
        if let Err(error) = self.checkpoint().await {
            tracing::warn!(
                "retention: checkpoints: {error}; what is beyond retention stays until they are written"
            );
            return;
        }
        self.0.common.manifest.sync().await;
        for topic in self.topics() {
            for partition in topic.all_here() {
                if let Err(error) = partition.remove_owed().await {
                    tracing::warn!("{partition}: retention: {error}; tried again");
                }
            }
        }
    }
}
