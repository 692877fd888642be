//! `direct`: read past the page cache into registered memory, sent from there.
//!
//! The path of a byte: disk -(DMA, O_DIRECT)-> our memory -(CPU, send)-> socket -(DMA)-> card. One CPU copy. For
//! catch-up readers: they cannot push anything out of the page cache or the tail cache, and what they read is read
//! by the device at its own pace, several units deep. Right when the bytes are on disk; when they are in the page
//! cache it reads them from disk all the same.
//!
//! Reads are whole blocks: a piece of [5000, 300000) reads [4096, 303104) and sends what was asked for of it.
//!
//! In the kernel: with O_DIRECT the device is given the addresses of our pages and writes there by itself; the page
//! cache is passed by. A registered buffer was pinned once, when it was registered, which saves pinning it for each
//! read. The copy into the socket stays.

use std::io;
use std::pin::pin;

use super::{Declaration, HELD_BYTES, Outgoing};
use crate::sys::{BLOCK_BYTES, File, Lease, Ring};
use crate::transfer::join::{join, join_all};
use crate::transfer::path::{BytePath, Place, copy, dma};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "direct",
    profile: CopyProfile { cpu_copies: 1.0, user_copies: 0.0, shares_pages: false },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[dma("O_DIRECT", Place::Memory), copy("send", Place::Socket), dma("", Place::Card)],
    }),
    free_signal: FreeSignal::Completion,
    carries: PieceKinds { memory: false, file: true },
    needs: "O_DIRECT on the data directory's file system; `copy` carries what has no such descriptor",
    delivers: true,
};

/// Read at a time.
const UNIT_BYTES: u64 = 256 << 10;
/// Units under way at once; as many are being sent meanwhile.
const UNITS: usize = 4;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Units in order, as far as the range reaches.
type Window = [Option<Lease>; UNITS];

/// For `direct_zc` too: how a unit is sent is the strategy's whose turn it is.
pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("direct carries file pieces") };
    let direct = file.direct.as_ref().expect("what has no direct descriptor is carried by copy");
    let (mut at, end) = (at.0, at.0 + bytes);
    let ring = out.ring.clone();
    let mut next = Some(read_window(&ring, direct, &file, at, end).await?);
    while let Some(window) = next.take() {
        at += window.iter().flatten().map(|unit| unit.len() as u64).sum::<u64>();
        if at == end {
            add_window(out, window, false).await?;
            break; // What follows in the answer may share its send.
        }
        let sending = async {
            add_window(out, window, true).await?;
            out.flush(true).await
        };
        let (sent, read) = join(sending, read_window(&ring, direct, &file, at, end)).await;
        sent?;
        next = Some(read?);
    }
    Ok(())
}

async fn add_window(out: &mut Outgoing<'_>, window: Window, more: bool) -> io::Result<()> {
    let last = window.iter().flatten().count();
    for (unit, number) in window.into_iter().flatten().zip(1..) {
        if more || number < last {
            out.add_records(unit, true).await?;
        } else {
            // What is lent is on its way at once: the end waits here until it is known that the file was not changed.
            let held = unit.len() - unit.len().min(HELD_BYTES as usize);
            out.add_records(unit.slice(0..held), true).await?;
            out.add_memory(unit.slice(held..unit.len())).await?;
        }
    }
    Ok(())
}

/// Reads up to [`UNITS`] units from `at` on, at once.
async fn read_window(
    ring: &Ring,
    direct: &File,
    file: &SegmentFile,
    at: u64,
    end: u64,
) -> io::Result<Window> {
    let first = at / BLOCK * BLOCK;
    let read = async |unit: u64| {
        let (from, to) = (first + unit * UNIT_BYTES, first + (unit + 1) * UNIT_BYTES);
        match from < end {
            true => read_unit(ring, direct, file, at.max(from), end.min(to)).await.map(Some),
            false => Ok(None),
        }
    };
    let units = join_all([pin!(read(0)), pin!(read(1)), pin!(read(2)), pin!(read(3))]).await;
    let mut window: Window = Default::default();
    for (slot, unit) in window.iter_mut().zip(units) {
        *slot = unit?;
    }
    Ok(window)
}

/// Reads `[at, end)`, by whole blocks.
async fn read_unit(ring: &Ring, direct: &File, file: &SegmentFile, at: u64, end: u64) -> io::Result<Lease> {
    let (first, last) = (at / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
    let length = (last - first) as usize;
    let mut into = ring.lease(length).await?;
    drop(into.split_off(length));
    let mut filled = into.split_to(0);
    while first + (filled.len() as u64) < end {
        // After a short read it goes on at a whole block.
        let (before, whole) = (filled.len(), filled.len() / BLOCK_BYTES * BLOCK_BYTES);
        let again = filled.split_off(whole);
        let mut rest = again;
        rest.unsplit(into);
        let position = first + whole as u64;
        let (result, rest) = ring.read(direct, position, rest).await;
        into = rest;
        match result.map_err(|e| file.explain("reading", position, &e))? {
            0 => return Err(file.ends_early(position, end)),
            n => filled.unsplit(into.split_to(n)),
        }
        if filled.len() <= before {
            // The same part of a block again: the file ends within it.
            return Err(file.ends_early(first + filled.len() as u64, end));
        }
    }
    Ok(filled.freeze().slice((at - first) as usize..(end - first) as usize))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sys::OpenOptions;
    use crate::sys::sim::{DiskImage, World};
    use crate::types::Offset;

    /// It was asked for the rest of the block again and again, for ever.
    #[test]
    fn a_file_that_ends_within_a_block_is_not_read_for_ever() {
        let path = Path::new("/t-0/00000000000000000000.log");
        let mut image = DiskImage::new();
        image.write(path, 0, &[7; 300_123]);
        let world = World::boot(1, image);
        let ring = world.ring(8 << 20);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let options = OpenOptions { direct: true, ..OpenOptions::default() };
            let direct = main.open(path, options).await.unwrap();
            let file = main.open(path, OpenOptions::default()).await.unwrap();
            let file = SegmentFile::new(Offset(0), file, None, path.into());
            let whole = read_unit(&main, &direct, &file, 270_000, 300_123).await.unwrap();
            assert_eq!(whole[..], [7; 30_123]);
            let error = read_unit(&main, &direct, &file, 270_000, 301_000).await.err().unwrap();
            assert!(error.to_string().contains("ends at position 300123, expected up to 301000"), "{error}");
        });
        ring.shut_down();
    }
}
