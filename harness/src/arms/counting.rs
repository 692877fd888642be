//! System calls and context switches of a whole process, counted by the kernel: alike for arms that could not count their own.
//!
//! `perf stat` is put on the server before its first connection, in cells of their own: counting a call costs as much as a
//! cheap one. Threads that the server starts later are counted with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
const EVENTS: &str = "raw_syscalls:sys_enter,context-switches";
/// It does not say when it has begun.
const PATIENCE: Duration = Duration::from_millis(400);

/// A count under way.
pub(super) struct Counting {
    perf: Child,
    out: PathBuf,
}

/// What was counted.
#[derive(Clone, Copy, Default, PartialEq, Debug, serde::Serialize)]
pub(super) struct Counted {
    pub(super) system_calls: u64,
    pub(super) context_switches: u64,
}

impl Counting {
    /// Whether that can be counted here.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn probe(directory: &Path) -> Result<()> {
        let out = directory.join("perf-probe");
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ",", "-e", EVENTS, "-o"]).arg(&out).arg("true");
        let ran = command.output().context("running perf (package linux-perf)")?;
        let words = String::from_utf8_lossy(&ran.stderr).into_owned();
        ensure!(ran.status.success(), "perf stat -e {EVENTS}: {}", words.trim());
        let counted = parse(&fs::read_to_string(&out)?);
        let _ = fs::remove_file(&out);
        counted.map(drop)
    }

    pub(super) fn start(process: i32, directory: &Path) -> Result<Counting> {
        let out = directory.join("perf-counts");
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ",", "-e", EVENTS, "-p", &process.to_string(), "-o"]).arg(&out);
        let perf = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let perf = perf.context("starting perf")?;
        std::thread::sleep(PATIENCE);
        Ok(Counting { perf, out })
    }

    /// When the process has ended: so does perf then. (A signal would not reach it: it inherits which of them this
    /// process blocks.)
    pub(super) fn finish(mut self) -> Result<Counted> {
        self.perf.wait().context("waiting for perf")?;
        let counted = parse(&fs::read_to_string(&self.out).context("what perf counted")?);
        let _ = fs::remove_file(&self.out);
        counted
    }
}

impl Drop for Counting {
    /// A cell that failed takes its count with it.
    fn drop(&mut self) {
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

/// `1234,,context-switches,..` for each event.
fn parse(text: &str) -> Result<Counted> {
    let count = |event: &str| {
        let line =
            text.lines().find(|line| line.split(',').nth(2).is_some_and(|name| name.starts_with(event)));
        let number = line.and_then(|line| line.split(',').next()?.parse().ok());
        number.with_context(|| format!("perf counted no {event}: {}", text.trim()))
    };
    Ok(Counted {
        system_calls: count("raw_syscalls:sys_enter")?,
        context_switches: count("context-switches")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_writes_is_read_and_what_it_did_not_count_is_said() {
        let text = "# started on today\n\n712,,raw_syscalls:sys_enter,9,100.00,,\n31,,context-switches:u,9,100.00,,\n";
        let counted = parse(text).unwrap();
        assert_eq!((counted.system_calls, counted.context_switches), (712, 31));
        let words = parse(&text.replace("31,", "<not counted>,")).unwrap_err().to_string();
        assert!(words.contains("no context-switches"), "{words}");
    }
}
