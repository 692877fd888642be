//! A little room on the disk kept for a full one: so that topics can be deleted and log starts moved when nothing else can
//! be written, which is what makes room again.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::{OpenOptions, Ring, is_failed_flush};

const RESERVE_FILE: &str = ".reserve";
const RESERVE_BYTES: u64 = 1 << 20;

/// Whether the reserve is there.
#[derive(Default)]
pub(super) struct Reserve(AtomicBool);

impl Reserve {
    /// Makes it, if it is not there.
    pub(super) async fn make(&self, ring: &Ring, dir: &Path) {
        if self.0.load(Ordering::Relaxed) {
            return;
        }
        match fill(ring, &dir.join(RESERVE_FILE)).await {
            Ok(()) => self.0.store(true, Ordering::Relaxed),
            Err(error) => tracing::warn!("{}: no reserve for a full disk: {error}", dir.display()),
        }
    }

    /// [`Ring::replace`] that gives the reserve up when the disk is full.
    pub(super) async fn replace(
        &self,
        ring: &Ring,
        dir: &Path,
        path: &Path,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        match ring.replace(path, bytes.clone()).await {
            Err(error) if is_full(&error) => {
                tracing::warn!("{error}; the reserve is given up for it");
                ring.remove(&dir.join(RESERVE_FILE)).await?;
                self.0.store(false, Ordering::Relaxed);
                ring.replace(path, bytes).await
            }
            done => done,
        }
    }
}

/// Whether there was no room. Not so where a flush found none: what it covered is gone.
pub(super) fn is_full(error: &io::Error) -> bool {
    !is_failed_flush(error)
        && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

async fn fill(ring: &Ring, path: &Path) -> io::Result<()> {
    let options = OpenOptions { create: true, write: true, ..OpenOptions::default() };
    let file = ring.open(path, options).await?;
    if ring.size(&file).await? < RESERVE_BYTES {
        ring.prepare(&file, 0, RESERVE_BYTES).await?;
    }
    Ok(())
}
