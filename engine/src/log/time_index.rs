//! The time index of one segment: sparse, from the largest timestamp so far to the batch that carried it.
//!
//! On disk it is Kafka's `.timeindex` (`TimeIndex.java`): entries of 12 bytes, big-endian, timestamp and the last
//! offset of that batch relative to the segment's base. An entry says: no batch before this one carries a
//! timestamp as large. Like every index it may omit, never mislead.

use super::offset_index::{ENTRIES_RESERVED, IndexError};
use crate::types::{Offset, Timestamp};

/// The size of one entry on disk.
pub const TIME_INDEX_ENTRY_BYTES: usize = 12;

/// The sparse map from time to offset of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeIndex {
    base: Offset,
    entries: Vec<(Timestamp, u32)>,
}

impl TimeIndex {
    /// An empty index. The first entry makes room for 16,384.
    #[must_use]
    pub fn new(base: Offset) -> TimeIndex {
        TimeIndex { base, entries: Vec::new() }
    }

    /// Puts the entries of `before`, which knows of earlier offsets only, in front.
    pub(super) fn put_before(&mut self, mut before: TimeIndex) {
        let news = |entry: &&(Timestamp, u32)| {
            before.entries.last().is_none_or(|last| last.0 < entry.0 && last.1 <= entry.1)
        };
        let news: Vec<_> = self.entries.iter().filter(news).copied().collect();
        before.entries.extend(news);
        self.entries = before.entries;
    }

    /// Reads an index file that belongs to a segment with offsets below `next_offset`.
    ///
    /// # Errors
    /// Entries out of order or out of range. Zeros are room that was never filled, but as the first entry they are what
    /// they say: a batch of one record at time 0.
    pub fn decode(base: Offset, bytes: &[u8], next_offset: Offset) -> Result<TimeIndex, IndexError> {
        let (chunks, rest) = bytes.as_chunks::<TIME_INDEX_ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(IndexError::Size { bytes: bytes.len(), entry_bytes: TIME_INDEX_ENTRY_BYTES });
        }
        let mut entries: Vec<(Timestamp, u32)> = Vec::with_capacity(chunks.len());
        for (index, chunk) in chunks.iter().enumerate() {
            let (time, relative) = chunk.split_at(8);
            let timestamp = Timestamp(i64::from_be_bytes(time.try_into().expect("8 of 12 bytes")));
            let relative = i32::from_be_bytes(relative.try_into().expect("4 of 12 bytes"));
            if timestamp == Timestamp(0) && relative == 0 && index > 0 {
                return Err(IndexError::Zero { entry: index });
            }
            let limit = next_offset.since(base);
            if timestamp.0 < 0 || relative < 0 || i64::from(relative) >= limit {
                return Err(IndexError::Range { entry: index, value: i64::from(relative), limit });
            }
            let relative = relative as u32;
            if entries.last().is_some_and(|before| before.0 >= timestamp || before.1 > relative) {
                return Err(IndexError::Order { entry: index });
            }
            entries.push((timestamp, relative));
        }
        Ok(TimeIndex { base, entries })
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * TIME_INDEX_ENTRY_BYTES);
        for (timestamp, relative) in &self.entries {
            bytes.extend_from_slice(&timestamp.0.to_be_bytes());
            bytes.extend_from_slice(&relative.to_be_bytes());
        }
        bytes
    }

    /// Tells of the largest timestamp so far and the last offset of the first batch that carries it. Becomes an
    /// entry when it is news.
    pub fn note(&mut self, largest: Timestamp, last_offset: Offset) {
        let relative = last_offset.since(self.base);
        assert!(
            (0..=i64::from(i32::MAX)).contains(&relative),
            "offset {last_offset} in a segment of {}",
            self.base
        );
        if largest.0 >= 0 && self.last().is_none_or(|(timestamp, _)| timestamp < largest) {
            let relative = relative as u32;
            assert!(
                self.entries.last().is_none_or(|before| before.1 <= relative),
                "time index goes backwards"
            );
            if self.entries.is_empty() {
                self.entries.reserve(ENTRIES_RESERVED);
            }
            self.entries.push((largest, relative));
        }
    }

    /// The last entry: the largest timestamp it knows, and that batch's last offset.
    #[must_use]
    pub fn last(&self) -> Option<(Timestamp, Offset)> {
        self.entries.last().map(|&(timestamp, relative)| (timestamp, self.base.plus(i64::from(relative))))
    }

    /// An offset at or before the first batch with a timestamp of `timestamp` or later.
    #[must_use]
    pub fn floor(&self, timestamp: Timestamp) -> Offset {
        let count = self.entries.partition_point(|entry| entry.0 <= timestamp);
        count.checked_sub(1).map_or(self.base, |last| self.base.plus(i64::from(self.entries[last].1)))
    }

    /// How many entries there are.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Forgets everything at or after `offset`.
    pub fn truncate(&mut self, offset: Offset) {
        let relative = offset.since(self.base);
        self.entries.truncate(self.entries.partition_point(|entry| i64::from(entry.1) < relative));
    }

    pub(super) fn shrink(&mut self) {
        self.entries.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worked_example() {
        let mut index = TimeIndex::new(Offset(1000));
        index.note(Timestamp(500), Offset(1009));
        index.note(Timestamp(500), Offset(1009));
        index.note(Timestamp(900), Offset(1029));
        assert_eq!(index.entries(), 2, "the same again is no news");
        assert_eq!(index.floor(Timestamp(499)), Offset(1000));
        assert_eq!(index.floor(Timestamp(500)), Offset(1009));
        assert_eq!(index.floor(Timestamp(899)), Offset(1009));
        assert_eq!(index.floor(Timestamp(2000)), Offset(1029));
        let bytes = index.encode();
        assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 1, 0xf4, 0, 0, 0, 9]);
        let read = TimeIndex::decode(Offset(1000), &bytes, Offset(1030)).unwrap();
        assert_eq!(read, index);
        index.truncate(Offset(1029));
        assert_eq!(index.last(), Some((Timestamp(500), Offset(1009))));
    }

    #[test]
    fn a_first_record_at_time_zero_can_be_stored() {
        let mut index = TimeIndex::new(Offset(1000));
        index.note(Timestamp(0), Offset(1000));
        assert_eq!(TimeIndex::decode(Offset(1000), &index.encode(), Offset(1001)), Ok(index));
        let unfilled = TimeIndex::decode(Offset(1000), &[0; 24], Offset(1001));
        assert_eq!(unfilled, Err(IndexError::Zero { entry: 1 }));
    }

    #[test]
    fn what_could_mislead_is_refused() {
        let entry =
            |timestamp: i64, relative: i32| [&timestamp.to_be_bytes()[..], &relative.to_be_bytes()].concat();
        let decode =
            |entries: &[Vec<u8>]| TimeIndex::decode(Offset(0), &entries.concat(), Offset(30)).map(|_| ());
        assert_eq!(decode(&[entry(5, 9), entry(6, 9), entry(7, 29)]), Ok(()));
        assert_eq!(decode(&[entry(5, 9), vec![0; 12]]), Err(IndexError::Zero { entry: 1 }));
        assert_eq!(decode(&[entry(5, 9), entry(5, 10)]), Err(IndexError::Order { entry: 1 }));
        assert_eq!(decode(&[entry(5, 9), entry(6, 8)]), Err(IndexError::Order { entry: 1 }));
        assert_eq!(decode(&[entry(5, 30)]), Err(IndexError::Range { entry: 0, value: 30, limit: 30 }));
        assert!(matches!(decode(&[entry(-1, 3)]), Err(IndexError::Range { .. })));
        assert!(matches!(decode(&[vec![1; 13]]), Err(IndexError::Size { .. })));
    }
}
