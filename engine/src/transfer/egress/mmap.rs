//! `mmap`: a sealed segment is mapped once, and sent from there.
//!
//! The path of a byte: disk -(DMA)-> page cache =(mmap)= our address space -(CPU, send)-> socket -(DMA)-> card. One
//! CPU copy: the one of `copy` that goes from the page cache to our memory is saved, for page faults on the first
//! way through. Right where bytes are read again and again, by several readers; what is read once gains nothing.
//!
//! Only sealed segments are mapped, by whoever opens them for readers, a bounded number at once; the active one, and
//! what could not be mapped, is carried by `copy` and counted. A page that is not in the cache would stop the whole
//! thread, so residency is asked for before each send, and what is cold is brought in by a helper. When another process
//! is about to change the file the map is given up in time, and the rest goes by `copy`; when it did not announce
//! itself, the send fails, or the file's stamp says so before the answer is complete.
//!
//! In the kernel: page tables point at the cache's own pages, and `send` copies from there as from any memory
//! (`_copy_from_iter`). The trap: when somebody cuts the file, nothing lies behind those addresses any more. A load
//! of ours would be a SIGBUS, which ends a process that is not prepared for it; `send` answers EFAULT.

use std::io;

use super::{Declaration, Egress, Outgoing, copy};
use crate::sys::MapState;
use crate::transfer::path::{BytePath, Place, copy, dma, map};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};
use crate::types::Position;

pub(super) const DECLARATION: Declaration = Declaration {
    name: "mmap",
    profile: CopyProfile { cpu_copies: 1.0, user_copies: 0.0, shares_pages: false },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[
            dma("", Place::PageCache),
            map("mmap", Place::Map),
            copy("send", Place::Socket),
            dma("", Place::Card),
        ],
    }),
    free_signal: FreeSignal::Completion,
    carries: PieceKinds { memory: false, file: true },
    needs: "a sealed segment; `copy` carries the active one and what could not be mapped",
    delivers: true,
};

/// Asked about and sent at a time.
const UNIT_BYTES: u64 = 1 << 20;
/// Brought in at a time when cold: a device's worth of read-ahead.
const WARM_BYTES: u64 = 4 << 20;

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("mmap carries file pieces") };
    // It had one when it was chosen; another thread may have given it up since.
    let Some(map) = file.map() else {
        out.hand_over(Egress::Copy, bytes);
        return copy::send_piece(out, Piece::File { file, at, bytes }).await;
    };
    out.flush(true).await?;
    let (mut at, end) = (at.0, at.0 + bytes);
    let mut resident_to = at;
    while at < end {
        let sent = match at < resident_to {
            true => out.ring.send_mapped(out.socket, &map, at, resident_to - at, true),
            false => {
                resident_to = end.min(at + UNIT_BYTES);
                if out.ring.is_resident(&file.file, at, resident_to - at) {
                    continue;
                }
                out.note(|c| c.cold_reads += 1);
                resident_to = end.min(at + WARM_BYTES);
                out.ring.populate(&file.file, &map, at, resident_to).await.map(|()| 0)
            }
        };
        match sent {
            Ok(sent) => {
                out.note(|c| c.sends += u64::from(sent > 0));
                at += sent as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                out.ring.writable(out.socket).await?;
                resident_to = at; // Who waited for a slow peer asks again what is still there.
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if map.state() == MapState::GivenUp => {
                let rest = end - at;
                out.hand_over(Egress::Copy, rest);
                return copy::send_piece(out, Piece::File { file, at: Position(at), bytes: rest }).await;
            }
            Err(error) => return Err(file.explain("sending from the map of", at, &error)),
        }
    }
    Ok(())
}
