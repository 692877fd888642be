//! A walk from header to header inside one segment, to the batch that holds an offset or a time.
//!
//! The sparse index leads near; the last few kilobytes are walked. The walk asks for the bytes it needs, 61 a
//! batch, and skips the records.

use super::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader};
use crate::types::{Offset, Position, Timestamp};

/// A walk under way.
#[derive(Clone, Debug)]
pub struct HeaderWalk {
    wanted: Wanted,
    position: Position,
    end: Position,
    next_offset: Offset,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// The first batch that ends at or after the offset.
    Offset(Offset),
    /// The first batch from the offset on with a timestamp this late.
    Time(Timestamp, Offset),
}

/// What the walk wants or has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalkStep {
    /// The batch.
    Found(FoundBatch),
    /// It goes on with at least the 61 bytes from `position` on.
    NeedMore {
        /// Where the next header begins.
        position: Position,
    },
    /// No such batch before the end of the walk: go on behind it (the next segment, or the far side of a fence).
    Exhausted,
    /// What lies at `position` is no batch, or not one that belongs there.
    Bad {
        /// Where.
        position: Position,
        /// Why.
        why: BatchError,
    },
}

/// The batch that a walk was looking for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundBatch {
    /// Where it begins.
    pub position: Position,
    /// Its first offset.
    pub base_offset: Offset,
    /// Its size.
    pub bytes: u32,
    /// Its largest timestamp.
    pub max_timestamp: Timestamp,
}

impl HeaderWalk {
    /// A walk from the batch boundary `from` to at most `to`, for the batch that holds `offset` (or, where
    /// compaction took it, the next one).
    #[must_use]
    pub fn to_offset(offset: Offset, from: Position, to: Position) -> HeaderWalk {
        HeaderWalk { wanted: Wanted::Offset(offset), position: from, end: to, next_offset: Offset(0) }
    }

    /// A walk from the batch boundary `from` to at most `to`, for the first batch that ends at or after
    /// `log_start` and has a timestamp of `timestamp` or later.
    #[must_use]
    pub fn to_timestamp(timestamp: Timestamp, log_start: Offset, from: Position, to: Position) -> HeaderWalk {
        HeaderWalk {
            wanted: Wanted::Time(timestamp, log_start),
            position: from,
            end: to,
            next_offset: Offset(0),
        }
    }

    /// Where the next header is wanted.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Walks over `bytes`, which lie at `at` of the segment.
    ///
    /// # Panics
    /// When `at` is behind the position that was asked for.
    pub fn feed(&mut self, at: Position, bytes: &[u8]) -> WalkStep {
        assert!(at <= self.position, "fed from {at}, wanted {}", self.position);
        while self.position < self.end {
            let position = self.position;
            let within = usize::try_from(position.since(at)).unwrap_or(usize::MAX);
            let rest = bytes.get(within..).unwrap_or_default();
            if rest.len() < BATCH_HEADER_BYTES {
                let left = self.end.since(position);
                if left < BATCH_HEADER_BYTES as u64 {
                    return WalkStep::Bad { position, why: BatchError::TooShort(left as usize) };
                }
                return WalkStep::NeedMore { position };
            }
            let header = match self.check(rest) {
                Ok(header) => header,
                Err(why) => return WalkStep::Bad { position, why },
            };
            let found = match self.wanted {
                Wanted::Offset(offset) => header.last_offset() >= offset,
                Wanted::Time(time, log_start) => {
                    header.max_timestamp >= time && header.last_offset() >= log_start
                }
            };
            if found {
                let BatchHeader { base_offset, bytes, max_timestamp, .. } = header;
                return WalkStep::Found(FoundBatch { position, base_offset, bytes, max_timestamp });
            }
            self.next_offset = header.next_offset();
            self.position = position.plus(u64::from(header.bytes));
        }
        WalkStep::Exhausted
    }

    fn check(&self, bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        header.check_offsets()?;
        if header.base_offset < self.next_offset {
            let BatchHeader { base_offset: base, last_offset_delta, .. } = header;
            return Err(BatchError::Offsets { base, last_offset_delta });
        }
        let left = self.end.since(self.position);
        if u64::from(header.bytes) > left {
            let field = (header.bytes - super::batch::LENGTH_OVERHEAD) as i32;
            return Err(BatchError::Length { field, actual: left as usize });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::stamp;
    use super::super::build::BatchBuilder;
    use super::*;
    use crate::types::Epoch;

    /// Batches of three records at 10, 13, 16, of 200 to 202 value bytes, times 100, 200, 300.
    fn worked() -> (Vec<u8>, Vec<u64>) {
        let (mut image, mut starts) = (Vec::new(), Vec::new());
        for batch in 0..3usize {
            let time = Timestamp(100 * (batch as i64 + 1));
            let mut builder = BatchBuilder::new(time);
            (0..3).for_each(|_| builder.push(time, None, Some(&vec![1; 200 + batch]), &[]));
            builder.finish();
            let mut bytes = builder.finish().to_vec();
            stamp(&mut bytes, Offset(10 + 3 * batch as i64), Epoch(0));
            starts.push(image.len() as u64);
            image.extend(bytes);
        }
        starts.push(image.len() as u64);
        (image, starts)
    }

    #[test]
    fn it_asks_for_one_header_after_the_other() {
        let (image, starts) = worked();
        let mut walk = HeaderWalk::to_offset(Offset(17), Position(0), Position(starts[3]));
        for &start in &starts[..2] {
            assert_eq!(walk.position(), Position(start));
            let fed = walk.feed(Position(start), &image[start as usize..][..61]);
            assert!(matches!(fed, WalkStep::NeedMore { .. }));
        }
        let WalkStep::Found(found) = walk.feed(Position(starts[2]), &image[starts[2] as usize..]) else {
            panic!()
        };
        assert_eq!((found.position, found.base_offset), (Position(starts[2]), Offset(16)));
    }

    #[test]
    fn by_time_it_leaves_out_what_is_before_the_log_start() {
        let (image, starts) = worked();
        let find = |time, log_start| {
            let (from, to) = (Position(0), Position(starts[3]));
            HeaderWalk::to_timestamp(Timestamp(time), Offset(log_start), from, to).feed(Position(0), &image)
        };
        assert!(matches!(find(150, 0), WalkStep::Found(FoundBatch { base_offset: Offset(13), .. })));
        assert!(matches!(find(150, 16), WalkStep::Found(FoundBatch { base_offset: Offset(16), .. })));
        assert_eq!(find(301, 0), WalkStep::Exhausted);
    }

    #[test]
    fn bad_bytes_are_told() {
        let (mut image, starts) = worked();
        image[starts[1] as usize + 16] = 0;
        let mut walk = HeaderWalk::to_offset(Offset(17), Position(0), Position(starts[3]));
        let bad = WalkStep::Bad { position: Position(starts[1]), why: BatchError::Magic(0) };
        assert_eq!(walk.feed(Position(0), &image), bad);
    }
}
