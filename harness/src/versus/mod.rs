//! Two targets on one workload: ours against Apache Kafka, or against ourselves set up otherwise.
//!
//! ```text
//! workload file -> cells: warm-up a, warm-up b | block: a, b, a again, in random order | .. -> ratios within blocks
//! ```
//!
//! Both are up for the whole run; one that has nothing to do sleeps. Each cell has a topic of its own, whose records are read
//! back and verified when its measured time is over. What is compared are ratios within blocks, held against the first target
//! measured a second time in every block; what each promised with an answer stands beside them. The record is a
//! [`RunRecord`], with what is not in others in its [`VersusFacts`].

mod facts;
mod process;
mod promise;
mod runner;
mod summary;
mod target;
mod warm;
mod workload;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};

pub use self::facts::VersusFacts;
pub use self::process::{Process, listener};
pub use self::promise::Promise;
pub use self::summary::summary;
pub use self::target::{Asked, Facts};
pub use self::warm::{Warm, warm};
pub use self::workload::Workload;
use crate::compare::{DataDirectory, own_directory};
use crate::environment::{Environment, allowed_cores};
use crate::keys::KeyDistribution;
use crate::record::{FORMAT, RunRecord, write_whole};
use crate::schedule::{Cell, CellKind, Plan};
use crate::spec::{Limits, Load, Pair, RunSpec};
use crate::tables::is_clean;
use crate::target::{BATCH_BYTES_MAX, Target};
use crate::units::{Pace, Rate};
use runner::{Place, Runner, WARM_UP_SECONDS};

/// What lies between cells: topics, reading back, write-back. An estimate, for the plan only.
const BETWEEN_SECONDS: f64 = 2.0;
/// The sides, as rows of the record are named.
const SIDES: [&str; 2] = ["a", "b"];

/// Which two, and on what.
#[derive(Clone, Debug, clap::Args)]
pub struct Versus {
    /// The workload file
    file: PathBuf,
    /// What is held against: wire=HOST:PORT, child, or child=INGRESS+EGRESS[,ack=ACK][,commit=journal|files]
    #[arg(long)]
    a: Asked,
    /// What is held against it, in the same words
    #[arg(long)]
    b: Asked,
    /// Measured seconds of each cell
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Blocks: each runs a, b and a again, in an order of its own; fewer than 6 give no interval
    #[arg(long, default_value_t = 8)]
    blocks: u32,
    /// Seconds of the cell before all others of each
    #[arg(long, default_value_t = 3.0)]
    warm_up_seconds: f64,
    /// Seed of everything random [default: from the clock, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Where children keep their logs, in a directory of their own that is removed at the end [default: OUT/data]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the record goes [default: results/local/TIME]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Core of children; others are pinned by who starts them [default: the first this process may use]
    #[arg(long)]
    server_core: Option<usize>,
    /// Core of the load [default: the second this process may use]
    #[arg(long)]
    client_core: Option<usize>,
}

/// A target that is up.
struct Side {
    target: Rc<RefCell<Target>>,
    process: Option<i32>,
}

/// Runs the comparison; says whether every record arrived whole, once and in order.
///
/// # Errors
/// A refused file or flag, a target that did not come up, does not speak the protocol or died, a broken connection, files
/// that cannot be written.
pub fn versus(told: &Versus) -> Result<bool> {
    let workload = Workload::read(&told.file)?;
    told.check()?;
    let spec = told.spec(&workload);
    let kinds = [told.a.kind(), told.b.kind()];
    let limits = Limits { ingress: &SIDES, egress: &kinds, batch_bytes_max: BATCH_BYTES_MAX };
    spec.validate(&limits)?;
    let (server_core, client_core) = spec.cores(&allowed_cores())?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let out = own_directory(spec.out_directory(since_1970.as_secs()), spec.out.is_some())?;
    let data = DataDirectory::create(&spec, &out)?;
    let plan = plan(&spec, since_1970.as_nanos() as u64);
    println!("{workload}\n{plan}");
    println!(
        "children on core {server_core}, load on core {client_core}; the record goes to {}",
        out.display()
    );

    let mut sides = Vec::new();
    for (name, asked) in SIDES.into_iter().zip([&told.a, &told.b]) {
        let started = asked.start(workload.ack, server_core, &data.0.join(name), &out)?;
        let process = asked.process(&started);
        sides.push((asked, process, Rc::new(RefCell::new(started))));
    }
    // Shown among the others, but not of the plan: nothing is made of them.
    let warm_ups = warm_ups(&plan);
    let shown = Plan { cells: [&warm_ups[..], &plan.cells].concat(), ..plan.clone() };
    let runner = Runner::start(client_core, workload.record_bytes, &shown)?;
    let mut targets = Vec::new();
    for (name, (asked, process, started)) in SIDES.into_iter().zip(&sides) {
        let address = started.borrow().address();
        let promise = runner.promise(address).with_context(|| format!("{name}, {asked}"))?;
        targets.push(Facts { name: asked.to_string(), process: process.clone(), promise });
    }
    let targets = <[Facts; 2]>::try_from(targets).map_err(|_| anyhow!("two sides are asked"))?;
    targets.iter().zip(SIDES).for_each(|(facts, side)| println!("{side}: {facts}"));
    let file = told.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut record = RunRecord {
        format: FORMAT,
        environment: Environment::capture(&data.0),
        server_core,
        client_core,
        floor_validity: None,
        declared: Default::default(),
        cells: Vec::new(),
        complete: false,
        versus: Some(VersusFacts { file, workload, targets, warm_up: Vec::new() }),
        spec,
        plan,
    };
    let sides: Vec<Side> = sides
        .into_iter()
        .map(|(_, process, target)| Side { target, process: process.ok().map(|process| process.id) })
        .collect();
    let ran = run(told, &runner, &sides, &data.0, &out, &mut record);
    record.complete = ran.is_ok();
    record.save(&out)?;
    if let Err(error) = ran {
        runner.shut_down();
        let words: Vec<String> = sides.iter().filter_map(|side| side.target.borrow().last_words()).collect();
        bail!("{error:#}{}", words.concat());
    }
    let text = summary(&record)?;
    write_whole(&out.join("versus.txt"), text.as_bytes())?;
    println!("\n{text}");
    sides.iter().try_for_each(|side| side.target.borrow_mut().stop())?;
    Ok(is_clean(&record))
}

fn run(
    told: &Versus,
    runner: &Runner,
    sides: &[Side],
    disk: &Path,
    out: &Path,
    record: &mut RunRecord,
) -> Result<()> {
    let spec = Rc::new(record.spec.clone());
    let cell_on_side = |cell: &Cell, seconds: f64| {
        let side = SIDES.iter().position(|side| *side == cell.row.ingress);
        let Side { target, process } = &sides[side.context("a cell of neither side")?];
        runner.cell(&spec, cell, seconds, &Place { target, process: *process, disk })
    };
    for cell in warm_ups(&record.plan) {
        let warm = cell_on_side(&cell, told.warm_up_seconds)?;
        record.versus.iter_mut().for_each(|facts| facts.warm_up.push(warm.clone()));
    }
    for cell in record.plan.cells.clone() {
        let measured = cell_on_side(&cell, record.plan.seconds)?;
        record.save_hlog(out, &measured)?;
        record.cells.push(measured);
        record.save(out)?;
    }
    Ok(())
}

impl Versus {
    fn check(&self) -> Result<()> {
        ensure!(self.blocks > 0, "--blocks 0: nothing would be measured");
        for (flag, seconds) in [("--seconds", self.seconds), ("--warm-up-seconds", self.warm_up_seconds)] {
            ensure!(
                seconds.is_finite() && (0.1..=3600.0).contains(&seconds),
                "{flag} {seconds}: 0.1 to 3600 make sense"
            );
        }
        Ok(())
    }

    fn spec(&self, workload: &Workload) -> RunSpec {
        let row =
            |side: &str, asked: &Asked| Pair { ingress: side.to_owned(), egress: asked.kind().to_owned() };
        RunSpec {
            rows: vec![row(SIDES[0], &self.a), row(SIDES[1], &self.b)],
            seconds: Some(self.seconds),
            blocks: Some(self.blocks),
            seed: self.seed,
            data_dir: self.data_dir.clone(),
            out: self.out.clone(),
            server_core: self.server_core,
            client_core: self.client_core,
            ..spec_of(workload)
        }
    }
}

/// Producers alone, read back afterwards.
fn spec_of(workload: &Workload) -> RunSpec {
    RunSpec {
        rows: Vec::new(),
        loads: vec![Load::Produce],
        partitions: workload.partitions,
        producers: workload.connections,
        consumers: 1,
        window: workload.window,
        record_bytes: workload.record_bytes,
        batch_bytes: vec![workload.batch_bytes],
        keys: KeyDistribution::None,
        rate: workload.rate,
        // No cell of its own: every cell keeps its latencies.
        fixed_rate: match workload.rate {
            Pace::Rate(rate) => rate,
            Pace::Saturation => Rate::BytesPerSecond(1e6),
        },
        arrivals: workload.arrivals,
        ack: workload.ack,
        seconds: None,
        full: false,
        blocks: None,
        catch_up_bytes: 1,
        payload: None,
        seed: None,
        data_dir: None,
        out: None,
        server_core: None,
        client_core: None,
    }
}

fn plan(spec: &RunSpec, seed: u64) -> Plan {
    let seed = spec.seed.unwrap_or(seed);
    let [a, b] = &spec.rows[..] else { unreachable!("two sides are asked") };
    let cell = |row: &Pair, again| Cell {
        index: 0,
        block: 0,
        row: row.clone(),
        again,
        load: Load::Produce,
        batch_bytes: spec.batch_bytes[0],
        kind: CellKind::Throughput,
        pace: spec.rate,
    };
    let mut block = [cell(a, false), cell(b, false), cell(a, true)];
    let (blocks, seconds) = (spec.blocks.unwrap_or(1), spec.seconds.unwrap_or(1.0));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cells = Vec::new();
    for number in 0..blocks {
        random.shuffle(&mut block);
        cells.extend(block.iter().map(|cell| Cell { block: number, ..cell.clone() }));
    }
    cells.iter_mut().zip(0..).for_each(|(cell, index)| cell.index = index);
    let of_cell = seconds + WARM_UP_SECONDS + BETWEEN_SECONDS;
    Plan { seed, blocks, seconds, seconds_estimated: (of_cell * cells.len() as f64).round(), cells }
}

/// One of each side, before all others.
fn warm_ups(plan: &Plan) -> Vec<Cell> {
    let of_side = |cell: &&Cell| cell.block == 0 && !cell.again;
    let mut cells: Vec<Cell> = plan.cells.iter().filter(of_side).cloned().collect();
    cells.iter_mut().zip(plan.cells.len() as u32..).for_each(|(cell, index)| cell.index = index);
    cells
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        versus: Versus,
    }

    pub(crate) fn told(flags: &str) -> Versus {
        let words = std::iter::once("versus").chain(flags.split_whitespace());
        Command::try_parse_from(words).unwrap_or_else(|error| panic!("{flags}: {error}")).versus
    }

    #[test]
    fn every_block_holds_each_side_once_and_the_first_twice() {
        let told = told("x.toml --a child --b wire=127.0.0.1:9 --blocks 5 --seed 3");
        let plan = plan(&told.spec(&"".parse().unwrap()), 1);
        assert_eq!((plan.seed, plan.cells.len()), (3, 15));
        let mut orders = Vec::new();
        for block in plan.cells.chunks(3) {
            let mut names: Vec<(String, bool)> =
                block.iter().map(|cell| (cell.row.to_string(), cell.again)).collect();
            orders.push(names.clone());
            names.sort();
            let of = |name: &str, again| (name.to_owned(), again);
            assert_eq!(names, [of("a+child", false), of("a+child", true), of("b+wire", false)]);
        }
        orders.dedup();
        assert!(orders.len() > 1, "the order is never another: {orders:?}");
        let indices: Vec<u32> = plan.cells.iter().map(|cell| cell.index).collect();
        assert_eq!(indices, (0..15).collect::<Vec<_>>());
        let mut warm_ups: Vec<(String, bool, u32)> =
            warm_ups(&plan).iter().map(|cell| (cell.row.to_string(), cell.again, cell.index)).collect();
        warm_ups.sort();
        let names: Vec<(&str, bool)> = warm_ups.iter().map(|(name, again, _)| (&name[..], *again)).collect();
        assert_eq!(names, [("a+child", false), ("b+wire", false)]);
        assert!(warm_ups.iter().all(|(_, _, index)| *index >= 15), "a topic of its own: {warm_ups:?}");
    }

    #[test]
    fn flags_that_make_no_sense_are_refused_with_their_numbers() {
        for (flags, words) in [
            ("--blocks 0", "--blocks 0"),
            ("--seconds 0", "--seconds 0: 0.1 to 3600"),
            ("--seconds NaN", "--seconds NaN"),
            ("--warm-up-seconds 1e9", "--warm-up-seconds 1000000000"),
        ] {
            let error = told(&format!("x.toml --a child --b child {flags}")).check().unwrap_err().to_string();
            assert!(error.contains(words), "{flags}: {error}");
        }
    }
}
