//! The reader of a connection: bytes to frames, Produce at once, everything else to the writer.
//!
//! Frames are received into one large lease and cut out of it, so that a batch is written to disk from where it was
//! received. Receives are sized by the last frame: as many whole frames as fit, so that few bytes of a frame are
//! left over to be copied to the next lease.

use std::io;
use std::rc::Rc;

use ringlog::sys::{LEASE_BYTES_MAX, LeaseMut, Moment, Ring};

use crate::connection::{Broker, Connection, Entry};
use crate::errors::Fault;
use crate::produce;
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
    let result = Reader::start(&broker, &connection).await;
    match result {
        Ok(mut reader) => {
            if let Err(fault) = reader.run().await {
                report(&connection, &fault);
            }
        }
        Err(fault) => report(&connection, &fault),
    }
    connection.end_input();
}

fn report(connection: &Connection, fault: &Fault) {
    match fault {
        Fault::Io(error) if is_farewell(error) => {}
        fault => tracing::warn!("connection of {} is closed: {fault}", connection.describe()),
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
}

impl<'a> Reader<'a> {
    async fn start(broker: &'a Rc<Broker>, connection: &'a Rc<Connection>) -> Result<Reader<'a>, Fault> {
        let ring = broker.shard.ring().clone();
        let buffer = ring.lease(BUFFER_BYTES_MIN).await?;
        let received = ring.now();
        Ok(Reader { broker, connection, ring, buffer, filled: 0, last_frame_bytes: 0, received })
    }

    async fn run(&mut self) -> Result<(), Fault> {
        while let Some(frame) = self.next_frame().await? {
            // Once a stop was asked for, what is under way is answered and nothing more is taken.
            if self.broker.shard.is_stopping() {
                break;
            }
            self.connection.taking.set(true);
            let goes_on = self.take(frame).await;
            self.connection.taking.set(false);
            if !goes_on? {
                break;
            }
        }
        Ok(())
    }

    /// Deals with one frame. False when the connection is over.
    async fn take(&mut self, frame: LeaseMut) -> Result<bool, Fault> {
        let header = RequestHeader::decode(&mut Decoder::new(&frame))?;
        let entry = if header.api == ApiKey::Produce {
            let produced = produce::take(self.broker, self.connection, frame, self.received).await?;
            if produced.acks == 0 {
                let failed = produced.first_error();
                produce::recycle(self.connection, produced);
                return failed.map_or(Ok(true), |code| Err(Fault::Unanswerable(code)));
            }
            Entry::Produced(produced)
        } else {
            Entry::Request(frame.freeze())
        };
        Ok(self.connection.push(entry).await)
    }

    /// The next whole frame without its prefix, or `None` when the peer has finished.
    async fn next_frame(&mut self) -> Result<Option<LeaseMut>, Fault> {
        loop {
            let total = self.broker.config.frames.peek_frame(&self.buffer[..self.filled])?;
            if let Some(total) = total
                && total <= self.filled
            {
                drop(self.buffer.split_to(PREFIX_BYTES));
                self.filled -= total;
                self.last_frame_bytes = total;
                return Ok(Some(self.buffer.split_to(total - PREFIX_BYTES)));
            }
            if let Some(total) = total {
                self.check_kind(total)?;
            }
            self.make_room(total).await?;
            if self.receive(total).await? == 0 {
                if self.filled > 0 {
                    tracing::info!(
                        "{} left in the middle of a frame: {} of {} bytes had come",
                        self.connection.describe(),
                        self.filled,
                        total.map_or_else(|| "unknown".to_owned(), |t| t.to_string())
                    );
                }
                return Ok(None);
            }
        }
    }

    /// Asks whether a frame of that size may be what it says it is, as soon as it has said so: before its rest is
    /// given memory.
    fn check_kind(&self, total: usize) -> Result<(), Fault> {
        if let Some(&[high, low]) = self.buffer[..self.filled].get(PREFIX_BYTES..PREFIX_BYTES + 2) {
            // An API that is not served has the limit of those without records, and is refused when it is whole.
            let api = ApiKey::from_number(i16::from_be_bytes([high, low])).unwrap_or(ApiKey::ApiVersions);
            self.broker.config.frames.check_api(api, total - PREFIX_BYTES)?;
        }
        Ok(())
    }

    /// Makes room for the frame under way, or for the next one if that is like the last. A large frame gets memory
    /// in steps, as it really comes: 1, 4, 16, 64 MiB.
    async fn make_room(&mut self, total: Option<usize>) -> Result<(), Fault> {
        let wanted = match total {
            Some(total) => total,
            None if self.filled == 0 => self.last_frame_bytes.clamp(4096, BUFFER_BYTES_MAX),
            None => PREFIX_BYTES,
        };
        let filling = self.buffer.len() >= BUFFER_BYTES_MAX && self.filled < self.buffer.len();
        if wanted <= self.buffer.len() || filling {
            return Ok(());
        }
        let several = (self.last_frame_bytes.max(wanted) * 4).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
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
        let all = missing >= WAIT_FOR_ALL_BYTES;
        let window = if all {
            missing
        } else {
            // As many whole frames as fit, if the next ones are like the last.
            let frame = self.last_frame_bytes.max(1);
            let whole = (self.buffer.len() / frame * frame).saturating_sub(self.filled);
            if whole >= missing.max(1) { whole } else { room }
        };
        let mut into = self.buffer.split_off(self.filled);
        let rest = into.split_off(window);
        let (result, into) = match all {
            true => self.ring.recv_all(&self.connection.socket, into).await,
            false => self.ring.recv(&self.connection.socket, into).await,
        };
        self.buffer.unsplit(into);
        self.buffer.unsplit(rest);
        let n = result?;
        self.received = self.ring.now();
        self.connection.heard.set(self.received);
        self.filled += n;
        Ok(n)
    }
}
