//! The page made from a run record: data in, text out.
//!
//! One table for each load and batch size, rows side by side; a plot of latencies; what was verified; the machine;
//! the exact command; every cell. Nothing is fetched from anywhere. Numbers say their unit and how they were got.

use anyhow::{Context, Result};
use askama::Template;

use crate::plot::{latency_by_percentile, row_colour};
use crate::record::{CellRecord, RunRecord};
use crate::recorder::Recorder;
use crate::schedule::CellKind;
use crate::spec::Pair;
use crate::tables::{STAGES, Section, Verdict, sections, trimmed, verdict, warnings};
use crate::units::{binary_bytes, nanoseconds, three_digits};

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
    stages: [(&'static str, &'static str); 5],
    plots: Vec<Plot>,
    declared: Vec<[String; 5]>,
    facts: Vec<(String, String)>,
    cells: Vec<CellLine>,
    notes: Vec<String>,
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
        let plots = record.spec.batch_bytes.iter().map(|&batch_bytes| plot(record, batch_bytes));
        let plots = plots.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let notes = record.cells.iter().flat_map(|cell| {
            cell.notes.iter().map(|note| format!("cell {} ({}): {note}", cell.cell.index, cell.cell))
        });
        Ok(Page {
            command: record.environment.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
            started: crate::environment::time_text(record.environment.start_unix_seconds),
            plan: record.plan.to_string(),
            warnings: warnings(record),
            verdict: verdict(&record.cells.iter().collect::<Vec<_>>()),
            sections: sections(record),
            stages: STAGES,
            plots,
            declared: declared(record),
            facts: facts(record),
            cells: record.cells.iter().map(cell_line).collect(),
            notes: notes.collect(),
        })
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

fn declared(record: &RunRecord) -> Vec<[String; 5]> {
    let line = |(name, copies): (&String, &crate::record::DeclaredCopies)| {
        let shared = if copies.shares_pages { "yes" } else { "no" };
        let (all, user) = (trimmed(copies.cpu_copies_per_byte), trimmed(copies.user_copies_per_byte));
        [name.clone(), all, user, shared.to_owned(), copies.note.clone()]
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
            "Where the time of an append went",
            "floor+memory",
            "4000 requests",
            "2026-11-25 05:03:18",
        ] {
            assert!(page.contains(text), "`{text}` is missing");
        }
        assert!(!page.contains("WRONG"));
        let (plots, charts, pictures) = (2, 4 * 3, 4 * 3);
        assert_eq!(
            page.matches("<svg").count(),
            plots + charts + pictures,
            "for each batch size, section, row"
        );
        // Nothing comes in where nobody produces.
        assert_eq!(page.matches(">producer</text>").count(), 2 * 3);
        assert_eq!(page.matches(">consumer</text>").count(), 4 * 3);
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
        assert!(page.contains("did not finish: 76 of 76") && page.contains("Debug assertions"));
    }

    #[test]
    fn nothing_received_is_not_verified() {
        let mut record = canned();
        record.cells.clear();
        let page = render(&record).unwrap();
        assert!(page.contains("WRONG") && page.contains("0 records"));
        assert!(!page.contains("<svg") && !page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn words_are_quoted_as_a_shell_would_take_them_back() {
        assert_eq!(
            (quoted("--seed"), quoted("it's"), quoted("")),
            ("--seed".into(), r"'it'\''s'".into(), "''".into())
        );
    }
}
