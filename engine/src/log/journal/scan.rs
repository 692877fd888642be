//! The scan of one journal file: which frames can be read, and what cannot.
//!
//! It does no I/O: it says which bytes it [wants](JournalScan::wants) and is fed with them. It keeps no batches, only
//! where they lie.

use super::{
    Crc32c, FRAME_HEADER_BYTES, Frame, JOURNAL_BLOCK, JournalFile, UNIT_BYTES_MAX, UNIT_HEADER_BYTES,
    UnitHead, UnitStamp, decode_frame,
};

/// A frame that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundFrame {
    /// What its head says.
    pub frame: Frame,
    /// The unit that it came with: frames of a shard are in the order of these, and of their places.
    pub sequence: u64,
    /// Where its batches lie in the journal file.
    pub at: u64,
    /// Whether they are as they were written.
    pub sound: bool,
}

/// What one file held.
#[derive(Clone, Debug)]
pub struct ScannedFile {
    /// Which use of it this is.
    pub file: JournalFile,
    /// In the order of the file.
    pub frames: Vec<FoundFrame>,
    /// The units that could be read, at least in part: numbers, ascending.
    pub units: Vec<u64>,
    /// Of these, the ones that lost frames of which not even the partition can be told.
    pub nameless: Vec<u64>,
}

/// A scan under way.
#[derive(Debug)]
pub struct JournalScan {
    found: ScannedFile,
    at: u64,
    file_bytes: u64,
}

impl JournalScan {
    /// A scan of a file of `file_bytes`, whose first block is `file`.
    #[must_use]
    pub fn new(file: JournalFile, file_bytes: u64) -> JournalScan {
        let found = ScannedFile { file, frames: Vec::new(), units: Vec::new(), nameless: Vec::new() };
        JournalScan { found, at: JOURNAL_BLOCK as u64, file_bytes }
    }

    /// The bytes it wants next, position and length; `None` when it is done.
    #[must_use]
    pub fn wants(&self) -> Option<(u64, usize)> {
        let left = self.file_bytes.saturating_sub(self.at);
        (left >= UNIT_HEADER_BYTES as u64).then_some((self.at, left.min(UNIT_BYTES_MAX as u64) as usize))
    }

    /// Takes what was wanted; less means that the file ends there.
    ///
    /// # Panics
    /// When nothing was wanted.
    pub fn feed(&mut self, bytes: &[u8]) {
        let (from, wanted) = self.wants().expect("a scan that is done is fed no more");
        if bytes.len() < wanted {
            self.file_bytes = from + bytes.len() as u64;
        }
        let mut at = 0;
        while bytes.len() - at >= UNIT_HEADER_BYTES {
            let rest = &bytes[at..];
            let file = self.found.file;
            // One that an earlier use left is as good as none.
            let unit = UnitHead::decode(rest)
                .filter(|unit| unit.stamp.start == file.start && unit.stamp.number == file.number);
            at += match unit {
                Some(unit) if unit.bytes <= rest.len() => {
                    self.unit(&unit, from + at as u64, &rest[..unit.bytes]);
                    unit.bytes.next_multiple_of(JOURNAL_BLOCK)
                }
                // Asked for again, from its beginning on.
                Some(_) if at > 0 && from + (bytes.len() as u64) < self.file_bytes => break,
                _ => JOURNAL_BLOCK,
            }
            .min(bytes.len() - at);
        }
        self.at = from + at as u64;
    }

    fn unit(&mut self, unit: &UnitHead, position: u64, bytes: &[u8]) {
        self.found.units.push(unit.stamp.sequence);
        let mut at = UNIT_HEADER_BYTES;
        for _ in 0..unit.frames {
            let Some((frame, crc)) = decode_frame(&unit.stamp, &bytes[at..]) else {
                self.found.nameless.push(unit.stamp.sequence);
                return;
            };
            at += FRAME_HEADER_BYTES;
            let batches = bytes.get(at..at + frame.bytes as usize);
            let sound = batches.is_some_and(|batches| checksum(&unit.stamp, batches) == crc);
            let (sequence, place) = (unit.stamp.sequence, position + at as u64);
            self.found.frames.push(FoundFrame { frame, sequence, at: place, sound });
            if batches.is_none() {
                self.found.nameless.push(unit.stamp.sequence);
                return;
            }
            at += frame.bytes as usize;
        }
    }

    /// What was found.
    ///
    /// # Panics
    /// When the scan is not done.
    #[must_use]
    pub fn finish(self) -> ScannedFile {
        assert!(self.wants().is_none(), "the scan still wants {:?}", self.wants());
        self.found
    }
}

fn checksum(stamp: &UnitStamp, batches: &[u8]) -> u32 {
    let mut crc: Crc32c = stamp.seed();
    crc.update(batches);
    crc.value()
}

#[cfg(test)]
mod tests {
    use super::super::{FrameKind, UnitBuilder};
    use super::*;
    use crate::log::LogPoint;
    use crate::types::{Epoch, Offset, PartitionId, Position, ShardId, TopicId};

    const FILE: JournalFile =
        JournalFile { directory: TopicId([7; 16]), start: 3, shard: ShardId(1), number: 9 };

    fn frame(offset: i64, bytes: u32) -> Frame {
        Frame {
            kind: FrameKind::Batches,
            partition: PartitionId { topic: TopicId([1; 16]), index: 4 },
            epoch: Epoch(2),
            from: LogPoint { offset: Offset(offset), segment: Offset(0), position: Position(offset as u64) },
            next_offset: Offset(offset + 1),
            after: Offset(0),
            bytes,
        }
    }

    /// A file with units of so many frames each, of growing sizes.
    fn file(number: u64, units: &[usize]) -> Vec<u8> {
        let mut file = JournalFile { number, ..FILE }.encode().to_vec();
        let mut offset = 0;
        for (index, &frames) in units.iter().enumerate() {
            let mut buffer = vec![0xaa; 64 << 10];
            let stamp = UnitStamp { start: FILE.start, number, sequence: 20 + index as u64 };
            let mut unit = UnitBuilder::new(stamp);
            for _ in 0..frames {
                let bytes = vec![offset as u8; 100 + 900 * offset as usize];
                unit.begin(frame(offset, bytes.len() as u32));
                unit.push(&mut buffer, &bytes[..60]);
                unit.push(&mut buffer, &bytes[60..]);
                unit.end(&mut buffer);
                offset += 1;
            }
            let whole = unit.seal(&mut buffer);
            file.extend_from_slice(&buffer[..whole]);
        }
        file.resize(file.len() + 5 * JOURNAL_BLOCK, 0);
        file
    }

    fn scan(bytes: &[u8]) -> ScannedFile {
        let mut scan = JournalScan::new(JournalFile::decode(bytes).unwrap(), bytes.len() as u64);
        while let Some((at, length)) = scan.wants() {
            scan.feed(&bytes[at as usize..][..length]);
        }
        scan.finish()
    }

    fn offsets(found: &ScannedFile) -> Vec<(i64, bool)> {
        found.frames.iter().map(|f| (f.frame.from.offset.0, f.sound)).collect()
    }

    #[test]
    fn what_was_written_is_found_where_it_lies() {
        let bytes = file(9, &[1, 3, 2]);
        let found = scan(&bytes);
        assert_eq!((found.file, &found.units[..]), (FILE, &[20, 21, 22][..]));
        assert!(found.nameless.is_empty());
        assert_eq!(found.frames.len(), 6);
        for (index, one) in found.frames.iter().enumerate() {
            let length = 100 + 900 * index;
            assert_eq!(one.frame, frame(index as i64, length as u32));
            assert!(one.sound && bytes[one.at as usize..][..length].iter().all(|b| *b == index as u8));
        }
    }

    #[test]
    fn one_flipped_bit_costs_what_it_lies_in_and_nothing_behind() {
        let bytes = file(9, &[1, 3, 2]);
        let whole = offsets(&scan(&bytes));
        for at in JOURNAL_BLOCK..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let found = scan(&bytes);
            let lost: Vec<i64> =
                whole.iter().map(|f| f.0).filter(|o| !offsets(&found).contains(&(*o, true))).collect();
            assert!(lost.len() <= 3, "byte {at}: {lost:?}");
            let last = *whole.last().unwrap();
            let in_last_unit = found.frames.last().is_none_or(|f| f.sequence < 22 || !f.sound);
            assert!(
                offsets(&found).contains(&last) || in_last_unit || !found.nameless.is_empty(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn what_an_earlier_use_left_does_not_count() {
        let (old, new) = (file(8, &[2, 2, 2, 2]), file(9, &[1]));
        let mut bytes = old.clone();
        let written = new.len() - 5 * JOURNAL_BLOCK;
        bytes[..written].copy_from_slice(&new[..written]);
        assert_eq!(offsets(&scan(&bytes)), [(0, true)]);
        // Nor does what a swapped first block says of bytes that are not its own.
        bytes = old;
        bytes[..JOURNAL_BLOCK].copy_from_slice(&new[..JOURNAL_BLOCK]);
        assert!(scan(&bytes).frames.is_empty());
    }

    #[test]
    fn a_file_cut_anywhere_gives_a_prefix() {
        let bytes = file(9, &[1, 3, 2]);
        let whole = offsets(&scan(&bytes));
        for end in JOURNAL_BLOCK..bytes.len() {
            let found = offsets(&scan(&bytes[..end]));
            assert_eq!(found[..], whole[..found.len()], "cut at {end}");
        }
    }
}
