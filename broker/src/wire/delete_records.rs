//! DeleteRecords (key 21): the log start moves forward.

use super::ErrorCode;
use super::table::messages;

messages! {
    /// Up to where records are to go.
    pub struct DeleteRecordsRequest<'a> of DeleteRecords {
        topics: Vec<DeleteRecordsTopic<'a>> = 0..;
        timeout_ms: i32 = 0..;
    }

    /// One topic's partitions.
    pub struct DeleteRecordsTopic<'a> {
        name: &'a str = 0..;
        partitions: Vec<DeleteRecordsPartition> = 0..;
    }

    /// One partition and its new log start.
    pub struct DeleteRecordsPartition {
        partition_index: i32 = 0..;
        /// -1 for the high watermark.
        offset: i64 = 0..;
    }

    /// Where the logs start now.
    pub struct DeleteRecordsResponse<'a> of DeleteRecords {
        throttle_time_ms: i32 = 0..;
        topics: Vec<DeleteRecordsTopicResult<'a>> = 0..;
    }

    /// One topic's partitions.
    pub struct DeleteRecordsTopicResult<'a> {
        name: &'a str = 0..;
        partitions: Vec<DeleteRecordsPartitionResult> = 0..;
    }

    /// Where one partition starts.
    pub struct DeleteRecordsPartitionResult {
        partition_index: i32 = 0..;
        low_watermark: i64 = 0..;
        error_code: ErrorCode = 0..;
    }
}
