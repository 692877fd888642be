//! OffsetForLeaderEpoch (key 23): where a reign ended.

use super::ErrorCode;
use super::table::messages;

messages! {
    /// Which epochs are asked about.
    pub struct OffsetForLeaderEpochRequest<'a> of OffsetForLeaderEpoch {
        replica_id: i32 = 3.., default -2, ignorable true;
        topics: Vec<OffsetForLeaderTopic<'a>> = 0..;
    }

    /// One topic's partitions.
    pub struct OffsetForLeaderTopic<'a> {
        topic: &'a str = 0..;
        partitions: Vec<OffsetForLeaderPartition> = 0..;
    }

    /// One partition and an epoch of it.
    pub struct OffsetForLeaderPartition {
        partition: i32 = 0..;
        current_leader_epoch: i32 = 2.., default -1, ignorable true;
        leader_epoch: i32 = 0..;
    }

    /// Where they ended.
    pub struct OffsetForLeaderEpochResponse<'a> of OffsetForLeaderEpoch {
        throttle_time_ms: i32 = 2.., ignorable true;
        topics: Vec<OffsetForLeaderTopicResult<'a>> = 0..;
    }

    /// One topic's partitions.
    pub struct OffsetForLeaderTopicResult<'a> {
        topic: &'a str = 0..;
        partitions: Vec<EpochEndResult> = 0..;
    }

    /// The epoch that was found, at or before the one asked for, and its end.
    pub struct EpochEndResult {
        error_code: ErrorCode = 0..;
        partition: i32 = 0..;
        leader_epoch: i32 = 1.., default -1, ignorable true;
        end_offset: i64 = 0.., default -1;
    }
}
