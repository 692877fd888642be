//! `compare`: every row on the same loads, interleaved, verified, kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringlog::sys::{Ring, UringOptions, topology};
use ringlog::{Egress, Ingress};

use crate::arrivals::OpenLoop;
use crate::client::Connection;
use crate::cpu::{MachineSample, ProcessSample};
use crate::environment::{Environment, allowed_cores};
use crate::load::Load;
use crate::payload::Payload;
use crate::progress::Progress;
use crate::record::{CellRecord, DeclaredCopies, FORMAT, RunRecord, write_whole};
use crate::residency::{Residency, ResidencyPair, drop_logs_from_cache, each_log};
use crate::schedule::{Cell, Plan, WARM_UP_SECONDS};
use crate::spec::{Limits, RunSpec};
use crate::summary::summary;
use crate::target::Target;
use crate::units::Pace;
use crate::{consumers, producers, report, spec, tables};

/// The largest batch the servers are told to take.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Memory of the load.
const ARENA_BYTES_MAX: u64 = 1 << 30;
const SAMPLE_SECONDS: f64 = 0.1;
/// How long consumers may take to see what was acknowledged before the end.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(15);

/// Runs the comparison; true when nothing was lost, duplicated, reordered or corrupt.
pub fn compare(spec: RunSpec) -> Result<bool> {
    let ingress: Vec<&str> = Ingress::ALL.iter().map(|i| i.name()).collect();
    let egress: Vec<&str> = Egress::ALL.iter().map(|e| e.name()).collect();
    spec.validate(&Limits { ingress: &ingress, egress: &egress, batch_bytes_max: BATCH_BYTES_MAX })?;
    let (server_core, client_core) = spec.cores(&allowed_cores())?;
    let began = Instant::now();
    let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let out = spec.out_directory(start.as_secs());
    std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let data_dir = spec.data_dir.clone().unwrap_or_else(|| out.join("data"));
    std::fs::create_dir_all(&data_dir).with_context(|| format!("making {}", data_dir.display()))?;
    let plan = Plan::new(&spec, start.as_nanos() as u64);
    println!("{plan}");
    println!("server on core {server_core}, load on core {client_core}, data in {}", data_dir.display());
    let mut record = RunRecord {
        format: FORMAT,
        environment: Environment::capture(&data_dir),
        server_core,
        client_core,
        declared: declared(),
        cells: Vec::new(),
        complete: false,
        spec,
        plan,
    };
    // The ring is made after the pin: its workers inherit the core.
    topology::pin_to(client_core)?;
    let ring = Ring::of_kernel(&UringOptions::default(), ARENA_BYTES_MAX)?;
    let mut progress = Progress::to_stderr(&record.plan);
    let smallest = record.spec.batch_bytes.iter().min().copied().unwrap_or(1);
    let payload = Rc::new(match &record.spec.payload {
        Some(path) => Payload::lines(path, smallest)?,
        None => Payload::seeded(record.spec.record_bytes, record.plan.seed),
    });
    for cell in record.plan.cells.clone() {
        let runner = Runner { ring: &ring, record: &record, payload: &payload, data_dir: &data_dir, began };
        let measured = runner.run(&cell).with_context(|| format!("cell {cell}"))?;
        progress.finish_cell(&measured);
        record.save_hlog(&out, &measured)?;
        record.cells.push(measured);
        record.save(&out)?;
    }
    ring.shut_down();
    record.complete = true;
    record.save(&out)?;
    let page = out.join("report.html");
    write_whole(&page, report::render(&record)?.as_bytes())?;
    if record.spec.data_dir.is_none() {
        let _ = std::fs::remove_dir_all(&data_dir);
    }
    println!("{}", summary(&record));
    println!("took {:.0} s; page {}", began.elapsed().as_secs_f64(), page.display());
    Ok(tables::is_clean(&record))
}

fn declared() -> BTreeMap<String, DeclaredCopies> {
    let copies = |profile: ringlog::transfer::CopyProfile, needs: &str| DeclaredCopies {
        cpu_copies_per_byte: profile.cpu_copies,
        user_copies_per_byte: profile.user_copies,
        shares_pages: profile.shares_pages,
        note: format!("needs {needs}"),
    };
    let ingress = Ingress::ALL.iter().map(|i| (format!("ingress/{i}"), copies(i.profile(), i.needs())));
    let egress = Egress::ALL.iter().map(|e| (format!("egress/{e}"), copies(e.profile(), e.needs())));
    ingress.chain(egress).collect()
}

struct Runner<'a> {
    ring: &'a Ring,
    record: &'a RunRecord,
    payload: &'a Rc<Payload>,
    data_dir: &'a Path,
    began: Instant,
}

/// What was sampled at one end of the measured time.
struct Sample {
    server: ProcessSample,
    client: ProcessSample,
    machine: MachineSample,
    at: Instant,
}

impl Sample {
    fn take(pid: i32) -> Result<Sample> {
        Ok(Sample {
            server: ProcessSample::take(pid)?,
            client: ProcessSample::take(std::process::id() as i32)?,
            machine: MachineSample::take()?,
            at: Instant::now(),
        })
    }
}

impl Runner<'_> {
    fn run(&self, cell: &Cell) -> Result<CellRecord> {
        let directory = self.data_dir.join(format!("cell-{:03}", cell.index));
        let _ = std::fs::remove_dir_all(&directory);
        let spec = &self.record.spec;
        let mut target =
            Target::start(&cell.row, spec.ack, &directory, self.record.server_core, BATCH_BYTES_MAX)?;
        let measured = self.measure(cell, &mut target, &directory);
        if measured.is_ok() {
            target.stop()?;
        }
        let _ = std::fs::remove_dir_all(&directory);
        measured
    }

    fn measure(&self, cell: &Cell, target: &mut Target, directory: &Path) -> Result<CellRecord> {
        let spec = &self.record.spec;
        let seed = self.record.plan.seed ^ u64::from(cell.index);
        let mut load = Load::new(self.ring, spec, cell, seed, target.address, self.payload.clone());
        if let Pace::Rate(rate) = cell.pace {
            let keyed = spec.keys.count().is_some();
            load.schedule = Some(OpenLoop {
                spread: spec.arrivals,
                requests_per_second: self.payload.requests_per_second(rate, cell.batch_bytes, keyed),
                producers: spec.producers,
                start_ns: self.ring.now().0 + 20_000_000,
                seed,
            });
        }
        let load = Rc::new(load);
        let (topic, address, partitions) = (load.topic.clone(), target.address, spec.partitions);
        let ring = self.ring.clone();
        self.ring.run(async move {
            Connection::open(&ring, address, 64 << 10).await?.create_topic(&topic, partitions).await
        })?;
        let mut record = CellRecord::empty(cell.clone());
        match cell.load {
            spec::Load::Tail => self.tail(&load, target, &mut record)?,
            spec::Load::CatchUp => self.catch_up(&load, target, directory, &mut record)?,
        }
        record.produced_bytes = load.counts.produced_bytes.get();
        record.produced_records = load.counts.produced_records.get();
        record.consumed_bytes = load.counts.consumed_bytes.get();
        record.consumed_records = load.counts.consumed_records.get();
        record.sample_seconds = SAMPLE_SECONDS;
        record.produce = std::mem::take(&mut *load.produce.borrow_mut());
        record.end_to_end = std::mem::take(&mut *load.end_to_end.borrow_mut());
        record.lateness = *load.lateness.borrow();
        record.errors = std::mem::take(&mut *load.errors.borrow_mut());
        record.findings = std::mem::take(&mut *load.findings.borrow_mut());
        record.server_counters = target.counters()?;
        record.notes.append(&mut load.failures.borrow_mut());
        note_fallbacks(&mut record);
        anyhow::ensure!(
            record.notes.iter().all(|n| !n.contains("producer ") && !n.contains("consumer ")),
            "{:?}",
            record.notes
        );
        Ok(record)
    }

    /// Producers and consumers together.
    fn tail(&self, load: &Rc<Load>, target: &Target, record: &mut CellRecord) -> Result<()> {
        self.start_consumers(load);
        self.start_producers(load);
        self.wait(Duration::from_secs_f64(WARM_UP_SECONDS));
        self.measured(load, target, record, || false)?;
        load.stop_producing.set(true);
        self.until(|| load.producers_running.get() == 0, Duration::from_secs(30));
        self.drain(load);
        Ok(())
    }

    /// A log is filled first, then read by consumers alone, from disk.
    fn catch_up(
        &self,
        load: &Rc<Load>,
        target: &Target,
        directory: &Path,
        record: &mut CellRecord,
    ) -> Result<()> {
        load.fill_bytes_left.set(Some(self.record.spec.catch_up_bytes as i64));
        self.start_producers(load);
        self.until(|| load.producers_running.get() == 0, Duration::from_secs(120));
        drop_logs_from_cache(directory)?;
        let before = residency(directory)?;
        *load.goal.borrow_mut() = Some(load.acked_ends.borrow().clone());
        load.measuring.set(true);
        self.start_consumers(load);
        let goal_reached = || load.consumers_running.get() == 0;
        self.measured(load, target, record, goal_reached)?;
        self.until(goal_reached, Duration::from_secs(60));
        record.residency = Some(ResidencyPair { before, after: residency(directory)? });
        self.drain(load);
        Ok(())
    }

    /// The measured time: the plan's seconds, or until `over`.
    fn measured(
        &self,
        load: &Rc<Load>,
        target: &Target,
        record: &mut CellRecord,
        over: impl Fn() -> bool,
    ) -> Result<()> {
        let before = Sample::take(target.pid())?;
        record.start_seconds = before.at.duration_since(self.began).as_secs_f64();
        load.measuring.set(true);
        let end = before.at + Duration::from_secs_f64(self.record.plan.seconds);
        let mut last = 0;
        while Instant::now() < end && !over() && load.failures.borrow().is_empty() {
            self.wait(
                Duration::from_secs_f64(SAMPLE_SECONDS).min(end.saturating_duration_since(Instant::now())),
            );
            let total = match load.cell.load {
                spec::Load::Tail => load.counts.produced_bytes.get(),
                spec::Load::CatchUp => load.counts.consumed_bytes.get(),
            };
            record.bytes_by_step.push(total - last);
            last = total;
        }
        load.measuring.set(false);
        let after = Sample::take(target.pid())?;
        record.seconds = after.at.duration_since(before.at).as_secs_f64();
        record.server = after.server.since(&before.server);
        record.client = after.client.since(&before.client);
        record.cores = after.machine.since(&before.machine);
        Ok(())
    }

    fn start_producers(&self, load: &Rc<Load>) {
        load.producers_running.set(load.spec.producers);
        for number in 0..load.spec.producers {
            self.ring.spawn(producers::run(load.clone(), number));
        }
    }

    fn start_consumers(&self, load: &Rc<Load>) {
        load.consumers_running.set(load.spec.consumers);
        for number in 0..load.spec.consumers {
            self.ring.spawn(consumers::run(load.clone(), number));
        }
    }

    /// Lets consumers see all that was acknowledged, and closes their accounts.
    fn drain(&self, load: &Rc<Load>) {
        *load.goal.borrow_mut() = Some(load.acked_ends.borrow().clone());
        self.until(|| load.consumers_running.get() == 0, DRAIN_TIME_MAX);
        load.abandon.set(true);
        self.until(|| load.consumers_running.get() == 0, Duration::from_secs(5));
    }

    fn wait(&self, duration: Duration) {
        let ring = self.ring.clone();
        self.ring.run(async move { ring.sleep(duration).await });
    }

    fn until(&self, reached: impl Fn() -> bool, patience: Duration) {
        let end = Instant::now() + patience;
        while !reached() && Instant::now() < end {
            self.wait(Duration::from_millis(1));
        }
    }
}

fn residency(directory: &Path) -> Result<Residency> {
    let mut sum = Residency::default();
    each_log(directory, &mut |_, file| {
        let bytes = file.metadata()?.len();
        if bytes > 0 {
            let found = ringlog::sys::residency(file, 0, bytes)?;
            sum.add(Residency { cached_pages: found.cached_pages, total_pages: found.pages });
        }
        Ok(())
    })
    .context("asking for the residency of the log")?;
    Ok(sum)
}

/// What a strategy did not carry itself is said.
fn note_fallbacks(record: &mut CellRecord) {
    let Some(counters) = record.server_counters.get("egress").and_then(|e| e.get(&record.cell.row.egress))
    else {
        return;
    };
    let number = |name: &str| counters.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let (own, fallback) = (number("bytes"), number("fallback_bytes"));
    if fallback > 0 {
        let percent = 100.0 * fallback as f64 / (own + fallback) as f64;
        let carrier = if record.cell.row.egress == "tail" { "copy" } else { "tail" };
        record.notes.push(format!("{percent:.0} % of {} went by {carrier}", record.cell.row.egress));
    }
}
