//! `vmsplice`: read past the page cache into memory that is used once, which goes through a pipe into the socket's queue.
//!
//! The path of a byte: disk -(DMA, O_DIRECT)-> our memory =(vmsplice)= pipe =(splice)= socket -(DMA)-> card. No CPU
//! copy where the card gathers, and none on the loopback either, where `SEND_ZC` is copied. The price is the
//! memory: the kernel never says when the last socket has let go of a page (bytes that were changed after the peer
//! had acknowledged all of them were still seen by its reader), so pages are mapped for each unit, filled, put into
//! the pipe, unmapped at once and never used again. The kernel has to zero every page first, which is work like a
//! copy; a helper does it, and unmaps as well. Right where another core has time for that and the shard's has not,
//! and as `direct` for readers that shall push nothing out of the page cache.
//!
//! Memory of the tail cache never goes this way, since it is used again: `tail` sends it, with its one copy. Copying it to
//! fresh pages would be that copy and the zeroing on top.
//!
//! Bounds: transfers under way hold at most [`FRESH_BYTES_MAX`] of a shard, three units each; what comes above goes by `direct`,
//! counted. What has left the pipe is in the socket, whose send buffer bounds it (tcp_wmem, and tcp_mem for all).
//!
//! In the kernel: `vmsplice(2)` holds our pages and puts references to them into the pipe. Unmapping takes them out
//! of our address space only: they live on until pipe and socket are done with them, and nobody can write to them
//! any more.

use std::cell::Cell;
use std::io;

use super::{Declaration, Egress, Outgoing, direct};
use crate::sys::{BLOCK_BYTES, Pages, Pipe};
use crate::transfer::join::join;
use crate::transfer::path::{BytePath, Place, dma, share};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};
use crate::types::Position;

pub(super) const DECLARATION: Declaration = Declaration {
    name: "vmsplice",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[
            dma("O_DIRECT", Place::Memory),
            share("vmsplice", Place::Pipe),
            share("splice", Place::Socket),
            dma("", Place::Card),
        ],
    }),
    free_signal: FreeSignal::None,
    carries: PieceKinds { memory: false, file: true },
    needs: "O_DIRECT on the data directory's file system (`copy` carries what has no such descriptor); a pipe",
    delivers: true,
};

/// Read at a time; one is read while the one before it is sent.
const UNIT_BYTES: u64 = 1 << 20;
/// Memory for one use of a shard's transfers under way.
const FRESH_BYTES_MAX: u64 = 96 << 20;
/// One in the pipe, one that is being read, one that is being unmapped.
const UNITS_MAX: u64 = 3;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A transfer's part of what the shard may hold; given back on drop.
struct Share<'a> {
    of: &'a Cell<u64>,
    bytes: u64,
}

impl<'a> Share<'a> {
    fn take(of: &'a Cell<u64>, bytes: u64) -> Option<Share<'a>> {
        let taken = of.get() + bytes;
        (taken <= FRESH_BYTES_MAX).then(|| {
            of.set(taken);
            Share { of, bytes }
        })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.of.set(self.of.get() - self.bytes);
    }
}

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("vmsplice carries file pieces") };
    let span = (at.0 + bytes).next_multiple_of(BLOCK) - at.0 / BLOCK * BLOCK;
    let transfers = out.transfers;
    let share = Share::take(&transfers.fresh_bytes, span.min(UNITS_MAX * UNIT_BYTES));
    let (Some(_share), Some(mut pipe)) = (share, out.take_pipe()?) else {
        out.hand_over(Egress::Direct, bytes);
        return direct::send_piece(out, Piece::File { file, at, bytes }).await;
    };
    out.flush(true).await?;
    send_range(out, &mut pipe, &file, at, at.plus(bytes)).await?;
    // After an error it is closed instead: what it holds belongs to an answer that will never be whole.
    out.ring.give_pipe(pipe);
    Ok(())
}

async fn send_range(
    out: &Outgoing<'_>,
    pipe: &mut Pipe,
    file: &SegmentFile,
    at: Position,
    end: Position,
) -> io::Result<()> {
    let (mut at, end) = (at.0, end.0);
    let mut next = Some(read_unit(out, file, at, end).await?);
    while let Some(pages) = next.take() {
        let (from, to) = (at % BLOCK, unit_end(at, end) - at / BLOCK * BLOCK);
        at = unit_end(at, end);
        if at == end {
            return send_pages(out, pipe, pages, from as usize, to as usize, false).await;
        }
        let sending = send_pages(out, pipe, pages, from as usize, to as usize, true);
        let (sent, read) = join(sending, read_unit(out, file, at, end)).await;
        sent?;
        next = Some(read?);
    }
    Ok(())
}

/// Where the unit that `at` lies in ends, or the range.
fn unit_end(at: u64, end: u64) -> u64 {
    end.min(at / BLOCK * BLOCK + UNIT_BYTES)
}

/// Reads a unit, by whole blocks.
async fn read_unit(out: &Outgoing<'_>, file: &SegmentFile, at: u64, end: u64) -> io::Result<Pages> {
    let direct = file.direct.as_ref().expect("what has no direct descriptor is carried by copy");
    let (first, wanted) = (at / BLOCK * BLOCK, unit_end(at, end));
    let bytes = (wanted - first).next_multiple_of(BLOCK) as usize;
    let pages = out.ring.read_pages(direct, first, bytes).await;
    let pages = pages.map_err(|e| file.explain("reading", first, &e))?;
    match first + pages.len() as u64 {
        read_to if read_to < wanted => Err(file.ends_early(read_to, wanted)),
        _ => Ok(pages),
    }
}

/// Sends `[from, to)` of `pages`, which are unmapped as soon as the pipe has all of them.
async fn send_pages(
    out: &Outgoing<'_>,
    pipe: &mut Pipe,
    pages: Pages,
    mut from: usize,
    to: usize,
    more: bool,
) -> io::Result<()> {
    loop {
        match out.ring.vmsplice(&pages, from..to, pipe) {
            Ok(taken) => from += taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if from == to {
            out.ring.unmap(pages);
            return out.drain(pipe, more).await;
        }
        out.drain(pipe, true).await?;
    }
}
