//! `direct_zc`: read past the page cache into registered memory, sent from there without a copy.
//!
//! The path of a byte: disk -(DMA)-> our memory = socket queue (shared page) -(DMA)-> card. No CPU copy where the card
//! gathers. On loopback, and where the card does not gather, the kernel copies late, when it delivers: one CPU copy and the
//! cost of the sharing on top; each release says whether it copied. It reads as `direct` does; a unit's memory comes back
//! when the peer has acknowledged it, so a slow peer makes us hold more of it than `direct` would.
//!
//! Right for catching up across a card that gathers. Memory pieces go by `tail_zc`.

use std::io;

use super::{Declaration, Outgoing, direct};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "direct_zc",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    free_signal: FreeSignal::Release,
    carries: PieceKinds { memory: false, file: true },
    needs: "O_DIRECT on the data directory's file system; Linux 6.2 and a card that gathers: loopback copies late",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    direct::send_piece(out, piece).await
}
