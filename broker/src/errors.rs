//! The engine's errors in the protocol's words: the one place that knows both.

use std::io;

use ringlog::log::{BATCH_HEADER_BYTES, BatchError, LENGTH_OVERHEAD};
use ringlog::shard::{AppendError, FetchError, TopicError, TruncateError};

use crate::wire::{ErrorCode, RequestHeader, WireError};

/// Why a connection comes to an end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The peer or the network.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer does not speak the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer speaks the protocol, but not in this request.
    #[error("{api} version {version}: {error}")]
    Request {
        /// The name of the API.
        api: &'static str,
        /// Its version.
        version: i16,
        /// What is wrong, with field and position.
        error: WireError,
    },
    /// The peer asks for more than one request may.
    #[error("{count} {what}, at most {max} are answered")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Kafka closes the connection of an unacknowledged producer whose request failed: it has no other way to say so.
    #[error("a produce request without acknowledgement failed with {0:?}")]
    Unanswerable(ErrorCode),
}

impl Fault {
    /// The same, said of the request that it happened in.
    pub(crate) fn in_request(self, header: &RequestHeader<'_>) -> Fault {
        match self {
            Fault::Wire(error @ WireError::UnsupportedVersion { .. }) => Fault::Wire(error),
            Fault::Wire(error) => Fault::Request { api: header.api.name(), version: header.version, error },
            other => other,
        }
    }
}

/// Holds a number from a request against its limit.
pub(crate) fn check_count(what: &'static str, count: usize, max: usize) -> Result<(), Fault> {
    if count <= max { Ok(()) } else { Err(Fault::TooMany { what, count, max }) }
}

pub(crate) fn of_batch(error: &BatchError) -> ErrorCode {
    match error {
        // More than one batch: sent again it would not get better, and CORRUPT_MESSAGE asks for that.
        BatchError::Length { field, actual } if is_followed(*field, *actual) => ErrorCode::InvalidRecord,
        BatchError::Crc { .. } | BatchError::TooShort { .. } | BatchError::Length { .. } => {
            ErrorCode::CorruptMessage
        }
        BatchError::Magic(0 | 1) => ErrorCode::UnsupportedForMessageFormat,
        _ => ErrorCode::InvalidRecord,
    }
}

/// Whether a batch with that length field leaves bytes over.
fn is_followed(field: i32, actual: usize) -> bool {
    let batch = i64::from(field) + i64::from(LENGTH_OVERHEAD);
    batch >= BATCH_HEADER_BYTES as i64 && batch < actual as i64
}

pub(crate) fn of_append(error: &AppendError) -> ErrorCode {
    match error {
        AppendError::TooLarge { .. } => ErrorCode::MessageTooLarge,
        AppendError::Failed(_) | AppendError::DiskFull(_) | AppendError::Exhausted(_) => {
            ErrorCode::KafkaStorageError
        }
        AppendError::Closed | AppendError::Moved => ErrorCode::NotLeaderOrFollower,
        // Says "not appended, try again" to every client; librdkafka gives up on THROTTLING_QUOTA_EXCEEDED.
        AppendError::NoMemory(_) => ErrorCode::NotEnoughReplicas,
        AppendError::Refused(_) => ErrorCode::InvalidRecord,
    }
}

pub(crate) fn of_fetch(error: &FetchError) -> ErrorCode {
    match error {
        FetchError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        FetchError::Corrupt { .. } => ErrorCode::CorruptMessage,
        FetchError::Io(_) => ErrorCode::KafkaStorageError,
        FetchError::Closed => ErrorCode::NotLeaderOrFollower,
    }
}

pub(crate) fn of_truncate(error: &TruncateError) -> ErrorCode {
    match error {
        TruncateError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        TruncateError::Append(error) => of_append(error),
        TruncateError::Fetch(error) => of_fetch(error),
        TruncateError::Io(_) => ErrorCode::KafkaStorageError,
    }
}

pub(crate) fn of_topic(error: &TopicError) -> ErrorCode {
    match error {
        TopicError::Exists(_) => ErrorCode::TopicAlreadyExists,
        TopicError::Unknown(_) => ErrorCode::UnknownTopicOrPartition,
        TopicError::Name(_) => ErrorCode::InvalidTopicException,
        TopicError::Partitions(..) => ErrorCode::InvalidPartitions,
        TopicError::Config(_) => ErrorCode::InvalidConfig,
        TopicError::Io(_) => ErrorCode::KafkaStorageError,
        TopicError::Stopping => ErrorCode::BrokerNotAvailable,
    }
}
