//! What every arm does with bytes that have come, and with a request for stored ones: no waiting here, no moving.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use ringlog::sys::BLOCK_BYTES;
use ringlog_broker::wire::GappedFrame;

use super::sink::Sink;
use crate::floor::ingest::{Requests, acknowledge};
use crate::floor::stored::{Batches, MADE_TOPIC, Stretch, logs};
use crate::floor::{Asked, ServeFloor, UNIT_BYTES, WARM_BYTES};
use crate::spec::FLOOR;

/// What the connections of an arm share.
pub(super) struct Work {
    /// The next offset of each partition.
    ends: Vec<AtomicI64>,
    moved: Arc<AtomicU64>,
    pub(super) sink: Arc<Sink>,
    /// Made beforehand, by partition.
    files: Vec<(Arc<File>, Batches)>,
    units: Mutex<Vec<Unit>>,
}

impl Work {
    pub(super) fn open(told: &ServeFloor, moved: Arc<AtomicU64>) -> Result<Work> {
        std::fs::create_dir_all(&told.data_dir).with_context(|| told.data_dir.display().to_string())?;
        let mut files = Vec::new();
        for (path, batches) in told.stored.as_deref().map(logs).transpose()?.unwrap_or_default() {
            let file = File::open(&path).with_context(|| path.display().to_string())?;
            files.push((Arc::new(file), batches));
        }
        Ok(Work {
            ends: (0..told.partitions).map(|_| AtomicI64::new(0)).collect(),
            moved,
            sink: Sink::open(&told.data_dir.join(FLOOR))?,
            files,
            units: Mutex::new((0..WARM_BYTES / UNIT_BYTES).map(|_| Unit::new()).collect()),
        })
    }

    /// Gives records their offsets.
    fn append(&self, partition: u32, records: i64) -> Result<i64> {
        let count = self.ends.len();
        let end = self.ends.get(partition as usize);
        Ok(end.with_context(|| format!("partition {partition} of {count}"))?.fetch_add(records, Relaxed))
    }

    /// The files to read from, by partition.
    #[cfg(feature = "tokio-uring")]
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.files.iter().map(|(file, _)| &**file)
    }

    /// A stretch is on its way to a reader.
    pub(super) fn note_moved(&self, stretch: Option<Stretch>) {
        self.moved.fetch_add(stretch.map_or(0, |stretch| stretch.bytes), Relaxed);
    }

    /// Where what a reader asked for lies.
    pub(super) fn find(&self, asked: &Asked) -> Result<Wanted> {
        ensure!(
            asked.topic == MADE_TOPIC,
            "a reader of `{}`, where only `{MADE_TOPIC}` is kept",
            asked.topic
        );
        let count = self.files.len();
        let partition = self.files.get(asked.partition as usize);
        let (file, batches) =
            partition.with_context(|| format!("partition {} of {count}", asked.partition))?;
        let stretch = batches.stretch(asked.offset, asked.bytes_max as u64)?;
        let next = match stretch {
            Some(stretch) => batches.stretch(stretch.end, asked.bytes_max as u64)?,
            None => None,
        };
        Ok(Wanted { file: file.clone(), stretch, next, end: batches.end() })
    }

    /// An empty unit. As many are there as connections and writes ever needed at once.
    pub(super) fn unit(&self) -> Unit {
        let kept = self.units.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(Unit::new)
    }

    pub(super) fn give_back(&self, mut unit: Unit) {
        unit.clear();
        self.units.lock().unwrap_or_else(PoisonError::into_inner).push(unit);
    }
}

/// A stretch of a file for a reader, and the one that it will ask for next.
pub(super) struct Wanted {
    pub(super) file: Arc<File>,
    pub(super) stretch: Option<Stretch>,
    pub(super) next: Option<Stretch>,
    /// The offset behind the last batch.
    pub(super) end: i64,
}

/// A producer's stream of requests: checked, given offsets, answered.
#[derive(Default)]
pub(super) struct Producer {
    requests: Requests,
    /// What waits to be sent.
    pub(super) answers: Vec<u8>,
}

impl Producer {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// What is not a Produce request of one good batch.
    pub(super) fn take(&mut self, work: &Work, bytes: &[u8]) -> Result<()> {
        let mut batches = Vec::new();
        self.requests.take(bytes, |_, _| {}, |batch| batches.push(batch))?;
        for batch in batches {
            work.moved.fetch_add(batch.bytes as u64, Relaxed);
            let offset = work.append(batch.partition, batch.records)?;
            let request = (batch.correlation_id, batch.version);
            acknowledge(&mut self.answers, &self.requests.topic, request, batch.partition, offset)?;
        }
        Ok(())
    }
}

/// Memory that is received into and written from: aligned for O_DIRECT, touched.
pub(super) struct Unit {
    pub(super) memory: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Unit {
    pub(super) fn new() -> Unit {
        let mut memory = vec![0; UNIT_BYTES + BLOCK_BYTES];
        memory.fill(1);
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Unit { memory, start, filled: 0 }
    }

    /// Where in its memory there is room.
    pub(super) fn room_range(&self) -> Range<usize> {
        self.start + self.filled..self.start + UNIT_BYTES
    }

    pub(super) fn room(&mut self) -> &mut [u8] {
        let range = self.room_range();
        &mut self.memory[range]
    }

    /// So much has come into the room.
    pub(super) fn took(&mut self, bytes: usize) {
        self.filled += bytes;
        assert!(self.filled <= UNIT_BYTES, "{} bytes in a unit of {UNIT_BYTES}", self.filled);
    }

    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == UNIT_BYTES
    }

    /// Where in its memory what has come lies.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + self.filled
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.range()]
    }

    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }
}

/// An answer to a reader in one piece: records are read to where the protocol's part fits before and behind them.
///
/// ```text
/// memory:  | room | before | records ............ | behind | room |
///                 from     HEAD_ROOM                       to
/// ```
#[derive(Default)]
pub(super) struct Answer {
    pub(super) memory: Vec<u8>,
    /// What was read into it.
    pub(super) stretch: Option<Stretch>,
    frame: GappedFrame,
    from: usize,
    to: usize,
}

const HEAD_ROOM: usize = 512;
const TAIL_ROOM: usize = 64;

impl Answer {
    /// Where in its memory the bytes of a stretch go.
    pub(super) fn place(&mut self, stretch: Option<Stretch>) -> Range<usize> {
        self.stretch = stretch;
        let bytes = stretch.map_or(0, |stretch| stretch.bytes) as usize;
        let wanted = HEAD_ROOM + bytes.max(UNIT_BYTES) + TAIL_ROOM;
        if self.memory.len() < wanted {
            self.memory.resize(wanted, 1);
        }
        HEAD_ROOM..HEAD_ROOM + bytes
    }

    /// Puts the protocol's part around what was read.
    pub(super) fn surround(&mut self, asked: &Asked, end: i64) -> Result<()> {
        let record_bytes = self.stretch.map_or(0, |stretch| stretch.bytes);
        let (before, behind) = asked.encode_answer(&mut self.frame, end, record_bytes)?;
        ensure!(
            before.len() <= HEAD_ROOM && behind.len() <= TAIL_ROOM,
            "an answer's {} bytes before and {} behind the records, where {HEAD_ROOM} and {TAIL_ROOM} fit",
            before.len(),
            behind.len()
        );
        let records_end = HEAD_ROOM + record_bytes as usize;
        (self.from, self.to) = (HEAD_ROOM - before.len(), records_end + behind.len());
        self.memory[self.from..HEAD_ROOM].copy_from_slice(before);
        self.memory[records_end..self.to].copy_from_slice(behind);
        Ok(())
    }

    /// Where in its memory the answer lies.
    pub(super) fn range(&self) -> Range<usize> {
        self.from..self.to
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.range()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_aligned_and_know_when_they_are_full() {
        let mut unit = Unit::new();
        assert_eq!(unit.room().as_ptr().align_offset(BLOCK_BYTES), 0);
        assert_eq!(unit.room().len(), UNIT_BYTES);
        unit.took(UNIT_BYTES - 1);
        assert!(!unit.is_full() && unit.room().len() == 1);
        unit.took(1);
        assert!(unit.is_full() && unit.room().is_empty() && unit.bytes().len() == UNIT_BYTES);
        unit.clear();
        assert_eq!((unit.filled(), unit.room().len()), (0, UNIT_BYTES));
    }
}
