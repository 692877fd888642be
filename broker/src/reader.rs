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

const BUFFER_BYTES_MIN: usize = 64 << 10;
const BUFFER_BYTES_MAX: usize = 1 << 20;
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
            if !self.take(frame).await? {
                break;
            }
        }
        Ok(())
    }

    /// Deals with one frame. False when the connection is over.
    async fn take(&mut self, frame: LeaseMut) -> Result<bool, Fault> {
        let header = RequestHeader::decode(&mut Decoder::new(&frame))?;
        self.broker.config.frames.check_api(header.api, frame.len())?;
        let entry = if header.api == ApiKey::Produce {
            let produced = produce::take(self.broker, self.connection, frame, self.received).await?;
            if produced.acks == 0 {
                let failed = produced.first_error();
                self.connection.pool.borrow_mut().push(produced);
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

    /// Makes sure that the frame under way fits into the buffer, or the next one like the last.
    async fn make_room(&mut self, total: Option<usize>) -> Result<(), Fault> {
        let wanted = match total {
            Some(total) => total,
            None if self.filled == 0 => self.last_frame_bytes.max(4096),
            None => PREFIX_BYTES,
        };
        if wanted <= self.buffer.len() {
            return Ok(());
        }
        let several = (self.last_frame_bytes.max(wanted) * 4).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
        let mut next = self.ring.lease(several.max(wanted).min(LEASE_BYTES_MAX)).await?;
        next[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
        self.buffer = next;
        Ok(())
    }

    async fn receive(&mut self, total: Option<usize>) -> Result<usize, Fault> {
        let missing = total.map_or(0, |total| total - self.filled);
        let all = missing >= WAIT_FOR_ALL_BYTES;
        let room = self.buffer.len() - self.filled;
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
        self.filled += n;
        Ok(n)
    }
}
