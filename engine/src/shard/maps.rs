//! The mapped segments of one shard: at most so many, and who was not read from for longest goes first.
//!
//! A map belongs to its segment's open file, and goes with it when the segment is removed; here is only known which there
//! are. Who sends from one keeps it until he is done, also when it was taken away meanwhile.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use crate::sys::Ring;
use crate::transfer::SegmentFile;

/// Segments that a shard has mapped at once.
pub const MAPS_MAX: usize = 64;
/// Bytes of address space that they take together: beyond that only one is mapped. Page tables of a whole map take a
/// 512th of it.
pub const MAPPED_BYTES_MAX: u64 = 16 << 30;

#[derive(Default)]
pub(super) struct Maps {
    known: RefCell<Vec<Known>>,
    uses: Cell<u64>,
    /// Files that have no lease were spoken of; files that could not be mapped were.
    said: Cell<(bool, bool)>,
}

struct Known {
    file: Weak<SegmentFile>,
    bytes: u64,
    used: u64,
    /// On its way, or refused, or given up for good: others carry its bytes.
    unmapped: bool,
}

impl Maps {
    /// Has `file` mapped if it can be and is not. True when that took time.
    pub(super) async fn ready(&self, ring: &Ring, file: &Rc<SegmentFile>) -> bool {
        self.uses.set(self.uses.get() + 1);
        let used = self.uses.get();
        if let Some(known) = self.known.borrow_mut().iter_mut().find(|known| known.is(file)) {
            known.used = used;
            if known.unmapped || file.is_mapped() {
                return false;
            }
            // Somebody was about to change it, or has. It is not mapped again.
            known.unmapped = true;
            drop(file.set_map(None));
            tracing::warn!(
                "{}: its map is given up for another process that opens it for writing",
                file.path.display()
            );
            return false;
        }
        let Some(bytes) = file.sealed_bytes().filter(|&bytes| bytes > 0) else { return false };
        self.make_room(bytes);
        let entry = Known { file: Rc::downgrade(file), bytes, used, unmapped: true };
        self.known.borrow_mut().push(entry);
        let mapped = ring.map(&file.file, bytes).await;
        let (leases_said, maps_said) = self.said.get();
        match mapped {
            Ok(map) => {
                if let Some(why) = map.lease_refusal()
                    && !leases_said
                {
                    self.said.set((true, maps_said));
                    tracing::warn!(
                        "{}: no lease on mapped segments ({why}): another process that truncates one is noticed when it \
                         has happened, not before",
                        file.path.display()
                    );
                }
                // Taken away again meanwhile, it stays unmapped.
                if let Some(known) = self.known.borrow_mut().iter_mut().find(|known| known.is(file)) {
                    known.unmapped = false;
                    file.set_map(Some(map));
                }
            }
            Err(error) if !maps_said => {
                self.said.set((leases_said, true));
                tracing::warn!("{}: it cannot be mapped, `copy` carries it: {error}", file.path.display());
            }
            Err(_) => {}
        }
        true
    }

    /// Takes maps away until one of `bytes` more is within the bounds.
    fn make_room(&self, bytes: u64) {
        let known = &mut *self.known.borrow_mut();
        known.retain(|known| known.file.strong_count() > 0);
        while known.len() >= MAPS_MAX
            || known.iter().map(|known| known.bytes).sum::<u64>() + bytes > MAPPED_BYTES_MAX
        {
            let Some(oldest) = (0..known.len()).min_by_key(|&index| known[index].used) else { return };
            if let Some(file) = known.swap_remove(oldest).file.upgrade() {
                drop(file.set_map(None));
            }
        }
    }

    /// Segments mapped now.
    #[cfg(test)]
    pub(super) fn mapped(&self) -> usize {
        let is_mapped = |known: &&Known| known.file.upgrade().is_some_and(|file| file.is_mapped());
        self.known.borrow().iter().filter(is_mapped).count()
    }
}

impl Known {
    fn is(&self, file: &Rc<SegmentFile>) -> bool {
        std::ptr::eq(self.file.as_ptr(), Rc::as_ptr(file))
    }
}
