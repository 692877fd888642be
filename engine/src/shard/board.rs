//! What a partition's owner shows to other shards: its epoch and where it ends, as atomics.
//!
//! The owner writes, everybody may read; nobody waits. The numbers are of one partition and each is right by itself;
//! together they may be of two moments. Whoever needs more asks the owner through a lane.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::log::Marks;
use crate::types::{Epoch, Offset};

/// One partition's.
#[derive(Default)]
pub struct Board(CachePadded<Numbers>);

#[derive(Default)]
struct Numbers {
    epoch: AtomicI32,
    log_start: AtomicI64,
    recovery_point: AtomicI64,
    high_watermark: AtomicI64,
    log_end: AtomicI64,
    /// Goes up whenever more becomes visible or the partition closes.
    moves: AtomicU64,
}

impl Board {
    /// As the checkpoints had it, until the owner has recovered it.
    pub(super) fn recorded(recovery_point: Offset, log_start: Offset) -> Board {
        let board = Board::default();
        board.0.recovery_point.store(recovery_point.0, Ordering::Relaxed);
        board.0.log_start.store(log_start.0, Ordering::Relaxed);
        board
    }

    pub(super) fn show(&self, epoch: Epoch, marks: &Marks, recovery_point: Offset) {
        let numbers = &*self.0;
        numbers.epoch.store(epoch.0, Ordering::Relaxed);
        numbers.log_start.store(marks.log_start.0, Ordering::Relaxed);
        numbers.recovery_point.store(recovery_point.0, Ordering::Relaxed);
        numbers.high_watermark.store(marks.high_watermark.offset.0, Ordering::Relaxed);
        numbers.log_end.store(marks.log_end.offset.0, Ordering::Release);
    }

    pub(super) fn note_move(&self) {
        self.0.moves.fetch_add(1, Ordering::Release);
    }

    /// How often something became visible, or the partition closed: changes when there is reason to look again.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.0.moves.load(Ordering::Acquire)
    }

    /// The current epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(self.0.epoch.load(Ordering::Relaxed))
    }

    /// The first offset there is.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        Offset(self.0.log_start.load(Ordering::Relaxed))
    }

    /// Up to where segments hold everything, flushed.
    pub(super) fn recovery_point(&self) -> Offset {
        Offset(self.0.recovery_point.load(Ordering::Relaxed))
    }

    /// The end of what is visible.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        Offset(self.0.high_watermark.load(Ordering::Relaxed))
    }

    /// The end.
    #[must_use]
    pub fn log_end(&self) -> Offset {
        Offset(self.0.log_end.load(Ordering::Acquire))
    }
}
