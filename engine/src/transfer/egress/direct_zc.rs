//! `direct_zc`: read past the page cache into registered memory, sent from there without a copy.
//!
//! The path of a byte: disk -(DMA, O_DIRECT)-> our memory =(SEND_ZC)= socket -(DMA)-> card. No CPU copy where the
//! card gathers. On loopback, and where the card does not gather, the kernel copies late, when it delivers: one CPU
//! copy and the cost of the sharing on top; each release says whether it copied. It reads as `direct` does; a
//! unit's memory comes back when the peer has acknowledged it, so a slow peer makes us hold more of it than
//! `direct` would.
//!
//! Right for catching up across a card that gathers. Memory pieces go by `tail_zc`.
//!
//! In the kernel: `SEND_ZC` puts the registered pages themselves into the packets. It completes twice: when the
//! bytes are queued, and when no packet needs the pages any more, which is the release. A packet for the loopback
//! would be given to the receiver with our pages in it, so they are copied first (`skb_copy_ubufs`), and the
//! release says that.

use std::io;

use super::{Declaration, Outgoing, direct};
use crate::transfer::path::{BytePath, Place, dma, share};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "direct_zc",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[dma("O_DIRECT", Place::Memory), share("SEND_ZC", Place::Socket), dma("", Place::Card)],
    }),
    free_signal: FreeSignal::Release,
    carries: PieceKinds { memory: false, file: true },
    needs: "O_DIRECT on the data directory's file system; Linux 6.2 and a card that gathers: loopback copies late",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    direct::send_piece(out, piece).await
}
