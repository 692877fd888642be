//! A batch built in the caller's buffer: nothing is copied but the key, the value fills itself in.

use super::{BATCH_HEAD_BYTES, CRC_FROM, LENGTH_END, MAGIC};

/// One record as a producer gives it. The value is filled in place, for no copy of it exists before.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// The key, or null.
    pub key: Option<&'a [u8]>,
    /// How long the value is.
    pub value_bytes: usize,
    /// At most one header.
    pub header: Option<(&'a str, &'a [u8])>,
}

/// Builds one batch in the caller's buffer.
#[derive(Debug)]
pub struct BatchWriter<'a> {
    buffer: &'a mut [u8],
    end: usize,
    records: i32,
    timestamp_ms: i64,
}

impl<'a> BatchWriter<'a> {
    /// Begins a batch of at most `buffer.len()` bytes; every record will have this create time.
    ///
    /// # Panics
    /// When not even an empty batch fits.
    #[must_use]
    pub fn begin(buffer: &'a mut [u8], timestamp_ms: i64) -> BatchWriter<'a> {
        assert!(buffer.len() >= BATCH_HEAD_BYTES, "{} bytes hold no batch", buffer.len());
        BatchWriter { buffer, end: BATCH_HEAD_BYTES, records: 0, timestamp_ms }
    }

    /// Appends a record and lets `fill` write its value; says no, and changes nothing, when it does not fit.
    #[inline]
    pub fn push(&mut self, shape: &Shape<'_>, fill: impl FnOnce(&mut [u8])) -> bool {
        let body_bytes = record_body_bytes(shape, self.records);
        let whole_bytes = varint_bytes(body_bytes as i64) + body_bytes;
        if self.buffer.len() - self.end < whole_bytes {
            return false;
        }
        let mut cursor = &mut self.buffer[self.end..self.end + whole_bytes];
        put_varint(&mut cursor, body_bytes as i64);
        put(&mut cursor, &[0, 0]); // attributes; timestamp delta
        put_varint(&mut cursor, i64::from(self.records));
        match shape.key {
            None => put_varint(&mut cursor, -1),
            Some(key) => {
                put_varint(&mut cursor, key.len() as i64);
                put(&mut cursor, key);
            }
        }
        put_varint(&mut cursor, shape.value_bytes as i64);
        let (value, rest) = std::mem::take(&mut cursor).split_at_mut(shape.value_bytes);
        fill(value);
        cursor = rest;
        put_varint(&mut cursor, i64::from(shape.header.is_some()));
        if let Some((name, value)) = shape.header {
            put_varint(&mut cursor, name.len() as i64);
            put(&mut cursor, name.as_bytes());
            put_varint(&mut cursor, value.len() as i64);
            put(&mut cursor, value);
        }
        assert!(cursor.is_empty(), "a record of {whole_bytes} bytes left {} unwritten", cursor.len());
        self.end += whole_bytes;
        self.records += 1;
        true
    }

    /// Records so far.
    #[must_use]
    pub fn records(&self) -> i32 {
        self.records
    }

    /// Writes the head and the CRC; the batch is the first so many bytes of the buffer.
    ///
    /// # Panics
    /// When the batch is empty: no server takes one.
    #[must_use]
    pub fn finish(self) -> usize {
        assert!(self.records > 0, "an empty batch");
        let BatchWriter { buffer, end, records, timestamp_ms } = self;
        let batch = &mut buffer[..end];
        let length = i32::try_from(end - LENGTH_END).expect("a batch below 2 GiB");
        batch[0..8].copy_from_slice(&0i64.to_be_bytes());
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        batch[12..16].copy_from_slice(&(-1i32).to_be_bytes());
        batch[16] = MAGIC as u8;
        batch[21..23].copy_from_slice(&0i16.to_be_bytes());
        batch[23..27].copy_from_slice(&(records - 1).to_be_bytes());
        batch[27..35].copy_from_slice(&timestamp_ms.to_be_bytes());
        batch[35..43].copy_from_slice(&timestamp_ms.to_be_bytes());
        batch[43..51].copy_from_slice(&(-1i64).to_be_bytes());
        batch[51..53].copy_from_slice(&(-1i16).to_be_bytes());
        batch[53..57].copy_from_slice(&(-1i32).to_be_bytes());
        batch[57..61].copy_from_slice(&records.to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&batch[CRC_FROM..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        end
    }
}

/// The bytes of a batch that holds this one record: what the smallest useful batch limit is.
#[must_use]
pub fn batch_bytes_of_one(shape: &Shape<'_>) -> usize {
    let body_bytes = record_body_bytes(shape, 0);
    BATCH_HEAD_BYTES + varint_bytes(body_bytes as i64) + body_bytes
}

fn record_body_bytes(shape: &Shape<'_>, offset_delta: i32) -> usize {
    let key_bytes = shape.key.map_or(1, |key| varint_bytes(key.len() as i64) + key.len());
    let header_bytes = shape.header.map_or(0, |(name, value)| {
        varint_bytes(name.len() as i64) + name.len() + varint_bytes(value.len() as i64) + value.len()
    });
    let value_bytes = varint_bytes(shape.value_bytes as i64) + shape.value_bytes;
    2 + varint_bytes(i64::from(offset_delta)) + key_bytes + value_bytes + 1 + header_bytes
}

pub(super) fn varint_bytes(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)) as u64;
    (70 - (zigzag | 1).leading_zeros() as usize) / 7
}

fn put(cursor: &mut &mut [u8], bytes: &[u8]) {
    let (head, rest) = std::mem::take(cursor).split_at_mut(bytes.len());
    head.copy_from_slice(bytes);
    *cursor = rest;
}

pub(super) fn put_varint(cursor: &mut &mut [u8], value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        put(cursor, &[zigzag as u8 | 0x80]);
        zigzag >>= 7;
    }
    put(cursor, &[zigzag as u8]);
}
