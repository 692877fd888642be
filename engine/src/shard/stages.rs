//! Where the time of an append goes: one histogram per stage, always on.

use std::cell::RefCell;

use hdrhistogram::Histogram;

/// A stage of an append's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the receive's completion to having an offset: parse, checksum, copy, waiting for room.
    Accept,
    /// From having an offset to the write's submission: the group gathers.
    Gather,
    /// From the write's submission to its completion.
    Write,
    /// From the flush's submission to its completion.
    Flush,
    /// From the receive's completion to the answer's send.
    Answer,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 5] = [Stage::Accept, Stage::Gather, Stage::Write, Stage::Flush, Stage::Answer];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Accept => "accept",
            Stage::Gather => "gather",
            Stage::Write => "write",
            Stage::Flush => "flush",
            Stage::Answer => "answer",
        }
    }
}

/// The histograms of one shard, in nanoseconds.
pub struct Stages([RefCell<Histogram<u64>>; 5]);

const NANOS_MAX: u64 = 120_000_000_000;

impl Default for Stages {
    fn default() -> Stages {
        let histogram = || Histogram::new_with_bounds(1, NANOS_MAX, 2).expect("these bounds are valid");
        Stages(std::array::from_fn(|_| RefCell::new(histogram())))
    }
}

impl Stages {
    /// Notes that `stage` took `nanos`. Does not allocate.
    pub fn note(&self, stage: Stage, nanos: u64) {
        self.0[stage as usize].borrow_mut().saturating_record(nanos.max(1));
    }

    /// Forgets everything, to begin a measurement.
    pub fn clear(&self) {
        self.0.iter().for_each(|histogram| histogram.borrow_mut().reset());
    }

    /// A copy of the histogram of `stage`.
    #[must_use]
    pub fn histogram(&self, stage: Stage) -> Histogram<u64> {
        self.0[stage as usize].borrow().clone()
    }
}
