//! `splice`: from the file into a pipe, from the pipe into the socket, by `splice(2)`.
//!
//! The path of a byte: disk -(DMA)-> page cache = pipe = socket queue (shared page) -(DMA)-> card. No CPU copy where the
//! card gathers. It is what `sendfile` does inside, with the pipe in our own hands: it is larger, and what the socket
//! does not take stays in it. Two calls where `sendfile` needs one. As there, residency is asked for first, what is cold
//! is brought in by a helper, and only blocks that will never be written again may go this way: there is no signal when
//! the kernel has let go of a page. Where no pipe is to be had it is `sendfile`, counted.

use std::io;

use super::resident::Resident;
use super::{Declaration, Egress, Outgoing, sendfile};
use crate::sys::Pipe;
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "splice",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
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
