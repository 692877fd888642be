//! `tail`: from the tail cache, the very memory that the batch was written from.
//!
//! The path of a byte: staging -(CPU, send)-> socket -(DMA)-> card. One CPU copy, no file, no page cache. Right for
//! readers close behind the writer. The idea is that of fbufs (Druschel and Peterson, 1993): one buffer that
//! travels through all layers, immutable once filled.
//!
//! In the kernel: one send takes a list of places in our memory and copies from them into pages of the socket's
//! (`_copy_from_iter`). When it completes the kernel has its own copy, and ours is free.

use std::io;

use super::{Declaration, Outgoing};
use crate::transfer::path::{BytePath, Place, copy, dma};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "tail",
    profile: CopyProfile { cpu_copies: 1.0, user_copies: 0.0, shares_pages: false },
    path: Some(BytePath {
        from: Place::Staging,
        steps: &[copy("send", Place::Socket), dma("", Place::Card)],
    }),
    free_signal: FreeSignal::Completion,
    carries: PieceKinds { memory: true, file: false },
    needs: "an ingress that stages batches in memory",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::Memory(lease) = piece else { unreachable!("tail carries memory pieces") };
    out.add_records(lease, false).await
}
