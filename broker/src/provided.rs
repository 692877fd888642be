//! The reader of a connection where buffers are provided for all of them: frames are cut out of the buffers they came in.
//!
//! A frame that lies in one buffer is taken from there. One that spans several is waited for until all of it has come; then
//! a large batch is gathered from them straight into the tail of its partition, anything else is joined first. What is
//! joined or moved together is counted as copied.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use ringlog::sys::{Incoming, LeaseMut, Moment, PROVIDED_BYTES, PROVIDED_ROOM, Ring, Socket};

use crate::connection::{Broker, Connection};
use crate::errors::Fault;
use crate::guard::Hold;
use crate::in_place::Candidate;
use crate::reader::{self, Came};
use crate::wire::PREFIX_BYTES;

/// What has come of a stream and was not taken yet.
struct Inflow {
    incoming: Incoming,
    /// In order. While there are several, the first holds the head of the frame under way.
    parts: VecDeque<Part>,
    bytes: usize,
}

/// Bytes where they came, and the memory behind them.
struct Part {
    bytes: LeaseMut,
    rest: LeaseMut,
}

pub(crate) async fn run(broker: &Rc<Broker>, connection: &Rc<Connection>) -> Result<(), Fault> {
    let ring = broker.shard.ring();
    let mut inflow = Inflow::new(ring, &connection.socket);
    let mut received = ring.now();
    loop {
        let total = broker.config.frames.peek_frame(inflow.front())?;
        if let Some(total) = total {
            reader::check_kind(broker, inflow.front(), total)?;
            if total <= inflow.bytes {
                let came = inflow.take(broker, connection, total, received).await?;
                if !reader::deal(broker, connection, came, received).await? {
                    return Ok(());
                }
                continue;
            }
        }
        if inflow.bytes > 0 && connection.receiving.get().is_none() {
            let bytes = (inflow.parts.len() * PROVIDED_BYTES) as u64;
            connection.receiving.set(Some(Hold { bytes, since: received }));
        }
        let arrived = inflow.receive().await;
        connection.receiving.set(None);
        let Some(copied) = arrived? else {
            reader::note_cut_off(connection, inflow.bytes, total);
            return Ok(());
        };
        received = ring.now();
        connection.heard.set(received);
        note_copied(broker, copied);
    }
}

fn note_copied(broker: &Broker, bytes: usize) {
    let copied = &broker.shard.transfers().ingress_copied_bytes;
    copied.set(copied.get() + bytes as u64);
}

impl Inflow {
    fn new(ring: &Ring, socket: &Socket) -> Inflow {
        Inflow { incoming: ring.incoming(socket), parts: VecDeque::with_capacity(8), bytes: 0 }
    }

    /// The bytes of the first buffer.
    fn front(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| &part.bytes)
    }

    /// Waits for more; says how many bytes were moved together, `None` when the peer has finished.
    async fn receive(&mut self) -> io::Result<Option<usize>> {
        let Some(mut arrived) = self.incoming.next().await? else { return Ok(None) };
        let count = arrived.bytes().len();
        self.bytes += count;
        // A peer that sends a byte at a time must not get a buffer for each.
        if let Some(last) = self.parts.back_mut()
            && count <= last.rest.len()
        {
            let mut more = last.rest.split_to(count);
            more.copy_from_slice(arrived.bytes());
            last.bytes.unsplit(more);
            return Ok(Some(count));
        }
        let mut copied = 0;
        if self.parts.len() == 1 && self.front().len() <= PROVIDED_ROOM {
            copied = self.front().len();
            arrived.prepend(self.front());
            self.parts.clear();
        }
        let (bytes, rest) = arrived.into_parts();
        self.parts.push_back(Part { bytes, rest });
        Ok(Some(copied))
    }

    /// Takes a frame of `total` bytes, prefix included, all of which has come.
    async fn take(
        &mut self,
        broker: &Rc<Broker>,
        connection: &Rc<Connection>,
        total: usize,
        received: Moment,
    ) -> Result<Came, Fault> {
        let (whole, body) = (total <= self.front().len(), total - PREFIX_BYTES);
        if whole {
            let front = self.parts.front_mut().expect("the frame lies in it");
            drop(front.bytes.split_to(PREFIX_BYTES));
            let frame = front.bytes.split_to(body);
            self.bytes -= total;
            self.skip(0);
            return Ok(Came::Frame(frame));
        }
        if let Some(candidate) = Candidate::look(broker, self.front(), total) {
            let batch = candidate.place();
            let parts = || self.range(batch.start, batch.len());
            if let Some(produced) = candidate.gather(broker, connection, parts, received).await {
                self.skip(total);
                return Ok(Came::Produced(produced));
            }
            // Refused; the ordinary way says why.
        }
        let mut frame = broker.shard.ring().lease(body).await?;
        drop(frame.split_off(body));
        let mut filled = 0;
        for part in self.range(PREFIX_BYTES, body) {
            frame[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        note_copied(broker, body);
        self.skip(total);
        Ok(Came::Frame(frame))
    }

    /// The `bytes` from `from` on, as they lie.
    fn range(&self, mut from: usize, mut bytes: usize) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map_while(move |part| {
            let skipped = from.min(part.bytes.len());
            from -= skipped;
            let end = part.bytes.len().min(skipped + bytes);
            bytes -= end - skipped;
            (bytes > 0 || skipped < end).then_some(&part.bytes[skipped..end])
        })
    }

    /// Forgets the next `count` bytes, and buffers of which nothing is left.
    fn skip(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(part) = self.parts.front_mut() {
            let here = count.min(part.bytes.len());
            drop(part.bytes.split_to(here));
            count -= here;
            if !part.bytes.is_empty() {
                return;
            }
            self.parts.pop_front();
        }
    }
}
