//! `copy`: copied into staging memory, written from there past the page cache (`O_DIRECT`).
//!
//! The path of a byte: card -(DMA)-> socket -(CPU, recv)-> our memory -(CPU, our copy)-> staging -(DMA, O_DIRECT)->
//! disk. Two CPU copies; the second follows the checksum, so its source lies in the processor's cache. The staging
//! memory is the tail cache: readers close behind are served from it. Right for small batches and many connections;
//! what is written when, and what stays cached, is `staging`'s.
//!
//! In the kernel: one copy, out of the packets. The write past the page cache gives the device the addresses of our
//! pages; it wants whole blocks, and room that was prepared: a write that makes a file longer takes the file for
//! itself, and others wait.

pub use super::staging::Stage;
use super::{Declaration, Receives};
use crate::transfer::path::{BytePath, Place, copy, dma, own_copy};
use crate::transfer::plan::CopyProfile;

pub(super) const DECLARATION: Declaration = Declaration {
    name: "copy",
    profile: CopyProfile { cpu_copies: 2.0, user_copies: 1.0, shares_pages: false },
    path: BytePath {
        from: Place::Card,
        steps: &[
            dma("", Place::Socket),
            copy("recv", Place::Memory),
            own_copy("our copy", Place::Staging),
            dma("O_DIRECT", Place::Disk),
        ],
    },
    direct: true,
    uncached: false,
    receives: Receives::Private,
    into_file: false,
    checks_payload: true,
    needs: "O_DIRECT on the data directory's file system",
};
