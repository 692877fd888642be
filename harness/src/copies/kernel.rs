//! The third account: bytes that the kernel copied, by routine and by side, from execution breakpoints.
//!
//! A breakpoint stands on the first instruction of each copy routine whose length is an argument, and every pass samples
//! the register that holds it: exact bytes, no statistics. A machine has four of them. What remains is counted by kprobes
//! that sum in the kernel: `skb_copy_ubufs`, which has no length argument (its packet's is read), and a routine that only
//! cards without checksums need. `probe` holds the breakpoints; what the sums should be is `account`'s.
//!
//! ```text
//! _copy_from_iter             memory of ours -> socket queue, and what may not be shared
//! _copy_to_iter               socket queue or page cache -> memory of ours
//! copy_page_from_iter_atomic  memory of ours -> page cache
//! skb_copy_bits               packets put together for a card that does not gather
//! skb_copy_and_csum_bits      the same, with the checksum made on the way
//! skb_copy_ubufs              shared memory that the receiver might keep: zero-copy sends over the loopback
//! ```
//!
//! The last three copy what is being sent, on whichever thread the packet is dealt with: they are the sender's. The
//! others run for whoever called: they are told apart by process, and the thread that keeps this account counts as
//! nobody.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::unistd::gettid;
use serde::{Deserialize, Serialize};

use super::probe::{Breakpoint, Sample};

/// Which argument is the length.
#[derive(Clone, Copy)]
enum Argument {
    Second,
    Third,
    Fourth,
}

struct Routine {
    /// Newest first.
    names: &'static [&'static str],
    length: Argument,
}

const ROUTINES: [Routine; 4] = [
    Routine { names: &["_copy_from_iter"], length: Argument::Second },
    Routine { names: &["_copy_to_iter"], length: Argument::Second },
    Routine {
        names: &["copy_folio_from_iter_atomic", "copy_page_from_iter_atomic"],
        length: Argument::Third,
    },
    Routine { names: &["skb_copy_bits"], length: Argument::Fourth },
];

/// Name, and what is summed.
const PROBES: [(&str, &str); 2] =
    [("skb_copy_ubufs", "skb->data_len:u32"), ("skb_copy_and_csum_bits", "len:u32")];

const TRACING: &str = "/sys/kernel/tracing";
const GROUP: &str = "ringlog_copies";

/// Bytes that one routine copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sides {
    /// For the server's threads, its ring's workers among them.
    pub server: u64,
    /// For the peer.
    pub peer: u64,
    /// For anybody else, and where nobody can be named: packets on their way.
    pub others: u64,
}

/// Bytes by routine.
pub type Counted = BTreeMap<String, Sides>;

/// The probes of this machine, ready to be armed.
pub struct KernelAccount {
    routines: Vec<(&'static str, Argument, u64)>,
    cpus: Vec<i32>,
    probes: Probes,
}

/// A count under way.
pub struct Watch<'a> {
    account: &'a KernelAccount,
    armed: Vec<(usize, Breakpoint)>,
    keeper: i32,
}

impl KernelAccount {
    /// # Errors
    /// What refuses it, and what would help.
    pub fn open() -> Result<KernelAccount> {
        if cfg!(not(target_arch = "x86_64")) {
            bail!("the registers of arguments are known for x86-64 only");
        }
        let symbols = fs::read_to_string("/proc/kallsyms").context("reading /proc/kallsyms")?;
        let mut routines = Vec::new();
        for routine in &ROUTINES {
            let found = routine.names.iter().find_map(|name| Some((*name, address_of(&symbols, name)?)));
            let (name, address) = found.with_context(|| format!("this kernel has no {:?}", routine.names))?;
            if address == 0 {
                bail!("/proc/kallsyms hides addresses: run as root, with `sysctl kernel.kptr_restrict=1`");
            }
            routines.push((name, routine.length, address));
        }
        let cpus = online_cpus(&fs::read_to_string("/sys/devices/system/cpu/online")?)?;
        let first = Breakpoint::open(routines[0].2, cpus[0]);
        drop(first.with_context(|| {
            format!("perf_event_open refuses an execution breakpoint on {}", routines[0].0)
        })?);
        Ok(KernelAccount { routines, cpus, probes: Probes::set()? })
    }

    /// Counts from now on.
    ///
    /// # Errors
    /// When the kernel takes back what it granted at first.
    pub fn watch(&self) -> Result<Watch<'_>> {
        self.probes.clear()?;
        let mut armed = Vec::new();
        for (routine, (name, _, address)) in self.routines.iter().enumerate() {
            for &cpu in &self.cpus {
                let breakpoint =
                    Breakpoint::open(*address, cpu).with_context(|| format!("a breakpoint on {name}"))?;
                armed.push((routine, breakpoint));
            }
        }
        for (_, breakpoint) in &armed {
            breakpoint.arm()?;
        }
        Ok(Watch { account: self, armed, keeper: gettid().as_raw() })
    }
}

impl Watch<'_> {
    /// What was copied until now. `peer` is the process at the other end, where that is on this machine.
    ///
    /// # Errors
    /// When samples were lost.
    pub fn read(self, peer: Option<u32>) -> Result<Counted> {
        let server = std::process::id() as i32;
        let mut counted = Counted::new();
        for (routine, breakpoint) in &self.armed {
            let (name, length, _) = self.account.routines[*routine];
            let sides = counted.entry(name.to_owned()).or_default();
            let count = |sample: Sample| {
                // Some lengths are `int`: what the upper half of the register holds is noise.
                let bytes = u64::from(match length {
                    Argument::Second => sample.si,
                    Argument::Third => sample.dx,
                    Argument::Fourth => sample.cx,
                } as u32);
                match sample.process {
                    _ if sample.thread == self.keeper => {}
                    process if process == server => sides.server += bytes,
                    process if Some(process as u32) == peer => sides.peer += bytes,
                    _ => sides.others += bytes,
                }
            };
            breakpoint.read(count).with_context(|| format!("counting passes of {name}"))?;
        }
        for (name, _) in PROBES {
            counted.entry(name.to_owned()).or_default().others += self.account.probes.sum(name)?;
        }
        Ok(counted)
    }
}

/// Kprobes of our own group; gone when this is.
struct Probes(());

impl Probes {
    fn set() -> Result<Probes> {
        let set = Probes(());
        for (name, value) in PROBES {
            let definition = format!("p:{GROUP}/{name} {name} bytes={value}");
            put("kprobe_events", &definition).with_context(|| format!("the kprobe `{definition}`"))?;
            put(&format!("events/{GROUP}/{name}/trigger"), "hist:keys=bytes")?;
        }
        Ok(set)
    }

    fn clear(&self) -> Result<()> {
        for (name, _) in PROBES {
            put(&format!("events/{GROUP}/{name}/trigger"), "hist:keys=bytes:clear")?;
        }
        Ok(())
    }

    fn sum(&self, name: &str) -> Result<u64> {
        let path = format!("{TRACING}/events/{GROUP}/{name}/hist");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        Ok(text.lines().filter_map(bytes_of_bucket).sum())
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for (name, _) in PROBES {
            // What is left behind counts for nobody, and the next run clears it.
            let _ = put(&format!("events/{GROUP}/{name}/trigger"), "!hist:keys=bytes");
            let _ = put("kprobe_events", &format!("-:{GROUP}/{name}"));
        }
    }
}

/// Appends a line to a file of the tracing file system.
fn put(file: &str, line: &str) -> Result<()> {
    use std::io::Write;
    let path = Path::new(TRACING).join(file);
    let opened = fs::OpenOptions::new().append(true).open(&path);
    let written = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    written.with_context(|| format!("writing `{line}` to {}", path.display()))
}

/// `{ bytes:      65536 } hitcount:          3` is 3 packets of 65,536 bytes.
fn bytes_of_bucket(line: &str) -> Option<u64> {
    let (bytes, hits) = line.trim().strip_prefix("{ bytes:")?.split_once("} hitcount:")?;
    Some(bytes.trim().parse::<u64>().ok()? * hits.split_whitespace().next()?.parse::<u64>().ok()?)
}

/// `ffffffff81a2b3c0 T _copy_to_iter`; those of modules have a fourth word.
fn address_of(symbols: &str, name: &str) -> Option<u64> {
    symbols.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (address, kind, symbol) = (words.next()?, words.next()?, words.next()?);
        let ours = symbol == name && matches!(kind, "t" | "T") && words.next().is_none();
        if ours { u64::from_str_radix(address, 16).ok() } else { None }
    })
}

/// `0-3,8` are five.
fn online_cpus(list: &str) -> Result<Vec<i32>> {
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |word: &str| word.parse::<i32>().with_context(|| format!("`{list}` is no list of CPUs"));
        cpus.extend(number(first)?..=number(last)?);
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_passes_are_read_from_a_histogram() {
        assert_eq!(bytes_of_bucket("{ bytes:      65536 } hitcount:          3"), Some(196_608));
        assert_eq!(bytes_of_bucket("    Hits: 3"), None);
        assert_eq!(bytes_of_bucket("# trigger info: hist:keys=bytes:vals=hitcount [active]"), None);
    }

    #[test]
    fn addresses_are_those_of_the_kernel_itself() {
        let symbols =
            "ffffffff81000000 d copy\nffffffffc0000001 t copy\t[some_module]\nffffffff81000010 T copy\n";
        assert_eq!(address_of(symbols, "copy"), Some(0xffff_ffff_8100_0010));
        assert_eq!(address_of(symbols, "cop"), None);
    }

    #[test]
    fn cpus_come_as_ranges() {
        assert_eq!(online_cpus("0\n").unwrap(), [0]);
        assert_eq!(online_cpus("0-2,5\n").unwrap(), [0, 1, 2, 5]);
        assert!(online_cpus("all").is_err());
    }
}
