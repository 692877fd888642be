//! A round: what partitions have is gathered into a unit, written, flushed, and told.
//!
//! Two may be under way: while one is being flushed the next is gathered and written. They are told in their order, so that
//! nobody is told before what came before it in the journal is safe as well.

use std::future::poll_fn;
use std::task::Poll;

use super::super::config::Mutant;
use super::super::partition::Partition;
use super::super::reach::Journaled;
use super::super::shard::Common;
use super::super::stages::Stage;
use super::Journal;
use super::files::{find_file, lease, write};
use crate::log::{Frame, FrameKind, LogPoint, UnitBuilder, UnitStamp};
use crate::sys::{File, LeaseMut};
use crate::types::{Offset, Position};

/// One partition's part in a round.
struct Part {
    partition: Partition,
    generation: u64,
    /// What of it is in the journal when the round is over; nothing new where it only makes earlier frames void.
    journaled: Option<Journaled>,
}

impl Part {
    fn is_current(&self) -> bool {
        self.partition.generation() == self.generation
    }

    fn note_written(&self) {
        if let (Some(journaled), true) = (self.journaled, self.is_current()) {
            self.partition.0.reach.borrow_mut().note_journal_written(journaled);
            self.partition.follow_reach();
        }
    }

    fn note_durable(self) {
        match self.journaled {
            Some(journaled) if self.is_current() => {
                self.partition.0.reach.borrow_mut().note_journal_durable(journaled);
                self.partition.follow_reach();
            }
            Some(_) => {}
            None => {
                self.partition.0.void_wanted.set(false);
                self.partition.wake_everybody();
            }
        }
    }
}

/// Makes one round after the other.
pub(super) async fn serve(common: &Common) {
    let journal = &common.journal;
    let mut round = Round::default();
    loop {
        poll_fn(|cx| {
            if journal.stopping.get() || journal.is_round_due() {
                return Poll::Ready(());
            }
            journal.lanes.add(cx.waker());
            Poll::Pending
        })
        .await;
        if journal.stopping.get() {
            return;
        }
        journal.rounds.set(journal.rounds.get() + 1);
        if let Err(why) = round.make(common).await {
            journal.give_up(common, &why);
            round.parts.drain(..).for_each(|part| part.partition.go_direct());
        }
        journal.rounds.set(journal.rounds.get() - 1);
        journal.lanes.wake_all();
    }
}

/// A unit that is to be written.
struct Unit {
    file: File,
    /// Which use of it.
    number: u64,
    at: u64,
    sequence: u64,
    /// Whole blocks.
    whole: usize,
    frames: u64,
    /// Bytes of batches.
    bytes: u64,
}

/// What is used again from round to round.
#[derive(Default)]
struct Round {
    buffer: Option<LeaseMut>,
    parts: Vec<Part>,
}

impl Round {
    async fn make(&mut self, common: &Common) -> Result<(), String> {
        let journal = &common.journal;
        journal.gathering.set(true);
        let unit = self.gather(common).await;
        journal.gathering.set(false);
        journal.lanes.wake_all();
        let Some(unit) = unit? else { return Ok(()) };
        let submitted = common.ring.now();
        if common.config.mutant == Mutant::EarlyWatermark {
            self.parts.iter().for_each(Part::note_written);
        }
        let memory = self.buffer.take().expect("a unit was gathered in it").freeze();
        let done = write(common, &unit.file, unit.at, memory.slice(0..unit.whole)).await;
        self.buffer = memory.try_into_mut().ok();
        assert!(self.buffer.is_some(), "a unit's memory is the journal's alone once it is written");
        journal.files.borrow_mut().end_write(unit.number);
        done.map_err(|e| format!("writing {} bytes at position {}: {e}", unit.whole, unit.at))?;
        let written = common.ring.now();
        common.stages.note(Stage::Write, written.nanos_since(submitted));
        turn(journal, || journal.written.get() + 1 == unit.sequence).await?;
        journal.written.set(unit.sequence);
        self.parts.iter().for_each(Part::note_written);
        journal.lanes.wake_all();
        if common.config.mutant != Mutant::SkipFlush
            && let Err(error) = common.ring.sync(&unit.file).await
        {
            let why = format!("journal of shard {}: flush: {error}", common.id);
            common.fail_all(&why);
            return Err(why);
        }
        turn(journal, || journal.flushed.get() + 1 == unit.sequence).await?;
        journal.flushed.set(unit.sequence);
        common.stages.note(Stage::Flush, common.ring.now().nanos_since(written));
        journal.count(|c| {
            c.rounds += 1;
            c.frames += unit.frames;
            c.bytes += unit.bytes;
            c.written_bytes += unit.whole as u64;
        });
        self.parts.drain(..).for_each(Part::note_durable);
        Ok(())
    }

    /// Puts together what partitions have, until the unit is full, in the buffer. `None` when it is nothing, after all.
    async fn gather(&mut self, common: &Common) -> Result<Option<Unit>, String> {
        let journal = &common.journal;
        let Some((file, at)) = find_file(common).await? else {
            journal.count(|c| c.full_rounds += 1);
            journal.send_all_direct();
            journal.leave_out_voids();
            return Ok(None);
        };
        let kept = self.buffer.take();
        let memory = match kept {
            Some(memory) => Ok(memory),
            None => lease(common, common.config.journal.unit_bytes()).await,
        };
        let mut memory = match memory {
            Ok(memory) => memory,
            Err(error) => {
                tracing::warn!(
                    "journal of shard {}: {error}; appends go to their segments directly",
                    common.id
                );
                journal.count(|c| c.full_rounds += 1);
                journal.send_all_direct();
                return Ok(None);
            }
        };
        let sequence = journal.begun.get() + 1;
        let number = journal.files.borrow().current_number();
        let mut unit = UnitBuilder::new(UnitStamp { start: common.node.journals.start, number, sequence });
        self.add_voids(common, &mut unit, &mut memory);
        let bytes = self.add_batches(common, &mut unit, &mut memory);
        let frames = u64::from(unit.frames());
        if frames == 0 {
            self.buffer = Some(memory);
            return Ok(None);
        }
        let whole = unit.seal(&mut memory);
        self.buffer = Some(memory);
        journal.begun.set(sequence);
        if journal.files.borrow_mut().begin_write(whole, common.config.journal.file_bytes) {
            journal.maker.wake_all();
        }
        Ok(Some(Unit { file, number, at, sequence, whole, frames, bytes }))
    }

    fn add_voids(&mut self, common: &Common, unit: &mut UnitBuilder, memory: &mut LeaseMut) {
        let capacity = memory.len();
        while unit.fits(0, capacity)
            && let Some(partition) = { common.journal.voids.borrow_mut().pop_front() }
        {
            let at = partition.marks().log_end;
            unit.begin(partition.frame(FrameKind::Void, at, at, at.offset));
            unit.end(memory);
            let generation = partition.generation();
            self.parts.push(Part { partition, generation, journaled: None });
        }
    }

    /// How many bytes of batches.
    fn add_batches(&mut self, common: &Common, unit: &mut UnitBuilder, memory: &mut LeaseMut) -> u64 {
        let (journal, limits) = (&common.journal, &common.config.journal);
        let (capacity, mut bytes) = (memory.len(), 0);
        journal.pending_bytes.set(0);
        while let Some(partition) = { journal.pending.borrow_mut().pop_front() } {
            partition.0.enlisted.set(false);
            if partition.failure().is_some() {
                continue;
            }
            let mut journaled = None;
            while let Some((from, end)) = partition.next_frame() {
                let length = end.position.since(from.position);
                if length > limits.round_bytes_max {
                    partition.go_direct();
                    journal.count(|c| c.direct_rounds += 1);
                    break;
                }
                if !unit.fits(length, capacity) {
                    partition.0.enlisted.set(true);
                    break;
                }
                let after = partition.0.reach.borrow().direct().offset;
                unit.begin(partition.frame(FrameKind::Batches, from, end, after));
                let staged = partition.0.staged.borrow();
                let began = staged.memory(from.segment, from.position, end.position, &mut |lease| {
                    unit.push(memory, &lease);
                });
                assert_eq!(began, from.position, "{partition}: what no segment holds is in memory");
                unit.end(memory);
                bytes += length;
                journaled = Some(partition.0.reach.borrow_mut().frame(end));
            }
            if let Some(journaled) = journaled {
                journal.files.borrow_mut().note(&partition, journaled.end.offset);
                let generation = partition.generation();
                let part = Part { partition: partition.clone(), generation, journaled: Some(journaled) };
                self.parts.push(part);
            }
            if partition.0.enlisted.get() {
                // The rest is for the next round, and more than enough for it.
                journal.pending.borrow_mut().push_front(partition);
                journal.pending_bytes.set(super::OVERLAP_BYTES);
                break;
            }
        }
        bytes
    }
}

/// Waits until it is this round's turn.
async fn turn(journal: &Journal, comes: impl Fn() -> bool) -> Result<(), String> {
    poll_fn(|cx| {
        if journal.broken.get() {
            return Poll::Ready(Err("the round before failed".to_owned()));
        }
        if comes() {
            return Poll::Ready(Ok(()));
        }
        journal.lanes.add(cx.waker());
        Poll::Pending
    })
    .await
}

impl Partition {
    fn frame(&self, kind: FrameKind, from: LogPoint, end: LogPoint, after: Offset) -> Frame {
        let bytes = end.position.since(from.position) as u32;
        Frame { kind, partition: self.0.id, epoch: self.epoch(), from, next_offset: end.offset, after, bytes }
    }

    /// What the journal is to be given next: within one segment, or nothing.
    fn next_frame(&self) -> Option<(LogPoint, LogPoint)> {
        let log = self.0.log.borrow();
        let mut from = self.0.reach.borrow().unframed();
        let end = log.log_end();
        // Nearly always.
        if from.segment == end.segment {
            return (from.position < end.position).then_some((from, end));
        }
        loop {
            let segment = log.segment(from.segment);
            let next = log.segments().iter().find(|s| s.base > from.segment);
            match (segment, next) {
                // Behind the end of a sealed segment, or of one that retention took, the next one begins.
                (Some(segment), Some(next)) if from.position < segment.end => {
                    let end = LogPoint { offset: next.base, segment: segment.base, position: segment.end };
                    return Some((from, end));
                }
                (_, Some(next)) => {
                    from = LogPoint { offset: next.base, segment: next.base, position: Position(0) };
                }
                (Some(_), None) => return (from.position < end.position).then_some((from, end)),
                (None, None) => return None,
            }
        }
    }
}
