//! One file, written past the page cache in units, a few under way at once.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use ringlog::sys::{File, Lease, OpenOptions, Ring};

use super::{Changes, PREPARED_BYTES, WRITES};

/// See the module's words.
pub(super) struct Disk {
    ring: Ring,
    file: File,
    at: Cell<u64>,
    prepared: Cell<u64>,
    preparing: Cell<bool>,
    under_way: Cell<usize>,
    changes: Changes,
}

impl Disk {
    /// Creates the file and prepares its first step. Where the file system has no O_DIRECT, it is an error: there is
    /// no floor then.
    pub(super) async fn open(ring: &Ring, path: &Path) -> Result<Disk> {
        let options = OpenOptions { create: true, write: true, direct: true };
        let file = ring.open(path, options).await.with_context(|| path.display().to_string())?;
        ring.prepare(&file, 0, PREPARED_BYTES).await.with_context(|| path.display().to_string())?;
        Ok(Disk {
            ring: ring.clone(),
            file,
            at: Cell::new(0),
            prepared: Cell::new(PREPARED_BYTES),
            preparing: Cell::new(false),
            under_way: Cell::new(0),
            changes: Changes::default(),
        })
    }

    /// Starts the write of a unit, as soon as fewer than [`WRITES`] are under way.
    pub(super) async fn write(self: &Rc<Disk>, unit: Lease) {
        self.changes.until(|| self.under_way.get() < WRITES).await;
        self.under_way.set(self.under_way.get() + 1);
        let at = self.at.get();
        self.at.set(at + unit.len() as u64);
        self.prepare_ahead();
        let disk = self.clone();
        self.ring.spawn(async move {
            disk.changes.until(|| disk.prepared.get() >= at + unit.len() as u64).await;
            let bytes = unit.len();
            let (written, _unit) = disk.ring.write(&disk.file, at, unit).await;
            match written {
                Ok(written) if written == bytes => {}
                other => {
                    eprintln!("writing {bytes} bytes at {at}: {other:?}");
                    std::process::exit(1);
                }
            }
            disk.under_way.set(disk.under_way.get() - 1);
            disk.changes.tell();
        });
    }

    /// Waits until nothing is under way.
    pub(super) async fn settled(&self) {
        self.changes.until(|| self.under_way.get() == 0).await;
    }

    /// The next step is prepared when half of the last one is used.
    fn prepare_ahead(self: &Rc<Disk>) {
        let prepared = self.prepared.get();
        if self.preparing.get() || prepared - self.at.get().min(prepared) > PREPARED_BYTES / 2 {
            return;
        }
        self.preparing.set(true);
        let disk = self.clone();
        self.ring.spawn(async move {
            let to = prepared + PREPARED_BYTES;
            if let Err(error) = disk.ring.prepare(&disk.file, prepared, to).await {
                eprintln!("preparing up to {to}: {error}");
                std::process::exit(1);
            }
            disk.prepared.set(to);
            disk.preparing.set(false);
            disk.changes.tell();
            disk.prepare_ahead();
        });
    }
}
