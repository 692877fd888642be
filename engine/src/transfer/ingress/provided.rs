//! `provided`: a standing receive a connection into buffers that all connections share, gathered into staging.
//!
//! The path of a byte: card -(DMA)-> socket -(CPU, recv)-> our memory -(CPU, our copy)-> staging -(DMA, O_DIRECT)->
//! disk. Two CPU copies, the second one ours. No receive is submitted for a batch: the kernel takes the next buffer
//! when bytes are there, so an idle connection holds no memory, and a busy one costs no submission.
//!
//! A batch that lies whole in one buffer is checked there and copied to staging; one that spans several is gathered from
//! them straight into staging once all of it has come, so a slow producer never holds the tail of a partition. What has to
//! be joined first is copied once more, and counted: smaller batches across two buffers, several of them in one request,
//! batches of another core. The kernel decides where in a buffer bytes land, so direct writes from there, which must be
//! aligned in memory as in the file, are not to be had: one copy would need the bytes to lie where they belong, and that
//! is what `in_place` does.
//!
//! Right for many connections that are mostly idle. Where few are busy, `copy` does the same with receives as large
//! as their requests, and `in_place` saves the copy.
//!
//! In the kernel: a receive that stands (multishot) waits on the socket; when bytes are there the kernel takes the
//! next buffer of the ring that we share, copies out of the packets into it, and completes. It goes on standing.

pub use super::staging::Stage;
use super::{Declaration, Receives};
use crate::transfer::path::{BytePath, Place, copy, dma, own_copy};
use crate::transfer::plan::CopyProfile;

pub(super) const DECLARATION: Declaration = Declaration {
    name: "provided",
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
    receives: Receives::Provided,
    into_file: false,
    checks_payload: true,
    needs: "Linux 6.0 (standing receives into provided buffers); O_DIRECT on the data directory's file system",
};
