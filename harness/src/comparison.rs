//! Rows held against the first one, block by block; and the first one against itself, which is the noise. And each
//! against its floor: what the machine does without a log.

use crate::record::{CellRecord, RunRecord};
use crate::schedule::CellKind;
use crate::spec::{Load, Pair};
use crate::statistics::{Ratio, Verdict};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// MB/s: more is better.
    Throughput,
    /// CPU seconds of both cores, busy with anything, for each GB: less is better.
    Cpu,
    /// CPU seconds of the server's process for each GB: less is better. Blind to what it leaves to others, and clocked
    /// to the nanosecond.
    Server,
}

impl Measure {
    /// All of them.
    pub const ALL: [Measure; 3] = [Measure::Throughput, Measure::Cpu, Measure::Server];
}

/// One row against the first one, or that against itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// ingress+egress.
    pub row: String,
    /// Whether it is the first row measured a second time: the noise.
    pub again: bool,
    /// This row over the first, in each measure.
    ratios: [Option<Ratio>; 3],
    /// This row's floor over the first row: medians over blocks that have it.
    floors: [Option<f64>; 3],
}

/// A row against its floor, one value a block that has both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfFloor {
    /// MB/s of the row over that of the floor.
    pub throughput: Vec<f64>,
    /// CPU seconds of both cores a GB, of the row over that of the floor.
    pub cpu: Vec<f64>,
}

impl OfFloor {
    /// Of a row's throughput cells.
    #[must_use]
    pub fn of(record: &RunRecord, row: &Pair, load: Load, batch_bytes: usize) -> OfFloor {
        let shares = |measure| {
            let value = |row: &Pair, block| value(record, row, false, load, batch_bytes, block, measure);
            let floor = row.floor(load);
            let both = |block| Some(value(row, block)? / value(&floor, block)?);
            (0..record.plan.blocks).filter_map(both).filter(|share| share.is_finite()).collect()
        };
        OfFloor { throughput: shares(Measure::Throughput), cpu: shares(Measure::Cpu) }
    }
}

/// All comparisons of one load and batch size.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparisons {
    /// The first row's name.
    pub base: String,
    /// The others in the user's order, the noise last.
    pub rows: Vec<Comparison>,
}

impl Comparisons {
    /// From the throughput cells of a run.
    #[must_use]
    pub fn of(record: &RunRecord, load: Load, batch_bytes: usize) -> Option<Comparisons> {
        let base = record.spec.rows.first()?;
        let value = |row: &Pair, again: bool, block: u32, measure: Measure| {
            value(record, row, again, load, batch_bytes, block, measure)
        };
        let against_base = |row: &Pair, again: bool, measure: Measure| {
            let pairs = (0..record.plan.blocks).filter_map(|block| {
                value(base, false, block, measure).zip(value(row, again, block, measure))
            });
            Ratio::of(&pairs.collect::<Vec<_>>())
        };
        let floor = |row: &Pair| {
            let floor = row.floor(load);
            let ratio = |measure| {
                let both =
                    |block| Some(value(&floor, false, block, measure)? / value(base, false, block, measure)?);
                median((0..record.plan.blocks).filter_map(both).filter(|ratio| ratio.is_finite()).collect())
            };
            Measure::ALL.map(ratio)
        };
        let compared = |row: &Pair, again: bool| Comparison {
            row: row.to_string(),
            again,
            ratios: Measure::ALL.map(|measure| against_base(row, again, measure)),
            floors: floor(row),
        };
        let mut rows: Vec<Comparison> =
            record.spec.rows.iter().skip(1).map(|row| compared(row, false)).collect();
        rows.push(compared(base, true));
        Some(Comparisons { base: base.to_string(), rows })
    }

    /// Whether anything could be compared.
    #[must_use]
    pub fn has_ratios(&self) -> bool {
        self.rows.iter().any(|row| row.ratios.iter().any(Option::is_some))
    }

    /// The noise: the first row against itself.
    #[must_use]
    pub fn noise(&self, measure: Measure) -> Option<&Ratio> {
        self.rows.iter().find(|row| row.again).and_then(|row| row.of(measure))
    }

    /// What a row's ratio says.
    #[must_use]
    pub fn verdict(&self, row: &Comparison, measure: Measure) -> Option<Verdict> {
        let noise = if row.again { None } else { self.noise(measure) };
        row.of(measure).map(|ratio| ratio.verdict(noise))
    }
}

impl Comparison {
    /// Its ratio in that measure.
    #[must_use]
    pub fn of(&self, measure: Measure) -> Option<&Ratio> {
        self.ratios[measure as usize].as_ref()
    }

    /// Where its floor lies in that measure, as a ratio to the first row.
    #[must_use]
    pub fn floor_of(&self, measure: Measure) -> Option<f64> {
        self.floors[measure as usize]
    }
}

/// A ratio and its verdict in words: `+21.7 % (+19.1 to +24.4)`, `no difference shown (-1.0 to +2.1 %)`.
#[must_use]
pub fn in_words(ratio: Option<&Ratio>, verdict: Option<Verdict>) -> String {
    let (Some(ratio), Some(verdict)) = (ratio, verdict) else { return "not measured".to_owned() };
    let percent = |ratio: f64| format!("{:+.1}", 100.0 * (ratio - 1.0));
    let Some((low, high)) = ratio.interval else {
        return format!("inconclusive: {} pairs, {} %", ratio.pairs, percent(ratio.ratio));
    };
    let (low, high) = (percent(low), percent(high));
    match verdict {
        Verdict::More | Verdict::Less => format!("{} % ({low} to {high})", percent(ratio.ratio)),
        Verdict::NoDifferenceShown => format!("no difference shown ({low} to {high} %)"),
        Verdict::Inconclusive => format!("inconclusive on this host ({low} to {high} %)"),
    }
}

/// The middle one, or the mean of the two middle ones.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[values.len() / 2 - 1] + upper) / 2.0 })
}

fn value(
    record: &RunRecord,
    row: &Pair,
    again: bool,
    load: Load,
    batch_bytes: usize,
    block: u32,
    measure: Measure,
) -> Option<f64> {
    let fits = |cell: &&CellRecord| {
        let c = &cell.cell;
        c.row == *row
            && c.again == again
            && c.block == block
            && c.load == load
            && c.batch_bytes == batch_bytes
            && c.kind == CellKind::Throughput
    };
    record.cells.iter().find(fits).and_then(|cell| measured(record, cell, measure))
}

fn measured(record: &RunRecord, cell: &CellRecord, measure: Measure) -> Option<f64> {
    match measure {
        Measure::Throughput => Some(cell.megabytes_per_second()),
        Measure::Cpu => {
            let mut cores = vec![record.server_core, record.client_core];
            cores.dedup();
            let busy = cores.iter().filter_map(|core| cell.cores.get(core)).map(|core| core.busy).sum();
            cell.seconds_per_gigabyte(busy)
        }
        Measure::Server => cell.seconds_per_gigabyte(cell.server.whole.total()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned_of;

    #[test]
    fn rows_are_held_against_the_first_and_that_against_itself() {
        let record = canned_of("--seed 42 --blocks 8 --seconds 1");
        let compared = Comparisons::of(&record, Load::Tail, 256 << 10).unwrap();
        assert_eq!(compared.base, "buffered+copy");
        let names: Vec<(&str, bool)> =
            compared.rows.iter().map(|row| (row.row.as_str(), row.again)).collect();
        assert_eq!(names, [("buffered+sendfile", false), ("copy+tail", false), ("buffered+copy", true)]);
        let ratio = compared.rows[0].of(Measure::Throughput).unwrap();
        assert!((1.9..2.1).contains(&ratio.ratio), "the second row is made twice as fast: {ratio:?}");
        assert_eq!(compared.verdict(&compared.rows[0], Measure::Throughput), Some(Verdict::More));
        assert_eq!(compared.verdict(&compared.rows[0], Measure::Cpu), Some(Verdict::Less));
        let noise = compared.noise(Measure::Throughput).unwrap();
        assert!((noise.ratio - 1.0).abs() < 1e-9, "made with the same numbers: {noise:?}");
        let words = in_words(compared.rows[0].of(Measure::Throughput), Some(Verdict::More));
        assert!(words.starts_with('+') && words.contains(" to "), "{words}");
    }
}
