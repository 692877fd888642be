//! `sendfile`: Kafka's way. The kernel puts page-cache pages into the socket's queue.
//!
//! The path of a byte: disk -(DMA)-> page cache = socket queue (shared page) -(DMA)-> card. No CPU copy where the card
//! gathers, one where it does not. The call waits for the disk when a page is not there, with the whole thread; so
//! residency is asked for first, and what is cold is brought in by a helper. There is no signal when the kernel
//! has let go of a page: only blocks that will never be written again may go this way.

use std::io;

use super::{Declaration, Outgoing};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "sendfile",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    free_signal: FreeSignal::None,
    carries: PieceKinds { memory: false, file: true },
    needs: "segments written through the page cache, or no longer written at all",
    delivers: true,
};

/// Asked about and sent at a time.
const UNIT_BYTES: u64 = 1 << 20;
/// Brought in at a time when cold: a device's worth of read-ahead.
const WARM_BYTES: u64 = 4 << 20;

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("sendfile carries file pieces") };
    out.flush(true).await?;
    let (mut at, end) = (at.0, at.0 + bytes);
    let mut resident_to = at;
    while at < end {
        if resident_to <= at {
            resident_to = end.min(at + UNIT_BYTES);
            if !out.ring.is_resident(&file.file, at, resident_to - at) {
                out.counters.note(out.egress, |c| c.cold_reads += 1);
                resident_to = end.min(at + WARM_BYTES);
                let warmed = out.ring.warm_cache(&file.file, at, resident_to).await;
                warmed.map_err(|e| file.explain("reading", at, &e))?;
            }
        }
        match out.ring.sendfile(out.socket, &file.file, at, resident_to - at) {
            Ok(0) => return Err(file.ends_early(at, end)),
            Ok(sent) => {
                out.counters.note(out.egress, |c| c.sends += 1);
                at += sent as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => out.ring.writable(out.socket).await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(file.explain("sending", at, &error)),
        }
    }
    Ok(())
}
