//! The path of a byte, as data: from place to place, and what moves it.
//!
//! A strategy declares its own beside its copies; pictures, the guide and command lines show what is declared here, and
//! the text at the head of the strategy's file is held against it. Written out, `copy` on the way out is
//! `disk -(DMA)-> page cache -(CPU, read)-> our memory -(CPU, send)-> socket -(DMA)-> card`: an arrow moves a byte, by a
//! device or by the CPU; `=(mmap)=` and `=(sendfile)=` move nothing, the same memory is in two places. What the link adds
//! (loopback, a card that does not gather) is not in it: as with the copies declared, the card gathers.

use std::fmt;

/// Where a byte can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The network card.
    Card,
    /// A socket's queue in the kernel.
    Socket,
    /// A pipe of one transfer: references to pages.
    Pipe,
    /// A pipe that is filled once and shared with many.
    MasterPipe,
    /// The arena, or pages for one use.
    Memory,
    /// The part of the arena that batches are written from; afterwards it is the tail cache.
    Staging,
    /// A file's pages as a map shows them to us.
    Map,
    /// The kernel's memory for files.
    PageCache,
    /// The disk.
    Disk,
}

impl Place {
    /// Its name in texts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Place::Card => "card",
            Place::Socket => "socket",
            Place::Pipe => "pipe",
            Place::MasterPipe => "master pipe",
            Place::Memory => "our memory",
            Place::Staging => "staging",
            Place::Map => "our address space",
            Place::PageCache => "page cache",
            Place::Disk => "disk",
        }
    }
}

/// How a byte comes to its next place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A device writes or reads memory by itself: no copy of the CPU's.
    Dma,
    /// The CPU copies, within a call of the kernel's.
    Copy,
    /// The CPU copies, in our own code.
    OwnCopy,
    /// A reference to the page is passed on: nothing is copied.
    Share,
    /// The page is mapped: nothing is copied.
    Map,
}

/// One step of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How.
    pub kind: Kind,
    /// By which call, or when; empty where there is nothing to add.
    pub by: &'static str,
    /// Where the byte is then.
    pub to: Place,
}

/// The way of a byte through a strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytePath {
    /// Where it begins.
    pub from: Place,
    /// From place to place.
    pub steps: &'static [Step],
}

/// A step of a device's.
pub(super) const fn dma(by: &'static str, to: Place) -> Step {
    Step { kind: Kind::Dma, by, to }
}

/// A copy made by the kernel in a call.
pub(super) const fn copy(by: &'static str, to: Place) -> Step {
    Step { kind: Kind::Copy, by, to }
}

/// A copy made by ourselves.
pub(super) const fn own_copy(by: &'static str, to: Place) -> Step {
    Step { kind: Kind::OwnCopy, by, to }
}

/// A page passed on.
pub(super) const fn share(by: &'static str, to: Place) -> Step {
    Step { kind: Kind::Share, by, to }
}

/// A page mapped.
pub(super) const fn map(by: &'static str, to: Place) -> Step {
    Step { kind: Kind::Map, by, to }
}

impl Kind {
    /// Whether the CPU copies.
    #[must_use]
    pub fn is_copy(self) -> bool {
        matches!(self, Kind::Copy | Kind::OwnCopy)
    }
}

impl BytePath {
    /// The same without what comes before `place`, where it leads through it.
    #[must_use]
    pub fn beginning_at(self, place: Place) -> BytePath {
        match self.steps.iter().position(|step| step.to == place) {
            Some(reached) => BytePath { from: place, steps: &self.steps[reached + 1..] },
            None => self,
        }
    }

    /// Whether the byte is ever there.
    #[must_use]
    pub fn visits(self, place: Place) -> bool {
        self.from == place || self.steps.iter().any(|step| step.to == place)
    }
}

impl fmt::Display for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.from.name())?;
        for Step { kind, by, to } in self.steps {
            let place = to.name();
            match (kind, *by) {
                (Kind::Dma, "") => write!(f, " -(DMA)-> {place}")?,
                (Kind::Dma, by) => write!(f, " -(DMA, {by})-> {place}")?,
                (Kind::Copy | Kind::OwnCopy, by) => write!(f, " -(CPU, {by})-> {place}")?,
                (Kind::Share | Kind::Map, by) => write!(f, " =({by})= {place}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{CopyProfile, Egress, Ingress};

    /// Name, directory, copies declared, path; what the text says where there is none.
    fn all() -> Vec<(&'static str, &'static str, CopyProfile, Option<BytePath>, &'static str)> {
        let ways_in = Ingress::ALL.iter().map(|i| (i.name(), "ingress", i.profile(), Some(i.path()), ""));
        let without = |e: &Egress| if e.chooses() { "as chosen" } else { "nowhere" };
        let ways_out = Egress::ALL.iter().map(|e| (e.name(), "egress", e.profile(), e.path(), without(e)));
        ways_in.chain(ways_out).collect()
    }

    #[test]
    fn a_path_has_as_many_copies_as_are_declared() {
        for (name, direction, profile, path, _) in all() {
            let Some(path) = path else {
                assert!(profile.cpu_copies.is_nan() || profile.cpu_copies == 0.0, "{direction} {name}");
                continue;
            };
            let count = |kind: fn(Kind) -> bool| path.steps.iter().filter(|s| kind(s.kind)).count() as f64;
            assert_eq!(count(Kind::is_copy), profile.cpu_copies, "{direction} {name}: {path}");
            assert_eq!(
                count(|kind| kind == Kind::OwnCopy),
                profile.user_copies,
                "{direction} {name}: {path}"
            );
            // On the way in a page may be passed on and copied later; what is passed on to a socket is shared with its peer.
            let passed_on = |step: &&Step| step.kind == Kind::Share;
            let mut shared = path.steps.iter().filter(passed_on);
            assert!(!profile.shares_pages || shared.clone().count() > 0, "{direction} {name}: {path}");
            let with_peer = shared.any(|step| step.to == Place::Socket);
            assert!(profile.shares_pages || !with_peer, "{direction} {name}: {path}");
        }
    }

    #[test]
    fn ways_in_lead_from_card_to_disk_and_ways_out_to_the_card() {
        for (name, direction, _, path, _) in all() {
            let Some(path) = path else { continue };
            let last = path.steps.last().map(|step| step.to);
            match direction {
                "ingress" => assert_eq!((path.from, last), (Place::Card, Some(Place::Disk)), "{name}"),
                _ => {
                    let from_memory = path.from == Place::Staging;
                    assert!(from_memory || path.from == Place::Disk, "{name}: {path}");
                    assert_eq!(last, Some(Place::Card), "{name}: {path}");
                }
            }
        }
    }

    #[test]
    fn the_head_of_each_strategys_file_says_what_its_path_is() {
        for (name, direction, _, path, without) in all() {
            let file = format!("{}/src/transfer/{direction}/{name}.rs", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&file).unwrap();
            let head: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).collect();
            let head = head.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
            let path = path.map_or_else(|| without.to_owned(), |path| path.to_string());
            assert!(head.contains(&format!("The path of a byte: {path}.")), "{file}: {path}");
        }
    }

    #[test]
    fn a_path_can_begin_where_the_byte_is() {
        let whole = Egress::Splice.path().unwrap();
        let warm = whole.beginning_at(Place::PageCache);
        assert_eq!(warm.to_string(), "page cache =(splice)= pipe =(splice)= socket -(DMA)-> card");
        assert!(!warm.visits(Place::Disk) && warm.visits(Place::Pipe));
        assert_eq!(whole.beginning_at(Place::Map), whole);
    }
}
