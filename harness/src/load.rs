//! What the connections of one cell share: the clock's phases, the counts, the account of what was sent.

use std::cell::{Cell as Shared, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use ringlog::sys::Ring;

use crate::arrivals::{Lateness, OpenLoop};
use crate::payload::Payload;
use crate::recorder::{Latencies, Recorder};
use crate::schedule::Cell;
use crate::spec::RunSpec;
use crate::verify::{Findings, Sent};

/// One cell under way.
pub struct Load {
    pub ring: Ring,
    pub spec: RunSpec,
    pub cell: Cell,
    pub seed: u64,
    pub address: SocketAddr,
    pub topic: String,
    pub payload: Rc<Payload>,
    /// Where there is a schedule.
    pub schedule: Option<OpenLoop>,
    /// Measured time has begun and not ended.
    pub measuring: Shared<bool>,
    /// Producers stop, and take their last answers.
    pub stop_producing: Shared<bool>,
    /// Batch bytes that producers may still send, where there is a limit (filling a log).
    pub fill_bytes_left: Shared<Option<i64>>,
    /// Consumers stop at the offsets that were acknowledged.
    pub goal: RefCell<Option<Vec<i64>>>,
    /// Consumers give up.
    pub abandon: Shared<bool>,
    pub counts: Counts,
    pub produce: RefCell<Recorder>,
    pub end_to_end: RefCell<Latencies>,
    pub lateness: RefCell<Lateness>,
    pub errors: RefCell<BTreeMap<String, u64>>,
    /// By partition, then by producer.
    pub sent: RefCell<Vec<Vec<Sent>>>,
    /// The offset after the last acknowledged batch, by partition.
    pub acked_ends: RefCell<Vec<i64>>,
    pub findings: RefCell<Findings>,
    pub failures: RefCell<Vec<String>>,
    pub producers_running: Shared<u32>,
    pub consumers_running: Shared<u32>,
}

/// Bytes and records while measured.
#[derive(Default)]
pub struct Counts {
    pub produced_bytes: Shared<u64>,
    pub produced_records: Shared<u64>,
    pub consumed_bytes: Shared<u64>,
    pub consumed_records: Shared<u64>,
    /// Measured or not: for progress and for filling.
    pub total_produced_bytes: Shared<u64>,
    pub total_consumed_bytes: Shared<u64>,
}

impl Load {
    pub fn new(
        ring: &Ring,
        spec: &RunSpec,
        cell: &Cell,
        seed: u64,
        address: SocketAddr,
        payload: Rc<Payload>,
    ) -> Load {
        let producers = vec![Sent::default(); spec.producers as usize];
        Load {
            ring: ring.clone(),
            spec: spec.clone(),
            cell: cell.clone(),
            seed,
            address,
            topic: format!("cell-{:03}", cell.index),
            payload,
            schedule: None,
            measuring: Shared::new(false),
            stop_producing: Shared::new(false),
            fill_bytes_left: Shared::new(None),
            goal: RefCell::new(None),
            abandon: Shared::new(false),
            counts: Counts::default(),
            produce: RefCell::default(),
            end_to_end: RefCell::default(),
            lateness: RefCell::default(),
            errors: RefCell::default(),
            sent: RefCell::new(vec![producers; spec.partitions as usize]),
            acked_ends: RefCell::new(vec![0; spec.partitions as usize]),
            findings: RefCell::default(),
            failures: RefCell::default(),
            producers_running: Shared::new(0),
            consumers_running: Shared::new(0),
        }
    }

    /// A connection has failed: the cell is void, and the page says why.
    pub fn fail(&self, who: &str, error: &anyhow::Error) {
        self.failures.borrow_mut().push(format!("{who}: {error:#}"));
        self.stop_producing.set(true);
    }

    pub fn note_error(&self, name: String) {
        *self.errors.borrow_mut().entry(name).or_default() += 1;
    }
}

pub fn add(counter: &Shared<u64>, n: u64) {
    counter.set(counter.get() + n);
}
