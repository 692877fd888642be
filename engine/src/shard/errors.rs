//! What can go wrong, by operation, with what the caller can do.

use std::io;
use std::path::PathBuf;

use crate::log::{CheckpointError, FencedRange, TopicNameError};
use crate::sys::UringError;
use crate::types::Offset;

/// Why an append was refused or its promise broken.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AppendError {
    /// Split it, or raise the topic's `max.message.bytes`.
    #[error("a batch of {bytes} bytes is larger than the topic's limit of {bytes_max}")]
    TooLarge {
        /// The batch.
        bytes: u32,
        /// The limit.
        bytes_max: u32,
    },
    /// A write or flush failed: the partition serves what was durable and takes nothing more. Give up.
    #[error("the partition takes no more appends: {0}")]
    Failed(String),
    /// The partition is being closed or deleted. Look it up again.
    #[error("the partition is closed")]
    Closed,
    /// The log was truncated below this append while it waited. Append again.
    #[error("the log was truncated below this append")]
    Moved,
    /// The disk is full. Reading, deleting and retention go on; append again when there is room.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    /// The process has no descriptors left, or the kernel no memory. Append again when others have let go.
    #[error("something ran short for now: {0}")]
    Exhausted(String),
    /// No memory within the budget, or none from the kernel. Back off.
    #[error("no memory to stage the batch: {0}")]
    NoMemory(String),
    /// The batch does not fit the log (foreign offsets and epochs). Repair.
    #[error("{0}")]
    Refused(String),
}

/// Why a fetch has no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FetchError {
    /// Start again from a valid offset.
    #[error("offset {offset} is outside the log, which is {log_start} to {end}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// The first there is.
        log_start: Offset,
        /// The end.
        end: Offset,
    },
    /// These bytes are rotten; go on behind them.
    #[error(
        "{path}: offsets {from} to {to} (positions {at} to {end}) are corrupt on disk",
        path = path.display(), from = range.from, to = range.to, at = range.from_position, end = range.to_position
    )]
    Corrupt {
        /// The segment's file.
        path: PathBuf,
        /// What of it.
        range: FencedRange,
    },
    /// The disk failed.
    #[error("{0}")]
    Io(String),
    /// The partition is being closed or deleted. Look it up again.
    #[error("the partition is closed")]
    Closed,
}

/// Why a topic was not made or removed.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// It is there already.
    #[error("topic {0} exists")]
    Exists(String),
    /// It is not there.
    #[error("there is no topic {0}")]
    Unknown(String),
    /// Not a topic name.
    #[error(transparent)]
    Name(#[from] TopicNameError),
    /// Not a number of partitions.
    #[error("{0} partitions make no sense: 1 to {1} do")]
    Partitions(i32, i32),
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The engine is stopping.
    #[error("the engine is stopping")]
    Stopping,
}

/// Why a log could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum TruncateError {
    /// Only what is there can be cut.
    #[error("cannot truncate to {to}: the log is {log_start} to {log_end}")]
    OutOfRange {
        /// What was asked for.
        to: Offset,
        /// The first there is.
        log_start: Offset,
        /// The end.
        log_end: Offset,
    },
    /// The partition is closed or has failed.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Reading the way there failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel refuses io_uring.
    #[error(transparent)]
    Ring(#[from] UringError),
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another process has it.
    #[error("{0}")]
    Locked(String),
    /// A small file says something impossible.
    #[error("{path}: {source}", path = path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: CheckpointError,
    },
    /// Something that only an operator can decide.
    #[error("{0}")]
    Refused(String),
}
