//! The offset index of one segment: sparse, from a batch's last offset to the position where it begins.
//!
//! On disk it is Kafka's `.index` (`OffsetIndex.java`): entries of 8 bytes, big-endian, last offset relative to
//! the segment's base and start position. In memory an entry also knows its batch's base offset, when that was
//! seen, so that a reader which asks for exactly that batch needs no walk. An index is derived from the log: it
//! may omit, never mislead. What does not hold together on disk is refused and rebuilt by walking the segment.

use super::batch::BATCH_HEADER_BYTES;
use crate::types::{Offset, Position};

/// The size of one entry on disk.
pub const INDEX_ENTRY_BYTES: usize = 8;

/// Entries a growing index has room for from the start: 16Ki entries at 4 KiB each cover 64 MiB.
pub(super) const ENTRIES_RESERVED: usize = 16 * 1024;

/// The base of an entry read from disk, where only last offsets are kept. No relative offset is that large.
const BASE_UNKNOWN: u32 = u32::MAX;

/// One batch that the index knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    base: u32,
    last: u32,
    position: u32,
}

/// The sparse map of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetIndex {
    base: Offset,
    entries: Vec<Entry>,
    interval_bytes: u32,
    /// How many bytes were appended since the batch of the last entry began.
    bytes_since: u64,
}

/// Why bytes are not an offset index of this segment. The cure is to walk the segment and build it anew.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum IndexError {
    /// Not a whole number of entries.
    #[error("{bytes} bytes are no whole number of {entry_bytes}-byte entries")]
    Size {
        /// The size of the file.
        bytes: usize,
        /// The size of an entry.
        entry_bytes: usize,
    },
    /// An entry of zeros: room set aside and never filled.
    #[error("entry {entry} is zeros")]
    Zero {
        /// Which entry, from 0.
        entry: usize,
    },
    /// An entry does not come after the one before it.
    #[error("entry {entry} does not come after the one before it")]
    Order {
        /// Which entry, from 0.
        entry: usize,
    },
    /// An entry points outside the segment.
    #[error("entry {entry} points to {value}, the segment ends at {limit}")]
    Range {
        /// Which entry, from 0.
        entry: usize,
        /// Its relative offset or position, whichever is out of range.
        value: i64,
        /// Where that must stay below.
        limit: i64,
    },
}

impl OffsetIndex {
    /// An empty index. The first entry makes room for 16,384: many a partition never gets one.
    #[must_use]
    pub fn new(base: Offset, interval_bytes: u32) -> OffsetIndex {
        OffsetIndex { base, entries: Vec::new(), interval_bytes, bytes_since: 0 }
    }

    /// One that knows nothing of the first `bytes` of its segment.
    #[must_use]
    pub(super) fn behind(base: Offset, interval_bytes: u32, bytes: u64) -> OffsetIndex {
        OffsetIndex { bytes_since: bytes, ..OffsetIndex::new(base, interval_bytes) }
    }

    /// Puts the entries of `before`, which end where this one's begin, in front.
    pub(super) fn put_before(&mut self, mut before: OffsetIndex) {
        let behind = before.entries.last().map_or(0, |last| last.position + 1);
        let known = self.entries.partition_point(|entry| entry.position < behind);
        if self.entries.is_empty() {
            self.bytes_since = before.bytes_since;
        }
        before.entries.extend_from_slice(&self.entries[known..]);
        self.entries = before.entries;
    }

    /// Of how many bytes of the segment it would know without entries.
    pub(super) fn interval_bytes(&self) -> u32 {
        self.interval_bytes
    }

    /// Reads an index file that belongs to a segment of `segment_bytes`.
    ///
    /// # Errors
    /// Entries of zeros, out of order or out of range.
    pub fn decode(
        base: Offset,
        interval_bytes: u32,
        bytes: &[u8],
        segment_bytes: u64,
    ) -> Result<OffsetIndex, IndexError> {
        let (chunks, rest) = bytes.as_chunks::<INDEX_ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(IndexError::Size { bytes: bytes.len(), entry_bytes: INDEX_ENTRY_BYTES });
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(chunks.len());
        for (index, chunk) in chunks.iter().enumerate() {
            let [a, b, c, d, e, f, g, h] = *chunk;
            let (last, position) = (i32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            // The first batch of a segment is never entered: position 0 means room that was never filled.
            if position == 0 {
                return Err(IndexError::Zero { entry: index });
            }
            if u64::from(position) + BATCH_HEADER_BYTES as u64 > segment_bytes {
                let (value, limit) = (i64::from(position), segment_bytes as i64);
                return Err(IndexError::Range { entry: index, value, limit });
            }
            let Ok(last) = u32::try_from(last) else {
                return Err(IndexError::Range { entry: index, value: i64::from(last), limit: 1 << 31 });
            };
            let before = entries.last().copied();
            let in_order = before.is_none_or(|before| {
                before.last < last && before.position.saturating_add(BATCH_HEADER_BYTES as u32) <= position
            });
            if !in_order {
                return Err(IndexError::Order { entry: index });
            }
            entries.push(Entry { base: BASE_UNKNOWN, last, position });
        }
        let bytes_since = segment_bytes - entries.last().map_or(0, |entry| u64::from(entry.position));
        Ok(OffsetIndex { base, entries, interval_bytes, bytes_since })
    }

    /// Whether no batch that it knows ends at or beyond `offset`.
    #[must_use]
    pub fn ends_below(&self, offset: Offset) -> bool {
        self.entries.last().is_none_or(|last| i64::from(last.last) < offset.since(self.base))
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * INDEX_ENTRY_BYTES);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.last.to_be_bytes());
            bytes.extend_from_slice(&entry.position.to_be_bytes());
        }
        bytes
    }

    /// Tells of a batch just appended: offsets `base` to `last`, `bytes` from `position` on. It becomes an
    /// entry when more than the index interval was appended since the last one; says whether.
    pub fn note_batch(&mut self, base: Offset, last: Offset, position: Position, bytes: u32) -> bool {
        let due = self.bytes_since > u64::from(self.interval_bytes);
        if due {
            let position = u32::try_from(position.0).expect("a batch begins within 4 GiB of its segment");
            let (base, last) = (self.relative(base), self.relative(last));
            let before = self.entries.last();
            assert!(
                before.is_none_or(|before| before.last < base && before.position < position),
                "index entry {base}..={last} at {position} after {before:?}"
            );
            if self.entries.is_empty() {
                self.entries.reserve(ENTRIES_RESERVED);
            }
            self.entries.push(Entry { base, last, position });
            self.bytes_since = 0;
        }
        self.bytes_since += u64::from(bytes);
        due
    }

    /// How many batches it knows.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// The last known batch boundary from which a walk forward meets the batch that holds `offset`; position 0
    /// when none is known. The flag says that `offset` is the first of the very batch that begins there, or lies
    /// within it.
    #[must_use]
    pub fn floor(&self, offset: Offset) -> (Position, bool) {
        let relative = offset.since(self.base);
        // The first entry whose batch ends at or after the offset: either it holds it, or the one before leads there.
        let next = self.entries.partition_point(|entry| i64::from(entry.last) < relative);
        if let Some(entry) = self.entries.get(next) {
            let base_reached = entry.base != BASE_UNKNOWN && i64::from(entry.base) <= relative;
            if base_reached || i64::from(entry.last) == relative {
                return (Position(u64::from(entry.position)), true);
            }
        }
        let before = next.checked_sub(1).map(|before| self.entries[before]);
        (Position(before.map_or(0, |entry| u64::from(entry.position))), false)
    }

    /// The largest known batch start at or below `offset` whose base offset is known.
    #[must_use]
    pub fn boundary_at_or_before(&self, offset: Offset) -> Option<(Offset, Position)> {
        let relative = offset.since(self.base);
        let count = self.entries.partition_point(|entry| i64::from(entry.last) <= relative);
        // One more than those that end by then: a batch may begin at the offset and end after it.
        let candidates = &self.entries[..(count + 1).min(self.entries.len())];
        let known = |entry: &&Entry| entry.base != BASE_UNKNOWN && i64::from(entry.base) <= relative;
        let entry = candidates.iter().rev().find(known)?;
        Some((self.base.plus(i64::from(entry.base)), Position(u64::from(entry.position))))
    }

    /// The last batch boundary after `from` and at or before `limit`, else the first one after `from`.
    #[must_use]
    pub fn boundary_within(&self, from: Position, limit: Position) -> Option<Position> {
        let within = self.entries.partition_point(|entry| u64::from(entry.position) <= limit.0);
        let last_within = within.checked_sub(1).map(|last| Position(u64::from(self.entries[last].position)));
        last_within.filter(|position| *position > from).or_else(|| {
            let next = self.entries.partition_point(|entry| u64::from(entry.position) <= from.0);
            self.entries.get(next).map(|entry| Position(u64::from(entry.position)))
        })
    }

    /// Learns the base offset of the batch at `position`, if that is an entry which did not know it.
    pub fn learn_base(&mut self, position: Position, base: Offset) {
        let Ok(at) = self.entries.binary_search_by_key(&position.0, |entry| u64::from(entry.position)) else {
            return;
        };
        let relative = self.relative(base);
        let entry = &mut self.entries[at];
        if relative > entry.last || (entry.base != BASE_UNKNOWN && entry.base != relative) {
            return; // It was read from a file that rotted; the batch is right.
        }
        entry.base = relative;
    }

    /// Forgets everything at or after `position`.
    pub fn truncate(&mut self, position: Position) {
        self.entries.truncate(self.entries.partition_point(|entry| u64::from(entry.position) < position.0));
        self.bytes_since = position.0 - self.entries.last().map_or(0, |entry| u64::from(entry.position));
    }

    /// Gives back the room that a sealed segment does not need.
    pub(super) fn shrink(&mut self) {
        self.entries.shrink_to_fit();
    }

    fn relative(&self, offset: Offset) -> u32 {
        let relative = offset.since(self.base);
        assert!(
            (0..=i64::from(i32::MAX)).contains(&relative),
            "offset {offset} in a segment of base {}",
            self.base
        );
        relative as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Batches of ten records and 3000 bytes, base 1000, interval 4096: every second one is entered.
    fn worked() -> OffsetIndex {
        let mut index = OffsetIndex::new(Offset(1000), 4096);
        for batch in 0..6 {
            let base = Offset(1000 + 10 * batch);
            let entered = index.note_batch(base, base.plus(9), Position(3000 * batch as u64), 3000);
            assert_eq!(entered, [false, false, true, false, true, false][batch as usize]);
        }
        index
    }

    #[test]
    fn a_worked_example() {
        let index = worked();
        assert_eq!(index.encode(), [0, 0, 0, 29, 0, 0, 0x17, 0x70, 0, 0, 0, 49, 0, 0, 0x2e, 0xe0]);
        assert_eq!(index.floor(Offset(1005)), (Position(0), false));
        assert_eq!(index.floor(Offset(1020)), (Position(6000), true), "its base is known");
        assert_eq!(index.floor(Offset(1025)), (Position(6000), true));
        assert_eq!(index.floor(Offset(1035)), (Position(6000), false), "one batch to walk over");
        assert_eq!(index.boundary_within(Position(0), Position(7000)), Some(Position(6000)));
        assert_eq!(index.boundary_within(Position(6000), Position(7000)), Some(Position(12000)));
        assert_eq!(index.boundary_within(Position(12000), Position(20000)), None);
        assert_eq!(index.boundary_at_or_before(Offset(1040)), Some((Offset(1040), Position(12000))));
        assert_eq!(index.boundary_at_or_before(Offset(1039)), Some((Offset(1020), Position(6000))));
        assert_eq!(index.boundary_at_or_before(Offset(1019)), None);
    }

    #[test]
    fn read_back_from_disk_it_knows_last_offsets_only_until_it_learns() {
        let mut index = OffsetIndex::decode(Offset(1000), 4096, &worked().encode(), 18000).unwrap();
        assert_eq!(index.floor(Offset(1020)), (Position(0), false));
        assert_eq!(index.floor(Offset(1029)), (Position(6000), true));
        index.learn_base(Position(6000), Offset(1020));
        assert_eq!(index.floor(Offset(1020)), (Position(6000), true));
    }

    #[test]
    fn what_could_mislead_is_refused() {
        let decode =
            |bytes: &[u8]| OffsetIndex::decode(Offset(0), 4096, bytes, 18000).map(|index| index.entries());
        let good = worked().encode();
        assert_eq!(decode(&good), Ok(2));
        assert_eq!(decode(&[]), Ok(0));
        assert_eq!(decode(&good[..15]), Err(IndexError::Size { bytes: 15, entry_bytes: 8 }));
        assert_eq!(decode(&[good.as_slice(), &[0; 8]].concat()), Err(IndexError::Zero { entry: 2 }));
        let swapped = [&good[8..], &good[..8]].concat();
        assert_eq!(decode(&swapped), Err(IndexError::Order { entry: 1 }));
        let too_far = OffsetIndex::decode(Offset(0), 4096, &good, 12060);
        assert_eq!(too_far, Err(IndexError::Range { entry: 1, value: 12000, limit: 12060 }));
        assert!(matches!(decode(&[0xff, 0, 0, 0, 0, 0, 1, 0]), Err(IndexError::Range { .. })));
    }

    proptest! {
        #[test]
        fn it_never_misleads(
            sizes in proptest::collection::vec((1i64..50, 61u32..6000), 1..60),
            from_disk: bool,
            cut in 0usize..60,
        ) {
            let mut index = OffsetIndex::new(Offset(7), 4096);
            let mut batches = Vec::new();
            let (mut offset, mut position) = (Offset(7), Position(0));
            for (records, bytes) in sizes {
                index.note_batch(offset, offset.plus(records - 1), position, bytes);
                batches.push((offset, offset.plus(records - 1), position));
                offset = offset.plus(records);
                position = position.plus(u64::from(bytes));
            }
            if from_disk {
                index = OffsetIndex::decode(Offset(7), 4096, &index.encode(), position.0).unwrap();
            }
            if cut < batches.len() {
                index.truncate(batches[cut].2);
                batches.truncate(cut);
            }
            for &(base, last, start) in &batches {
                for wanted in [base, last] {
                    let (floor, exact) = index.floor(wanted);
                    prop_assert!(floor <= start && (!exact || floor == start));
                    prop_assert!(batches.iter().any(|batch| batch.2 == floor));
                }
                if let Some(known) = index.boundary_at_or_before(base) {
                    prop_assert!(known.0 <= base);
                    prop_assert!(batches.iter().any(|batch| (batch.0, batch.2) == known));
                }
            }
        }
    }
}
