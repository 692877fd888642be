//! Full load for a while, for a broker that is slow at first: a JVM compiles what it has seen often.
//!
//! Several shapes, so that no one path alone is warm; everything is read back and verified, so fetching is warm as well.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::runner::{Place, Runner, WARM_UP_SECONDS};
use super::{Asked, Workload, spec_of};
use crate::environment::allowed_cores;
use crate::schedule::{Cell, CellKind, Plan};
use crate::spec::{Load, Pair, RunSpec};
use crate::target::Target;

/// Measured seconds of each cell.
const CELL_SECONDS: f64 = 2.0;
/// Partitions and batch sizes, in turn.
const SHAPES: [(u32, usize); 3] = [(64, 16 << 10), (1, 256 << 10), (1, 16 << 10)];

/// What to warm, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Warm {
    /// A broker that runs: wire=HOST:PORT
    target: Asked,
    /// Seconds of full load
    #[arg(long, default_value_t = 25.0)]
    seconds: f64,
    /// Core of the load [default: the second this process may use]
    #[arg(long)]
    client_core: Option<usize>,
}

/// Puts the broker under load; says whether every record arrived whole, once and in order.
///
/// # Errors
/// A target that is no address, does not answer, or breaks.
pub fn warm(told: &Warm) -> Result<bool> {
    let Asked::Wire { address, .. } = told.target else {
        anyhow::bail!("{}: a child lives for one run only; warm takes wire=HOST:PORT", told.target);
    };
    ensure!(
        told.seconds.is_finite() && told.seconds > 0.0,
        "--seconds {}: nothing is warm then",
        told.seconds
    );
    let workload: Workload = "".parse()?;
    let row = Pair { ingress: "warm".to_owned(), egress: told.target.kind().to_owned() };
    let spec = RunSpec { rows: vec![row.clone()], client_core: told.client_core, ..spec_of(&workload) };
    let (_, client_core) = spec.cores(&allowed_cores())?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let cell = |(index, (_, batch_bytes)): (u32, (u32, usize))| Cell {
        index,
        block: 0,
        row: row.clone(),
        again: false,
        load: Load::Produce,
        batch_bytes,
        kind: CellKind::Throughput,
        pace: spec.rate,
    };
    let count = (told.seconds / (CELL_SECONDS + WARM_UP_SECONDS)).ceil() as usize;
    let cells: Vec<Cell> = (0..).zip(SHAPES.into_iter().cycle()).take(count).map(cell).collect();
    let (seed, seconds_estimated) = (since_1970.as_nanos() as u64, told.seconds);
    let plan = Plan { seed, blocks: 1, seconds: CELL_SECONDS, seconds_estimated, cells };
    let runner = Runner::start(client_core, workload.record_bytes, &plan)?;
    runner.promise(address).with_context(|| told.target.to_string())?;
    let target = Rc::new(RefCell::new(Target::Wire(address)));
    let (disk, begun, mut clean, mut bytes) = (PathBuf::from("."), Instant::now(), true, 0);
    let place = Place { target: &target, process: None, disk: &disk };
    for (cell, (partitions, _)) in plan.cells.iter().zip(SHAPES.into_iter().cycle()) {
        let spec = RunSpec { partitions, batch_bytes: vec![cell.batch_bytes], ..spec.clone() };
        let measured = runner.cell(&Rc::new(spec), cell, plan.seconds, &place)?;
        clean &= measured.findings.are_clean() && measured.errors.is_empty();
        bytes += measured.produced_bytes;
    }
    println!(
        "{} took {:.1} GB in {:.0} s{}",
        told.target,
        bytes as f64 / 1e9,
        begun.elapsed().as_secs_f64(),
        if clean { "" } else { ", and NOT every record came back as it was" }
    );
    Ok(clean)
}
