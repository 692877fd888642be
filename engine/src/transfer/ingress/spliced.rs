//! `spliced`: from the socket through a pipe into the segment file; the engine never sees the payload.
//!
//! The path of a byte: card -(DMA)-> socket =(splice)= pipe -(CPU, splice)-> page cache -(DMA, later)-> disk. One CPU
//! copy, in the kernel. Only the head of a batch is received (what comes with it, 512 bytes of its frame at most): it is checked and
//! stamped in our memory and written as an ordinary write, through `buffered`'s stage, when all that follows it is in the
//! file. Until then there are zeros in its place, which are the end of the log to whoever opens the file after a crash.
//! What has come of a batch that is given up stays behind the log end until the next append, which zeroes it first.
//!
//! *Checked*: everything that the 61 bytes of the head say (length, magic, counts, attributes, timestamps, producer), and
//! that as many bytes came as they promise. *Not checked*: the checksum, so none of what it covers. A payload that was
//! damaged before it came here is accepted, promised and served; the consumer's checksum finds it. And a start after a
//! crash that meets it above the recovery point takes it for a torn end and cuts the log there, with all that was
//! appended behind it (kept aside); below, it is fenced as rot. That is why this way must be allowed apart from being
//! chosen: it is for copies of what somebody else has checked, such as a mirror.
//!
//! What cannot go by the pipe goes `buffered`'s way, checked as everywhere, and is counted as a fallback: batches that
//! are small, come several in one request, belong to another core, or bear the log's own time, and those whose producer
//! was too slow for others who wait. Readers are served from the page cache.
//!
//! Right for a mirror: large batches, checked once already, of few connections.
//!
//! In the kernel: `splice` takes references to the pages that packets lie in into the pipe, and copies them into pages of
//! the cache as `write` would (`copy_page_from_iter_atomic`): a file's own pages cannot be taken from elsewhere. Positions
//! that are no whole pages are no hindrance to that, but to O_DIRECT they are.

use std::collections::VecDeque;
use std::future::Future;
use std::io;

use super::buffered;
use super::{Declaration, Need, Receives, Slot, WriteUnit};
use crate::log::LogPoint;
use crate::sys::{File, Lease, LeaseMut, Moment, Pipe, Ring, Socket};
use crate::transfer::path::{BytePath, Place, copy, dma, share};
use crate::transfer::plan::CopyProfile;
use crate::types::{Offset, Position};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "spliced",
    path: BytePath {
        from: Place::Card,
        steps: &[
            dma("", Place::Socket),
            share("splice", Place::Pipe),
            copy("splice", Place::PageCache),
            dma("later", Place::Disk),
        ],
    },
    profile: CopyProfile { cpu_copies: 1.0, user_copies: 0.0, shares_pages: true },
    direct: false,
    uncached: false,
    receives: Receives::Spliced,
    into_file: true,
    checks_payload: false,
    needs: "producers that are trusted, of large batches, one in a request",
};

/// Taken from the socket before the file gets it.
const UNIT_BYTES_MAX: usize = 512 << 10;

/// Heads of batches whose rest is in the file, and whole batches that came in private.
pub struct Stage(buffered::Stage);

impl Stage {
    pub(super) fn new(end: LogPoint) -> Stage {
        Stage(buffered::Stage::new(end))
    }

    pub(super) fn need(&self, start: LogPoint, bytes: usize) -> Need {
        self.0.need(start, bytes)
    }

    pub(super) fn supply(&mut self, memory: LeaseMut) {
        self.0.supply(memory);
    }

    pub(super) fn prime(&mut self, end: LogPoint, block: LeaseMut) {
        self.0.prime(end, block);
    }

    /// No memory: the batch goes into the file.
    #[allow(clippy::unused_self)]
    pub(super) fn reserve(&mut self, start: LogPoint, _: usize) -> Slot {
        Slot { start, parts: VecDeque::new() }
    }

    #[allow(clippy::unused_self)]
    pub(super) fn release(&mut self, _: Slot) {}

    #[allow(clippy::unused_self)]
    pub(super) fn accept_in_place(&mut self, _: Slot, _: LogPoint, _: Moment) {
        unreachable!("a batch that went into the file comes with its head")
    }

    /// Of the batch from `start` to `end` the first bytes are to be written yet.
    pub(super) fn accept_head(&mut self, head: Lease, start: LogPoint, end: LogPoint, now: Moment) {
        self.0.push(head, start, Some(end), now);
    }

    pub(super) fn accept(&mut self, batch: Lease, start: LogPoint, end: LogPoint, now: Moment) -> u64 {
        self.0.accept(batch, start, end, now)
    }

    pub(super) fn take_unit(&mut self, limit: LogPoint) -> Option<WriteUnit> {
        self.0.take_unit(limit)
    }

    pub(super) fn finish_unit(&mut self, unit: WriteUnit) {
        self.0.finish_unit(unit);
    }

    pub(super) fn memory(
        &self,
        segment: Offset,
        from: Position,
        to: Position,
        take: &mut dyn FnMut(Lease),
    ) -> Position {
        self.0.memory(segment, from, to, take)
    }

    pub(super) fn file_limit(&self, segment: Offset) -> Position {
        self.0.file_limit(segment)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }

    pub(super) fn evict_oldest(&mut self) -> bool {
        self.0.evict_oldest()
    }
}

/// The pipe between a socket and a file, for one batch.
pub struct Passage {
    ring: Ring,
    /// Absent while the kernel empties it.
    pipe: Option<Pipe>,
}

/// Why [`Passage::fill`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The pipe has as much as it should, or as it can.
    Enough,
    /// The peer has finished.
    Left,
    /// It was given up.
    GivenUp,
}

impl Passage {
    /// An empty one.
    ///
    /// # Errors
    /// As [`Ring::pipe`].
    pub fn open(ring: &Ring) -> io::Result<Passage> {
        Ok(Passage { ring: ring.clone(), pipe: Some(ring.pipe()?) })
    }

    /// Bytes in it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::held)
    }

    /// Takes what `socket` receives, until `bytes` are in the pipe or it has enough for one write, or `give_up` is ready.
    ///
    /// # Errors
    /// What the kernel said of the socket.
    pub async fn fill(
        &mut self,
        socket: &Socket,
        bytes: usize,
        mut give_up: impl Future<Output = ()> + Unpin,
    ) -> io::Result<Filled> {
        let pipe = self.pipe.as_mut().expect("nobody empties it");
        let mut waited = false;
        loop {
            let wanted = bytes.min(UNIT_BYTES_MAX).saturating_sub(pipe.held());
            if wanted == 0 {
                return Ok(Filled::Enough);
            }
            match self.ring.splice_from_socket(socket, wanted, pipe) {
                Ok(0) => return Ok(Filled::Left),
                Ok(_) => waited = false,
                // The socket has something and the pipe takes nothing: it is full of small pieces.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waited && pipe.held() > 0 => {
                    return Ok(Filled::Enough);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.ring.readable_unless(socket, &mut give_up).await? {
                        return Ok(Filled::GivenUp);
                    }
                    waited = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what is in the pipe, or the beginning of it, to `file` at `at`. How much.
    ///
    /// # Errors
    /// What the kernel said of the file; the bytes are still in the pipe.
    pub async fn empty(&mut self, file: &File, at: Position) -> io::Result<usize> {
        let pipe = self.pipe.take().expect("nobody empties it");
        let (written, pipe) = self.ring.splice_to_file(file, at.0, pipe).await;
        self.pipe = Some(pipe);
        match written? {
            0 => Err(io::Error::new(io::ErrorKind::WriteZero, "nothing was written")),
            written => Ok(written),
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.ring.give_pipe(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::sim::World;

    fn point(position: u64, offset: i64) -> LogPoint {
        LogPoint { segment: Offset(0), position: Position(position), offset: Offset(offset) }
    }

    /// Behind a head lies what is in the file already: the next one is a write of its own, and never before the first.
    #[test]
    fn what_follows_a_head_is_written_apart_from_it() {
        let world = World::new(1);
        let ring = world.ring(64 << 20);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let mut stage = Stage::new(point(0, 0));
            let mut memory = main.lease(4096).await.unwrap();
            let mut lease = |bytes| memory.split_to(bytes).freeze();
            stage.accept(lease(100), point(0, 0), point(100, 1), main.now());
            stage.accept_head(lease(400), point(100, 1), point(50_100, 2), main.now());
            stage.accept(lease(70), point(50_100, 2), point(50_170, 3), main.now());
            stage.accept(lease(30), point(50_170, 3), point(50_200, 4), main.now());
            let mut units = Vec::new();
            while let Some(unit) = stage.take_unit(LogPoint::BEYOND) {
                let (at, data) = unit.writes[0].as_ref().unwrap();
                assert!(unit.writes[1].is_none());
                units.push((at.0, data.bytes(), unit.end));
                stage.finish_unit(unit);
            }
            assert_eq!(units, [(0, 500, Some(point(50_100, 2))), (50_100, 100, Some(point(50_200, 4)))]);
            assert_eq!(stage.file_limit(Offset(0)), Position(50_200));
        });
        ring.shut_down();
    }
}
