//! The log of one partition: the aggregate of segments, epochs and watermarks that decides where a batch goes
//! and where a reader finds it.
//!
//! It owns no file and no bytes. The shard above asks for a [`Placement`], writes the bytes, and reports how far
//! they got; it asks for an [`Extent`] and moves what lies there. It relies on being told the truth about batch
//! boundaries, and asserts what it can.

use std::cell::Cell;

use super::batch::{BatchError, BatchHeader};
use super::config::LogConfig;
use super::epoch::{EpochCache, EpochOwner};
use super::manifest::{PartitionState, SegmentState};
use super::offset_index::OffsetIndex;
use super::recovery::FencedRange;
use super::segment::Segment;
use super::time_index::TimeIndex;
use super::watermarks::{LogPoint, Marks, Watermarks};
use crate::types::{Epoch, Offset, Position, Timestamp};

/// The log of one partition.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    owner: EpochOwner,
    /// Oldest first; the last one is active, the others are sealed. Never empty.
    segments: Vec<Segment>,
    epochs: EpochCache,
    /// The epoch of local appends; outlives its entry in the cache, so that none is used twice.
    local_epoch: Epoch,
    marks: Watermarks,
    /// In order of segment and position.
    fenced: Vec<FencedRange>,
    known: KnownBoundaries,
}

/// Where a batch was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where it begins.
    pub start: LogPoint,
    /// Just after it.
    pub end: LogPoint,
    /// The epoch to stamp.
    pub epoch: Epoch,
}

/// A range of one segment's bytes: whole batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The base offset of the segment.
    pub segment: Offset,
    /// Where the first batch begins.
    pub from: Position,
    /// Just after the last batch.
    pub to: Position,
}

/// Where a reader finds its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing visible there yet.
    AtEnd,
    /// The bytes to send.
    Extent(Extent),
    /// The index leads near: walk the headers in this range with [`HeaderWalk`](super::HeaderWalk), then ask
    /// [`Log::extent_from`]. A walk that finds nothing goes on at [`Log::next_segment`]; without one, the reader is
    /// at the end.
    Walk {
        /// The base offset of the segment.
        segment: Offset,
        /// A batch boundary at or before the wanted batch.
        from: Position,
        /// Where the walk ends.
        to: Position,
    },
}

/// Where to begin the walk for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLookup {
    /// The base offset of the segment.
    pub segment: Offset,
    /// A batch boundary at or before the wanted batch.
    pub from: Position,
    /// Where the walk ends.
    pub to: Position,
}

/// What a truncation leaves to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// The bases of the segments to delete.
    pub removed_segments: Vec<Offset>,
    /// The segment that is active now, and where to cut it.
    pub cut: (Offset, Position),
}

/// Why nothing can be read at an offset.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// Retention took it.
    #[error("offset {offset} is before the log start {log_start}")]
    BelowLogStart {
        /// What was asked for.
        offset: Offset,
        /// The earliest there is.
        log_start: Offset,
    },
    /// It was never assigned.
    #[error("offset {offset} is beyond the log end {end}")]
    AboveEnd {
        /// What was asked for.
        offset: Offset,
        /// The log end.
        end: Offset,
    },
    /// The bytes are there and rotten.
    #[error("offsets {} to {} are corrupt on disk: bytes {} to {} of segment {}", .0.from, .0.to, .0.from_position, .0.to_position, .0.segment)]
    Fenced(FencedRange),
}

/// Why a batch with an offset of its own cannot be appended.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum AppendAtError {
    /// This engine assigns the offsets of the partition.
    #[error("offsets of this partition are assigned here")]
    LocalOwner,
    /// The offset is taken.
    #[error("batch at offset {found}, the log goes on at {log_end}")]
    Offset {
        /// The log end.
        log_end: Offset,
        /// The base offset of the batch.
        found: Offset,
    },
    /// The epoch is over.
    #[error("batch of epoch {found} after epoch {latest}")]
    Epoch {
        /// The latest epoch of the log.
        latest: Epoch,
        /// The epoch of the batch.
        found: Epoch,
    },
    /// The batch lies so far ahead that this segment cannot count to it. Reset to it or roll first.
    #[error("batch ends at offset {found}, too far from the base {base} of its segment")]
    Gap {
        /// The base of the active segment.
        base: Offset,
        /// The last offset of the batch.
        found: Offset,
    },
    /// The header contradicts itself.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// A log start that would pass the high watermark.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("log start {to} is beyond the high watermark {high_watermark}")]
pub struct LogStartError {
    /// What was asked for.
    pub to: Offset,
    /// How far it may go.
    pub high_watermark: Offset,
}

impl Log {
    /// An empty log whose first offset is `start`. A local one begins with epoch 0.
    #[must_use]
    pub fn new(config: LogConfig, owner: EpochOwner, start: Offset) -> Log {
        let segment = Segment::new(start, &config);
        Log::restore(config, owner, vec![segment], EpochCache::new(), start, Vec::new())
    }

    /// A log as found on disk: everything in it is written and durable. The high watermark of a local log is its
    /// end; that of a foreign one is the log start, until [`Log::set_high_watermark_offset`] says better.
    ///
    /// # Panics
    /// When the segments are out of order, or the log start is beyond the end of what was found: then nothing
    /// readable is left, and the caller begins a new log there.
    #[must_use]
    pub fn restore(
        config: LogConfig,
        owner: EpochOwner,
        mut segments: Vec<Segment>,
        mut epochs: EpochCache,
        log_start: Offset,
        mut fenced: Vec<FencedRange>,
    ) -> Log {
        assert!(
            config.segment_bytes_max <= i32::MAX as u64,
            "segments of {} bytes",
            config.segment_bytes_max
        );
        if segments.is_empty() {
            segments.push(Segment::new(log_start, &config));
        }
        for pair in segments.windows(2) {
            let (this, next) = (&pair[0], &pair[1]);
            assert!(
                this.base < next.base && this.next_offset <= next.base,
                "segment {} ends at {}, the next is {}",
                this.base,
                this.next_offset,
                next.base
            );
        }
        let (active, sealed) = segments.split_last_mut().expect("at least one was just made sure of");
        sealed.iter_mut().filter(|segment| !segment.sealed).for_each(Segment::seal);
        active.unseal();
        fenced.sort_by_key(|range| (range.segment, range.from_position));

        let log_end = LogPoint { offset: active.next_offset, segment: active.base, position: active.end };
        let log_start = log_start.max(segments[0].base);
        assert!(log_start <= log_end.offset, "log start {log_start} beyond the log end {}", log_end.offset);
        let holding = segments.partition_point(|segment| segment.base <= log_start).saturating_sub(1);
        // Only a lower bound of the place; nothing is readable at a high watermark, so that is enough.
        let start = LogPoint { offset: log_start, segment: segments[holding].base, position: Position(0) };
        let local_epoch = epochs.latest().unwrap_or(Epoch(0));
        epochs.truncate_from_end(Offset(log_end.offset.0.saturating_add(1)));
        if owner == EpochOwner::Local && epochs.latest() != Some(local_epoch) {
            epochs.assign(local_epoch, log_end.offset);
        }
        let marks = Watermarks::new(Marks {
            log_start,
            high_watermark: if owner == EpochOwner::Local { log_end } else { start },
            durable: log_end,
            written: log_end,
            log_end,
        });
        Log { config, owner, segments, epochs, local_epoch, marks, fenced, known: KnownBoundaries::default() }
    }

    /// A local log as a manifest has it.
    #[must_use]
    pub fn recorded(config: LogConfig, state: &PartitionState, log_start: Offset) -> Log {
        let segments = state.segments.iter().map(|segment| Segment::recorded(segment, &config)).collect();
        let mut epochs = EpochCache::new();
        state.epochs.iter().for_each(|(epoch, start)| epochs.assign(*epoch, *start));
        Log::restore(config, EpochOwner::Local, segments, epochs, log_start, Vec::new())
    }

    /// What a manifest is told of it, as far as `end`: a batch boundary up to which all is flushed. `indexed` says of a
    /// segment whether its indexes are in their files. Nothing while a part of it is rotten: that is to be found again.
    #[must_use]
    pub fn state(
        &self,
        awake: bool,
        end: LogPoint,
        indexed: impl Fn(Offset) -> bool,
    ) -> Option<PartitionState> {
        if !self.fenced.is_empty() || self.owner != EpochOwner::Local {
            return None;
        }
        // One that begins just there was made, and holds nothing yet.
        let below = self
            .segments
            .iter()
            .take_while(|segment| segment.base <= end.segment || segment.base == end.offset);
        let segments: Vec<SegmentState> = below
            .map(|segment| match segment.base == end.segment {
                true => segment.state(end.offset, end.position, indexed(segment.base)),
                false if segment.base > end.segment => segment.state(segment.base, Position(0), false),
                false => segment.state(segment.next_offset, segment.end, indexed(segment.base)),
            })
            .collect();
        let log_start = self.log_start().min(end.offset);
        let known = !segments.is_empty() && end.offset >= segments[0].base;
        known.then(|| PartitionState { awake, log_start, epochs: self.epochs.starts().to_vec(), segments })
    }

    /// Keeps nothing of any segment's indexes in memory.
    pub fn let_go_of_indexes(&mut self) {
        self.segments.iter_mut().for_each(Segment::let_go_of_indexes);
        self.known = KnownBoundaries::default();
    }

    /// The base of the segment that holds `offset`, if its indexes are not in memory for it.
    #[must_use]
    pub fn unloaded_at(&self, offset: Offset) -> Option<Offset> {
        let holding = self.segments.partition_point(|segment| segment.base <= offset).saturating_sub(1);
        let segment = &self.segments[holding];
        segment.unloaded().filter(|(below, _)| offset < *below).map(|_| segment.base)
    }

    /// The first segment where a search for `timestamp` may begin whose indexes are not all in memory.
    #[must_use]
    pub fn unloaded_for(&self, timestamp: Timestamp) -> Option<Offset> {
        let holds = |segment: &&Segment| {
            segment.largest_timestamp >= timestamp && segment.next_offset > self.log_start()
        };
        self.segments
            .iter()
            .find(holds)
            .filter(|segment| segment.unloaded().is_some())
            .map(|segment| segment.base)
    }

    /// Takes the indexes of the segment `base` below a place, if it still is there and lacks just these.
    pub fn load_indexes(
        &mut self,
        base: Offset,
        below: (Offset, Position),
        index: OffsetIndex,
        time_index: TimeIndex,
    ) {
        if let Ok(at) = self.segments.binary_search_by_key(&base, |segment| segment.base)
            && self.segments[at].unloaded() == Some(below)
        {
            self.segments[at].load(index, time_index);
        }
    }

    /// Whether there are offsets for `records` more. A log only ends up this far when a file was misnamed or a number
    /// rotted; it then takes nothing, and is served as it is.
    #[must_use]
    pub fn has_offsets_for(&self, records: i32) -> bool {
        self.log_end().offset.0.checked_add(i64::from(records)).is_some()
    }

    /// Whether the next batch, of `bytes` and `records`, needs a new segment.
    #[must_use]
    pub fn needs_roll(&self, bytes: u32, records: i32, now: Timestamp) -> bool {
        let last = self.log_end().offset.plus(i64::from(records) - 1);
        self.active().should_roll(&self.config, bytes, last, now)
    }

    /// Whether a batch that keeps its offsets needs a new segment.
    #[must_use]
    pub fn needs_roll_for(&self, header: &BatchHeader, now: Timestamp) -> bool {
        self.active().should_roll(&self.config, header.bytes, header.last_offset(), now)
    }

    /// Seals the active segment and begins the next at the log end; returns its base.
    ///
    /// # Panics
    /// When the active segment is empty: both would have the same name.
    pub fn roll(&mut self) -> Offset {
        let base = self.log_end().offset;
        assert!(!self.active().is_empty(), "roll of segment {}, which is empty", self.active().base);
        assert!(self.active().base < base, "roll of segment {} at {base}", self.active().base);
        self.active_mut().seal();
        self.segments.push(Segment::new(base, &self.config));
        let log_end = LogPoint { offset: base, segment: base, position: Position(0) };
        self.marks.set(Marks { log_end, ..self.marks.marks() });
        base
    }

    /// Assigns the next offsets and the current epoch to a checked batch. The caller stamps it with both, and
    /// has rolled if that was needed.
    ///
    /// # Panics
    /// When the epochs are somebody else's, or the batch does not fit the active segment.
    pub fn append_local(&mut self, header: &BatchHeader, now: Timestamp) -> Placement {
        assert_eq!(self.owner, EpochOwner::Local, "a local append to a log with foreign epochs");
        assert!(header.last_offset_delta >= 0, "last offset delta {}", header.last_offset_delta);
        let placed =
            BatchHeader { base_offset: self.log_end().offset, leader_epoch: self.local_epoch, ..*header };
        self.place(&placed, now)
    }

    /// Appends a batch that keeps its offset and epoch. Offsets may jump forward (compaction leaves gaps).
    ///
    /// # Errors
    /// Offsets or epochs that go backwards, a jump too far, a log whose epochs are local.
    ///
    /// # Panics
    /// When the caller did not roll though [`Log::needs_roll_for`] asked for it.
    pub fn append_at(&mut self, header: &BatchHeader, now: Timestamp) -> Result<Placement, AppendAtError> {
        if self.owner != EpochOwner::Foreign {
            return Err(AppendAtError::LocalOwner);
        }
        header.check_offsets()?;
        let (log_end, found) = (self.log_end().offset, header.base_offset);
        if found < log_end {
            return Err(AppendAtError::Offset { log_end, found });
        }
        let (latest, found) = (self.epoch(), header.leader_epoch);
        if found < latest {
            return Err(AppendAtError::Epoch { latest, found });
        }
        let (base, found) = (self.active().base, header.last_offset());
        if self.active().is_empty() && found.since(base) > i64::from(i32::MAX) {
            return Err(AppendAtError::Gap { base, found });
        }
        self.epochs.assign(header.leader_epoch, header.base_offset);
        Ok(self.place(header, now))
    }

    fn place(&mut self, header: &BatchHeader, now: Timestamp) -> Placement {
        let Log { config, segments, marks, .. } = self;
        let active = segments.last_mut().expect("never empty");
        assert!(
            active.fits(config, header.bytes, header.last_offset()),
            "{} bytes up to offset {} do not fit segment {}, which ends at {}",
            header.bytes,
            header.last_offset(),
            active.base,
            active.end
        );
        let start = LogPoint { offset: header.base_offset, segment: active.base, position: active.end };
        active.note_batch(header, start.position);
        active.first_append.get_or_insert(now);
        let end = LogPoint { offset: active.next_offset, segment: active.base, position: active.end };
        marks.set(Marks { log_end: end, ..marks.marks() });
        self.known.note_append(start);
        Placement { start, end, epoch: header.leader_epoch }
    }

    /// Begins the next epoch at the log end. Persist the epochs before the first append of it.
    ///
    /// # Panics
    /// When the epochs are somebody else's.
    pub fn bump_epoch(&mut self) -> Epoch {
        assert_eq!(self.owner, EpochOwner::Local, "a foreign epoch is not ours to bump");
        self.local_epoch = Epoch(self.local_epoch.0 + 1);
        self.epochs.assign(self.local_epoch, self.log_end().offset);
        self.local_epoch
    }

    /// Writes are complete up to here.
    pub fn set_written(&mut self, written: LogPoint) {
        self.marks.set(Marks { written, ..self.marks.marks() });
    }

    /// A flush that covers everything up to here is complete.
    pub fn set_durable(&mut self, durable: LogPoint) {
        self.marks.set(Marks { durable, ..self.marks.marks() });
    }

    /// Consumers may see everything up to here.
    pub fn set_high_watermark(&mut self, high_watermark: LogPoint) {
        self.marks.set(Marks { high_watermark, ..self.marks.marks() });
    }

    /// Consumers may see everything up to `offset`, says somebody else (a leader). Taken as far as the log goes
    /// and as batch boundaries are known, never beyond, never back.
    pub fn set_high_watermark_offset(&mut self, offset: Offset) {
        let now = self.high_watermark();
        if offset <= now.offset {
            return;
        }
        let log_end = self.log_end();
        if offset >= log_end.offset {
            return self.set_high_watermark(log_end);
        }
        let holding = self.segments.partition_point(|segment| segment.base <= offset).saturating_sub(1);
        let segment = &self.segments[holding];
        let begin = LogPoint { offset: segment.base, segment: segment.base, position: Position(0) };
        let indexed = segment.index.boundary_at_or_before(offset);
        let indexed = indexed.map(|(offset, position)| LogPoint { offset, segment: segment.base, position });
        let known = self.known.last_at_or_before(offset);
        let candidates = [Some(begin), indexed, known, Some(self.written()), Some(self.durable())];
        let best = candidates.into_iter().flatten().filter(|point| point.offset <= offset).max();
        if let Some(best) = best.filter(|best| best.offset > now.offset) {
            self.set_high_watermark(best);
        }
    }

    /// The watermarks.
    #[must_use]
    pub fn watermarks(&self) -> &Watermarks {
        &self.marks
    }

    /// The earliest readable offset.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.marks.log_start()
    }

    /// Where the next batch goes.
    #[must_use]
    pub fn log_end(&self) -> LogPoint {
        self.marks.log_end()
    }

    /// The end of what consumers may see.
    #[must_use]
    pub fn high_watermark(&self) -> LogPoint {
        self.marks.high_watermark()
    }

    /// The end of completed writes.
    #[must_use]
    pub fn written(&self) -> LogPoint {
        self.marks.written()
    }

    /// The end of what survives power loss.
    #[must_use]
    pub fn durable(&self) -> LogPoint {
        self.marks.durable()
    }

    /// Where each epoch began.
    #[must_use]
    pub fn epochs(&self) -> &EpochCache {
        &self.epochs
    }

    /// The epoch that appends get, or got last; -1 for a foreign log that has seen none.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self.owner {
            EpochOwner::Local => self.local_epoch,
            EpochOwner::Foreign => self.epochs.latest().unwrap_or(Epoch::NONE),
        }
    }

    /// Who assigns the epochs.
    #[must_use]
    pub fn owner(&self) -> EpochOwner {
        self.owner
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// All segments, oldest first; the last one is active.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that is appended to.
    #[must_use]
    pub fn active(&self) -> &Segment {
        self.segments.last().expect("a log has at least one segment")
    }

    /// The segment of that base, while it is there: retention may take it between two reads.
    #[must_use]
    pub fn segment(&self, base: Offset) -> Option<&Segment> {
        let found = self.segments.binary_search_by_key(&base, |segment| segment.base);
        found.ok().map(|at| &self.segments[at])
    }

    /// The base of the segment after `segment`.
    #[must_use]
    pub fn next_segment(&self, segment: Offset) -> Option<Offset> {
        let next = self.segments.partition_point(|other| other.base <= segment);
        self.segments.get(next).map(|next| next.base)
    }

    /// The ranges that are there and rotten.
    #[must_use]
    pub fn fenced(&self) -> &[FencedRange] {
        &self.fenced
    }

    /// Up to where the active file should be prepared, given that bytes up to `needed` are going to be written.
    #[must_use]
    pub fn next_preparation(&self, needed: Position) -> Option<Position> {
        self.active().next_preparation(&self.config, needed)
    }

    /// The active file has been prepared up to here.
    pub fn set_prepared(&mut self, position: Position) {
        self.active_mut().set_prepared(position);
    }

    /// Finds the bytes for a reader at `offset`: whole batches of one segment, up to `max_bytes`, but at least the
    /// first batch. `end` is the visible end. Since the index is sparse, an extent whose first batch alone does not
    /// end within `max_bytes` at a known boundary reaches to the next one that is known.
    ///
    /// Batches at 10, 31 and 101, visible end 120: a fetch at 35 gets an extent from the batch at 31 on.
    ///
    /// # Errors
    /// The offset is out of range or in a fenced range.
    pub fn locate(&self, offset: Offset, max_bytes: u64, end: LogPoint) -> Result<Lookup, ReadError> {
        if offset < self.log_start() {
            return Err(ReadError::BelowLogStart { offset, log_start: self.log_start() });
        }
        if offset > self.log_end().offset {
            return Err(ReadError::AboveEnd { offset, end: self.log_end().offset });
        }
        // Where compaction left a gap at the end of a segment, the next one holds the next record.
        let mut holding = self.segments.partition_point(|segment| segment.base <= offset).saturating_sub(1);
        while offset >= self.segments[holding].next_offset && holding + 1 < self.segments.len() {
            holding += 1;
        }
        let segment = &self.segments[holding];
        let wanted = offset.max(segment.base);
        if wanted >= end.offset {
            return Ok(Lookup::AtEnd);
        }
        let fences = self.fences_of(segment.base);
        if let Some(range) = fences.iter().find(|range| range.from <= wanted && wanted < range.to) {
            return Err(ReadError::Fenced(*range));
        }
        let (from, exact) = self.floor(segment, wanted);
        if exact {
            let start = LogPoint { offset: wanted, segment: segment.base, position: from };
            let extent = self.extent_from(start, max_bytes, end);
            // Offsets that compaction took may be all that lies before the visible end.
            return Ok(if extent.from < extent.to { Lookup::Extent(extent) } else { Lookup::AtEnd });
        }
        let to = self.readable_end(segment, from, end);
        Ok(if from < to { Lookup::Walk { segment: segment.base, from, to } } else { Lookup::AtEnd })
    }

    /// The bytes from the batch boundary `start` on; for the rest like [`Log::locate`].
    ///
    /// # Panics
    /// When `start` lies in no segment or beyond `end`.
    #[must_use]
    pub fn extent_from(&self, start: LogPoint, max_bytes: u64, end: LogPoint) -> Extent {
        let mut at = self.segment_index(start.segment);
        let mut from = start.position;
        while from == self.segments[at].end && start.offset < end.offset && at + 1 < self.segments.len() {
            (at, from) = (at + 1, Position(0));
        }
        let segment = &self.segments[at];
        let limit = self.readable_end(segment, from, end);
        assert!(from <= limit, "a read from {from} of segment {}, visible up to {limit}", segment.base);
        let wanted = Position(from.0.saturating_add(max_bytes));
        let to = if wanted >= limit {
            limit
        } else {
            let indexed = segment.index.boundary_within(from, wanted);
            let known = self.known.boundary_within(segment.base, from, wanted);
            nearest(indexed, known, wanted).unwrap_or(limit).min(limit)
        };
        if to == end.position && segment.base == end.segment {
            self.known.note_read_end(end);
        }
        Extent { segment: segment.base, from, to }
    }

    /// Tells of a batch boundary that a walk has found, so that the next reader needs no walk. A segment that is
    /// gone meanwhile is passed over.
    pub fn note_boundary(&mut self, point: LogPoint) {
        if let Ok(at) = self.segments.binary_search_by_key(&point.segment, |segment| segment.base) {
            self.segments[at].index.learn_base(point.position, point.offset);
            self.known.made();
            self.known.note_read_end(point);
        }
    }

    /// Where to begin walking for the first batch with a timestamp of `timestamp` or later; `None` if no visible
    /// batch is that late. Walk with [`HeaderWalk::to_timestamp`](super::HeaderWalk::to_timestamp); if that is
    /// exhausted, go on with [`Log::offset_for_timestamp_after`].
    #[must_use]
    pub fn offset_for_timestamp(&self, timestamp: Timestamp, end: LogPoint) -> Option<TimeLookup> {
        self.offset_for_timestamp_after(timestamp, self.segments[0].base, Position(0), end)
    }

    /// The same, from `position` of `segment` on: where an exhausted walk ended.
    #[must_use]
    pub fn offset_for_timestamp_after(
        &self,
        timestamp: Timestamp,
        segment: Offset,
        position: Position,
        end: LogPoint,
    ) -> Option<TimeLookup> {
        let first = self.segments.partition_point(|other| other.base < segment);
        let resumed = segment;
        for segment in self.segments.iter().skip(first) {
            if segment.base >= end.offset {
                return None;
            }
            if segment.largest_timestamp < timestamp || segment.next_offset <= self.log_start() {
                continue;
            }
            let wanted = segment.time_index.floor(timestamp).max(self.log_start());
            let (mut from, _) = self.floor(segment, wanted);
            if segment.base == resumed {
                from = from.max(position);
            }
            if let Some(range) = self.fences_of(segment.base).iter().find(|range| range.from_position == from)
            {
                from = range.to_position;
            }
            let to = self.readable_end(segment, from, end);
            if from < to {
                return Some(TimeLookup { segment: segment.base, from, to });
            }
        }
        None
    }

    /// Cuts the log at a batch boundary; a local log begins a new epoch. Extents handed out before are void.
    ///
    /// # Panics
    /// When `at` is no place of this log, or before its start (that is [`Log::reset_to`]).
    pub fn truncate_to(&mut self, at: LogPoint) -> Truncation {
        let index = self.segment_index(at.segment);
        let removed_segments = self.segments.drain(index + 1..).map(|segment| segment.base).collect();
        self.marks.truncate(at);
        let active = self.active_mut();
        active.truncate(at.offset, at.position);
        active.unseal();
        self.epochs.truncate_from_end(at.offset);
        self.fenced.retain(|range| (range.segment, range.from_position) < (at.segment, at.position));
        self.known = KnownBoundaries::default();
        if self.owner == EpochOwner::Local {
            self.bump_epoch();
        }
        Truncation { removed_segments, cut: (at.segment, at.position) }
    }

    /// Drops everything and starts empty at `offset`; returns the bases of the segments to delete. A local log
    /// begins a new epoch.
    pub fn reset_to(&mut self, offset: Offset) -> Vec<Offset> {
        let removed = self.segments.iter().map(|segment| segment.base).collect();
        let local_epoch = self.local_epoch;
        *self = Log::new(self.config.clone(), self.owner, offset);
        if self.owner == EpochOwner::Local {
            self.local_epoch = local_epoch;
            self.bump_epoch();
        }
        removed
    }

    /// Moves the log start forward (never back), and returns the bases of the sealed segments to delete: those
    /// wholly below it and below `stored`, up to where segments hold everything for good. Others follow at a later call.
    ///
    /// # Errors
    /// A log start beyond the high watermark.
    pub fn advance_log_start(&mut self, to: Offset, stored: Offset) -> Result<Vec<Offset>, LogStartError> {
        let marks = self.marks.marks();
        if to > marks.high_watermark.offset {
            return Err(LogStartError { to, high_watermark: marks.high_watermark.offset });
        }
        let log_start = to.max(marks.log_start);
        // A segment in flight stays until it is durable: the watermarks still point into it.
        let safe = log_start.min(marks.durable.offset).min(stored);
        let count = self.segments.windows(2).take_while(|pair| pair[1].base <= safe).count();
        let removed: Vec<Offset> = self.segments.drain(..count).map(|segment| segment.base).collect();
        let first = self.segments[0].base;
        let begin = LogPoint { offset: first, segment: first, position: Position(0) };
        let kept = |mark: LogPoint| {
            if mark.segment < first { LogPoint { offset: mark.offset, ..begin } } else { mark }
        };
        self.marks.set(Marks {
            log_start,
            high_watermark: kept(marks.high_watermark),
            durable: kept(marks.durable),
            written: kept(marks.written),
            log_end: marks.log_end,
        });
        self.fenced.retain(|range| range.segment >= first);
        self.epochs.truncate_from_start(log_start);
        self.known.forget_before(first);
        Ok(removed)
    }

    /// Whether the active segment holds records and is due to be sealed though nothing is appended: by its age, or
    /// because all of it is older than the retention time.
    #[must_use]
    pub fn active_is_old(&self, now: Timestamp) -> bool {
        let active = self.active();
        if active.is_empty() {
            return false;
        }
        let older = |than: Option<i64>, time: Option<Timestamp>| {
            than.zip(time).is_some_and(|(max, time)| now.0.saturating_sub(time.0) > max)
        };
        let newest = Some(active.largest_timestamp).filter(|time| time.0 >= 0).or(active.first_append);
        older(self.config.segment_age_ms_max, active.first_append) || older(self.config.retention_ms, newest)
    }

    /// The log start that retention by size and time asks for, if it is further on. Only sealed segments go, and
    /// only below the high watermark.
    #[must_use]
    pub fn retention(&self, now: Timestamp) -> Option<Offset> {
        let mut bytes: u64 = self.segments.iter().map(|segment| segment.end.0).sum();
        let mut start = None;
        for pair in self.segments.windows(2) {
            let (segment, next) = (&pair[0], pair[1].base);
            let size_asks = self.config.retention_bytes.is_some_and(|max| bytes - segment.end.0 >= max);
            let newest = Some(segment.largest_timestamp).filter(|time| time.0 >= 0).or(segment.first_append);
            let time_asks = match (self.config.retention_ms, newest) {
                (Some(max), Some(newest)) => now.0.saturating_sub(newest.0) > max,
                _ => false,
            };
            if !(size_asks || time_asks) || next > self.high_watermark().offset {
                break;
            }
            bytes -= segment.end.0;
            start = Some(next);
        }
        start.filter(|start| *start > self.log_start())
    }

    fn active_mut(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a log has at least one segment")
    }

    fn segment_index(&self, base: Offset) -> usize {
        let found = self.segments.binary_search_by_key(&base, |segment| segment.base);
        found.unwrap_or_else(|_| panic!("no segment {base} in this log"))
    }

    fn fences_of(&self, segment: Offset) -> &[FencedRange] {
        let from = self.fenced.partition_point(|range| range.segment < segment);
        let to = self.fenced.partition_point(|range| range.segment <= segment);
        &self.fenced[from..to]
    }

    /// The last known batch boundary at or before the batch that holds `offset`, and whether it is that batch's.
    fn floor(&self, segment: &Segment, offset: Offset) -> (Position, bool) {
        let (mut position, mut exact) = segment.index.floor(offset);
        if offset == segment.base {
            exact = true;
        }
        if let Some(known) =
            self.known.last_in(segment.base, offset).filter(|known| known.position >= position)
        {
            exact = exact && known.position == position || known.offset == offset;
            position = known.position;
        }
        // A walk may not enter a fenced range; the far side of one is a boundary, too.
        let fences = self.fences_of(segment.base);
        if let Some(range) = fences.iter().rfind(|range| range.to <= offset && range.to_position > position) {
            exact = range.to == offset;
            position = range.to_position;
        }
        (position, exact)
    }

    /// How far a read from `from` may go: to the visible end, the end of the segment, or the next fence.
    fn readable_end(&self, segment: &Segment, from: Position, end: LogPoint) -> Position {
        let visible = if segment.base == end.segment { end.position.min(segment.end) } else { segment.end };
        // Where durable data is missing there are offsets and no bytes: a fence of no length. Who begins at its place
        // begins behind it.
        let ahead = |range: &&FencedRange| range.from_position >= from && range.to_position > from;
        let fence = self.fences_of(segment.base).iter().find(ahead);
        fence.map_or(visible, |range| visible.min(range.from_position))
    }
}

/// Of two boundaries after a start, the one that serves best: the last within the limit, else the first beyond.
fn nearest(one: Option<Position>, other: Option<Position>, limit: Position) -> Option<Position> {
    match (one, other) {
        (Some(one), Some(other)) if one <= limit && other <= limit => Some(one.max(other)),
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The starts of the latest batches, and the ends of the latest reads: where the readers at the tail go on. Small
/// and fixed, so that a partition costs little, and nothing before there is something to be known; what falls out costs a
/// walk.
#[derive(Debug, Default)]
struct KnownBoundaries(Option<Box<Boundaries>>);

#[derive(Debug)]
struct Boundaries {
    appends: [LogPoint; APPENDS_KNOWN],
    next_append: usize,
    /// Noted by reads, which only borrow the log.
    read_ends: [Cell<LogPoint>; READ_ENDS_KNOWN],
    next_read_end: Cell<usize>,
}

const APPENDS_KNOWN: usize = 32;
const READ_ENDS_KNOWN: usize = 16;
const NO_POINT: LogPoint = LogPoint { offset: Offset(-1), segment: Offset(-1), position: Position(0) };

impl KnownBoundaries {
    fn note_append(&mut self, start: LogPoint) {
        let boundaries = self.made();
        boundaries.appends[boundaries.next_append] = start;
        boundaries.next_append = (boundaries.next_append + 1) % APPENDS_KNOWN;
    }

    /// Where nothing was appended or looked for yet, this is not remembered either.
    fn note_read_end(&self, end: LogPoint) {
        let Some(boundaries) = &self.0 else { return };
        if self.all().all(|known| known != end) {
            let next = boundaries.next_read_end.get();
            boundaries.read_ends[next].set(end);
            boundaries.next_read_end.set((next + 1) % READ_ENDS_KNOWN);
        }
    }

    fn made(&mut self) -> &mut Boundaries {
        self.0.get_or_insert_with(|| {
            Box::new(Boundaries {
                appends: [NO_POINT; APPENDS_KNOWN],
                next_append: 0,
                read_ends: [const { Cell::new(NO_POINT) }; READ_ENDS_KNOWN],
                next_read_end: Cell::new(0),
            })
        })
    }

    fn all(&self) -> impl Iterator<Item = LogPoint> {
        let boundaries = self.0.as_deref().into_iter();
        let all = boundaries
            .flat_map(|known| known.appends.iter().copied().chain(known.read_ends.iter().map(Cell::get)));
        all.filter(|point| *point != NO_POINT)
    }

    fn last_at_or_before(&self, offset: Offset) -> Option<LogPoint> {
        self.all().filter(|point| point.offset <= offset).max()
    }

    fn last_in(&self, segment: Offset, offset: Offset) -> Option<LogPoint> {
        self.all().filter(|point| point.segment == segment && point.offset <= offset).max()
    }

    fn boundary_within(&self, segment: Offset, from: Position, limit: Position) -> Option<Position> {
        let after = self.all().filter(|point| point.segment == segment && point.position > from);
        after.map(|point| point.position).fold(None, |best, position| nearest(best, Some(position), limit))
    }

    fn forget_before(&mut self, segment: Offset) {
        let Some(boundaries) = &mut self.0 else { return };
        let gone = |point: LogPoint| point.segment < segment;
        boundaries.appends.iter_mut().filter(|point| gone(**point)).for_each(|point| *point = NO_POINT);
        boundaries.read_ends.iter().filter(|end| gone(end.get())).for_each(|end| end.set(NO_POINT));
    }
}

#[cfg(test)]
mod tests;
