//! The run: a server for each cell, blocks of cells in an order of their own, the record after each, the table at the end.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use ringlog::sys::topology::pin_to;
use ringlog::sys::{Ring, UringOptions};

use super::counting::Counting;
use super::options::describe_plain;
use super::tables::{Counts, tables};
use super::{Arm, RingOption};
use crate::arrivals::Spread;
use crate::cell::{CellRun, CellTerms};
use crate::compare::{ARENA_BYTES_MAX, DataDirectory, Floors, own_directory};
use crate::environment::{Environment, allowed_cores, let_disk_settle};
use crate::keys::KeyDistribution;
use crate::payload::Payload;
use crate::progress::Progress;
use crate::record::{CellRecord, FORMAT, RunRecord, write_whole};
use crate::schedule::{Cell, CellKind, Plan, WARM_UP_SECONDS, pace_of};
use crate::spec::{Ack, FLOOR, Limits, Load, Pair, RunSpec};
use crate::tables::is_clean;
use crate::target::{BATCH_BYTES_MAX, Target};
use crate::units::{Pace, Rate, parse_bytes};

/// What lies between cells: a server's start, the files emptied. An estimate, for the plan only.
const BETWEEN_SECONDS: f64 = 0.35;

/// What to compare our ring with.
#[derive(Clone, Debug, clap::Args)]
pub struct Arms {
    /// Arms beside our ring [default: all that are built in]
    #[arg(long, value_delimiter = ',')]
    arms: Vec<Arm>,
    /// Our ring set up otherwise, a row each: sqpoll, unregistered, unregistered-buffers, unregistered-files, small-pages,
    /// huge-pages, depth=N, napi=Nus
    #[arg(long, value_delimiter = ',', default_values = ["small-pages"])]
    ring_options: Vec<RingOption>,
    /// Loads: produce, catch-up, fan-out
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["produce", "catch-up"])]
    loads: Vec<Load>,
    /// Partitions
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// Producer connections
    #[arg(long, default_value_t = 4)]
    producers: u32,
    /// Requests in flight on each producer connection
    #[arg(long, default_value_t = 5)]
    window: u32,
    /// Bytes of a record's value
    #[arg(long, value_parser = parse_bytes, default_value = "1KiB")]
    record_bytes: usize,
    /// Largest batch, whole, head included; several are compared
    #[arg(long, value_parser = parse_bytes, value_delimiter = ',', default_values = ["64KiB"])]
    batch_bytes: Vec<usize>,
    /// Rate of the latency cells
    #[arg(long, default_value = "200MB/s")]
    fixed_rate: Rate,
    /// Measured seconds of each produce cell
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Blocks: each runs every cell once, in an order of its own
    #[arg(long, default_value_t = 8)]
    blocks: u32,
    /// Bytes read in each catch-up cell
    #[arg(long, value_parser = parse_bytes, default_value = "512MB")]
    catch_up_bytes: usize,
    /// Seed of everything random [default: from the clock, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Where the servers write, in a directory of their own that is removed at the end [default: OUT/data]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the record goes [default: results/local/TIME]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Core of the server [default: the first this process may use]
    #[arg(long)]
    server_core: Option<usize>,
    /// Core of the load [default: the second this process may use]
    #[arg(long)]
    client_core: Option<usize>,
}

/// An arm, and how it is set up where that is ours.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Row {
    arm: Arm,
    option: Option<RingOption>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.option {
            None => write!(f, "{}", self.arm),
            Some(option) => write!(f, "{}:{option}", self.arm),
        }
    }
}

impl Row {
    /// As a floor among the rows of a record.
    fn pair(self) -> Pair {
        Pair { ingress: FLOOR.to_owned(), egress: self.to_string() }
    }
}

/// Runs the comparison; says whether every record arrived whole, once and in order.
///
/// # Errors
/// A refused flag, a server that did not come up or died, a broken connection, files that cannot be written.
pub fn arms(told: &Arms) -> Result<bool> {
    let (rows, notes) = told.rows()?;
    let spec = told.spec(&rows)?;
    let (server_core, client_core) = spec.cores(&allowed_cores())?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let out = own_directory(spec.out_directory(since_1970.as_secs()), spec.out.is_some())?;
    let data = DataDirectory::create(&spec, &out)?;
    let plan = plan(&spec, since_1970.as_nanos() as u64);
    let payload = Rc::new(Payload::seeded(spec.record_bytes, plan.seed));
    println!("{plan}");
    println!(
        "server on core {server_core}, load on core {client_core}; the record goes to {}",
        out.display()
    );
    notes.iter().for_each(|note| println!("{note}"));
    let mut record = RunRecord {
        format: FORMAT,
        environment: Environment::capture(&data.0),
        server_core,
        client_core,
        floor_validity: None,
        declared: Default::default(),
        versus: None,
        cells: Vec::new(),
        complete: false,
        spec,
        plan,
    };
    pin_to(client_core)?;
    let ring = Ring::of_kernel(&UringOptions::default(), ARENA_BYTES_MAX)?;
    let progress = Rc::new(RefCell::new(Progress::to_stderr(&record.plan)));
    let floors = Floors::make(&record, &payload, &data.0)?;
    let mut run = Run { ring, rows, payload, floors, progress, out: &out, begun: Instant::now() };
    let ran = run.cells(&mut record);
    record.save(&out)?;
    ran?;
    let counts = match Counting::probe(&out) {
        Ok(()) => run.count(&record)?,
        Err(why) => Counts::Refused(format!("{why:#}")),
    };
    write_whole(&out.join("counts.json"), &serde_json::to_vec(&counts)?)?;
    record.complete = true;
    record.save(&out)?;
    let text = format!("{}\n{}", notes.join("\n"), tables(&record, &counts));
    write_whole(&out.join("arms.txt"), text.as_bytes())?;
    println!("{}", tables(&record, &counts));
    Ok(is_clean(&record))
}

impl Arms {
    /// Our ring first; what is refused is said, with the reason, and left out.
    fn rows(&self) -> Result<(Vec<Row>, Vec<String>)> {
        let mut notes = vec![format!("ring: {}", describe_plain().map_err(anyhow::Error::msg)?)];
        let others = if self.arms.is_empty() { Arm::built() } else { self.arms.clone() };
        if self.arms.is_empty() {
            let absent = Arm::ALL.into_iter().filter(|arm| !arm.is_built());
            notes.extend(absent.map(|arm| format!("{arm}: not in this build (`--features tokio-uring`)")));
        }
        let mut rows = vec![Row { arm: Arm::Ring, option: None }];
        rows.extend(others.into_iter().filter(|arm| *arm != Arm::Ring).map(|arm| Row { arm, option: None }));
        for &option in &self.ring_options {
            let row = Row { arm: Arm::Ring, option: Some(option) };
            match option.probe() {
                Ok(note) => {
                    rows.push(row);
                    notes.extend(note.map(|note| format!("{row}: {note}")));
                }
                Err(why) => notes.push(format!("{row}: refused here: {why}")),
            }
        }
        Ok((rows, notes))
    }

    fn spec(&self, rows: &[Row]) -> Result<RunSpec> {
        for load in &self.loads {
            let served = matches!(load, Load::Produce | Load::CatchUp | Load::FanOut);
            ensure!(served, "--loads {load}: arms serve produce, catch-up and fan-out");
        }
        let spec = RunSpec {
            rows: rows.iter().map(|row| row.pair()).collect(),
            loads: self.loads.clone(),
            partitions: self.partitions,
            producers: self.producers,
            consumers: 1,
            window: self.window,
            record_bytes: self.record_bytes,
            batch_bytes: self.batch_bytes.clone(),
            keys: KeyDistribution::None,
            rate: Pace::Saturation,
            fixed_rate: self.fixed_rate,
            arrivals: Spread::Poisson,
            ack: Ack::Memory,
            seconds: Some(self.seconds),
            full: false,
            blocks: Some(self.blocks),
            catch_up_bytes: self.catch_up_bytes,
            payload: None,
            seed: self.seed,
            data_dir: self.data_dir.clone(),
            out: self.out.clone(),
            server_core: self.server_core,
            client_core: self.client_core,
        };
        let names: Vec<String> = rows.iter().map(Row::to_string).collect();
        let egress: Vec<&str> = names.iter().map(String::as_str).collect();
        spec.validate(&Limits { ingress: &[FLOOR], egress: &egress, batch_bytes_max: BATCH_BYTES_MAX })?;
        Ok(spec)
    }
}

/// Every cell once a block, the first row twice, latencies too: they are paired as throughputs are.
fn plan(spec: &RunSpec, seed: u64) -> Plan {
    let seed = spec.seed.unwrap_or(seed);
    let rows = spec.rows.iter().map(|row| (row, false)).chain([(&spec.rows[0], true)]);
    let mut block = Vec::new();
    for (row, again) in rows {
        for &batch_bytes in &spec.batch_bytes {
            for &load in &spec.loads {
                let cell = |kind, pace| Cell {
                    index: 0,
                    block: 0,
                    row: row.clone(),
                    again,
                    load,
                    batch_bytes,
                    kind,
                    pace,
                };
                block.push(cell(CellKind::Throughput, pace_of(spec, load)));
                if load == Load::Produce {
                    block.push(cell(CellKind::Latency, Pace::Rate(spec.fixed_rate)));
                }
            }
        }
    }
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

struct Run<'a> {
    ring: Ring,
    rows: Vec<Row>,
    payload: Rc<Payload>,
    floors: Floors,
    progress: Rc<RefCell<Progress<std::io::Stderr>>>,
    out: &'a Path,
    begun: Instant,
}

impl Run<'_> {
    fn cells(&mut self, record: &mut RunRecord) -> Result<()> {
        for cell in record.plan.cells.clone() {
            let server = self.start(&cell, record)?;
            let measured = self.cell(&cell, record, &server)?;
            server.borrow_mut().stop()?;
            self.floors.clear()?;
            record.save_hlog(self.out, &measured)?;
            self.progress.borrow_mut().finish_cell(&measured);
            record.cells.push(measured);
        }
        Ok(())
    }

    /// Each row once more on each load, with the kernel counting.
    fn count(&mut self, record: &RunRecord) -> Result<Counts> {
        let first = record
            .plan
            .cells
            .iter()
            .filter(|cell| cell.block == 0 && !cell.again && cell.kind == CellKind::Throughput);
        let mut counts = Vec::new();
        for (cell, index) in first.zip(record.plan.cells.len() as u32..) {
            let cell = Cell { index, ..cell.clone() };
            let server = self.start(&cell, record)?;
            let process = server.borrow().process_id().context("a server without a process")?;
            let counting = Counting::start(process, self.out)?;
            self.cell(&cell, record, &server)?;
            let told = server.borrow_mut().counters()?;
            server.borrow_mut().stop()?;
            let counted = counting.finish()?;
            self.floors.clear()?;
            let bytes = told.get("bytes").and_then(serde_json::Value::as_u64).unwrap_or_default();
            ensure!(bytes > 0, "cell {cell} moved nothing while it was counted");
            counts.push((cell, counted, bytes));
        }
        Ok(Counts::Counted(counts))
    }

    fn start(&self, cell: &Cell, record: &RunRecord) -> Result<Rc<RefCell<Target>>> {
        let row = self.rows.iter().find(|row| row.pair() == cell.row);
        let Some(row) = row else { bail!("cell {cell} is of no row") };
        let mut words = vec!["--arm".to_owned(), row.arm.to_string()];
        if let Some(option) = row.option {
            words.extend(["--ring-option".to_owned(), option.to_string()]);
            let cores = [record.server_core, record.client_core];
            let spare = allowed_cores().into_iter().find(|core| !cores.contains(core));
            if let (RingOption::SqPoll, Some(core)) = (option, spare) {
                words.extend(["--sqpoll-core".to_owned(), core.to_string()]);
            }
        }
        let target = self.floors.start_arm(&words, cell, record, self.out)?;
        Ok(Rc::new(RefCell::new(target)))
    }

    fn cell(&self, cell: &Cell, record: &RunRecord, server: &Rc<RefCell<Target>>) -> Result<CellRecord> {
        let made = self.floors.made.get(&cell.batch_bytes).filter(|_| cell.load.catches_up()).cloned();
        let start_seconds = self.begun.elapsed().as_secs_f64();
        let run = CellRun {
            ring: self.ring.clone(),
            spec: Rc::new(record.spec.clone()),
            seed: record.plan.seed,
            seconds: record.plan.seconds,
            payload: self.payload.clone(),
            cell: cell.clone(),
            address: server.borrow().address(),
            server: server.borrow().process_id(),
            data_dir: made.as_ref().map(|made| made.directory.clone()),
            target: server.clone(),
            made,
            progress: self.progress.clone(),
            terms: CellTerms::default(),
        };
        let_disk_settle(&self.floors.data);
        match run.run().with_context(|| format!("cell {cell}")) {
            Ok(measured) => Ok(CellRecord { start_seconds, ..measured }),
            Err(error) => bail!("{error:#}{}", server.borrow().last_words().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arms: Arms,
    }

    fn told(flags: &str) -> Arms {
        let words = std::iter::once("arms").chain(flags.split_whitespace());
        Command::try_parse_from(words).unwrap_or_else(|error| panic!("{flags}: {error}")).arms
    }

    #[test]
    fn every_block_holds_every_row_once_and_the_first_twice() {
        let told = told("--arms threads,epoll --ring-options depth=8,unregistered --blocks 3 --seed 5");
        let (rows, _) = told.rows().unwrap();
        let names: Vec<String> = rows.iter().map(Row::to_string).collect();
        assert_eq!(names, ["ring", "threads", "epoll", "ring:depth=8", "ring:unregistered"]);
        let plan = plan(&told.spec(&rows).unwrap(), 1);
        assert_eq!(plan.cells.len(), 3 * 6 * 3, "6 rows: produce, its latency, catch-up");
        for block in 0..3 {
            for name in &names {
                let of_row = plan.cells.iter().filter(|cell| cell.block == block && cell.row.egress == *name);
                assert_eq!(of_row.count(), if name == "ring" { 6 } else { 3 }, "{name}");
            }
        }
        let again = plan.cells.iter().filter(|cell| cell.again);
        assert!(again.clone().all(|cell| cell.row.egress == "ring") && again.count() == 9);
    }

    #[test]
    fn loads_that_no_arm_serves_are_refused_by_name() {
        let told = told("--arms threads --loads tail");
        let (rows, _) = told.rows().unwrap();
        let why = told.spec(&rows).unwrap_err().to_string();
        assert!(why.contains("--loads tail") && why.contains("produce"), "{why}");
    }

    #[test]
    fn what_the_host_refuses_is_no_row_and_is_said() {
        let (rows, notes) = told("--arms threads --ring-options huge-pages").rows().unwrap();
        let is_row = rows.iter().any(|row| row.option == Some(RingOption::HugePages));
        let is_said = notes.iter().any(|note| note.starts_with("ring:huge-pages: refused here: "));
        assert!(is_row != is_said, "{notes:?}");
    }
}
