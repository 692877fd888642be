//! Receiving in place: the right to the tail of a partition, held while a connection receives into it.
//!
//! It is a turn in the order of appends and the memory that goes with it. Held too long while others wait it is to be
//! given up ([`Reservation::is_contested`]); dropped, everything is as before.

use std::task::Waker;

use super::acks::{Ack, Ticket};
use super::config::Timestamps;
use super::errors::AppendError;
use super::partition::Partition;
use super::turns::Turn;
use crate::log::{self, BATCH_HEADER_BYTES, BatchHeader, Ext, LogPoint};
use crate::sys::{File, Moment};
use crate::transfer::{Receives, Slot};

/// See the module's words.
pub struct Reservation {
    partition: Partition,
    turn: Turn,
    /// Present until it goes back to the stage.
    slot: Option<Slot>,
    bytes: usize,
    /// Where the batch is received into the file.
    file: Option<File>,
    generation: u64,
}

impl Partition {
    /// Whether the tail can be reserved for batches that are received: the strategy does that, and they are not stamped
    /// with the log's own time, which is checksummed.
    #[must_use]
    pub fn takes_reservations(&self) -> bool {
        let reserves = self.0.common.config.ingress.receives() != Receives::Private;
        reserves && self.0.config.timestamps == Timestamps::Create
    }

    /// Reserves the tail for a batch with that header, when everybody who came before has appended.
    ///
    /// # Errors
    /// As [`Partition::append`].
    pub async fn reserve(&self, header: &BatchHeader) -> Result<Reservation, AppendError> {
        assert!(self.takes_reservations(), "{self} takes no reservations");
        let turn = self.take_turn();
        turn.comes().await;
        self.make_room(header).await?;
        let (start, bytes) = (self.0.log.borrow().log_end(), header.bytes as usize);
        let file = match self.0.common.config.ingress.receives() {
            Receives::Spliced => Some(self.open_end(start.segment, start.position.plus(bytes as u64)).await?),
            _ => None,
        };
        let slot = self.0.staged.borrow_mut().reserve(start, bytes);
        let (partition, generation) = (self.clone(), self.generation());
        Ok(Reservation { partition, turn, slot: Some(slot), bytes, file, generation })
    }
}

impl Reservation {
    /// Where to receive into.
    pub fn slot(&mut self) -> &mut Slot {
        self.slot.as_mut().expect("it goes back last")
    }

    /// Whether somebody else waits to append. If not, `waker` is woken when that changes.
    #[must_use]
    pub fn is_contested(&self, waker: &Waker) -> bool {
        self.turn.is_contested(waker)
    }

    /// When that is `in_doubt`, whether the memory of the slot is still what it was: where it is the file's own, another
    /// process may have cut the file, and what was received is nowhere. Then the partition takes no more appends.
    ///
    /// # Errors
    /// [`AppendError::Failed`], with what happened.
    pub fn check_file_if(&self, in_doubt: bool) -> Result<(), AppendError> {
        let partition = &self.partition;
        if !in_doubt || !partition.0.common.config.ingress.receives_into_file() || !self.is_current() {
            return Ok(());
        }
        let start = partition.0.log.borrow().log_end();
        let end = start.position.0 + self.bytes as u64;
        let writer = partition.0.files.borrow().get(start.segment).and_then(|f| f.writer.clone());
        let checked = writer.map_or(Ok(()), |file| partition.0.common.ring.check_window(&file, end, &[]));
        checked.map_err(|error| {
            let path = partition.0.files.borrow().path(start.segment, Ext::Log);
            partition.fail(format!("receiving at position {} of {}: {error}", start.position, path.display()))
        })
    }

    /// Appends the batch in the slot, of which [`log::check_produced_in_parts`] found nothing wrong; `head` is its header,
    /// of which the slot need not have what lies before [`log::BATCH_CRC_FROM`]. `stated_bytes` of it were copied there. For
    /// the rest as [`Partition::append`].
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended.
    pub fn commit(
        mut self,
        header: &BatchHeader,
        head: &[u8; BATCH_HEADER_BYTES],
        ack: Option<Ack>,
        received: Moment,
        stated_bytes: u64,
    ) -> Result<Ticket, AppendError> {
        let partition = self.partition.clone();
        partition.check_open()?;
        if !self.is_current() {
            return Err(AppendError::Moved);
        }
        let common = &partition.0.common;
        let placement = partition.0.log.borrow_mut().append_local(header, common.ring.wall_clock());
        let mut slot = self.slot.take().expect("it goes back last");
        let mut head = *head;
        log::stamp(&mut head, placement.start.offset, placement.epoch);
        slot.write(0, &head);
        let now = common.ring.now();
        partition.0.staged.borrow_mut().accept_in_place(slot, placement.end, now);
        let bytes = u64::from(header.bytes);
        common.transfers.note_ingress_in_place(bytes, stated_bytes);
        Ok(partition.accepted(bytes, &placement, ack, received, now))
    }

    pub(super) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Of the whole batch.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn start(&self) -> LogPoint {
        self.slot.as_ref().expect("it goes back last").start()
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_ref().expect("it is opened for what goes into it")
    }

    pub(super) fn take_slot(&mut self) -> Slot {
        self.slot.take().expect("it goes back last")
    }

    /// Whether the stage is still the one that the slot came from, and the log ends where it begins. A partition that was
    /// closed meanwhile has another stage.
    pub(super) fn is_current(&self) -> bool {
        let start = self.slot.as_ref().map(Slot::start);
        !self.partition.is_closed()
            && self.partition.generation() == self.generation
            && start == Some(self.partition.0.log.borrow().log_end())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // After a truncation the stage is another one, and the memory goes home by itself.
        if self.is_current()
            && let Some(slot) = self.slot.take()
        {
            self.partition.0.staged.borrow_mut().release(slot);
        }
    }
}
