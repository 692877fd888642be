//! How far a partition's batches have come: into the journal, into their segment, and how safely each.
//!
//! A batch goes one of two ways. *Direct* ones are acknowledged once their segment holds them; since a segment is written as
//! a prefix, everything before them goes there with them. The others are acknowledged once the journal holds them, and are
//! *destaged* to their segment some time later. A journaled batch is safe only if all before it are: what the direct way
//! still has under way below it must arrive first.

use crate::log::LogPoint;
use crate::types::{Offset, Position};

/// One partition's. All points are batch boundaries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// The segment's file holds what lies below.
    stored: LogPoint,
    /// The same, flushed.
    stored_durable: LogPoint,
    /// What lies below gets there directly, but for what the journal took before that was so.
    direct: LogPoint,
    /// The journal was given what lies below (and at or above `direct`).
    framed: LogPoint,
    /// What the journal wrote last, and flushed last.
    written: Journaled,
    durable: Journaled,
    /// Up to where the segment is wanted, for nobody's acknowledgement.
    destage: Offset,
    destage_durable: Offset,
}

/// What the journal holds of a partition: all below `end`, if the segment holds all below `after`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Journaled {
    pub end: LogPoint,
    pub after: Offset,
}

impl Reach {
    /// Of a log that lies in its segments.
    pub(super) fn new(end: LogPoint) -> Reach {
        let journaled = Journaled { end, after: end.offset };
        Reach {
            stored: end,
            stored_durable: end,
            direct: end,
            framed: end,
            written: journaled,
            durable: journaled,
            destage: end.offset,
            destage_durable: end.offset,
        }
    }

    pub(super) fn stored(&self) -> LogPoint {
        self.stored
    }

    pub(super) fn stored_durable(&self) -> LogPoint {
        self.stored_durable
    }

    /// All up to `end`, the log end, goes directly.
    pub(super) fn go_direct(&mut self, end: LogPoint) {
        self.direct = self.direct.max(end);
    }

    /// From where on the journal has not been given anything, nor will the direct way take it.
    pub(super) fn unframed(&self) -> LogPoint {
        self.framed.max(self.direct)
    }

    /// What lies below (and at or above [`Reach::direct`]) the journal was given.
    pub(super) fn framed(&self) -> LogPoint {
        self.framed
    }

    /// The journal is given what lies from [`Reach::unframed`] to `end`.
    pub(super) fn frame(&mut self, end: LogPoint) -> Journaled {
        self.framed = end;
        Journaled { end, after: self.direct.offset }
    }

    /// What lies below is not in the journal unless by chance.
    pub(super) fn direct(&self) -> LogPoint {
        self.direct
    }

    pub(super) fn note_journal_written(&mut self, journaled: Journaled) {
        self.written = journaled;
    }

    pub(super) fn note_journal_durable(&mut self, journaled: Journaled) {
        self.durable = journaled;
    }

    pub(super) fn note_stored(&mut self, end: LogPoint) {
        self.stored = self.stored.max(end);
    }

    pub(super) fn note_stored_durable(&mut self, end: LogPoint) {
        self.stored_durable = self.stored_durable.max(end);
    }

    /// Up to where all is written, here or there.
    pub(super) fn written(&self) -> LogPoint {
        // What is durable is written, also where a later round still waits for the direct way.
        further(self.stored, &self.written).max(self.durable())
    }

    /// Up to where all survives power loss.
    pub(super) fn durable(&self) -> LogPoint {
        further(self.stored_durable, &self.durable)
    }

    /// The segment shall have all below `end` by and by; flushed, too, if `durable`.
    pub(super) fn want_stored(&mut self, end: Offset, durable: bool) {
        self.destage = self.destage.max(end);
        if durable {
            self.destage_durable = self.destage_durable.max(end);
        }
    }

    /// The segment shall have, flushed, all that the journal was given.
    pub(super) fn destage_all(&mut self) {
        let end = self.framed.max(self.direct).offset;
        self.want_stored(end, true);
    }

    /// Up to where the segment is to be written now, if it is, where `end` is the log end and as much as `destage_bytes`
    /// may wait. What the journal is yet to be given waits for that.
    pub(super) fn store_limit(&self, end: LogPoint, destage_bytes: u64) -> Option<LogPoint> {
        let limit = self.direct.max(self.framed);
        if self.stored.offset >= limit.offset {
            return None;
        }
        let began = match self.stored.offset == end.segment {
            true => Position(0),
            false => self.stored.position,
        };
        let same = self.stored.segment == end.segment || self.stored.offset == end.segment;
        let waits = same && end.position.since(began) < destage_bytes;
        let due = self.stored.offset < self.direct.offset || self.stored.offset < self.destage || !waits;
        due.then_some(limit)
    }

    /// Whether the segment is to be flushed for the sake of what was destaged.
    pub(super) fn is_flush_wanted(&self) -> bool {
        self.stored_durable.offset < self.destage_durable && self.stored_durable.offset < self.stored.offset
    }

    /// Nothing of the partition is anywhere but in its segments, for good.
    pub(super) fn is_settled(&self, end: LogPoint) -> bool {
        self.stored_durable.offset == end.offset
    }
}

fn further(stored: LogPoint, journaled: &Journaled) -> LogPoint {
    match stored.offset >= journaled.after {
        true => stored.max(journaled.end),
        false => stored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn at(offset: i64) -> LogPoint {
        LogPoint { offset: Offset(offset), segment: Offset(0), position: Position(offset as u64 * 100) }
    }

    #[test]
    fn a_journaled_batch_waits_for_the_direct_one_before_it() {
        let mut reach = Reach::new(at(0));
        let first = reach.frame(at(5));
        reach.note_journal_written(first);
        reach.note_journal_durable(first);
        assert_eq!((reach.written(), reach.durable()), (at(5), at(5)));
        reach.go_direct(at(8));
        assert_eq!(reach.unframed(), at(8));
        let second = reach.frame(at(9));
        reach.note_journal_written(second);
        reach.note_journal_durable(second);
        assert!(reach.written() < at(9) && reach.store_limit(at(9), 1 << 20) == Some(at(9)));
        // The direct write carries what was journaled before it.
        reach.note_stored(at(8));
        assert_eq!((reach.written(), reach.durable()), (at(9), at(0)), "the flush is still to come");
        reach.note_stored_durable(at(8));
        assert_eq!(reach.durable(), at(9));
    }

    #[test]
    fn destaging_begins_when_enough_waits_or_somebody_wants_it() {
        let mut reach = Reach::new(at(0));
        reach.frame(at(9));
        let due = |reach: &Reach, bytes| reach.store_limit(at(9), bytes);
        assert_eq!((due(&reach, 901), due(&reach, 900)), (None, Some(at(9))));
        reach.want_stored(Offset(9), true);
        assert!(due(&reach, 1 << 20).is_some() && !reach.is_flush_wanted());
        reach.note_stored(at(9));
        assert!(due(&reach, 1 << 20).is_none() && reach.is_flush_wanted() && !reach.is_settled(at(9)));
        reach.note_stored_durable(at(9));
        assert!(!reach.is_flush_wanted() && reach.is_settled(at(9)));
    }
}
