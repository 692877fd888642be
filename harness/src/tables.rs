//! The headline tables of a run: cells gathered into rows, numbers made ready to print.
//!
//! The page and the terminal show these same values. Medians come with the smallest and largest block, for with
//! three blocks an interval would be a boast; latencies come from histograms merged over blocks, with the number of
//! requests they rest on.

use crate::comparison::{Comparisons, Measure, OfFloor, in_words, median};
use crate::cpu::ThreadKind;
use crate::floor::validity::Validity;
use crate::intervals::chart;
use crate::paths::{Journey, journeys};
use crate::plot::row_colour;
use crate::record::{CellRecord, RunRecord};
use crate::recorder::{Latencies, Recorder};
use crate::schedule::{CellKind, pace_of};
use crate::spec::{Load, Pair};
use crate::units::{binary_bytes, nanoseconds, three_digits};
use crate::verify::Findings;

/// A quantile with fewer requests beyond it than this is marked: it says little.
pub const REQUESTS_BEYOND_MIN: f64 = 10.0;

/// The stages of an append on the server, as it names them, and what each is.
pub const STAGES: [(&str, &str); 5] = [
    ("accept", "parse, checksum, copy, until it has an offset"),
    ("gather", "waiting for the write before it"),
    ("write", "the write"),
    ("flush", "the flush, where the promise asks for one"),
    ("answer", "all of it: received to answered"),
];

/// Per cent of registered memory that rows may differ by before it is said.
const REGISTERED_DIFFERENCE_MAX: f64 = 10.0;

/// A row may be as fast as its floor, and a little luckier.
const FLOOR_SHARE_MAX: f64 = 1.1;

/// More of the cores' time than this for others, and the numbers are theirs as much as ours.
const OTHERS_SHARE_MAX: f64 = 0.25;

/// What verification says of the whole run.
pub struct Verdict {
    /// Nothing is wrong, and something was looked at.
    pub clean: bool,
    /// In words.
    pub text: String,
}

/// One load and batch size.
pub struct Section {
    /// Load and batch size.
    pub title: String,
    /// What ran, and of which bytes the numbers are.
    pub explanation: String,
    /// Whether producers ran.
    pub produces: bool,
    /// Whether there are consumers that begin at the beginning, out of files.
    pub catches_up: bool,
    /// Rows as the user named them.
    pub rows: Vec<RowLine>,
    /// What they are held against: the machine without a log.
    pub floors: Vec<FloorLine>,
    /// The first row's name, and what the others are against it, in words.
    pub base: String,
    /// Each of the other rows, the first one again last.
    pub differences: Vec<DifferenceLine>,
    /// The same as pictures: throughput, and what it cost.
    pub charts: Vec<String>,
    /// The path of a byte, row by row.
    pub journeys: Vec<Journey>,
}

impl Section {
    /// Whether any server said where the time of its appends went.
    #[must_use]
    pub fn has_stages(&self) -> bool {
        self.rows.iter().any(|row| !row.stages.is_empty())
    }
}

/// A row against the first one, ready to print.
pub struct DifferenceLine {
    /// ingress+egress; of the repeat, what it is.
    pub name: String,
    /// Whether it is the repeat: the noise.
    pub again: bool,
    /// MB/s, in words.
    pub throughput: String,
    /// CPU of both cores for each GB, in words.
    pub cpu: String,
    /// CPU of the server's process for each GB, in words.
    pub server: String,
}

/// One row of a section, ready to print.
pub struct RowLine {
    /// ingress+egress.
    pub name: String,
    /// Its colour in plots.
    pub colour: String,
    /// MB/s.
    pub throughput: Spread,
    /// At the fixed rate, where that was measured.
    pub latency: Option<LatencyLine>,
    /// Where that time went on the server: median and 99th percentile of each of [`STAGES`] that was passed.
    pub stages: Vec<(String, String)>,
    /// CPU seconds of the server for each GB.
    pub cpu: CpuLine,
    /// MB/s as a part of the floor's; CPU of both cores for each GB as a multiple of the floor's.
    pub of_floor: [Spread; 2],
    /// Busy per cent of the server's and the load's core.
    pub cores: [Spread; 2],
    /// As declared.
    pub copies: String,
    /// In the page cache before and after.
    pub residency: String,
    /// Of the server, the largest.
    pub resident_memory: String,
    /// Of this row alone.
    pub verified: Verdict,
}

/// A floor, ready to print.
pub struct FloorLine {
    /// floor+egress.
    pub name: String,
    /// MB/s.
    pub throughput: Spread,
    /// CPU seconds of its process for each GB.
    pub cpu: Spread,
    /// Busy per cent of its and the load's core.
    pub cores: [Spread; 2],
}

/// A median, and the smallest and largest it came from.
#[derive(Clone, PartialEq, Debug)]
pub struct Spread {
    /// The middle block's, or the mean of the two middle ones.
    pub median: String,
    /// Smallest..largest; empty where nothing was measured.
    pub range: String,
}

/// Produce response times of a row.
pub struct LatencyLine {
    /// Half the requests took at most this.
    pub p50: String,
    /// 99 % took at most this.
    pub p99: String,
    /// 99.9 % took at most this.
    pub p999: String,
    /// The longest.
    pub max: String,
    /// How many there were.
    pub requests: u64,
    /// How many left late or never.
    pub late: u64,
}

/// What a GB cost the server.
pub struct CpuLine {
    /// Of the whole process.
    pub total: Spread,
    /// By kind of thread.
    pub parts: Vec<String>,
}

/// One section for each batch size and load, in the order the user named them.
#[must_use]
pub fn sections(record: &RunRecord) -> Vec<Section> {
    let loads = |batch_bytes| record.spec.loads.iter().map(move |&load| (batch_bytes, load));
    let all = record.spec.batch_bytes.iter().flat_map(|&batch_bytes| loads(batch_bytes));
    all.map(|(batch_bytes, load)| section(record, load, batch_bytes)).collect()
}

/// Whether every record of the run arrived whole, once and in order: what the exit status says.
#[must_use]
pub fn is_clean(record: &RunRecord) -> bool {
    verdict(&record.cells.iter().collect::<Vec<_>>()).clean
}

/// What the reader must know before believing any number.
#[must_use]
pub fn warnings(record: &RunRecord) -> Vec<String> {
    let mut warnings = Vec::new();
    if !record.complete {
        let (done, all) = (record.cells.len(), record.plan.cells.len());
        warnings.push(format!("The run did not finish: {done} of {all} cells."));
    }
    if record.server_core == record.client_core {
        warnings.push(format!("Server and load shared core {}: each slowed the other.", record.server_core));
    }
    if record.environment.debug_build {
        warnings
            .push("Debug assertions were on: these speeds mean nothing. Build with --release.".to_owned());
    }
    warnings.extend(unequal_memory(record));
    warnings.extend(beaten_floors(record));
    warnings.extend(record.floor_validity.iter().flat_map(Validity::complaints));
    let steal: f64 = record.cells.iter().flat_map(|cell| cell.cores.values()).map(|core| core.steal).sum();
    let measured: f64 = record.cells.iter().map(|cell| cell.seconds * cell.cores.len() as f64).sum();
    if steal > 0.02 * measured {
        warnings.push(format!("The host took {:.0} % of the cores' time (steal).", 100.0 * steal / measured));
    }
    let busy: f64 = record.cells.iter().flat_map(|cell| cell.cores.values()).map(|core| core.busy).sum();
    let ours = record.cells.iter().map(|cell| cell.server.whole.total() + cell.client.whole.total());
    let others = busy - ours.sum::<f64>();
    if others > OTHERS_SHARE_MAX * measured {
        warnings.push(format!(
            "Other programs, writeback among them, took {:.0} % of the cores' time: run again on a quiet machine.",
            100.0 * others / measured
        ));
    }
    let never_sent: u64 = record.cells.iter().map(|cell| cell.lateness.never_sent).sum();
    if never_sent > 0 {
        warnings.push(format!(
            "{never_sent} scheduled requests never left: the rate was above what the row can do."
        ));
    }
    warnings
}

/// The limit of locked memory is one for all processes of a user: who started first may have had it all.
fn unequal_memory(record: &RunRecord) -> Option<String> {
    let registered = |row: &Pair| {
        let mut cells = record.cells.iter().rev().filter(|cell| cell.cell.row == *row && !cell.cell.again);
        let shard = cells.find_map(|cell| cell.server_counters.get("shard"))?;
        let bytes = |name: &str| shard.get(name).and_then(serde_json::Value::as_f64);
        Some(100.0 * bytes("arena_registered_bytes")? / bytes("arena_mapped_bytes")?.max(1.0))
    };
    let shares: Vec<(String, f64)> =
        record.spec.rows.iter().filter_map(|row| Some((row.to_string(), registered(row)?))).collect();
    let (least, most) = shares
        .iter()
        .fold((100.0, 0.0), |(least, most): (f64, f64), (_, share)| (least.min(*share), most.max(*share)));
    let words =
        shares.iter().map(|(row, share)| format!("{row} {share:.0} %")).collect::<Vec<_>>().join(", ");
    (most - least > REGISTERED_DIFFERENCE_MAX).then(|| {
        format!(
            "Of the servers' memory not the same part was registered with the kernel, for the limit of locked memory is \
             one for all of them: {words}. With a larger limit (ulimit -l) they would be equal."
        )
    })
}

/// A floor that a row does better than is none: it is said, not shown as a triumph.
fn beaten_floors(record: &RunRecord) -> Vec<String> {
    let mut beaten = Vec::new();
    for &batch_bytes in &record.spec.batch_bytes {
        for &load in &record.spec.loads {
            for row in &record.spec.rows {
                let share = median(OfFloor::of(record, row, load, batch_bytes).throughput);
                if let Some(share) = share.filter(|share| *share > FLOOR_SHARE_MAX) {
                    beaten.push(format!(
                        "{row} reached {} of its floor's MB/s ({load}, {}): there it is no floor, or the machine was not quiet.",
                        three_digits(share),
                        binary_bytes(batch_bytes as u64)
                    ));
                }
            }
        }
    }
    beaten
}

fn section(record: &RunRecord, load: Load, batch_bytes: usize) -> Section {
    let of_row = |row: &Pair, kind: CellKind| -> Vec<&CellRecord> {
        let fits = |cell: &&CellRecord| {
            let cell = &cell.cell;
            cell.row == *row
                && !cell.again
                && cell.load == load
                && cell.batch_bytes == batch_bytes
                && cell.kind == kind
        };
        record.cells.iter().filter(fits).collect()
    };
    let rows = record.spec.rows.iter().enumerate().map(|(index, row)| {
        let throughput = of_row(row, CellKind::Throughput);
        let latency = of_row(row, CellKind::Latency);
        // Its producers have a rate.
        let latency = if load == Load::Mixed { throughput.clone() } else { latency };
        let all: Vec<&CellRecord> = throughput.iter().chain(&latency).copied().collect();
        RowLine {
            name: row.to_string(),
            colour: row_colour(index),
            throughput: spread(throughput.iter().map(|cell| Some(cell.megabytes_per_second()))),
            latency: latency_line(&latency),
            stages: stage_line(&latency),
            cpu: cpu_line(&throughput),
            of_floor: of_floor(record, row, load, batch_bytes),
            cores: cores(record, &throughput),
            copies: copies(record, row, load),
            residency: residency(&throughput),
            resident_memory: memory(&throughput),
            verified: row_verdict(&all),
        }
    });
    let spec = &record.spec;
    let explanation = match load {
        Load::Tail => format!(
            "{} with {} in flight each, pace {}, {}, {} for each partition at the tail, ack {}. GB and MB/s are of \
             acknowledged batches; each byte is also read by every consumer of its partition.",
            counted(spec.producers, "producer connection"),
            counted(spec.window, "request"),
            spec.rate,
            counted(spec.partitions, "partition"),
            counted(spec.consumers, "consumer"),
            spec.ack,
        ),
        Load::Produce => format!(
            "{} with {} in flight each, pace {}, {}, nobody reading, ack {}; afterwards everything is read back and \
             verified. GB and MB/s are of acknowledged batches.",
            counted(spec.producers, "producer connection"),
            counted(spec.window, "request"),
            spec.rate,
            counted(spec.partitions, "partition"),
            spec.ack,
        ),
        Load::CatchUp | Load::FanOut => format!(
            "{} MB written beforehand over {} and dropped from the page cache, then read from the beginning by {} for \
             each partition, with no producer. GB and MB/s are of batches received.",
            spec.catch_up_bytes / 1_000_000,
            counted(spec.partitions, "partition"),
            counted(load.behind(spec.consumers), "consumer"),
        ),
        Load::Mixed => format!(
            "{} MB written beforehand over {} and dropped from the page cache, then read from the beginning by {} for \
             each partition, while {} send {} to as many partitions of another topic, each followed by {} at its end. GB \
             and MB/s are of batches received, by both. The latency is the producers'.",
            spec.catch_up_bytes / 1_000_000,
            counted(spec.partitions, "partition"),
            counted(load.behind(spec.consumers), "consumer"),
            counted(spec.producers, "producer connection"),
            pace_of(spec, load),
            counted(load.following(spec.consumers), "consumer"),
        ),
    };
    let mut floors: Vec<FloorLine> = Vec::new();
    for floor in spec.rows.iter().map(|row| row.floor(load)) {
        let (cells, name) = (of_row(&floor, CellKind::Throughput), floor.to_string());
        if !cells.is_empty() && floors.iter().all(|known| known.name != name) {
            let cpu = cells.iter().map(|cell| cell.seconds_per_gigabyte(cell.server.whole.total()));
            floors.push(FloorLine {
                name,
                throughput: spread(cells.iter().map(|cell| Some(cell.megabytes_per_second()))),
                cpu: spread(cpu),
                cores: cores(record, &cells),
            });
        }
    }
    let compared = Comparisons::of(record, load, batch_bytes);
    let differences = compared.iter().flat_map(|compared| {
        compared.rows.iter().map(|row| {
            let words = |measure| in_words(row.of(measure), compared.verdict(row, measure));
            DifferenceLine {
                name: if row.again { format!("{} again (the noise)", row.row) } else { row.row.clone() },
                again: row.again,
                throughput: words(Measure::Throughput),
                cpu: words(Measure::Cpu),
                server: words(Measure::Server),
            }
        })
    });
    Section {
        base: compared.as_ref().map_or_else(String::new, |compared| compared.base.clone()),
        differences: differences.collect(),
        charts: compared.iter().filter(|compared| compared.has_ratios()).flat_map(charts).collect(),
        title: format!("{load}, batches up to {}", binary_bytes(batch_bytes as u64)),
        explanation,
        journeys: spec.rows.iter().flat_map(|row| journeys(record, row, load)).collect(),
        produces: load.produces(),
        catches_up: load.catches_up(),
        rows: rows.collect(),
        floors,
    }
}

fn of_floor(record: &RunRecord, row: &Pair, load: Load, batch_bytes: usize) -> [Spread; 2] {
    let OfFloor { throughput, cpu } = OfFloor::of(record, row, load, batch_bytes);
    [throughput, cpu].map(|shares| spread(shares.into_iter().map(Some)))
}

fn cores(record: &RunRecord, cells: &[&CellRecord]) -> [Spread; 2] {
    [record.server_core, record.client_core].map(|core| {
        spread(cells.iter().map(|cell| {
            let seconds = cell.cores.get(&core)?;
            Some(100.0 * seconds.busy / (seconds.busy + seconds.idle + seconds.steal).max(0.01))
        }))
    })
}

fn charts(compared: &Comparisons) -> [String; 3] {
    [
        chart(compared, Measure::Throughput, "MB/s"),
        chart(compared, Measure::Cpu, "CPU of both cores for each GB"),
        chart(compared, Measure::Server, "CPU of the server's process for each GB"),
    ]
}

fn latency_line(cells: &[&CellRecord]) -> Option<LatencyLine> {
    let mut merged = Recorder::default();
    cells.iter().for_each(|cell| merged.add(&cell.produce));
    let quantiles = merged.response.quantiles();
    if quantiles.count == 0 {
        return None;
    }
    let marked = |ns: u64, beyond: f64| {
        let few = (quantiles.count as f64) * beyond < REQUESTS_BEYOND_MIN;
        format!("{}{}", nanoseconds(ns), if few { " *" } else { "" })
    };
    Some(LatencyLine {
        p50: marked(quantiles.p50_ns, 0.5),
        p99: marked(quantiles.p99_ns, 0.01),
        p999: marked(quantiles.p999_ns, 0.001),
        max: nanoseconds(quantiles.max_ns),
        requests: quantiles.count,
        late: cells.iter().map(|cell| cell.lateness.late + cell.lateness.never_sent).sum(),
    })
}

fn stage_line(cells: &[&CellRecord]) -> Vec<(String, String)> {
    let of_stage = |name: &str| {
        let mut merged = Latencies::default();
        cells.iter().filter_map(|cell| cell.stages.get(name)).for_each(|stage| merged.add(stage));
        let quantiles = merged.quantiles();
        let shown = |ns| if quantiles.count > 0 { nanoseconds(ns) } else { "-".to_owned() };
        (shown(quantiles.p50_ns), shown(quantiles.p99_ns))
    };
    if cells.iter().all(|cell| cell.stages.is_empty()) {
        return Vec::new();
    }
    STAGES.iter().map(|(name, _)| of_stage(name)).collect()
}

fn cpu_line(cells: &[&CellRecord]) -> CpuLine {
    let median_of = |seconds: &dyn Fn(&CellRecord) -> f64| {
        spread(cells.iter().map(|cell| cell.seconds_per_gigabyte(seconds(cell)))).median
    };
    let kinds = [
        ("shard", ThreadKind::Shard),
        ("io-wq", ThreadKind::RingWorker),
        ("helpers", ThreadKind::Helper),
        ("other", ThreadKind::Other),
    ];
    // A kind of thread that did nothing takes no place.
    let mut parts: Vec<String> = kinds
        .iter()
        .map(|(name, kind)| (name, median_of(&|cell| cell.server.of(*kind).total())))
        .filter(|(_, seconds)| seconds != "0")
        .map(|(name, seconds)| format!("{name} {seconds}"))
        .collect();
    if cells.iter().any(|cell| cell.server.ended_threads.total() > 0.0) {
        parts.push(format!("ended threads {}", median_of(&|cell| cell.server.ended_threads.total())));
    }
    let total = spread(cells.iter().map(|cell| cell.seconds_per_gigabyte(cell.server.whole.total())));
    CpuLine { total, parts }
}

fn copies(record: &RunRecord, row: &Pair, load: Load) -> String {
    let declared = |name: String| {
        record
            .declared
            .get(&name)
            .map_or_else(|| "as chosen".to_owned(), |copies| trimmed(copies.cpu_copies_per_byte))
    };
    let (ingress, egress) =
        (declared(format!("ingress/{}", row.ingress)), declared(format!("egress/{}", row.egress)));
    match load {
        Load::Tail | Load::Mixed => format!("in {ingress}, out {egress}"),
        Load::CatchUp | Load::FanOut => format!("out {egress}"),
        Load::Produce => format!("in {ingress}"),
    }
}

fn residency(cells: &[&CellRecord]) -> String {
    let percents = |of: &dyn Fn(&CellRecord) -> Option<f64>| spread(cells.iter().map(|cell| of(cell))).median;
    let before = percents(&|cell| Some(100.0 * cell.residency?.before.fraction()));
    let after = percents(&|cell| Some(100.0 * cell.residency?.after.fraction()));
    if before == "-" { "not measured".to_owned() } else { format!("{before} % to {after} %") }
}

fn memory(cells: &[&CellRecord]) -> String {
    let largest = cells.iter().map(|cell| cell.server.resident_bytes).max().unwrap_or(0);
    format!("{} MB", largest / 1_000_000)
}

/// What verification says of these cells together.
#[must_use]
pub fn verdict(cells: &[&CellRecord]) -> Verdict {
    let mut findings = Findings::default();
    cells.iter().for_each(|cell| findings.add(&cell.findings));
    let errors: u64 = cells.iter().flat_map(|cell| cell.errors.values()).sum();
    let Findings {
        records, lost, duplicate, reordered, corrupt, misplaced, offset_gaps, offset_repeats, ..
    } = findings;
    let mut text = format!(
        "{records} records: {lost} lost, {duplicate} duplicate, {reordered} reordered, {corrupt} corrupt"
    );
    for (number, name) in [
        (findings.corrupt_batches, "batches with a wrong CRC or shape"),
        (misplaced, "misplaced"),
        (offset_gaps, "offsets missing"),
        (offset_repeats, "offsets repeated"),
        (errors, "requests refused by the server"),
    ] {
        if number > 0 {
            text += &format!(", {number} {name}");
        }
    }
    // Nothing received is not a pass: nothing was verified.
    Verdict { clean: findings.are_clean() && errors == 0 && records > 0, text }
}

/// A clean row says so in two words: the columns beside it need the place.
fn row_verdict(cells: &[&CellRecord]) -> Verdict {
    let whole = verdict(cells);
    if whole.clean { Verdict { clean: true, text: "nothing wrong".to_owned() } } else { whole }
}

/// Median, smallest and largest of the values there are.
fn spread(values: impl Iterator<Item = Option<f64>>) -> Spread {
    let mut values: Vec<f64> = values.flatten().collect();
    values.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (values.first(), values.last()) else {
        return Spread { median: "-".to_owned(), range: String::new() };
    };
    let range = format!("{}..{}", three_digits(*first), three_digits(*last));
    Spread { median: median(values).map_or_else(|| "-".to_owned(), three_digits), range }
}

/// `1 partition`, `8 partitions`.
fn counted(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Two digits at most, no trailing zeros.
#[must_use]
pub fn trimmed(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned;

    #[test]
    fn a_median_comes_with_its_range() {
        let of = |values: &[f64]| spread(values.iter().copied().map(Some));
        assert_eq!(of(&[3.0, 1.0, 2.0]), Spread { median: "2.00".into(), range: "1.00..3.00".into() });
        assert_eq!(of(&[4.0, 1.0]).median, "2.50");
        assert_eq!(spread(std::iter::once(None)).median, "-");
    }

    #[test]
    fn floors_that_are_beaten_and_memory_that_is_unequal_are_said() {
        let mut record = canned();
        assert!(beaten_floors(&record).is_empty() && unequal_memory(&record).is_none());
        let floors = record.cells.iter_mut().filter(|cell| cell.cell.row.is_floor());
        floors.for_each(|cell| (cell.produced_bytes, cell.consumed_bytes) = (900_000_000, 900_000_000));
        let beaten = beaten_floors(&record);
        // 500 MB/s and a little is below 900; 1000 is 1.11 of it, 1500 is 1.67.
        let named = |row: &str| beaten.iter().filter(|words| words.starts_with(row)).count();
        assert_eq!(
            (named("buffered+copy"), named("buffered+sendfile"), named("copy+tail")),
            (0, 4, 4),
            "{beaten:?}"
        );

        let mut record = canned();
        for cell in &mut record.cells {
            let registered = if cell.cell.row.egress == "tail" { 0 } else { 64 };
            cell.server_counters = serde_json::json!({"shard": {"arena_registered_bytes": registered, "arena_mapped_bytes": 64}});
        }
        let said = unequal_memory(&record).unwrap();
        assert!(said.contains("copy+tail 0 %") && said.contains("buffered+copy 100 %"), "{said}");
    }
}
