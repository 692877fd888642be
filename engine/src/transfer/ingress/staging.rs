//! Staging: the memory that batches are written from past the page cache, and the tail cache.
//!
//! Writes are whole blocks of [`BLOCK_BYTES`]. Full blocks go out from staging, which is never written again; the
//! block that the log ends in goes out as a copy of its own (at most 4095 stated bytes a unit), because the
//! memory under a write must not change while the next batch is being staged behind it.
//!
//! Batches at positions 10, 5000 and 9000, log end 9100: the first unit writes blocks [0, 8192) from staging and
//! [8192, 12288) from the copy, zeros behind 9100. After two more batches, up to 23000, the second writes [8192, 12288)
//! from staging, for good, [12288, 20480) from there too, and [20480, 24576) from the copy.
//!
//! The block that was written before goes out by itself: a direct write that begins in blocks already written and ends
//! in prepared ones is no pure overwrite to ext4, which then wants the inode for itself, and the ring hands it to a
//! worker thread.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::{Need, WriteData, WriteUnit};
use crate::log::LogPoint;
use crate::sys::{BLOCK_BYTES, Lease, LeaseMut, Moment};
use crate::types::{Offset, Position};

/// The first staging block of a partition; each further one is four times as large, up to the largest.
const STAGE_BYTES_MIN: usize = 4 << 10;
const STAGE_BYTES_MAX: usize = 1 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Staging memory of one partition, oldest first. All but the last block are full or belong to an older segment.
pub struct Stage {
    blocks: VecDeque<StageBlock>,
    /// Bytes of memory that `blocks` keep.
    held_bytes: usize,
    spare: VecDeque<LeaseMut>,
    /// Ends of batches that are accepted and not yet known to be written.
    ends: VecDeque<(LogPoint, Moment)>,
    /// Where accepted bytes end.
    staged: LogPoint,
    /// Up to where completed units wrote: often inside a batch, where batches are large.
    written: (Offset, Position),
    /// Where that will be when the unit that is under way is complete.
    under_way: Option<(Offset, Position)>,
    /// Where the copy of the shared last block is made.
    last_block: Option<LeaseMut>,
    next_stage_bytes: usize,
    /// The list of a slot that came back, for the next one.
    spare_parts: VecDeque<(LeaseMut, Option<LeaseMut>)>,
}

/// Memory for one batch at the end of what is staged, in one part or several.
pub struct Slot {
    pub(super) start: LogPoint,
    /// Each with what follows it in its own memory; the first has none when it lies in the block that is filled already.
    pub(super) parts: VecDeque<(LeaseMut, Option<LeaseMut>)>,
}

impl Slot {
    /// Where the batch begins.
    #[must_use]
    pub fn start(&self) -> LogPoint {
        self.start
    }

    /// How many parts it has.
    #[must_use]
    pub fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// The memory of a part, to be given back by [`Slot::put`].
    #[must_use]
    pub fn take(&mut self, part: usize) -> LeaseMut {
        let memory = &mut self.parts[part].0;
        let empty = memory.split_to(0);
        std::mem::replace(memory, empty)
    }

    /// Gives the memory of a part back.
    pub fn put(&mut self, part: usize, memory: LeaseMut) {
        self.parts[part].0 = memory;
    }

    /// The parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|(part, _)| &part[..])
    }

    /// Writes `bytes` at `at` of the whole.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&mut self, mut at: usize, mut bytes: &[u8]) {
        for (part, _) in &mut self.parts {
            if at < part.len() {
                let fits = bytes.len().min(part.len() - at);
                part[at..at + fits].copy_from_slice(&bytes[..fits]);
                bytes = &bytes[fits..];
                at = 0;
            } else {
                at -= part.len();
            }
        }
        assert!(bytes.is_empty(), "{} bytes run over a slot", bytes.len());
    }
}

struct StageBlock {
    segment: Offset,
    /// The file position of its first byte; a multiple of the block size.
    at: Position,
    filled: Lease,
    rest: LeaseMut,
}

impl StageBlock {
    fn new(segment: Offset, at: Position, mut memory: LeaseMut) -> StageBlock {
        assert_eq!(at.0 % BLOCK, 0, "a staging block at {at}");
        let filled = memory.split_to(0).freeze();
        StageBlock { segment, at, filled, rest: memory }
    }

    fn end(&self) -> Position {
        self.at.plus(self.filled.len() as u64)
    }

    /// Copies as much of `bytes` as fits behind what is there.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let fits = bytes.len().min(self.rest.len());
        let mut part = self.rest.split_to(fits);
        part.copy_from_slice(&bytes[..fits]);
        self.filled.try_join(part.freeze()).ok().expect("the rest of a block follows its filled part");
        fits
    }

    fn slice(&self, from: Position, to: Position) -> Lease {
        self.filled.slice(from.since(self.at) as usize..to.since(self.at) as usize)
    }
}

impl Stage {
    pub(super) fn new(end: LogPoint) -> Stage {
        Stage {
            blocks: VecDeque::new(),
            held_bytes: 0,
            spare: VecDeque::new(),
            ends: VecDeque::new(),
            staged: end,
            written: (end.segment, end.position),
            under_way: None,
            last_block: None,
            next_stage_bytes: STAGE_BYTES_MIN,
            spare_parts: VecDeque::new(),
        }
    }

    pub(super) fn need(&self, start: LogPoint, bytes: usize) -> Need {
        if self.last_block.is_none() {
            return Need::Memory(BLOCK_BYTES);
        }
        let continues =
            self.blocks.back().filter(|b| b.segment == start.segment && b.end() == start.position);
        if continues.is_none() && !start.position.0.is_multiple_of(BLOCK) {
            return Need::Block(Position(start.position.0 / BLOCK * BLOCK));
        }
        let room = continues.map_or(0, |b| b.rest.len()) + self.spare.iter().map(|s| s.len()).sum::<usize>();
        if room < bytes { Need::Memory(self.next_stage_bytes) } else { Need::Nothing }
    }

    pub(super) fn supply(&mut self, memory: LeaseMut) {
        if self.last_block.is_none() && memory.len() == BLOCK_BYTES {
            self.last_block = Some(memory);
        } else {
            self.spare.push_back(memory);
            self.next_stage_bytes = (self.next_stage_bytes * 4).min(STAGE_BYTES_MAX);
        }
    }

    pub(super) fn prime(&mut self, end: LogPoint, mut memory: LeaseMut) {
        let at = Position(end.position.0 / BLOCK * BLOCK);
        let there = memory.split_to(end.position.since(at) as usize).freeze();
        self.hold(StageBlock { segment: end.segment, at, filled: there, rest: memory });
        self.staged = end;
    }

    fn hold(&mut self, block: StageBlock) {
        self.held_bytes += block.filled.block_bytes();
        self.blocks.push_back(block);
    }

    /// Takes the memory for a batch of `bytes` at `start` out of the stage, as its tail: whoever gets it is the only one
    /// to append until it comes back. [`Stage::need`] must ask for nothing.
    pub(super) fn reserve(&mut self, start: LogPoint, bytes: usize) -> Slot {
        let mut parts = std::mem::take(&mut self.spare_parts);
        let mut left = bytes;
        let continues =
            self.blocks.back_mut().filter(|b| b.segment == start.segment && b.end() == start.position);
        if let Some(block) = continues {
            let fits = left.min(block.rest.len());
            parts.push_back((block.rest.split_to(fits), None));
            left -= fits;
        }
        while left > 0 {
            let mut memory = self.spare.pop_front().expect("memory was asked for before it is reserved");
            let part = memory.split_to(left.min(memory.len()));
            left -= part.len();
            parts.push_back((part, Some(memory)));
        }
        Slot { start, parts }
    }

    /// The slot comes back unused.
    pub(super) fn release(&mut self, mut slot: Slot) {
        for (mut part, rest) in slot.parts.drain(..).rev() {
            match rest {
                Some(rest) => {
                    part.unsplit(rest);
                    self.spare.push_front(part);
                }
                None => {
                    let block = self.blocks.back_mut().expect("the slot began in the last block");
                    let rest = std::mem::replace(&mut block.rest, part);
                    block.rest.unsplit(rest);
                }
            }
        }
        self.spare_parts = slot.parts;
    }

    /// The slot comes back with the batch in it: accepted.
    pub(super) fn accept_in_place(&mut self, mut slot: Slot, end: LogPoint, now: Moment) {
        let mut at = slot.start.position;
        for (part, rest) in slot.parts.drain(..) {
            let bytes = part.len() as u64;
            match rest {
                Some(rest) => {
                    let (segment, filled) = (slot.start.segment, part.freeze());
                    assert_eq!(at.0 % BLOCK, 0, "a staging block at {at}");
                    self.hold(StageBlock { segment, at, filled, rest });
                }
                None if bytes > 0 => {
                    let block = self.blocks.back_mut().expect("the slot began in the last block");
                    block.filled.try_join(part.freeze()).ok().expect("the slot follows the filled part");
                }
                None => {}
            }
            at = at.plus(bytes);
        }
        self.spare_parts = slot.parts;
        self.staged = end;
        self.ends.push_back((end, now));
    }

    pub(super) fn accept(&mut self, batch: Lease, start: LogPoint, end: LogPoint, now: Moment) -> u64 {
        if start.segment != self.staged.segment {
            assert_eq!(start.position, Position(0), "a new segment begins at its beginning");
        } else {
            assert_eq!(start.position, self.staged.position, "batches are staged one behind the other");
        }
        let (mut at, mut bytes) = (start.position, &batch[..]);
        while !bytes.is_empty() {
            let fits = self
                .blocks
                .back()
                .is_some_and(|b| b.segment == start.segment && b.end() == at && !b.rest.is_empty());
            if !fits {
                let memory =
                    self.spare.pop_front().expect("memory was asked for before the batch was accepted");
                self.hold(StageBlock::new(start.segment, at, memory));
            }
            let filled = self.blocks.back_mut().expect("pushed above").fill(bytes);
            bytes = &bytes[filled..];
            at = at.plus(filled as u64);
        }
        self.staged = end;
        self.ends.push_back((end, now));
        batch.len() as u64
    }

    pub(super) fn take_unit(&mut self, limit: LogPoint) -> Option<WriteUnit> {
        assert!(self.under_way.is_none(), "one unit is under way at a time");
        let &(first_end, accepted) = self.ends.front()?;
        if first_end.offset > limit.offset {
            return None;
        }
        let segment = first_end.segment;
        // Beyond that the rest waits.
        let limit = if limit.segment == segment { limit.position } else { Position(u64::MAX) };
        let written = if self.written.0 == segment { self.written.1 } else { Position(0) };
        // The staged end within this segment: the rest waits for a unit of its own.
        let last_end =
            self.ends.iter().rev().find(|(end, _)| end.segment == segment).expect("the first is one").0;
        let from = Position(written.0 / BLOCK * BLOCK);
        let mut writes: [Option<(Position, WriteData)>; 4] = [None, None, None, None];
        let (mut count, mut reached, mut copied_bytes) = (0, from, 0);
        // This block is on disk already, in part: it goes out by itself.
        let shared = (from < written).then(|| from.plus(BLOCK));
        let first = self.blocks.partition_point(|b| (b.segment, b.end()) <= (segment, from));
        for block in self.blocks.iter().skip(first).take_while(|b| b.segment == segment && b.at < limit) {
            let block_end = block.end().min(limit);
            let whole_end = Position(block_end.0 / BLOCK * BLOCK);
            if count == writes.len() - 1 {
                break;
            }
            if let Some(behind) = shared
                && reached < behind
                && behind < whole_end
            {
                writes[count] = Some((reached, WriteData::One(block.slice(reached, behind))));
                count += 1;
                reached = behind;
                if count == writes.len() - 1 {
                    break;
                }
            }
            if reached < whole_end {
                writes[count] = Some((reached, WriteData::One(block.slice(reached, whole_end))));
                count += 1;
                reached = whole_end;
            }
            if block_end > whole_end {
                // The block that the segment's bytes end in, as a copy.
                let copy = self.last_block.take().expect("asked for before any batch was accepted");
                copied_bytes = block_end.since(whole_end);
                writes[count] =
                    Some((whole_end, WriteData::One(block_copy(copy, &block.slice(whole_end, block_end)))));
                reached = block_end;
                break;
            }
        }
        let mut end = None;
        while let Some(&(batch_end, _)) = self.ends.front()
            && batch_end.segment == segment
            && batch_end.position <= reached
        {
            end = Some(batch_end);
            self.ends.pop_front();
        }
        assert!(reached <= last_end.position, "wrote up to {reached}, staged up to {}", last_end.position);
        self.under_way = Some((segment, reached));
        Some(WriteUnit { segment, writes, end, accepted, copied_bytes })
    }

    pub(super) fn finish_unit(&mut self, unit: WriteUnit) {
        // None is, where the partition was closed meanwhile and this stage took the place of the one that gave the unit.
        if let Some(reached) = self.under_way.take() {
            self.written = reached;
        }
        if self.last_block.is_some() {
            return;
        }
        let last = unit.writes.into_iter().flatten().last();
        if let Some((_, WriteData::One(lease))) = last {
            self.last_block =
                lease.try_into_mut().ok().map(Some).expect("the copy of the last block is ours alone");
        }
    }

    pub(super) fn memory(
        &self,
        segment: Offset,
        from: Position,
        to: Position,
        take: &mut dyn FnMut(Lease),
    ) -> Position {
        let first = self.blocks.partition_point(|b| (b.segment, b.end()) <= (segment, from));
        let mut began = to;
        let mut at = from;
        for block in self.blocks.iter().skip(first) {
            if block.segment != segment || block.at >= to {
                break;
            }
            let (start, end) = (at.max(block.at), to.min(block.end()));
            if start < end {
                began = began.min(start);
                take(block.slice(start, end));
                at = end;
            }
        }
        began
    }

    /// The block that a segment's written bytes end in will be written again, as long as staging holds it. It does not
    /// after opening: until an append has read it back nothing is under way, and the file is all there is.
    pub(super) fn file_limit(&self, segment: Offset) -> Position {
        let (active, written) = self.written;
        match segment.cmp(&active) {
            Ordering::Less => Position(u64::MAX),
            Ordering::Equal if self.is_left_behind(segment) => Position(u64::MAX),
            Ordering::Equal if self.holds(segment) => Position(written.0 / BLOCK * BLOCK),
            Ordering::Equal => written,
            Ordering::Greater => Position(0),
        }
    }

    /// Whether all of a segment is written, and what is staged is of a later one.
    fn is_left_behind(&self, segment: Offset) -> bool {
        self.staged.segment > segment
            && self.ends.front().is_none_or(|(end, _)| end.segment > segment)
            && self.under_way.is_none_or(|(under_way, _)| under_way > segment)
    }

    fn holds(&self, segment: Offset) -> bool {
        let first = self.blocks.partition_point(|b| b.segment < segment);
        self.blocks.get(first).is_some_and(|b| b.segment == segment)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn evict_oldest(&mut self) -> bool {
        let Some(front) = self.blocks.front() else { return false };
        // By the same rule that readers go by: what is not in memory, they look for in the file. And the last block holds
        // the log end: without it the next append would have to read it back.
        let evict = front.end() <= self.file_limit(front.segment) && self.blocks.len() > 1;
        if evict && let Some(block) = self.blocks.pop_front() {
            self.held_bytes -= block.filled.block_bytes();
        }
        evict
    }
}

fn block_copy(mut copy: LeaseMut, bytes: &[u8]) -> Lease {
    copy[..bytes.len()].copy_from_slice(bytes);
    copy[bytes.len()..].fill(0);
    copy.freeze()
}

#[cfg(test)]
mod tests;
