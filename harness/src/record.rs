//! The run record: one measured run, complete.
//!
//! `run.json` holds the spec, the plan, the environment and every cell with its raw samples and whole histograms;
//! beside it lies one `.hlog` a cell. The page is made from the record alone, so another person can make it again,
//! or doubt it properly. The file is replaced whole after each cell: a run that is killed leaves what was measured.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::arrivals::Lateness;
use crate::cpu::{CoreSeconds, ProcessUse};
use crate::environment::Environment;
use crate::floor::validity::Validity;
use crate::recorder::{Interval, Latencies, Recorder, write_hlog};
use crate::residency::ResidencyPair;
use crate::schedule::{Cell, Plan};
use crate::spec::RunSpec;
use crate::verify::Findings;
use crate::versus::VersusFacts;

/// The shape of `run.json`; another number means that older readers cannot read it.
pub const FORMAT: u32 = 1;

/// One run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// What was asked for.
    pub spec: RunSpec,
    /// What followed from it.
    pub plan: Plan,
    /// Where it ran.
    pub environment: Environment,
    /// The core of the server.
    pub server_core: usize,
    /// The core of the load.
    pub client_core: usize,
    /// How far the floor can be believed; absent where it was not measured.
    #[serde(default)]
    pub floor_validity: Option<Validity>,
    /// What each strategy says of itself, by `ingress/NAME` and `egress/NAME`.
    pub declared: BTreeMap<String, DeclaredCopies>,
    /// The workload and the targets of a run of two; absent from others.
    #[serde(default)]
    pub versus: Option<VersusFacts>,
    /// What was measured, in the order it ran.
    pub cells: Vec<CellRecord>,
    /// Whether all cells ran.
    pub complete: bool,
}

/// What a strategy says of its copies; data from the engine's list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeclaredCopies {
    /// Copies by the server's CPU for each byte.
    pub cpu_copies_per_byte: f64,
    /// Of these, copies made in user space.
    pub user_copies_per_byte: f64,
    /// Whether pages are shared with the file or the peer's queue instead of copied.
    pub shares_pages: bool,
    /// A sentence: the path of a byte, what depends on the device.
    pub note: String,
}

/// One cell as measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CellRecord {
    /// What ran.
    pub cell: Cell,
    /// When it began, seconds after the run's start.
    pub start_seconds: f64,
    /// Seconds measured; warm-up and draining are not in it.
    pub seconds: f64,
    /// Bytes of record batches acknowledged to producers while measured.
    pub produced_bytes: u64,
    /// Their records.
    pub produced_records: u64,
    /// Bytes of record batches received by all consumers while measured.
    pub consumed_bytes: u64,
    /// Their records.
    pub consumed_records: u64,
    /// Bytes each second while measured, in steps of [`CellRecord::sample_seconds`]: consumed for catch-up,
    /// produced otherwise.
    pub bytes_by_step: Vec<u64>,
    /// The step of `bytes_by_step`.
    pub sample_seconds: f64,
    /// Produce latencies, one value a request.
    pub produce: Recorder,
    /// From a record's intended time to its arrival at a consumer, one value a batch; empty for catch-up.
    pub end_to_end: Latencies,
    /// Requests that left late, where there was a schedule.
    pub lateness: Lateness,
    /// CPU of the server while measured.
    pub server: ProcessUse,
    /// CPU of the load while measured.
    pub client: ProcessUse,
    /// What each core did while measured.
    pub cores: BTreeMap<usize, CoreSeconds>,
    /// The log's files in the page cache, before and after.
    pub residency: Option<ResidencyPair>,
    /// Where the time of appends went on the server, warm-up and draining included; empty where it does not say.
    #[serde(default)]
    pub stages: BTreeMap<String, Latencies>,
    /// What verification found, warm-up and draining included.
    pub findings: Findings,
    /// Requests that the server answered with an error, by its name.
    pub errors: BTreeMap<String, u64>,
    /// The server's own counters at the end, as it gave them.
    pub server_counters: serde_json::Value,
    /// What the reader should know of this cell: fallbacks, refusals, a server that died.
    pub notes: Vec<String>,
}

impl CellRecord {
    /// A cell about to be measured: all counts zero.
    #[must_use]
    pub fn empty(cell: Cell) -> CellRecord {
        CellRecord {
            cell,
            start_seconds: 0.0,
            seconds: 0.0,
            produced_bytes: 0,
            produced_records: 0,
            consumed_bytes: 0,
            consumed_records: 0,
            bytes_by_step: Vec::new(),
            sample_seconds: 0.0,
            produce: Recorder::default(),
            end_to_end: Latencies::default(),
            lateness: Lateness::default(),
            server: ProcessUse::default(),
            client: ProcessUse::default(),
            cores: BTreeMap::new(),
            residency: None,
            stages: BTreeMap::new(),
            findings: Findings::default(),
            errors: BTreeMap::new(),
            server_counters: serde_json::Value::Null,
            notes: Vec::new(),
        }
    }

    /// The bytes that the cell is about: consumed where some catch up, produced otherwise.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        match self.cell.load {
            crate::spec::Load::Tail | crate::spec::Load::Produce => self.produced_bytes,
            crate::spec::Load::CatchUp | crate::spec::Load::FanOut | crate::spec::Load::Mixed => {
                self.consumed_bytes
            }
        }
    }

    /// Those bytes in MB (10^6) a second.
    #[must_use]
    pub fn megabytes_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.payload_bytes() as f64 / 1e6 / self.seconds } else { 0.0 }
    }

    /// Seconds of something for each GB (10^9) of those bytes; nothing for a cell that moved nothing.
    #[must_use]
    pub fn seconds_per_gigabyte(&self, seconds: f64) -> Option<f64> {
        (self.payload_bytes() > 0).then(|| seconds / (self.payload_bytes() as f64 / 1e9))
    }
}

impl RunRecord {
    /// Writes `run.json` in the directory, whole or not at all.
    ///
    /// # Errors
    /// When the directory cannot be written; the message names the path.
    pub fn save(&self, directory: &Path) -> Result<()> {
        write_whole(
            &directory.join("run.json"),
            &serde_json::to_vec(self).context("encoding the run record")?,
        )
    }

    /// Reads `run.json` of a directory.
    ///
    /// # Errors
    /// When it cannot be read, is no run record, or is of another format.
    pub fn load(directory: &Path) -> Result<RunRecord> {
        let path = directory.join("run.json");
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        anyhow::ensure!(
            format == Some(u64::from(FORMAT)),
            "{}: format {format:?}, this build reads {FORMAT}",
            path.display()
        );
        serde_json::from_value(value).with_context(|| format!("{} is no run record", path.display()))
    }

    /// Writes the interval log of one cell; names it after the cell.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_hlog(&self, directory: &Path, cell: &CellRecord) -> Result<()> {
        let interval = |tag: &str, latencies: &Latencies| Interval {
            tag: tag.to_owned(),
            start: Duration::from_secs_f64(cell.start_seconds),
            duration: Duration::from_secs_f64(cell.seconds),
            latencies: latencies.clone(),
        };
        let intervals = [
            interval("produce_response", &cell.produce.response),
            interval("produce_service", &cell.produce.service),
            interval("end_to_end", &cell.end_to_end),
        ];
        let start = UNIX_EPOCH + Duration::from_secs(self.environment.start_unix_seconds);
        let path = directory.join(format!("{}.hlog", cell.cell.file_stem()));
        write_hlog(&path, &cell.cell.to_string(), start, &intervals)
    }
}

/// Writes a file so that a reader sees the old or the new one, never a part: temporary name, sync, rename.
///
/// # Errors
/// When any of it fails; the message names the path.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cpu::{CpuSeconds, ThreadKind};
    use crate::residency::Residency;
    use crate::schedule::CellKind;
    use crate::spec::Load;
    use crate::spec::tests::spec;

    /// A whole default run with made-up numbers: the row decides speed, the block adds to it.
    pub(crate) fn canned() -> RunRecord {
        canned_of("--seed 42 --blocks 3 --seconds 1")
    }

    pub(crate) fn canned_of(flags: &str) -> RunRecord {
        let spec = spec(flags);
        let plan = Plan::new(&spec, 0, true);
        let cells = plan.cells.iter().map(|cell| canned_cell(&spec, cell)).collect();
        let copies = |number: f64, note: &str| DeclaredCopies {
            cpu_copies_per_byte: number,
            user_copies_per_byte: 0.0,
            shares_pages: number == 0.0,
            note: note.to_owned(),
        };
        let declared = [
            ("ingress/buffered", copies(2.0, "socket to memory, memory to page cache")),
            ("ingress/copy", copies(2.0, "socket to memory, memory to staging")),
            ("egress/copy", copies(2.0, "page cache to memory, memory to socket")),
            ("egress/sendfile", copies(0.0, "pages are shared with the socket")),
            ("egress/tail", copies(1.0, "memory to socket")),
        ];
        RunRecord {
            format: FORMAT,
            spec,
            plan,
            environment: Environment {
                kernel: "6.18.0".into(),
                cpu_model: "Canned <CPU> & co".into(),
                cores: vec![0, 1],
                memory_bytes: 24 << 30,
                command: ["ringlog-harness", "compare", "--seed", "42"].map(str::to_owned).to_vec(),
                start_unix_seconds: 1_795_582_998,
                ..Environment::default()
            },
            server_core: 0,
            client_core: 1,
            floor_validity: None,
            declared: declared.map(|(name, copies)| (name.to_owned(), copies)).into(),
            versus: None,
            cells,
            complete: true,
        }
    }

    fn canned_cell(spec: &RunSpec, cell: &Cell) -> CellRecord {
        // Floors are a fifth place.
        let place = spec.rows.iter().position(|row| *row == cell.row).map_or(5, |place| place as u64 + 1);
        let bytes = 500_000_000 * place + 10_000_000 * u64::from(cell.block);
        let mut record = CellRecord { seconds: 1.0, ..CellRecord::empty(cell.clone()) };
        match (cell.load, cell.kind) {
            (Load::CatchUp, _) => record.consumed_bytes = bytes,
            (_, CellKind::Throughput) => (record.produced_bytes, record.consumed_bytes) = (bytes, bytes),
            (_, CellKind::Latency) => {
                (record.produced_bytes, record.consumed_bytes) = (40_000_000, 40_000_000);
                for request in 1..=2000u64 {
                    record.produce.record(1_000, 2_000, 1_000 + place * 100_000 + request * 100);
                    record.end_to_end.record(place * 200_000 + request * 100);
                    record.lateness.count(1_000, 2_000);
                    record.stages.entry("write".into()).or_default().record(place * 50_000 + request);
                }
            }
        }
        if cell.load == Load::CatchUp {
            let total_pages = 244_140;
            record.residency = Some(ResidencyPair {
                before: Residency { cached_pages: 0, total_pages },
                after: Residency { cached_pages: total_pages / 2, total_pages },
            });
        }
        record.findings.records = record.consumed_bytes / 1000;
        record.server.whole = CpuSeconds { user: 0.1, system: 0.3 };
        record.server.by_kind.insert(ThreadKind::Shard, CpuSeconds { user: 0.1, system: 0.2 });
        record.server.by_kind.insert(ThreadKind::RingWorker, CpuSeconds { user: 0.0, system: 0.1 });
        record.server.resident_bytes = 100 << 20;
        record.cores.insert(0, CoreSeconds { busy: 0.75, soft_interrupts: 0.1, steal: 0.01, idle: 0.25 });
        record.cores.insert(1, CoreSeconds { busy: 0.9, soft_interrupts: 0.2, steal: 0.0, idle: 0.1 });
        record.server_counters = serde_json::json!({"writes": 12});
        record
    }

    #[test]
    fn a_record_is_read_back_as_it_was_saved_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let record = canned();
        record.save(directory.path()).unwrap();
        record.save(directory.path()).unwrap();
        let loaded = RunRecord::load(directory.path()).unwrap();
        assert_eq!(loaded.plan, record.plan);
        for (loaded, saved) in loaded.cells.iter().zip(&record.cells) {
            assert_eq!(loaded, saved);
        }
        assert!(loaded == record);
        let latency = record.cells.iter().find(|cell| cell.cell.kind == CellKind::Latency).unwrap();
        record.save_hlog(directory.path(), latency).unwrap();
        let hlog = directory.path().join(format!("{}.hlog", latency.cell.file_stem()));
        let read = crate::recorder::read_hlog(&hlog).unwrap();
        assert_eq!(
            (read[0].tag.as_str(), &read[0].latencies),
            ("produce_response", &latency.produce.response)
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            fs::write(directory.path().join("run.json"), text).unwrap();
            format!("{:#}", RunRecord::load(directory.path()).unwrap_err())
        };
        assert!(load("{").contains("run.json is not JSON"));
        assert!(load(r#"{"format": 2}"#).contains("format Some(2), this build reads 1"));
        assert!(load(r#"{"format": 1}"#).contains("is no run record"));
        assert!(RunRecord::load(Path::new("/no/such")).is_err());
        assert!(canned().save(Path::new("/no/such")).unwrap_err().to_string().contains("/no/such/run.json"));
    }

    #[test]
    fn rates_and_costs_are_of_the_bytes_that_the_cell_is_about() {
        let cell = canned().cells.into_iter().find(|cell| cell.cell.load == Load::CatchUp).unwrap();
        assert_eq!(cell.megabytes_per_second(), cell.consumed_bytes as f64 / 1e6);
        assert_eq!(cell.seconds_per_gigabyte(0.5), Some(0.5e9 / cell.consumed_bytes as f64));
        assert_eq!(CellRecord::empty(cell.cell).seconds_per_gigabyte(1.0), None);
    }
}
