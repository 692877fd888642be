//! A little room on the disk kept for a full one: so that topics can be deleted and log starts moved when nothing else can
//! be written, which is what makes room again, and so that what a start and a stop store can be stored.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::sys::{OpenOptions, Ring, is_failed_flush};

const RESERVE_FILE: &str = ".reserve";
const RESERVE_BYTES: u64 = 1 << 20;
/// Less than this is no reserve.
const RESERVE_BYTES_MIN: u64 = 64 << 10;

/// Whether the reserve is there.
#[derive(Default)]
pub(super) struct Reserve {
    /// All of it.
    there: AtomicBool,
    /// How many write in its place now.
    given_up: AtomicU32,
}

impl Reserve {
    /// Makes it, if it is not there; as much of it as there is room for. False where the disk is full.
    pub(super) async fn make(&self, ring: &Ring, dir: &Path) -> bool {
        if self.there.load(Ordering::Relaxed) {
            return true;
        }
        let mut bytes = RESERVE_BYTES;
        loop {
            match fill(ring, &dir.join(RESERVE_FILE), bytes).await {
                Ok(()) => {
                    self.there.store(bytes == RESERVE_BYTES, Ordering::Relaxed);
                    return bytes == RESERVE_BYTES;
                }
                Err(error) if is_full(&error) && bytes > RESERVE_BYTES_MIN => bytes /= 2,
                Err(error) => {
                    tracing::warn!("{}: no reserve for a full disk: {error}", dir.display());
                    return !is_full(&error);
                }
            }
        }
    }

    /// [`Ring::replace`] that gives the reserve up when the disk is full, and takes again what is left of it.
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
                let _given_up = GivenUp::new(&self.given_up);
                ring.remove(&dir.join(RESERVE_FILE)).await?;
                self.there.store(false, Ordering::Relaxed);
                let replaced = ring.replace(path, bytes).await;
                self.make(ring, dir).await;
                replaced
            }
            done => done,
        }
    }

    /// Whether somebody writes in its place now: others who find room would find this.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) > 0
    }
}

struct GivenUp<'a>(&'a AtomicU32);

impl<'a> GivenUp<'a> {
    fn new(count: &'a AtomicU32) -> GivenUp<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        GivenUp(count)
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether there was no room. Not so where a flush found none: what it covered is gone.
pub(super) fn is_full(error: &io::Error) -> bool {
    !is_failed_flush(error)
        && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

async fn fill(ring: &Ring, path: &Path, bytes: u64) -> io::Result<()> {
    let options = OpenOptions { create: true, write: true, ..OpenOptions::default() };
    let file = ring.open(path, options).await?;
    if ring.size(&file).await? < bytes {
        ring.prepare(&file, 0, bytes).await?;
    }
    Ok(())
}
