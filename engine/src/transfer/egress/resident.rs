//! Pages in the cache, before a call that would wait for them: what all ways that share the cache's pages begin with.
//!
//! `sendfile` and `splice` wait for the disk when a page is not there, with the whole thread and all its connections. So
//! the kernel is asked first, a stretch at a time, and what is cold is brought in by a helper. Between the question and
//! the call a page may be evicted again: then the thread waits for one read, which is rare and not wrong.

use std::io;

use super::Outgoing;
use crate::transfer::plan::SegmentFile;

/// Asked about at a time.
const ASKED_BYTES: u64 = 1 << 20;
/// Brought in at a time when cold: a device's worth of read-ahead.
const WARM_BYTES: u64 = 4 << 20;

/// How far a file is known to lie in the cache, by one who goes through it from front to back.
pub(super) struct Resident {
    to: u64,
}

impl Resident {
    /// Nothing is known yet.
    pub(super) fn unknown() -> Resident {
        Resident { to: 0 }
    }

    /// How much of `[at, end)`, at least a byte, lies in the cache; brings it in if need be.
    ///
    /// # Errors
    /// What the disk said, with path and position.
    pub(super) async fn bytes_at(
        &mut self,
        out: &Outgoing<'_>,
        file: &SegmentFile,
        at: u64,
        end: u64,
    ) -> io::Result<u64> {
        if self.to <= at {
            self.to = end.min(at + ASKED_BYTES);
            if !out.ring.is_resident(&file.file, at, self.to - at) {
                out.note(|c| c.cold_reads += 1);
                self.to = end.min(at + WARM_BYTES);
                let warmed = out.ring.warm_cache(&file.file, at, self.to).await;
                warmed.map_err(|e| file.explain("reading", at, &e))?;
            }
        }
        Ok(self.to.min(end) - at)
    }
}
