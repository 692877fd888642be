//! What moving bytes cost beside copies: system calls, punts to io_uring's workers, context switches, page faults, and
//! what the block device moved by DMA.
//!
//! Counters of the kernel's for the server's threads, read before and after; the thread that keeps the account is left
//! out. A thread that began in between counts from its beginning, one that ended is lost. Block counters are the whole
//! device's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};
use nix::unistd::gettid;
use serde::{Deserialize, Serialize};

use super::probe::Passes;

const PUNTS: &str = "/sys/kernel/tracing/events/io_uring/io_uring_queue_async_work/id";
const SECTOR_BYTES: u64 = 512;

/// Counts over one measurement.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Costs {
    /// System calls on the server's shard, by its own count.
    pub system_calls: u64,
    /// Operations that the ring gave to its workers; absent where the tracepoint may not be counted.
    pub punts: Option<u64>,
    /// Times that a thread of the server went to sleep or was put aside.
    pub context_switches: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Read from the device by anybody; absent where the file system names none.
    pub read_bytes: Option<u64>,
    /// Written to it.
    pub written_bytes: Option<u64>,
}

#[derive(Clone, Copy, Default)]
struct Thread {
    switches: u64,
    faults: u64,
}

/// Counters as they stood.
pub struct Before {
    threads: BTreeMap<i32, Thread>,
    punts: Option<Vec<Passes>>,
    device: Option<(PathBuf, [u64; 2])>,
}

impl Before {
    /// Of this process, and the device that `data` lies on.
    ///
    /// # Errors
    /// When `/proc` is not as expected.
    pub fn take(data: &Path) -> Result<Before> {
        let threads = threads()?;
        let tracepoint = fs::read_to_string(PUNTS).ok().and_then(|id| id.trim().parse().ok());
        let punts = tracepoint.and_then(|id| {
            threads.keys().map(|&thread| Passes::count(id, thread)).collect::<Result<_, _>>().ok()
        });
        let device = stat_of_device(data).and_then(|path| Some((sectors(&path)?, path)));
        Ok(Before { threads, punts, device: device.map(|(moved, path)| (path, moved)) })
    }

    /// What was counted since; `system_calls` is the server's own count.
    ///
    /// # Errors
    /// When `/proc` is not as expected.
    pub fn until_now(self, system_calls: u64) -> Result<Costs> {
        let mut costs = Costs { system_calls, ..Costs::default() };
        for (id, now) in threads()? {
            let before = self.threads.get(&id).copied().unwrap_or_default();
            costs.context_switches += now.switches.saturating_sub(before.switches);
            costs.page_faults += now.faults.saturating_sub(before.faults);
        }
        costs.punts = self.punts.map(|all| all.iter().filter_map(|punts| punts.so_far().ok()).sum());
        if let Some((path, [read, written])) = self.device
            && let Some([read_now, written_now]) = sectors(&path)
        {
            costs.read_bytes = Some((read_now - read) * SECTOR_BYTES);
            costs.written_bytes = Some((written_now - written) * SECTOR_BYTES);
        }
        Ok(costs)
    }
}

fn threads() -> Result<BTreeMap<i32, Thread>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/task").context("reading /proc/self/task")? {
        let path = entry?.path();
        let id: i32 = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.parse().ok())
            .context("a thread's number")?;
        // A thread may end between the listing and the reading.
        let (Ok(status), Ok(stat)) =
            (fs::read_to_string(path.join("status")), fs::read_to_string(path.join("stat")))
        else {
            continue;
        };
        if id != gettid().as_raw() {
            threads.insert(id, Thread { switches: switches(&status), faults: faults(&stat) });
        }
    }
    Ok(threads)
}

fn switches(status: &str) -> u64 {
    let of = |line: &str| line.split_once("_ctxt_switches:")?.1.trim().parse::<u64>().ok();
    status.lines().filter_map(of).sum()
}

/// Behind the name in parentheses the eighth word is minor faults, the tenth major ones.
fn faults(stat: &str) -> u64 {
    let words = stat.rsplit_once(')').map_or("", |(_, words)| words).split_ascii_whitespace();
    let word = |at: usize| words.clone().nth(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    word(7) + word(9)
}

fn stat_of_device(data: &Path) -> Option<PathBuf> {
    let device = fs::metadata(data).ok()?.dev();
    let path = PathBuf::from(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device)));
    path.exists().then_some(path)
}

/// The third and seventh word: sectors read and written.
fn sectors(path: &Path) -> Option<[u64; 2]> {
    let text = fs::read_to_string(path).ok()?;
    let words: Vec<u64> = text.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    Some([*words.get(2)?, *words.get(6)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_threads_are_read_whatever_their_names() {
        assert_eq!(
            switches("voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t5\nSeccomp:\t0\n"),
            12
        );
        assert_eq!(faults("12 (a) 9) b) S 1 1 1 0 -1 4194560 100 0 3 0 9 9"), 103);
    }

    #[test]
    fn touching_memory_on_another_thread_is_counted() {
        let before = Before::take(Path::new("/")).unwrap();
        let (begin, begun) = std::sync::mpsc::channel();
        let (done, finished) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let memory = vec![1u8; 4 << 20];
            begin.send(memory[1 << 20]).unwrap();
            let _ = finished.recv();
        });
        begun.recv().unwrap();
        assert!(before.until_now(0).unwrap().page_faults >= 1);
        drop(done);
        thread.join().unwrap();
    }
}
