//! What the kernel tells in text: `/proc` and `/sys`, below a root that a test may put elsewhere.

use std::path::PathBuf;

/// `CAP_IPC_LOCK`: memory is locked without a limit.
pub(super) const RIGHT_TO_LOCK: u32 = 14;
/// `CAP_SYS_RESOURCE`: hard limits are raised.
pub(super) const RIGHT_TO_RAISE_LIMITS: u32 = 24;
/// `CAP_SYS_ADMIN`.
pub(super) const RIGHT_TO_ADMINISTER: u32 = 21;

/// The texts of a host.
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The one that this runs on.
    #[must_use]
    pub fn here() -> Host {
        Host::below("/")
    }

    /// One whose texts lie below `root`.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into() }
    }

    /// A file's text without blanks around it; none where it cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let path = self.root.join(path.trim_start_matches('/'));
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    }

    /// The last number of a file: all there is in most, the maximum in `tcp_wmem`.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.split_ascii_whitespace().last()?.parse().ok()
    }

    /// The kernel's release.
    pub(super) fn release(&self) -> String {
        self.text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "of an unknown release".to_owned())
    }

    /// A line of `/proc/self/status`.
    pub(super) fn status(&self, name: &str) -> Option<String> {
        field(&self.text("/proc/self/status")?, name).map(str::to_owned)
    }

    /// Whether this process has a right of root's, by its number.
    pub(super) fn has_right(&self, number: u32) -> bool {
        let rights = self.status("CapEff").and_then(|rights| u64::from_str_radix(&rights, 16).ok());
        rights.is_some_and(|rights| rights >> number & 1 == 1)
    }

    /// Whether it is a container, as far as Docker and Podman mark theirs.
    pub(super) fn is_container(&self) -> bool {
        ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| self.text(mark).is_some())
    }
}

/// The value of a line `name: value`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// The word in brackets, with which the kernel marks a choice: `always [madvise] never`.
pub(super) fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

/// 6.18.44-something is (6, 18).
pub(super) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Paths below the root, and what stands there.
#[cfg(test)]
pub(super) type Texts<'a> = &'a [(&'a str, &'a str)];

/// A host that tells these texts and no others, for as long as the directory is kept.
#[cfg(test)]
pub(super) fn telling(texts: Texts<'_>) -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in texts {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let host = Host::below(root.path());
    (root, host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel_are_read() {
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000204000\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let (root, host) = telling(&[("proc/self/status", status), ("proc/wmem", "4096\t16384\t4194304\n")]);
        assert_eq!(host.status("Seccomp").as_deref(), Some("2"));
        assert!(host.has_right(RIGHT_TO_LOCK) && host.has_right(RIGHT_TO_ADMINISTER) && !host.has_right(0));
        assert_eq!(host.number("/proc/wmem"), Some(4_194_304));
        assert_eq!((host.number("/proc/nothing"), host.is_container()), (None, false));
        std::fs::write(root.path().join(".dockerenv"), "").unwrap();
        assert!(host.is_container());
        assert!(!Host::below(root.path().join("proc")).has_right(0), "what is not told is not had");
    }

    #[test]
    fn words_are_cut_out() {
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("[none] integrity confidentiality"), Some("none"));
        assert_eq!(chosen("never"), None);
        assert_eq!(field("MemTotal:       1 kB\nMem: 2", "Mem"), Some("2"));
        assert_eq!(version("6.18.44-fc-v657"), (6, 18));
        assert_eq!(version("5"), (5, 0));
        assert_eq!(version("of an unknown release"), (0, 0));
    }
}
