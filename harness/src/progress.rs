//! Live progress for the person who waits.
//!
//! On a terminal one line that renews itself; elsewhere (a file, a CI log) one line when a cell ends, without
//! control characters. The last width is remembered so that a shorter line leaves nothing of a longer one behind.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::record::CellRecord;
use crate::schedule::{Cell, Plan};
use crate::units::nanoseconds;

/// Lines are renewed at most this often: a terminal over a slow link must not cost the load's core anything.
pub const RENEWAL_INTERVAL: Duration = Duration::from_millis(200);

/// Where progress goes, and how far it is.
#[derive(Debug)]
pub struct Progress<W: Write> {
    out: W,
    live: bool,
    cells: usize,
    seconds_estimated: f64,
    begun: Instant,
    done: usize,
    renewed: Option<Instant>,
    width: usize,
}

impl Progress<io::Stderr> {
    /// To stderr, renewing itself when that is a terminal.
    #[must_use]
    pub fn to_stderr(plan: &Plan) -> Progress<io::Stderr> {
        let stderr = io::stderr();
        let live = stderr.is_terminal();
        Progress::new(stderr, live, plan)
    }
}

impl<W: Write> Progress<W> {
    /// To `out`; `live` lines renew themselves.
    #[must_use]
    pub fn new(out: W, live: bool, plan: &Plan) -> Progress<W> {
        let (cells, seconds_estimated) = (plan.cells.len(), plan.seconds_estimated);
        Progress {
            out,
            live,
            cells,
            seconds_estimated,
            begun: Instant::now(),
            done: 0,
            renewed: None,
            width: 0,
        }
    }

    /// Something the user should know now, above the line that renews itself.
    pub fn say(&mut self, text: &str) {
        self.clear();
        self.put(&format!("{text}\n"));
    }

    /// A cell is under way; `bytes_per_second` is its current rate. Cheap to call often.
    pub fn renew(&mut self, cell: &Cell, stage: &str, bytes_per_second: f64) {
        if !self.live || self.renewed.is_some_and(|at| at.elapsed() < RENEWAL_INTERVAL) {
            return;
        }
        self.renewed = Some(Instant::now());
        let left = self.seconds_left();
        let text = format!(
            "[{}/{}] {cell}: {stage} {:.0} MB/s, {left:.0} s left",
            self.done + 1,
            self.cells,
            bytes_per_second / 1e6
        );
        let width = text.chars().count();
        let blank = self.width.saturating_sub(width);
        self.put(&format!("\r{text}{:blank$}", ""));
        self.width = width;
    }

    /// A cell is over.
    pub fn finish_cell(&mut self, record: &CellRecord) {
        self.done += 1;
        let mut text = format!(
            "[{}/{}] {}: {:.0} MB/s",
            self.done,
            self.cells,
            record.cell,
            record.megabytes_per_second()
        );
        let quantiles = record.produce.response.quantiles();
        if quantiles.count > 0 {
            let (p50, p99) = (nanoseconds(quantiles.p50_ns), nanoseconds(quantiles.p99_ns));
            text += &format!(", produce p50 {p50} p99 {p99}");
        }
        if !record.findings.are_clean() {
            text += &format!(", WRONG: {:?}", record.findings);
        }
        for note in &record.notes {
            text += &format!(", {note}");
        }
        text += &format!(", {:.0} s left", self.seconds_left());
        self.say(&text);
        self.renewed = None;
    }

    /// Seconds left: by the estimate at first, by what cells really took as they end.
    fn seconds_left(&self) -> f64 {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let part = self.done as f64 / self.cells.max(1) as f64;
        let by_plan = self.seconds_estimated * (1.0 - part);
        if self.done == 0 {
            return (by_plan - elapsed).max(0.0);
        }
        let by_pace = elapsed / part * (1.0 - part);
        by_pace * part + by_plan * (1.0 - part)
    }

    fn clear(&mut self) {
        if self.width > 0 {
            let width = std::mem::take(&mut self.width);
            self.put(&format!("\r{:width$}\r", ""));
        }
    }

    /// Progress that cannot be written is no reason to stop a run.
    fn put(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned;

    #[test]
    fn without_a_terminal_there_are_plain_lines_only() {
        let record = canned();
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, false, &record.plan);
        for cell in &record.cells {
            progress.renew(&cell.cell, "measuring", 1e9);
            progress.finish_cell(cell);
        }
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), record.cells.len());
        assert!(!text.contains('\r') && !text.contains('\x1b'));
        assert!(text.starts_with("[1/76] ") && text.contains("\n[76/76] "), "{text}");
        assert!(text.contains("produce p50 ") && text.ends_with("0 s left\n"), "{text}");
    }

    #[test]
    fn a_live_line_is_renewed_rarely_and_leaves_nothing_behind() {
        let record = canned();
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, true, &record.plan);
        for _ in 0..1000 {
            progress.renew(&record.cells[0].cell, "measuring", 1e9);
        }
        progress.say("hello");
        let text = String::from_utf8(out).unwrap();
        let line = text.split('\r').nth(1).unwrap();
        assert!(line.contains("measuring 1000 MB/s") && line.starts_with("[1/76]"), "{line}");
        assert_eq!(text, format!("\r{line}\r{:width$}\rhello\n", "", width = line.chars().count()));
    }

    #[test]
    fn what_is_wrong_is_said_at_once() {
        let mut record = canned();
        record.cells[0].findings.lost = 3;
        record.cells[0].notes.push("the server died".into());
        let mut out = Vec::new();
        Progress::new(&mut out, false, &record.plan).finish_cell(&record.cells[0]);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("WRONG") && text.contains("lost: 3") && text.contains("the server died"),
            "{text}"
        );
    }
}
