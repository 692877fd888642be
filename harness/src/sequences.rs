//! A set of sequence numbers, kept as ranges.
//!
//! Sequences arrive almost always in order, so a stream of millions is one range and one comparison each. Memory
//! grows by a range only where a number is missing, and each range needs a record that was received, so nothing
//! that comes over the wire can make it larger than the traffic itself.

use std::ops::Range;

/// Ranges that are sorted, apart from each other and not empty.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct SequenceSet {
    ranges: Vec<Range<u64>>,
}

/// What a number meant for the set it was put into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// Above all others.
    InOrder,
    /// New, but a higher one was here before.
    Late,
    /// It was there already.
    Again,
}

impl SequenceSet {
    /// Puts one number in.
    #[inline]
    pub fn insert(&mut self, sequence: u64) -> Inserted {
        match self.ranges.last_mut() {
            Some(last) if sequence == last.end => {
                last.end += 1;
                Inserted::InOrder
            }
            Some(last) if sequence > last.end => {
                self.ranges.push(sequence..sequence + 1);
                Inserted::InOrder
            }
            None => {
                self.ranges.push(sequence..sequence + 1);
                Inserted::InOrder
            }
            Some(_) => self.insert_below(sequence),
        }
    }

    /// Puts in a whole range, as a producer does with the sequences of an answered batch; ranges come in order.
    ///
    /// # Panics
    /// When it begins below the end of the last one: answers of one connection come in order.
    pub fn extend(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if range.start == last.end => last.end = range.end,
            Some(last) => {
                assert!(range.start > last.end, "{range:?} after {last:?}: out of order");
                self.ranges.push(range);
            }
            None => self.ranges.push(range),
        }
    }

    /// How many numbers it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// One above the highest; 0 when empty.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// How many of this set's numbers are not in `other`.
    #[must_use]
    pub fn count_missing_in(&self, other: &SequenceSet) -> u64 {
        self.count() - self.count_shared_with(other)
    }

    /// The first of this set's numbers that is not in `other`: where to look when something is lost.
    #[must_use]
    pub fn first_missing_in(&self, other: &SequenceSet) -> Option<u64> {
        self.ranges.iter().find_map(|range| {
            let place = other.ranges.partition_point(|candidate| candidate.end <= range.start);
            match other.ranges.get(place) {
                Some(found) if found.start <= range.start => (found.end < range.end).then_some(found.end),
                _ => Some(range.start),
            }
        })
    }

    fn count_shared_with(&self, other: &SequenceSet) -> u64 {
        let (mut shared, mut mine, mut theirs) = (0, 0, 0);
        while let (Some(left), Some(right)) = (self.ranges.get(mine), other.ranges.get(theirs)) {
            shared += left.end.min(right.end).saturating_sub(left.start.max(right.start));
            if left.end <= right.end { mine += 1 } else { theirs += 1 }
        }
        shared
    }

    /// The slow way, for a number below the end of the last range.
    #[cold]
    fn insert_below(&mut self, sequence: u64) -> Inserted {
        // The first range that ends above the number; there is one, for the last does.
        let place = self.ranges.partition_point(|range| range.end <= sequence);
        if self.ranges[place].start <= sequence {
            return Inserted::Again;
        }
        let joins_left = place > 0 && self.ranges[place - 1].end == sequence;
        let joins_right = self.ranges[place].start == sequence + 1;
        match (joins_left, joins_right) {
            (true, true) => {
                self.ranges[place - 1].end = self.ranges[place].end;
                self.ranges.remove(place);
            }
            (true, false) => self.ranges[place - 1].end += 1,
            (false, true) => self.ranges[place].start -= 1,
            (false, false) => self.ranges.insert(place, sequence..sequence + 1),
        }
        Inserted::Late
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set_of(numbers: &BTreeSet<u64>) -> SequenceSet {
        let mut set = SequenceSet::default();
        for &number in numbers {
            set.extend(number..number + 1);
        }
        set
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_plain_set(numbers in proptest::collection::vec(0u64..60, 0..200), others in proptest::collection::btree_set(0u64..60, 0..60)) {
            let (mut set, mut model) = (SequenceSet::default(), BTreeSet::new());
            for number in numbers {
                let highest = model.last().copied();
                let wanted = match (model.insert(number), highest) {
                    (false, _) => Inserted::Again,
                    (true, Some(highest)) if number < highest => Inserted::Late,
                    (true, _) => Inserted::InOrder,
                };
                prop_assert_eq!(set.insert(number), wanted);
            }
            prop_assert_eq!(&set, &set_of(&model));
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(set.end(), model.last().map_or(0, |last| last + 1));
            prop_assert_eq!(set.count_missing_in(&set_of(&others)), model.difference(&others).count() as u64);
            prop_assert_eq!(set.first_missing_in(&set_of(&others)), model.difference(&others).next().copied());
        }
    }
}
