//! The consumer's account of one partition: lost, duplicate, reordered, corrupt.
//!
//! It is fed the record bytes of every fetch answer and looks at each record: the CRC of its batch, its own
//! checksum and value, its offset, its place in its producer's sequence. At the end the account is held against
//! what producers were told was stored. A record that is damaged is one *corrupt*; if no whole copy of it arrives it
//! is one *lost* as well, for somebody acknowledged it and nobody can read it. A fast wrong answer cannot win.

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Batches, Record};
use crate::payload::{Head, Payload};
use crate::sequences::{Inserted, SequenceSet};

/// What went wrong, and how often. All zero but `records` is a clean run.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Findings {
    /// Whole records received, each looked at.
    pub records: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
    /// Records whose checksum, value or head is wrong.
    pub corrupt: u64,
    /// Batches whose CRC is wrong or whose bytes are not a batch.
    pub corrupt_batches: u64,
    /// Whole records that belong to another partition or cell, or that nobody sent.
    pub misplaced: u64,
    /// Whole records received again.
    pub duplicate: u64,
    /// Whole records received after a later one of the same producer.
    pub reordered: u64,
    /// Offsets that no record had though a higher one was received.
    pub offset_gaps: u64,
    /// Records at offsets that were passed before.
    pub offset_repeats: u64,
    /// Acknowledged records that were never received whole.
    pub lost: u64,
}

impl Findings {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn are_clean(&self) -> bool {
        let Findings { records, value_bytes, .. } = *self;
        *self == Findings { records, value_bytes, ..Findings::default() }
    }

    /// Adds another account's findings.
    pub fn add(&mut self, other: &Findings) {
        self.records += other.records;
        self.value_bytes += other.value_bytes;
        self.corrupt += other.corrupt;
        self.corrupt_batches += other.corrupt_batches;
        self.misplaced += other.misplaced;
        self.duplicate += other.duplicate;
        self.reordered += other.reordered;
        self.offset_gaps += other.offset_gaps;
        self.offset_repeats += other.offset_repeats;
        self.lost += other.lost;
    }
}

/// What one producer did to one partition: the other side of the account.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Sent {
    /// One above the highest sequence sent.
    pub end: u64,
    /// Sequences that the server acknowledged.
    pub acked: SequenceSet,
}

/// One consumer's account of one partition.
#[derive(Debug)]
pub struct Account {
    partition: u32,
    run: u32,
    next_offset: i64,
    seen: Vec<SequenceSet>,
    findings: Findings,
}

impl Account {
    /// Begins at `first_offset`; records of producers `0..producers` and cell `run` belong here.
    #[must_use]
    pub fn new(partition: u32, run: u32, producers: u32, first_offset: i64) -> Account {
        let seen = vec![SequenceSet::default(); producers as usize];
        Account { partition, run, next_offset: first_offset, seen, findings: Findings::default() }
    }

    /// Takes the record bytes of one fetch that asked for [`Account::next_offset`]. `each` gets the head and value
    /// size of every whole record that belongs here, for latencies and rates. Returns how many records there were.
    ///
    /// Kafka answers with whole batches, so the first may begin below the offset asked for; those records are
    /// passed over. Anywhere else a lower offset is a repeat.
    pub fn take(&mut self, payload: &Payload, bytes: &[u8], mut each: impl FnMut(&Head, usize)) -> u64 {
        let asked = self.next_offset;
        let mut records = 0;
        for (index, batch) in Batches::new(bytes).enumerate() {
            let Ok(batch) = batch else {
                self.findings.corrupt_batches += 1;
                break;
            };
            self.findings.corrupt_batches += u64::from(!batch.crc_is_good());
            if batch.is_control() {
                self.pass(&batch);
                continue;
            }
            let last_offset = batch.base_offset().saturating_add(i64::from(batch.last_offset_delta()));
            let skip_below = if index == 0 && last_offset >= asked { asked } else { i64::MIN };
            for record in batch.records() {
                let Ok(record) = record else {
                    // A good CRC over a malformed record means that it was stored so.
                    self.findings.corrupt_batches += u64::from(batch.crc_is_good());
                    break;
                };
                if record.offset < skip_below {
                    continue;
                }
                records += 1;
                self.take_offset(record.offset);
                self.take_record(payload, &record, &mut each);
            }
        }
        records
    }

    /// The offset to ask for next.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// What was found so far; losses are known only after [`Account::reconcile`].
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Closes the account against what each producer sent to this partition and got acknowledged.
    ///
    /// # Panics
    /// When there are not as many producers as at the beginning.
    #[must_use]
    pub fn reconcile(mut self, sent: &[Sent]) -> Findings {
        assert_eq!(sent.len(), self.seen.len(), "producers of partition {}", self.partition);
        for (sent, seen) in sent.iter().zip(&self.seen) {
            self.findings.lost += sent.acked.count_missing_in(seen);
            let mut all = SequenceSet::default();
            all.extend(0..sent.end);
            self.findings.misplaced += seen.count_missing_in(&all);
        }
        self.findings
    }

    #[inline]
    fn take_record(&mut self, payload: &Payload, record: &Record<'_>, each: &mut impl FnMut(&Head, usize)) {
        let Ok(head) = payload.check(record) else {
            self.findings.corrupt += 1;
            return;
        };
        let value_bytes = record.value.map_or(0, <[u8]>::len);
        self.findings.records += 1;
        self.findings.value_bytes += value_bytes as u64;
        let ours = head.partition == self.partition && head.run == self.run;
        let Some(seen) = self.seen.get_mut(head.producer as usize).filter(|_| ours) else {
            self.findings.misplaced += 1;
            return;
        };
        match seen.insert(head.sequence) {
            Inserted::InOrder => {}
            Inserted::Late => self.findings.reordered += 1,
            Inserted::Again => self.findings.duplicate += 1,
        }
        each(&head, value_bytes);
    }

    #[inline]
    fn take_offset(&mut self, offset: i64) {
        if offset < self.next_offset {
            self.findings.offset_repeats += 1;
            return;
        }
        self.findings.offset_gaps += (offset as u64).wrapping_sub(self.next_offset as u64);
        self.next_offset = offset.saturating_add(1);
    }

    /// A transaction marker has an offset and no record of ours.
    fn pass(&mut self, batch: &Batch<'_>) {
        let end = batch.base_offset().saturating_add(i64::from(batch.last_offset_delta())).saturating_add(1);
        self.next_offset = self.next_offset.max(end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::BatchWriter;

    const RUN: u32 = 5;
    const PRODUCERS: u32 = 3;

    fn head(producer: u32, sequence: u64) -> Head {
        Head { producer, partition: 2, sequence, intended_ns: 1000, run: RUN }
    }

    /// Batches of ten records as a server would answer them, at offsets from 0.
    fn answer(payload: &Payload, heads: &[Head]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 10_000];
        for (index, heads) in heads.chunks(10).enumerate() {
            let mut writer = BatchWriter::begin(&mut buffer, 1);
            for head in heads {
                assert!(payload.push(&mut writer, head, None).is_some());
            }
            let end = writer.finish();
            buffer[0..8].copy_from_slice(&(index as i64 * 10).to_be_bytes());
            bytes.extend_from_slice(&buffer[..end]);
        }
        bytes
    }

    fn sent(ends: &[u64]) -> Vec<Sent> {
        ends.iter()
            .map(|&end| {
                let mut acked = SequenceSet::default();
                acked.extend(0..end);
                Sent { end, acked }
            })
            .collect()
    }

    fn judge(payload: &Payload, bytes: &[u8], ends: &[u64]) -> Findings {
        let mut account = Account::new(2, RUN, PRODUCERS, 0);
        account.take(payload, bytes, |_, _| {});
        account.reconcile(&sent(ends))
    }

    #[test]
    fn a_clean_run_is_clean() {
        let payload = Payload::seeded(64, 1);
        let heads: Vec<Head> = (0..90).map(|index| head(index as u32 % 3, index / 3)).collect();
        let mut account = Account::new(2, RUN, PRODUCERS, 0);
        let (mut told, bytes) = (0, answer(&payload, &heads));
        assert_eq!(account.take(&payload, &bytes, |head, size| told += head.intended_ns * size as u64), 90);
        assert_eq!((account.next_offset(), told), (90, 90 * 1000 * 64));
        let findings = account.reconcile(&sent(&[30, 30, 30]));
        assert!(findings.are_clean(), "{findings:?}");
        assert_eq!((findings.records, findings.value_bytes), (90, 90 * 64));
    }

    #[test]
    fn records_below_the_offset_asked_for_are_passed_over_but_repeats_are_not() {
        let payload = Payload::seeded(64, 1);
        let heads: Vec<Head> = (0..20).map(|sequence| head(0, sequence)).collect();
        let bytes = answer(&payload, &heads);
        let mut account = Account::new(2, RUN, PRODUCERS, 7);
        assert_eq!(account.take(&payload, &bytes, |_, _| {}), 13);
        assert!(account.findings().are_clean(), "{:?}", account.findings());
        assert_eq!(account.take(&payload, &bytes, |_, _| {}), 20);
        assert_eq!((account.findings().offset_repeats, account.findings().duplicate), (20, 13));
    }

    #[test]
    fn a_missing_batch_is_a_gap_and_a_loss() {
        let payload = Payload::seeded(64, 1);
        let heads: Vec<Head> = (0..30).map(|sequence| head(1, sequence)).collect();
        let bytes = answer(&payload, &heads);
        let batch_bytes = bytes.len() / 3;
        let cut = [&bytes[..batch_bytes], &bytes[2 * batch_bytes..]].concat();
        let findings = judge(&payload, &cut, &[0, 30, 0]);
        assert_eq!((findings.offset_gaps, findings.lost, findings.records), (10, 10, 20));
    }

    #[test]
    fn records_of_another_cell_partition_or_producer_are_misplaced() {
        let payload = Payload::seeded(64, 1);
        let strangers = [
            Head { run: 4, ..head(0, 0) },
            Head { partition: 1, ..head(0, 0) },
            head(PRODUCERS, 0),
            head(0, 99), // never sent
        ];
        let findings = judge(&payload, &answer(&payload, &strangers), &[1, 0, 0]);
        assert_eq!((findings.misplaced, findings.lost, findings.duplicate), (4, 1, 0));
    }

    #[test]
    fn no_flipped_bit_of_an_answer_goes_unnoticed() {
        let payload = Payload::seeded(64, 1);
        let heads: Vec<Head> = (0..10).map(|sequence| head(0, sequence)).collect();
        let bytes = answer(&payload, &heads);
        for bit in 0..bytes.len() * 8 {
            // The leader epoch lies before the CRC and says nothing of the records.
            if (12..16).contains(&(bit / 8)) {
                continue;
            }
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let findings = judge(&payload, &damaged, &[10, 0, 0]);
            assert!(!findings.are_clean(), "bit {bit} of byte {} went unnoticed: {findings:?}", bit / 8);
        }
    }

    /// What is done to each record on its way: the model.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Fate {
        Whole,
        Dropped,
        Twice,
        SwappedWithNext,
        Flipped,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            8 => Just(Fate::Whole),
            1 => Just(Fate::Dropped),
            1 => Just(Fate::Twice),
            1 => Just(Fate::SwappedWithNext),
            1 => Just(Fate::Flipped),
        ]
    }

    proptest! {
        #[test]
        fn injected_damage_is_counted_exactly(fates in proptest::collection::vec((0..PRODUCERS, fate()), 1..200), seed in any::<u64>()) {
            let payload = Payload::seeded(64, seed);
            let mut wanted = Findings::default();
            let (mut heads, mut flips, mut ends) = (Vec::new(), Vec::new(), [0u64; PRODUCERS as usize]);
            for (producer, fate) in fates {
                let end = &mut ends[producer as usize];
                let this = head(producer, *end);
                *end += 1;
                match fate {
                    Fate::Whole => heads.push(this),
                    Fate::Dropped => wanted.lost += 1,
                    Fate::Twice => {
                        heads.extend([this, this]);
                        wanted.duplicate += 1;
                    }
                    Fate::SwappedWithNext => {
                        heads.extend([head(producer, *end), this]);
                        *end += 1;
                        wanted.reordered += 1;
                    }
                    Fate::Flipped => {
                        flips.push(heads.len());
                        heads.push(this);
                        wanted.corrupt += 1;
                        wanted.lost += 1;
                    }
                }
            }
            prop_assume!(!heads.is_empty());
            let mut bytes = answer(&payload, &heads);
            // The value is the 64 bytes before each record's header count; find records by walking.
            let places: Vec<usize> = Batches::new(&bytes)
                .flat_map(|batch| batch.unwrap().records())
                .map(|record| record.unwrap().value.unwrap().as_ptr() as usize - bytes.as_ptr() as usize)
                .collect();
            let mut random = fastrand::Rng::with_seed(seed);
            for flip in &flips {
                bytes[places[*flip] + random.usize(0..64)] ^= 1 << random.u8(0..8);
            }
            flips.iter_mut().for_each(|flip| *flip /= 10);
            flips.dedup();
            wanted.corrupt_batches = flips.len() as u64;
            wanted.records = heads.len() as u64 - wanted.corrupt;
            wanted.value_bytes = wanted.records * 64;
            prop_assert_eq!(judge(&payload, &bytes, &ends), wanted);
        }
    }
}
