//! What the arms did, each against our ring: medians, and ratios paired over blocks with the words of every comparison.

use std::fmt::Write as _;

use super::counting::Counted;
use crate::comparison::{in_words, median};
use crate::record::{CellRecord, RunRecord};
use crate::schedule::{Cell, CellKind};
use crate::spec::{Load, Pair};
use crate::statistics::Ratio;
use crate::tables::{verdict, warnings};
use crate::units::{binary_bytes, nanoseconds};

/// What was counted of each row on each load, or why nothing was.
#[derive(serde::Serialize)]
pub(super) enum Counts {
    /// The cell, what was counted in its server's life, and the bytes of batches that it moved.
    Counted(Vec<(Cell, Counted, u64)>),
    Refused(String),
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    Throughput,
    /// Both cores, busy with anything.
    Cpu,
    /// The server's process alone, which other programs do not add to.
    Server,
    P50,
    P99,
}

impl Measure {
    const ALL: [(Measure, &'static str); 5] = [
        (Measure::Throughput, "MB/s"),
        (Measure::Cpu, "CPU/GB"),
        (Measure::Server, "server's"),
        (Measure::P50, "p50"),
        (Measure::P99, "p99"),
    ];

    fn kind(self) -> CellKind {
        match self {
            Measure::Throughput | Measure::Cpu | Measure::Server => CellKind::Throughput,
            Measure::P50 | Measure::P99 => CellKind::Latency,
        }
    }

    fn of(self, record: &RunRecord, cell: &CellRecord) -> Option<f64> {
        let quantiles = || Some(cell.produce.response.quantiles()).filter(|found| found.count > 0);
        match self {
            Measure::Throughput => Some(cell.megabytes_per_second()),
            Measure::Cpu => {
                let mut cores = vec![record.server_core, record.client_core];
                cores.dedup();
                let busy = cores.iter().filter_map(|core| cell.cores.get(core)).map(|core| core.busy).sum();
                cell.seconds_per_gigabyte(busy)
            }
            Measure::Server => cell.seconds_per_gigabyte(cell.server.whole.total()),
            Measure::P50 => Some(quantiles()?.p50_ns as f64),
            Measure::P99 => Some(quantiles()?.p99_ns as f64),
        }
    }
}

/// The table of each load and batch size, the differences, what was found wrong.
pub(super) fn tables(record: &RunRecord, counts: &Counts) -> String {
    let mut text = String::new();
    for &load in &record.spec.loads {
        for &batch_bytes in &record.spec.batch_bytes {
            Section { record, counts, load, batch_bytes }.write(&mut text);
        }
    }
    let whole = verdict(&record.cells.iter().collect::<Vec<_>>());
    let _ = writeln!(text, "\n{}{}", if whole.clean { "verified: " } else { "WRONG: " }, whole.text);
    if let Counts::Refused(why) = counts {
        let _ = writeln!(text, "note: system calls and context switches are not counted here: {why}");
    }
    for warning in warnings(record) {
        let _ = writeln!(text, "note: {warning}");
    }
    text
}

struct Section<'a> {
    record: &'a RunRecord,
    counts: &'a Counts,
    load: Load,
    batch_bytes: usize,
}

impl Section<'_> {
    fn write(&self, text: &mut String) {
        let size = binary_bytes(self.batch_bytes as u64);
        let _ = writeln!(text, "\n{}, batches up to {size}", self.load);
        let _ = writeln!(
            text,
            "  {:<26} {:>6} {:>9} {:>10} {:>10} {:>12} {:>9} {:>9}",
            "arm", "MB/s", "CPU s/GB", "server's", "calls/MiB", "switches/MiB", "p50", "p99"
        );
        for row in &self.record.spec.rows {
            let of = |measure| median(self.values(row, false, measure).into_iter().flatten().collect());
            let number =
                |value: Option<f64>, digits| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
            let time = |value: Option<f64>| value.map_or("-".to_owned(), |ns| nanoseconds(ns as u64));
            let counted = |what: fn(&Counted) -> u64| number(self.counted(row, what), 2);
            let _ = writeln!(
                text,
                "  {:<26} {:>6} {:>9} {:>10} {:>10} {:>12} {:>9} {:>9}",
                row.egress,
                number(of(Measure::Throughput), 0),
                number(of(Measure::Cpu), 3),
                number(of(Measure::Server), 3),
                counted(|counted| counted.system_calls),
                counted(|counted| counted.context_switches),
                time(of(Measure::P50)),
                time(of(Measure::P99)),
            );
        }
        let base = &self.record.spec.rows[0];
        let blocks = self.record.plan.blocks;
        let _ = writeln!(text, "  against {}, paired over {blocks} blocks, 95 %:", base.egress);
        let others = self.record.spec.rows[1..].iter().map(|row| (row, false));
        for (row, again) in others.chain([(base, true)]) {
            for (measure, unit) in Measure::ALL {
                let Some(ratio) = self.against_base(row, again, measure) else { continue };
                let noise = if again { None } else { self.against_base(base, true, measure) };
                let words = in_words(Some(&ratio), Some(ratio.verdict(noise.as_ref())));
                let name = if again { format!("{} again (noise)", row.egress) } else { row.egress.clone() };
                let _ = writeln!(text, "    {name:<26} {unit:<8} {words}");
            }
        }
    }

    fn cells<'b>(
        &'b self,
        row: &'b Pair,
        again: bool,
        kind: CellKind,
    ) -> impl Iterator<Item = &'b CellRecord> {
        self.record.cells.iter().filter(move |cell| {
            let c = &cell.cell;
            c.row == *row
                && c.again == again
                && c.kind == kind
                && c.load == self.load
                && c.batch_bytes == self.batch_bytes
        })
    }

    /// One value a block.
    fn values(&self, row: &Pair, again: bool, measure: Measure) -> Vec<Option<f64>> {
        let of_block = |block| {
            let mut cells = self.cells(row, again, measure.kind());
            cells.find(|cell| cell.cell.block == block).and_then(|cell| measure.of(self.record, cell))
        };
        (0..self.record.plan.blocks).map(of_block).collect()
    }

    fn against_base(&self, row: &Pair, again: bool, measure: Measure) -> Option<Ratio> {
        let base = self.values(&self.record.spec.rows[0], false, measure);
        let pairs = base.into_iter().zip(self.values(row, again, measure));
        Ratio::of(&pairs.filter_map(|(base, row)| base.zip(row)).collect::<Vec<_>>())
    }

    fn counted(&self, row: &Pair, what: fn(&Counted) -> u64) -> Option<f64> {
        let Counts::Counted(counts) = self.counts else { return None };
        let fits =
            |cell: &Cell| cell.row == *row && cell.load == self.load && cell.batch_bytes == self.batch_bytes;
        let (_, counted, bytes) = counts.iter().find(|(cell, ..)| fits(cell))?;
        Some(what(counted) as f64 / (*bytes as f64 / f64::from(1 << 20)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned_of;

    #[test]
    fn rows_stand_against_the_first_in_every_measure() {
        let record = canned_of("--rows floor+ring,floor+threads --seed 42 --blocks 8 --seconds 1");
        let counted = Counted { system_calls: 3000, context_switches: 500 };
        let cell = |egress: &str| Cell {
            row: Pair { ingress: "floor".into(), egress: egress.into() },
            load: Load::Tail,
            batch_bytes: 256 << 10,
            ..record.cells[0].cell.clone()
        };
        let counts = Counts::Counted(vec![(cell("threads"), counted, 100 << 20)]);
        let text = tables(&record, &counts);
        for words in
            ["30.00", "5.00", "threads", "ring again (noise)", "against ring, paired over 8", "CPU/GB"]
        {
            assert!(text.contains(words), "`{words}` is missing in:\n{text}");
        }
        let text = tables(&record, &Counts::Refused("no perf".into()));
        assert!(text.contains("not counted here: no perf"), "{text}");
    }
}
