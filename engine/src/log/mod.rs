//! The rules of the log: plain state machines that say what to write and where to read, and leave the doing to
//! the layers above.
//!
//! Nothing here performs I/O, reads a clock or allocates on the hot path; it relies on [`crate::types`] only.
//!
//! | file | holds |
//! |---|---|
//! | `log` | one partition: where a batch goes, where a reader finds it, what is cut or dropped |
//! | `config` | what a topic may choose |
//! | `segment` | one data file: when to roll, how much to prepare |
//! | `offset_index`, `time_index` | sparse maps from offset and time |
//! | `header_walk` | the last steps from the index to the batch |
//! | `epoch`, `watermarks` | who wrote, and how far |
//! | `recovery` | the walk after an unclean stop: rot told from a torn tail |
//! | `journal` | the shard journal's bytes: units, frames, the scan after an unclean stop |
//! | `manifest` | what a start must know of all partitions, as bytes |
//! | `batch`, `crc` | the record batch header: parse, check, stamp; CRC-32C |
//! | `build`, `records` | batches built and read record by record, for clients and tests |
//! | `checkpoint`, `names` | small text files; names of files, directories and topics |

mod batch;
mod build;
mod checkpoint;
mod config;
mod crc;
mod epoch;
mod header_walk;
mod journal;
// The log is the noun here; a cleverer file name would only hide it.
#[allow(clippy::module_inception)]
mod log;
mod manifest;
mod names;
mod offset_index;
mod records;
mod recovery;
mod segment;
mod time_index;
mod watermarks;

pub use batch::{
    BATCH_CRC_FROM, BATCH_HEADER_BYTES, BatchError, BatchHeader, LENGTH_OVERHEAD, check_produced,
    check_produced_header, check_produced_in_parts, check_stored, stamp, stamp_append_time,
};
pub use build::BatchBuilder;
pub use checkpoint::{
    CheckpointError, MetaProperties, OffsetCheckpoint, OffsetEntry, PartitionMetadata, TopicEntry,
    TopicRegistry, TopicState,
};
pub use config::LogConfig;
pub use crc::{Crc32c, crc32c};
pub use epoch::{EpochCache, EpochOwner, OFFSET_UNKNOWN};
pub use header_walk::{FoundBatch, HeaderWalk, WalkStep};
pub use journal::{
    FRAME_HEADER_BYTES, FoundFrame, Frame, FrameKind, JOURNAL_BLOCK, JournalFile, JournalScan, ScannedFile,
    UNIT_BYTES_MAX, UnitBuilder, UnitStamp,
};
pub use log::{
    AppendAtError, Extent, Log, LogStartError, Lookup, Placement, ReadError, TimeLookup, Truncation,
};
pub use manifest::{
    FoundManifest, ManifestError, ManifestHead, PartitionEntry, PartitionState, SegmentState,
    encode_snapshot_end,
};
pub use names::{
    Ext, TOPIC_NAME_BYTES_MAX, TopicNameError, check_topic_name, parse_partition_dir_name,
    parse_segment_file_name, partition_dir_name, segment_file_name,
};
pub use offset_index::{INDEX_ENTRY_BYTES, IndexError, OffsetIndex};
pub use records::{Headers, Record, Records};
pub use recovery::{
    BadBatch, FencedRange, RECOVERY_CHUNK_BYTES, RecoveryStart, RecoveryWalk, Tail, WalkOutcome,
};
pub use segment::{PREPARATION_BLOCK, PREPARATION_STEP_MAX, PREPARATION_STEP_MIN, Segment};
pub use time_index::{TIME_INDEX_ENTRY_BYTES, TimeIndex};
pub use watermarks::{LogPoint, Marks, Watermarks};
