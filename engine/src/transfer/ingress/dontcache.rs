//! `dontcache`: as `buffered`, and what is written leaves the page cache as soon as it is on the disk (`RWF_DONTCACHE`).
//!
//! The path of a byte: card -(DMA)-> socket -(CPU, recv)-> our memory -(CPU, write)-> page cache -(DMA, at once)->
//! disk. Then the page is free again. Two CPU copies, none of them ours. The kernel begins to write back with the
//! write itself, so dirty pages do not pile up, and a log that is only appended to pushes nothing of anybody else's
//! out of the cache.
//!
//! Right for logs that are read late or never, on machines whose memory is full. A reader at the tail finds the
//! page only if it comes before the write-back is through; then it keeps it in the cache, and whoever comes later
//! reads the disk.
//!
//! Where kernel (before 6.14) or file system know no such write it is an ordinary one, said at the start and counted.
//!
//! In the kernel: an ordinary buffered write whose new pages bear a mark: writing back begins with the write, and
//! when it has ended pages that nobody else asked for leave the cache.

pub use super::buffered::Stage;
use super::{Declaration, Receives};
use crate::transfer::path::{BytePath, Place, copy, dma};
use crate::transfer::plan::CopyProfile;

pub(super) const DECLARATION: Declaration = Declaration {
    name: "dontcache",
    profile: CopyProfile { cpu_copies: 2.0, user_copies: 0.0, shares_pages: false },
    path: BytePath {
        from: Place::Card,
        steps: &[
            dma("", Place::Socket),
            copy("recv", Place::Memory),
            copy("write", Place::PageCache),
            dma("at once", Place::Disk),
        ],
    },
    direct: false,
    uncached: true,
    receives: Receives::Private,
    into_file: false,
    checks_payload: true,
    needs: "RWF_DONTCACHE: Linux 6.14, and a file system that knows it (ext4, XFS, btrfs)",
};
