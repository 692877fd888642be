//! Leader epochs: which reign assigned which offsets.
//!
//! Identity is (offset, epoch). A consumer or replica that saw records which are gone learns of it by asking
//! where its epoch ended (`OffsetForLeaderEpoch`). The rules and the text form (`leader-epoch-checkpoint`) are
//! Kafka's (`LeaderEpochFileCache.java`).

use super::checkpoint::{CheckpointError, Lines};
use crate::types::{Epoch, Offset};

/// Who assigns the epochs of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochOwner {
    /// This engine: it begins a new epoch on every unclean open and in a truncation.
    Local,
    /// Somebody else (replication, a mirror): batches bring their epochs along.
    Foreign,
}

/// Where each epoch began; both columns strictly increase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochCache {
    starts: Vec<(Epoch, Offset)>,
}

/// What Kafka answers when it knows nothing of an epoch.
pub const OFFSET_UNKNOWN: Offset = Offset(-1);

impl EpochCache {
    /// No epoch yet.
    #[must_use]
    pub fn new() -> EpochCache {
        EpochCache::default()
    }

    /// Begins `epoch` at `start`. Epochs that began there and got no record vanish; the running epoch again
    /// is no news, and so is none at all (-1).
    ///
    /// # Panics
    /// When the epoch is older than the latest: the caller checks.
    pub fn assign(&mut self, epoch: Epoch, start: Offset) {
        if epoch == Epoch::NONE || Some(epoch) == self.latest() {
            return;
        }
        assert!(self.latest() < Some(epoch), "epoch {epoch} after {:?}", self.latest());
        self.truncate_from_end(start);
        self.starts.push((epoch, start));
    }

    /// The newest epoch.
    #[must_use]
    pub fn latest(&self) -> Option<Epoch> {
        self.starts.last().map(|entry| entry.0)
    }

    /// All epochs with their start offsets, oldest first.
    #[must_use]
    pub fn starts(&self) -> &[(Epoch, Offset)] {
        &self.starts
    }

    /// The epoch in which `offset` was or would be assigned.
    #[must_use]
    pub fn epoch_at(&self, offset: Offset) -> Epoch {
        let count = self.starts.partition_point(|entry| entry.1 <= offset);
        count.checked_sub(1).map_or(Epoch::NONE, |last| self.starts[last].0)
    }

    /// The newest epoch that `offset` can have been assigned in; `None` when nothing is known of any.
    #[must_use]
    pub fn newest_at(&self, offset: Offset) -> Option<Epoch> {
        // Of what lies before the first that is known, the beginning may have been forgotten with what was removed.
        self.starts.first().map(|first| self.epoch_at(offset).max(first.0))
    }

    /// Where `epoch` ended, as Kafka's OffsetForLeaderEpoch tells it: the largest known epoch up to the one
    /// asked for, and where the next one began (for the latest: the log end). (-1, -1) for an epoch from the
    /// future or for none.
    ///
    /// Epochs 2 from 10, 5 from 31, log end 101: epoch 2 ended at 31, so did 3 and 4 (answered as 2), 5 ends at
    /// 101, 1 ended at 10, 6 is unknown.
    #[must_use]
    pub fn end_offset_for(&self, epoch: Epoch, log_end: Offset) -> (Epoch, Offset) {
        if epoch == Epoch::NONE {
            return (Epoch::NONE, OFFSET_UNKNOWN);
        }
        if Some(epoch) == self.latest() {
            return (epoch, log_end);
        }
        let next = self.starts.partition_point(|entry| entry.0 <= epoch);
        let Some(&(_, end)) = self.starts.get(next) else { return (Epoch::NONE, OFFSET_UNKNOWN) };
        let known = next.checked_sub(1).map_or(epoch, |floor| self.starts[floor].0);
        (known, end)
    }

    /// Forgets the epochs that began at or after `offset`.
    pub fn truncate_from_end(&mut self, offset: Offset) {
        self.starts.truncate(self.starts.partition_point(|entry| entry.1 < offset));
    }

    /// Forgets the epochs that ended at or before `offset`; the one that holds it begins there now.
    pub fn truncate_from_start(&mut self, offset: Offset) {
        let begun = self.starts.partition_point(|entry| entry.1 <= offset);
        if let Some(holding) = begun.checked_sub(1) {
            self.starts[holding].1 = offset;
            self.starts.drain(..holding);
        }
    }

    /// Kafka's `leader-epoch-checkpoint`: version 0, the count, then lines of "epoch start".
    #[must_use]
    pub fn format(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("0\n{}\n", self.starts.len());
        for (epoch, start) in &self.starts {
            writeln!(text, "{epoch} {start}").expect("a String takes everything");
        }
        text
    }

    /// Reads what [`EpochCache::format`] or Kafka wrote.
    ///
    /// # Errors
    /// Another version, another count of lines, fields that are no numbers, epochs or offsets that do not increase.
    pub fn parse(text: &str) -> Result<EpochCache, CheckpointError> {
        let mut lines = Lines::counted(text)?;
        let mut starts: Vec<(Epoch, Offset)> = Vec::new();
        while let Some(mut line) = lines.entry()? {
            let (epoch, start) = (Epoch(line.number("epoch")?), Offset(line.number("start offset")?));
            line.end()?;
            if epoch.0 < 0 || start.0 < 0 {
                return Err(line.error("epoch and start offset are zero or more"));
            }
            if starts.last().is_some_and(|before| before.0 >= epoch || before.1 >= start) {
                return Err(line.error("epoch and start offset are larger than in the line before"));
            }
            starts.push((epoch, start));
        }
        Ok(EpochCache { starts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worked() -> EpochCache {
        let mut cache = EpochCache::new();
        cache.assign(Epoch(2), Offset(10));
        cache.assign(Epoch(5), Offset(31));
        cache
    }

    #[test]
    fn where_an_epoch_ended() {
        let cache = worked();
        let end = |epoch| cache.end_offset_for(Epoch(epoch), Offset(101));
        assert_eq!(end(2), (Epoch(2), Offset(31)));
        assert_eq!(end(4), (Epoch(2), Offset(31)));
        assert_eq!(end(5), (Epoch(5), Offset(101)));
        assert_eq!(end(1), (Epoch(1), Offset(10)));
        assert_eq!(end(6), (Epoch::NONE, OFFSET_UNKNOWN));
        assert_eq!(end(-1), (Epoch::NONE, OFFSET_UNKNOWN));
        assert_eq!(EpochCache::new().end_offset_for(Epoch(0), Offset(0)), (Epoch::NONE, OFFSET_UNKNOWN));
        assert_eq!((cache.epoch_at(Offset(30)), cache.epoch_at(Offset(9))), (Epoch(2), Epoch::NONE));
    }

    #[test]
    fn an_epoch_without_records_vanishes_when_the_next_begins() {
        let mut cache = worked();
        cache.assign(Epoch(7), Offset(31));
        assert_eq!(cache.starts(), [(Epoch(2), Offset(10)), (Epoch(7), Offset(31))]);
    }

    #[test]
    fn truncation_at_both_ends() {
        let mut cache = worked();
        cache.truncate_from_start(Offset(20));
        assert_eq!(cache.starts(), [(Epoch(2), Offset(20)), (Epoch(5), Offset(31))]);
        cache.truncate_from_end(Offset(31));
        assert_eq!(cache.starts(), [(Epoch(2), Offset(20))]);
        cache.truncate_from_start(Offset(50));
        assert_eq!(cache.starts(), [(Epoch(2), Offset(50))]);
    }

    #[test]
    fn the_text_is_kafkas() {
        assert_eq!(worked().format(), "0\n2\n2 10\n5 31\n");
        assert_eq!(EpochCache::parse("0\n2\n2 10\n5 31\n"), Ok(worked()));
        for bad in [
            "",
            "1\n0\n",
            "0\n3\n2 10\n5 31\n",
            "0\n1\n2 10\n5 31\n",
            "0\n2\n5 31\n2 40\n",
            "0\n1\n2 x\n",
            "0\n1\n2 10 4\n",
            "0\n1\n-1 10\n",
            "0\n2\n2 10\n3 10\n",
            "0\n18446744073709551615\n",
        ] {
            assert!(EpochCache::parse(bad).is_err(), "{bad:?}");
        }
    }
}
