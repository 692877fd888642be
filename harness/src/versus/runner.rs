//! One cell at a time on somebody's broker: a topic of its own, the load, the topic away again.
//!
//! What a cell is, [`crate::cell`] knows. Here is what differs from a comparison of our own servers: topics are made and
//! deleted by the protocol alone, and what one cell left to be written back must not be paid by the next, which is
//! another broker's.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringlog::sys::topology::pin_to;
use ringlog::sys::{Ring, UringOptions};

use super::promise::Promise;
use crate::cell::{CellRun, CellTerms};
use crate::client::Connection;
use crate::compare::ARENA_BYTES_MAX;
use crate::environment::let_disk_settle;
use crate::payload::Payload;
use crate::progress::Progress;
use crate::record::CellRecord;
use crate::schedule::{Cell, Plan};
use crate::spec::RunSpec;
use crate::target::Target;

/// Before each cell's measured time, at its own pace: every partition has had its first append, which is not like others.
pub(super) const WARM_UP_SECONDS: f64 = 0.5;

/// Somebody's broker removes a deleted topic's files some time later (ours at once, Kafka as scripts/peers/kafka sets it up
/// after a second): until then the disk is not quiet, only not yet busy.
const REMOVAL: Duration = Duration::from_millis(1500);

/// The load's side of a run.
pub(super) struct Runner {
    ring: Ring,
    payload: Rc<Payload>,
    seed: u64,
    pub(super) progress: Rc<RefCell<Progress<io::Stderr>>>,
    begun: Instant,
}

/// What a cell is put on.
pub(super) struct Place<'a> {
    pub(super) target: &'a Rc<RefCell<Target>>,
    /// Its process, where that is known.
    pub(super) process: Option<i32>,
    /// A directory on the disk that is to be quiet before a cell begins.
    pub(super) disk: &'a Path,
}

impl Runner {
    /// Takes the load's core: after servers have been started, which would inherit it.
    pub(super) fn start(core: usize, record_bytes: usize, plan: &Plan) -> Result<Runner> {
        pin_to(core)?;
        let ring = Ring::of_kernel(&UringOptions::default(), ARENA_BYTES_MAX)?;
        let payload = Rc::new(Payload::seeded(record_bytes, plan.seed));
        let progress = Rc::new(RefCell::new(Progress::to_stderr(plan)));
        Ok(Runner { ring, payload, seed: plan.seed, progress, begun: Instant::now() })
    }

    /// Asks a broker whether it takes what the load sends, and what its answers mean, by a topic made for the question.
    pub(super) fn promise(&self, address: SocketAddr) -> Result<Promise> {
        let (ring, topic) = (self.ring.clone(), self.topic("settings"));
        self.ring.run(async move {
            let connection = Connection::open(&ring, address).await?;
            connection.check_versions().await?;
            connection.create_topic(&topic, 1, None).await?;
            let settings = connection.topic_settings(&topic).await;
            connection.delete_topic(&topic).await?;
            Ok(Promise::of(&settings?))
        })
    }

    pub(super) fn cell(
        &self,
        spec: &Rc<RunSpec>,
        cell: &Cell,
        seconds: f64,
        place: &Place<'_>,
    ) -> Result<CellRecord> {
        let address = place.target.borrow().address();
        let topic = self.topic(&format!("{:05}", cell.index));
        // What the last one only left in the page cache is written back now, not while this one is measured.
        nix::unistd::sync();
        let_disk_settle(place.disk);
        let start_seconds = self.begun.elapsed().as_secs_f64();
        let counters = place.target.borrow_mut().counters()?;
        let run = CellRun {
            ring: self.ring.clone(),
            spec: spec.clone(),
            seed: self.seed,
            seconds,
            payload: self.payload.clone(),
            cell: cell.clone(),
            address,
            server: place.process,
            data_dir: None,
            target: place.target.clone(),
            made: None,
            progress: self.progress.clone(),
            terms: CellTerms {
                warm_up_seconds: WARM_UP_SECONDS,
                topic: Some(topic.clone()),
                latencies_at_saturation: true,
            },
        };
        let ran = run.run().with_context(|| format!("cell {cell}"));
        let (ring, wire) = (self.ring.clone(), matches!(*place.target.borrow(), Target::Wire(_)));
        let deleted = self.ring.run(async move {
            Connection::open(&ring, address).await?.delete_topic(&topic).await?;
            if wire {
                ring.sleep(REMOVAL).await;
            }
            anyhow::Ok(())
        });
        let mut measured = ran?;
        deleted?;
        measured.start_seconds = start_seconds;
        measured.server_counters = place.target.borrow_mut().counters()?;
        measured.notes.extend(written(&counters, &measured.server_counters));
        self.progress.borrow_mut().finish_cell(&measured);
        Ok(measured)
    }

    /// Lets go of what the kernel has of the load: for a run that failed.
    pub(super) fn shut_down(&self) {
        self.ring.shut_down();
    }

    /// A name that no other run on the same broker has.
    fn topic(&self, name: &str) -> String {
        format!("versus-{:016x}-{name}", self.seed)
    }
}

/// What a broker of ours wrote for what it took, warm-up included.
fn written(before: &serde_json::Value, after: &serde_json::Value) -> Option<String> {
    let grown = |name: &str| {
        let counted = |counters: &serde_json::Value| counters.get("shard")?.get(name)?.as_u64();
        counted(after)?.checked_sub(counted(before)?)
    };
    let (taken, bytes, syncs) = (grown("ingress_bytes")?, grown("write_bytes")?, grown("syncs")?);
    let per_byte = bytes as f64 / taken.max(1) as f64;
    Some(format!("{per_byte:.2} bytes written for each taken, {syncs} flushes"))
}
