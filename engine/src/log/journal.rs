//! The shard journal's bytes: what a file of it begins with, units and frames, and the scan of what a crash left.
//!
//! A journal file is written from its first block on and used again and again: each time it gets a new number, and
//! everything in it bears that number under its checksum, so what an earlier use left behind does not count. What one
//! write carries is a *unit*: whole blocks, numbered through for as long as the shard runs. A unit holds *frames*, each
//! with batches of one partition and where their segment will have them; so a frame means the same whoever reads it,
//! how often that is done, and whatever the number of shards. The bytes are drawn in `FORMAT.md`.
//!
//! A unit is written after the one before it is safe. So a unit that cannot be read is a torn end if it is the last one,
//! and damage if it is not; the scan goes on behind it at the next block that begins a unit.

use super::crc::{Crc32c, crc32c};
use super::watermarks::LogPoint;
use crate::types::{Epoch, Offset, PartitionId, Position, ShardId, TopicId};

mod scan;

pub use scan::{FoundFrame, JournalScan, ScannedFile};

/// Units begin at multiples of this, and so do writes.
pub const JOURNAL_BLOCK: usize = 4096;
/// The most bytes of one unit.
pub const UNIT_BYTES_MAX: usize = 1 << 20;
/// What a unit begins with.
pub const UNIT_HEADER_BYTES: usize = 64;
/// What a frame begins with.
pub const FRAME_HEADER_BYTES: usize = 96;

const FILE_MAGIC: u32 = 0x724a_6631; // "rJf1"
const UNIT_MAGIC: u32 = 0x724a_7531; // "rJu1"
const FRAME_MAGIC: u32 = 0x724a_6231; // "rJb1"

/// Which file it is, and which use of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalFile {
    /// The data directory that it belongs to.
    pub directory: TopicId,
    /// Counts the starts of the engine on this directory.
    pub start: u64,
    /// Whose it is.
    pub shard: ShardId,
    /// Counts the uses of this shard's files since that start.
    pub number: u64,
}

/// Which unit of which use of a file; part of every checksum within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitStamp {
    /// See [`JournalFile::start`].
    pub start: u64,
    /// See [`JournalFile::number`].
    pub number: u64,
    /// Counts the units of a shard since the start.
    pub sequence: u64,
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Batches of a partition.
    Batches,
    /// What earlier frames hold of the partition is in its segments, or was cut from them: it does not count any more.
    Void,
}

/// One frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: FrameKind,
    /// Whose batches they are.
    pub partition: PartitionId,
    /// The epoch of the first one.
    pub epoch: Epoch,
    /// Where the first one lies in the log.
    pub from: LogPoint,
    /// The offset behind the last one.
    pub next_offset: Offset,
    /// What lies below this offset the journal does not promise to hold: the segments do, or nobody was told of it.
    pub after: Offset,
    /// Bytes of batches.
    pub bytes: u32,
}

impl Frame {
    /// Just behind its last batch.
    #[must_use]
    pub fn end(&self) -> LogPoint {
        let position = self.from.position.plus(u64::from(self.bytes));
        LogPoint { offset: self.next_offset, segment: self.from.segment, position }
    }
}

impl JournalFile {
    /// The file's first block.
    #[must_use]
    pub fn encode(&self) -> [u8; JOURNAL_BLOCK] {
        let mut block = [0; JOURNAL_BLOCK];
        block[..4].copy_from_slice(&FILE_MAGIC.to_be_bytes());
        block[8..24].copy_from_slice(&self.directory.0);
        block[24..32].copy_from_slice(&self.start.to_be_bytes());
        block[32..40].copy_from_slice(&self.number.to_be_bytes());
        block[40..42].copy_from_slice(&self.shard.0.to_be_bytes());
        let crc = crc32c(&block[8..48]);
        block[4..8].copy_from_slice(&crc.to_be_bytes());
        block
    }

    /// What the first block says, if it is one.
    #[must_use]
    pub fn decode(block: &[u8]) -> Option<JournalFile> {
        let head = block.first_chunk::<48>()?;
        let sound = u32_at(head, 0) == FILE_MAGIC && u32_at(head, 4) == crc32c(&head[8..]);
        sound.then(|| JournalFile {
            directory: TopicId(bytes_at(head, 8)),
            start: u64_at(head, 24),
            number: u64_at(head, 32),
            shard: ShardId(u16::from_be_bytes(bytes_at(head, 40))),
        })
    }
}

impl UnitStamp {
    /// That of the unit that begins with `bytes`, if one does.
    #[must_use]
    pub fn of_unit(bytes: &[u8]) -> Option<UnitStamp> {
        UnitHead::decode(bytes).map(|unit| unit.stamp)
    }

    fn seed(&self) -> Crc32c {
        let mut crc = Crc32c::new();
        crc.update(&self.start.to_be_bytes());
        crc.update(&self.number.to_be_bytes());
        crc.update(&self.sequence.to_be_bytes());
        crc
    }
}

/// A unit that is being put together in a buffer of at most [`UNIT_BYTES_MAX`].
#[derive(Debug)]
pub struct UnitBuilder {
    stamp: UnitStamp,
    bytes: usize,
    frames: u32,
    /// The frame whose batches are being added: its head, and their checksum so far.
    open: Option<(usize, Frame, Crc32c)>,
}

impl UnitBuilder {
    /// An empty one.
    #[must_use]
    pub fn new(stamp: UnitStamp) -> UnitBuilder {
        UnitBuilder { stamp, bytes: UNIT_HEADER_BYTES, frames: 0, open: None }
    }

    /// How many frames it has.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Whether another frame with so many bytes of batches fits a buffer of `capacity`.
    #[must_use]
    pub fn fits(&self, bytes: u64, capacity: usize) -> bool {
        (self.bytes + FRAME_HEADER_BYTES) as u64 + bytes <= capacity.min(UNIT_BYTES_MAX) as u64
    }

    /// Begins a frame; its batches follow by [`UnitBuilder::push`].
    ///
    /// # Panics
    /// When the frame before has not got all its bytes.
    pub fn begin(&mut self, frame: Frame) {
        assert!(self.open.is_none(), "a frame begins before the one before has its bytes");
        self.open = Some((self.bytes, frame, self.stamp.seed()));
        self.bytes += FRAME_HEADER_BYTES;
    }

    /// Adds bytes of the frame that was begun.
    ///
    /// # Panics
    /// When the buffer is too short: see [`UnitBuilder::fits`].
    pub fn push(&mut self, buffer: &mut [u8], bytes: &[u8]) {
        let (_, _, crc) = self.open.as_mut().expect("bytes belong to a frame that was begun");
        crc.update(bytes);
        buffer[self.bytes..][..bytes.len()].copy_from_slice(bytes);
        self.bytes += bytes.len();
    }

    /// Ends the frame that was begun.
    ///
    /// # Panics
    /// When it got more or fewer bytes than its head says.
    pub fn end(&mut self, buffer: &mut [u8]) {
        let (at, frame, crc) = self.open.take().expect("a frame that was begun ends");
        assert_eq!(self.bytes - at - FRAME_HEADER_BYTES, frame.bytes as usize, "bytes of {frame:?}");
        let mut head = [0; FRAME_HEADER_BYTES];
        head[..4].copy_from_slice(&FRAME_MAGIC.to_be_bytes());
        head[8..12].copy_from_slice(&crc.value().to_be_bytes());
        head[12..16].copy_from_slice(&frame.bytes.to_be_bytes());
        head[16..32].copy_from_slice(&frame.partition.topic.0);
        head[32..36].copy_from_slice(&frame.partition.index.to_be_bytes());
        head[36..40].copy_from_slice(&frame.epoch.0.to_be_bytes());
        head[40..48].copy_from_slice(&frame.from.offset.0.to_be_bytes());
        head[48..56].copy_from_slice(&frame.next_offset.0.to_be_bytes());
        head[56..64].copy_from_slice(&frame.from.segment.0.to_be_bytes());
        head[64..72].copy_from_slice(&frame.from.position.0.to_be_bytes());
        head[72..80].copy_from_slice(&frame.after.0.to_be_bytes());
        head[80] = match frame.kind {
            FrameKind::Batches => 0,
            FrameKind::Void => 1,
        };
        let mut own = self.stamp.seed();
        own.update(&head[8..]);
        head[4..8].copy_from_slice(&own.value().to_be_bytes());
        buffer[at..][..FRAME_HEADER_BYTES].copy_from_slice(&head);
        self.frames += 1;
    }

    /// Writes the unit's head and fills its last block with zeros. How many bytes are to be written.
    ///
    /// # Panics
    /// When a frame lacks bytes.
    pub fn seal(self, buffer: &mut [u8]) -> usize {
        assert!(self.open.is_none(), "a unit is sealed before its last frame has its bytes");
        let mut head = [0; UNIT_HEADER_BYTES];
        head[..4].copy_from_slice(&UNIT_MAGIC.to_be_bytes());
        head[8..16].copy_from_slice(&self.stamp.start.to_be_bytes());
        head[16..24].copy_from_slice(&self.stamp.number.to_be_bytes());
        head[24..32].copy_from_slice(&self.stamp.sequence.to_be_bytes());
        head[32..36].copy_from_slice(&(self.bytes as u32).to_be_bytes());
        head[36..40].copy_from_slice(&self.frames.to_be_bytes());
        let crc = crc32c(&head[8..]);
        head[4..8].copy_from_slice(&crc.to_be_bytes());
        buffer[..UNIT_HEADER_BYTES].copy_from_slice(&head);
        let whole = self.bytes.next_multiple_of(JOURNAL_BLOCK);
        buffer[self.bytes..whole].fill(0);
        whole
    }
}

/// A unit's head, as found.
#[derive(Clone, Copy, Debug)]
struct UnitHead {
    stamp: UnitStamp,
    bytes: usize,
    frames: u32,
}

impl UnitHead {
    fn decode(bytes: &[u8]) -> Option<UnitHead> {
        let head = bytes.first_chunk::<UNIT_HEADER_BYTES>()?;
        if u32_at(head, 0) != UNIT_MAGIC || u32_at(head, 4) != crc32c(&head[8..]) {
            return None;
        }
        let stamp =
            UnitStamp { start: u64_at(head, 8), number: u64_at(head, 16), sequence: u64_at(head, 24) };
        let unit = UnitHead { stamp, bytes: u32_at(head, 32) as usize, frames: u32_at(head, 36) };
        (UNIT_HEADER_BYTES..=UNIT_BYTES_MAX).contains(&unit.bytes).then_some(unit)
    }
}

/// The head of a frame of the unit with this stamp, and the checksum of its bytes.
fn decode_frame(stamp: &UnitStamp, bytes: &[u8]) -> Option<(Frame, u32)> {
    let head = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
    let mut own = stamp.seed();
    own.update(&head[8..]);
    if u32_at(head, 0) != FRAME_MAGIC || u32_at(head, 4) != own.value() {
        return None;
    }
    let kind = match head[80] {
        0 => FrameKind::Batches,
        1 => FrameKind::Void,
        _ => return None,
    };
    let number = |at| u64_at(head, at) as i64;
    let frame = Frame {
        kind,
        partition: PartitionId { topic: TopicId(bytes_at(head, 16)), index: u32_at(head, 32) as i32 },
        epoch: Epoch(u32_at(head, 36) as i32),
        from: LogPoint {
            offset: Offset(number(40)),
            segment: Offset(number(56)),
            position: Position(u64_at(head, 64)),
        },
        next_offset: Offset(number(48)),
        after: Offset(number(72)),
        bytes: u32_at(head, 12),
    };
    let sound = frame.from.segment.0 >= 0
        && frame.from.segment <= frame.from.offset
        && frame.from.offset <= frame.next_offset
        && frame.from.position.0 <= u64::from(u32::MAX);
    sound.then_some((frame, u32_at(head, 8)))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a head is as long as its fields")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(bytes, at))
}
