//! The run: servers, cells in the plan's order, the record after each, the page at the end.
//!
//! One server a row stays up for the whole run, all on the server's core: idle ones sleep, so blocks interleave for
//! nothing. The load runs on the calling thread, pinned to the other core. Everything is kept below one directory;
//! the logs in it are removed at the end, also of a run that failed or was told to stop. Only one that is killed outright
//! leaves them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use ringlog::sys::topology::pin_to;
use ringlog::sys::{Ring, UringOptions};
use ringlog::transfer::CopyProfile;
use ringlog::{Egress, Ingress};
use serde_json::Value;

use crate::cell::{CellRun, CellTerms, followed_topic_of, topic_of};
use crate::environment::{Environment, allowed_cores, let_disk_settle};
use crate::floor::stored::{Made, make};
use crate::floor::validity::Validity;
use crate::payload::Payload;
use crate::progress::Progress;
use crate::record::{DeclaredCopies, FORMAT, RunRecord, write_whole};
use crate::report;
use crate::schedule::{Cell, CellKind, Plan};
use crate::spec::{FLOOR, Limits, Load, Pair, RunSpec};
use crate::summary::summary;
use crate::tables::is_clean;
use crate::target::{BATCH_BYTES_MAX, Target};

/// The load's memory; it takes what its windows need.
pub(crate) const ARENA_BYTES_MAX: u64 = 4 << 30;

/// What a comparison is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Compare {
    /// What to run.
    #[command(flatten)]
    pub spec: RunSpec,
    /// What to run it on: child, or wire=HOST:PORT
    #[arg(long, hide = true, default_value = "child")]
    pub target: String,
    /// Make the repeat of the first row cost so much more CPU, to see whether that is noticed
    #[arg(long, hide = true)]
    pub handicap_percent: Option<f64>,
}

/// Removes the servers' logs when the run is over, also when it failed.
pub(crate) struct DataDirectory(pub(crate) PathBuf);

/// Runs the comparison; says whether every record arrived whole, once and in order.
///
/// # Errors
/// A refused flag, a server that did not come up or died, a broken connection, files that cannot be written.
pub fn compare(told: Compare) -> Result<bool> {
    let Compare { mut spec, target, handicap_percent } = told;
    if spec.full {
        spec.rows = every_pair();
    }
    let ingress: Vec<&str> = Ingress::ALL.iter().map(|ingress| ingress.name()).collect();
    // A strategy that discards can be no row: its consumers would wait for ever.
    let delivering = Egress::ALL.iter().filter(|egress| egress.delivers());
    let egress: Vec<&str> = delivering.map(|egress| egress.name()).collect();
    let limits = Limits { ingress: &ingress, egress: &egress, batch_bytes_max: BATCH_BYTES_MAX };
    spec.validate(&limits)?;
    let (server_core, client_core) = spec.cores(&allowed_cores())?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let wire = wire_address(&target)?;
    let out = own_directory(spec.out_directory(since_1970.as_secs()), spec.out.is_some())?;
    let data = DataDirectory::create(&spec, &out)?;
    let floor_validity = match wire {
        None => floor_of(&data.0, (server_core, client_core)),
        Some(_) => None,
    };
    let plan = Plan::new(&spec, since_1970.as_nanos() as u64, floor_validity.is_some());
    let batch_bytes_min = spec.batch_bytes.iter().copied().min().unwrap_or_default();
    let payload = Rc::new(match &spec.payload {
        Some(path) => Payload::lines(path, batch_bytes_min)?,
        None => Payload::seeded(spec.record_bytes, plan.seed),
    });

    println!("{plan}");
    println!(
        "server on core {server_core}, load on core {client_core}; record and page go to {}",
        out.display()
    );
    if server_core == client_core {
        println!("only one core is allowed: server and load share it, and each slows the other");
    }
    let mut targets: Vec<Rc<RefCell<Target>>> = Vec::new();
    for row in &spec.rows {
        targets.push(shared(match wire {
            Some(address) => Target::Wire(address),
            None => {
                let data_dir = data.0.join(row.to_string());
                Target::start_child(row, &spec.ack.to_string(), &[], server_core, &data_dir, &out)?
            }
        }));
    }

    // The first row a second time, on a server of its own; it must not be praised or blamed, unless it was asked to be.
    let first = &spec.rows[0];
    targets.push(shared(match wire {
        Some(address) => Target::Wire(address),
        None => {
            let data_dir = data.0.join(format!("{first}-again"));
            let percent = handicap_percent.map(|percent| percent.to_string());
            let more: Vec<&str> =
                percent.iter().flat_map(|percent| ["--handicap-percent", percent]).collect();
            Target::start_child(first, &spec.ack.to_string(), &more, server_core, &data_dir, &out)?
        }
    }));

    let mut record = RunRecord {
        format: FORMAT,
        environment: Environment::capture(&data.0),
        server_core,
        client_core,
        floor_validity,
        declared: declared(),
        versus: None,
        cells: Vec::new(),
        complete: false,
        spec,
        plan,
    };
    // After the servers have started: they would inherit the core.
    pin_to(client_core)?;
    let ring = Ring::of_kernel(&UringOptions::default(), ARENA_BYTES_MAX)?;
    let floors = Floors::make(&record, &payload, &data.0)?;
    let ran = run_cells(&ring, &payload, &targets, &floors, &mut record, &out);
    if let Err(error) = ran {
        ring.shut_down();
        let words: Vec<String> = targets.iter().filter_map(|target| target.borrow().last_words()).collect();
        record.save(&out)?;
        bail!("{error:#}{}", words.concat());
    }
    record.complete = true;
    record.save(&out)?;
    let page = out.join("report.html");
    write_whole(&page, report::render(&record)?.as_bytes())?;
    println!("{}\n{}", summary(&record), page.display());
    // After the page is written: what was measured stays, however the servers end.
    let stopped: Vec<Result<()>> = targets.iter().map(|target| target.borrow_mut().stop()).collect();
    stopped.into_iter().collect::<Result<()>>()?;
    Ok(is_clean(&record))
}

fn run_cells(
    ring: &Ring,
    payload: &Rc<Payload>,
    targets: &[Rc<RefCell<Target>>],
    floors: &Floors,
    record: &mut RunRecord,
    out: &Path,
) -> Result<()> {
    let begun = Instant::now();
    let progress = Rc::new(RefCell::new(Progress::to_stderr(&record.plan)));
    let spec = Rc::new(record.spec.clone());
    for cell in record.plan.cells.clone() {
        let target = match spec.rows.iter().position(|row| *row == cell.row) {
            _ if cell.row.is_floor() => shared(floors.start(&cell, record, out)?),
            Some(row) => targets[if cell.again { spec.rows.len() } else { row }].clone(),
            None => bail!("cell {cell} is of no row"),
        };
        let made = floors.made.get(&cell.batch_bytes).filter(|_| cell.row.is_floor());
        let made = made.filter(|_| cell.load.catches_up()).cloned();
        let start_seconds = begun.elapsed().as_secs_f64();
        let run = CellRun {
            ring: ring.clone(),
            spec: spec.clone(),
            seed: record.plan.seed,
            seconds: record.plan.seconds,
            payload: payload.clone(),
            cell: cell.clone(),
            address: target.borrow().address(),
            server: target.borrow().process_id(),
            data_dir: match &made {
                Some(made) => Some(made.directory.clone()),
                None => target.borrow().data_dir().map(Path::to_owned),
            },
            target: target.clone(),
            made,
            progress: progress.clone(),
            terms: CellTerms::default(),
        };
        let_disk_settle(&floors.data);
        let before = target.borrow_mut().counters()?;
        target.borrow_mut().forget_stages()?;
        let ran = run.run().with_context(|| format!("cell {cell}"));
        let mut measured = match ran {
            // A floor is not among the targets whose words are shown.
            Err(error) if cell.row.is_floor() => {
                bail!("{error:#}{}", target.borrow().last_words().unwrap_or_default())
            }
            ran => ran?,
        };
        measured.start_seconds = start_seconds;
        measured.server_counters = target.borrow_mut().counters()?;
        // They are shown for latencies only: everywhere they would double the record.
        if cell.kind == CellKind::Latency {
            measured.stages = target.borrow_mut().stages()?;
        }
        // Of producers alone nothing went out while it was measured.
        if cell.load != Load::Produce {
            measured.notes.extend(fallback(&before, &measured.server_counters, &cell.row.egress));
            measured.notes.extend(chosen(&before, &measured.server_counters));
            measured.notes.extend(late_copies(&before, &measured.server_counters));
        }
        measured.notes.extend(ingress_fallback(&before, &measured.server_counters, &cell.row.ingress));
        if cell.row.is_floor() {
            target.borrow_mut().stop()?;
            floors.clear()?;
        } else {
            target.borrow_mut().delete_topic(&topic_of(&cell))?;
            if cell.load == Load::Mixed {
                target.borrow_mut().delete_topic(&followed_topic_of(&cell))?;
            }
        }
        record.save_hlog(out, &measured)?;
        progress.borrow_mut().finish_cell(&measured);
        record.cells.push(measured);
        record.save(out)?;
    }
    Ok(())
}

/// The directory of a run. The user's may be there; one named after the time is this run's alone, whoever else began in the
/// same second.
pub(crate) fn own_directory(wanted: PathBuf, named: bool) -> Result<PathBuf> {
    if named {
        fs::create_dir_all(&wanted).with_context(|| format!("creating {}", wanted.display()))?;
        return Ok(wanted);
    }
    let parent = wanted.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let name =
        wanted.file_name().and_then(|name| name.to_str()).context("a directory named after the time")?;
    for number in 1..100 {
        let path = if number == 1 { wanted.clone() } else { parent.join(format!("{name}-{number}")) };
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("creating {}", path.display())),
        }
    }
    bail!("a hundred runs began in {}", wanted.display())
}

fn shared(target: Target) -> Rc<RefCell<Target>> {
    Rc::new(RefCell::new(target))
}

/// Whether there is a floor on this file system, and how far it can be believed. One that cannot be had is no reason to
/// compare nothing.
fn floor_of(data: &Path, cores: (usize, usize)) -> Option<Validity> {
    let measured = Validity::measure(&data.join(FLOOR), cores);
    match &measured {
        Ok(validity) => println!("floor: {validity}"),
        Err(error) => println!("no floor to hold rows against: {error:#}"),
    }
    measured.ok()
}

/// What the floors of a run share: where they write, and the files that they catch up on, one set a batch size.
pub(crate) struct Floors {
    /// Where all servers keep their logs.
    pub(crate) data: PathBuf,
    pub(crate) made: BTreeMap<usize, Rc<Made>>,
}

impl Floors {
    pub(crate) fn make(record: &RunRecord, payload: &Payload, data: &Path) -> Result<Floors> {
        let mut made = BTreeMap::new();
        let floors = || record.plan.cells.iter().filter(|cell| cell.row.is_floor());
        for cell in floors().filter(|cell| cell.load.catches_up()) {
            if let Entry::Vacant(place) = made.entry(cell.batch_bytes) {
                let directory = data.join(format!("made-{}", cell.batch_bytes));
                let identity = (cell.index, record.plan.seed);
                let files = make(&directory, &record.spec, payload, cell.batch_bytes, identity)?;
                place.insert(Rc::new(files));
            }
        }
        Ok(Floors { data: data.to_owned(), made })
    }

    fn start(&self, cell: &Cell, record: &RunRecord, out: &Path) -> Result<Target> {
        let egress = ["--egress".to_owned(), cell.row.egress.clone()];
        self.start_as("serve-floor", &egress, cell, record, out)
    }

    /// An arm ([`crate::arms`]) in the floor's place, which `words` name.
    pub(crate) fn start_arm(
        &self,
        words: &[String],
        cell: &Cell,
        record: &RunRecord,
        out: &Path,
    ) -> Result<Target> {
        self.start_as("serve-arm", words, cell, record, out)
    }

    fn start_as(
        &self,
        command: &str,
        words: &[String],
        cell: &Cell,
        record: &RunRecord,
        out: &Path,
    ) -> Result<Target> {
        let made = self.made.get(&cell.batch_bytes).filter(|_| cell.load.catches_up());
        let stored = made.map(|made| made.directory.as_path());
        let (core, data) = (record.server_core, self.data.join(FLOOR));
        Target::start_floor((command, words), cell, &record.spec, stored, core, &data, out)
    }

    /// Removes what the last one wrote. Emptied first: the kernel lets go of an ended process's ring, and of the files in
    /// it, some time later, and blocks that are freed then are discarded into the next cell.
    pub(crate) fn clear(&self) -> Result<()> {
        let path = self.data.join(FLOOR);
        let emptied = File::create(path.join(FLOOR)).map(drop);
        emptied.and_then(|()| fs::remove_dir_all(&path)).with_context(|| path.display().to_string())
    }
}

/// Every way in with every way out. Without a tail cache nothing goes out of one.
fn every_pair() -> Vec<Pair> {
    let pair = |ingress: &Ingress, egress: &Egress| Pair {
        ingress: ingress.name().to_owned(),
        egress: egress.name().to_owned(),
    };
    let makes_sense = |ingress: &Ingress, egress: &Egress| {
        egress.delivers() && (ingress.is_direct() || egress.carries().file)
    };
    let ways_in = Ingress::ALL.iter();
    let pairs = ways_in.flat_map(|ingress| Egress::ALL.iter().map(move |egress| (ingress, egress)));
    pairs.filter(|(ingress, egress)| makes_sense(ingress, egress)).map(|(i, e)| pair(i, e)).collect()
}

/// What a strategy did not carry itself is said: a row must not be praised for another's work.
fn fallback(before: &Value, after: &Value, egress: &str) -> Option<String> {
    let counted = |counters: &Value, name: &str| counters.get("egress")?.get(egress)?.get(name)?.as_u64();
    let grown = |name: &str| Some(counted(after, name)?.saturating_sub(counted(before, name)?));
    let (own, others) = (grown("bytes")?, grown("fallback_bytes")?);
    let percent = 100.0 * others as f64 / (own + others).max(1) as f64;
    (others > 0).then(|| format!("{percent:.0} % of {egress} was carried by another egress"))
}

/// What a row that chooses for each piece chose, by its reasons.
fn chosen(before: &Value, after: &Value) -> Option<String> {
    let bytes_of =
        |counters: &Value, reason: &str| counters["choices"][reason]["bytes"].as_u64().unwrap_or(0);
    let reasons = after.get("choices")?.as_object()?.keys();
    let grown: Vec<(&String, u64)> = reasons
        .map(|reason| (reason, bytes_of(after, reason) - bytes_of(before, reason)))
        .filter(|(_, bytes)| *bytes > 0)
        .collect();
    let all: u64 = grown.iter().map(|(_, bytes)| bytes).sum();
    let share =
        |&(reason, bytes): &(&String, u64)| format!("{reason} {:.0} %", 100.0 * bytes as f64 / all as f64);
    (all > 0).then(|| format!("chosen: {}", grown.iter().map(share).collect::<Vec<_>>().join(", ")))
}

/// What was sent without a copy and copied by the kernel after all is said: on loopback that is everything.
fn late_copies(before: &Value, after: &Value) -> Option<String> {
    let counted = |counters: &Value, name: &str| counters.get("zero_copy")?.get(name)?.as_u64();
    let grown = |name: &str| Some(counted(after, name)?.saturating_sub(counted(before, name)?));
    let (copied, sent) = (grown("copied_bytes")?, grown("sent_bytes")?);
    let percent = 100.0 * copied as f64 / sent.max(1) as f64;
    (copied > 0).then(|| format!("{percent:.0} % of what was sent without a copy the kernel copied late"))
}

/// The same of the way in.
fn ingress_fallback(before: &Value, after: &Value, ingress: &str) -> Option<String> {
    let counted = |counters: &Value, name: &str| counters.get("shard")?.get(name)?.as_u64();
    let grown = |name: &str| Some(counted(after, name)?.saturating_sub(counted(before, name)?));
    let (all, others) = (grown("ingress_bytes")?, grown("ingress_fallback_bytes")?);
    let percent = 100.0 * others as f64 / all.max(1) as f64;
    (others > 0).then(|| format!("{percent:.0} % came another way than {ingress}"))
}

impl DataDirectory {
    pub(crate) fn create(spec: &RunSpec, out: &Path) -> Result<DataDirectory> {
        // In a directory of the user's, one of our own: nothing of theirs is ever removed.
        let path = match &spec.data_dir {
            Some(directory) => directory.join(format!("ringlog-compare-{}", std::process::id())),
            None => out.join("data"),
        };
        // What a run that was killed left in the user's directory.
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        DataDirectory::remove_when_told_to_stop(path.clone())?;
        Ok(DataDirectory(path))
    }

    /// To be called before any thread is started: all of them leave these signals to the one that waits for them. Servers
    /// end by themselves when this process does.
    fn remove_when_told_to_stop(path: PathBuf) -> Result<()> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().context("blocking signals")?;
        std::thread::spawn(move || {
            if let Ok(signal) = signals.wait() {
                eprintln!("{signal}: the logs in {} are removed, what was measured stays", path.display());
                let _ = fs::remove_dir_all(&path);
                std::process::exit(128 + signal as i32);
            }
        });
        Ok(())
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} could not be removed: {error}", self.0.display());
        }
    }
}

fn wire_address(target: &str) -> Result<Option<SocketAddr>> {
    if target == "child" {
        return Ok(None);
    }
    let Some(name) = target.strip_prefix("wire=") else {
        bail!("--target {target}: child, or wire=HOST:PORT")
    };
    let mut addresses = name.to_socket_addrs().with_context(|| format!("--target {target}"))?;
    addresses.next().map(Some).with_context(|| format!("--target {target}: no address"))
}

fn declared() -> BTreeMap<String, DeclaredCopies> {
    let copies = |profile: CopyProfile, note: &str| DeclaredCopies {
        cpu_copies_per_byte: profile.cpu_copies,
        user_copies_per_byte: profile.user_copies,
        shares_pages: profile.shares_pages,
        note: note.to_owned(),
    };
    let ingress = Ingress::ALL
        .iter()
        .map(|ingress| (format!("ingress/{}", ingress.name()), copies(ingress.profile(), ingress.needs())));
    let egress = Egress::ALL
        .iter()
        .filter(|egress| !egress.chooses())
        .map(|egress| (format!("egress/{}", egress.name()), copies(egress.profile(), egress.needs())));
    ingress.chain(egress).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_that_the_kernel_made_late_are_said() {
        let counted = |copied: u64, sent: u64| serde_json::json!({"zero_copy": {"copied_bytes": copied, "sent_bytes": sent}});
        let said = late_copies(&counted(10, 100), &counted(85, 200)).unwrap();
        assert!(said.starts_with("75 %"), "{said}");
        assert_eq!(late_copies(&counted(10, 100), &counted(10, 200)), None);
        // A target that is not ours counts nothing.
        assert_eq!(late_copies(&Value::Null, &Value::Null), None);
    }

    #[test]
    fn runs_of_the_same_second_have_directories_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let wanted = directory.path().join("local/20260101-000000");
        let [first, second] = [(); 2].map(|()| own_directory(wanted.clone(), false).unwrap());
        assert_eq!((&first, second), (&wanted, directory.path().join("local/20260101-000000-2")));
        // One that the user named is used again.
        assert_eq!(own_directory(wanted.clone(), true).unwrap(), wanted);
    }
}
