//! ListOffsets (key 2): the offset that belongs to a timestamp, or to one of the names below.

use super::ErrorCode;
use super::table::messages;

/// In place of a timestamp: the end that a consumer may see.
pub const TIMESTAMP_LATEST: i64 = -1;
/// In place of a timestamp: the log start offset.
pub const TIMESTAMP_EARLIEST: i64 = -2;
/// In place of a timestamp: the record with the largest timestamp (version 7 on).
pub const TIMESTAMP_MAX: i64 = -3;
/// In place of a timestamp: the earliest offset on local disk (version 8 on).
pub const TIMESTAMP_EARLIEST_LOCAL: i64 = -4;
/// In place of a timestamp: the last offset in tiered storage (version 9 on).
pub const TIMESTAMP_LATEST_TIERED: i64 = -5;
/// In place of a timestamp: the earliest offset still to be uploaded (version 11 on).
pub const TIMESTAMP_EARLIEST_PENDING_UPLOAD: i64 = -6;

messages! {
    /// Timestamps to be found.
    pub struct ListOffsetsRequest<'a> of ListOffsets {
        /// -1 for a consumer.
        replica_id: i32 = 0..;
        isolation_level: i8 = 2..;
        topics: Vec<ListOffsetsTopic<'a>> = 0..;
        timeout_ms: i32 = 10.., ignorable true;
    }

    /// One topic of the request.
    pub struct ListOffsetsTopic<'a> {
        name: &'a str = 0..;
        partitions: Vec<ListOffsetsPartition> = 0..;
    }

    /// One partition of the request.
    pub struct ListOffsetsPartition {
        partition_index: i32 = 0..;
        current_leader_epoch: i32 = 4.., default -1, ignorable true;
        timestamp: i64 = 0..;
    }

    /// Offsets found.
    pub struct ListOffsetsResponse<'a> of ListOffsets {
        throttle_time_ms: i32 = 2.., ignorable true;
        topics: Vec<ListOffsetsTopicResponse<'a>> = 0..;
    }

    /// One topic of the response.
    pub struct ListOffsetsTopicResponse<'a> {
        name: &'a str = 0..;
        partitions: Vec<ListOffsetsPartitionResponse> = 0..;
    }

    /// One partition of the response.
    pub struct ListOffsetsPartitionResponse {
        partition_index: i32 = 0..;
        error_code: ErrorCode = 0..;
        timestamp: i64 = 1.., default -1;
        offset: i64 = 1.., default -1;
        leader_epoch: i32 = 4.., default -1;
    }
}
