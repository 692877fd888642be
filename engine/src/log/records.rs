//! The records of one uncompressed batch, one by one: for tools, tests and verifying consumers. The engine
//! moves batches whole and never looks inside.
//!
//! Every length is believed only as far as the bytes bear it out; nothing is allocated.

use super::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader};
use crate::types::{Offset, Timestamp};

/// An iterator over the records of one uncompressed batch. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    batch: &'a [u8],
    at: usize,
    index: i32,
}

/// One record, borrowed from its batch.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Its name in the partition.
    pub offset: Offset,
    /// Its time: the producer's, or the log's where the batch says so.
    pub timestamp: Timestamp,
    /// Its key, if any.
    pub key: Option<&'a [u8]>,
    /// Its value, if any; a record with a key and without a value is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// An iterator over the headers of one record: name, and value if any.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    /// Walked once already, when the record was read: what is left here decodes.
    rest: Bytes<'a>,
    left: usize,
}

impl<'a> Records<'a> {
    /// The records of the batch at the front of `bytes`.
    ///
    /// # Errors
    /// No readable header, fewer bytes than it asks for, or compressed records. The CRC is not checked here.
    pub fn new(bytes: &'a [u8]) -> Result<Records<'a>, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        header.check_offsets()?;
        let Some(batch) = bytes.get(..header.bytes as usize) else {
            return Err(BatchError::Length { field: (header.bytes - 12) as i32, actual: bytes.len() });
        };
        match header.compression() {
            0 => Ok(Records { header, batch, at: BATCH_HEADER_BYTES, index: 0 }),
            codec => Err(BatchError::Compressed(codec)),
        }
    }

    /// The header of the batch.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    fn read(&mut self) -> Result<Record<'a>, &'static str> {
        let mut batch = Bytes(&self.batch[self.at..]);
        let length = batch.varint()?;
        let mut body = Bytes(batch.take(length)?);
        self.at = self.batch.len() - batch.0.len();
        body.take(1)?;
        let timestamp_delta = body.varint()?;
        let offset_delta = body.varint()?;
        if !(0..=i64::from(self.header.last_offset_delta)).contains(&offset_delta) {
            return Err("its offset delta is beyond the batch's last");
        }
        let key = body.blob()?;
        let value = body.blob()?;
        let count = usize::try_from(body.varint()?).map_err(|_| "its count of headers is negative")?;
        let headers = Headers { rest: body.clone(), left: count };
        for _ in 0..count {
            body.header()?;
        }
        if !body.0.is_empty() {
            return Err("bytes are left over after its headers");
        }
        let timestamp = match self.header.is_append_time() {
            true => self.header.max_timestamp,
            false => Timestamp(self.header.base_timestamp.0.wrapping_add(timestamp_delta)),
        };
        Ok(Record { offset: self.header.base_offset.plus(offset_delta), timestamp, key, value, headers })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Result<Record<'a>, BatchError>> {
        let (index, at) = (self.index, self.at);
        if index == self.header.count {
            if at == self.batch.len() {
                return None;
            }
            self.at = self.batch.len();
            return Some(Err(BatchError::Record { index, at, what: "bytes follow the last record" }));
        }
        self.index += 1;
        let record = self.read().map_err(|what| {
            (self.index, self.at) = (self.header.count, self.batch.len());
            BatchError::Record { index, at, what }
        });
        Some(record)
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<(&'a str, Option<&'a [u8]>)> {
        self.left = self.left.checked_sub(1)?;
        Some(self.rest.header().expect("headers are walked once before a record is handed out"))
    }
}

/// Bytes not yet read.
#[derive(Clone, Debug)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: i64) -> Result<&'a [u8], &'static str> {
        let length = usize::try_from(length).map_err(|_| "a length is negative")?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or("a length runs past the end")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<i64, &'static str> {
        let mut zigzag = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("a number runs past the end")?;
            self.0 = rest;
            zigzag |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed());
            }
        }
        Err("a number is longer than ten bytes")
    }

    fn blob(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        match self.varint()? {
            -1 => Ok(None),
            length => self.take(length).map(Some),
        }
    }

    fn header(&mut self) -> Result<(&'a str, Option<&'a [u8]>), &'static str> {
        let name = self.blob()?.ok_or("a header has no name")?;
        let name = std::str::from_utf8(name).map_err(|_| "the name of a header is not UTF-8")?;
        Ok((name, self.blob()?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::{stamp, stamp_append_time, stamp_crc};
    use super::super::build::BatchBuilder;
    use super::*;
    use crate::types::Epoch;
    use proptest::prelude::*;

    type Plain = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Vec<u8>)>);

    fn build(base: i64, records: &[Plain]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Timestamp(base));
        for (timestamp, key, value, headers) in records {
            let headers: Vec<(&str, &[u8])> =
                headers.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            builder.push(Timestamp(*timestamp), key.as_deref(), value.as_deref(), &headers);
        }
        builder.finish().to_vec()
    }

    #[test]
    fn append_time_speaks_for_every_record() {
        let mut batch = build(5, &[(5, None, None, vec![]), (9, None, None, vec![])]);
        stamp_append_time(&mut batch, Timestamp(77));
        assert!(Records::new(&batch).unwrap().all(|record| record.unwrap().timestamp == Timestamp(77)));
    }

    #[test]
    fn bytes_after_the_last_record_are_told() {
        let mut batch = build(0, &[(0, None, Some(vec![1]), vec![])]);
        batch.push(0);
        let length = batch.len() as i32 - 12;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        stamp_crc(&mut batch);
        let last = Records::new(&batch).unwrap().last().unwrap();
        assert!(matches!(last, Err(BatchError::Record { index: 1, .. })), "{last:?}");
    }

    fn plain() -> impl Strategy<Value = Plain> {
        let blob = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..80));
        (
            any::<i32>().prop_map(i64::from),
            blob(),
            blob(),
            any::<Vec<(String, Vec<u8>)>>().prop_map(|mut v| {
                v.truncate(3);
                v
            }),
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_built_is_read_back(base in -1i64..1 << 40, records in proptest::collection::vec(plain(), 1..8)) {
            let mut batch = build(base, &records);
            stamp(&mut batch, Offset(100), Epoch(0));
            let mut read = Vec::new();
            for (index, record) in Records::new(&batch).unwrap().enumerate() {
                let record = record.unwrap();
                prop_assert_eq!(record.offset, Offset(100 + index as i64));
                let headers = record.headers.map(|(n, v)| (n.to_owned(), v.unwrap().to_vec())).collect();
                read.push((record.timestamp.0, record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec), headers));
            }
            prop_assert_eq!(read, records);
        }

        #[test]
        fn broken_batches_never_panic(records in proptest::collection::vec(plain(), 1..4), at: prop::sample::Index, byte: u8) {
            let mut batch = build(0, &records);
            let at = at.index(batch.len());
            batch[at] = byte;
            if let Ok(records) = Records::new(&batch) {
                for record in records.flatten() {
                    record.headers.for_each(drop);
                }
            }
        }
    }
}
