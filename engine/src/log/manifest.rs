//! The manifest's bytes: what is known of each partition of a shard, so that a start need not look at their files.
//!
//! A manifest begins with a snapshot, an entry a partition, and its end mark; what changes later is appended, and the last
//! entry of a partition counts. A partition is *asleep* while nothing may touch its segments: then they are as its entry says.
//! Before they are touched it is *awake*, and an entry that says so is durable; then its entry says up to where they
//! can be trusted, and what lies behind that is walked. One that is *unknown* is walked whole.
//!
//! A manifest ends at the end of its file, or at zeros. Anything else that is no entry is damage, or an entry that was
//! under way when all ended: nobody can tell the two apart, so then the manifest is not believed at all, and everything is
//! walked. The bytes are drawn in `FORMAT.md`.

use super::crc::crc32c;
use crate::types::{Epoch, Offset, PartitionId, Position, ShardId, Timestamp, TopicId};

const MAGIC: u32 = 0x724d_6631; // "rMf1"
/// Length and checksum before each entry.
const FRAME_BYTES: usize = 8;
/// More than any entry takes that we write: a length beyond is damage.
const ENTRY_BYTES_MAX: usize = 64 << 20;

/// Whose manifest it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// The data directory that it belongs to.
    pub directory: TopicId,
    /// Counts the starts of the engine on this directory.
    pub start: u64,
    /// Whose it is.
    pub shard: ShardId,
    /// How many shards there were.
    pub shards: u16,
    /// Counts the manifests of the shard since that start.
    pub number: u64,
}

/// What is known of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionEntry {
    /// Which one.
    pub partition: PartitionId,
    /// What is known of it; nothing where all of it must be walked.
    pub state: Option<PartitionState>,
}

/// A partition's log, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionState {
    /// Its segments may hold more by now than is said here.
    pub awake: bool,
    /// The earliest readable offset.
    pub log_start: Offset,
    /// Where each epoch began.
    pub epochs: Vec<(Epoch, Offset)>,
    /// Oldest first; the last one is, or was, appended to. Never empty.
    pub segments: Vec<SegmentState>,
}

/// A segment, in numbers. What lies below its end is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentState {
    /// Its name.
    pub base: Offset,
    /// The offset after its last batch.
    pub next_offset: Offset,
    /// The position after its last batch.
    pub end: Position,
    /// No batch in it carries a later timestamp.
    pub largest_timestamp: Timestamp,
    /// An offset at or before the first batch that carries it.
    pub largest_offset: Offset,
    /// Its indexes lie in their files, and cover it.
    pub indexed: bool,
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundManifest {
    /// Whose it is.
    pub head: ManifestHead,
    /// Whether its snapshot is whole.
    pub complete: bool,
    /// In the order of writing: the last of a partition counts.
    pub entries: Vec<PartitionEntry>,
}

/// Why bytes are no manifest that can be believed.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum ManifestError {
    /// It does not begin like one.
    #[error("it does not begin like a manifest")]
    Head,
    /// What lies there is no entry.
    #[error("what lies at position {0} is no entry")]
    Entry(usize),
}

const KIND_END: u8 = 0;
const KIND_ASLEEP: u8 = 1;
const KIND_AWAKE: u8 = 2;
const KIND_UNKNOWN: u8 = 3;

impl ManifestHead {
    /// The manifest's first bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_be_bytes().to_vec();
        frame(&mut bytes, |body| {
            body.extend(self.directory.0);
            body.extend(self.start.to_be_bytes());
            body.extend(self.number.to_be_bytes());
            body.extend(self.shard.0.to_be_bytes());
            body.extend(self.shards.to_be_bytes());
        });
        bytes
    }
}

impl PartitionEntry {
    /// Adds the entry's bytes to `bytes`.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        frame(bytes, |body| {
            let kind = match &self.state {
                None => KIND_UNKNOWN,
                Some(state) if state.awake => KIND_AWAKE,
                Some(_) => KIND_ASLEEP,
            };
            body.push(kind);
            body.extend(self.partition.topic.0);
            body.extend(self.partition.index.to_be_bytes());
            let Some(state) = &self.state else { return };
            body.extend(state.log_start.0.to_be_bytes());
            body.extend((state.epochs.len() as u32).to_be_bytes());
            for (epoch, start) in &state.epochs {
                body.extend(epoch.0.to_be_bytes());
                body.extend(start.0.to_be_bytes());
            }
            body.extend((state.segments.len() as u32).to_be_bytes());
            for segment in &state.segments {
                body.extend(segment.base.0.to_be_bytes());
                body.extend(segment.next_offset.0.to_be_bytes());
                body.extend(segment.end.0.to_be_bytes());
                body.extend(segment.largest_timestamp.0.to_be_bytes());
                body.extend(segment.largest_offset.0.to_be_bytes());
                body.push(u8::from(segment.indexed));
            }
        });
    }
}

/// Adds the mark that ends a snapshot.
pub fn encode_snapshot_end(bytes: &mut Vec<u8>) {
    frame(bytes, |body| body.push(KIND_END));
}

fn frame(bytes: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let at = bytes.len();
    bytes.extend([0; FRAME_BYTES]);
    body(bytes);
    let length = (bytes.len() - at - FRAME_BYTES) as u32;
    bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
    // The length is under the checksum, too.
    let crc = crc32c(&bytes[at + FRAME_BYTES..]) ^ length.rotate_left(16);
    bytes[at + 4..at + FRAME_BYTES].copy_from_slice(&crc.to_be_bytes());
}

impl FoundManifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<FoundManifest, ManifestError> {
        let mut at = 4;
        if bytes.get(..4) != Some(&MAGIC.to_be_bytes()) {
            return Err(ManifestError::Head);
        }
        let head = next_frame(bytes, &mut at).ok().flatten().and_then(|body| read_head(&mut Fields(body)));
        let head = head.ok_or(ManifestError::Head)?;
        let mut found = FoundManifest { head, complete: false, entries: Vec::new() };
        loop {
            let began = at;
            let damage = ManifestError::Entry(began);
            let Some(body) = next_frame(bytes, &mut at).map_err(|()| damage)? else { return Ok(found) };
            let mut fields = Fields(body);
            match fields.u8() {
                Some(KIND_END) if fields.0.is_empty() => found.complete = true,
                Some(kind @ (KIND_ASLEEP | KIND_AWAKE | KIND_UNKNOWN)) => {
                    found.entries.push(read_entry(kind, &mut fields).ok_or(damage)?);
                }
                _ => return Err(damage),
            }
        }
    }
}

/// The body of the next frame; nothing at the end.
fn next_frame<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, ()> {
    let rest = &bytes[*at..];
    if rest.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (head, rest) = rest.split_first_chunk::<FRAME_BYTES>().ok_or(())?;
    let mut head = Fields(head);
    let (length, crc) = (head.u32().ok_or(())?, head.u32().ok_or(())?);
    if length as usize > ENTRY_BYTES_MAX {
        return Err(());
    }
    let body = rest.get(..length as usize).ok_or(())?;
    if crc32c(body) ^ length.rotate_left(16) != crc {
        return Err(());
    }
    *at += FRAME_BYTES + body.len();
    Ok(Some(body))
}

fn read_head(fields: &mut Fields<'_>) -> Option<ManifestHead> {
    let directory = TopicId(fields.take()?);
    let (start, number) = (fields.u64()?, fields.u64()?);
    let (shard, shards) = (ShardId(fields.u16()?), fields.u16()?);
    (fields.0.is_empty() && shard.0 < shards).then_some(ManifestHead {
        directory,
        start,
        shard,
        shards,
        number,
    })
}

fn read_entry(kind: u8, fields: &mut Fields<'_>) -> Option<PartitionEntry> {
    let partition = PartitionId { topic: TopicId(fields.take()?), index: fields.u32()? as i32 };
    let mut state = None;
    if kind != KIND_UNKNOWN {
        let log_start = fields.offset()?;
        let mut epochs: Vec<(Epoch, Offset)> = Vec::new();
        for _ in 0..fields.u32()? {
            let next = (Epoch(fields.u32()? as i32), fields.offset()?);
            if epochs.last().is_some_and(|before| before.0 >= next.0 || before.1 >= next.1) {
                return None;
            }
            epochs.push(next);
        }
        let mut segments: Vec<SegmentState> = Vec::new();
        for _ in 0..fields.u32()? {
            let next = read_segment(fields)?;
            if segments
                .last()
                .is_some_and(|before| before.base >= next.base || before.next_offset > next.base)
            {
                return None;
            }
            segments.push(next);
        }
        let end = segments.last()?.next_offset;
        if log_start > end {
            return None;
        }
        state = Some(PartitionState { awake: kind == KIND_AWAKE, log_start, epochs, segments });
    }
    (fields.0.is_empty() && partition.index >= 0).then_some(PartitionEntry { partition, state })
}

fn read_segment(fields: &mut Fields<'_>) -> Option<SegmentState> {
    let segment = SegmentState {
        base: fields.offset()?,
        next_offset: fields.offset()?,
        end: Position(fields.u64()?),
        largest_timestamp: Timestamp(fields.u64()? as i64),
        largest_offset: fields.offset()?,
        indexed: fields.u8()? == 1,
    };
    let counts = segment.next_offset.0.checked_sub(segment.base.0)? <= 1 << 31;
    let holds = (segment.base..=segment.next_offset).contains(&segment.largest_offset);
    (counts && holds && segment.base <= segment.next_offset && segment.end.0 <= 1 << 40).then_some(segment)
}

/// What is left of an entry to read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// One that can be: zero or more.
    fn offset(&mut self) -> Option<Offset> {
        self.u64().map(|value| Offset(value as i64)).filter(|offset| offset.0 >= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> ManifestHead {
        ManifestHead { directory: TopicId([7; 16]), start: 3, shard: ShardId(1), shards: 2, number: 4 }
    }

    fn entry(index: i32, awake: bool) -> PartitionEntry {
        let segment = |base, next, end| SegmentState {
            base: Offset(base),
            next_offset: Offset(next),
            end: Position(end),
            largest_timestamp: Timestamp(-1),
            largest_offset: Offset(base),
            indexed: base == 0,
        };
        let state = PartitionState {
            awake,
            log_start: Offset(3),
            epochs: vec![(Epoch(0), Offset(0)), (Epoch(2), Offset(9))],
            segments: vec![segment(0, 10, 4000), segment(10, 10, 0)],
        };
        PartitionEntry {
            partition: PartitionId { topic: TopicId([index as u8; 16]), index },
            state: Some(state),
        }
    }

    fn whole() -> (Vec<u8>, Vec<PartitionEntry>) {
        let unknown = PartitionEntry { state: None, ..entry(7, false) };
        let entries = vec![entry(1, false), entry(2, true), unknown, entry(1, true)];
        let mut bytes = head().encode();
        for entry in &entries[..2] {
            entry.encode(&mut bytes);
        }
        encode_snapshot_end(&mut bytes);
        for entry in &entries[2..] {
            entry.encode(&mut bytes);
        }
        (bytes, entries)
    }

    #[test]
    fn what_was_written_is_read() {
        let (mut bytes, entries) = whole();
        let found = FoundManifest { head: head(), complete: true, entries };
        assert_eq!(FoundManifest::decode(&bytes), Ok(found.clone()));
        bytes.extend([0; 5000]);
        assert_eq!(FoundManifest::decode(&bytes), Ok(found), "room behind it");
        let head = head().encode();
        assert!(!FoundManifest::decode(&head).unwrap().complete);
    }

    #[test]
    fn any_bit_that_rots_and_any_cut_within_an_entry_is_noticed() {
        let (bytes, _) = whole();
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 0x20;
            assert!(FoundManifest::decode(&rotten).is_err(), "byte {at}");
        }
        // Behind the head, each of the entries, and the end mark.
        let mut ends = Vec::new();
        let mut at = 4;
        while let Ok(Some(_)) = next_frame(&bytes, &mut at) {
            ends.push(at);
        }
        assert_eq!((ends.len(), ends.last()), (6, Some(&bytes.len())));
        for cut in 0..bytes.len() {
            let end = ends.iter().rev().find(|end| **end <= cut);
            let nothing_behind = end.is_some_and(|end| bytes[*end..cut].iter().all(|byte| *byte == 0));
            assert_eq!(FoundManifest::decode(&bytes[..cut]).is_ok(), nothing_behind, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..400) {
            let _ = FoundManifest::decode(&bytes);
            let (mut mixed, _) = whole();
            let at = at.min(mixed.len());
            mixed.splice(at.., bytes);
            let _ = FoundManifest::decode(&mixed);
        }
    }
}
