//! Ingress: accepted batches to the segment file, by one strategy of the list.
//!
//! A partition has one [`Staged`]: what was accepted and is not yet written, and (where the strategy stages in memory
//! of its own) the tail cache. It says what to write next and keeps the memory until that is done; the shard does
//! the writing, one unit at a time, so that the next unit gathers meanwhile: that is the group commit.

mod buffered;
mod copy;
mod dontcache;
mod in_place;
mod mapped;
mod provided;
mod spliced;
mod staging;

use std::fmt;
use std::str::FromStr;

pub use self::spliced::{Filled, Passage};
pub use self::staging::Slot;
use super::path::BytePath;
use super::plan::CopyProfile;
use crate::log::LogPoint;
use crate::sys::{Gather, Lease, LeaseMut, Moment};
use crate::types::{Offset, Position};

/// What a strategy declares about itself.
pub(super) struct Declaration {
    name: &'static str,
    profile: CopyProfile,
    /// Its steps: as many copies as the profile says.
    path: BytePath,
    direct: bool,
    /// Whether what it writes leaves the page cache as soon as it is on the disk.
    uncached: bool,
    receives: Receives,
    /// Whether that is the file itself: nobody may cut it while somebody receives.
    into_file: bool,
    /// Whether every byte of a batch is looked at before it is accepted.
    checks_payload: bool,
    needs: &'static str,
}

/// Where connections receive batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receives {
    /// Into memory of their own.
    Private,
    /// Into the memory that they are written from, where it pays.
    InPlace,
    /// Into buffers that all connections share.
    Provided,
    /// Through a pipe into the file, where it pays.
    Spliced,
}

/// The one list. A strategy is a file with `DECLARATION` and a `Stage`, and a line here.
macro_rules! strategies {
    ($($(#[$doc:meta])* $variant:ident => $module:ident,)*) => {
        /// A way of moving accepted batches into the segment file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Ingress {
            $($(#[$doc])* $variant,)*
        }

        impl Ingress {
            /// Every strategy there is.
            pub const ALL: &'static [Ingress] = &[$(Ingress::$variant,)*];

            fn declaration(self) -> &'static Declaration {
                match self {
                    $(Ingress::$variant => &$module::DECLARATION,)*
                }
            }
        }

        /// What one partition has accepted and not yet written, and its tail cache.
        pub enum Staged {
            $($(#[$doc])* $variant($module::Stage),)*
        }

        impl Staged {
            /// An empty one; writing goes on at `position` of `segment`.
            #[must_use]
            pub fn new(ingress: Ingress, end: LogPoint) -> Staged {
                match ingress {
                    $(Ingress::$variant => Staged::$variant($module::Stage::new(end)),)*
                }
            }

            /// What is missing before a batch of `bytes` can be accepted at `start`.
            #[must_use]
            pub fn need(&self, start: LogPoint, bytes: usize) -> Need {
                match self {
                    $(Staged::$variant(stage) => stage.need(start, bytes),)*
                }
            }

            /// Supplies memory, as [`Staged::need`] asked.
            pub fn supply(&mut self, memory: LeaseMut) {
                match self {
                    $(Staged::$variant(stage) => stage.supply(memory),)*
                }
            }

            /// Supplies the block that the log end lies in, read back from the file, as [`Staged::need`] asked.
            pub fn prime(&mut self, end: LogPoint, block: LeaseMut) {
                match self {
                    $(Staged::$variant(stage) => stage.prime(end, block),)*
                }
            }

            /// Accepts a batch that lies at `start` and ends at `end`. Returns how many bytes were copied.
            ///
            /// # Panics
            /// When [`Staged::need`] still asks for something, or the batch does not continue the last one.
            pub fn accept(&mut self, batch: Lease, start: LogPoint, end: LogPoint, now: Moment) -> u64 {
                match self {
                    $(Staged::$variant(stage) => stage.accept(batch, start, end, now),)*
                }
            }

            /// Memory for a batch of `bytes` at the end, `start`, for a connection to receive into; nothing else may be
            /// accepted before it comes back.
            ///
            /// # Panics
            /// When [`Staged::need`] still asks for something, or the strategy does not receive in place.
            #[must_use]
            pub fn reserve(&mut self, start: LogPoint, bytes: usize) -> Slot {
                match self {
                    $(Staged::$variant(stage) => stage.reserve(start, bytes),)*
                }
            }

            /// A slot comes back unused.
            pub fn release(&mut self, slot: Slot) {
                match self {
                    $(Staged::$variant(stage) => stage.release(slot),)*
                }
            }

            /// A slot comes back with its batch, which ends at `end`.
            pub fn accept_in_place(&mut self, slot: Slot, end: LogPoint, now: Moment) {
                match self {
                    $(Staged::$variant(stage) => stage.accept_in_place(slot, end, now),)*
                }
            }

            /// What to write next, of batches that end at or below `limit`; `None` when all of them are. One unit at a time:
            /// the next only after [`Staged::finish_unit`]. A strategy that does not stage takes whatever waits: nothing of
            /// it waits for longer than its turn.
            #[must_use]
            pub fn take_unit(&mut self, limit: LogPoint) -> Option<WriteUnit> {
                match self {
                    $(Staged::$variant(stage) => stage.take_unit(limit),)*
                }
            }

            /// The unit is written: its memory comes back, for the cache or for release.
            pub fn finish_unit(&mut self, unit: WriteUnit) {
                match self {
                    $(Staged::$variant(stage) => stage.finish_unit(unit),)*
                }
            }

            /// The leases that hold `[from, to)` of `segment`, as far as the cache reaches back: calls `take` for
            /// each in order, and says where the first began (`to` when nothing is there).
            pub fn memory(&self, segment: Offset, from: Position, to: Position, take: &mut dyn FnMut(Lease)) -> Position {
                match self {
                    $(Staged::$variant(stage) => stage.memory(segment, from, to, take),)*
                }
            }

            /// Up to where the file of `segment` holds blocks that completed units wrote and that will never be written
            /// again. What is visible and lies behind that is in memory.
            #[must_use]
            pub fn file_limit(&self, segment: Offset) -> Position {
                match self {
                    $(Staged::$variant(stage) => stage.file_limit(segment),)*
                }
            }

            /// Bytes of memory held.
            #[must_use]
            pub fn memory_bytes(&self) -> usize {
                match self {
                    $(Staged::$variant(stage) => stage.memory_bytes(),)*
                }
            }

            /// Lets go of the oldest written memory. False when there is none to let go.
            pub fn evict_oldest(&mut self) -> bool {
                match self {
                    $(Staged::$variant(stage) => stage.evict_oldest(),)*
                }
            }
        }
    };
}

strategies! {
    /// From where it was received through the page cache: Kafka's way.
    Buffered => buffered,
    /// Copied to staging memory, written from there past the page cache.
    Copy => copy,
    /// As buffered, and dropped from the page cache as soon as it is on the disk.
    Dontcache => dontcache,
    /// Received into staging memory, written from there past the page cache.
    InPlace => in_place,
    /// Received into the mapped end of the segment file.
    Mapped => mapped,
    /// Received into shared buffers, gathered into staging memory, written from there past the page cache.
    Provided => provided,
    /// Through a pipe into the segment file, unseen: for trusted producers only.
    Spliced => spliced,
}

/// What a stage lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// A lease of this many bytes.
    Memory(usize),
    /// The block of the file at this position, read back: the log ends within it.
    Block(Position),
    /// So many bytes of the file, mapped.
    Window {
        /// The segment.
        segment: Offset,
        /// Where in its file, in whole pages.
        at: Position,
        /// How many.
        bytes: usize,
    },
}

/// One round of writes of one partition: all in one segment, all at once.
pub struct WriteUnit {
    /// The segment they go to.
    pub segment: Offset,
    /// Where, and what.
    pub writes: [Option<(Position, WriteData)>; 4],
    /// The last batch boundary that is written when all of them are; `None` within one very large batch.
    pub end: Option<LogPoint>,
    /// When the oldest byte of it was accepted.
    pub accepted: Moment,
    /// Of what is written, bytes that were copied for it: those of the block that is shared with the next unit.
    pub copied_bytes: u64,
}

/// What one write writes.
pub enum WriteData {
    /// One lease.
    One(Lease),
    /// Several, one behind the other.
    Many(Gather),
    /// Several that are the file's own memory already.
    Stored(Gather),
}

impl WriteData {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            WriteData::One(lease) => lease.len(),
            WriteData::Many(gather) | WriteData::Stored(gather) => gather.bytes(),
        }
    }
}

impl Staged {
    /// What is to be mapped ahead of need, where the log ends at `start`.
    #[must_use]
    pub fn need_ahead(&self, start: LogPoint) -> Need {
        match self {
            Staged::Mapped(stage) => stage.need_ahead(start),
            _ => Need::Nothing,
        }
    }

    /// Supplies a window that begins at `at`, as [`Staged::need`] or [`Staged::need_ahead`] asked; the log ends at `start`.
    pub fn supply_window(&mut self, start: LogPoint, at: Position, memory: LeaseMut) {
        if let Staged::Mapped(stage) = self {
            stage.supply_window(start, at, memory);
        }
    }

    /// A slot comes back whose batch, up to `end`, is in the file but for the first bytes, `head`.
    ///
    /// # Panics
    /// When the strategy does not receive through pipes.
    pub fn accept_head(&mut self, slot: &Slot, head: Lease, end: LogPoint, now: Moment) {
        match self {
            Staged::Spliced(stage) => stage.accept_head(head, slot.start(), end, now),
            _ => unreachable!("batches go through our memory"),
        }
    }
}

impl Ingress {
    /// Its name on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.declaration().name
    }

    /// The copies it declares, from the producer's socket to the segment file.
    #[must_use]
    pub fn profile(self) -> CopyProfile {
        self.declaration().profile
    }

    /// The path of a byte.
    #[must_use]
    pub fn path(self) -> BytePath {
        self.declaration().path
    }

    /// Whether it writes past the page cache.
    #[must_use]
    pub fn is_direct(self) -> bool {
        self.declaration().direct
    }

    /// Whether what it writes leaves the page cache as soon as it is on the disk.
    #[must_use]
    pub fn is_uncached(self) -> bool {
        self.declaration().uncached
    }

    /// Where connections receive batches.
    #[must_use]
    pub fn receives(self) -> Receives {
        self.declaration().receives
    }

    /// Whether connections receive into the file itself: nobody may cut it while somebody does.
    #[must_use]
    pub fn receives_into_file(self) -> bool {
        self.declaration().into_file
    }

    /// Whether every byte of a batch is looked at before it is accepted: its checksum is. One that does not look is for
    /// producers that are trusted.
    #[must_use]
    pub fn checks_payload(self) -> bool {
        self.declaration().checks_payload
    }

    /// What it needs, in words.
    #[must_use]
    pub fn needs(self) -> &'static str {
        self.declaration().needs
    }
}

impl fmt::Display for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Ingress {
    type Err = String;

    fn from_str(name: &str) -> Result<Ingress, String> {
        let known = || Ingress::ALL.iter().map(|i| i.name()).collect::<Vec<_>>().join(", ");
        let found = Ingress::ALL.iter().copied().find(|i| i.name() == name);
        found.ok_or_else(|| format!("there is no ingress strategy \"{name}\"; there are {}", known()))
    }
}
