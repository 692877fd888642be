//! Record batches in Kafka's v2 format, written and read in place.
//!
//! The harness has a codec of its own: a load that shared the broker's would share its mistakes. Only uncompressed
//! batches are written and read. [`BatchWriter`] encodes straight into the caller's request buffer; [`Batches`]
//! walks a fetch answer and lends out slices of it. Neither allocates. The reader believes no length that the
//! bytes present do not bear out.
//!
//! ```text
//!  0 base offset i64      21 attributes i16          43 producer id i64      61 records:
//!  8 batch length i32     23 last offset delta i32   51 producer epoch i16      length varint, attributes i8,
//! 12 leader epoch i32     27 base timestamp i64      53 base sequence i32       timestamp delta, offset delta,
//! 16 magic i8 = 2         35 max timestamp i64       57 record count i32        key, value, headers
//! 17 CRC-32C u32 of everything from 21 on; the length counts everything from 12 on
//! ```

use std::fmt;

/// Bytes before the first record.
pub const BATCH_HEAD_BYTES: usize = 61;
/// Bytes before the part that the batch length counts.
const LENGTH_END: usize = 12;
/// Where the part under the CRC begins.
const CRC_FROM: usize = 21;
const MAGIC: i8 = 2;
/// Compression codec bits of the attributes.
const COMPRESSION: i16 = 0b111;
const CONTROL: i16 = 1 << 5;

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
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
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
    fn varint(&mut self) -> Result<i64, Malformed> {
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

fn record_body_bytes(shape: &Shape<'_>, offset_delta: i32) -> usize {
    let key_bytes = shape.key.map_or(1, |key| varint_bytes(key.len() as i64) + key.len());
    let header_bytes = shape.header.map_or(0, |(name, value)| {
        varint_bytes(name.len() as i64) + name.len() + varint_bytes(value.len() as i64) + value.len()
    });
    let value_bytes = varint_bytes(shape.value_bytes as i64) + shape.value_bytes;
    2 + varint_bytes(i64::from(offset_delta)) + key_bytes + value_bytes + 1 + header_bytes
}

fn varint_bytes(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)) as u64;
    (70 - (zigzag | 1).leading_zeros() as usize) / 7
}

fn put(cursor: &mut &mut [u8], bytes: &[u8]) {
    let (head, rest) = std::mem::take(cursor).split_at_mut(bytes.len());
    head.copy_from_slice(bytes);
    *cursor = rest;
}

fn put_varint(cursor: &mut &mut [u8], value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        put(cursor, &[zigzag as u8 | 0x80]);
        zigzag >>= 7;
    }
    put(cursor, &[zigzag as u8]);
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch_of(values: &[&[u8]], key: Option<&[u8]>, header: Option<(&str, &[u8])>) -> Vec<u8> {
        let mut buffer = vec![0xee; 100_000];
        let mut writer = BatchWriter::begin(&mut buffer, 1_700_000_000_000);
        for value in values {
            let shape = Shape { key, value_bytes: value.len(), header };
            assert!(writer.push(&shape, |place| place.copy_from_slice(value)));
        }
        let end = writer.finish();
        buffer.truncate(end);
        buffer
    }

    /// The bytes as the Java client's `DefaultRecordBatch` lays them out, spelled out by hand.
    #[test]
    fn a_batch_has_kafkas_bytes() {
        let batch = batch_of(&[b"v"], Some(b"k"), Some(("h", b"x")));
        let wanted: Vec<u8> = [
            &[0; 8][..],                             // base offset
            &[0, 0, 0, 62],                          // length: 49 + 13
            &[0xff; 4],                              // leader epoch
            &[2],                                    // magic
            &batch[17..21],                          // CRC, checked below
            &[0, 0, 0, 0, 0, 0],                     // attributes, last offset delta
            &1_700_000_000_000i64.to_be_bytes()[..], // base timestamp
            &1_700_000_000_000i64.to_be_bytes()[..], // max timestamp
            &[0xff; 14],                             // producer id, epoch, base sequence
            &[0, 0, 0, 1],                           // count
            &[24, 0, 0, 0, 2, b'k', 2, b'v', 2, 2, b'h', 2, b'x'],
        ]
        .concat();
        assert_eq!(batch, wanted);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &batch[21..]) as u32;
        assert_eq!(batch[17..21], crc.to_be_bytes());
    }

    #[test]
    fn what_was_written_is_read_and_a_partial_batch_is_left_alone() {
        let values: Vec<Vec<u8>> = (0..200usize).map(|size| vec![size as u8; size * 3]).collect();
        let borrowed: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let mut bytes = batch_of(&borrowed, None, Some(("rl", b"head")));
        let one = bytes.len();
        bytes[0..8].copy_from_slice(&500i64.to_be_bytes());
        bytes.extend(batch_of(&[b"", b"two"], Some(b"key"), None));
        let whole = bytes.len();
        bytes.extend_from_slice(&batch_of(&[b"cut"], None, None)[..70]);

        let mut batches = Batches::new(&bytes);
        let first = batches.next().unwrap().unwrap();
        assert!(first.crc_is_good() && !first.is_control());
        assert_eq!((first.base_offset(), first.last_offset_delta(), first.bytes().len()), (500, 199, one));
        for (index, record) in first.records().enumerate() {
            let record = record.unwrap();
            assert_eq!((record.offset, record.value), (500 + index as i64, Some(borrowed[index])));
            assert_eq!((record.key, record.timestamp_ms), (None, 1_700_000_000_000));
            assert_eq!((record.header("rl"), record.header("no")), (Some(&b"head"[..]), None));
        }
        let second = batches.next().unwrap().unwrap();
        assert_eq!(
            second.records().map(|record| record.unwrap().key).collect::<Vec<_>>(),
            [Some(&b"key"[..]); 2]
        );
        assert!(batches.next().is_none());
        assert_eq!(batches.remaining(), bytes.len() - whole);
    }

    #[test]
    fn a_record_that_does_not_fit_changes_nothing() {
        let shape = Shape { key: None, value_bytes: 100, header: None };
        let mut buffer = vec![0; batch_bytes_of_one(&shape) + 50];
        let mut writer = BatchWriter::begin(&mut buffer, 0);
        assert!(writer.push(&shape, |value| value.fill(1)));
        assert!(!writer.push(&shape, |_| panic!("no place for it")));
        assert_eq!(writer.records(), 1);
        let end = writer.finish();
        assert_eq!(end, batch_bytes_of_one(&shape));
        assert!(Batches::new(&buffer[..end]).next().unwrap().unwrap().crc_is_good());
    }

    #[test]
    fn lengths_that_the_bytes_do_not_bear_out_are_refused() {
        let good = batch_of(&[b"value"], None, None);
        let judge = |at: usize, bytes: &[u8]| {
            let mut batch = good.clone();
            batch[at..at + bytes.len()].copy_from_slice(bytes);
            let mut batches = Batches::new(&batch);
            match batches.next() {
                None => Err("partial"),
                Some(Err(malformed)) => Err(malformed.what),
                Some(Ok(batch)) => match batch.records().find_map(Result::err) {
                    Some(malformed) => Err(malformed.what),
                    None => Ok(()),
                },
            }
        };
        assert_eq!(judge(0, &[]), Ok(()));
        assert_eq!(judge(8, &(-1i32).to_be_bytes()), Err("a batch length smaller than the batch head"));
        assert_eq!(judge(8, &48i32.to_be_bytes()), Err("a batch length smaller than the batch head"));
        assert_eq!(judge(8, &i32::MAX.to_be_bytes()), Err("partial"));
        assert_eq!(judge(16, &[1]), Err("a batch magic other than 2"));
        assert_eq!(judge(22, &[4]), Err("a compressed batch"));
        assert_eq!(judge(57, &(-1i32).to_be_bytes()), Err("a negative record count or last offset delta"));
        assert_eq!(judge(57, &2i32.to_be_bytes()), Err("fewer records than the count says"));
        assert_eq!(judge(57, &0i32.to_be_bytes()), Err("bytes after the last record"));
        assert_eq!(judge(61, &[100]), Err("a record length beyond its batch"));
        assert_eq!(judge(61, &[1]), Err("a record length beyond its batch"));
        assert_eq!(judge(66, &[100]), Err("a field length beyond its record"));
        assert_eq!(judge(72, &[1]), Err("a negative header count"));
        assert_eq!(judge(62, &[0xff; 11]), Err("a number longer than ten bytes"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), sane in any::<bool>()) {
            if sane && bytes.len() > BATCH_HEAD_BYTES {
                let length = (bytes.len() - LENGTH_END) as i32;
                bytes[8..12].copy_from_slice(&length.to_be_bytes());
                bytes[16] = 2;
                bytes[21..23].fill(0);
                bytes[23..25].fill(0);
                bytes[57..60].fill(0);
            }
            for batch in Batches::new(&bytes).take(10).flatten() {
                for record in batch.records().flatten() {
                    let _ = record.header("rl");
                }
            }
        }

        #[test]
        fn a_varint_takes_the_bytes_it_was_given(value in any::<i64>()) {
            let mut bytes = [0; 10];
            let mut cursor = &mut bytes[..];
            put_varint(&mut cursor, value);
            let written = 10 - cursor.len();
            prop_assert_eq!(written, varint_bytes(value));
            let mut reader = Reader { bytes: &bytes[..written], position: 0 };
            prop_assert_eq!(reader.varint(), Ok(value));
        }
    }
}
