//! Master pipes: units of segment files, each read once and kept in a pipe for all who want it.
//!
//! A master holds the bytes of its unit from the unit's begin on, as references to pages of the cache, as far as anybody
//! has asked for them: what lies behind a plan may still be written. Who wants more extends it. Readers take theirs by
//! `tee(2)`, which leaves the master as it is.
//!
//! A shard keeps at most [`MASTERS_MAX`], the least recently used goes first. A file is known by its [`FileId`]: one that is
//! removed or cut is opened anew by who reads on, under another id, and masters of files that nobody has open are dropped
//! when a unit is missed, when segments are removed, and when retention looks round.

use std::cell::RefCell;
use std::io;

use crate::sys::{FileId, Pipe, Ring};
use crate::transfer::plan::SegmentFile;

/// What one master holds at most. A reader throws away what lies before its own bytes, so it is not large.
pub(super) const UNIT_BYTES: u64 = 256 << 10;
/// Masters of a shard.
pub(super) const MASTERS_MAX: usize = 64;
/// A place for each page of a unit, and as many for pages that came in two parts.
pub(super) const PIPE_BYTES: usize = 2 * UNIT_BYTES as usize;

// Beside them the pages of a user's pipes (16,384, if the system was not told otherwise) have room for those of readers.
const _: () = assert!(MASTERS_MAX * PIPE_BYTES / 4096 <= 16_384 / 2);

/// The masters of one shard.
#[derive(Default)]
pub(in crate::transfer) struct Masters(RefCell<Vec<Master>>);

struct Master {
    file: FileId,
    /// Where it begins.
    unit: u64,
    pipe: Pipe,
    /// The number of its last use.
    used: u64,
}

impl Masters {
    /// How much of the unit is there.
    pub(super) fn held(&self, file: &FileId, unit: u64) -> u64 {
        self.0.borrow().iter().find(|m| m.is(file, unit)).map_or(0, |m| m.pipe.held() as u64)
    }

    /// Lets the unit hold `wanted` bytes. They should lie in the cache. False when there is no pipe to be had for it.
    ///
    /// # Errors
    /// What the kernel said, or that the file is shorter, with path and position; the unit is not there then.
    pub(super) fn fill(&self, ring: &Ring, file: &SegmentFile, unit: u64, wanted: u64) -> io::Result<bool> {
        let masters = &mut *self.0.borrow_mut();
        let id = file.file.id();
        let found = masters.iter().position(|m| m.is(&id, unit)).map(|index| masters.swap_remove(index));
        if let Some(mut master) = found {
            if fill(ring, file, unit, wanted, &mut master.pipe)? {
                masters.push(master);
                return Ok(true);
            }
            // Pages that came in parts take more places than there are. It keeps them in the cache until they are taken again.
            return self.begin(masters, ring, file, (id, unit), wanted);
        }
        self.begin(masters, ring, file, (id, unit), wanted)
    }

    fn begin(
        &self,
        masters: &mut Vec<Master>,
        ring: &Ring,
        file: &SegmentFile,
        (id, unit): (FileId, u64),
        wanted: u64,
    ) -> io::Result<bool> {
        masters.retain(|m| m.file.is_open());
        let Some(mut pipe) = empty_pipe(masters, ring)? else { return Ok(false) };
        if !fill(ring, file, unit, wanted, &mut pipe)? {
            return Ok(false);
        }
        masters.push(Master { file: id, unit, pipe, used: 0 });
        Ok(true)
    }

    /// Shares the first `wanted` bytes of the unit with `into`, as far as there is room.
    ///
    /// # Errors
    /// `WouldBlock` when `into` is full; otherwise what the kernel said.
    pub(super) fn tee(
        &self,
        ring: &Ring,
        file: &FileId,
        unit: u64,
        wanted: u64,
        into: &mut Pipe,
    ) -> io::Result<u64> {
        let masters = &mut *self.0.borrow_mut();
        let latest = masters.iter().map(|m| m.used).max().unwrap_or(0);
        let master = masters.iter_mut().find(|m| m.is(file, unit)).expect("the unit was just filled");
        master.used = latest + 1;
        Ok(ring.tee(&master.pipe, into, wanted as usize)? as u64)
    }

    /// Drops those of files that nobody has open any more.
    pub(in crate::transfer) fn drop_closed(&self) {
        self.0.borrow_mut().retain(|m| m.file.is_open());
    }

    /// How many there are, and bytes in them.
    pub(in crate::transfer) fn usage(&self) -> (usize, u64) {
        let masters = self.0.borrow();
        (masters.len(), masters.iter().map(|m| m.pipe.held() as u64).sum())
    }
}

impl Master {
    fn is(&self, file: &FileId, unit: u64) -> bool {
        self.unit == unit && self.file == *file
    }
}

/// A new pipe, or that of the master that nobody has used for longest.
fn empty_pipe(masters: &mut Vec<Master>, ring: &Ring) -> io::Result<Option<Pipe>> {
    if masters.len() < MASTERS_MAX {
        match ring.new_pipe(PIPE_BYTES) {
            Ok(pipe) if pipe.capacity() >= PIPE_BYTES => return Ok(Some(pipe)),
            // The user has many pipes: there will be no more than there are.
            Ok(_) => {}
            Err(error) if crate::sys::is_passing(&error) => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("a master pipe: {error}"))),
        }
    }
    let Some(oldest) = (0..masters.len()).min_by_key(|&index| masters[index].used) else { return Ok(None) };
    let mut pipe = masters.swap_remove(oldest).pipe;
    let held = pipe.held();
    ring.discard(&mut pipe, held)?;
    Ok(Some(pipe))
}

/// Takes the file from what `pipe` holds on, up to `wanted` bytes from the unit's begin. False when the pipe is full before.
fn fill(ring: &Ring, file: &SegmentFile, unit: u64, wanted: u64, pipe: &mut Pipe) -> io::Result<bool> {
    while (pipe.held() as u64) < wanted {
        let at = unit + pipe.held() as u64;
        match ring.splice_in(&file.file, at, (unit + wanted - at) as usize, pipe) {
            Ok(0) => return Err(file.ends_early(at, unit + wanted)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(file.explain("reading", at, &error)),
        }
    }
    Ok(true)
}
