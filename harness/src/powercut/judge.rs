//! What was acknowledged, and whether it is there: kept outside the guest, over all cuts of one data directory.
//!
//! ```text
//! acknowledged, or read after a cut -> required: partition, offset -> producer, sequence
//! after the next cut: offsets 0, 1, 2, .. each once; every required record at its offset; nothing that was not sent
//! ```
//!
//! What was read once is required from then on: a consumer may see durable records only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use crate::batch::{BatchWriter, Batches};
use crate::payload::{Head, Payload};

/// Sizes of values.
const VALUE_BYTES: [usize; 4] = [64, 200, 1000, 16_000];
/// Of each kind of violation, so many are told in words; all are counted.
const TOLD_MAX: usize = 3;

/// What must not happen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The guest, its file system or the broker did not come back, or did not stay.
    Down,
    /// A partition cannot be read to its end.
    Unreadable,
    /// A required record is not at its offset.
    Lost,
    /// An offset that nothing has, below one that something has.
    Gap,
    /// An offset that comes again.
    Repeat,
    /// A record that is there twice.
    Duplicate,
    /// Bytes that are no record of this load, or damaged.
    Foreign,
    /// A record that no producer sent to this partition.
    NeverSent,
    /// Epochs that fall, or an offset and epoch that name two records.
    Epoch,
    /// Two answers for one offset.
    AcknowledgedTwice,
}

/// Violations, counted and in words.
#[derive(Clone, Default, Debug)]
pub struct Violations {
    counted: BTreeMap<Kind, u64>,
    words: Vec<String>,
}

/// One record, wherever it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Identity {
    producer: u32,
    sequence: u64,
}

/// An answer of the broker that promised something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acknowledged {
    /// Where.
    pub partition: u32,
    /// The offset of the first record.
    pub base_offset: i64,
    /// Whose.
    pub producer: u32,
    /// Which of its records to this partition.
    pub sequences: Range<u64>,
}

/// The values of this load, of several sizes.
pub struct Values {
    run: u32,
    payloads: Vec<Payload>,
}

/// One partition's side of the account.
#[derive(Default)]
struct Partition {
    required: BTreeMap<i64, Identity>,
    named: HashMap<(i64, i32), Identity>,
    /// By producer: one above the last sequence that was sent.
    sent: Vec<u64>,
}

/// The account of a data directory.
pub struct Account {
    values: Values,
    partitions: Vec<Partition>,
}

/// One reading of a partition from offset 0.
pub struct Reading {
    partition: u32,
    next_offset: i64,
    epoch: i32,
    found: BTreeMap<i64, Identity>,
    seen: HashSet<Identity>,
    violations: Violations,
}

impl Violations {
    /// Adds one.
    pub fn add(&mut self, kind: Kind, words: impl FnOnce() -> String) {
        let counted = self.counted.entry(kind).or_default();
        *counted += 1;
        if *counted <= TOLD_MAX as u64 {
            self.words.push(format!("{kind:?}: {}", words()));
        }
    }

    /// Adds another's.
    pub fn append(&mut self, other: Violations) {
        for (kind, count) in other.counted {
            *self.counted.entry(kind).or_default() += count;
        }
        self.words.extend(other.words);
    }

    /// Whether there are none.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.counted.is_empty()
    }

    /// How many of a kind.
    #[cfg(test)]
    fn count(&self, kind: Kind) -> u64 {
        self.counted.get(&kind).copied().unwrap_or_default()
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted: Vec<String> =
            self.counted.iter().map(|(kind, count)| format!("{count} {kind:?}")).collect();
        write!(f, "{}", counted.join(", "))?;
        self.words.iter().try_for_each(|words| write!(f, "\n  {words}"))
    }
}

impl Values {
    /// Those of data directory `run` of a seed.
    #[must_use]
    pub fn new(run: u32, seed: u64) -> Values {
        Values { run, payloads: VALUE_BYTES.map(|bytes| Payload::seeded(bytes, seed)).into() }
    }

    /// Builds a batch of records with values of one size, by its number; returns its bytes and how many records fitted.
    pub fn build(&self, buffer: &mut [u8], size: usize, records: u64, first: Head) -> (usize, u64) {
        let mut batch = BatchWriter::begin(buffer, 0);
        let mut built = 0;
        while built < records {
            let head = Head { run: self.run, sequence: first.sequence + built, ..first };
            if self.payloads[size].push(&mut batch, &head, None).is_none() {
                break;
            }
            built += 1;
        }
        (batch.finish(), built)
    }
}

impl Account {
    /// An empty one.
    #[must_use]
    pub fn new(values: Values, partitions: u32, producers: u32) -> Account {
        let empty = || Partition { sent: vec![0; producers as usize], ..Partition::default() };
        Account { values, partitions: (0..partitions).map(|_| empty()).collect() }
    }

    /// How many records must be there.
    #[must_use]
    pub fn required(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.required.len() as u64).sum()
    }

    /// Where a producer goes on in each partition.
    #[must_use]
    pub fn sent(&self, producer: u32) -> Vec<u64> {
        self.partitions.iter().map(|partition| partition.sent[producer as usize]).collect()
    }

    /// Takes what a producer has sent by now, acknowledged or not.
    pub fn note_sent(&mut self, producer: u32, ends: &[u64]) {
        for (partition, end) in self.partitions.iter_mut().zip(ends) {
            partition.sent[producer as usize] = *end;
        }
    }

    /// Takes an answer.
    pub fn acknowledge(&mut self, told: &Acknowledged, violations: &mut Violations) {
        let partition = &mut self.partitions[told.partition as usize];
        for (offset, sequence) in (told.base_offset..).zip(told.sequences.clone()) {
            let identity = Identity { producer: told.producer, sequence };
            if let Some(other) = partition.required.insert(offset, identity) {
                violations.add(Kind::AcknowledgedTwice, || {
                    format!("partition {} offset {offset}: {other:?}, then {identity:?}", told.partition)
                });
            }
        }
    }

    /// Begins to read a partition.
    #[must_use]
    pub fn read(&self, partition: u32) -> Reading {
        Reading {
            partition,
            next_offset: 0,
            epoch: -1,
            found: BTreeMap::new(),
            seen: HashSet::new(),
            violations: Violations::default(),
        }
    }

    /// Takes the record bytes of an answer that began at the offset asked for.
    pub fn take(&mut self, reading: &mut Reading, bytes: &[u8]) {
        let partition = &mut self.partitions[reading.partition as usize];
        for batch in Batches::new(bytes) {
            let batch = match batch {
                Ok(batch) if batch.crc_is_good() => batch,
                Ok(batch) => {
                    reading.note(Kind::Foreign, || {
                        format!("a batch of {} bytes with another CRC", batch.bytes().len())
                    });
                    continue;
                }
                Err(error) => return reading.note(Kind::Foreign, || error.to_string()),
            };
            let epoch = batch.leader_epoch();
            if epoch < reading.epoch {
                let before = reading.epoch;
                reading.note(Kind::Epoch, || format!("{epoch} after {before}"));
            }
            reading.epoch = epoch;
            for record in batch.records() {
                let Ok(record) = record else {
                    reading.note(Kind::Foreign, || "a malformed record".to_owned());
                    break;
                };
                match record.offset - reading.next_offset {
                    0 => {}
                    1.. => reading.note(Kind::Gap, || format!("up to {}", record.offset)),
                    _ => reading.note(Kind::Repeat, || format!("back to {}", record.offset)),
                }
                reading.next_offset = record.offset + 1;
                let size = VALUE_BYTES.iter().position(|size| record.value.map(<[u8]>::len) == Some(*size));
                let head = size.and_then(|size| self.values.payloads[size].check(&record).ok());
                let Some(head) =
                    head.filter(|head| head.run == self.values.run && head.partition == reading.partition)
                else {
                    reading.note(Kind::Foreign, || format!("a record of {size:?}: {head:?}"));
                    continue;
                };
                let identity = Identity { producer: head.producer, sequence: head.sequence };
                if partition.sent.get(head.producer as usize).is_none_or(|end| head.sequence >= *end) {
                    reading.note(Kind::NeverSent, || format!("{identity:?}"));
                }
                if !reading.seen.insert(identity) {
                    reading.note(Kind::Duplicate, || format!("{identity:?}"));
                }
                let other = *partition.named.entry((record.offset, epoch)).or_insert(identity);
                if other != identity {
                    reading.note(Kind::Epoch, || {
                        format!("offset {} of epoch {epoch}: {other:?}, then {identity:?}", record.offset)
                    });
                }
                reading.found.insert(record.offset, identity);
            }
        }
    }

    /// Ends a reading at the end of the log: what is missing is lost, what is there must stay.
    pub fn finish(&mut self, mut reading: Reading) -> Violations {
        let partition = &mut self.partitions[reading.partition as usize];
        let end = reading.next_offset;
        for (offset, identity) in &partition.required {
            let found = reading.found.get(offset).copied();
            if found != Some(*identity) {
                reading.violations.add(Kind::Lost, || {
                    let there = found.map_or("nothing".to_owned(), |other| format!("{other:?}"));
                    format!(
                        "partition {} offset {offset}: {identity:?} was promised, {there} is there, the log ends at {end}",
                        reading.partition
                    )
                });
            }
        }
        partition.required.append(&mut reading.found);
        reading.violations
    }
}

impl Reading {
    /// The offset to ask for.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// Notes a violation here.
    pub fn note(&mut self, kind: Kind, words: impl FnOnce() -> String) {
        let (partition, offset) = (self.partition, self.next_offset);
        self.violations.add(kind, || format!("partition {partition} at offset {offset}: {}", words()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTITION: u32 = 1;

    fn account() -> Account {
        let mut account = Account::new(Values::new(3, 7), 2, 2);
        account.note_sent(0, &[0, 40]);
        account.note_sent(1, &[0, 40]);
        account
    }

    fn head(producer: u32, sequence: u64) -> Head {
        Head { producer, partition: PARTITION, sequence, intended_ns: 0, run: 0 }
    }

    /// A batch as a broker would store it.
    fn batch(values: &Values, first: Head, records: u64, base_offset: i64, epoch: i32) -> Vec<u8> {
        let mut bytes = vec![0; 100_000];
        let (end, built) = values.build(&mut bytes, 1, records, first);
        assert_eq!(built, records);
        bytes.truncate(end);
        bytes[0..8].copy_from_slice(&base_offset.to_be_bytes());
        bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
        bytes
    }

    fn acknowledge(account: &mut Account, producer: u32, base_offset: i64, sequences: Range<u64>) {
        let mut violations = Violations::default();
        let told = Acknowledged { partition: PARTITION, base_offset, producer, sequences };
        account.acknowledge(&told, &mut violations);
        assert!(violations.are_none());
    }

    fn judge(account: &mut Account, batches: &[Vec<u8>]) -> Violations {
        let mut reading = account.read(PARTITION);
        for bytes in batches {
            account.take(&mut reading, bytes);
        }
        account.finish(reading)
    }

    /// Ten acknowledged, ten that are only there.
    fn whole() -> (Account, Vec<Vec<u8>>) {
        let mut account = account();
        acknowledge(&mut account, 0, 0, 0..10);
        let batches =
            vec![batch(&account.values, head(0, 0), 10, 0, 0), batch(&account.values, head(1, 0), 10, 10, 1)];
        (account, batches)
    }

    #[test]
    fn what_is_whole_is_found_whole_and_required_from_then_on() {
        let (mut account, batches) = whole();
        assert!(judge(&mut account, &batches).are_none());
        assert_eq!(account.required(), 20);
        let violations = judge(&mut account, &batches[..1]);
        assert_eq!(violations.count(Kind::Lost), 10, "what was read once is gone: {violations}");
    }

    #[test]
    fn every_violation_is_found() {
        let find = |kind: Kind, damage: &dyn Fn(&mut Account, &mut Vec<Vec<u8>>)| {
            let (mut account, mut batches) = whole();
            damage(&mut account, &mut batches);
            let violations = judge(&mut account, &batches);
            assert!(violations.count(kind) > 0, "{kind:?} was not found: {violations}");
            violations
        };
        // The acknowledged end is missing.
        let lost = find(Kind::Lost, &|account, batches| {
            acknowledge(account, 0, 20, 10..12);
            batches.truncate(2);
        });
        assert_eq!(lost.count(Kind::Lost), 2);
        // Somebody else is where it was acknowledged.
        find(Kind::Lost, &|account, batches| batches[0] = batch(&account.values, head(1, 20), 10, 0, 0));
        find(Kind::Gap, &|account, batches| batches[1] = batch(&account.values, head(1, 0), 10, 11, 1));
        find(Kind::Repeat, &|account, batches| batches[1] = batch(&account.values, head(1, 0), 10, 9, 1));
        find(Kind::Duplicate, &|account, batches| batches[1] = batch(&account.values, head(0, 0), 10, 10, 1));
        find(Kind::NeverSent, &|account, batches| {
            batches[1] = batch(&account.values, head(1, 31), 10, 10, 1)
        });
        find(Kind::Epoch, &|account, batches| {
            batches[0] = batch(&account.values, head(0, 0), 10, 0, 2);
            batches[1] = batch(&account.values, head(1, 0), 10, 10, 1);
        });
        // Zeros, another's bytes, a flipped bit, another partition's record, another directory's.
        find(Kind::Foreign, &|_, batches| batches[1][100] ^= 4);
        find(Kind::Foreign, &|_, batches| batches[1] = vec![0; 4096]);
        find(Kind::Foreign, &|account, batches| {
            let elsewhere = Head { partition: 0, ..head(1, 0) };
            batches[1] = batch(&account.values, elsewhere, 10, 10, 1);
        });
        find(Kind::Foreign, &|_, batches| batches[1] = batch(&Values::new(2, 7), head(1, 0), 10, 10, 1));
    }

    #[test]
    fn an_offset_and_epoch_that_name_another_record_after_a_cut_are_found() {
        let (mut account, batches) = whole();
        assert!(judge(&mut account, &batches).are_none());
        let other = [batches[0].clone(), batch(&account.values, head(1, 20), 10, 10, 1)];
        let violations = judge(&mut account, &other);
        assert_eq!((violations.count(Kind::Epoch), violations.count(Kind::Lost)), (10, 10), "{violations}");
    }

    #[test]
    fn two_answers_for_one_offset_are_found() {
        let mut account = account();
        let mut violations = Violations::default();
        for producer in 0..2 {
            let told = Acknowledged { partition: PARTITION, base_offset: 5, producer, sequences: 0..2 };
            account.acknowledge(&told, &mut violations);
        }
        assert_eq!(violations.count(Kind::AcknowledgedTwice), 2);
    }
}
