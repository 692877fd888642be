//! What an append was promised, and waiting for it.

use std::fmt;
use std::future::poll_fn;
use std::str::FromStr;
use std::task::Poll;

use super::errors::AppendError;
use super::partition::Partition;
use crate::log::LogPoint;
use crate::types::{Epoch, Offset, Timestamp};

/// How safe an append is when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ack {
    /// In our memory: lost with the process.
    Memory,
    /// The kernel completed the write: survives `kill -9`, not power loss.
    Written,
    /// Flushed: survives power loss.
    Durable,
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ack::Memory => "memory",
            Ack::Written => "written",
            Ack::Durable => "durable",
        })
    }
}

impl FromStr for Ack {
    type Err = String;

    fn from_str(text: &str) -> Result<Ack, String> {
        match text {
            "memory" => Ok(Ack::Memory),
            "written" => Ok(Ack::Written),
            "durable" => Ok(Ack::Durable),
            other => Err(format!("\"{other}\" is no acknowledgement; there are memory, written, durable")),
        }
    }
}

/// An append that has its offset and waits for its promise.
pub struct Ticket {
    pub(super) partition: Partition,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The epoch it was assigned in.
    pub epoch: Epoch,
    /// The time that was stamped on its records; none where they bear their producer's.
    pub append_time: Timestamp,
    pub(super) end: LogPoint,
    pub(super) ack: Ack,
    pub(super) generation: u64,
}

/// An append whose promise holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// The offset of its first record.
    pub offset: Offset,
    /// The epoch it was assigned in; offset and epoch are its identity.
    pub epoch: Epoch,
    /// The time that was stamped on its records ([`super::Timestamps::Append`]); none where they bear their producer's.
    pub append_time: Timestamp,
    /// What was reached: at least what was asked for.
    pub reached: Ack,
}

impl Ticket {
    /// Waits until the promise holds.
    ///
    /// # Errors
    /// [`AppendError::Failed`] when it never will; the record may or may not be found later.
    pub async fn reached(&self) -> Result<Acked, AppendError> {
        poll_fn(|cx| match self.look() {
            Some(result) => Poll::Ready(result),
            None => {
                self.partition.wait_for_ack(cx.waker());
                Poll::Pending
            }
        })
        .await
    }

    /// What is known now.
    #[must_use]
    pub fn look(&self) -> Option<Result<Acked, AppendError>> {
        let marks = self.partition.marks();
        if self.partition.generation() != self.generation {
            return Some(Err(AppendError::Moved));
        }
        let reached = if marks.durable.offset >= self.end.offset {
            Ack::Durable
        } else if marks.written.offset >= self.end.offset {
            Ack::Written
        } else {
            Ack::Memory
        };
        if reached >= self.ack {
            return Some(Ok(Acked {
                offset: self.base_offset,
                epoch: self.epoch,
                append_time: self.append_time,
                reached,
            }));
        }
        self.partition.failure().map(Err)
    }
}
