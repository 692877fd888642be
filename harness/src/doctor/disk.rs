//! The data directory: its file system, what a flush is worth there, and what its files offer.

use std::io;
use std::path::{Path, PathBuf};

use ringlog::sys::probe::{FileOffer, files};
use ringlog::sys::{BLOCK_BYTES, Flushes, PIPE_BYTES, PIPES_KEPT_MAX, flushes_of};

use super::finding::{Finding, Section, State};
use super::host::Host;
use crate::environment::mount_of;

/// A page, the unit that pipes are counted in.
const PAGE_BYTES: i64 = 4096;

/// What was found of the data directory.
pub(super) struct Disk {
    pub section: Section,
    /// Whether files can be made there.
    pub is_usable: bool,
    /// Whether they can be written past the page cache.
    pub is_direct: bool,
    /// Whether `durable` is promised.
    pub is_durable: bool,
}

pub(super) fn look(host: &Host, data_dir: &Path) -> Disk {
    let dir = nearest(data_dir);
    let mut findings = vec![file_system(host, data_dir, &dir)];
    let flushes = flushes_of(&dir);
    let is_durable = matches!(flushes, Ok(Flushes::Reach | Flushes::ReachBut(_)));
    findings.push(durable(flushes));
    let offer = files(&dir);
    let (is_usable, is_direct) = match &offer {
        Ok(offer) => {
            findings.extend(of_files(host, offer));
            (true, offer.direct.is_ok())
        }
        Err(error) => {
            findings.push(unusable(&dir, error));
            (false, false)
        }
    };
    findings.push(pipes(host));
    Disk { section: Section::new("data directory", findings), is_usable, is_direct, is_durable }
}

/// The directory, or the one above it that it would be made in.
fn nearest(data_dir: &Path) -> PathBuf {
    let whole = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let found = whole.ancestors().find(|path| path.is_dir());
    found.map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn unusable(dir: &Path, error: &io::Error) -> Finding {
    Finding::good("files", format!("none can be made in {}: {error}", dir.display())).but(
        State::Missing,
        "the engine cannot run on this directory",
        format!("sudo chown \"$USER\" {}, or --data-dir elsewhere", dir.display()),
    )
}

fn file_system(host: &Host, data_dir: &Path, dir: &Path) -> Finding {
    let mounts = host.text("/proc/self/mountinfo").unwrap_or_default();
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let place = if data_dir.is_dir() {
        String::new()
    } else {
        format!(" ({} is not there yet; seen from {})", data_dir.display(), dir.display())
    };
    let found = match mount_of(&mounts, &real) {
        Some(mount) => format!(
            "{} on {} at {}, options {}{place}",
            mount.file_system, mount.source, mount.point, mount.options
        ),
        None => format!("not told{place}"),
    };
    Finding::good("file system", found)
}

fn durable(flushes: io::Result<Flushes>) -> Finding {
    let elsewhere = "ringlog-broker serve --ack written, or --data-dir on ext4, XFS or btrfs on a disk";
    match flushes {
        Ok(Flushes::Reach) => Finding::good("durable", "promised: a flush reaches the disk"),
        Ok(Flushes::ReachBut(words)) => Finding::good("durable", format!("promised, but {words}")).but(
            State::Degraded,
            "whether an acknowledged record survives power loss is this file system's word, not ours",
            "--data-dir on a journaled ext4, XFS or btrfs",
        ),
        Ok(Flushes::DoNotReach(words)) => Finding::good("durable", words).but(
            State::Missing,
            "durable is refused, and with it the default: a record that was acknowledged is lost with the power",
            elsewhere,
        ),
        Err(error) => Finding::good("durable", format!("not known: {error}")).but(
            State::Missing,
            "the engine cannot tell what a flush is worth and does not start",
            "mount -t proc proc /proc, where it is missing",
        ),
    }
}

fn of_files(host: &Host, offer: &FileOffer) -> Vec<Finding> {
    let leases_off = host.number("/proc/sys/fs/leases-enable") == Some(0);
    vec![
        direct(offer),
        asked(
            "RWF_NOWAIT",
            &offer.nowait,
            "whether a read would wait for the disk cannot be asked by reading",
            "--data-dir on ext4, XFS or btrfs",
        ),
        asked(
            "cachestat",
            &offer.cachestat,
            "sendfile and splice cannot see what is in the page cache: all goes through a helper thread first",
            "Linux 6.5 or newer",
        ),
        asked(
            "RWF_DONTCACHE",
            &offer.dontcache,
            "ingress dontcache cannot be used",
            "Linux 6.14 or newer with ext4, XFS or btrfs",
        ),
        asked(
            "leases",
            &offer.lease,
            "a mapped segment that another process truncates is noticed by its fault only (egress mmap)",
            if leases_off { "sudo sysctl fs.leases-enable=1" } else { "--data-dir on a local file system" },
        ),
        asked(
            "reflink",
            &offer.reflink,
            "a copy of segments takes their time and room; the engine itself makes none",
            "--data-dir on XFS (mkfs.xfs DEVICE) or btrfs",
        ),
    ]
}

fn direct(offer: &FileOffer) -> Finding {
    if let Err(error) = &offer.direct {
        return Finding::good("O_DIRECT", format!("refused: {error}")).but(
            State::Missing,
            "every write and read goes through the page cache: one copy more, and catch-up readers evict the tail",
            "--data-dir on ext4, XFS or btrfs",
        );
    }
    let Some(alignment) = offer.alignment else {
        return Finding::good(
            "O_DIRECT",
            format!("taken in blocks of {BLOCK_BYTES}; a smaller alignment is not told"),
        );
    };
    let (memory, file) = (alignment.memory_bytes, alignment.file_bytes);
    Finding::good(
        "O_DIRECT",
        format!("aligned to {memory} in memory and {file} in the file (statx DIOALIGN)"),
    )
}

fn asked(name: &str, answer: &io::Result<()>, without: &str, cure: &str) -> Finding {
    match answer {
        Ok(()) => Finding::good(name, "works here"),
        Err(error) => Finding::good(name, error.to_string()).but(State::Missing, without, cure),
    }
}

fn pipes(host: &Host) -> Finding {
    let most = host.number("/proc/sys/fs/pipe-max-size").unwrap_or(0);
    let soft = host.number("/proc/sys/fs/pipe-user-pages-soft").unwrap_or(0);
    let soft_words = if soft == 0 { "no limit".to_owned() } else { format!("{soft} pages") };
    let finding = Finding::good("pipes", format!("up to {most} bytes each; {soft_words} a user in all"));
    let without = "egress splice moves less with every call";
    let (wanted, kept) = (PIPE_BYTES as i64, PIPES_KEPT_MAX as i64);
    let full_pages = kept * wanted / PAGE_BYTES;
    if most < wanted {
        finding.but(State::Degraded, without, format!("sudo sysctl fs.pipe-max-size={wanted}"))
    } else if soft != 0 && soft * PAGE_BYTES < kept * wanted {
        let cure = format!("sudo sysctl fs.pipe-user-pages-soft={}", full_pages.max(1));
        finding.but(State::Degraded, format!("{without} once {kept} pipes of {wanted} bytes are open"), cure)
    } else {
        finding
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::host::telling;

    #[test]
    fn a_directory_in_memory_is_usable_and_promises_nothing() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return println!("skipped: no /dev/shm") };
        let disk = look(&Host::here(), dir.path());
        assert!(disk.is_usable && !disk.is_durable);
        let finding = |name: &str| disk.section.findings.iter().find(|f| f.name == name).unwrap();
        assert_eq!(finding("durable").state, State::Missing);
        assert!(finding("durable").cure.contains("--ack written"));
        assert!(finding("file system").found.starts_with("tmpfs on "), "{:?}", finding("file system"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it leaves no trace");
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_seen_from_above_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("some/where");
        let disk = look(&Host::here(), &wanted);
        assert!(disk.is_usable && !wanted.exists());
        assert!(disk.section.findings[0].found.contains("is not there yet"));
    }

    #[test]
    fn where_no_file_can_be_made_it_is_said_with_the_command() {
        let disk = look(&Host::here(), Path::new("/proc/self"));
        assert!(!disk.is_usable && !disk.is_direct);
        let files = disk.section.findings.iter().find(|finding| finding.name == "files").unwrap();
        assert!(files.found.contains("/proc/self") && files.cure.contains("chown"), "{files:?}");
    }

    #[test]
    fn small_pipes_are_named_with_the_sysctl() {
        let of = |most: &str, soft: &str| {
            let (_root, host) =
                telling(&[("proc/sys/fs/pipe-max-size", most), ("proc/sys/fs/pipe-user-pages-soft", soft)]);
            pipes(&host)
        };
        assert_eq!(of("1048576\n", "16384\n").state, State::Good);
        assert_eq!(of("1048576\n", "0\n").state, State::Good, "0 is no limit");
        assert_eq!(of("65536\n", "16384\n").cure, "sudo sysctl fs.pipe-max-size=1048576");
        assert_eq!(of("1048576\n", "1024\n").cure, "sudo sysctl fs.pipe-user-pages-soft=4096");
    }
}
