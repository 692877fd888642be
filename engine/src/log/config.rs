//! What a topic may choose about the shape of its log.

/// The configuration of one partition's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment that would grow beyond this is rolled; at most `i32::MAX`, since Kafka's positions are signed.
    pub segment_bytes_max: u64,
    /// How many bytes lie between two entries of the offset index, at least.
    pub index_interval_bytes: u32,
    /// A segment whose first append is older than this is rolled.
    pub segment_age_ms_max: Option<i64>,
    /// The largest batch that is accepted.
    pub batch_bytes_max: u32,
    /// Old segments go when the log is larger than this.
    pub retention_bytes: Option<u64>,
    /// Old segments go when their newest record is older than this.
    pub retention_ms: Option<i64>,
}

impl Default for LogConfig {
    /// Kafka's numbers: segments of 1 GiB, an index entry per 4 KiB, batches of 1 MiB and 12 bytes, no retention.
    fn default() -> LogConfig {
        LogConfig {
            segment_bytes_max: 1 << 30,
            index_interval_bytes: 4096,
            segment_age_ms_max: None,
            batch_bytes_max: 1_048_588,
            retention_bytes: None,
            retention_ms: None,
        }
    }
}
