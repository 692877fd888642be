//! `in_place`: received straight into the staging memory that it is written from (`O_DIRECT`).
//!
//! The path of a byte: card -(DMA)-> socket -(CPU, recv)-> staging -(DMA, O_DIRECT)-> disk. One CPU copy, the
//! kernel's out of the socket. The connection learns from the head of a request where its batch belongs, reserves
//! the tail of that partition's staging and receives into it; the batch is checked and stamped where it lies. A
//! slow producer does not hold the tail: when somebody else waits for it too long, what has come is copied out and
//! the reservation given up.
//!
//! What comes otherwise is copied as `copy` does it, and counted: batches that are small, come several in one
//! request, belong to another core, or bear the log's own time; and of every batch the few bytes that were received
//! with the head. Right for large batches of few producers.
//!
//! In the kernel: `recv` copies out of the packets to wherever it is told: told the right place, nothing is left to
//! copy. The card wrote the packets where it liked, so that one copy stays.

pub use super::staging::Stage;
use super::{Declaration, Receives};
use crate::transfer::path::{BytePath, Place, copy, dma};
use crate::transfer::plan::CopyProfile;

pub(super) const DECLARATION: Declaration = Declaration {
    name: "in_place",
    profile: CopyProfile { cpu_copies: 1.0, user_copies: 0.0, shares_pages: false },
    path: BytePath {
        from: Place::Card,
        steps: &[dma("", Place::Socket), copy("recv", Place::Staging), dma("O_DIRECT", Place::Disk)],
    },
    direct: true,
    uncached: false,
    receives: Receives::InPlace,
    into_file: false,
    checks_payload: true,
    needs: "O_DIRECT on the data directory's file system; producers of large batches, one in a request",
};
