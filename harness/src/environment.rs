//! The machine a run was made on.
//!
//! Whatever could explain a number and can be read without privilege. What cannot be read is absent, never guessed.
//! Parsers take text, so that they are tested without the machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

/// What is known of the machine, the build and the moment.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// Kernel release.
    pub kernel: String,
    /// Name of the host.
    pub host: String,
    /// Model of the processor.
    pub cpu_model: String,
    /// Cores this process may use.
    pub cores: Vec<usize>,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Whether the processor knows that it is a guest's.
    pub virtual_machine: bool,
    /// Where the log was kept.
    pub data_mount: Option<Mount>,
    /// Queue attributes of the block device below it.
    pub block_queue: BTreeMap<String, String>,
    /// TCP congestion control.
    pub tcp_congestion_control: Option<String>,
    /// Transparent huge pages, as the kernel prints the choice.
    pub transparent_huge_pages: Option<String>,
    /// Soft limit of locked memory in bytes; absent means unlimited.
    pub memlock_limit: Option<u64>,
    /// Soft limit of open files.
    pub open_files_limit: Option<u64>,
    /// Whether the run was root's.
    pub is_root: bool,
    /// Revision of the source tree, with `-dirty` where it was changed; absent when there is no such tree.
    pub revision: Option<String>,
    /// Whether debug assertions were on: then no speed should be quoted.
    pub debug_build: bool,
    /// The command, word for word.
    pub command: Vec<String>,
    /// When the run began, seconds since 1970.
    pub start_unix_seconds: u64,
}

/// One line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is mounted.
    pub point: String,
    /// The file system.
    pub file_system: String,
    /// What is mounted.
    pub source: String,
    /// Options of the mount and of the file system.
    pub options: String,
    /// Major and minor number of the device.
    pub device: String,
}

/// Queue attributes worth a look when a disk surprises.
const QUEUE_ATTRIBUTES: &[&str] = &[
    "dma_alignment",
    "fua",
    "logical_block_size",
    "max_sectors_kb",
    "nr_requests",
    "physical_block_size",
    "rotational",
    "scheduler",
    "write_cache",
];

impl Environment {
    /// Looks around. `data_dir` exists.
    #[must_use]
    pub fn capture(data_dir: &Path) -> Environment {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let data_mount = data_dir.canonicalize().ok().and_then(|path| mount_of(&mounts, &path));
        let device = fs::metadata(data_dir).ok().map(|metadata| metadata.dev());
        let block_queue = device.map_or_else(BTreeMap::new, block_queue_of);
        Environment {
            kernel: line_of("/proc/sys/kernel/osrelease").unwrap_or_default(),
            host: line_of("/proc/sys/kernel/hostname").unwrap_or_default(),
            cpu_model: cpu_field(&cpuinfo, "model name").unwrap_or_default().to_owned(),
            cores: allowed_cores(),
            memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            virtual_machine: cpu_field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            data_mount,
            block_queue,
            tcp_congestion_control: line_of("/proc/sys/net/ipv4/tcp_congestion_control"),
            transparent_huge_pages: line_of("/sys/kernel/mm/transparent_hugepage/enabled"),
            memlock_limit: soft_limit(Resource::RLIMIT_MEMLOCK),
            open_files_limit: soft_limit(Resource::RLIMIT_NOFILE),
            is_root: nix::unistd::geteuid().is_root(),
            revision: revision(),
            debug_build: cfg!(debug_assertions),
            command: std::env::args().collect(),
            start_unix_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        }
    }
}

/// Cores this process may use, in order.
#[must_use]
pub fn allowed_cores() -> Vec<usize> {
    let Ok(set) = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) else { return Vec::new() };
    (0..nix::sched::CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect()
}

/// A moment as people read it: `2026-11-25 05:03:18`, UTC.
#[must_use]
pub fn time_text(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil_date(days as i64);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// A moment as a directory name: `20261125-050318`, UTC.
#[must_use]
pub fn time_name(unix_seconds: u64) -> String {
    time_text(unix_seconds).replace(['-', ':'], "").replace(' ', "-")
}

/// Days since 1970 to year, month, day: Howard Hinnant's `civil_from_days`, years beginning in March.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The mount with the longest point above the path; of two on one point the later, which hides the earlier.
pub(crate) fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    mountinfo
        .lines()
        .filter_map(parse_mount)
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.len())
}

/// `36 35 98:0 /root /point opt,opt shared:1 - ext4 /dev/x opt,opt`: any number of fields before the dash.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let (&[_, _, device, _, point, options, ..], &[file_system, source, super_options, ..]) =
        (left.as_slice(), right.as_slice())
    else {
        return None;
    };
    Some(Mount {
        point: unescaped(point),
        file_system: file_system.to_owned(),
        source: unescaped(source),
        options: format!("{options};{super_options}"),
        device: device.to_owned(),
    })
}

/// The mount table writes blanks, tabs, line feeds and backslashes in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Waits until the disk below `path` has had nothing to do for a moment, but not for ever: what the last cell wrote and
/// removed is discarded and written back when the cell is over, and the next one must not pay for it. A disk that does not
/// say what it does is not waited for.
pub fn let_disk_settle(path: &Path) {
    const STEP: Duration = Duration::from_millis(4);
    const QUIET_STEPS: u32 = 5;
    const DISK_PATIENCE: Duration = Duration::from_secs(1);
    let Ok(device) = fs::metadata(path).map(|metadata| metadata.dev()) else { return };
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let in_flight = || {
        let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
        stat.split_ascii_whitespace().nth(8)?.parse::<u64>().ok()
    };
    let (begun, mut quiet) = (Instant::now(), 0);
    while quiet < QUIET_STEPS && begun.elapsed() < DISK_PATIENCE {
        match in_flight() {
            None => return,
            Some(0) => quiet += 1,
            Some(_) => quiet = 0,
        }
        std::thread::sleep(STEP);
    }
}

fn block_queue_of(device: u64) -> BTreeMap<String, String> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let base = format!("/sys/dev/block/{major}:{minor}");
    // A partition has no queue of its own; that of the disk is one up.
    let queue = [format!("{base}/queue"), format!("{base}/../queue")];
    let Some(queue) = queue.iter().find(|path| Path::new(path).is_dir()) else { return BTreeMap::new() };
    let read = |name: &&str| Some(((*name).to_owned(), line_of(&format!("{queue}/{name}"))?));
    QUEUE_ATTRIBUTES.iter().filter_map(read).collect()
}

fn cpu_field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.trim().strip_suffix("kB").and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

fn soft_limit(resource: Resource) -> Option<u64> {
    let (soft, _) = getrlimit(resource).ok()?;
    (soft != nix::sys::resource::RLIM_INFINITY).then_some(soft)
}

/// The source tree's, at run time: a binary carried elsewhere has none, and says so.
fn revision() -> Option<String> {
    let git = |words: &[&str]| {
        let output =
            Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let revision = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|list| !list.is_empty());
    Some(if changed { format!("{revision}-dirty") } else { revision })
}

fn line_of(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw,errors=remount-ro
40 27 7:0 / /mnt/my\\040disk rw,noatime - xfs /dev/loop0 rw,attr2
41 27 7:1 / /mnt/my rw - xfs /dev/loop1 rw
not a mount line
";

    #[test]
    fn the_mount_of_a_path_is_the_longest_above_it() {
        let mount = mount_of(MOUNTS, Path::new("/mnt/my disk/data")).unwrap();
        assert_eq!((mount.point.as_str(), mount.file_system.as_str()), ("/mnt/my disk", "xfs"));
        assert_eq!((mount.options.as_str(), mount.device.as_str()), ("rw,noatime;rw,attr2", "7:0"));
        assert_eq!(mount_of(MOUNTS, Path::new("/mnt/my")).unwrap().source, "/dev/loop1");
        assert_eq!(
            mount_of(MOUNTS, Path::new("/mnt/mine")).unwrap().source,
            "/dev/vda1",
            "not by letters, by names"
        );
        assert!(mount_of("", Path::new("/")).is_none());
    }

    #[test]
    fn cpu_and_memory_are_read() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!(cpu_field(text, "model name"), Some("Some CPU: 3 GHz"));
        assert_eq!(cpu_field(text, "bogomips"), None);
        assert_eq!(memory_bytes("MemTotal:       24684084 kB\nMemFree: 1 kB\n"), 24_684_084 * 1024);
        assert_eq!(memory_bytes("nothing"), 0);
    }

    #[test]
    fn moments_become_names() {
        assert_eq!(time_name(0), "19700101-000000");
        assert_eq!(time_name(951_782_400), "20000229-000000");
        assert_eq!(time_name(1_795_582_998), "20261125-050318");
    }

    #[test]
    fn this_machine_can_be_captured_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let environment = Environment::capture(directory.path());
        assert!(
            !environment.kernel.is_empty() && environment.memory_bytes > 0 && !environment.cores.is_empty()
        );
        assert!(environment.data_mount.is_some());
        let text = serde_json::to_string(&environment).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&text).unwrap(), environment);
    }
}
