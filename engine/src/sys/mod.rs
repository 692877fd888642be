//! The world, behind one seam: operations as futures, memory as leases, a clock.
//!
//! [`Ring`] is all that the rest of the engine sees. Two drivers carry out its closed set of operations (`op`):
//! `uring`, the kernel; `sim`, a deterministic world made from one seed. This is the only place with `unsafe`, and the
//! only one that reads a clock, draws a random number, spawns a thread, opens a file or calls a socket.
#![allow(unsafe_code)]

mod arena;
mod capabilities;
mod clock;
mod flushes;
mod gather;
mod guard;
mod incoming;
mod lending;
mod mailbox;
mod map;
mod op;
mod pages;
mod pipe;
pub mod probe;
mod refusal;
mod residency;
mod ring;
#[cfg(test)]
mod ring_tests;
pub mod sim;
mod stamp;
mod task;
pub mod topology;
mod uring;
mod write_map;

pub use arena::{Arena, ArenaUse, BLOCK_CLASSES, LEASE_BYTES_MAX, Lease, LeaseMut, PageKind};
pub use capabilities::Capabilities;
pub use clock::Moment;
pub use flushes::{Flushes, flushes_of};
pub use gather::{GATHER_MAX, Gather};
pub use guard::GUARDED_MAPS_MAX;
pub use incoming::{Arrived, Incoming, PROVIDED_BUFFERS, PROVIDED_BYTES, PROVIDED_ROOM};
pub use lending::{Lending, UNRELEASED_BYTES_MAX, ZeroCopyUse};
pub use mailbox::Mailbox;
pub use map::{FileMap, MapState};
pub use op::{DirEntry, DirLock, File, FileId, Listener, OpenOptions, SharedFile, Socket};
pub use pages::Pages;
pub use pipe::{PIPE_BYTES, PIPES_KEPT_MAX, Pipe};
pub use refusal::{is_failed_flush, is_passing};
pub use residency::{Residency, residency};
pub use ring::{Done, OPS_IN_FLIGHT_MAX, Ring, RingCounters, Timer};
pub use stamp::FileStamp;
pub use task::{Executor, TASKS_MAX};
pub use uring::{AddressClaim, SPLICE_WORKERS_MAX, Setup, SqPoll, UringError, UringOptions};

/// What direct reads and writes are aligned to, in memory and in the file: the largest of what devices ask for.
pub const BLOCK_BYTES: usize = 4096;
