//! The page made from a run record: data in, text out.
//!
//! One table for each load and batch size, rows side by side; a plot of latencies; what was verified; the machine;
//! the exact command; every cell. Nothing is fetched from anywhere. Numbers say their unit and how they were got;
//! medians come with the smallest and largest block, for with three blocks an interval would be a boast.

use anyhow::{Context, Result};
use askama::Template;

use crate::cpu::ThreadKind;
use crate::plot::{latency_by_percentile, row_colour};
use crate::record::{CellRecord, RunRecord};
use crate::recorder::Recorder;
use crate::schedule::CellKind;
use crate::spec::{Load, Pair};
use crate::units::{binary_bytes, nanoseconds, three_digits};
use crate::verify::Findings;

/// A quantile with fewer requests beyond it than this is marked: it says little.
pub const REQUESTS_BEYOND_MIN: f64 = 10.0;

/// Makes the page.
///
/// # Errors
/// When a plot cannot be drawn or the template fails: both our own mistakes.
pub fn render(record: &RunRecord) -> Result<String> {
    Page::of(record)?.render().context("rendering the page")
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    command: String,
    started: String,
    plan: String,
    warnings: Vec<String>,
    verdict: Verdict,
    sections: Vec<Section>,
    plots: Vec<Plot>,
    declared: Vec<[String; 4]>,
    facts: Vec<(String, String)>,
    cells: Vec<CellLine>,
    notes: Vec<String>,
}

/// What verification says of the whole run.
struct Verdict {
    clean: bool,
    text: String,
}

/// One load and batch size.
struct Section {
    title: String,
    explanation: String,
    tail: bool,
    rows: Vec<RowLine>,
}

/// One row of a section, ready to print.
struct RowLine {
    name: String,
    colour: String,
    throughput: Spread,
    latency: Option<LatencyLine>,
    cpu: CpuLine,
    cores: [Spread; 2],
    copies: String,
    residency: String,
    resident_memory: String,
    verified: Verdict,
}

/// A median, and the smallest and largest it came from.
#[derive(Clone, PartialEq, Debug)]
struct Spread {
    median: String,
    range: String,
}

struct LatencyLine {
    p50: String,
    p99: String,
    p999: String,
    max: String,
    requests: u64,
    late: u64,
}

struct CpuLine {
    total: Spread,
    parts: Vec<String>,
}

struct Plot {
    title: String,
    svg: String,
    legend: Vec<(String, String)>,
}

struct CellLine {
    number: u32,
    name: String,
    throughput: String,
    cpu: String,
    steal: String,
    p99: String,
    late: String,
    verified: String,
}

impl Page {
    fn of(record: &RunRecord) -> Result<Page> {
        let mut sections = Vec::new();
        let mut plots = Vec::new();
        for &batch_bytes in &record.spec.batch_bytes {
            for &load in &record.spec.loads {
                sections.push(section(record, load, batch_bytes));
            }
            plots.extend(plot(record, batch_bytes)?);
        }
        let notes = record.cells.iter().flat_map(|cell| {
            cell.notes.iter().map(|note| format!("cell {} ({}): {note}", cell.cell.index, cell.cell))
        });
        Ok(Page {
            command: record.environment.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
            started: crate::environment::time_text(record.environment.start_unix_seconds),
            plan: record.plan.to_string(),
            warnings: warnings(record),
            verdict: verdict(&record.cells.iter().collect::<Vec<_>>()),
            sections,
            plots,
            declared: declared(record),
            facts: facts(record),
            cells: record.cells.iter().map(cell_line).collect(),
            notes: notes.collect(),
        })
    }
}

fn section(record: &RunRecord, load: Load, batch_bytes: usize) -> Section {
    let of_row = |row: &Pair, kind: CellKind| -> Vec<&CellRecord> {
        let fits = |cell: &&CellRecord| {
            let cell = &cell.cell;
            cell.row == *row && cell.load == load && cell.batch_bytes == batch_bytes && cell.kind == kind
        };
        record.cells.iter().filter(fits).collect()
    };
    let rows = record.spec.rows.iter().enumerate().map(|(index, row)| {
        let throughput = of_row(row, CellKind::Throughput);
        let latency = of_row(row, CellKind::Latency);
        let all: Vec<&CellRecord> = throughput.iter().chain(&latency).copied().collect();
        RowLine {
            name: row.to_string(),
            colour: row_colour(index),
            throughput: spread(throughput.iter().map(|cell| Some(cell.megabytes_per_second()))),
            latency: latency_line(&latency),
            cpu: cpu_line(&throughput),
            cores: [record.server_core, record.client_core].map(|core| {
                spread(throughput.iter().map(|cell| {
                    let seconds = cell.cores.get(&core)?;
                    Some(100.0 * seconds.busy / (seconds.busy + seconds.idle + seconds.steal).max(0.01))
                }))
            }),
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
        Load::CatchUp => format!(
            "{} MB written beforehand over {} and dropped from the page cache, then read from the beginning by {} for \
             each partition, with no producer. GB and MB/s are of batches received.",
            spec.catch_up_bytes / 1_000_000,
            counted(spec.partitions, "partition"),
            counted(spec.consumers, "consumer"),
        ),
    };
    Section {
        title: format!("{load}, batches up to {}", binary_bytes(batch_bytes as u64)),
        explanation,
        tail: load == Load::Tail,
        rows: rows.collect(),
    }
}

fn plot(record: &RunRecord, batch_bytes: usize) -> Result<Option<Plot>> {
    let merged = |row: &Pair| {
        let mut recorder = Recorder::default();
        let cells = record.cells.iter().filter(|cell| cell.cell.kind == CellKind::Latency);
        cells
            .filter(|cell| cell.cell.row == *row && cell.cell.batch_bytes == batch_bytes)
            .for_each(|cell| recorder.add(&cell.produce));
        (row.to_string(), recorder.response)
    };
    let rows: Vec<_> = record.spec.rows.iter().map(merged).collect();
    let legend =
        rows.iter().enumerate().map(|(index, (name, _))| (row_colour(index), name.clone())).collect();
    let title = format!(
        "Produce response time at {}, batches up to {}",
        record.spec.fixed_rate,
        binary_bytes(batch_bytes as u64)
    );
    Ok(latency_by_percentile(&rows)?.map(|svg| Plot { title, svg, legend }))
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
    let mut parts: Vec<String> = kinds
        .iter()
        .map(|(name, kind)| format!("{name} {}", median_of(&|cell| cell.server.of(*kind).total())))
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
            .map_or_else(|| "?".to_owned(), |copies| trimmed(copies.cpu_copies_per_byte))
    };
    let (ingress, egress) =
        (declared(format!("ingress/{}", row.ingress)), declared(format!("egress/{}", row.egress)));
    match load {
        Load::Tail => format!("in {ingress}, out {egress}"),
        Load::CatchUp => format!("out {egress}"),
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

fn verdict(cells: &[&CellRecord]) -> Verdict {
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

fn cell_line(cell: &CellRecord) -> CellLine {
    let per_gigabyte = cell.seconds_per_gigabyte(cell.server.whole.total());
    let quantiles = cell.produce.response.quantiles();
    let steal: f64 = cell.cores.values().map(|core| core.steal).sum();
    CellLine {
        number: cell.cell.index,
        name: cell.cell.to_string(),
        throughput: three_digits(cell.megabytes_per_second()),
        cpu: per_gigabyte.map_or_else(|| "-".to_owned(), three_digits),
        steal: format!("{steal:.2}"),
        p99: if quantiles.count > 0 { nanoseconds(quantiles.p99_ns) } else { "-".to_owned() },
        late: if cell.lateness.sent > 0 {
            format!("{} of {}", cell.lateness.late, cell.lateness.sent)
        } else {
            "-".to_owned()
        },
        verified: if cell.findings.are_clean() && cell.errors.is_empty() {
            format!("{} whole", cell.findings.records)
        } else {
            format!("{:?} {:?}", cell.findings, cell.errors)
        },
    }
}

fn warnings(record: &RunRecord) -> Vec<String> {
    let mut warnings = Vec::new();
    if !record.complete {
        let (done, all) = (record.cells.len(), record.plan.cells.len());
        warnings.push(format!("The run did not finish: {done} of {all} cells."));
    }
    if record.environment.debug_build {
        warnings
            .push("Debug assertions were on: these speeds mean nothing. Build with --release.".to_owned());
    }
    let steal: f64 = record.cells.iter().flat_map(|cell| cell.cores.values()).map(|core| core.steal).sum();
    let measured: f64 = record.cells.iter().map(|cell| cell.seconds * cell.cores.len() as f64).sum();
    if steal > 0.02 * measured {
        warnings.push(format!("The host took {:.0} % of the cores' time (steal).", 100.0 * steal / measured));
    }
    let never_sent: u64 = record.cells.iter().map(|cell| cell.lateness.never_sent).sum();
    if never_sent > 0 {
        warnings.push(format!(
            "{never_sent} scheduled requests never left: the rate was above what the row can do."
        ));
    }
    warnings
}

fn declared(record: &RunRecord) -> Vec<[String; 4]> {
    let line = |(name, copies): (&String, &crate::record::DeclaredCopies)| {
        let device = copies.dma_copies_per_byte.map_or_else(|| "-".to_owned(), trimmed);
        [name.clone(), trimmed(copies.cpu_copies_per_byte), device, copies.note.clone()]
    };
    record.declared.iter().map(line).collect()
}

fn facts(record: &RunRecord) -> Vec<(String, String)> {
    let environment = &record.environment;
    let limit = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let mount = environment.data_mount.as_ref().map_or_else(
        || "unknown".to_owned(),
        |mount| format!("{} on {} ({}), {}", mount.file_system, mount.point, mount.source, mount.options),
    );
    let queue: Vec<String> =
        environment.block_queue.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let guest = if environment.virtual_machine { ", virtual machine" } else { "" };
    [
        ("host", environment.host.clone()),
        ("kernel", environment.kernel.clone()),
        ("processor", format!("{}{guest}", environment.cpu_model)),
        (
            "cores",
            format!(
                "{:?} allowed; server on {}, load on {}",
                environment.cores, record.server_core, record.client_core
            ),
        ),
        ("memory", format!("{} MB", environment.memory_bytes / 1_000_000)),
        ("log on", mount),
        ("block queue", queue.join(" ")),
        ("TCP congestion control", known(&environment.tcp_congestion_control)),
        ("transparent huge pages", known(&environment.transparent_huge_pages)),
        ("locked memory limit", limit(environment.memlock_limit)),
        ("open files limit", limit(environment.open_files_limit)),
        ("as root", environment.is_root.to_string()),
        ("source revision", known(&environment.revision)),
        ("keys", record.spec.keys.to_string()),
        ("seed", record.plan.seed.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Median, smallest and largest of the values there are.
fn spread(values: impl Iterator<Item = Option<f64>>) -> Spread {
    let mut values: Vec<f64> = values.flatten().collect();
    values.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (values.first(), values.last()) else {
        return Spread { median: "-".to_owned(), range: String::new() };
    };
    let middle = values.len() / 2;
    let median =
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
    let range = format!("{}..{}", three_digits(*first), three_digits(*last));
    Spread { median: three_digits(median), range }
}

/// `1 partition`, `8 partitions`.
fn counted(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A word as a shell would take it back.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+:=,@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned;

    #[test]
    fn the_page_shows_every_row_with_its_numbers() {
        let record = canned();
        let page = render(&record).unwrap();
        for text in [
            "buffered+copy",
            "buffered+sendfile",
            "copy+tail",
            "tail, batches up to 16 KiB",
            "catch-up, batches up to 256 KiB",
            "510",
            "500..520", // MB/s of the first row: median and range over three blocks
            "in 2, out 0",
            "out 1",
            "0 % to 50.0 %",
            "shard 0.588", // 0.3 s for 0.51 GB
            "records: 0 lost, 0 duplicate, 0 reordered, 0 corrupt",
            "ringlog-harness compare --seed 42",
            "seed 42",
            "prefers-color-scheme: dark",
            "6000 requests",
            "2026-11-25 05:03:18",
        ] {
            assert!(page.contains(text), "`{text}` is missing");
        }
        assert!(!page.contains("WRONG"));
        assert_eq!(page.matches("<svg").count(), 2, "one plot for each batch size");
    }

    #[test]
    fn the_page_stands_alone_and_escapes_what_it_is_given() {
        let mut record = canned();
        record.cells[0].notes.push("<script>alert(1)</script>".into());
        let page = render(&record).unwrap();
        assert!(page.contains("Canned") && !page.contains("<CPU>") && !page.contains("<script"));
        let outside = page.replace("http://www.w3.org/2000/svg", "");
        for reach in ["http:", "https:", "src=", "url(", "@import", "<link"] {
            assert!(!outside.contains(reach), "the page reaches out by `{reach}`");
        }
    }

    #[test]
    fn what_is_wrong_stands_in_the_headline() {
        let mut record = canned();
        record.cells[3].findings.lost = 7;
        record.complete = false;
        record.environment.debug_build = true;
        let page = render(&record).unwrap();
        assert!(page.contains("WRONG") && page.contains("7 lost"));
        assert!(page.contains("did not finish: 54 of 54") && page.contains("Debug assertions"));
    }

    #[test]
    fn nothing_received_is_not_verified() {
        let mut record = canned();
        record.cells.clear();
        let page = render(&record).unwrap();
        assert!(page.contains("WRONG") && page.contains("0 records"));
        assert!(!page.contains("<svg") && !page.contains("NaN") && !page.contains("inf"));
    }

    /// `cargo test -p ringlog-harness -- --ignored canned_run`, then `ringlog-harness report target/canned-run`.
    #[test]
    #[ignore = "keeps a made-up run to look at"]
    fn canned_run_to_look_at() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/canned-run");
        std::fs::create_dir_all(&directory).unwrap();
        canned().save(&directory).unwrap();
    }

    #[test]
    fn medians_and_words() {
        let of = |values: &[f64]| spread(values.iter().copied().map(Some));
        assert_eq!(of(&[3.0, 1.0, 2.0]), Spread { median: "2.00".into(), range: "1.00..3.00".into() });
        assert_eq!(of(&[4.0, 1.0]).median, "2.50");
        assert_eq!(spread(std::iter::once(None)).median, "-");
        assert_eq!(
            (quoted("--seed"), quoted("it's"), quoted("")),
            ("--seed".into(), r"'it'\''s'".into(), "''".into())
        );
    }
}
