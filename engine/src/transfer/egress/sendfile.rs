//! `sendfile`: Kafka's way. The kernel puts page-cache pages into the socket's queue.
//!
//! The path of a byte: disk -(DMA)-> page cache =(sendfile)= socket -(DMA)-> card. No CPU copy where the card
//! gathers, one where it does not. The call waits for the disk when a page is not there, with the whole thread; so
//! residency is asked for first, and what is cold is brought in by a helper. There is no signal when the kernel has
//! let go of a page: only blocks that will never be written again may go this way. Right for what is in the page
//! cache, or wanted there by others too, in pieces that are not short.
//!
//! In the kernel: it is a splice with a pipe of the thread's own, of sixteen places: it looks up sixteen pages, 64
//! KiB, passes references to them to the socket (`MSG_SPLICE_PAGES`), and begins again. Who overwrites such a page
//! before the peer has the bytes changes what arrives; who cuts the file makes zeros of them.

use std::io;

use super::resident::Resident;
use super::{Declaration, Outgoing};
use crate::transfer::path::{BytePath, Place, dma, share};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "sendfile",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[dma("", Place::PageCache), share("sendfile", Place::Socket), dma("", Place::Card)],
    }),
    free_signal: FreeSignal::None,
    carries: PieceKinds { memory: false, file: true },
    needs: "segments written through the page cache, or no longer written at all",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("sendfile carries file pieces") };
    out.flush(true).await?;
    send_range(out, &file, at.0, at.0 + bytes).await
}

/// Also for those that find no pipe: it has one of its own, which costs no descriptor.
pub(super) async fn send_range(
    out: &mut Outgoing<'_>,
    file: &SegmentFile,
    mut at: u64,
    end: u64,
) -> io::Result<()> {
    let mut resident = Resident::unknown();
    while at < end {
        let bytes = resident.bytes_at(out, file, at, end).await?;
        match out.ring.sendfile(out.socket, &file.file, at, bytes) {
            Ok(0) => return Err(file.ends_early(at, end)),
            Ok(sent) => {
                out.note(|c| c.sends += 1);
                at += sent as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => out.ring.writable(out.socket).await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(file.explain("sending", at, &error)),
        }
    }
    Ok(())
}
