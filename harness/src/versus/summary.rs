//! The table of a run of two targets: what each did, what each promised, and their ratios within blocks.

use std::fmt::{self, Write as _};

use anyhow::{Context, Result};

use super::process::Process;
use super::promise::Promise;
use super::target::Facts;
use crate::comparison::median;
use crate::record::{CellRecord, RunRecord};
use crate::recorder::{Latencies, Recorder};
use crate::statistics::{Ratio, Verdict};
use crate::tables::{REQUESTS_BEYOND_MIN, verdict, warnings};
use crate::units::{Pace, nanoseconds};

/// What is compared within blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Measure {
    Throughput,
    ServerCpu,
    /// The value that so many of a million requests are at or below.
    Latency(u32),
}

const MEASURES: [(Measure, &str); 5] = [
    (Measure::Throughput, "MB/s"),
    (Measure::ServerCpu, "server CPU a GB"),
    (Measure::Latency(500_000), "p50"),
    (Measure::Latency(990_000), "p99"),
    (Measure::Latency(999_000), "p99.9"),
];

/// The rows of the table: the sides, and the first one again.
const ROWS: [(&str, &str, bool); 3] = [("a", "a", false), ("b", "b", false), ("a again", "a", true)];

/// The whole text.
///
/// # Errors
/// When the record is not of a run of two targets.
pub fn summary(record: &RunRecord) -> Result<String> {
    let facts = record.versus.as_ref().context("the record is of another kind of run")?;
    let mut text = format!("{}: {}\n", facts.file, facts.workload);
    for (side, facts) in [("a", &facts.targets[0]), ("b", &facts.targets[1])] {
        let _ = writeln!(text, "{side}: {facts}");
    }
    let from = match record.spec.rate {
        Pace::Rate(_) => "from the scheduled send",
        Pace::Saturation => "with every window full",
    };
    let _ = writeln!(
        text,
        "\n  {:<8} {:<22} {:<26} {:<13} {:<11} {:>8}  latency {from}",
        "", "MB/s (blocks)", "server CPU s/GB (blocks)", "user+system", "cores busy", "RSS MiB"
    );
    for (name, side, again) in ROWS {
        let cells: Vec<&CellRecord> = cells_of(record, side, again).collect();
        let known = facts.targets[usize::from(side == "b")].process.is_ok();
        let _ = writeln!(text, "  {name:<8} {}", row(record, &cells, known));
    }
    let _ = writeln!(text, "\n  against a, paired over {} blocks, 95 %:", record.plan.blocks);
    let _ = writeln!(text, "    {:<18} {:<44} a again (the noise)", "", "b");
    for (measure, name) in MEASURES {
        let noise = ratio(record, ("a", true), measure);
        let found = ratio(record, ("b", false), measure);
        let words = in_words(found.as_ref(), noise.as_ref());
        let _ = writeln!(text, "    {name:<18} {words:<44} {}", in_words(noise.as_ref(), None));
    }
    let whole = verdict(&record.cells.iter().collect::<Vec<_>>());
    let _ = writeln!(text, "\n{}{}", if whole.clean { "verified: " } else { "WRONG: " }, whole.text);
    let [a, b] = &facts.targets;
    let mut notes = Promise::complaints(&a.promise, &b.promise, facts.workload.ack);
    notes.extend(placement(record, [("a", a), ("b", b)]));
    notes.extend(warnings(record));
    notes.iter().for_each(|note| text += &format!("note: {note}\n"));
    Ok(text)
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Ok(Process { id, name, cores }) => {
                let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
                write!(f, "{}, process {id} ({name}) on core {}", self.name, cores.join(", "))?;
            }
            Err(why) => write!(f, "{}, CPU and memory are not known: {why}", self.name)?,
        }
        write!(f, "; an answer is {}", self.promise)
    }
}

fn cells_of<'a>(record: &'a RunRecord, side: &'a str, again: bool) -> impl Iterator<Item = &'a CellRecord> {
    record.cells.iter().filter(move |cell| cell.cell.row.ingress == side && cell.cell.again == again)
}

fn row(record: &RunRecord, cells: &[&CellRecord], process_known: bool) -> String {
    let values = |value: &dyn Fn(&CellRecord) -> Option<f64>| -> Vec<f64> {
        cells.iter().filter_map(|cell| value(cell)).collect()
    };
    let middle = |values: Vec<f64>| median(values).unwrap_or_default();
    let throughput = spread(values(&|cell| of(cell, Measure::Throughput)));
    let (cpu, parts, memory) = match process_known {
        true => {
            let part = |part: &dyn Fn(&CellRecord) -> f64| {
                middle(values(&|cell| cell.seconds_per_gigabyte(part(cell))))
            };
            let user = part(&|cell| cell.server.whole.user);
            let system = part(&|cell| cell.server.whole.system);
            let most = cells.iter().map(|cell| cell.server.resident_bytes).max().unwrap_or_default();
            let cpu = spread(values(&|cell| of(cell, Measure::ServerCpu)));
            (cpu, format!("{}+{}", number(user), number(system)), (most >> 20).to_string())
        }
        false => ["unknown", "", "unknown"].map(str::to_owned).into(),
    };
    let busy = |core: usize| {
        let share = |cell: &CellRecord| Some(100.0 * cell.cores.get(&core)?.busy / cell.seconds);
        format!("{:.0}", middle(values(&share)))
    };
    let cores = format!("{}/{} %", busy(record.server_core), busy(record.client_core));
    format!("{throughput:<22} {cpu:<26} {parts:<13} {cores:<11} {memory:>8}  {}", latency(cells))
}

fn latency(cells: &[&CellRecord]) -> String {
    let (mut all, mut late) = (Recorder::default(), 0);
    for cell in cells {
        all.add(&cell.produce);
        late += cell.lateness.late;
    }
    let quantiles = all.response.quantiles();
    let shown = |quantile: f64, ns: u64| {
        // With too few requests beyond it a quantile says little.
        let few = quantiles.count as f64 * (1.0 - quantile) < REQUESTS_BEYOND_MIN;
        format!("{}{}", nanoseconds(ns), if few { " (few)" } else { "" })
    };
    format!(
        "p50 {}, p99 {}, p99.9 {}, max {} ({} requests, {late} late)",
        nanoseconds(quantiles.p50_ns),
        shown(0.99, quantiles.p99_ns),
        shown(0.999, quantiles.p999_ns),
        nanoseconds(quantiles.max_ns),
        quantiles.count
    )
}

fn of(cell: &CellRecord, measure: Measure) -> Option<f64> {
    let at = |latencies: &Latencies, millionths: u32| {
        (latencies.count() > 0).then(|| latencies.at(f64::from(millionths) / 1e6) as f64)
    };
    match measure {
        Measure::Throughput => Some(cell.megabytes_per_second()),
        Measure::ServerCpu => cell.seconds_per_gigabyte(cell.server.whole.total()).filter(|cpu| *cpu > 0.0),
        Measure::Latency(millionths) => at(&cell.produce.response, millionths),
    }
}

/// How much of `a` a row is, from blocks that have both.
fn ratio(record: &RunRecord, (side, again): (&str, bool), measure: Measure) -> Option<Ratio> {
    let value = |side: &str, again: bool, block: u32| {
        let mut cells = record.cells.iter().filter(|cell| cell.cell.block == block);
        let cell = cells.find(|cell| cell.cell.row.ingress == side && cell.cell.again == again)?;
        of(cell, measure)
    };
    let pairs =
        (0..record.plan.blocks).filter_map(|block| value("a", false, block).zip(value(side, again, block)));
    Ratio::of(&pairs.collect::<Vec<_>>())
}

/// `27.1 x (26.0 to 28.3)`: differences between systems are factors, not per cents.
fn in_words(ratio: Option<&Ratio>, noise: Option<&Ratio>) -> String {
    let Some(ratio) = ratio else { return "not measured".to_owned() };
    let Some((low, high)) = ratio.interval else {
        return format!("{} x, inconclusive: {} pairs", number(ratio.ratio), ratio.pairs);
    };
    let (centre, low, high) = (number(ratio.ratio), number(low), number(high));
    match ratio.verdict(noise) {
        Verdict::More | Verdict::Less => format!("{centre} x ({low} to {high})"),
        Verdict::NoDifferenceShown => format!("no difference shown ({low} to {high} x)"),
        Verdict::Inconclusive => format!("inconclusive on this host ({low} to {high} x)"),
    }
}

/// Cores that were not as they should be: a server that may run where the load does is slowed by it.
fn placement(record: &RunRecord, sides: [(&str, &Facts); 2]) -> Vec<String> {
    let complaint = |(side, facts): (&str, &Facts)| {
        let Process { cores, .. } = facts.process.as_ref().ok()?;
        let alone = cores[..] == [record.server_core];
        (!alone).then(|| {
            format!(
                "{side} may run on cores {cores:?}, not on core {} alone; the load is on core {}.",
                record.server_core, record.client_core
            )
        })
    };
    sides.into_iter().filter_map(complaint).collect()
}

/// `225 (223..240)`.
fn spread(values: Vec<f64>) -> String {
    let (low, high) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
    match median(values) {
        Some(middle) => format!("{} ({}..{})", number(middle), number(low), number(high)),
        None => "not measured".to_owned(),
    }
}

/// Three digits that count: `0.0312`, `3.12`, `31.2`, `312`, `3120`.
fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = 2 - value.abs().max(1e-9).log10().floor() as i32;
    format!("{value:.*}", digits.clamp(0, 6) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{CoreSeconds, CpuSeconds};
    use crate::environment::Environment;
    use crate::record::FORMAT;
    use crate::versus::tests::told;
    use crate::versus::{VersusFacts, Workload, plan};

    /// `b` is ten times as fast as `a` at a tenth of its CPU and latency, exactly.
    fn canned(flags: &str) -> RunRecord {
        let told = told(&format!("x.toml --a wire=127.0.0.1:9092 --b child {flags}"));
        let workload: Workload = "".parse().unwrap();
        let spec = told.spec(&workload);
        let plan = plan(&spec, 1);
        let promise = |name: &str, value: &str| Promise::of(&[(name.to_owned(), value.to_owned())].into());
        let process = |id, cores| Ok(Process { id, name: "java".to_owned(), cores });
        let targets = [
            Facts {
                name: told.a.to_string(),
                process: process(7, vec![0, 1]),
                promise: promise("flush.messages", "9223372036854775807"),
            },
            Facts {
                name: told.b.to_string(),
                process: process(8, vec![0]),
                promise: promise("ringlog.ack", "durable"),
            },
        ];
        let cells = plan.cells.iter().map(|cell| {
            let tenth = if cell.row.ingress == "b" { 1 } else { 10 };
            let mut record = CellRecord { seconds: 3.0, ..CellRecord::empty(cell.clone()) };
            record.produced_bytes = 3_000_000_000 / tenth + u64::from(cell.block) * 1_000_000 / tenth;
            record.findings.records = 5;
            record.server.whole = CpuSeconds { user: 0.2, system: 0.1 };
            record.server.resident_bytes = 100 << 20;
            let busy = CoreSeconds { busy: 1.5, ..CoreSeconds::default() };
            record.cores = [(0, busy), (1, busy)].into();
            for request in 1..=2000 {
                record.produce.record(0, 0, tenth * (100_000 + request * 100));
            }
            record
        });
        RunRecord {
            format: FORMAT,
            environment: Environment::default(),
            server_core: 0,
            client_core: 1,
            floor_validity: None,
            declared: Default::default(),
            versus: Some(VersusFacts { file: "x.toml".to_owned(), workload, targets, warm_up: Vec::new() }),
            cells: cells.collect(),
            complete: true,
            spec,
            plan,
        }
    }

    #[test]
    fn ratios_come_with_intervals_promises_and_what_spoils_them() {
        let text = summary(&canned("--blocks 8 --seed 1")).unwrap();
        for words in [
            "x.toml: 1 partition, batches up to 16 KiB",
            "a: wire=127.0.0.1:9092, process 7 (java) on core 0, 1; an answer is written: page cache of one node",
            "b: child=copy+tail, process 8 (java) on core 0; an answer is durable",
            "100 (100..100)",
            "1001 (1000..1002)",
            "0.0666+0.0333",
            "50/50 %",
            "MB/s               10.0 x (10.0 to 10.0)",
            "server CPU a GB    0.100 x (0.100 to 0.100)",
            "p99.9              0.100 x (",
            "no difference shown (1.00 to 1.00 x)",
            "verified: 120 records",
            "note: a and b do not promise the same",
            "note: The workload asks for ack durable; a gives written",
            "note: a may run on cores [0, 1], not on core 0 alone; the load is on core 1.",
        ] {
            assert!(text.contains(words), "`{words}` is missing in:\n{text}");
        }
        assert!(!text.contains("b may run") && !text.contains("NaN") && !text.contains("(few)"), "{text}");
    }

    #[test]
    fn too_few_blocks_and_an_unknown_process_are_said() {
        let mut record = canned("--blocks 2 --seed 1");
        let facts = record.versus.as_mut().unwrap();
        facts.targets[0].process = Err("192.0.2.1 is another machine's".to_owned());
        for cell in record.cells.iter_mut().filter(|cell| cell.cell.row.ingress == "a") {
            cell.server = Default::default();
        }
        record.cells[0].errors.insert("NOT_LEADER_OR_FOLLOWER".to_owned(), 2);
        let text = summary(&record).unwrap();
        for words in [
            "a: wire=127.0.0.1:9092, CPU and memory are not known: 192.0.2.1 is another machine's",
            "unknown",
            "10.0 x, inconclusive: 2 pairs",
            "server CPU a GB    not measured",
            "WRONG",
        ] {
            assert!(text.contains(words), "`{words}` is missing in:\n{text}");
        }
        record.versus = None;
        assert!(summary(&record).is_err());
    }

    #[test]
    fn three_digits_count_whatever_the_size() {
        for (value, words) in [
            (0.03125, "0.0312"),
            (3.125, "3.12"),
            (31.25, "31.2"),
            (312.5, "312"),
            (3125.0, "3125"),
            (0.0, "0"),
        ] {
            assert_eq!(number(value), words);
        }
    }
}
