//! `tee`: a range that many read is taken from the file once, into a pipe, and shared with each by `tee(2)`.
//!
//! The path of a byte: disk -(DMA)-> page cache =(splice)= master pipe =(tee)= pipe =(splice)= socket -(DMA)->
//! card. No CPU copy where the card gathers. The shard keeps pipes that each hold one unit of a segment,
//! [`UNIT_BYTES`] from a multiple of it on; a reader tees the units it wants into its own pipe, throws away what
//! lies before its first byte (to /dev/null: nothing is copied) and splices the rest to its socket.
//!
//! Right for many readers of the same range at about the same time: residency is asked for once, the pages are looked up
//! once, and pages in a master stay in the cache while others come. A reader alone pays three
//! calls for each unit (an old master is emptied, filled, and shared) where `splice` makes one for a mebibyte. A reader that stalls holds the pages in its own pipe and its socket, never a master: those stay and go by
//! use. As with `splice`, there is no signal when the kernel has let go of a page, so only blocks that will never be
//! written again go this way. What finds no pipe goes by `splice`, or by `sendfile` where not even a reader's own is to
//! be had; both are counted.
//!
//! In the kernel: `tee(2)` puts references to the pages of one pipe into another; no byte moves, and both pipes
//! hold what they held. A page is free when the last pipe and the last socket has let go of it.

use std::io;

use super::masters::{self, UNIT_BYTES};
use super::resident::Resident;
use super::{Declaration, Egress, Outgoing, sendfile, splice};
use crate::sys::Pipe;
use crate::transfer::path::{BytePath, Place, dma, share};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "tee",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[
            dma("", Place::PageCache),
            share("splice", Place::MasterPipe),
            share("tee", Place::Pipe),
            share("splice", Place::Socket),
            dma("", Place::Card),
        ],
    }),
    free_signal: FreeSignal::None,
    carries: PieceKinds { memory: false, file: true },
    needs: "segments written through the page cache, or no longer written at all; pipes",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("tee carries file pieces") };
    out.flush(true).await?;
    let Some(mut pipe) = out.take_pipe()? else {
        out.hand_over(Egress::Sendfile, bytes);
        return sendfile::send_range(out, &file, at.0, at.0 + bytes).await;
    };
    let (at, end) = (at.0, at.0 + bytes);
    if pipe.capacity() < masters::PIPE_BYTES {
        out.hand_over(Egress::Splice, bytes); // What lies before the first byte would fill it.
        splice::send_range(out, &mut pipe, &file, at, end).await?;
    } else {
        send_range(out, &mut pipe, &file, at, end).await?;
    }
    out.ring.give_pipe(pipe);
    Ok(())
}

async fn send_range(
    out: &mut Outgoing<'_>,
    pipe: &mut Pipe,
    file: &SegmentFile,
    mut at: u64,
    end: u64,
) -> io::Result<()> {
    let (masters, id) = (&out.transfers.masters, file.file.id());
    let mut resident = Resident::unknown();
    while at < end {
        let unit = at / UNIT_BYTES * UNIT_BYTES;
        let (before, wanted) = (at - unit, end.min(unit + UNIT_BYTES) - unit);
        // Several units leave together, but what lies before the first byte is taken off the front.
        if pipe.held() >= pipe.capacity() / 2 || pipe.held() > 0 && before > 0 {
            out.drain(pipe, true).await?;
        }
        let mut known = masters.held(&id, unit);
        while known < wanted {
            known += resident.bytes_at(out, file, unit + known, end).await?;
        }
        // From here to the tee nobody else has a turn.
        let shared = masters.held(&id, unit) >= wanted;
        if !shared && !masters.fill(out.ring, file, unit, wanted)? {
            out.drain(pipe, true).await?;
            out.hand_over(Egress::Splice, end - at);
            return splice::send_range(out, pipe, file, at, end).await;
        }
        match masters.tee(out.ring, &id, unit, wanted, pipe) {
            Ok(taken) => {
                out.ring.discard(pipe, taken.min(before) as usize)?;
                at = at.max(unit + taken);
                out.note(|c| c.shared_reads += u64::from(shared));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => out.drain(pipe, true).await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(file.explain("sharing", at, &error)),
        }
    }
    out.drain(pipe, false).await
}
