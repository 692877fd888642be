//! `splice`: from the file into a pipe, from the pipe into the socket, by `splice(2)`.
//!
//! The path of a byte: disk -(DMA)-> page cache =(splice)= pipe =(splice)= socket -(DMA)-> card. No CPU copy where
//! the card gathers. It is what `sendfile` does inside, with the pipe in our own hands: it is larger, and what the
//! socket does not take stays in it. Two calls where `sendfile` needs one. Right where `sendfile` is, in large
//! pieces to peers that stop and go. As there, residency is asked for first, what is cold is brought in by a
//! helper, and only blocks that will never be written again may go this way: there is no signal when the kernel has
//! let go of a page. Where no pipe is to be had it is `sendfile`, counted.
//!
//! In the kernel: a pipe is a row of places, each with a reference to a page; filling it from a file looks pages up
//! and copies none. Ours has up to 256 places where `sendfile` has sixteen, but the socket takes sixteen pages at a
//! time from it all the same.

use std::io;

use super::resident::Resident;
use super::{Declaration, Egress, Outgoing, sendfile};
use crate::sys::Pipe;
use crate::transfer::path::{BytePath, Place, dma, share};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "splice",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[
            dma("", Place::PageCache),
            share("splice", Place::Pipe),
            share("splice", Place::Socket),
            dma("", Place::Card),
        ],
    }),
    free_signal: FreeSignal::None,
    carries: PieceKinds { memory: false, file: true },
    needs: "segments written through the page cache, or no longer written at all; a pipe",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("splice carries file pieces") };
    out.flush(true).await?;
    let Some(mut pipe) = out.take_pipe()? else {
        out.hand_over(Egress::Sendfile, bytes);
        return sendfile::send_range(out, &file, at.0, at.0 + bytes).await;
    };
    send_range(out, &mut pipe, &file, at.0, at.0 + bytes).await?;
    // After an error it is closed instead: what it holds belongs to an answer that will never be whole.
    out.ring.give_pipe(pipe);
    Ok(())
}

pub(super) async fn send_range(
    out: &mut Outgoing<'_>,
    pipe: &mut Pipe,
    file: &SegmentFile,
    mut at: u64,
    end: u64,
) -> io::Result<()> {
    let mut resident = Resident::unknown();
    while at < end {
        let bytes = resident.bytes_at(out, file, at, end).await?;
        match out.ring.splice_in(&file.file, at, bytes as usize, pipe) {
            Ok(0) => return Err(file.ends_early(at, end)),
            Ok(taken) => at += taken as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(file.explain("reading", at, &error)),
        }
        out.drain(pipe, at < end).await?;
    }
    Ok(())
}
