//! The reader of a connection: bytes to frames, Produce at once, everything else to the writer.
//!
//! Frames are received into one large lease and cut out of it, so that a batch is written to disk from where it was
//! received. Receives are sized by the last frame: as many whole frames as fit, so that few bytes of a frame are
//! left over to be copied to the next lease.

use std::io;
use std::rc::Rc;

use ringlog::sys::{LEASE_BYTES_MAX, LeaseMut, Moment, Ring, Timer};
use ringlog::transfer::Receives;

use crate::connection::{Broker, Connection, Entry};
use crate::errors::Fault;
use crate::guard::Hold;
use crate::in_place::{self, Candidate, Outcome};
use crate::produce::{self, Produced};
use crate::provided;
use crate::spliced;
use crate::wire::{ApiKey, Decoder, PREFIX_BYTES, RequestHeader};

/// What a connection gets before it has shown what it sends: thousands of idle ones must fit into the arena.
const BUFFER_BYTES_MIN: usize = 16 << 10;
/// What one connection may hold without having filled the half of it.
const BUFFER_BYTES_MAX: usize = 1 << 20;
/// Beyond that, how many times what has really come a buffer may be: a length is only a promise.
const GROWTH_MAX: usize = 4;
/// From this many missing bytes on, one receive waits for all of them.
const WAIT_FOR_ALL_BYTES: usize = 32 << 10;

pub(crate) async fn run(broker: Rc<Broker>, connection: Rc<Connection>) {
    let result = match broker.shard.config().ingress.receives() {
        Receives::Provided => provided::run(&broker, &connection).await,
        Receives::Private | Receives::InPlace | Receives::Spliced => {
            match Reader::start(&broker, &connection).await {
                Ok(mut reader) => reader.run().await,
                Err(fault) => Err(fault),
            }
        }
    };
    if let Err(fault) = result {
        broker.note_fault(&connection, &fault);
    }
    connection.end_input();
}

/// Deals with what the peer sent. False when the connection is over.
pub(crate) async fn deal(
    broker: &Rc<Broker>,
    connection: &Rc<Connection>,
    came: Came,
    received: Moment,
) -> Result<bool, Fault> {
    // Once a stop was asked for, what is under way is answered and nothing more is taken.
    if broker.shard.is_stopping() {
        return Ok(false);
    }
    connection.taking.set(true);
    let goes_on = match came {
        Came::Frame(frame) => take(broker, connection, frame, received).await,
        Came::Produced(produced) => push(connection, produced).await,
    };
    connection.taking.set(false);
    goes_on
}

async fn take(
    broker: &Rc<Broker>,
    connection: &Rc<Connection>,
    frame: LeaseMut,
    received: Moment,
) -> Result<bool, Fault> {
    let header = RequestHeader::decode(&mut Decoder::new(&frame))?;
    if header.api == ApiKey::Produce {
        let produced = produce::take(broker, connection, frame, received).await?;
        return push(connection, produced).await;
    }
    Ok(connection.push(Entry::Request(frame.freeze())).await)
}

/// Hands on a request whose batches have their places.
async fn push(connection: &Connection, produced: Box<Produced>) -> Result<bool, Fault> {
    if produced.acks == 0 {
        let failed = produced.first_error();
        produce::recycle(connection, produced);
        return failed.map_or(Ok(true), |code| Err(Fault::Unanswerable(code)));
    }
    Ok(connection.push(Entry::Produced(produced)).await)
}

/// Asks whether a frame of `total` bytes may be what its `start` says it is, as soon as it has said so: before its rest is
/// given memory.
pub(crate) fn check_kind(broker: &Broker, start: &[u8], total: usize) -> Result<(), Fault> {
    if let Some(&[high, low]) = start.get(PREFIX_BYTES..PREFIX_BYTES + 2) {
        // An API that is not served has the limit of those without records, and is refused when it is whole.
        let api = ApiKey::from_number(i16::from_be_bytes([high, low])).unwrap_or(ApiKey::ApiVersions);
        broker.config.frames.check_api(api, total - PREFIX_BYTES)?;
    }
    Ok(())
}

/// Says that a peer left in the middle of a frame, if it did.
pub(crate) fn note_cut_off(connection: &Connection, came: usize, total: Option<usize>) {
    if came > 0 {
        tracing::info!(
            "{} left in the middle of a frame: {came} of {} bytes had come",
            connection.describe(),
            total.map_or_else(|| "unknown".to_owned(), |total| total.to_string())
        );
    }
}

/// A peer that leaves, politely or not, is nothing to talk about.
pub(crate) fn is_farewell(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

struct Reader<'a> {
    broker: &'a Rc<Broker>,
    connection: &'a Rc<Connection>,
    ring: Ring,
    /// What was received and not yet cut out, and behind it room for more.
    buffer: LeaseMut,
    filled: usize,
    /// The size of the last frame: the next one is probably like it.
    last_frame_bytes: usize,
    received: Moment,
    /// Bytes of the last frame that are still to come, and mean nothing.
    skip: usize,
    /// The frame under way is received in private.
    in_private: bool,
    timer: Timer,
    /// What came before a reservation was given up.
    kept: Vec<u8>,
}

/// What the peer sent.
pub(crate) enum Came {
    /// A frame without its prefix.
    Frame(LeaseMut),
    /// A Produce request whose batch was received in place.
    Produced(Box<Produced>),
}

impl<'a> Reader<'a> {
    async fn start(broker: &'a Rc<Broker>, connection: &'a Rc<Connection>) -> Result<Reader<'a>, Fault> {
        let ring = broker.shard.ring().clone();
        let buffer = ring.lease(BUFFER_BYTES_MIN).await?;
        let received = ring.now();
        let timer = ring.timer();
        Ok(Reader {
            broker,
            connection,
            ring,
            buffer,
            filled: 0,
            last_frame_bytes: 0,
            received,
            skip: 0,
            in_private: false,
            timer,
            kept: Vec::new(),
        })
    }

    async fn run(&mut self) -> Result<(), Fault> {
        while let Some(came) = self.next().await? {
            if !deal(self.broker, self.connection, came, self.received).await? {
                break;
            }
        }
        Ok(())
    }

    /// What comes next, or `None` when the peer has finished.
    async fn next(&mut self) -> Result<Option<Came>, Fault> {
        loop {
            let skipped = self.skip.min(self.filled);
            drop(self.buffer.split_to(skipped));
            (self.skip, self.filled) = (self.skip - skipped, self.filled - skipped);
            let total = self.broker.config.frames.peek_frame(&self.buffer[..self.filled])?;
            if let Some(total) = total
                && total <= self.filled
            {
                drop(self.buffer.split_to(PREFIX_BYTES));
                self.filled -= total;
                self.last_frame_bytes = total;
                self.in_private = false;
                return Ok(Some(Came::Frame(self.buffer.split_to(total - PREFIX_BYTES))));
            }
            if let Some(total) = total {
                check_kind(self.broker, &self.buffer[..self.filled], total)?;
                if let Some(candidate) = self.candidate(total) {
                    match self.receive_in_place(&candidate, total).await? {
                        Outcome::Taken(produced) => return Ok(Some(Came::Produced(produced))),
                        Outcome::Left => return Ok(None),
                        Outcome::GivenUp | Outcome::Refused => continue,
                    }
                }
            }
            self.make_room(total).await?;
            if self.receive(total).await? == 0 {
                note_cut_off(self.connection, self.filled, total);
                return Ok(None);
            }
        }
    }

    /// The batch of the frame under way, if it can be received in place and its head has come.
    fn candidate(&mut self, total: usize) -> Option<Candidate> {
        if self.in_private || total < in_place::BATCH_BYTES_MIN || !self.receives_in_place() {
            return None;
        }
        let candidate = Candidate::look(self.broker, &self.buffer[..self.filled], total)
            .filter(|candidate| candidate.is_mostly_to_come(self.filled));
        // A head that long is none of ours.
        self.in_private = candidate.is_none() && self.filled >= in_place::HEAD_BYTES;
        candidate
    }

    async fn receive_in_place(&mut self, candidate: &Candidate, total: usize) -> Result<Outcome, Fault> {
        if self.receives() == Receives::Spliced {
            return self.splice(candidate, total).await;
        }
        let (frame, kept) = (&self.buffer[..self.filled], &mut self.kept);
        kept.clear();
        let outcome = candidate.receive(self.broker, self.connection, &self.timer, frame, kept).await?;
        self.received = self.ring.now();
        match &outcome {
            Outcome::Taken(_) => {
                drop(self.buffer.split_to(self.filled));
                (self.filled, self.skip, self.last_frame_bytes) = (0, candidate.behind, total);
            }
            Outcome::GivenUp => {
                self.in_private = true;
                // Room for the whole of it: as much has really come as makes that no promise only.
                let mut next = self.ring.lease(total).await?;
                next[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
                next[self.filled..self.filled + self.kept.len()].copy_from_slice(&self.kept);
                self.filled += self.kept.len();
                self.buffer = next;
                let copied = &self.broker.shard.transfers().ingress_copied_bytes;
                copied.set(copied.get() + self.filled as u64);
            }
            Outcome::Refused => self.in_private = true,
            Outcome::Left => {}
        }
        Ok(outcome)
    }

    async fn splice(&mut self, candidate: &Candidate, total: usize) -> Result<Outcome, Fault> {
        let mut frame = self.buffer.split_to(self.filled);
        let spliced = candidate.splice(self.broker, self.connection, &self.timer, &mut frame, total).await?;
        self.received = self.ring.now();
        Ok(match spliced {
            spliced::Outcome::Taken(produced) => {
                (self.filled, self.skip, self.last_frame_bytes) = (0, candidate.behind, total);
                Outcome::Taken(produced)
            }
            spliced::Outcome::GivenUp(next, filled) => {
                self.in_private = true;
                (self.buffer, self.filled) = (next, filled);
                let copied = &self.broker.shard.transfers().ingress_copied_bytes;
                copied.set(copied.get() + filled as u64);
                Outcome::GivenUp
            }
            spliced::Outcome::Refused => {
                self.in_private = true;
                let rest = std::mem::replace(&mut self.buffer, frame);
                self.buffer.unsplit(rest);
                Outcome::Refused
            }
            spliced::Outcome::Left => Outcome::Left,
        })
    }

    /// Whether only the head is wanted here of the frame under way: its batch may go elsewhere.
    fn wants_head(&self, total: Option<usize>) -> bool {
        let likely = total.unwrap_or(self.last_frame_bytes) >= in_place::BATCH_BYTES_MIN;
        likely && !self.in_private && self.filled < in_place::HEAD_BYTES && self.receives_in_place()
    }

    fn receives_in_place(&self) -> bool {
        matches!(self.receives(), Receives::InPlace | Receives::Spliced)
    }

    fn receives(&self) -> Receives {
        self.broker.shard.config().ingress.receives()
    }

    /// Makes room for the frame under way, or for the next one if that is like the last. A large frame gets memory
    /// in steps, as it really comes: 1, 4, 16, 64 MiB.
    async fn make_room(&mut self, total: Option<usize>) -> Result<(), Fault> {
        let head = self.wants_head(total);
        let wanted = match total {
            _ if head => in_place::HEAD_BYTES,
            Some(total) => total,
            None if self.filled == 0 => self.last_frame_bytes.clamp(4096, BUFFER_BYTES_MAX),
            None => PREFIX_BYTES,
        };
        let filling = self.buffer.len() >= BUFFER_BYTES_MAX && self.filled < self.buffer.len();
        if wanted <= self.buffer.len() || filling {
            return Ok(());
        }
        let likely = if head { wanted } else { self.last_frame_bytes.max(wanted) };
        let several = (likely * 4).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
        let borne_out = BUFFER_BYTES_MAX.max(self.filled.max(self.last_frame_bytes) * GROWTH_MAX);
        let mut next = self.ring.lease(several.max(wanted).min(borne_out).min(LEASE_BYTES_MAX)).await?;
        next[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
        let copied = &self.broker.shard.transfers().ingress_copied_bytes;
        copied.set(copied.get() + self.filled as u64);
        self.buffer = next;
        Ok(())
    }

    async fn receive(&mut self, total: Option<usize>) -> Result<usize, Fault> {
        let room = self.buffer.len() - self.filled;
        let missing = total.map_or(0, |total| total - self.filled).min(room);
        let head = self.wants_head(total);
        let all = missing >= WAIT_FOR_ALL_BYTES && !head;
        let window = if head {
            (in_place::HEAD_BYTES - self.filled).min(room)
        } else if all {
            missing
        } else {
            // As many whole frames as fit, if the next ones are like the last.
            let frame = self.last_frame_bytes.max(1);
            let whole = (self.buffer.len() / frame * frame).saturating_sub(self.filled);
            if whole >= missing.max(1) { whole } else { room }
        };
        let held = self.buffer.len();
        let mut into = self.buffer.split_off(self.filled);
        let rest = into.split_off(window);
        if self.filled > 0 && self.connection.receiving.get().is_none() {
            self.connection.receiving.set(Some(Hold { bytes: held as u64, since: self.received }));
        }
        let (result, into) = match all {
            true => self.ring.recv_all(&self.connection.socket, into).await,
            false => self.ring.recv(&self.connection.socket, into).await,
        };
        self.buffer.unsplit(into);
        self.buffer.unsplit(rest);
        self.connection.receiving.set(None);
        let n = result?;
        self.received = self.ring.now();
        self.connection.heard.set(self.received);
        self.filled += n;
        Ok(n)
    }
}
