//! The walk over one segment file after an unclean stop: finds the end of the log, rebuilds the indexes, and
//! tells rot from a torn tail.
//!
//! At or above the recovery point (the last persisted durable end) the first bad batch ends the log: it never was
//! acknowledged as durable. Below it a bad batch is corruption: its range is fenced, the walk goes on at the next
//! good batch, nothing is cut. Zeros where durable data must be are rot, too.
//!
//! The walk does no I/O: it says which bytes it [wants](RecoveryWalk::wants) and is fed with them. It keeps no
//! bytes: a checksum is computed piece by piece, and at most 60 bytes of a chunk are asked for twice.
//!
//! What no walk can see: base offset and epoch lie outside the CRC. Where gaps are not expected, a base offset
//! other than the next one is a bad batch; an epoch is checked against its neighbours and where those that are known began.
//! Right after rot neither has a witness: a second rotten stamp there costs good batches behind it (fenced, not cut).

use super::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, at as field_at};
use super::crc::Crc32c;
use super::epoch::EpochCache;
use super::segment::Segment;
use crate::types::{Epoch, Offset, Position};

/// How much the walk asks for at once.
pub const RECOVERY_CHUNK_BYTES: usize = 1024 * 1024;

/// A range of offsets whose bytes are there and rotten. Served as an error, never truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FencedRange {
    /// The base offset of the segment.
    pub segment: Offset,
    /// The first offset lost.
    pub from: Offset,
    /// The first offset that is good again.
    pub to: Offset,
    /// Where the last good batch before ends.
    pub from_position: Position,
    /// Where the next good batch begins.
    pub to_position: Position,
}

/// What the walk needs to know beforehand.
#[derive(Clone, Debug)]
pub struct RecoveryStart {
    /// The segment as far as it is trusted: `Segment::new` to walk all of it, or one that ends at a batch boundary.
    pub segment: Segment,
    /// The base of the next segment, if there is one.
    pub next_base: Option<Offset>,
    /// The last persisted durable end.
    pub recovery_point: Offset,
    /// The epoch before the first batch.
    pub last_epoch: Epoch,
    /// The epochs that began, where that is known; nothing bears one that began behind it.
    pub epochs: EpochCache,
    /// Whether offsets may jump forward: replicas of compacted logs, and what Kafka left.
    pub gaps: bool,
    /// The size of the file.
    pub file_bytes: u64,
}

/// Why what lies at a position does not continue the log.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum BadBatch {
    /// It is no batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Room set aside, and never filled.
    #[error("zeros")]
    Zeros,
    /// The file ends here.
    #[error("the file ends")]
    FileEnd,
    /// A whole batch with another offset: stale bytes, or a rotten stamp.
    #[error("base offset {found}, expected {expected}")]
    Offset {
        /// Where the log goes on.
        expected: Offset,
        /// What the batch says.
        found: Offset,
    },
    /// A whole batch of an epoch that cannot be here.
    #[error("epoch {found} after epoch {last}")]
    Epoch {
        /// The epoch before.
        last: Epoch,
        /// What the batch says.
        found: Epoch,
    },
}

/// What lies after the end of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Only zeros, or nothing.
    Clean,
    /// The rest of writes that never were durable: to be kept aside, then cut.
    Torn {
        /// Where they begin.
        at: Position,
        /// How many bytes, up to the last that is not zero.
        bytes: u64,
        /// What is wrong with the first.
        why: BadBatch,
    },
}

/// What the walk found.
#[derive(Clone, Debug)]
pub struct WalkOutcome {
    /// The segment, with its indexes rebuilt.
    pub segment: Segment,
    /// Where the log goes on.
    pub next_offset: Offset,
    /// The epochs that began here, oldest first.
    pub epochs: Vec<(Epoch, Offset)>,
    /// What lies after the end.
    pub tail: Tail,
    /// What is rotten.
    pub fenced: Vec<FencedRange>,
}

/// A walk under way.
#[derive(Debug)]
pub struct RecoveryWalk {
    start: RecoveryStart,
    /// The last good epoch.
    epoch: Epoch,
    epochs: Vec<(Epoch, Offset)>,
    fenced: Vec<FencedRange>,
    state: State,
}

// One state per walk: a box would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum State {
    /// A header is wanted at the position. The rot that the walk came over, if any, began at the segment's end.
    Header {
        at: Position,
        rot: Option<Rot>,
    },
    /// The body of a batch is being checked, up to `checked` so far.
    Body {
        at: Position,
        rot: Option<Rot>,
        header: BatchHeader,
        crc: Crc32c,
        checked: Position,
    },
    /// The log ends at the segment's end; is there anything but zeros up to the end of the file?
    Tail {
        checked: Position,
        nonzero_end: Position,
        why: Option<BadBatch>,
    },
    Done {
        tail: Tail,
    },
}

/// A search for the next good batch.
#[derive(Clone, Copy, Debug)]
struct Rot {
    /// Whether the search goes byte by byte; else it is trying the end that the bad batch claims.
    scanning: bool,
}

impl RecoveryWalk {
    /// A walk from the end of `start.segment` on.
    #[must_use]
    pub fn new(start: RecoveryStart) -> RecoveryWalk {
        let at = start.segment.end;
        assert!(
            at.0 <= start.file_bytes,
            "segment {} ends at {at} of {}",
            start.segment.base,
            start.file_bytes
        );
        let mut walk = RecoveryWalk {
            epoch: start.last_epoch,
            start,
            epochs: Vec::new(),
            fenced: Vec::new(),
            state: State::Header { at, rot: None },
        };
        walk.at_file_end();
        walk
    }

    /// The bytes the walk wants next, position and length; `None` when it is done.
    #[must_use]
    pub fn wants(&self) -> Option<(Position, usize)> {
        let from = match &self.state {
            State::Header { at, .. } => *at,
            State::Body { checked, .. } | State::Tail { checked, .. } => *checked,
            State::Done { .. } => return None,
        };
        let left = self.start.file_bytes.saturating_sub(from.0);
        Some((from, left.min(RECOVERY_CHUNK_BYTES as u64) as usize))
    }

    /// Takes the bytes that were wanted. Fewer are allowed as long as they hold a header (61 bytes); none at all
    /// means that the file ends there.
    ///
    /// # Panics
    /// When nothing was wanted, or more than that is fed.
    pub fn feed(&mut self, bytes: &[u8]) {
        let (from, wanted) = self.wants().expect("a walk that is done is fed no more");
        assert!(bytes.len() <= wanted, "fed {} bytes, wanted {wanted}", bytes.len());
        let left = (self.start.file_bytes - from.0) as usize;
        if bytes.is_empty() || bytes.len() < BATCH_HEADER_BYTES.min(left) {
            self.start.file_bytes = from.0 + bytes.len() as u64;
        }
        let end = from.plus(bytes.len() as u64);
        let after = |position: Position| &bytes[position.since(from) as usize..];
        self.at_file_end();
        // A search may step back behind these bytes; then they are asked for again.
        while self.wants().is_some_and(|(next, _)| next >= from) {
            match &mut self.state {
                State::Done { .. } => return,
                State::Header { at, rot } => {
                    let (at, rot) = (*at, *rot);
                    if at >= end {
                        return;
                    }
                    let rest = after(at);
                    if rest.len() < BATCH_HEADER_BYTES && end.0 < self.start.file_bytes {
                        return;
                    }
                    self.header(at, rot, rest);
                }
                State::Body { header, crc, checked, at, .. } => {
                    let batch_end = at.plus(u64::from(header.bytes));
                    let rest = after(*checked);
                    let piece = &rest[..rest.len().min(batch_end.since(*checked) as usize)];
                    crc.update(piece);
                    *checked = checked.plus(piece.len() as u64);
                    if *checked < batch_end {
                        return;
                    }
                    self.body_checked();
                }
                State::Tail { checked, nonzero_end, .. } => {
                    let rest = after(*checked);
                    if let Some(last) = rest.iter().rposition(|byte| *byte != 0) {
                        *nonzero_end = checked.plus(last as u64 + 1);
                    }
                    *checked = checked.plus(rest.len() as u64);
                    if checked.0 < self.start.file_bytes {
                        return;
                    }
                }
            }
            self.at_file_end();
        }
    }

    /// Whether it may be told of zeros instead of being fed with them: what it is about to read decides nothing but where
    /// the log ends.
    #[must_use]
    pub fn may_skip_zeros(&self) -> bool {
        match self.state {
            State::Header { rot: None, .. } => self.start.segment.next_offset >= self.required(),
            State::Tail { .. } => true,
            _ => false,
        }
    }

    /// Whether the end of the log is found, and what lies behind is looked at.
    #[must_use]
    pub fn is_behind_end(&self) -> bool {
        matches!(self.state, State::Tail { .. })
    }

    /// What it wants next is zeros, up to `to`.
    ///
    /// # Panics
    /// When it may not skip any.
    pub fn skip_zeros(&mut self, to: Position) {
        assert!(self.may_skip_zeros(), "zeros in the middle of a batch, or of rot");
        if let State::Header { at, rot } = &self.state {
            let (at, rot) = (*at, *rot);
            self.bad(at, rot, None, BadBatch::Zeros);
        }
        if let State::Tail { checked, .. } = &mut self.state {
            *checked = to.max(*checked);
        }
        self.at_file_end();
    }

    /// What was found.
    ///
    /// # Panics
    /// When the walk is not done.
    #[must_use]
    pub fn finish(self) -> WalkOutcome {
        let State::Done { tail } = self.state else { panic!("the walk still wants {:?}", self.wants()) };
        let segment = self.start.segment;
        WalkOutcome {
            next_offset: segment.next_offset,
            segment,
            epochs: self.epochs,
            tail,
            fenced: self.fenced,
        }
    }

    fn header(&mut self, at: Position, rot: Option<Rot>, bytes: &[u8]) {
        // While scanning, most places are ruled out by their magic alone.
        if rot.is_some_and(|rot| rot.scanning) {
            let magic = |window: &[u8]| window[field_at::MAGIC] == 2;
            let skipped = bytes.windows(BATCH_HEADER_BYTES).position(magic);
            let skipped = skipped.unwrap_or((bytes.len() + 1).saturating_sub(BATCH_HEADER_BYTES)) as u64;
            if skipped > 0 {
                self.state = State::Header { at: at.plus(skipped), rot };
                return;
            }
        }
        match self.plausible(at, bytes) {
            Ok(header) => {
                let mut crc = Crc32c::new();
                crc.update(&bytes[field_at::ATTRIBUTES..BATCH_HEADER_BYTES]);
                let checked = at.plus(BATCH_HEADER_BYTES as u64);
                self.state = State::Body { at, rot, header, crc, checked };
            }
            Err(why) => {
                // The length of a bad batch is believed for one try, if its header is readable and it fits.
                let length = BatchHeader::parse(bytes).ok().map(|header| u64::from(header.bytes));
                self.bad(at, rot, length, why);
            }
        }
    }

    fn plausible(&self, at: Position, bytes: &[u8]) -> Result<BatchHeader, BadBatch> {
        let zeros = bytes.len().min(BATCH_HEADER_BYTES);
        if bytes[..zeros].iter().all(|byte| *byte == 0) {
            return Err(BadBatch::Zeros);
        }
        let header = BatchHeader::parse(bytes)?;
        header.check_offsets()?;
        let segment = &self.start.segment;
        let (expected, found) = (segment.next_offset, header.base_offset);
        // After rot a jump is what is to be expected.
        let may_jump = self.start.gaps || self.is_in_rot();
        let too_far = header.last_offset().since(segment.base) > i64::from(i32::MAX)
            || self.start.next_base.is_some_and(|next| header.last_offset() >= next);
        // The recovery point is a batch boundary: a batch across it, or one that leaves it out, has a rotten stamp.
        // Believed after rot, it would make what follows look torn, and have durable data cut.
        let required = self.required();
        let across =
            self.is_in_rot() && !self.start.gaps && found != required && header.next_offset() > required;
        if found < expected || (found > expected && !may_jump) || too_far || across {
            return Err(BadBatch::Offset { expected, found });
        }
        let (last, found) = (self.epoch, header.leader_epoch);
        let newest = self.start.epochs.newest_at(header.base_offset);
        if found < last || newest.is_some_and(|newest| found > newest) {
            return Err(BadBatch::Epoch { last, found });
        }
        let left = self.start.file_bytes - at.0;
        if u64::from(header.bytes) > left {
            let field = (header.bytes - super::batch::LENGTH_OVERHEAD) as i32;
            return Err(BatchError::Length { field, actual: left as usize }.into());
        }
        Ok(header)
    }

    fn is_in_rot(&self) -> bool {
        matches!(self.state, State::Header { rot: Some(_), .. } | State::Body { rot: Some(_), .. })
    }

    fn body_checked(&mut self) {
        let State::Body { at, rot, header, crc, .. } = &self.state else {
            unreachable!("asked for in Body only")
        };
        let (at, rot, header, computed) = (*at, *rot, *header, crc.value());
        if computed != header.crc {
            let why = BatchError::Crc { stored: header.crc, computed };
            return self.bad(at, rot, Some(u64::from(header.bytes)), why.into());
        }
        let segment = &mut self.start.segment;
        if rot.is_some() {
            self.fenced.push(FencedRange {
                segment: segment.base,
                from: segment.next_offset,
                to: header.base_offset,
                from_position: segment.end,
                to_position: at,
            });
        }
        segment.note_batch(&header, at);
        if header.leader_epoch > self.epoch {
            self.epoch = header.leader_epoch;
            self.epochs.push((header.leader_epoch, header.base_offset));
        }
        self.state = State::Header { at: segment.end, rot: None };
    }

    /// What lies at `at` does not continue the log; `length` is the size it claims.
    fn bad(&mut self, at: Position, rot: Option<Rot>, length: Option<u64>, why: BadBatch) {
        let segment_end = self.start.segment.end;
        self.state = match rot {
            None if self.start.segment.next_offset >= self.required() => {
                State::Tail { checked: segment_end, nonzero_end: segment_end, why: Some(why) }
            }
            None => {
                let claimed =
                    length.map(|length| at.plus(length)).filter(|end| end.0 < self.start.file_bytes);
                match claimed {
                    Some(end) => State::Header { at: end, rot: Some(Rot { scanning: false }) },
                    None => State::Header { at: at.plus(1), rot: Some(Rot { scanning: true }) },
                }
            }
            Some(Rot { scanning: false }) => {
                State::Header { at: segment_end.plus(1), rot: Some(Rot { scanning: true }) }
            }
            Some(Rot { scanning: true }) => State::Header { at: at.plus(1), rot },
        };
    }

    /// Up to which offset this segment must hold durable data.
    fn required(&self) -> Offset {
        let RecoveryStart { next_base, recovery_point, .. } = self.start;
        next_base.map_or(recovery_point, |next| next.min(recovery_point))
    }

    /// Decides what the end of the file means, once it is reached.
    fn at_file_end(&mut self) {
        let file_end = Position(self.start.file_bytes);
        let segment_end = self.start.segment.end;
        match &self.state {
            State::Header { at, rot: None } if *at >= file_end => {
                let compacted = self.start.gaps && self.start.next_base.is_some();
                if self.start.segment.next_offset < self.required() && !compacted {
                    self.fence_rest(segment_end);
                }
                self.state = State::Done { tail: Tail::Clean };
            }
            // Nothing good follows. How far the rot reaches is told by the last byte that is not zero.
            State::Header { at, rot: Some(Rot { scanning: true }) }
                if at.0 + BATCH_HEADER_BYTES as u64 > file_end.0 =>
            {
                self.state = State::Tail { checked: segment_end, nonzero_end: segment_end, why: None };
                self.at_file_end();
            }
            State::Header { at, rot: Some(Rot { scanning: false }) } if *at >= file_end => {
                let at = segment_end.plus(1);
                self.state = State::Header { at, rot: Some(Rot { scanning: true }) };
                self.at_file_end();
            }
            State::Body { at, rot, header, checked, .. }
                if *checked >= file_end && *checked < at.plus(u64::from(header.bytes)) =>
            {
                // The file is shorter than it was said to be.
                let (at, rot) = (*at, *rot);
                self.bad(at, rot, None, BadBatch::FileEnd);
                self.at_file_end();
            }
            State::Tail { checked, nonzero_end, why } if *checked >= file_end => {
                let nonzero_end = *nonzero_end;
                let tail = match why.clone() {
                    None => {
                        self.fence_rest(nonzero_end);
                        Tail::Clean
                    }
                    Some(_) if nonzero_end == segment_end => Tail::Clean,
                    Some(why) => Tail::Torn { at: segment_end, bytes: nonzero_end.since(segment_end), why },
                };
                self.state = State::Done { tail };
            }
            _ => {}
        }
    }

    /// Durable data is missing from the end of the segment on, and nothing good follows: fence it, and go on after it.
    fn fence_rest(&mut self, end: Position) {
        let to = self.required();
        let segment = &mut self.start.segment;
        self.fenced.push(FencedRange {
            segment: segment.base,
            from: segment.next_offset,
            to,
            from_position: segment.end,
            to_position: end,
        });
        segment.note_lost(to, end);
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::stamp;
    use super::super::build::BatchBuilder;
    use super::super::config::LogConfig;
    use super::*;
    use crate::types::Timestamp;
    use proptest::prelude::*;

    const BASE: Offset = Offset(100);

    /// A segment of base 100: its bytes, and where each batch begins; batches of one to three records.
    struct Image {
        bytes: Vec<u8>,
        batches: Vec<(Offset, Position)>,
        next: Offset,
    }

    impl Image {
        fn new(value_bytes: &[usize]) -> Image {
            let mut image = Image { bytes: Vec::new(), batches: Vec::new(), next: BASE };
            for (number, size) in value_bytes.iter().enumerate() {
                let records = 1 + number % 3;
                let mut builder = BatchBuilder::new(Timestamp(number as i64));
                (0..records).for_each(|_| {
                    builder.push(Timestamp(number as i64), None, Some(&vec![number as u8 + 1; *size]), &[]);
                });
                builder.finish();
                let mut batch = builder.finish().to_vec();
                stamp(&mut batch, image.next, Epoch(number as i32 / 4));
                image.batches.push((image.next, Position(image.bytes.len() as u64)));
                image.bytes.extend(batch);
                image.next = image.next.plus(records as i64);
            }
            image
        }

        fn end(&self) -> Position {
            Position(self.bytes.len() as u64)
        }

        fn begin(&self, batch: usize) -> usize {
            self.batches[batch].1.0 as usize
        }

        fn start(&self, recovery_point: Offset) -> RecoveryStart {
            RecoveryStart {
                segment: Segment::new(BASE, &LogConfig { index_interval_bytes: 300, ..LogConfig::default() }),
                next_base: None,
                recovery_point,
                last_epoch: Epoch::NONE,
                epochs: EpochCache::new(),
                gaps: false,
                file_bytes: self.bytes.len() as u64,
            }
        }

        fn walk(&self, recovery_point: Offset) -> WalkOutcome {
            walk(self.start(recovery_point), &self.bytes, usize::MAX)
        }
    }

    /// Runs a walk over `bytes`, at most `chunk` at a time.
    fn walk(start: RecoveryStart, bytes: &[u8], chunk: usize) -> WalkOutcome {
        let mut walk = RecoveryWalk::new(start);
        let mut fed = 0;
        while let Some((from, wanted)) = walk.wants() {
            let from = from.0 as usize;
            let rest = &bytes[from.min(bytes.len())..];
            walk.feed(&rest[..rest.len().min(wanted).min(chunk)]);
            fed += 1;
            assert!(fed < 1_000_000, "the walk does not end");
        }
        walk.finish()
    }

    #[test]
    fn a_whole_segment_is_found_whole() {
        let image = Image::new(&[200; 9]);
        let outcome = image.walk(image.next);
        assert_eq!((outcome.next_offset, outcome.segment.end), (image.next, image.end()));
        assert_eq!((outcome.tail, outcome.fenced), (Tail::Clean, vec![]));
        let starts = [0, 4, 8].map(|batch| image.batches[batch].0);
        assert_eq!(outcome.epochs, [(Epoch(0), starts[0]), (Epoch(1), starts[1]), (Epoch(2), starts[2])]);
        assert!(outcome.segment.index.entries() > 2, "the index is rebuilt");
        assert_eq!(outcome.segment.largest_timestamp, Timestamp(8));
    }

    #[test]
    fn prepared_room_is_a_clean_tail() {
        let mut image = Image::new(&[200; 3]);
        let end = image.end();
        image.bytes.resize(3 * RECOVERY_CHUNK_BYTES, 0);
        let outcome = image.walk(image.next);
        assert_eq!((outcome.segment.end, outcome.tail), (end, Tail::Clean));
    }

    #[test]
    fn a_torn_batch_above_the_recovery_point_ends_the_log() {
        let mut image = Image::new(&[200; 5]);
        let begin = image.begin(4);
        image.bytes.truncate(begin + 150);
        image.bytes.resize(10_000, 0);
        let outcome = image.walk(image.batches[4].0);
        assert_eq!(outcome.next_offset, image.batches[4].0);
        let Tail::Torn { at, bytes: 150, why } = outcome.tail else { panic!("{:?}", outcome.tail) };
        assert_eq!(at, image.batches[4].1);
        assert!(matches!(why, BadBatch::Batch(BatchError::Crc { .. })), "{why}");
        assert_eq!(outcome.fenced, []);
    }

    #[test]
    fn rot_below_the_recovery_point_is_fenced_and_the_rest_is_served() {
        // A bit of the records, of the length, of the magic, of the unchecksummed base offset.
        for byte in [150, 10, 16, 7, 6] {
            let mut image = Image::new(&[200; 6]);
            let at = image.begin(2) + byte;
            image.bytes[at] ^= 0x10;
            let outcome = image.walk(image.next);
            let fenced = FencedRange {
                segment: BASE,
                from: image.batches[2].0,
                to: image.batches[3].0,
                from_position: image.batches[2].1,
                to_position: image.batches[3].1,
            };
            assert_eq!(outcome.fenced, [fenced], "byte {byte}");
            assert_eq!((outcome.next_offset, outcome.segment.end), (image.next, image.end()));
            assert_eq!(outcome.tail, Tail::Clean);
        }
    }

    #[test]
    fn a_rotten_stamp_behind_rot_does_not_make_durable_batches_look_torn() {
        let mut image = Image::new(&[200; 6]);
        let (rotten, stamped) = (image.begin(2) + 150, image.begin(3) + 5);
        image.bytes[rotten] ^= 1;
        image.bytes[stamped] ^= 1;
        let outcome = image.walk(image.next);
        let lost: Vec<_> = outcome.fenced.iter().map(|range| (range.from, range.to)).collect();
        assert_eq!(lost, [(image.batches[2].0, image.batches[4].0)]);
        assert_eq!((outcome.next_offset, outcome.tail), (image.next, Tail::Clean));
    }

    #[test]
    fn zeros_where_durable_data_must_be_are_rot() {
        let mut image = Image::new(&[200; 4]);
        let (begin, end) = (image.begin(3), image.bytes.len());
        image.bytes[begin..].fill(0);
        let outcome = image.walk(image.next);
        let last = image.batches[3];
        assert_eq!(outcome.fenced[0].from, last.0);
        assert_eq!(outcome.fenced[0].to, image.next);
        assert_eq!(outcome.next_offset, image.next, "a lost offset is not assigned again");
        assert_eq!(image.walk(last.0).tail, Tail::Clean, "above the recovery point they are the end");
        assert_eq!(image.bytes.len(), end);
        image.bytes.truncate(begin);
        let outcome = image.walk(image.next);
        assert_eq!((outcome.fenced.len(), outcome.next_offset), (1, image.next), "a file that is too short");
    }

    #[test]
    fn stale_bytes_with_a_good_checksum_do_not_continue_the_log() {
        let mut image = Image::new(&[200; 4]);
        let stale = image.bytes[..image.begin(1)].to_vec();
        let (end, next) = (image.end(), image.next);
        image.bytes.extend(&stale);
        let outcome = image.walk(next);
        assert_eq!((outcome.segment.end, outcome.next_offset), (end, next));
        let why = BadBatch::Offset { expected: next, found: BASE };
        // Its last byte is a zero: no headers.
        assert_eq!(outcome.tail, Tail::Torn { at: end, bytes: stale.len() as u64 - 1, why });
        // From the future is no better, unless gaps are expected.
        let (at, bytes) = (image.bytes.len() - stale.len(), image.bytes.len());
        stamp(&mut image.bytes[at..bytes], next.plus(5), Epoch(0));
        let torn = image.walk(next).tail;
        assert!(matches!(torn, Tail::Torn { why: BadBatch::Offset { .. }, .. }), "{torn:?}");
        let outcome = walk(RecoveryStart { gaps: true, ..image.start(next) }, &image.bytes, usize::MAX);
        assert_eq!(outcome.next_offset, next.plus(6));
    }

    #[test]
    fn epochs_do_not_go_backwards_nor_beyond_the_newest() {
        let mut image = Image::new(&[200; 6]);
        let (begin, end) = (image.begin(5), image.bytes.len());
        stamp(&mut image.bytes[begin..end], image.batches[5].0, Epoch(0));
        let why = BadBatch::Epoch { last: Epoch(1), found: Epoch(0) };
        let torn = image.walk(BASE).tail;
        assert!(matches!(&torn, Tail::Torn { why: found, .. } if *found == why), "{torn:?}");
        let mut epochs = EpochCache::new();
        epochs.assign(Epoch(0), BASE);
        let start = RecoveryStart { epochs: epochs.clone(), ..image.start(BASE) };
        assert_eq!(walk(start, &image.bytes, usize::MAX).next_offset, image.batches[4].0);
        // An epoch that there is, but that began later, is as wrong: what bears the right one behind it is served.
        let mut image = Image::new(&[200; 6]);
        let (begin, end) = (image.begin(1), image.begin(2));
        stamp(&mut image.bytes[begin..end], image.batches[1].0, Epoch(2));
        epochs.assign(Epoch(1), image.batches[4].0);
        epochs.assign(Epoch(2), image.next);
        let start = RecoveryStart { epochs, ..image.start(image.next) };
        let outcome = walk(start, &image.bytes, usize::MAX);
        let fenced: Vec<_> = outcome.fenced.iter().map(|range| (range.from, range.to)).collect();
        assert_eq!(
            (fenced, outcome.next_offset),
            (vec![(image.batches[1].0, image.batches[2].0)], image.next)
        );
    }

    #[test]
    fn a_batch_larger_than_a_chunk_is_checked_in_pieces() {
        let image = Image::new(&[3 * RECOVERY_CHUNK_BYTES, 10, RECOVERY_CHUNK_BYTES]);
        let outcome = image.walk(image.next);
        assert_eq!((outcome.segment.end, outcome.tail), (image.end(), Tail::Clean));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_cut_above_the_recovery_point_leaves_a_prefix(
            sizes in proptest::collection::vec(0usize..300, 1..15),
            cut: prop::sample::Index,
            zeros in 0usize..200,
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            chunk in 61usize..2000,
        ) {
            let mut image = Image::new(&sizes);
            let ends = image.batches.iter().skip(1).copied().chain([(image.next, image.end())]).collect::<Vec<_>>();
            let cut = cut.index(image.bytes.len() + 1);
            image.bytes.truncate(cut);
            image.bytes.resize(cut + zeros, 0);
            image.bytes.extend(&garbage);
            // Zeros may happen to complete a batch whose last bytes were zeros: such a batch is as it was.
            let outcome = walk(image.start(BASE), &image.bytes, chunk);
            let floor = ends.iter().rfind(|end| end.1.0 <= cut as u64).map_or(BASE, |end| end.0);
            prop_assert!(outcome.next_offset >= floor && outcome.next_offset <= image.next);
            prop_assert_eq!(&outcome.fenced, &vec![]);
            let last = image.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
            match outcome.tail {
                Tail::Clean => prop_assert!(outcome.segment.end.0 >= last),
                Tail::Torn { at, bytes, .. } => {
                    prop_assert_eq!(at, outcome.segment.end);
                    prop_assert_eq!(at.0 + bytes, last);
                }
            }
        }

        #[test]
        fn rot_loses_no_batch_but_those_it_touches(
            sizes in proptest::collection::vec(0usize..300, 1..15),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
            zeros in 0usize..200,
            chunk in 61usize..2000,
        ) {
            let mut image = Image::new(&sizes);
            let end = image.bytes.len();
            let mut touched = std::collections::BTreeSet::new();
            for (at, bit) in flips {
                let at = at.index(end);
                // The stamp lies outside the checksum, and its neighbours are the only witnesses.
                let batch = image.batches.partition_point(|batch| batch.1.0 <= at as u64) - 1;
                if !(0..8).chain(12..16).any(|byte| byte == at - image.begin(batch)) {
                    image.bytes[at] ^= 1 << bit;
                    touched.insert(batch);
                }
            }
            image.bytes.resize(end + zeros, 0);
            let outcome = walk(image.start(image.next), &image.bytes, chunk);
            prop_assert_eq!(outcome.tail, Tail::Clean, "never truncated");
            prop_assert_eq!(outcome.next_offset, image.next);
            prop_assert!(outcome.segment.end.0 as usize <= end.max(image.bytes.len()));
            for (number, (base, position)) in image.batches.iter().enumerate() {
                let lost = outcome.fenced.iter().any(|range| range.from <= *base && *base < range.to);
                if !touched.contains(&number) {
                    let inside = |range: &FencedRange| range.from_position <= *position && *position < range.to_position;
                    prop_assert!(!lost && !outcome.fenced.iter().any(inside), "batch {} at {} was good", number, base);
                }
            }
            prop_assert!(outcome.fenced.iter().all(|range| range.from <= range.to && range.from_position <= range.to_position));
        }

        #[test]
        fn any_bytes_end_the_walk(bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(2), any::<u8>()], 0..600), below: bool, chunk in 1usize..700) {
            let image = Image { bytes, batches: Vec::new(), next: BASE };
            let point = if below { BASE.plus(50) } else { BASE };
            let outcome = walk(image.start(point), &image.bytes, chunk.max(61));
            prop_assert_eq!(outcome.next_offset, point);
        }
    }
}
