//! `mapped`: received straight into the mapped end of the active segment.
//!
//! The path of a byte: card -(DMA)-> socket -(CPU, recv)-> our address space =(mmap)= page cache -(DMA, later)->
//! disk. One CPU copy, the kernel's out of the socket, and no write at all: when the batch is complete in the
//! mapping it is written, and survives the death of the process. `durable` is a flush as for any file.
//!
//! The end of the prepared room is mapped in windows, 256 KiB, then 1 MiB, then 4 MiB at a time, and touched by a helper
//! ahead of need, so that the shard meets no page fault but those of pages that were written back meanwhile. The first bytes
//! of a batch, up to its checksum, are put there last: what is there before is zeros to whoever opens the file after a crash.
//! What has come of a batch that is given up is zeroed.
//!
//! A batch that was received elsewhere is copied into the mapping, and counted, as with `in_place`. Another process that cuts
//! the file under the mapping latches the partition (unless the file has grown again before anybody touched what is gone:
//! then it is as with `buffered`, whose written bytes may be cut away unnoticed as well). Readers are served from the page cache; nothing is sent from a mapping.
//!
//! Right for large batches of few producers where O_DIRECT is not to be had, or readers shall find everything in
//! the page cache, and promises are `written`: each flush writes the touched pages ahead of the end as well, and
//! the next touch of them is a fault. With O_DIRECT `in_place` is cheaper: touching a page of a file costs more
//! than copying into one.
//!
//! In the kernel: `recv` copies out of the packets into a page of the cache, through our page tables. The first
//! store into a page that is clean is a fault in which the file system is asked, so that it knows what to write
//! back; that is what touching ahead pays for.

use std::collections::VecDeque;

use super::buffered;
use super::{Declaration, Need, Receives, Slot, WriteData, WriteUnit};
use crate::log::LogPoint;
use crate::sys::{BLOCK_BYTES, Lease, LeaseMut, Moment};
use crate::transfer::path::{BytePath, Place, copy, dma, map};
use crate::transfer::plan::CopyProfile;
use crate::types::{Offset, Position};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "mapped",
    profile: CopyProfile { cpu_copies: 1.0, user_copies: 0.0, shares_pages: false },
    path: BytePath {
        from: Place::Card,
        steps: &[
            dma("", Place::Socket),
            copy("recv", Place::Map),
            map("mmap", Place::PageCache),
            dma("later", Place::Disk),
        ],
    },
    direct: false,
    uncached: false,
    receives: Receives::InPlace,
    into_file: true,
    checks_payload: true,
    needs: "Linux 5.14 (MADV_POPULATE_WRITE); producers of large batches, one in a request",
};

/// The first window of a partition; each further one is four times as large, up to the largest.
const WINDOW_BYTES_MIN: usize = 256 << 10;
const WINDOW_BYTES_MAX: usize = 4 << 20;

/// What is mapped and not filled, and what is filled and not yet known to be written.
pub struct Stage {
    filled: buffered::Stage,
    /// One behind the other, from where accepted bytes end, or reserved ones; the last may be empty.
    windows: VecDeque<Window>,
    next_window_bytes: usize,
    /// A slot is out: the windows begin where it ends.
    reserved: bool,
    /// The list of a slot that came back, for the next one.
    spare_parts: VecDeque<(LeaseMut, Option<LeaseMut>)>,
}

struct Window {
    segment: Offset,
    /// Where in the file `rest` begins.
    at: Position,
    rest: LeaseMut,
}

impl Window {
    fn end(&self) -> Position {
        self.at.plus(self.rest.len() as u64)
    }

    fn split_to(&mut self, bytes: usize) -> LeaseMut {
        self.at = self.at.plus(bytes as u64);
        self.rest.split_to(bytes)
    }
}

impl Stage {
    pub(super) fn new(end: LogPoint) -> Stage {
        Stage {
            filled: buffered::Stage::new(end),
            windows: VecDeque::with_capacity(4),
            spare_parts: VecDeque::with_capacity(4),
            next_window_bytes: WINDOW_BYTES_MIN,
            reserved: false,
        }
    }

    /// Whether the windows begin where the log goes on.
    fn continues(&self, start: LogPoint) -> bool {
        self.windows.front().is_some_and(|w| w.segment == start.segment && w.at == start.position)
    }

    fn room(&self) -> usize {
        self.windows.iter().map(|window| window.rest.len()).sum()
    }

    fn next_window(&self, start: LogPoint) -> Need {
        let at = match self.windows.back() {
            Some(last) if self.continues(start) => last.end(),
            _ => Position(start.position.0 / BLOCK_BYTES as u64 * BLOCK_BYTES as u64),
        };
        Need::Window { segment: start.segment, at, bytes: self.next_window_bytes }
    }

    pub(super) fn need(&self, start: LogPoint, bytes: usize) -> Need {
        if self.continues(start) && bytes <= self.room() { Need::Nothing } else { self.next_window(start) }
    }

    /// What is to be mapped ahead of need: half of the last window is left, or less.
    pub(super) fn need_ahead(&self, start: LogPoint) -> Need {
        let begun = self.continues(start);
        if begun && self.room() < self.next_window_bytes / 2 {
            self.next_window(start)
        } else {
            Need::Nothing
        }
    }

    pub(super) fn supply_window(&mut self, start: LogPoint, at: Position, mut memory: LeaseMut) {
        let follows = self.windows.back().is_some_and(|w| w.segment == start.segment && w.end() == at);
        if follows {
            self.windows.push_back(Window { segment: start.segment, at, rest: memory });
        } else if !self.reserved
            && !self.continues(start)
            && at <= start.position
            && start.position.since(at) < memory.len() as u64
        {
            self.windows.clear();
            let rest = memory.split_off(start.position.since(at) as usize);
            self.windows.push_back(Window { segment: start.segment, at: start.position, rest });
        }
        self.next_window_bytes = (self.next_window_bytes * 4).min(WINDOW_BYTES_MAX);
    }

    pub(super) fn supply(&mut self, memory: LeaseMut) {
        self.filled.supply(memory);
    }

    pub(super) fn prime(&mut self, end: LogPoint, block: LeaseMut) {
        self.filled.prime(end, block);
    }

    pub(super) fn reserve(&mut self, start: LogPoint, bytes: usize) -> Slot {
        assert!(self.continues(start), "a window was asked for before it is used");
        self.reserved = true;
        let mut parts = std::mem::take(&mut self.spare_parts);
        let mut left = bytes;
        for window in &mut self.windows {
            let fits = left.min(window.rest.len());
            parts.push_back((window.split_to(fits), None));
            left -= fits;
            if left == 0 {
                break;
            }
        }
        assert_eq!(left, 0, "a window was asked for before it is used");
        Slot { start, parts }
    }

    pub(super) fn release(&mut self, mut slot: Slot) {
        for ((mut part, _), window) in slot.parts.drain(..).zip(&mut self.windows) {
            part.fill(0);
            window.at = Position(window.at.0 - part.len() as u64);
            let rest = std::mem::replace(&mut window.rest, part);
            window.rest.unsplit(rest);
        }
        self.spare_parts = slot.parts;
        self.reserved = false;
    }

    pub(super) fn accept_in_place(&mut self, mut slot: Slot, end: LogPoint, now: Moment) {
        self.reserved = false;
        let mut at = slot.start;
        for (part, _) in slot.parts.drain(..) {
            let next = at.position.plus(part.len() as u64);
            self.filled.push(part.freeze(), at, (next == end.position).then_some(end), now);
            at.position = next;
        }
        self.spare_parts = slot.parts;
        self.drop_full_windows();
    }

    pub(super) fn accept(&mut self, batch: Lease, start: LogPoint, end: LogPoint, now: Moment) -> u64 {
        assert!(self.continues(start), "a window was asked for before it is used");
        let (mut at, mut bytes) = (start, &batch[..]);
        for window in &mut self.windows {
            let mut part = window.split_to(bytes.len().min(window.rest.len()));
            let (here, behind) = bytes.split_at(part.len());
            part.copy_from_slice(here);
            let next = at.position.plus(here.len() as u64);
            if !here.is_empty() {
                self.filled.push(part.freeze(), at, behind.is_empty().then_some(end), now);
            }
            (at.position, bytes) = (next, behind);
            if bytes.is_empty() {
                break;
            }
        }
        assert!(bytes.is_empty(), "a window was asked for before it is used");
        self.drop_full_windows();
        batch.len() as u64
    }

    /// The last stays: the next window follows it.
    fn drop_full_windows(&mut self) {
        while self.windows.len() > 1 && self.windows[0].rest.is_empty() {
            self.windows.pop_front();
        }
    }

    pub(super) fn take_unit(&mut self, limit: LogPoint) -> Option<WriteUnit> {
        let mut unit = self.filled.take_unit(limit)?;
        unit.writes = unit.writes.map(|write| match write {
            Some((at, WriteData::Many(gather))) => Some((at, WriteData::Stored(gather))),
            other => other,
        });
        Some(unit)
    }

    pub(super) fn finish_unit(&mut self, unit: WriteUnit) {
        self.filled.finish_unit(unit);
    }

    pub(super) fn memory(
        &self,
        segment: Offset,
        from: Position,
        to: Position,
        take: &mut dyn FnMut(Lease),
    ) -> Position {
        self.filled.memory(segment, from, to, take)
    }

    pub(super) fn file_limit(&self, segment: Offset) -> Position {
        self.filled.file_limit(segment)
    }

    /// None of it is the arena's.
    #[allow(clippy::unused_self)]
    pub(super) fn memory_bytes(&self) -> usize {
        0
    }

    pub(super) fn evict_oldest(&mut self) -> bool {
        self.filled.evict_oldest()
    }
}
