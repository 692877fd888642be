//! What the kernel refused: words for people over the number that callers act on.
//!
//! An error that only has words cannot be told from any other, and one that only has a number does not say of which file
//! it speaks. Those made here have both.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// Words about what was tried, and what the kernel said to it.
#[derive(Debug)]
struct Refusal {
    words: String,
    source: io::Error,
    flush: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.words, self.source)
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Adds what was tried and on which path; keeps the kind and the number that callers act on.
pub(crate) fn about<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> io::Error + 'a {
    move |source| refusal(format!("cannot {verb} {}", path.display()), source, false)
}

/// A flush within a larger job failed.
pub(crate) fn failed_flush(source: impl Into<io::Error>) -> io::Error {
    refusal("a flush failed".to_owned(), source.into(), true)
}

fn refusal(words: String, source: io::Error, flush: bool) -> io::Error {
    io::Error::new(source.kind(), Refusal { words, source, flush })
}

fn of(error: &io::Error) -> Option<&Refusal> {
    error.get_ref()?.downcast_ref()
}

/// Whether a flush failed on the way. The kernel says so once for each descriptor: who asks again is told that all is
/// well, so nobody may.
#[must_use]
pub fn is_failed_flush(error: &io::Error) -> bool {
    of(error).is_some_and(|refusal| refusal.flush || is_failed_flush(&refusal.source))
}

/// Whether something ran short that comes back when others let go of it: descriptors, the kernel's memory, places in a
/// queue. Nothing has happened, and the same may be asked again.
#[must_use]
pub fn is_passing(error: &io::Error) -> bool {
    if is_failed_flush(error) {
        return false;
    }
    if let Some(refusal) = of(error) {
        return is_passing(&refusal.source);
    }
    let short = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::EINTR];
    error.raw_os_error().map_or(error.kind() == io::ErrorKind::WouldBlock, |code| short.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_do_not_hide_what_happened() {
        let of = io::Error::from_raw_os_error;
        let opened = about("open", Path::new("/data/t-0/7.log"))(of(libc::EMFILE));
        assert!(is_passing(&opened) && !is_failed_flush(&opened));
        assert!(
            opened.to_string().contains("/data/t-0/7.log") && opened.to_string().contains("Too many open")
        );
        let full = about("open", Path::new("/data"))(of(libc::ENOSPC));
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(!is_passing(&full) && !is_passing(&of(libc::EIO)));
        // Even where asking again might work: what it covered may be gone.
        let flush = about("prepare", Path::new("/data"))(failed_flush(of(libc::ENOMEM)));
        assert!(is_failed_flush(&flush) && !is_passing(&flush));
    }
}
