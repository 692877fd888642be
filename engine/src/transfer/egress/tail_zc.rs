//! `tail_zc`: from the tail cache, the very memory that the batch was written from, without a copy on the way out.
//!
//! The path of a byte: staging =(SEND_ZC)= socket -(DMA)-> card. No CPU copy where the card gathers. On loopback,
//! and where the card does not gather, the kernel copies late, when it delivers: one CPU copy and the cost of the
//! sharing on top, so that `tail` is not slower there; each release says whether it copied. One landing of the
//! bytes from socket to socket: fbufs (Druschel and Peterson, 1993), with the release as the message that gives a
//! buffer back.
//!
//! The tail cache may drop a block whose bytes are not released: the lease keeps it in the arena, counted as lent, and
//! nobody is given it. Right for readers close behind the writer, across a card that gathers, in large pieces. Protocol
//! bytes and pieces under 16 KiB are copied; file pieces go by `direct_zc`.
//!
//! In the kernel: as with `direct_zc`, one send completes twice. Between the two lies the peer's acknowledgement:
//! TCP may have to send the bytes again until then, from our pages.

use std::io;

use super::{Declaration, Outgoing};
use crate::transfer::path::{BytePath, Place, dma, share};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "tail_zc",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    path: Some(BytePath {
        from: Place::Staging,
        steps: &[share("SEND_ZC", Place::Socket), dma("", Place::Card)],
    }),
    free_signal: FreeSignal::Release,
    carries: PieceKinds { memory: true, file: false },
    needs: "an ingress that stages batches in memory; Linux 6.2 and a card that gathers: loopback copies late",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::Memory(lease) = piece else { unreachable!("tail_zc carries memory pieces") };
    out.add_records(lease, false).await
}
