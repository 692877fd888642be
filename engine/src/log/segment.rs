//! One data file of a partition, as numbers: what lies in it, what its indexes say, when it has to be rolled and
//! how much room should be prepared. Nobody touches a file here.

use super::batch::BatchHeader;
use super::config::LogConfig;
use super::manifest::SegmentState;
use super::offset_index::OffsetIndex;
use super::time_index::TimeIndex;
use crate::types::{Offset, Position, Timestamp};

/// The first step in which room is prepared ahead of appends; each further one doubles.
pub const PREPARATION_STEP_MIN: u64 = 64 * 1024;
/// The largest step of preparation.
pub const PREPARATION_STEP_MAX: u64 = 64 * 1024 * 1024;
/// Files are prepared in whole blocks of this size.
pub const PREPARATION_BLOCK: u64 = 4096;

/// One segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its name: no batch in it begins before this offset.
    pub base: Offset,
    /// The offset after its last batch; its base while it is empty.
    pub next_offset: Offset,
    /// The position after its last batch.
    pub end: Position,
    /// From offset to position.
    pub index: OffsetIndex,
    /// From time to offset.
    pub time_index: TimeIndex,
    /// No batch in it carries a later timestamp.
    pub largest_timestamp: Timestamp,
    /// When its first batch was appended, by the clock of this machine, if that is known.
    pub first_append: Option<Timestamp>,
    /// Up to where its file has its size already; past `end` it reads as zeros.
    pub prepared: Position,
    /// Whether appends have ended.
    pub sealed: bool,
    /// An offset at or before the first batch that carries `largest_timestamp`.
    largest_offset: Offset,
    preparation_step: u64,
    /// What comes last was lost.
    ends_in_loss: bool,
    /// See [`Segment::unloaded`].
    unloaded: Option<(Offset, Position)>,
}

impl Segment {
    /// An empty segment, about to be appended to.
    #[must_use]
    pub fn new(base: Offset, config: &LogConfig) -> Segment {
        Segment::found(
            base,
            base,
            Position(0),
            OffsetIndex::new(base, config.index_interval_bytes),
            TimeIndex::new(base),
        )
    }

    /// A segment that exists: offsets up to `next_offset`, bytes up to `end`, indexes decoded from their files.
    /// Its largest timestamp is the time index's last, which is true after a clean seal; raise
    /// [`Segment::largest_timestamp`] if a later one is known.
    #[must_use]
    pub fn found(
        base: Offset,
        next_offset: Offset,
        end: Position,
        index: OffsetIndex,
        time_index: TimeIndex,
    ) -> Segment {
        assert!(base <= next_offset, "segment {base} ends at offset {next_offset}");
        let (largest_timestamp, largest_offset) = time_index.last().unwrap_or((Timestamp::NONE, base));
        Segment {
            base,
            next_offset,
            end,
            index,
            time_index,
            largest_timestamp,
            first_append: None,
            prepared: end,
            sealed: false,
            largest_offset,
            preparation_step: 0,
            ends_in_loss: false,
            unloaded: None,
        }
    }

    /// Takes note of a batch at `position`: at the end, or further on where rot is fenced in between.
    pub fn note_batch(&mut self, header: &BatchHeader, position: Position) {
        let (base, last) = (header.base_offset, header.last_offset());
        assert!(!self.sealed, "segment {} is sealed", self.base);
        assert!(
            position >= self.end,
            "batch at {position} of segment {}, which ends at {}",
            self.base,
            self.end
        );
        assert!(
            base >= self.next_offset,
            "batch {base} in segment {}, next is {}",
            self.base,
            self.next_offset
        );
        if header.max_timestamp > self.largest_timestamp {
            self.largest_timestamp = header.max_timestamp;
            self.largest_offset = last;
        }
        if self.index.note_batch(base, last, position, header.bytes) {
            self.time_index.note(self.largest_timestamp, self.largest_offset);
        }
        self.end = position.plus(u64::from(header.bytes));
        self.next_offset = last.plus(1);
        self.prepared = self.prepared.max(self.end);
        self.ends_in_loss = false;
    }

    /// Takes note that everything up to `offset` and `position` is lost: fenced, and followed by nothing good.
    pub fn note_lost(&mut self, offset: Offset, position: Position) {
        assert!(
            offset >= self.next_offset && position >= self.end,
            "lost up to {offset}, {position}: {self:?}"
        );
        self.next_offset = offset;
        self.end = position;
        self.prepared = self.prepared.max(position);
        self.ends_in_loss = true;
    }

    /// Whether a batch must go to a new segment: size, age, an offset that Kafka's indexes cannot hold, or a loss just
    /// before it: nothing in the segment would bear witness of its offset, but the name of the next one does. A
    /// segment takes its first batch whatever its size.
    #[must_use]
    pub fn should_roll(&self, config: &LogConfig, bytes: u32, last_offset: Offset, now: Timestamp) -> bool {
        let old = match (config.segment_age_ms_max, self.first_append) {
            (Some(age_max), Some(first)) => now.0.saturating_sub(first.0) >= age_max,
            _ => false,
        };
        !self.is_empty() && (old || self.ends_in_loss || !self.fits(config, bytes, last_offset))
    }

    /// Whether a batch may be appended here at all.
    #[must_use]
    pub fn fits(&self, config: &LogConfig, bytes: u32, last_offset: Offset) -> bool {
        let end = self.end.0 + u64::from(bytes);
        let size_fits = self.is_empty() || end <= config.segment_bytes_max.min(i32::MAX as u64);
        size_fits && last_offset.since(self.base) <= i64::from(i32::MAX)
    }

    /// Whether nothing lies in it, nor ever did: where all was lost no byte lies in it, but a batch at its position 0 would
    /// begin above its base, and the next start could not tell that from rot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == Position(0) && !self.ends_in_loss
    }

    /// Up to where the file should be prepared next, given that bytes up to `needed` are going to be written;
    /// `None` while more than half of the last step is left. Never beyond the largest segment, in whole blocks,
    /// but for a batch that needs it.
    ///
    /// 64 KiB, then 128 KiB more, then 256 KiB, up to 64 MiB at a time: a new segment is prepared to 65,536; when
    /// 32,768 bytes are left, to 196,608; when 65,536 are left, to 458,752.
    #[must_use]
    pub fn next_preparation(&self, config: &LogConfig, needed: Position) -> Option<Position> {
        let needed = needed.max(self.end);
        let left = self.prepared.0.saturating_sub(needed.0);
        if needed <= self.prepared && self.preparation_step > 0 && left >= self.preparation_step / 2 {
            return None;
        }
        let limit = config.segment_bytes_max.max(needed.0).next_multiple_of(PREPARATION_BLOCK);
        let next =
            (self.prepared.0 + self.next_step()).max(needed.0).next_multiple_of(PREPARATION_BLOCK).min(limit);
        (next > self.prepared.0).then_some(Position(next))
    }

    /// The file has been prepared up to `position`.
    pub fn set_prepared(&mut self, position: Position) {
        assert!(position >= self.end, "segment {} ends at {}, prepared to {position}", self.base, self.end);
        if position > self.prepared {
            self.preparation_step = self.next_step();
        }
        self.prepared = position;
    }

    /// Ends the appends: the time index gets its last word, spare memory goes back.
    pub fn seal(&mut self) {
        assert!(!self.sealed, "segment {} is sealed already", self.base);
        if !self.is_empty() {
            self.time_index.note(self.largest_timestamp, self.largest_offset);
        }
        self.index.shrink();
        self.time_index.shrink();
        self.sealed = true;
    }

    /// Makes it ready for appends (again).
    pub fn unseal(&mut self) {
        self.sealed = false;
    }

    /// A segment as a manifest has it. Its indexes are in their files, or to be made again.
    #[must_use]
    pub fn recorded(state: &SegmentState, config: &LogConfig) -> Segment {
        let mut segment = Segment::new(state.base, config);
        (segment.next_offset, segment.end, segment.prepared) = (state.next_offset, state.end, state.end);
        (segment.largest_timestamp, segment.largest_offset) = (state.largest_timestamp, state.largest_offset);
        segment.let_go_of_indexes();
        segment
    }

    /// What a manifest is told of it as far as `next_offset` and `end`, a batch boundary.
    #[must_use]
    pub fn state(&self, next_offset: Offset, end: Position, indexed: bool) -> SegmentState {
        SegmentState {
            base: self.base,
            next_offset,
            end,
            largest_timestamp: self.largest_timestamp,
            largest_offset: self.largest_offset.clamp(self.base, next_offset),
            indexed,
        }
    }

    /// Keeps nothing of its indexes in memory.
    pub fn let_go_of_indexes(&mut self) {
        let (base, interval) = (self.base, self.index.interval_bytes());
        self.index = OffsetIndex::behind(base, interval, self.end.0);
        self.time_index = TimeIndex::new(base);
        // The first batch is never entered: there is nothing to know of a segment that is no longer than that.
        self.unloaded = (self.end.0 > u64::from(interval)).then_some((self.next_offset, self.end));
    }

    /// Whether an entry of its time index, a time and an offset, does not go beyond what it knows to be its largest.
    #[must_use]
    pub fn bounds(&self, (timestamp, offset): (Timestamp, Offset)) -> bool {
        timestamp <= self.largest_timestamp && offset <= self.largest_offset
    }

    /// What its indexes in memory do not know of: all below an offset and a position.
    #[must_use]
    pub fn unloaded(&self) -> Option<(Offset, Position)> {
        self.unloaded
    }

    /// Takes the indexes of what was not in memory.
    pub fn load(&mut self, index: OffsetIndex, time_index: TimeIndex) {
        if self.unloaded.take().is_some() {
            self.index.put_before(index);
            self.time_index.put_before(time_index);
        }
    }

    /// Forgets everything from `position`, a batch boundary, which is `offset`, on.
    pub fn truncate(&mut self, offset: Offset, position: Position) {
        assert!(
            position <= self.end,
            "cut at {position} of segment {}, which ends at {}",
            self.base,
            self.end
        );
        self.index.truncate(position);
        self.time_index.truncate(offset);
        // The largest timestamp may be gone; kept as a bound it only makes a search start early.
        if self.largest_offset >= offset {
            // What is not in memory may end further on than what is.
            let known = self.time_index.last().map_or(self.base, |(_, offset)| offset);
            self.largest_offset = if self.unloaded.is_some() { offset.max(self.base) } else { known };
        }
        if position == Position(0) {
            (self.largest_timestamp, self.first_append) = (Timestamp::NONE, None);
        }
        self.end = position;
        self.next_offset = offset.max(self.base);
        self.unloaded = match self.unloaded.map(|below| below.min((self.next_offset, position))) {
            Some((_, Position(0))) => None,
            below => below,
        };
        self.prepared = self.prepared.min(position);
        self.preparation_step = 0;
    }

    fn next_step(&self) -> u64 {
        match self.preparation_step {
            0 => PREPARATION_STEP_MIN,
            step => (step * 2).min(PREPARATION_STEP_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    fn header(base: i64, records: i32, bytes: u32, timestamp: i64) -> BatchHeader {
        BatchHeader {
            base_offset: Offset(base),
            bytes,
            leader_epoch: Epoch(0),
            crc: 0,
            attributes: 0,
            last_offset_delta: records - 1,
            base_timestamp: Timestamp(timestamp),
            max_timestamp: Timestamp(timestamp),
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            count: records,
        }
    }

    #[test]
    fn a_segment_rolls_by_size_age_and_offset_but_never_empty() {
        let config =
            LogConfig { segment_bytes_max: 10_000, segment_age_ms_max: Some(60), ..LogConfig::default() };
        let mut segment = Segment::new(Offset(10), &config);
        assert!(!segment.should_roll(&config, 20_000, Offset(10), Timestamp(0)));
        segment.note_batch(&header(10, 5, 6000, 3), Position(0));
        segment.first_append = Some(Timestamp(1000));
        assert!(!segment.should_roll(&config, 4000, Offset(20), Timestamp(1059)));
        assert!(segment.should_roll(&config, 4001, Offset(20), Timestamp(1059)));
        assert!(segment.should_roll(&config, 4000, Offset(20), Timestamp(1060)));
        assert!(!segment.should_roll(&config, 4000, Offset(10 + i64::from(i32::MAX)), Timestamp(1000)));
        assert!(segment.should_roll(&config, 4000, Offset(11 + i64::from(i32::MAX)), Timestamp(1000)));
    }

    #[test]
    fn after_a_loss_at_its_end_a_segment_takes_no_more_even_where_no_byte_is_left() {
        let config = LogConfig::default();
        for position in [0, 300] {
            let mut segment = Segment::new(Offset(10), &config);
            segment.note_lost(Offset(14), Position(position));
            assert!(!segment.is_empty(), "four offsets were given out");
            assert!(segment.should_roll(&config, 100, Offset(14), Timestamp(0)), "{position} bytes of rot");
        }
    }

    #[test]
    fn preparation_runs_ahead_in_doubling_steps() {
        let config = LogConfig { segment_bytes_max: 500_000, ..LogConfig::default() };
        let mut segment = Segment::new(Offset(0), &config);
        let at = |segment: &mut Segment, needed| {
            let next = segment.next_preparation(&config, Position(needed));
            next.inspect(|next| segment.set_prepared(*next)).map(|next| next.0)
        };
        assert_eq!(at(&mut segment, 0), Some(65_536));
        assert_eq!(at(&mut segment, 32_768), None);
        assert_eq!(at(&mut segment, 32_769), Some(196_608));
        assert_eq!(at(&mut segment, 131_072), None);
        assert_eq!(at(&mut segment, 131_073), Some(458_752));
        assert_eq!(at(&mut segment, 458_752), Some(503_808), "the largest segment in whole blocks");
        assert_eq!(at(&mut segment, 503_000), None);
        assert_eq!(at(&mut segment, 600_000), Some(602_112), "but for a batch that needs it");
    }

    #[test]
    fn steps_end_at_64_mib() {
        let config = LogConfig::default();
        let mut segment = Segment::new(Offset(0), &config);
        let mut last = 0;
        while let Some(next) = segment.next_preparation(&config, segment.prepared) {
            assert!(next.0 - last <= PREPARATION_STEP_MAX);
            last = next.0;
            segment.set_prepared(next);
        }
        assert_eq!(last, 1 << 30);
    }

    #[test]
    fn after_a_truncation_the_time_index_still_does_not_mislead() {
        let config = LogConfig { index_interval_bytes: 0, ..LogConfig::default() };
        let mut segment = Segment::new(Offset(0), &config);
        segment.note_batch(&header(0, 10, 100, 5), Position(0));
        segment.note_batch(&header(10, 10, 100, 50), Position(100));
        segment.truncate(Offset(10), Position(100));
        segment.note_batch(&header(10, 5, 100, 20), Position(100));
        segment.note_batch(&header(15, 5, 100, 50), Position(200));
        segment.seal();
        assert!(segment.time_index.floor(Timestamp(50)) <= Offset(15));
        assert!(segment.time_index.floor(Timestamp(20)) <= Offset(10));
    }
}
