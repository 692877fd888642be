//! One file, written past the page cache in units, a few under way at once.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use ringlog::sys::{File, Lease, OpenOptions, Ring};

use super::{Changes, PREPARED_BYTES};

/// See the module's words.
pub(super) struct Disk {
    ring: Ring,
    file: File,
    at: Cell<u64>,
    prepared: Cell<u64>,
    preparing: Cell<bool>,
    under_way: Cell<usize>,
    under_way_max: usize,
    changes: Changes,
    /// The first thing that went wrong: nothing is written after it.
    failed: RefCell<Option<String>>,
}

impl Disk {
    /// Creates the file, to have `writes` under way, and prepares its first step. Where the file system has no O_DIRECT, it is an error: there is
    /// no floor then.
    pub(super) async fn open(ring: &Ring, path: &Path, writes: usize) -> Result<Disk> {
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
            under_way_max: writes,
            changes: Changes::default(),
            failed: RefCell::new(None),
        })
    }

    /// Starts the write of a unit, as soon as fewer than it may have are under way.
    ///
    /// # Errors
    /// What went wrong with an earlier one, or while room was prepared.
    pub(super) async fn write(self: &Rc<Disk>, unit: Lease) -> Result<()> {
        self.changes.until(|| self.has_failed() || self.under_way.get() < self.under_way_max).await;
        self.check()?;
        self.under_way.set(self.under_way.get() + 1);
        let at = self.at.get();
        self.at.set(at + unit.len() as u64);
        self.prepare_ahead();
        let disk = self.clone();
        self.ring.spawn(async move {
            let end = at + unit.len() as u64;
            disk.changes.until(|| disk.has_failed() || disk.prepared.get() >= end).await;
            if !disk.has_failed() {
                let bytes = unit.len();
                let (written, _unit) = disk.ring.write(&disk.file, at, unit).await;
                if !written.as_ref().is_ok_and(|&written| written == bytes) {
                    disk.fail(format!("writing {bytes} bytes at {at}: {written:?}"));
                }
            }
            disk.under_way.set(disk.under_way.get() - 1);
            disk.changes.tell();
        });
        Ok(())
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub(super) async fn settled(&self) -> Result<()> {
        self.changes.until(|| self.under_way.get() == 0).await;
        self.check()
    }

    fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }

    fn fail(&self, why: String) {
        self.failed.borrow_mut().get_or_insert(why);
        self.changes.tell();
    }

    fn check(&self) -> Result<()> {
        match &*self.failed.borrow() {
            Some(why) => bail!("the floor's file: {why}"),
            None => Ok(()),
        }
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
                return disk.fail(format!("preparing up to {to}: {error}"));
            }
            disk.prepared.set(to);
            disk.preparing.set(false);
            disk.changes.tell();
            disk.prepare_ahead();
        });
    }
}
