//! How many read the same stretch of a segment: told from where they are, for nobody says who he is.
//!
//! A reader goes on where it was: who begins where another's last piece ended is taken for the same one, anybody else is
//! new. Three at 5, 5 and 900 MB are one, a second beside it, and one far away.

use std::cell::Cell;

/// Readers that are told apart.
const KNOWN_MAX: usize = 8;
/// Who has not come for so many pieces of the segment has gone.
const GONE_AFTER: u32 = 64;
/// What lies so far ahead or behind is in the cache at the same time.
const NEAR_BYTES: u64 = 32 << 20;

/// The readers of one segment.
#[derive(Default)]
pub(super) struct Readers {
    /// Where each is, and when it came; 0 is never.
    known: [Cell<(u64, u32)>; KNOWN_MAX],
    pieces: Cell<u32>,
}

impl Readers {
    /// Notes that somebody reads `[at, end)`. How many there are near it, that one included.
    pub(super) fn note(&self, at: u64, end: u64) -> usize {
        let now = self.pieces.get().wrapping_add(1).max(1);
        self.pieces.set(now);
        let goes_on = self.known.iter().find(|known| known.get().1 != 0 && known.get().0 == at);
        let oldest = || self.known.iter().min_by_key(|known| known.get().1).expect("there are some");
        goes_on.unwrap_or_else(oldest).set((end, now));
        let is_near = |known: &&Cell<(u64, u32)>| {
            let (place, came) = known.get();
            came != 0 && now.saturating_sub(came) < GONE_AFTER && place.abs_diff(end) <= NEAR_BYTES
        };
        self.known.iter().filter(is_near).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_on_is_one_and_who_begins_is_another() {
        let readers = Readers::default();
        for at in 0..100 {
            assert_eq!(readers.note(at * 1000, (at + 1) * 1000), 1, "alone at {at}");
        }
        let readers = Readers::default();
        assert_eq!((readers.note(0, 1000), readers.note(0, 1000), readers.note(0, 1000)), (1, 2, 3));
        for at in 1..50 {
            for _ in 0..3 {
                assert_eq!(readers.note(at * 1000, (at + 1) * 1000), 3);
            }
        }
        // Two have gone.
        for at in 50..50 + u64::from(GONE_AFTER) {
            readers.note(at * 1000, (at + 1) * 1000);
        }
        assert_eq!(readers.note(114_000, 115_000), 1);
        assert_eq!(readers.note(1 << 40, (1 << 40) + 5), 1, "far away");
    }

    #[test]
    fn more_than_are_known_are_many_all_the_same() {
        let readers = Readers::default();
        let mut near = 0;
        for at in 0..10 {
            for _ in 0..20 {
                near = readers.note(at * 1000, (at + 1) * 1000);
            }
        }
        assert_eq!(near, KNOWN_MAX);
    }
}
