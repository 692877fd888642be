//! Receiving in place: a large batch of a request of its own goes from the socket into the memory it is written from.
//!
//! The reader receives no more than [`HEAD_BYTES`] of a frame that is likely large. The head says which partition the
//! batch is for and how long it is, and holds the batch's own header; the tail of that partition is reserved and the rest
//! received into it. When that takes longer than [`PATIENCE`] and somebody else wants to append there, what has come is
//! copied out and received on in private.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringlog::log::{BATCH_CRC_FROM, BATCH_HEADER_BYTES, BatchError, BatchHeader, check_produced_in_parts};
use ringlog::shard::{AppendError, Partition, Reservation, Ticket, Topic};
use ringlog::sys::{Moment, Ring, Socket, Timer};
use ringlog::types::TopicId;

use crate::connection::{Broker, Connection};
use crate::errors::Fault;
use crate::produce::{self, Produced};
use crate::wire::produce::TOPIC_IDS_FROM;
use crate::wire::{PREFIX_BYTES, ProduceHead};

/// Received of a frame before it is known where the rest belongs: all heads but absurd ones fit, and what comes of the
/// batch with it is little.
pub(crate) const HEAD_BYTES: usize = 512;
/// From this size on it pays to receive in two steps.
pub(crate) const BATCH_BYTES_MIN: usize = 32 << 10;
/// How long the tail of a partition is held while others wait for it.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1);
/// What may follow a batch in its frame: empty tagged fields, and a few that are skipped.
const BEHIND_BYTES_MAX: usize = 64;

/// A batch whose head has come, and the place for it.
pub(crate) struct Candidate {
    pub partition: Partition,
    topic: Rc<Topic>,
    pub batch: BatchHeader,
    /// The same as it came.
    head: [u8; BATCH_HEADER_BYTES],
    correlation_id: i32,
    version: i16,
    acks: i16,
    /// Where in the frame, prefix included, the batch begins.
    pub at: usize,
    /// Bytes of the frame behind the batch.
    pub behind: usize,
}

/// How it ended.
pub(crate) enum Outcome {
    /// The batch has come, and was appended or refused.
    Taken(Box<Produced>),
    /// Others waited too long: so many bytes of the batch are in the private memory.
    GivenUp,
    /// The partition takes nothing now; the private way will say why.
    Refused,
    /// The peer has finished in the middle.
    Left,
}

impl Candidate {
    /// Looks at what has come of a frame of `total` bytes, prefix included.
    pub(crate) fn look(broker: &Broker, frame: &[u8], total: usize) -> Option<Candidate> {
        let head = ProduceHead::look(frame.get(PREFIX_BYTES..)?)?;
        let at = PREFIX_BYTES + head.records_at;
        let behind = total.checked_sub(at + head.record_bytes)?;
        let here = &frame[at..];
        if head.record_bytes < BATCH_BYTES_MIN || behind > BEHIND_BYTES_MAX || !matches!(head.acks, -1..=1) {
            return None;
        }
        let stated = *here.first_chunk::<BATCH_HEADER_BYTES>()?;
        let batch =
            BatchHeader::parse(here).ok().filter(|batch| batch.bytes as usize == head.record_bytes)?;
        let topic = match head.header.version >= TOPIC_IDS_FROM {
            true => broker.shard.topic_by_id(TopicId(head.topic_id)),
            false => broker.shard.topic(head.topic),
        }?;
        let partition = topic.here(head.partition)?.clone();
        if !partition.takes_reservations() || produce::why_not(&batch, head.header.version).is_some() {
            return None;
        }
        Some(Candidate {
            partition,
            topic,
            batch,
            head: stated,
            correlation_id: head.header.correlation_id,
            version: head.header.version,
            acks: head.acks,
            at,
            behind,
        })
    }

    /// Whether of the batch no more has come than may be copied, when so much of its frame has.
    pub(crate) fn is_mostly_to_come(&self, frame: usize) -> bool {
        frame - self.at <= self.batch.bytes as usize / 4
    }

    /// Where in its frame the batch lies.
    pub(crate) fn place(&self) -> Range<usize> {
        self.at..self.at + self.batch.bytes as usize
    }

    /// Copies the batch, all of which has come, from where its `parts` lie into the tail of its partition. `None` when the
    /// partition takes nothing now; the private way will say why.
    pub(crate) async fn gather<'a, I: Iterator<Item = &'a [u8]>>(
        &self,
        broker: &Broker,
        connection: &Connection,
        parts: impl Fn() -> I,
        received: Moment,
    ) -> Option<Box<Produced>> {
        let mut reservation = self.partition.reserve(&self.batch).await.ok()?;
        let mut at = 0;
        for part in parts() {
            reservation.slot().write(at, part);
            at += part.len();
        }
        // There, where it is in the CPU's cache by now.
        let checked = check_produced_in_parts(&self.batch, reservation.slot().parts());
        let appended =
            checked.map(|()| reservation.commit(&self.batch, &self.head, None, received, at as u64));
        Some(self.produced(broker, connection, appended, received))
    }

    /// The entry that says what became of it.
    pub(crate) fn produced(
        &self,
        broker: &Broker,
        connection: &Connection,
        appended: Result<Result<Ticket, AppendError>, BatchError>,
        received: Moment,
    ) -> Box<Produced> {
        let mut produced = produce::single(connection, &self.topic, self.partition.index(), received);
        (produced.correlation_id, produced.version, produced.acks) =
            (self.correlation_id, self.version, self.acks);
        produced.decide_single(broker, connection, appended);
        produced
    }

    /// Receives the rest. `frame` is what has come of it; after [`Outcome::GivenUp`] it is followed in `kept` by what came
    /// since.
    pub(crate) async fn receive(
        &self,
        broker: &Rc<Broker>,
        connection: &Rc<Connection>,
        timer: &Timer,
        frame: &[u8],
        kept: &mut Vec<u8>,
    ) -> Result<Outcome, Fault> {
        let ring = broker.shard.ring();
        let Ok(mut reservation) = self.partition.reserve(&self.batch).await else {
            return Ok(Outcome::Refused);
        };
        let stated = &frame[self.at..];
        // The first bytes make a batch of what follows: they are put there when all of it is known to be good.
        reservation.slot().write(BATCH_CRC_FROM, &stated[BATCH_CRC_FROM..]);
        timer.arm(ring.now().plus(PATIENCE));
        let whole = self.batch.bytes as usize;
        let received = fill(&mut reservation, stated.len(), ring, &connection.socket, timer).await;
        timer.disarm();
        let now = ring.now();
        connection.heard.set(now);
        let short = !matches!(&received, Ok((filled, _)) if *filled == whole);
        if let Err(error) = reservation.check_file_if(short) {
            // What has come of the batch is nowhere, so the connection cannot go on.
            return Err(Fault::Io(io::Error::other(error.to_string())));
        }
        let (filled, left) = received?;
        if left {
            return Ok(Outcome::Left);
        }
        if filled < whole {
            for part in reservation.slot().parts() {
                let room = (filled - kept.len()).min(part.len());
                kept.extend_from_slice(&part[..room]);
            }
            kept.drain(..stated.len());
            return Ok(Outcome::GivenUp);
        }
        let checked = check_produced_in_parts(&self.batch, reservation.slot().parts());
        let appended = match (&checked, reservation.check_file_if(checked.is_err())) {
            (_, Err(error)) => Ok(Err(error)),
            _ => {
                checked.map(|()| reservation.commit(&self.batch, &self.head, None, now, stated.len() as u64))
            }
        };
        Ok(Outcome::Taken(self.produced(broker, connection, appended, now)))
    }
}

/// Receives into the slot from `filled` on. How far it got, and whether the peer has finished.
async fn fill(
    reservation: &mut Reservation,
    mut filled: usize,
    ring: &Ring,
    socket: &Socket,
    timer: &Timer,
) -> Result<(usize, bool), Fault> {
    let mut begin = 0;
    for part in 0..reservation.slot().part_count() {
        let mut memory = reservation.slot().take(part);
        let (within, length) = (filled.saturating_sub(begin).min(memory.len()), memory.len());
        begin += length;
        if within == length {
            reservation.slot().put(part, memory);
            continue;
        }
        let into = memory.split_off(within);
        let held = &*reservation;
        let give_up = poll_fn(|cx| match held.is_contested(cx.waker()) {
            true => timer.poll_expired(cx),
            false => Poll::Pending,
        });
        let wanted = into.len();
        let (result, into) = ring.recv_all_unless(socket, into, give_up).await;
        memory.unsplit(into);
        reservation.slot().put(part, memory);
        let n = result?;
        filled += n;
        if n < wanted {
            // Contested, it was given up; else nothing more will come.
            let contested = poll_fn(|cx| Poll::Ready(reservation.is_contested(cx.waker()))).await;
            return Ok((filled, !contested));
        }
    }
    Ok((filled, false))
}
