//! The ledger as people read it, or as lines of JSON; and whether it found anything.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::account::{Direction, Lacking, Oracle, Row};
use super::kernel::Sides;
use super::{DISAGREE, Line};

const MIB: f64 = (1 << 20) as f64;

pub(super) struct Show {
    json: bool,
    rows: usize,
    disagreements: usize,
    /// What the last table was of.
    table: Option<(Direction, super::link::Link)>,
}

impl Show {
    pub(super) fn new(json: bool) -> Show {
        Show { json, rows: 0, disagreements: 0, table: None }
    }

    pub(super) fn line(&mut self, line: Line) -> Result<()> {
        if let Line::Row(row) = &line {
            self.rows += 1;
            self.disagreements += usize::from(!row.disagreements().is_empty());
        }
        if self.json {
            println!("{}", described(&line)?);
            return Ok(());
        }
        match line {
            Line::Ground { kernel, refused } => {
                println!("kernel {kernel}");
                println!("  declared and observed: here");
                match refused {
                    None => println!("  counted in the kernel, by execution breakpoints: here"),
                    Some(why) => println!(
                        "  counted in the kernel: REFUSED here ({why}); `copies --vm` counts in a guest"
                    ),
                }
            }
            Line::Row(row) => {
                self.begin(row.direction, row.link);
                println!("{}", table_line(&row));
                println!("{}", routines_line(&row));
                for words in row.disagreements() {
                    println!("    DISAGREE: {words}");
                }
            }
            Line::Lacking(Lacking { direction, strategy, link, why }) => {
                self.begin(direction, link);
                println!("{strategy:<20} lacking here: {why}");
            }
        }
        Ok(())
    }

    fn begin(&mut self, direction: Direction, link: super::link::Link) {
        if self.table == Some((direction, link)) {
            return;
        }
        self.table = Some((direction, link));
        let words = match direction {
            Direction::Egress => "egress, the sender's copies per payload byte",
            Direction::Ingress => "ingress, the receiver's copies per payload byte",
            Direction::Path => {
                "from the producer's socket to the consumer's, the server's copies per payload byte"
            }
        };
        println!("\n{words}; {}", link.name());
        println!(
            "{:<20} {:>8} {:>8} {:>8} {:<8} {:>9} {:>9} | per MiB: calls punts switches faults, DMA bytes a byte r/w",
            "strategy", "declared", "expected", "counted", "oracle", "control", "stated",
        );
    }

    /// What the process ends with.
    pub(super) fn end(&self) -> ExitCode {
        if !self.json {
            println!("\n{} rows, accounts differ in {}", self.rows, self.disagreements);
        }
        match self.disagreements {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::from(DISAGREE),
        }
    }
}

fn table_line(row: &Row) -> String {
    let counted = row.copies().map_or("-".to_owned(), |copies| format!("{copies:.3}"));
    let oracle = match &row.observed.oracle {
        None => "-",
        Some(Oracle::Shared) => "shared",
        Some(Oracle::Copied) => "copied",
        Some(Oracle::Silent(_)) => "silent",
    };
    let per_mib = |count: u64| format!("{:.1}", count as f64 / (row.payload_bytes as f64 / MIB));
    let maybe =
        |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| format!("{:.2}", row.per_byte(bytes)));
    let costs = &row.costs;
    format!(
        "{:<20} {:>8.3} {:>8.3} {counted:>8} {oracle:<8} {:>9} {:>9} | {:>14} {:>5} {:>8} {:>6}, {:>15}/{}",
        row.strategy,
        row.declared.copies,
        row.expected(),
        row.control_in_bytes + row.control_out_bytes,
        row.observed.stated_bytes,
        per_mib(costs.system_calls),
        costs.punts.map_or("-".to_owned(), per_mib),
        per_mib(costs.context_switches),
        per_mib(costs.page_faults),
        maybe(costs.read_bytes),
        maybe(costs.written_bytes),
    )
}

/// Who copied what, in bytes per payload byte, as it was counted: control bytes are in it.
fn routines_line(row: &Row) -> String {
    let mut words = vec![format!("user space {:.3}", row.per_byte(row.observed.user_copied_bytes))];
    if let Some(report) = row.observed.zero_copy_report {
        let believed = if row.link.reports_truly() { "" } else { " (proves nothing here)" };
        words.push(format!("reported copied {} of {}{believed}", report.copied, report.sends));
    }
    if row.disturbances > 0 {
        words.push(format!("TCP sent again or packed queues {} times", row.disturbances));
    }
    for (routine, Sides { server, peer, others }) in row.counted.iter().flatten() {
        let sides: Vec<String> = [("server", *server), ("peer", *peer), ("others", *others)]
            .iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(side, bytes)| format!("{side} {:.4}", row.per_byte(*bytes)))
            .collect();
        if !sides.is_empty() {
            words.push(format!("{routine} {}", sides.join(" ")));
        }
    }
    format!("    {}", words.join("; "))
}

/// A row with what is made of it.
fn described(line: &Line) -> Result<Value> {
    let mut value = serde_json::to_value(line)?;
    if let (Line::Row(row), Some(fields)) = (line, value.as_object_mut()) {
        fields.insert("expected_copies".to_owned(), json!(row.expected()));
        fields.insert("counted_copies".to_owned(), json!(row.copies()));
        fields.insert("disagreements".to_owned(), json!(row.disagreements()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::super::account::tests::agreeing;
    use super::*;

    #[test]
    fn a_row_shows_all_accounts_and_json_says_what_differs() {
        let mut row = agreeing();
        assert!(table_line(&row).contains("0.000"), "{}", table_line(&row));
        assert!(routines_line(&row).contains("_copy_from_iter server 0.0006"), "{}", routines_line(&row));
        row.counted = None;
        row.declared.shares_pages = false;
        assert!(table_line(&row).contains(" - "), "{}", table_line(&row));
        let value = described(&Line::Row(Box::new(row))).unwrap();
        assert_eq!(value["counted_copies"], Value::Null);
        assert_eq!(value["disagreements"].as_array().unwrap().len(), 1);
    }
}
