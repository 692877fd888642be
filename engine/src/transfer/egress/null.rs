//! `null`: discards record bytes. The example to start a strategy from, and what serving costs without any bytes.
//!
//! The path of a byte: nowhere. No copy, no DMA; protocol bytes go out as always, so an answer promises records
//! that never come. No client can read that: [`super::Egress::delivers`] is false, brokers and loads refuse it, and
//! only benchmarks and floors, which know what they asked for, use it: right for them and for nobody else.
//!
//! In the kernel: only the sends of the protocol bytes.

use std::io;

use super::{Declaration, Outgoing};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "null",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: false },
    path: None,
    free_signal: FreeSignal::Completion,
    carries: PieceKinds { memory: true, file: true },
    needs: "nobody who waits for the bytes",
    delivers: false,
};

// Every strategy has this shape; the others wait for something.
#[allow(clippy::unused_async)]
pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    drop(piece);
    out.note(|c| c.sends += 1);
    Ok(())
}
