//! The rules of the log: plain state machines that say what to write and where to read, and leave the doing to
//! the layers above.
//!
//! Nothing here performs I/O, reads a clock or allocates on the hot path; it relies on [`crate::types`] only.
//!
//! | file | holds |
//! |---|---|
//! | `batch` | the record batch header: parse, check, stamp |
//! | `crc` | CRC-32C |
//! | `build`, `records` | batches built and read record by record, for clients and tests |

mod batch;
mod build;
mod crc;
mod records;

pub use batch::{
    BATCH_HEADER_BYTES, BatchError, BatchHeader, LENGTH_OVERHEAD, check_produced, check_stored, stamp,
    stamp_append_time,
};
pub use build::BatchBuilder;
pub use crc::{Crc32c, crc32c};
pub use records::{Headers, Record, Records};
