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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use super::*;
    use crate::sys::sim::{DiskImage, World};
    use crate::sys::{OpenOptions, Socket};
    use crate::transfer::{Egress, Piece, Response, Transfers, send};
    use crate::types::{Offset, Position};

    const BYTES: u64 = 100_000;

    fn path(number: usize) -> PathBuf {
        PathBuf::from(format!("/data/t-0/{number:020}.log"))
    }

    fn world(files: usize, bytes: u64) -> World {
        let mut image = DiskImage::new();
        for number in 0..files {
            image.write(&path(number), 0, &vec![number as u8 + 1; BYTES as usize]);
            image.set_len(&path(number), bytes);
        }
        World::boot(7, image)
    }

    async fn open(ring: &Ring, number: usize, bytes: u64) -> Rc<SegmentFile> {
        let file = ring.open(&path(number), OpenOptions::default()).await.unwrap();
        let file = SegmentFile::new(Offset(number as i64), file, None, path(number).into());
        file.seal(ring, Position(bytes)).unwrap();
        Rc::new(file)
    }

    #[test]
    fn the_map_that_was_not_used_for_longest_goes_first() {
        let world = world(MAPS_MAX + 2, BYTES);
        let ring = world.ring(1 << 20);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let (maps, mut files) = (Maps::default(), Vec::new());
            for number in 0..MAPS_MAX + 2 {
                files.push(open(&main, number, BYTES).await);
                assert!(maps.ready(&main, &files[number]).await, "mapping takes time");
                assert!(!maps.ready(&main, &files[number]).await && files[number].is_mapped());
                // The first one is used all the time.
                assert!(!maps.ready(&main, &files[0]).await);
                assert_eq!(maps.mapped(), (number + 1).min(MAPS_MAX));
            }
            assert!(files[0].is_mapped() && !files[1].is_mapped() && !files[2].is_mapped());
            // Removed segments make room by themselves.
            files.truncate(10);
            let again = maps.ready(&main, &files[1]).await;
            assert!(again && files[0].is_mapped() && files[3].is_mapped() && maps.mapped() == 9);
        });
        ring.shut_down();
    }

    #[test]
    fn maps_of_large_segments_are_fewer() {
        let bytes = MAPPED_BYTES_MAX / 4;
        let world = world(8, bytes);
        let ring = world.ring(1 << 20);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let (maps, mut files) = (Maps::default(), Vec::new());
            for number in 0..8 {
                files.push(open(&main, number, bytes).await);
                maps.ready(&main, &files[number]).await;
                assert_eq!(maps.mapped(), (number + 1).min(4));
            }
        });
        ring.shut_down();
    }

    /// In the simulated world too: what is complete is right, what was changed is refused with its name.
    #[test]
    fn a_file_that_is_cut_while_it_is_sent_is_refused() {
        for egress in [Egress::Mmap, Egress::Sendfile, Egress::Splice, Egress::Copy] {
            let mut refused = 0;
            for seed in 0..40u64 {
                let world = World::boot(seed, {
                    let mut image = DiskImage::new();
                    image.write(&path(1), 0, &[9; BYTES as usize]);
                    image
                });
                let ring = world.ring(8 << 20);
                let main = ring.clone();
                refused += world.run(&[&ring], async move {
                    let file = open(&main, 1, BYTES).await;
                    let maps = Maps::default();
                    assert!(maps.ready(&main, &file).await);
                    let listener = main.listen(SocketAddr::from(([127, 0, 0, 1], 7)), false).unwrap();
                    let ours = main.connect(listener.address()).await.unwrap();
                    let peer = main.accept(&listener).await.unwrap();
                    let (cutter, wait) = (main.clone(), seed * 40);
                    main.spawn(async move {
                        let write = OpenOptions { write: true, ..OpenOptions::default() };
                        let file = cutter.open(&path(1), write).await.unwrap();
                        cutter.sleep(std::time::Duration::from_micros(wait)).await;
                        cutter.trim(&file, wait * 10).await.unwrap();
                    });
                    let reading = main.clone();
                    main.spawn(async move { take_all(&reading, &peer).await });
                    let (mut response, counters) = (Response::default(), Transfers::default());
                    response.push_records(Piece::File { file, at: Position(0), bytes: BYTES });
                    let sent = send(&main, &ours, egress, &mut response, &counters).await;
                    if let Err(error) = &sent {
                        let words = error.to_string();
                        assert!(
                            words.contains("t-0/00000000000000000001.log") && words.contains("position"),
                            "{words}"
                        );
                    }
                    u32::from(sent.is_err())
                });
                ring.shut_down();
            }
            assert!((1..40).contains(&refused), "{egress}: {refused} of 40 were refused");
        }
    }

    async fn take_all(ring: &Ring, socket: &Socket) {
        loop {
            let memory = ring.lease(4096).await.unwrap();
            match ring.recv(socket, memory).await {
                (Ok(bytes), memory) if bytes > 0 => drop(memory),
                _ => return,
            }
        }
    }
}
