//! What is written down of all partitions together: recovery points and log starts, in Kafka's shapes.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::board::Board;
use super::reserve_file::is_full;
use super::shard::{Common, Shard};
use super::topics::Topic;
use crate::log::{OffsetCheckpoint, OffsetEntry};
use crate::types::{Offset, ShardId};

pub(super) const RECOVERY_POINTS_FILE: &str = "recovery-point-offset-checkpoint";
pub(super) const LOG_STARTS_FILE: &str = "log-start-offset-checkpoint";
/// Kafka's name for the mark of a clean stop.
pub(super) const CLEAN_MARK_FILE: &str = ".kafka_cleanshutdown";
/// Ours: a Kafka that stops cleanly writes an epoch of its own.
pub(super) const CLEAN_MARK: &[u8] = b"{\"version\":0,\"brokerEpoch\":-1}";
/// Where a Kafka that runs writes how far its partitions are replicated; we never do.
pub(super) const REPLICATION_POINTS_FILE: &str = "replication-offset-checkpoint";

/// How long nothing is written unasked for after that was done, for each partition.
const PAUSE_A_PARTITION: Duration = Duration::from_micros(100);

impl Common {
    /// Asks for the checkpoints to be written soon, by shard 0.
    pub(super) fn request_checkpoint(&self) {
        match self.id {
            ShardId(0) => self.checkpoint_is_due(),
            _ => self.lanes.announce_checkpoint(),
        }
    }

    pub(super) fn checkpoint_is_due(&self) {
        self.checkpoint_due.set(true);
        self.checkpoint_waiters.wake_all();
    }

    /// Writes both checkpoints. One writer at a time: two would share their temporary files.
    pub(super) async fn write_checkpoints(&self, topics: &[Rc<Topic>]) -> io::Result<()> {
        poll_fn(|cx| {
            if !self.checkpoint_busy.replace(true) {
                return Poll::Ready(());
            }
            self.checkpoint_waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
        let written = self.write_both(topics).await;
        self.checkpoint_busy.set(false);
        self.checkpoint_waiters.wake_all();
        written
    }

    async fn write_both(&self, topics: &[Rc<Topic>]) -> io::Result<()> {
        let of = |pick: fn(&Board) -> Offset| {
            let mut entries = Vec::new();
            for topic in topics {
                for partition in 0..topic.partition_count() {
                    let board = topic.board(partition).expect("counted");
                    entries.push(OffsetEntry {
                        topic: topic.name.to_string(),
                        partition,
                        offset: pick(board),
                    });
                }
            }
            OffsetCheckpoint { entries }.format().into_bytes()
        };
        // What a board shows was true at some moment before this one, and durable ends stay true.
        let (points, starts) = (of(Board::recovery_point), of(Board::log_start));
        let dir = &self.config.data_dir;
        // On a full disk the reserve is for what makes room: log starts that have moved. A recovery point that is not
        // written costs time at the next start, and no more; once the first roll on a full disk took the reserve
        // for it, and no topic could be deleted any more.
        if *self.log_starts_written.borrow() != starts {
            self.replace_at_need(&dir.join(LOG_STARTS_FILE), starts.clone()).await?;
            *self.log_starts_written.borrow_mut() = starts;
        }
        let path = dir.join(RECOVERY_POINTS_FILE);
        if self.stopping.get() {
            return self.replace_at_need(&path, points).await;
        }
        match self.ring.replace(&path, points).await {
            Err(error) if is_full(&error) => {
                tracing::warn!("{error}; recovery after a crash would have more to read");
                Ok(())
            }
            written => written,
        }
    }

    pub(super) async fn leave_clean_mark(&self) -> io::Result<()> {
        let path = self.config.data_dir.join(CLEAN_MARK_FILE);
        self.replace_at_need(&path, CLEAN_MARK.to_vec()).await
    }
}

/// Writes the checkpoints whenever that was asked for, until the shard stops.
pub(super) async fn run(shard: Shard) {
    let common = shard.0.common.clone();
    loop {
        poll_fn(|cx| {
            if common.stopping.get() || common.checkpoint_due.get() {
                return Poll::Ready(());
            }
            common.checkpoint_waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
        if common.stopping.get() {
            return;
        }
        common.checkpoint_due.set(false);
        let topics = shard.topics();
        let partitions: i32 = topics.iter().map(|topic| topic.partition_count()).sum();
        if let Err(error) = common.write_checkpoints(&topics).await {
            tracing::warn!("checkpoints: {error}; recovery after a crash would have more to read");
        }
        drop(topics);
        // Each writes all of them.
        if shard.stops_within(PAUSE_A_PARTITION * partitions.unsigned_abs()).await {
            return;
        }
    }
}
