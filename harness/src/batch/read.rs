//! Batches as they come out of a fetch answer: slices of somebody's bytes, checked before they are lent out.

use std::fmt;

use super::{BATCH_HEAD_BYTES, COMPRESSION, CONTROL, CRC_FROM, LENGTH_END, MAGIC};

/// Bytes that are not what the format promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where in the bytes that were given to the reader.
    pub position: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.position)
    }
}

impl std::error::Error for Malformed {}

/// Walks batches laid back to back, as a fetch answer has them; the last may be cut off and is then left alone.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Batches<'a> {
    /// Over the record bytes of one partition's answer.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Batches<'a> {
        Batches { bytes, position: 0 }
    }

    /// Bytes not walked: after the walk, the size of a partial batch at the end, or of what follows a malformed one.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<Batch<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let here = &self.bytes[self.position..];
        let malformed = |what, at: usize| Some(Err(Malformed { what, position: self.position + at }));
        if here.len() < CRC_FROM {
            return None;
        }
        let length = i32_at(here, 8);
        // A whole batch is judged before its cut-off is believed: an absurd length must not look like a partial one.
        if (length as i64) < (BATCH_HEAD_BYTES - LENGTH_END) as i64 {
            return malformed("a batch length smaller than the batch head", 8);
        }
        if here[16] as i8 != MAGIC {
            return malformed("a batch magic other than 2", 16);
        }
        let whole_bytes = LENGTH_END + length as usize;
        let bytes = here.get(..whole_bytes)?;
        let batch = Batch { bytes, position: self.position };
        if batch.records_count() < 0 || batch.last_offset_delta() < 0 {
            return malformed("a negative record count or last offset delta", 23);
        }
        if batch.attributes() & COMPRESSION != 0 {
            return malformed("a compressed batch", 21);
        }
        self.position += whole_bytes;
        Some(Ok(batch))
    }
}

/// One whole batch in somebody's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Batch<'a> {
    /// The offset of its first record.
    #[must_use]
    pub fn base_offset(&self) -> i64 {
        i64_at(self.bytes, 0)
    }

    /// Last offset minus base offset.
    #[must_use]
    pub fn last_offset_delta(&self) -> i32 {
        i32_at(self.bytes, 23)
    }

    /// The term in which it was appended.
    #[must_use]
    pub fn leader_epoch(&self) -> i32 {
        i32_at(self.bytes, 12)
    }

    /// How many records it says it has.
    #[must_use]
    pub fn records_count(&self) -> i32 {
        i32_at(self.bytes, 57)
    }

    /// Whether it carries a transaction marker instead of records.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes() & CONTROL != 0
    }

    /// All of its bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether the CRC-32C in the head is that of the bytes.
    #[must_use]
    pub fn crc_is_good(&self) -> bool {
        crc_fast::crc32_iscsi(&self.bytes[CRC_FROM..]) == i32_at(self.bytes, 17) as u32
    }

    /// Its records. Stops at the first malformed one, and complains of bytes left over.
    #[must_use]
    pub fn records(&self) -> Records<'a> {
        let remaining = self.records_count();
        Records {
            batch: *self,
            reader: Reader { bytes: self.bytes, position: BATCH_HEAD_BYTES },
            remaining,
            ended: false,
        }
    }

    fn attributes(&self) -> i16 {
        i16::from_be_bytes([self.bytes[21], self.bytes[22]])
    }
}

/// One record in somebody's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Its offset in the partition.
    pub offset: i64,
    /// Create or append time in milliseconds.
    pub timestamp_ms: i64,
    /// The key, or null.
    pub key: Option<&'a [u8]>,
    /// The value, or null.
    pub value: Option<&'a [u8]>,
    /// The headers as encoded, checked to be well formed.
    headers: &'a [u8],
}

impl<'a> Record<'a> {
    /// The value of the first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let mut reader = Reader { bytes: self.headers, position: 0 };
        for _ in 0..reader.varint().ok()? {
            let found = reader.sized().ok()??;
            let value = reader.sized().ok()?;
            if found == name.as_bytes() {
                return value;
            }
        }
        None
    }
}

/// Walks the records of one batch.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    batch: Batch<'a>,
    reader: Reader<'a>,
    remaining: i32,
    ended: bool,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let at_end = self.reader.position == self.reader.bytes.len();
        let record = match (self.remaining, at_end) {
            (0, true) => return None,
            (0, false) => Err(self.reader.malformed("bytes after the last record")),
            (_, true) => Err(self.reader.malformed("fewer records than the count says")),
            (_, false) => self.reader.record(&self.batch),
        };
        self.remaining -= 1;
        self.ended = record.is_err();
        Some(record.map_err(|malformed| Malformed {
            position: malformed.position + self.batch.position,
            ..malformed
        }))
    }
}

/// Reads fields and refuses to run past the end.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) position: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    fn record(&mut self, batch: &Batch<'_>) -> Result<Record<'a>, Malformed> {
        let start = self.position;
        let length = self.varint()?;
        let whole =
            usize::try_from(length).ok().and_then(|length| self.bytes.get(self.position..)?.get(..length));
        let Some(body) = whole else {
            return Err(Malformed { what: "a record length beyond its batch", position: start });
        };
        let body_start = self.position;
        self.position += body.len();
        let mut reader = Reader { bytes: body, position: 0 };
        record_body(&mut reader, batch)
            .map_err(|malformed| Malformed { position: malformed.position + body_start, ..malformed })
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<i64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(&byte) = self.bytes.get(self.position) else {
                return Err(self.malformed("a number cut off"));
            };
            self.position += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(self.malformed("a number longer than ten bytes"))
    }

    /// A length and so many bytes; -1 is null.
    #[inline]
    fn sized(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let length = self.varint()?;
        if length == -1 {
            return Ok(None);
        }
        let bytes =
            usize::try_from(length).ok().and_then(|length| self.bytes.get(self.position..)?.get(..length));
        match bytes {
            Some(bytes) => {
                self.position += bytes.len();
                Ok(Some(bytes))
            }
            None => Err(self.malformed("a field length beyond its record")),
        }
    }

    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { what, position: self.position }
    }
}

#[inline]
fn record_body<'a>(reader: &mut Reader<'a>, batch: &Batch<'_>) -> Result<Record<'a>, Malformed> {
    if reader.bytes.is_empty() {
        return Err(reader.malformed("an empty record"));
    }
    reader.position += 1; // attributes: unused by the format
    let timestamp_delta = reader.varint()?;
    let offset_delta = reader.varint()?;
    let key = reader.sized()?;
    let value = reader.sized()?;
    let headers_start = reader.position;
    let headers = reader.varint()?;
    if headers < 0 {
        return Err(reader.malformed("a negative header count"));
    }
    for _ in 0..headers {
        if reader.sized()?.is_none() {
            return Err(reader.malformed("a header without a name"));
        }
        reader.sized()?;
    }
    if reader.position != reader.bytes.len() {
        return Err(reader.malformed("bytes after the last header"));
    }
    Ok(Record {
        offset: batch.base_offset().wrapping_add(offset_delta),
        timestamp_ms: i64_at(batch.bytes, 27).wrapping_add(timestamp_delta),
        key,
        value,
        headers: &reader.bytes[headers_start..],
    })
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
