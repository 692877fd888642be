//! Receiving through a pipe into the segment file, behind the log end, by whoever has reserved it.
//!
//! What is there belongs to nobody until the batch's head is written in front of it. The partition remembers up to where
//! such bytes lie, from before the first of them is written until the batch is accepted; however a reservation ends, the
//! next append finds that out and zeroes them first: in the place of a smaller batch, the rest of a larger one would be
//! what the log goes on with after a crash, and a payload may look like anything.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use super::acks::{Ack, Ticket};
use super::commit::{unhinder, wait_to_write, write_all};
use super::errors::AppendError;
use super::partition::Partition;
use super::reserve::Reservation;
use crate::log::{self, BatchHeader, Ext};
use crate::sys::{LeaseMut, Moment, Socket, Timer};
use crate::transfer::{Filled, Passage, WriteData};
use crate::types::{Offset, Position};

/// Zeros are written so many at a time.
const ZEROS: usize = 64 << 10;

/// Bytes behind the log end that are no batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Debris {
    segment: Offset,
    from: Position,
    to: Position,
}

/// What a partition has to do with pipes.
#[derive(Default)]
pub(super) struct Splicing {
    debris: Cell<Option<Debris>>,
    /// The kernel writes from a pipe: a stop waits for that.
    under_way: Cell<bool>,
}

impl Splicing {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.get()
    }

    pub(super) fn has_debris(&self) -> bool {
        self.debris.get().is_some()
    }

    /// Its file was replaced or removed.
    pub(super) fn forget(&self) {
        self.debris.set(None);
    }
}

/// How far receiving through a pipe got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spliced {
    /// Bytes of the batch that have come, with those that were received with its head.
    pub filled: usize,
    /// Whether nothing more will come.
    pub left: bool,
}

impl Reservation {
    /// Receives the batch from `filled` on through `passage` into the file. Ends early when the peer has finished, and, if
    /// somebody else waits to append, when `patience` has expired: then what has come is in the file, to be had by
    /// [`Reservation::read_back`].
    ///
    /// # Errors
    /// What the kernel said of the socket. When it was the file, the partition takes no more appends, and what came is lost.
    pub async fn splice(
        &self,
        socket: &Socket,
        passage: &mut Passage,
        mut filled: usize,
        patience: &Timer,
    ) -> io::Result<Spliced> {
        while filled < self.bytes() {
            let give_up = poll_fn(|cx| match self.is_contested(cx.waker()) {
                true => patience.poll_expired(cx),
                false => Poll::Pending,
            });
            let ended = passage.fill(socket, self.bytes() - filled, give_up).await?;
            if ended == Filled::Left {
                return Ok(Spliced { filled: filled + passage.held(), left: true });
            }
            while passage.held() > 0 {
                filled += self.store(passage, filled).await.map_err(io::Error::other)?;
            }
            if ended == Filled::GivenUp {
                return Ok(Spliced { filled, left: false });
            }
        }
        Ok(Spliced { filled, left: false })
    }

    /// Writes from the pipe to where the byte `filled` of the batch belongs.
    async fn store(&self, passage: &mut Passage, filled: usize) -> Result<usize, AppendError> {
        let (partition, start, file) = (self.partition(), self.start(), self.file());
        let at = start.position.plus(filled as u64);
        loop {
            // From here to the submission nothing happens in between: a stop that begins later waits for the end of it.
            partition.check_open()?;
            let splicing = &partition.0.splicing;
            let (from, to) = (start.position, at.plus(passage.held() as u64));
            splicing.debris.set(Some(Debris { segment: start.segment, from, to }));
            splicing.under_way.set(true);
            let written = passage.empty(file, at).await;
            splicing.under_way.set(false);
            partition.0.ack_waiters.wake_all();
            let waited = match written {
                Ok(written) => {
                    unhinder(partition);
                    return Ok(written);
                }
                Err(error) => wait_to_write(partition, start.segment, at, error).await,
            };
            waited.map_err(|error| {
                let path = partition.0.files.borrow().path(start.segment, Ext::Log);
                let words = format!("receiving at position {at} of {}: {error}", path.display());
                partition.fail(words)
            })?;
        }
    }

    /// Reads what has come of the batch from byte `from` on, as much as `into` takes, which must all be there.
    ///
    /// # Errors
    /// What the kernel said, or that it is not there: somebody else has cut the file.
    pub async fn read_back(&self, from: usize, mut into: LeaseMut) -> io::Result<LeaseMut> {
        let (mut read, wanted) = (0, into.len());
        while read < wanted {
            let rest = into.split_off(read);
            let at = self.start().position.0 + (from + read) as u64;
            let (result, rest) = self.partition().0.common.ring.read(self.file(), at, rest).await;
            into.unsplit(rest);
            match result? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                now => read += now,
            }
        }
        Ok(into)
    }

    /// Appends the batch that is in the file but for its first bytes, `stated`, which begin with its header; of that
    /// [`log::check_produced_header`] found nothing wrong. For the rest as [`Partition::append`].
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended.
    pub fn commit_spliced(
        mut self,
        header: &BatchHeader,
        mut stated: LeaseMut,
        ack: Option<Ack>,
        received: Moment,
    ) -> Result<Ticket, AppendError> {
        let partition = self.partition().clone();
        partition.check_open()?;
        if !self.is_current() {
            return Err(AppendError::Moved);
        }
        let common = &partition.0.common;
        let placement = partition.0.log.borrow_mut().append_local(header, common.ring.wall_clock());
        let slot = self.take_slot();
        log::stamp(&mut stated, placement.start.offset, placement.epoch);
        let (now, bytes, stated_bytes) = (common.ring.now(), u64::from(header.bytes), stated.len() as u64);
        partition.0.staged.borrow_mut().accept_head(&slot, stated.freeze(), placement.end, now);
        partition.0.splicing.forget();
        common.transfers.note_ingress_spliced(bytes, stated_bytes);
        Ok(partition.accepted(bytes, &placement, ack, received, now))
    }
}

impl Partition {
    /// Zeroes what is left of a batch that was given up, by whoever has the turn to append.
    pub(super) async fn clear_debris(&self) -> Result<(), AppendError> {
        let Some(Debris { segment, from, to }) = self.0.splicing.debris.get() else { return Ok(()) };
        let end = self.0.log.borrow().log_end();
        assert_eq!((segment, from), (end.segment, end.position), "what was given up lies at the log end");
        let no_memory = |error: io::Error| AppendError::NoMemory(error.to_string());
        let mut zeros = self.0.common.ring.lease(ZEROS).await.map_err(no_memory)?;
        zeros.fill(0);
        let zeros = zeros.freeze();
        let mut at = from;
        while at < to {
            let part = zeros.slice(0..to.since(at).min(ZEROS as u64) as usize);
            let bytes = part.len() as u64;
            let cleared = match self.writer(segment).await {
                Ok(file) => write_all(self, segment, &file, at, WriteData::One(part)).await,
                Err(error) => Err(error),
            };
            cleared.map_err(|error| {
                let path = self.0.files.borrow().path(segment, Ext::Log);
                let path = path.display();
                self.fail(format!("clearing {path} from position {at} to {to}, where no batch is: {error}"))
            })?;
            at = at.plus(bytes);
        }
        unhinder(self);
        self.0.splicing.forget();
        Ok(())
    }
}
