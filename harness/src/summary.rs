//! The headline tables as text for a terminal: the same numbers as the page's.

use std::fmt::Write as _;

use crate::record::RunRecord;
use crate::tables::{DifferenceLine, LatencyLine, sections, verdict, warnings};

/// Rows side by side for each load and batch size, the verdict, the warnings.
#[must_use]
pub fn summary(record: &RunRecord) -> String {
    let mut text = String::new();
    for section in sections(record) {
        let _ = writeln!(text, "\n{}", section.title);
        let _ = writeln!(
            text,
            "  {:<20} {:>8} {:<14} {:>9} {:<15} {:>11} {:<13} {:<12} by kind of thread",
            "row", "MB/s", "(blocks)", "CPU s/GB", "(blocks)", "cores busy", "of its floor", "copies/B"
        );
        for row in &section.rows {
            let _ = writeln!(
                text,
                "  {:<20} {:>8} {:<14} {:>9} {:<15} {:>11} {:<13} {:<12} {}",
                row.name,
                row.throughput.median,
                row.throughput.range,
                row.cpu.total.median,
                row.cpu.total.range,
                format!("{}/{} %", row.cores[0].median, row.cores[1].median),
                format!("{} at {} x", row.of_floor[0].median, row.of_floor[1].median),
                row.copies,
                row.cpu.parts.join(", "),
            );
        }
        for floor in &section.floors {
            let _ = writeln!(
                text,
                "  {:<20} {:>8} {:<14} {:>9} {:<15} {:>11}",
                floor.name,
                floor.throughput.median,
                floor.throughput.range,
                floor.cpu.median,
                floor.cpu.range,
                format!("{}/{} %", floor.cores[0].median, floor.cores[1].median),
            );
        }
        let _ =
            writeln!(text, "  against {}, paired over {} blocks, 95 %:", section.base, record.plan.blocks);
        for line in &section.differences {
            let DifferenceLine { name, throughput, cpu, server, .. } = line;
            let _ = writeln!(text, "    {name:<34} MB/s {throughput:<44} CPU/GB {cpu:<44} server's {server}");
        }
        for row in &section.rows {
            if let Some(latency) = &row.latency {
                let LatencyLine { p50, p99, p999, max, requests, late } = latency;
                let _ = writeln!(
                    text,
                    "  {:<20} produce at {}: p50 {p50}, p99 {p99}, p99.9 {p999}, max {max} ({requests} requests, {late} late)",
                    row.name, record.spec.fixed_rate,
                );
            }
            if section.catches_up {
                let _ = writeln!(text, "  {:<20} in page cache before to after: {}", row.name, row.residency);
            }
        }
    }
    let whole = verdict(&record.cells.iter().collect::<Vec<_>>());
    let _ = writeln!(text, "\n{}{}", if whole.clean { "verified: " } else { "WRONG: " }, whole.text);
    for warning in warnings(record) {
        let _ = writeln!(text, "note: {warning}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned;
    use crate::tables::is_clean;

    #[test]
    fn the_terminal_gets_the_same_numbers() {
        let mut record = canned();
        let text = summary(&record);
        for words in [
            "catch-up, batches up to 256 KiB",
            "500..520",
            "shard 0.588, io-wq 0.196",
            "74.3/90.0 %",
            "in 2, out 0",
            "produce at 40 MB/s: p50 200 us",
            "0 % to 50.0 %",
            "verified: 83120000 records",
        ] {
            assert!(text.contains(words), "`{words}` is missing in:\n{text}");
        }
        assert!(is_clean(&record) && text.lines().all(|line| line.chars().count() <= 180), "{text}");
        record.cells[0].errors.insert("NOT_LEADER".into(), 2);
        record.client_core = record.server_core;
        let text = summary(&record);
        assert!(
            !is_clean(&record) && text.contains("WRONG") && text.contains("2 requests refused"),
            "{text}"
        );
        assert!(text.contains("shared core 0"), "{text}");
    }
}
