//! `copy`: copied into staging memory, written from there past the page cache (`O_DIRECT`).
//!
//! The path of a byte: socket -(CPU, recv)-> our memory -(CPU, copy)-> staging -(DMA)-> disk. Two CPU copies; the
//! second follows the checksum, so its source lies in the processor's cache. The staging memory is the tail cache:
//! readers close behind are served from it. Right for small batches and many connections; what is written when,
//! and what stays cached, is `staging`'s.

pub use super::staging::Stage;
use super::{Declaration, Receives};
use crate::transfer::plan::CopyProfile;

pub(super) const DECLARATION: Declaration = Declaration {
    name: "copy",
    profile: CopyProfile { cpu_copies: 2.0, user_copies: 1.0, shares_pages: false },
    direct: true,
    uncached: false,
    receives: Receives::Private,
    into_file: false,
    checks_payload: true,
    needs: "O_DIRECT on the data directory's file system",
};
