//! What a producer sends and a consumer can recognise.
//!
//! Every record carries a head of 40 bytes: who sent it, which one it is, when it was meant to leave, and a CRC-32C
//! over all of it. With a seeded payload the head opens the value and the rest is a window into a pool of random
//! bytes, placed by (producer, partition, sequence): cheap to write, and the consumer compares every byte. With a
//! user's file the values are its lines, untouched, and the head travels in a record header.
//!
//! ```text
//!  0 magic u32   4 CRC-32C u32 of what follows (head and value)   8 producer u32   12 partition u32
//! 16 sequence u64, per producer and partition   24 intended time u64 ns, CLOCK_MONOTONIC
//! 32 run u32: the cell, so that a record of another cell is recognised   36 value bytes u32     (little endian)
//! ```

use std::fs;
use std::ops::Range;
use std::path::Path;

use crate::batch::{BatchWriter, Record, Shape, batch_bytes_of_one};
use crate::keys::KEY_BYTES;
use crate::units::Rate;

/// Bytes of a record's identity.
pub const HEAD_BYTES: usize = 40;
/// The record header that carries the head where values are a user's.
pub const HEADER_NAME: &str = "rl";
const MAGIC: u32 = u32::from_le_bytes(*b"rlog");
/// Windows begin in this much of the pool. Twice an L2 cache would double the cost of a record.
const POOL_BYTES: usize = 1 << 20;

/// A record's identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Who sent it.
    pub producer: u32,
    /// Where it was sent.
    pub partition: u32,
    /// Which one it is, from 0, per producer and partition.
    pub sequence: u64,
    /// When the schedule wanted it to leave, nanoseconds of CLOCK_MONOTONIC.
    pub intended_ns: u64,
    /// The cell it belongs to.
    pub run: u32,
}

/// Why a record is not one of ours, or not as it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// No head where one should be.
    NoHead,
    /// The checksum does not fit head and value.
    Checksum,
    /// Head and checksum are whole, the value is not the one that belongs to this identity.
    Value,
}

/// The values of a load: made once, shared by all producers and consumers.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Random bytes from a seed.
    Seeded {
        /// Bytes of each value, head included.
        record_bytes: usize,
        /// What windows are cut from.
        pool: Box<[u8]>,
    },
    /// Lines of a file.
    Lines {
        /// The file.
        bytes: Box<[u8]>,
        /// Where each line lies in it, without its line feed.
        lines: Box<[Range<u32>]>,
    },
}

impl Payload {
    /// Values of `record_bytes` from a seed.
    ///
    /// # Panics
    /// When a value cannot hold the head: validation refuses that.
    #[must_use]
    pub fn seeded(record_bytes: usize, seed: u64) -> Payload {
        assert!(record_bytes >= HEAD_BYTES, "{record_bytes} bytes hold no head of {HEAD_BYTES}");
        let mut pool = vec![0; POOL_BYTES + record_bytes].into_boxed_slice();
        fastrand::Rng::with_seed(seed ^ 0x706f_6f6c).fill(&mut pool);
        Payload::Seeded { record_bytes, pool }
    }

    /// The lines of a file. `batch_bytes_min` is the smallest batch of the run: every line must fit one.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, is larger than 4 GiB, or has a line too long for a batch.
    pub fn lines(path: &Path, batch_bytes_min: usize) -> anyhow::Result<Payload> {
        let bytes =
            fs::read(path).map_err(|error| anyhow::anyhow!("--payload {}: {error}", path.display()))?;
        Payload::from_lines(bytes, batch_bytes_min)
            .map_err(|why| anyhow::anyhow!("--payload {}: {why}", path.display()))
    }

    fn from_lines(bytes: Vec<u8>, batch_bytes_min: usize) -> anyhow::Result<Payload> {
        anyhow::ensure!(u32::try_from(bytes.len()).is_ok(), "{} bytes, more than 4 GiB", bytes.len());
        let mut lines = Vec::new();
        let mut start = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let value_bytes = line.strip_suffix(b"\n").unwrap_or(line).len();
            let shape = Shape {
                key: Some(&[0; KEY_BYTES]),
                value_bytes,
                header: Some((HEADER_NAME, &[0; HEAD_BYTES])),
            };
            let needed = batch_bytes_of_one(&shape);
            anyhow::ensure!(
                needed <= batch_bytes_min,
                "line {} has {value_bytes} bytes and needs a batch of {needed}, --batch-bytes is {batch_bytes_min}",
                lines.len() + 1
            );
            lines.push(start as u32..(start + value_bytes) as u32);
            start += line.len();
        }
        anyhow::ensure!(!lines.is_empty(), "the file has no lines");
        Ok(Payload::Lines { bytes: bytes.into(), lines: lines.into() })
    }

    /// The mean size of a value, for turning rates into requests.
    #[must_use]
    pub fn mean_value_bytes(&self) -> f64 {
        match self {
            Payload::Seeded { record_bytes, .. } => *record_bytes as f64,
            Payload::Lines { lines, .. } => {
                let total: u64 = lines.iter().map(|line| u64::from(line.end - line.start)).sum();
                total as f64 / lines.len() as f64
            }
        }
    }

    /// How many requests of one full batch each make up a rate of records.
    ///
    /// # Panics
    /// When not one record fits: validation refuses that.
    #[must_use]
    pub fn requests_per_second(&self, rate: Rate, batch_bytes: usize, keyed: bool) -> f64 {
        let mut buffer = vec![0; batch_bytes];
        let mut batch = BatchWriter::begin(&mut buffer, 0);
        let head = |sequence| Head { producer: 0, partition: 0, sequence, intended_ns: 0, run: 0 };
        let key = [0; KEY_BYTES];
        let mut records = 0;
        while self.push(&mut batch, &head(records), keyed.then_some(&key[..])).is_some() {
            records += 1;
        }
        assert!(records > 0, "a batch of {batch_bytes} bytes holds no record");
        rate.records_per_second(self.mean_value_bytes()) / records as f64
    }

    /// Encodes one record into a batch; returns its value's size, or `None` when the batch is full.
    #[inline]
    pub fn push(&self, batch: &mut BatchWriter<'_>, head: &Head, key: Option<&[u8]>) -> Option<usize> {
        match self {
            Payload::Seeded { record_bytes, pool } => {
                let shape = Shape { key, value_bytes: *record_bytes, header: None };
                let window = window(pool, head, *record_bytes);
                let fitted = batch.push(&shape, |value| {
                    value[HEAD_BYTES..].copy_from_slice(window);
                    write_head(value, head, *record_bytes);
                    let crc = crc_fast::crc32_iscsi(&value[8..]);
                    value[4..8].copy_from_slice(&crc.to_le_bytes());
                });
                fitted.then_some(*record_bytes)
            }
            Payload::Lines { bytes, lines } => {
                let line = line(bytes, lines, head);
                let mut head_bytes = [0; HEAD_BYTES];
                write_head(&mut head_bytes, head, line.len());
                let crc = crc_of_two(&head_bytes[8..], line);
                head_bytes[4..8].copy_from_slice(&crc.to_le_bytes());
                let shape = Shape { key, value_bytes: line.len(), header: Some((HEADER_NAME, &head_bytes)) };
                batch.push(&shape, |value| value.copy_from_slice(line)).then_some(line.len())
            }
        }
    }

    /// Recognises a record and checks every byte of its value.
    ///
    /// # Errors
    /// What is wrong with it; the head is then not to be believed.
    #[inline]
    pub fn check(&self, record: &Record<'_>) -> Result<Head, Damage> {
        let value = record.value.ok_or(Damage::NoHead)?;
        match self {
            Payload::Seeded { record_bytes, pool } => {
                let head = read_head(value)?;
                if crc_fast::crc32_iscsi(&value[8..]) != u32_at(value, 4) {
                    return Err(Damage::Checksum);
                }
                let whole = value.len() == *record_bytes
                    && u32_at(value, 36) as usize == value.len()
                    && value[HEAD_BYTES..] == *window(pool, &head, *record_bytes);
                if whole { Ok(head) } else { Err(Damage::Value) }
            }
            Payload::Lines { bytes, lines } => {
                let head_bytes = record.header(HEADER_NAME).ok_or(Damage::NoHead)?;
                let head = read_head(head_bytes)?;
                if head_bytes.len() != HEAD_BYTES
                    || crc_of_two(&head_bytes[8..], value) != u32_at(head_bytes, 4)
                {
                    return Err(Damage::Checksum);
                }
                let whole =
                    u32_at(head_bytes, 36) as usize == value.len() && value == line(bytes, lines, &head);
                if whole { Ok(head) } else { Err(Damage::Value) }
            }
        }
    }
}

fn window<'a>(pool: &'a [u8], head: &Head, record_bytes: usize) -> &'a [u8] {
    let start = scattered(head) as usize % POOL_BYTES;
    &pool[start..start + record_bytes - HEAD_BYTES]
}

/// Lines in the order of the file for each producer and partition, each beginning at a place of its own.
fn line<'a>(bytes: &'a [u8], lines: &[Range<u32>], head: &Head) -> &'a [u8] {
    let start = scattered(&Head { sequence: 0, ..*head });
    let range = &lines[(start.wrapping_add(head.sequence) % lines.len() as u64) as usize];
    &bytes[range.start as usize..range.end as usize]
}

/// A number that looks unrelated for neighbouring identities (the finisher of splitmix64).
fn scattered(head: &Head) -> u64 {
    let mut mixed = head.sequence ^ (u64::from(head.producer) << 40) ^ (u64::from(head.partition) << 20);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) >> 8
}

fn write_head(place: &mut [u8], head: &Head, value_bytes: usize) {
    let place = &mut place[..HEAD_BYTES];
    place[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    place[8..12].copy_from_slice(&head.producer.to_le_bytes());
    place[12..16].copy_from_slice(&head.partition.to_le_bytes());
    place[16..24].copy_from_slice(&head.sequence.to_le_bytes());
    place[24..32].copy_from_slice(&head.intended_ns.to_le_bytes());
    place[32..36].copy_from_slice(&head.run.to_le_bytes());
    place[36..40].copy_from_slice(&(value_bytes as u32).to_le_bytes());
}

fn read_head(bytes: &[u8]) -> Result<Head, Damage> {
    if bytes.len() < HEAD_BYTES || u32_at(bytes, 0) != MAGIC {
        return Err(Damage::NoHead);
    }
    Ok(Head {
        producer: u32_at(bytes, 8),
        partition: u32_at(bytes, 12),
        sequence: u64_at(bytes, 16),
        intended_ns: u64_at(bytes, 24),
        run: u32_at(bytes, 32),
    })
}

fn crc_of_two(first: &[u8], second: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(first);
    digest.update(second);
    digest.finalize() as u32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::batch::Batches;

    fn head(sequence: u64) -> Head {
        Head { producer: 3, partition: 1, sequence, intended_ns: 123_456_789_000 + sequence, run: 7 }
    }

    fn lines(text: &str) -> anyhow::Result<Payload> {
        Payload::from_lines(text.as_bytes().to_vec(), 400)
    }

    fn batch_of(payload: &Payload, records: u64) -> Vec<u8> {
        let mut buffer = vec![0; 300_000];
        let mut writer = BatchWriter::begin(&mut buffer, 1);
        for sequence in 0..records {
            assert!(payload.push(&mut writer, &head(sequence), None).is_some());
        }
        let end = writer.finish();
        buffer.truncate(end);
        buffer
    }

    #[test]
    fn every_record_is_recognised() {
        for payload in
            [Payload::seeded(HEAD_BYTES, 1), Payload::seeded(1000, 1), lines("one\n\nthree\nfour").unwrap()]
        {
            let bytes = batch_of(&payload, 50);
            let batch = Batches::new(&bytes).next().unwrap().unwrap();
            let heads: Vec<_> = batch.records().map(|record| payload.check(&record.unwrap())).collect();
            assert_eq!(heads, (0..50).map(|sequence| Ok(head(sequence))).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        for payload in [Payload::seeded(100, 1), lines("a line of some length\nanother").unwrap()] {
            let bytes = batch_of(&payload, 1);
            for bit in crate::batch::BATCH_HEAD_BYTES * 8..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let batch = Batches::new(&damaged).next().unwrap().unwrap();
                assert!(!batch.crc_is_good(), "bit {bit}");
                // The framing (attributes, deltas, key length) is the batch CRC's to guard.
                if let Some(Ok(record)) = batch.records().next()
                    && let Ok(head) = payload.check(&record)
                {
                    assert_eq!(head, self::head(0), "bit {bit} gave a record another identity");
                }
            }
        }
    }

    #[test]
    fn a_value_that_belongs_to_another_record_is_noticed() {
        let (ours, other) = (Payload::seeded(200, 1), Payload::seeded(200, 2));
        let bytes = batch_of(&other, 1);
        let record = Batches::new(&bytes).next().unwrap().unwrap().records().next().unwrap().unwrap();
        assert_eq!(other.check(&record), Ok(head(0)));
        assert_eq!(ours.check(&record), Err(Damage::Value));
        assert_eq!(lines("x").unwrap().check(&record), Err(Damage::NoHead));
    }

    #[test]
    fn lines_keep_their_order_and_too_long_ones_are_refused_by_number() {
        let payload = lines("a\nb\nc\n").unwrap();
        let bytes = batch_of(&payload, 4);
        let batch = Batches::new(&bytes).next().unwrap().unwrap();
        let values: Vec<u8> = batch.records().map(|record| record.unwrap().value.unwrap()[0]).collect();
        assert!(["abca", "bcab", "cabc"].contains(&std::str::from_utf8(&values).unwrap()), "{values:?}");
        assert_eq!(payload.mean_value_bytes(), 1.0);
        let why = lines(&format!("ok\n{}\n", "x".repeat(300))).unwrap_err().to_string();
        assert!(why.contains("line 2") && why.contains("300") && why.contains("400"), "{why}");
        assert!(lines("").unwrap_err().to_string().contains("no lines"));
        assert!(
            Payload::lines(Path::new("/no/such/file"), 400)
                .unwrap_err()
                .to_string()
                .contains("/no/such/file")
        );
    }

    #[test]
    fn a_rate_becomes_requests_of_full_batches() {
        let payload = Payload::seeded(1000, 1);
        // 61 + 16 x 1011 bytes hold 16 records in 16 KiB.
        assert_eq!(payload.requests_per_second(Rate::BytesPerSecond(16e6), 16384, false), 1000.0);
        assert_eq!(payload.requests_per_second(Rate::RecordsPerSecond(32.0), 16384, false), 2.0);
        assert_eq!(
            payload.requests_per_second(Rate::RecordsPerSecond(30.0), 16384, true),
            2.0,
            "15 with keys"
        );
    }
}
