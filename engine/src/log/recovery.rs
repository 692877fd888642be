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
//! other than the next one is a bad batch; an epoch is checked against its neighbours and the newest one known.

use super::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, at as field_at};
use super::crc::Crc32c;
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
    /// The newest epoch there can be, where that is known.
    pub newest_epoch: Option<Epoch>,
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
        loop {
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
        if found < expected || (found > expected && !may_jump) || too_far {
            return Err(BadBatch::Offset { expected, found });
        }
        let (last, found) = (self.epoch, header.leader_epoch);
        if found < last || self.start.newest_epoch.is_some_and(|newest| found > newest) {
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
            State::Body { at, rot, checked, .. } if *checked >= file_end => {
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
