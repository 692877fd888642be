//! The plan: which cells run, in which order, for how long.
//!
//! A cell is one row on one load with one batch size, on a server of its own. Cells come in blocks; each block holds
//! every cell once, in a random order of its own, so that drift of the machine falls on all rows alike and the
//! spread between blocks is seen. Throughput cells run at the spec's pace, latency cells (tail load, one fixed rate
//! for all rows) are shuffled among them.
//!
//! The first row runs a second time in every block, on a server of its own: what the same thing measured twice shows is
//! the noise that every difference is held against. In every second block (in each, with `--full`) the floors run too:
//! what the machine does without a log, one for each load and batch size, of catching up one for each egress.
//!
//! Example: 3 rows and the repeat x 2 loads x 2 batch sizes are 16 cells a block; 3 x 2 latency cells and 2 x (1 + 3)
//! floors are in every second block; 8 blocks with cells of a quarter of a second take about 90 s with what lies between
//! them. That is quick, and labelled so; `--full` takes 3 s a cell.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::floor::has_floor;
use crate::spec::{Load, Pair, RunSpec};
use crate::units::{Pace, binary_bytes};

/// What a whole default run should take.
pub const RUN_SECONDS_AIM: f64 = 90.0;
/// Blocks when the user does not say: enough for an interval of 95 %, with one to spare on either side.
pub const BLOCKS_DEFAULT: u32 = 8;
/// A shorter cell measures mostly its own beginning: fewer blocks are run before cells get shorter than this.
pub const CELL_SECONDS_MIN: f64 = 0.25;
/// A longer one is not chosen unasked.
pub const CELL_SECONDS_MAX: f64 = 3.0;
/// Before each cell's measured time, at its own pace: connections open, first pages touched.
pub const WARM_UP_SECONDS: f64 = 0.15;
/// Topic, connections, draining, of a floor its start: an estimate, for the plan only.
const SERVER_SECONDS: f64 = 0.06;
/// Filling a log for a catch-up cell, bringing it to disk and reading it back: an estimate, for the plan only.
const FILL_AND_READ_BYTES_PER_SECOND: f64 = 0.8e9;
/// Reading what is there already: an estimate, for the plan only.
const READ_BYTES_PER_SECOND: f64 = 1.5e9;

/// One measurement: what runs, and how.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// Its place in the plan, from 0: the run number that its records carry.
    pub index: u32,
    /// Its block, from 0.
    pub block: u32,
    /// How bytes move.
    pub row: Pair,
    /// The first row a second time.
    #[serde(default)]
    pub again: bool,
    /// Where consumers read.
    pub load: Load,
    /// Largest batch.
    pub batch_bytes: usize,
    /// What it is run for.
    pub kind: CellKind,
    /// How fast producers send.
    pub pace: Pace,
}

/// What a cell is run for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CellKind {
    /// Bytes a second, and what they cost.
    Throughput,
    /// Response times at the fixed rate.
    Latency,
}

/// All cells in the order they run, and the numbers they share.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Blocks.
    pub blocks: u32,
    /// Measured seconds of each cell.
    pub seconds: f64,
    /// What the whole run will take, roughly.
    pub seconds_estimated: f64,
    /// The cells, in order.
    pub cells: Vec<Cell>,
}

impl Plan {
    /// What follows from a valid spec. `seed` is for when the spec has none; the plan says which one it used. Floors are
    /// for servers of our own: a broker elsewhere is held against other brokers.
    #[must_use]
    pub fn new(spec: &RunSpec, seed: u64, floors: bool) -> Plan {
        let seed = spec.seed.unwrap_or(seed);
        let mut block = cells_of_a_block(spec);
        if floors {
            block.extend(floors_of_a_block(spec));
        }
        let every_second =
            |cell: &Cell| cell.kind == CellKind::Latency || (cell.row.is_floor() && !spec.full);
        let share = |cell: &Cell| if every_second(cell) { 0.5 } else { 1.0 };
        let overhead: f64 = block.iter().map(|cell| share(cell) * overhead_seconds(spec, cell)).sum();
        // A catch-up cell takes as long as its bytes take.
        let timed: f64 = block.iter().filter(|cell| cell.load.is_timed()).map(share).sum();
        let (blocks, seconds) = fit(spec, timed, overhead);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut cells = Vec::with_capacity(block.len() * blocks as usize);
        for number in 0..blocks {
            // Latencies are merged over blocks, and floors cost time: every second block does.
            let mut shuffled: Vec<Cell> =
                block.iter().filter(|cell| number % 2 == 0 || !every_second(cell)).cloned().collect();
            random.shuffle(&mut shuffled);
            cells.extend(shuffled.into_iter().map(|cell| Cell { block: number, ..cell }));
        }
        cells.iter_mut().zip(0..).for_each(|(cell, index)| cell.index = index);
        let estimate = f64::from(blocks) * (overhead + timed * seconds);
        let seconds_estimated = (estimate * 10.0).round() / 10.0;
        Plan { seed, blocks, seconds, seconds_estimated, cells }
    }

    /// Seconds still to come when `done` cells are over, by the estimate.
    #[must_use]
    pub fn seconds_left(&self, done: usize) -> f64 {
        let left = self.cells.len().saturating_sub(done);
        self.seconds_estimated * left as f64 / self.cells.len().max(1) as f64
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, blocks, seconds, seconds_estimated, cells } = self;
        let throughput = cells.iter().filter(|cell| cell.kind == CellKind::Throughput).count();
        write!(
            f,
            "{} cells of {seconds:.2} s{} in {blocks} block(s), order shuffled: {throughput} for throughput, {} for \
             latency; about {seconds_estimated:.0} s; seed {seed}",
            cells.len(),
            if *seconds < 1.0 { " (quick)" } else { "" },
            cells.len() - throughput,
        )
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { block, row, again, load, batch_bytes, pace, .. } = self;
        let (again, size) = (if *again { " again" } else { "" }, binary_bytes(*batch_bytes as u64));
        write!(f, "{row}{again} {load} {size} {pace} (block {})", block + 1)
    }
}

impl Cell {
    /// A name for this cell's files, unique within the run: `017-copy+tail-catch-up-16384-throughput`.
    #[must_use]
    pub fn file_stem(&self) -> String {
        let kind = match self.kind {
            CellKind::Throughput => "throughput",
            CellKind::Latency => "latency",
        };
        let again = if self.again { "-again" } else { "" };
        format!("{:03}-{}{again}-{}-{}-{kind}", self.index, self.row, self.load, self.batch_bytes)
    }
}

fn cells_of_a_block(spec: &RunSpec) -> Vec<Cell> {
    let mut cells = Vec::new();
    for row in &spec.rows {
        for &batch_bytes in &spec.batch_bytes {
            let cell = |load, kind, pace| Cell {
                index: 0,
                block: 0,
                row: row.clone(),
                again: false,
                load,
                batch_bytes,
                kind,
                pace,
            };
            cells
                .extend(spec.loads.iter().map(|&load| cell(load, CellKind::Throughput, pace_of(spec, load))));
            if let Some(load) = spec.loads.iter().copied().find(|load| load.is_timed()) {
                cells.push(cell(load, CellKind::Latency, Pace::Rate(spec.fixed_rate)));
            }
        }
    }
    let first = |cell: &&Cell| cell.row == spec.rows[0] && cell.kind == CellKind::Throughput;
    let again: Vec<Cell> =
        cells.iter().filter(first).map(|cell| Cell { again: true, ..cell.clone() }).collect();
    cells.extend(again);
    cells
}

/// Producers beside those who catch up leave them the most of the machine, unless a rate is asked for.
#[must_use]
pub fn pace_of(spec: &RunSpec, load: Load) -> Pace {
    match spec.rate {
        Pace::Saturation if load == Load::Mixed => Pace::Rate(spec.fixed_rate),
        pace => pace,
    }
}

/// The floors of all rows, each once.
fn floors_of_a_block(spec: &RunSpec) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for &batch_bytes in &spec.batch_bytes {
        for &load in &spec.loads {
            // A strategy is there before its floor is.
            for row in spec.rows.iter().map(|row| row.floor(load)).filter(|row| has_floor(&row.egress)) {
                let (kind, pace) = (CellKind::Throughput, pace_of(spec, load));
                let cell = Cell { index: 0, block: 0, row, again: false, load, batch_bytes, kind, pace };
                if !cells.contains(&cell) {
                    cells.push(cell);
                }
            }
        }
    }
    cells
}

fn overhead_seconds(spec: &RunSpec, cell: &Cell) -> f64 {
    let bytes = spec.catch_up_bytes as f64;
    let (filled, read) = match cell.load {
        Load::Tail | Load::Produce => (0.0, 0.0),
        // Filled once, and read each time.
        load if cell.row.is_floor() => (0.0, bytes * f64::from(load.behind(1))),
        load => (bytes, bytes * f64::from(load.behind(1) - 1)),
    };
    let fill = filled / FILL_AND_READ_BYTES_PER_SECOND + read / READ_BYTES_PER_SECOND;
    SERVER_SECONDS + WARM_UP_SECONDS + fill
}

/// Blocks and cell seconds: the user's, or what comes nearest to the time a run should take.
fn fit(spec: &RunSpec, timed: f64, overhead: f64) -> (u32, f64) {
    if spec.full {
        return (spec.blocks.unwrap_or(BLOCKS_DEFAULT), spec.seconds.unwrap_or(CELL_SECONDS_MAX));
    }
    let seconds_of = |blocks: u32| (RUN_SECONDS_AIM / f64::from(blocks) - overhead) / timed.max(1.0);
    let seconds_needed = spec.seconds.unwrap_or(CELL_SECONDS_MIN);
    let blocks = spec.blocks.unwrap_or_else(|| {
        let fitting = (1..=BLOCKS_DEFAULT).rev().find(|&blocks| seconds_of(blocks) >= seconds_needed);
        fitting.unwrap_or(1)
    });
    let seconds =
        spec.seconds.unwrap_or_else(|| seconds_of(blocks).clamp(CELL_SECONDS_MIN, CELL_SECONDS_MAX));
    (blocks, seconds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::spec::FLOOR;
    use crate::spec::tests::spec;

    fn name(cell: &Cell) -> (String, bool, String, usize, CellKind) {
        (cell.row.to_string(), cell.again, cell.load.to_string(), cell.batch_bytes, cell.kind)
    }

    #[test]
    fn the_default_run_takes_about_ninety_seconds() {
        let plan = Plan::new(&spec(""), 1, true);
        assert_eq!((plan.blocks, plan.cells.len()), (8, 8 * 16 + 4 * (6 + 8)));
        assert!((85.0..95.0).contains(&plan.seconds_estimated), "{plan}");
        assert!(plan.seconds >= CELL_SECONDS_MIN, "{plan}");
        assert_eq!(plan.seconds_left(0), plan.seconds_estimated);
        assert_eq!(plan.seconds_left(184), 0.0);
        assert!(plan.to_string().contains("(quick)"), "{plan}");
        assert!(plan.to_string().contains("184 cells") && plan.to_string().contains("seed 1"), "{plan}");
    }

    #[test]
    fn every_block_holds_every_cell_once_in_an_order_of_its_own() {
        let plan = Plan::new(&spec("--blocks 4"), 7, true);
        let of_block = |block| plan.cells.iter().filter(move |cell| cell.block == block).map(name);
        let orders: Vec<Vec<_>> = (0..4).map(|block| of_block(block).collect()).collect();
        let all: BTreeSet<_> = orders[0].iter().cloned().collect();
        assert_eq!((all.len(), orders[0].len(), orders[1].len()), (30, 30, 16));
        for (number, order) in orders.iter().enumerate() {
            let mut expected = all.clone();
            if number % 2 == 1 {
                expected.retain(|(row, .., kind)| *kind == CellKind::Throughput && !row.starts_with(FLOOR));
            }
            assert_eq!(order.iter().cloned().collect::<BTreeSet<_>>(), expected);
            assert!(
                orders[..number].iter().all(|earlier| earlier != order),
                "block {number} repeats an order"
            );
        }
        assert!(plan.cells.iter().enumerate().all(|(index, cell)| cell.index as usize == index));
        let stems: BTreeSet<_> = plan.cells.iter().map(Cell::file_stem).collect();
        assert_eq!(stems.len(), plan.cells.len());
    }

    #[test]
    fn the_seed_decides_the_order_and_the_spec_decides_the_seed() {
        assert_eq!(Plan::new(&spec(""), 3, true), Plan::new(&spec(""), 3, true));
        assert_ne!(Plan::new(&spec(""), 3, true).cells, Plan::new(&spec(""), 4, true).cells);
        assert_eq!(Plan::new(&spec("--seed 9"), 3, true).seed, 9);
    }

    #[test]
    fn what_the_user_says_is_kept_and_the_rest_fitted() {
        let plan = Plan::new(&spec("--seconds 5 --blocks 2"), 1, true);
        assert_eq!((plan.blocks, plan.seconds), (2, 5.0));
        assert!(plan.seconds_estimated > 100.0, "22 tail cells of 5 s, and what is between them");
        let plan = Plan::new(&spec("--seconds 2"), 1, false);
        assert_eq!((plan.blocks, plan.seconds), (3, 2.0));
        assert!(
            plan.cells.iter().all(|cell| !cell.row.is_floor()),
            "a server elsewhere has no floor of ours"
        );
        let plan = Plan::new(&spec("--rows copy+tail --loads tail --batch-bytes 16KiB"), 1, true);
        assert_eq!((plan.blocks, plan.seconds, plan.cells.len()), (8, CELL_SECONDS_MAX, 24));
        let plan = Plan::new(&spec("--full"), 1, true);
        assert_eq!((plan.blocks, plan.seconds), (8, 3.0));
        let plan = Plan::new(&spec("--loads catch-up"), 1, true);
        assert!(
            plan.cells.iter().all(|cell| cell.kind == CellKind::Throughput),
            "no producers, no produce latency"
        );
    }

    #[test]
    fn every_egress_has_a_floor_or_is_compared_without() {
        for egress in ringlog::Egress::ALL.iter().filter(|egress| egress.delivers()) {
            let row = format!("copy+{egress}");
            let spec = spec(&format!("--rows {row} --loads catch-up,fan-out,mixed,tail --blocks 1"));
            assert!(has_floor(&spec.rows[0].floor(Load::CatchUp).egress), "{egress} has none");
            let mut unknown = spec.clone();
            unknown.rows[0].egress = "new".to_owned();
            let plan = Plan::new(&unknown, 1, true);
            let floors = plan.cells.iter().filter(|cell| cell.row.is_floor());
            assert!(floors.map(|cell| cell.load).all(|load| load == Load::Tail), "only memory's is known");
        }
    }

    #[test]
    fn producers_beside_those_who_catch_up_keep_to_a_rate() {
        let plan = Plan::new(&spec("--loads fan-out,mixed --blocks 1"), 1, true);
        let fixed = Pace::Rate(spec("").fixed_rate);
        for cell in &plan.cells {
            assert_eq!(cell.pace == fixed, cell.load == Load::Mixed, "{cell}");
        }
        let plan = Plan::new(&spec("--loads mixed --rate 70MB/s --blocks 1"), 1, true);
        assert!(plan.cells.iter().all(|cell| cell.pace.to_string() == "70 MB/s"), "{}", plan.cells[0]);
        let floors = plan.cells.iter().filter(|cell| cell.row.is_floor()).count();
        assert_eq!(floors, 6, "copy, sendfile, and direct for what sends memory, at two batch sizes");
    }
}
