//! How much of a log the page cache holds, and emptying it.
//!
//! "From disk" is proved, not assumed: a catch-up cell drops its files, asks before it begins and after it ends, and
//! the report prints both. The asking (`cachestat(2)`) is the engine's, for it needs a raw system call; this module
//! holds the numbers and the dropping.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

/// How much of a file range the page cache holds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Residency {
    /// Pages in the cache.
    pub cached_pages: u64,
    /// Pages there are.
    pub total_pages: u64,
}

/// Residency before and after a cell.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResidencyPair {
    /// When the measured time began.
    pub before: Residency,
    /// When it ended.
    pub after: Residency,
}

impl Residency {
    /// Adds another range.
    pub fn add(&mut self, other: Residency) {
        self.cached_pages += other.cached_pages;
        self.total_pages += other.total_pages;
    }

    /// The part in the cache, from 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.cached_pages as f64 / self.total_pages.max(1) as f64
    }
}

/// Brings every `.log` file below `directory` to disk and drops it from the page cache. Dirty or mapped pages cannot
/// be dropped and the kernel does not say so: ask for the residency afterwards. Returns the bytes of those files.
///
/// # Errors
/// When a directory or file cannot be read, synced or advised on; the message names it.
pub fn drop_logs_from_cache(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    each_log(directory, &mut |path, file| {
        file.sync_all().map_err(|error| named(path, error))?;
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|errno| named(path, errno.into()))?;
        bytes += file.metadata()?.len();
        Ok(())
    })?;
    Ok(bytes)
}

/// Calls `visit` with every `.log` file below `directory`, opened for reading, in the order of their paths.
///
/// # Errors
/// The first of the walk or of `visit`.
pub fn each_log(directory: &Path, visit: &mut impl FnMut(&Path, &File) -> io::Result<()>) -> io::Result<()> {
    let entries = fs::read_dir(directory).map_err(|error| named(directory, error))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            each_log(&path, visit)?;
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let file = File::open(&path).map_err(|error| named(&path, error))?;
            visit(&path, &file)?;
        }
    }
    Ok(())
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_logs_are_dropped_and_all_of_them_at_any_depth() {
        let directory = tempfile::tempdir().unwrap();
        let partition = directory.path().join("topic-0");
        fs::create_dir(&partition).unwrap();
        fs::write(partition.join("00000000000000000000.log"), vec![1; 10_000]).unwrap();
        fs::write(partition.join("00000000000000000000.index"), vec![1; 100]).unwrap();
        fs::write(directory.path().join("a.log"), vec![1; 5]).unwrap();
        assert_eq!(drop_logs_from_cache(directory.path()).unwrap(), 10_005);
        let error = drop_logs_from_cache(Path::new("/no/such")).unwrap_err().to_string();
        assert!(error.contains("/no/such"), "{error}");
    }

    #[test]
    fn residency_adds_up() {
        let mut residency = Residency { cached_pages: 1, total_pages: 4 };
        residency.add(Residency { cached_pages: 2, total_pages: 2 });
        assert_eq!(residency.fraction(), 0.5);
        assert_eq!(Residency::default().fraction(), 0.0);
    }
}
