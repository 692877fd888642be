//! `tail`: from the tail cache, the very memory that the batch was written from.
//!
//! The path of a byte: our memory -(CPU, send)-> socket -(DMA)-> card. One CPU copy, no file, no page cache. For
//! readers close behind the writer. The idea is that of fbufs (Druschel and Peterson, 1993): one buffer that
//! travels through all layers, immutable once filled.

use std::io;

use super::{Declaration, Outgoing};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "tail",
    profile: CopyProfile { cpu_copies: 1.0, user_copies: 0.0, shares_pages: false },
    free_signal: FreeSignal::Completion,
    carries: PieceKinds { memory: true, file: false },
    needs: "an ingress that stages batches in memory",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::Memory(lease) = piece else { unreachable!("tail carries memory pieces") };
    out.add_records(lease, false).await
}
