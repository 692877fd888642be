//! CPU time of a process by kind of thread, and of the machine by core.
//!
//! Two samples, one difference. A server that hides its work in kernel workers or helpers must not look cheap, so
//! the time of shards, io_uring workers, helpers and all others is told apart, and both cores' busy time stands
//! beside it (loopback receive runs on whoever sends; writeback on nobody's bill).
//!
//! What a thread and a process used the scheduler clocks in nanoseconds, and tells where it is asked for that
//! (`/proc/<pid>/task/<tid>/schedstat`, the process's CPU clock); `stat` has it in ticks of 10 ms, a tenth of what a short
//! cell uses. The ticks only say how much of it was the kernel's; where the scheduler keeps no account, they are all there is.
//!
//! What a core was busy is what it was not idle. The kernel clocks idle time; the parts of busy time it only samples, a
//! few hundred times a second, and a core half busy for two seconds comes out 4 % to either side.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Ticks a second in `/proc`: fixed at 100 for programs on every machine this runs on, whatever the kernel's own.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a thread is for, told by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThreadKind {
    /// One core of the engine.
    Shard,
    /// The kernel's io_uring workers (`iou-wrk-*`, `iou-sqp-*`), which belong to the process that owns the ring.
    RingWorker,
    /// The engine's pool for calls that block.
    Helper,
    /// All others: the main thread, tests, clients.
    Other,
}

impl ThreadKind {
    /// The kind of a thread by its name, of which the kernel keeps 15 bytes.
    #[must_use]
    pub fn of(name: &str) -> ThreadKind {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        match () {
            () if begins(&["iou-wrk-", "iou-sqp-"]) => ThreadKind::RingWorker,
            () if begins(&["rl-shard-"]) => ThreadKind::Shard,
            () if begins(&["rl-helper-"]) => ThreadKind::Helper,
            () => ThreadKind::Other,
        }
    }
}

/// CPU seconds, in the program and in the kernel for it.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct CpuSeconds {
    /// In the program.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

impl CpuSeconds {
    /// Both.
    #[must_use]
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// A process at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct ProcessSample {
    threads: BTreeMap<i32, (ThreadKind, Used)>,
    /// Of the whole process, threads that have ended included.
    whole: Used,
    resident_bytes: u64,
}

/// What a process used between two samples.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProcessUse {
    /// By kind of thread.
    pub by_kind: BTreeMap<ThreadKind, CpuSeconds>,
    /// Of threads that ended in between, and what rounding left over.
    pub ended_threads: CpuSeconds,
    /// Of the whole process.
    pub whole: CpuSeconds,
    /// Resident memory at the later sample.
    pub resident_bytes: u64,
}

/// What something has used since it began.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Used {
    ticks: CpuSeconds,
    /// The same in seconds, to the nanosecond, where that is told.
    exact: Option<f64>,
}

impl Used {
    fn since(&self, before: &Used) -> CpuSeconds {
        let ticks = difference(self.ticks, before.ticks);
        let Some(total) = self.exact.zip(before.exact).map(|(now, then)| (now - then).max(0.0)) else {
            return ticks;
        };
        // Less than a tick says nothing of whose it was.
        let share = if ticks.total() > 0.0 { ticks.user / ticks.total() } else { 0.5 };
        CpuSeconds { user: total * share, system: total * (1.0 - share) }
    }
}

impl ProcessSample {
    /// Reads `/proc/<pid>`.
    ///
    /// # Errors
    /// When the process is gone or `/proc` is not as expected; the message names the file.
    pub fn take(pid: i32) -> io::Result<ProcessSample> {
        let mut threads = BTreeMap::new();
        let tasks = format!("/proc/{pid}/task");
        for entry in fs::read_dir(&tasks).map_err(|error| named(&tasks, error))? {
            let path = entry?.path().join("stat");
            // A thread may end between the listing and the reading: its time is in the whole.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let Some(stat) = parse_stat(&text) else {
                return Err(unexpected(&path.display().to_string(), &text));
            };
            let exact = fs::read_to_string(path.with_file_name("schedstat")).ok();
            let exact = exact.as_deref().and_then(parse_schedstat);
            threads.insert(stat.id, (ThreadKind::of(stat.name), Used { ticks: stat.cpu, exact }));
        }
        // Read after the threads, so that their sum is not above it.
        let (path, text) = read(format!("/proc/{pid}/stat"))?;
        let ticks = parse_stat(&text).ok_or_else(|| unexpected(&path, &text))?.cpu;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).and_then(clock_gettime);
        let whole = Used { ticks, exact: clock.ok().map(|used| Duration::from(used).as_secs_f64()) };
        let (path, text) = read(format!("/proc/{pid}/status"))?;
        let resident_bytes = parse_resident_bytes(&text).ok_or_else(|| unexpected(&path, "no VmRSS"))?;
        Ok(ProcessSample { threads, whole, resident_bytes })
    }

    /// What was used since an earlier sample of the same process.
    #[must_use]
    pub fn since(&self, earlier: &ProcessSample) -> ProcessUse {
        let mut by_kind: BTreeMap<ThreadKind, CpuSeconds> = BTreeMap::new();
        let mut known = CpuSeconds::default();
        for (id, (kind, now)) in &self.threads {
            let begun = Used { ticks: CpuSeconds::default(), exact: Some(0.0) };
            let used = now.since(earlier.threads.get(id).map_or(&begun, |(_, before)| before));
            *by_kind.entry(*kind).or_default() = sum(by_kind.get(kind).copied().unwrap_or_default(), used);
            known = sum(known, used);
        }
        let whole = self.whole.since(&earlier.whole);
        let ended = (whole.total() - known.total()).max(0.0);
        let user = (whole.user - known.user).clamp(0.0, ended);
        ProcessUse {
            by_kind,
            ended_threads: CpuSeconds { user, system: ended - user },
            whole,
            resident_bytes: self.resident_bytes,
        }
    }
}

impl ProcessUse {
    /// CPU seconds of one kind of thread.
    #[must_use]
    pub fn of(&self, kind: ThreadKind) -> CpuSeconds {
        self.by_kind.get(&kind).copied().unwrap_or_default()
    }
}

/// The machine's cores at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct MachineSample {
    at: Instant,
    cores: BTreeMap<usize, CoreTimes>,
}

/// A core's counters, in seconds since it was started.
#[derive(Clone, Copy, PartialEq, Debug)]
struct CoreTimes {
    soft_interrupts: f64,
    steal: f64,
    /// Waiting for the disk included.
    idle: f64,
}

/// What one core did between two samples, in seconds.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct CoreSeconds {
    /// Programs, kernel, interrupts: all that is neither idle nor stolen.
    pub busy: f64,
    /// The part of `busy` in soft interrupts: loopback receive, timers. Sampled.
    pub soft_interrupts: f64,
    /// Wanted to run, and the host ran somebody else.
    pub steal: f64,
    /// Nothing to do, waiting for the disk included.
    pub idle: f64,
}

impl MachineSample {
    /// Reads `/proc/stat`.
    ///
    /// # Errors
    /// When it cannot be read or names no core.
    pub fn take() -> io::Result<MachineSample> {
        let (path, text) = read("/proc/stat".to_owned())?;
        let cores = parse_cores(&text);
        if cores.is_empty() {
            Err(unexpected(&path, "no line for any core"))
        } else {
            Ok(MachineSample { at: Instant::now(), cores })
        }
    }

    /// What each core did since an earlier sample.
    #[must_use]
    pub fn since(&self, earlier: &MachineSample) -> BTreeMap<usize, CoreSeconds> {
        let elapsed = self.at.duration_since(earlier.at).as_secs_f64();
        let both = self
            .cores
            .iter()
            .filter_map(|(core, now)| Some((*core, now.since(earlier.cores.get(core)?, elapsed))));
        both.collect()
    }
}

impl CoreTimes {
    fn since(&self, before: &CoreTimes, elapsed: f64) -> CoreSeconds {
        let (steal, idle) = ((self.steal - before.steal).max(0.0), (self.idle - before.idle).max(0.0));
        CoreSeconds {
            busy: (elapsed - idle - steal).max(0.0),
            soft_interrupts: (self.soft_interrupts - before.soft_interrupts).max(0.0),
            steal,
            idle,
        }
    }
}

struct Stat<'a> {
    id: i32,
    name: &'a str,
    cpu: CpuSeconds,
}

/// `1234 (a (strange) name) S 1 ...`: the name ends at the last parenthesis; fields 14 and 15 are the times.
fn parse_stat(text: &str) -> Option<Stat<'_>> {
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let id = text[..open].trim().parse().ok()?;
    let name = text.get(open + 1..close)?;
    let mut fields = text[close + 1..].split_ascii_whitespace().skip(11);
    let mut seconds = || Some(fields.next()?.parse::<u64>().ok()? as f64 / TICKS_PER_SECOND);
    let cpu = CpuSeconds { user: seconds()?, system: seconds()? };
    Some(Stat { id, name, cpu })
}

/// Nanoseconds on a core, nanoseconds waiting for one, how often: the first, in seconds.
fn parse_schedstat(text: &str) -> Option<f64> {
    Some(text.split_ascii_whitespace().next()?.parse::<u64>().ok()? as f64 / 1e9)
}

fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// `cpu0 user nice system idle iowait irq softirq steal guest guest_nice`.
fn parse_cores(text: &str) -> BTreeMap<usize, CoreTimes> {
    let core_of = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let core = words.next()?.strip_prefix("cpu")?.parse().ok()?;
        let ticks: Vec<f64> = words.map_while(|word| word.parse().ok()).collect();
        let &[_, _, _, idle, io_wait, _, soft_interrupts, steal, ..] = ticks.as_slice() else { return None };
        let seconds = |ticks: f64| ticks / TICKS_PER_SECOND;
        let (soft_interrupts, steal) = (seconds(soft_interrupts), seconds(steal));
        Some((core, CoreTimes { soft_interrupts, steal, idle: seconds(idle + io_wait) }))
    };
    text.lines().filter_map(core_of).collect()
}

fn sum(left: CpuSeconds, right: CpuSeconds) -> CpuSeconds {
    CpuSeconds { user: left.user + right.user, system: left.system + right.system }
}

/// Never below zero: the kernel rounds user and system time apart from each other.
fn difference(now: CpuSeconds, before: CpuSeconds) -> CpuSeconds {
    CpuSeconds { user: (now.user - before.user).max(0.0), system: (now.system - before.system).max(0.0) }
}

fn read(path: String) -> io::Result<(String, String)> {
    let text = fs::read_to_string(&path).map_err(|error| named(&path, error))?;
    Ok((path, text))
}

fn named(path: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

fn unexpected(path: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not as expected: {}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_and_parentheses_do_not_shift_the_fields() {
        let text =
            "77 (shard-0 (a) b) R 1 77 77 0 -1 4194304 101 0 0 0 250 75 0 0 20 0 1 0 95521 3133440 381\n";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.id, stat.name), (77, "shard-0 (a) b"));
        assert_eq!(stat.cpu, CpuSeconds { user: 2.5, system: 0.75 });
        for bad in ["", "77", "77 (x", "77 (x) R 1 2", "77 )x( R", "x (y) R 1 77 77 0 -1 4 1 0 0 0 250 75"] {
            assert!(parse_stat(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn kinds_are_told_by_name() {
        assert_eq!(ThreadKind::of("iou-wrk-1234"), ThreadKind::RingWorker);
        assert_eq!(ThreadKind::of("rl-shard-0"), ThreadKind::Shard);
        assert_eq!(ThreadKind::of("rl-helper-3"), ThreadKind::Helper);
        assert_eq!(ThreadKind::of("ringlog-broker"), ThreadKind::Other);
    }

    #[test]
    fn cores_and_steal_are_read() {
        let text =
            "cpu  1 2 3\ncpu0 100 10 50 400 30 5 20 7 0 0\ncpu1 1 2 3\ncpu12 0 0 0 0 0 0 0 0 0 0\nintr 5 6\n";
        let cores = parse_cores(text);
        assert_eq!(cores.keys().copied().collect::<Vec<_>>(), [0, 12], "a line cut short is left out");
        assert_eq!(cores[&0], CoreTimes { soft_interrupts: 0.2, steal: 0.07, idle: 4.3 });
        let later = CoreTimes { soft_interrupts: 0.3, steal: 0.5, idle: 5.0 };
        let used = later.since(&cores[&0], 2.0);
        assert!((used.busy - 0.87).abs() < 1e-9 && (used.idle - 0.7).abs() < 1e-9, "{used:?}");
    }

    #[test]
    fn threads_that_begin_or_end_between_samples_are_counted() {
        let cpu = |user, system| CpuSeconds { user, system };
        let used = |ticks| Used { ticks, exact: None };
        let sample = |threads: &[(i32, ThreadKind, CpuSeconds)], whole| ProcessSample {
            threads: threads.iter().map(|&(id, kind, cpu)| (id, (kind, used(cpu)))).collect(),
            whole: used(whole),
            resident_bytes: 4096,
        };
        let earlier = sample(
            &[(1, ThreadKind::Shard, cpu(1.0, 1.0)), (2, ThreadKind::RingWorker, cpu(0.0, 0.5))],
            cpu(1.0, 1.5),
        );
        let later = sample(
            &[(1, ThreadKind::Shard, cpu(1.5, 3.0)), (3, ThreadKind::RingWorker, cpu(0.0, 0.25))],
            cpu(1.5, 4.0),
        );
        let used = later.since(&earlier);
        assert_eq!(used.of(ThreadKind::Shard), cpu(0.5, 2.0));
        assert_eq!(used.of(ThreadKind::RingWorker), cpu(0.0, 0.25));
        assert_eq!(used.of(ThreadKind::Helper), cpu(0.0, 0.0));
        assert_eq!((used.whole, used.ended_threads), (cpu(0.5, 2.5), cpu(0.0, 0.25)));
    }

    #[test]
    fn what_the_scheduler_clocks_is_divided_as_the_ticks_are() {
        let used = |user, system, exact| Used { ticks: CpuSeconds { user, system }, exact };
        let (before, after) = (used(1.0, 1.0, Some(2.004)), used(1.03, 1.01, Some(2.0456)));
        let since = after.since(&before);
        assert!((since.total() - 0.0416).abs() < 1e-9 && (since.user - 0.0312).abs() < 1e-9, "{since:?}");
        let less = used(1.0, 1.0, Some(2.0071)).since(&before);
        assert!((less.total() - 0.0031).abs() < 1e-9, "less than a tick: {less:?}");
        assert_eq!(used(1.5, 1.0, None).since(&before), CpuSeconds { user: 0.5, system: 0.0 });
        assert_eq!(parse_schedstat("41600000 77 3\n"), Some(0.0416));
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn this_process_and_machine_can_be_sampled() {
        let pid = std::process::id() as i32;
        let (process, machine) = (ProcessSample::take(pid).unwrap(), MachineSample::take().unwrap());
        assert!(process.threads.contains_key(&pid) && process.resident_bytes > 0);
        let used = ProcessSample::take(pid).unwrap().since(&process);
        assert!(used.whole.total() >= 0.0);
        assert_eq!(MachineSample::take().unwrap().since(&machine).len(), machine.cores.len());
        let error = ProcessSample::take(i32::MAX).unwrap_err().to_string();
        assert!(error.contains("/proc/2147483647/task"), "{error}");
    }

    #[test]
    fn resident_memory_is_read() {
        assert_eq!(parse_resident_bytes("Name:\tx\nVmRSS:\t    1524 kB\nThreads: 1\n"), Some(1524 * 1024));
        assert_eq!(parse_resident_bytes("Name:\tkthreadd\n"), None);
    }
}
