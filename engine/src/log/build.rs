//! Builds uncompressed record batches: for clients, tests and examples. The engine itself never needs to.
//!
//! The bytes gather in one reusable buffer; a builder that has grown to its batch size allocates no more.
//! The format is Kafka's (`DefaultRecordBatch.java`, `DefaultRecord.java`); the layout is drawn in `FORMAT.md`.

use super::batch::{ATTRIBUTE_TRANSACTIONAL, BATCH_HEADER_BYTES, LENGTH_OVERHEAD, MAGIC, at, stamp_crc};
use crate::types::Timestamp;

/// A batch under construction.
///
/// ```
/// use ringlog::log::{BatchBuilder, check_produced};
/// use ringlog::types::Timestamp;
///
/// let mut builder = BatchBuilder::new(Timestamp(1_700_000_000_000));
/// builder.push(Timestamp(1_700_000_000_000), Some(b"sensor 7"), Some(b"21.5"), &[]);
/// builder.push(Timestamp(1_700_000_000_250), Some(b"sensor 7"), Some(b"21.6"), &[("unit", b"C")]);
/// let header = check_produced(builder.finish()).unwrap();
/// assert_eq!((header.count, header.last_offset_delta), (2, 1));
/// ```
#[derive(Debug)]
pub struct BatchBuilder {
    /// Header space, then the records.
    batch: Vec<u8>,
    count: i32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    attributes: i16,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl BatchBuilder {
    /// An empty batch whose record timestamps count from `base_timestamp`.
    #[must_use]
    pub fn new(base_timestamp: Timestamp) -> BatchBuilder {
        BatchBuilder {
            batch: vec![0; BATCH_HEADER_BYTES],
            count: 0,
            base_timestamp,
            max_timestamp: Timestamp::NONE,
            attributes: 0,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
        }
    }

    /// Names the producer and the sequence number of the first record; -1, -1, -1 for none.
    pub fn set_producer(&mut self, id: i64, epoch: i16, base_sequence: i32) {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
    }

    /// Marks the batch as part of a transaction, or not.
    pub fn set_transactional(&mut self, transactional: bool) {
        self.attributes = if transactional { ATTRIBUTE_TRANSACTIONAL } else { 0 };
    }

    /// Adds one record.
    pub fn push(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) {
        let timestamp_delta = timestamp.0.wrapping_sub(self.base_timestamp.0);
        let mut bytes = 1 + varint_bytes(timestamp_delta) + varint_bytes(i64::from(self.count));
        bytes += blob_bytes(key) + blob_bytes(value) + varint_bytes(headers.len() as i64);
        for (name, content) in headers {
            bytes += blob_bytes(Some(name.as_bytes())) + blob_bytes(Some(content));
        }

        let out = &mut self.batch;
        put_varint(out, bytes as i64);
        let body = out.len();
        out.push(0); // attributes: none are defined for records
        put_varint(out, timestamp_delta);
        put_varint(out, i64::from(self.count));
        put_blob(out, key);
        put_blob(out, value);
        put_varint(out, headers.len() as i64);
        for (name, content) in headers {
            put_blob(out, Some(name.as_bytes()));
            put_blob(out, Some(content));
        }
        assert_eq!(out.len() - body, bytes, "the size of a record as foretold and as written");
        self.count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp);
    }

    /// How many records there are so far.
    #[must_use]
    pub fn count(&self) -> i32 {
        self.count
    }

    /// How many bytes the batch has so far, header included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batch.len()
    }

    /// Writes the header and the checksum; the batch has base offset 0 and no epoch until it is stamped.
    /// More records may be pushed afterwards, and the batch finished again.
    ///
    /// # Panics
    /// When no record was pushed: a batch has at least one.
    pub fn finish(&mut self) -> &[u8] {
        assert!(self.count > 0, "a batch without records");
        let length =
            i32::try_from(self.batch.len() - LENGTH_OVERHEAD as usize).expect("a batch of at most 2 GiB");
        let mut put = |at: usize, field: &[u8]| self.batch[at..at + field.len()].copy_from_slice(field);
        put(at::BASE_OFFSET, &0i64.to_be_bytes());
        put(at::LENGTH, &length.to_be_bytes());
        put(at::LEADER_EPOCH, &(-1i32).to_be_bytes());
        put(at::MAGIC, &MAGIC.to_be_bytes());
        put(at::ATTRIBUTES, &self.attributes.to_be_bytes());
        put(at::LAST_OFFSET_DELTA, &(self.count - 1).to_be_bytes());
        put(at::BASE_TIMESTAMP, &self.base_timestamp.0.to_be_bytes());
        put(at::MAX_TIMESTAMP, &self.max_timestamp.0.to_be_bytes());
        put(at::PRODUCER_ID, &self.producer_id.to_be_bytes());
        put(at::PRODUCER_EPOCH, &self.producer_epoch.to_be_bytes());
        put(at::BASE_SEQUENCE, &self.base_sequence.to_be_bytes());
        put(at::COUNT, &self.count.to_be_bytes());
        stamp_crc(&mut self.batch);
        &self.batch
    }

    /// Forgets the records and keeps the memory, the producer and the transactional mark.
    pub fn clear(&mut self, base_timestamp: Timestamp) {
        self.batch.truncate(BATCH_HEADER_BYTES);
        self.count = 0;
        self.base_timestamp = base_timestamp;
        self.max_timestamp = Timestamp::NONE;
    }
}

fn blob_bytes(blob: Option<&[u8]>) -> usize {
    blob.map_or(varint_bytes(-1), |blob| varint_bytes(blob.len() as i64) + blob.len())
}

fn put_blob(out: &mut Vec<u8>, blob: Option<&[u8]>) {
    put_varint(out, blob.map_or(-1, |blob| blob.len() as i64));
    out.extend_from_slice(blob.unwrap_or_default());
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn varint_bytes(number: i64) -> usize {
    (64 - (zigzag(number) | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, number: i64) {
    let mut rest = zigzag(number);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_builder_keeps_its_memory() {
        let mut builder = BatchBuilder::new(Timestamp(0));
        for round in 0..3 {
            builder.clear(Timestamp(round));
            (0..100).for_each(|_| builder.push(Timestamp(round), Some(b"k"), Some(&[7; 50]), &[("a", b"b")]));
            let capacity = builder.batch.capacity();
            builder.finish();
            if round > 0 {
                assert_eq!(builder.batch.capacity(), capacity);
            }
        }
    }

    #[test]
    fn varints_are_as_long_as_foretold() {
        for number in [0, -1, 1, 63, 64, -64, -65, 8191, 8192, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            assert_eq!(out.len(), varint_bytes(number), "{number}");
        }
    }
}
