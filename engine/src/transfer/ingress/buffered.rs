//! `buffered`: written from where it was received, through the page cache.
//!
//! The path of a byte: card -(DMA)-> socket -(CPU, recv)-> our memory -(CPU, write)-> page cache -(DMA, later)->
//! disk. Two CPU copies, none of them ours. What is read next is in the cache already; what is read last pushes it
//! out. There is no staging and no tail cache: readers come from the page cache. Right where `sendfile` shall find
//! everything there, and memory is plenty.
//!
//! In the kernel: `recv` copies out of the packets (`_copy_to_iter`), `write` copies into pages of the cache and
//! marks them dirty. Threads of the kernel's hand dirty pages to the disk some time later; a flush hands over the
//! file's and waits.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::{Declaration, Need, Receives, Slot, WriteData, WriteUnit};
use crate::log::LogPoint;
use crate::sys::{GATHER_MAX, Gather, Lease, LeaseMut, Moment};
use crate::transfer::path::{BytePath, Place, copy, dma};
use crate::transfer::plan::CopyProfile;
use crate::types::{Offset, Position};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "buffered",
    profile: CopyProfile { cpu_copies: 2.0, user_copies: 0.0, shares_pages: false },
    path: BytePath {
        from: Place::Card,
        steps: &[
            dma("", Place::Socket),
            copy("recv", Place::Memory),
            copy("write", Place::PageCache),
            dma("later", Place::Disk),
        ],
    },
    direct: false,
    uncached: false,
    receives: Receives::Private,
    into_file: false,
    checks_payload: true,
    needs: "nothing",
};

/// Written at a time under load.
const UNIT_BYTES_MAX: usize = 4 << 20;

/// Batches that wait to be written, each where it was received.
pub struct Stage {
    queue: VecDeque<Waiting>,
    queued_bytes: usize,
    /// The memory list, reused; absent while a unit is under way.
    gather: Option<Gather>,
    unit_bytes: usize,
    /// Up to where completed units wrote.
    written: LogPoint,
}

struct Waiting {
    batch: Lease,
    start: LogPoint,
    /// Where the batch ends, if this is the last or only part of it.
    end: Option<LogPoint>,
    accepted: Moment,
}

impl Stage {
    pub(super) fn new(end: LogPoint) -> Stage {
        Stage {
            queue: VecDeque::with_capacity(64),
            queued_bytes: 0,
            gather: Some(Gather::new()),
            unit_bytes: 0,
            written: end,
        }
    }

    #[allow(clippy::unused_self)]
    pub(super) fn need(&self, _start: LogPoint, _bytes: usize) -> Need {
        Need::Nothing
    }

    #[allow(clippy::unused_self)]
    pub(super) fn supply(&mut self, memory: LeaseMut) {
        drop(memory);
    }

    #[allow(clippy::unused_self)]
    pub(super) fn prime(&mut self, _end: LogPoint, block: LeaseMut) {
        drop(block);
    }

    #[allow(clippy::unused_self)]
    pub(super) fn reserve(&mut self, _: LogPoint, _: usize) -> Slot {
        unreachable!("batches stay where they were received")
    }

    #[allow(clippy::unused_self)]
    pub(super) fn release(&mut self, _: Slot) {}

    #[allow(clippy::unused_self)]
    pub(super) fn accept_in_place(&mut self, _: Slot, _: LogPoint, _: Moment) {
        unreachable!("batches stay where they were received")
    }

    pub(super) fn accept(&mut self, batch: Lease, start: LogPoint, end: LogPoint, now: Moment) -> u64 {
        self.push(batch, start, Some(end), now);
        0
    }

    /// Adds a batch, or a part of one that lies at `start`.
    pub(super) fn push(&mut self, batch: Lease, start: LogPoint, end: Option<LogPoint>, now: Moment) {
        self.queued_bytes += batch.len();
        self.queue.push_back(Waiting { batch, start, end, accepted: now });
    }

    pub(super) fn take_unit(&mut self, _: LogPoint) -> Option<WriteUnit> {
        let first = self.queue.front()?;
        let (segment, at, accepted) = (first.start.segment, first.start.position, first.accepted);
        let mut gather = self.gather.take().expect("one unit is under way at a time");
        let mut end = first.end;
        while let Some(waiting) = self.queue.front() {
            let full = gather.bytes() > 0 && gather.bytes() + waiting.batch.len() > UNIT_BYTES_MAX;
            // Of one that `spliced` received, more than its head is in the file already.
            let follows =
                waiting.start.segment == segment && waiting.start.position == at.plus(gather.bytes() as u64);
            if !follows || full || gather.leases().len() == GATHER_MAX {
                break;
            }
            let waiting = self.queue.pop_front().expect("looked at above");
            end = waiting.end.or(end);
            gather.push(waiting.batch).ok().expect("the gather has room");
        }
        self.unit_bytes = gather.bytes();
        self.queued_bytes -= self.unit_bytes;
        let writes = [Some((at, WriteData::Many(gather))), None, None, None];
        Some(WriteUnit { segment, writes, end, accepted, copied_bytes: 0 })
    }

    pub(super) fn finish_unit(&mut self, unit: WriteUnit) {
        for (_, data) in unit.writes.into_iter().flatten() {
            if let WriteData::Many(mut gather) | WriteData::Stored(mut gather) = data {
                gather.clear();
                self.gather = Some(gather);
            }
        }
        self.unit_bytes = 0;
        self.written = unit.end.unwrap_or(self.written);
    }

    #[allow(clippy::unused_self)]
    pub(super) fn memory(&self, _: Offset, _: Position, to: Position, _: &mut dyn FnMut(Lease)) -> Position {
        to
    }

    /// Appending to a cached page changes none of its earlier bytes, so all that is written may be sent from there.
    pub(super) fn file_limit(&self, segment: Offset) -> Position {
        match segment.cmp(&self.written.segment) {
            Ordering::Less => Position(u64::MAX),
            Ordering::Equal => self.written.position,
            Ordering::Greater => Position(0),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.queued_bytes + self.unit_bytes
    }

    #[allow(clippy::unused_self)]
    pub(super) fn evict_oldest(&mut self) -> bool {
        false
    }
}
