//! `copy`: the four-step path that every other strategy is held against.
//!
//! The path of a byte: disk -(DMA)-> page cache -(CPU, read)-> our memory -(CPU, send)-> socket -(DMA)-> card. Two
//! CPU copies. It asks nothing of file or kernel, and when the bytes are in the cache and small enough to stay in
//! the processor's own, it is often not slower than the cleverer ways. Right for short pieces, and where nothing
//! else is to be had.
//!
//! In the kernel: the read copies out of the page cache (`_copy_to_iter`), the send copies into pages of the
//! socket's (`_copy_from_iter`). A page that is not in the cache holds up nobody: the ring takes the read up again
//! when the disk has answered.

use std::io;

use super::{Declaration, Outgoing};
use crate::sys::{Lease, LeaseMut, Ring};
use crate::transfer::join::join;
use crate::transfer::path::{BytePath, Place, copy, dma};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "copy",
    profile: CopyProfile { cpu_copies: 2.0, user_copies: 0.0, shares_pages: false },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[
            dma("", Place::PageCache),
            copy("read", Place::Memory),
            copy("send", Place::Socket),
            dma("", Place::Card),
        ],
    }),
    free_signal: FreeSignal::Completion,
    carries: PieceKinds { memory: false, file: true },
    needs: "nothing",
    delivers: true,
};

/// Read and sent at a time: large enough that calls do not count, small enough for the second-level cache.
const UNIT_BYTES: usize = 256 << 10;

/// Reads one unit ahead of the send.
pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("copy carries file pieces") };
    let (mut at, end) = (at.0, at.0 + bytes);
    let ring = out.ring.clone();
    let mut next = Some(read_unit(&ring, &file, at, end).await?);
    while let Some(unit) = next.take() {
        at += unit.len() as u64;
        out.add_memory(unit).await?;
        if at == end {
            break; // What follows in the answer may share its send.
        }
        let reading = read_unit(&ring, &file, at, end);
        let (sent, read) = join(out.flush(true), reading).await;
        sent?;
        next = Some(read?);
    }
    Ok(())
}

pub(super) async fn read_unit(ring: &Ring, file: &SegmentFile, at: u64, end: u64) -> io::Result<Lease> {
    let bytes = (end - at).min(UNIT_BYTES as u64) as usize;
    let mut into: LeaseMut = ring.lease(bytes).await?;
    drop(into.split_off(bytes));
    let mut filled = into.split_to(0);
    while !into.is_empty() {
        let position = at + filled.len() as u64;
        let (result, rest) = ring.read(&file.file, position, into).await;
        into = rest;
        match result.map_err(|e| file.explain("reading", position, &e))? {
            0 => return Err(file.ends_early(position, end)),
            n => filled.unsplit(into.split_to(n)),
        }
    }
    Ok(filled.freeze())
}
