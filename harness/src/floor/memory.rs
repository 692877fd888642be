//! What was received and is still to be read, where it was received: no file is asked.
//!
//! A partition's batches are kept until each of its readers has asked for what is behind them. Producers wait while more is
//! kept than they have in flight together, and than [`KEPT_BYTES_MIN`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringlog::sys::{GATHER_MAX, LeaseMut, Ring, Socket};

use super::ingest::{Batch, HEAD_BYTES};
use super::{Answer, Asked, Changes};
use crate::waiting::within;

const KEPT_BYTES_MIN: usize = 16 << 20;
/// How long a reader is kept waiting for bytes.
const POLL: Duration = Duration::from_millis(500);
/// Batches of an answer: each is a head and a few pieces.
const BATCHES_MAX: usize = 80;
/// Their heads, and what the protocol adds.
const SIDE_BYTES: usize = BATCHES_MAX * HEAD_BYTES + 1024;

/// See the module's words.
pub(super) struct Memory {
    partitions: Vec<RefCell<Partition>>,
    /// Readers of each partition.
    readers: usize,
    kept_bytes: Cell<usize>,
    kept_bytes_max: usize,
    passed: Changes,
}

#[derive(Default)]
struct Partition {
    kept: VecDeque<(i64, Batch)>,
    end: i64,
    /// Its readers wait for it.
    appended: Rc<Changes>,
    /// The offset that each reader asked for last.
    asked: BTreeMap<u64, i64>,
}

impl Memory {
    pub(super) fn new(partitions: u32, readers: u32, in_flight_bytes: usize) -> Memory {
        Memory {
            kept_bytes_max: in_flight_bytes.max(KEPT_BYTES_MIN),
            partitions: (0..partitions).map(|_| RefCell::default()).collect(),
            readers: readers as usize,
            kept_bytes: Cell::new(0),
            passed: Changes::default(),
        }
    }

    /// Whether anybody reads.
    pub(super) fn is_read(&self) -> bool {
        self.readers > 0
    }

    /// Gives the batch its offset.
    pub(super) fn append(&self, mut batch: Batch) -> Result<i64> {
        let mut partition = self.partition(batch.partition)?.borrow_mut();
        let offset = partition.end;
        partition.end += batch.records;
        if self.is_read() {
            batch.head[..8].copy_from_slice(&offset.to_be_bytes());
            self.kept_bytes.set(self.kept_bytes.get() + batch.bytes);
            partition.kept.push_back((offset, batch));
            let appended = partition.appended.clone();
            drop(partition);
            appended.tell();
        }
        Ok(offset)
    }

    /// Waits while too much is kept.
    pub(super) async fn has_room(&self) {
        self.passed.until(|| self.kept_bytes.get() <= self.kept_bytes_max).await;
    }

    /// Sends a reader what lies from its offset on, as soon as there is anything.
    pub(super) async fn answer(
        &self,
        ring: &Ring,
        socket: &Socket,
        reader: u64,
        asked: &Asked,
        answer: &mut Answer,
    ) -> Result<()> {
        let partition = self.partition(asked.partition)?;
        self.pass(partition, reader, asked.offset);
        let appended = partition.borrow().appended.clone();
        let there = appended.until(|| partition.borrow().end > asked.offset);
        let _ = within(ring, POLL, there).await;
        let side = ring.lease(SIDE_BYTES).await?;
        gather(side, &partition.borrow(), asked, answer)?;
        answer.send(ring, socket, false).await
    }

    fn partition(&self, index: u32) -> Result<&RefCell<Partition>> {
        let count = self.partitions.len();
        self.partitions
            .get(index as usize)
            .with_context(|| format!("partition {index} at a floor of {count}"))
    }

    /// Drops what all readers have behind them.
    fn pass(&self, partition: &RefCell<Partition>, reader: u64, offset: i64) {
        let mut partition = partition.borrow_mut();
        partition.asked.insert(reader, offset);
        if partition.asked.len() < self.readers {
            return;
        }
        let passed = partition.asked.values().copied().min().unwrap_or(0);
        while let Some((first, batch)) = partition.kept.front()
            && first + batch.records <= passed
        {
            self.kept_bytes.set(self.kept_bytes.get() - batch.bytes);
            partition.kept.pop_front();
        }
        self.passed.tell();
    }
}

/// The answer from what is kept: heads and the protocol's own bytes in `side`, the rest where it was received.
fn gather(mut side: LeaseMut, partition: &Partition, asked: &Asked, answer: &mut Answer) -> Result<()> {
    let from = partition.kept.partition_point(|(offset, _)| *offset < asked.offset);
    if let Some((first, _)) = partition.kept.get(from) {
        ensure!(*first == asked.offset, "offset {} lies within a batch", asked.offset);
    }
    let (mut bytes, mut pieces, mut heads) = (0, 2, 0);
    let fits = partition.kept.range(from..).take(BATCHES_MAX).take_while(|(_, batch)| {
        bytes += batch.bytes;
        pieces += 1 + batch.pieces.len();
        let fits = heads == 0 || (bytes <= asked.bytes_max && pieces < GATHER_MAX);
        heads += if fits { batch.head.len() } else { 0 };
        fits
    });
    let count = fits.count();
    let batches = || partition.kept.range(from..from + count).map(|(_, batch)| batch);
    let record_bytes = batches().map(|batch| batch.bytes as u64).sum();
    let (before, behind) = answer.encode(asked, partition.end, record_bytes)?;
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        side[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(before);
    batches().for_each(|batch| put(&batch.head));
    put(behind);
    let (before, behind) = (before.len(), behind.len());
    let side = side.freeze();
    answer.push(side.slice(0..before))?;
    let mut at = before;
    for batch in batches() {
        answer.push(side.slice(at..at + batch.head.len()))?;
        at += batch.head.len();
        for piece in &batch.pieces {
            answer.push(piece.clone())?;
        }
    }
    answer.push(side.slice(at..at + behind))
}
