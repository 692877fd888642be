//! The record batch, magic 2: the unit that is written, checked and sent.
//!
//! Stored as it came from the client: disk bytes are wire bytes. The format is Kafka's, as its protocol guide
//! ("Record Batch") and `DefaultRecordBatch.java` describe it; the layout is drawn in `FORMAT.md`. Base offset
//! and leader epoch lie before the checksummed part, so [`stamp`] costs no checksum. Records inside a batch are
//! not looked at here; that is what [`Records`](super::Records) is for, off the hot path.

use super::crc::{Crc32c, crc32c};
use crate::types::{Epoch, Offset, Timestamp};

/// The bytes before the first record.
pub const BATCH_HEADER_BYTES: usize = 61;
/// Where in a batch its checksum begins to count. Without what lies before, the rest is no batch.
pub const BATCH_CRC_FROM: usize = at::ATTRIBUTES;

/// What the length field does not count: base offset (8 bytes) and itself (4 bytes).
pub const LENGTH_OVERHEAD: u32 = 12;

/// The least an uncompressed record takes: seven fields of one byte each.
const RECORD_BYTES_MIN: i64 = 7;

pub(super) mod at {
    //! Where each field of the header begins.
    pub const BASE_OFFSET: usize = 0;
    pub const LENGTH: usize = 8;
    pub const LEADER_EPOCH: usize = 12;
    pub const MAGIC: usize = 16;
    pub const CRC: usize = 17;
    pub const ATTRIBUTES: usize = 21;
    pub const LAST_OFFSET_DELTA: usize = 23;
    pub const BASE_TIMESTAMP: usize = 27;
    pub const MAX_TIMESTAMP: usize = 35;
    pub const PRODUCER_ID: usize = 43;
    pub const PRODUCER_EPOCH: usize = 51;
    pub const BASE_SEQUENCE: usize = 53;
    pub const COUNT: usize = 57;
}

// The checksum covers everything from the attributes on; the stamped fields must stay in front of it.
const _: () = assert!(at::LEADER_EPOCH + 4 <= at::CRC && at::ATTRIBUTES == at::CRC + 4);
const _: () = assert!(at::COUNT + 4 == BATCH_HEADER_BYTES);

pub(super) const MAGIC: i8 = 2;
const ATTRIBUTE_COMPRESSION: i16 = 0b111;
const ATTRIBUTE_APPEND_TIME: i16 = 1 << 3;
pub(super) const ATTRIBUTE_TRANSACTIONAL: i16 = 1 << 4;
const ATTRIBUTE_CONTROL: i16 = 1 << 5;
/// gzip, snappy, lz4, zstd are 1 to 4.
const COMPRESSION_MAX: u8 = 4;

/// The 61 bytes in front of the records, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record.
    pub base_offset: Offset,
    /// The size of the whole batch: the length field plus 12.
    pub bytes: u32,
    /// The epoch in which the offset was assigned.
    pub leader_epoch: Epoch,
    /// CRC-32C of everything from the attributes to the end.
    pub crc: u32,
    /// Compression (bits 0 to 2), append time (3), transactional (4), control (5), delete horizon (6).
    pub attributes: i16,
    /// The offset of the last record, less the base offset.
    pub last_offset_delta: i32,
    /// The timestamp that the records' deltas are added to.
    pub base_timestamp: Timestamp,
    /// The largest timestamp in the batch.
    pub max_timestamp: Timestamp,
    /// Who produced it, or -1.
    pub producer_id: i64,
    /// The producer's own epoch, or -1.
    pub producer_epoch: i16,
    /// The producer's sequence number of the first record, or -1.
    pub base_sequence: i32,
    /// How many records there are.
    pub count: i32,
}

/// Why bytes are not the batch they should be.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum BatchError {
    /// Not even a header.
    #[error("{0} bytes are too short for a batch: its header takes {BATCH_HEADER_BYTES}")]
    TooShort(usize),
    /// Another format, or no batch at all (zeros read as magic 0).
    #[error("magic {0}, only 2 is kept here")]
    Magic(i8),
    /// The length field disagrees with the bytes that are there, or is impossible.
    #[error("length field {field} asks for {} bytes in all, {actual} are there", i64::from(*field) + 12)]
    Length {
        /// What the field says (12 less than the whole batch).
        field: i32,
        /// How many bytes are there.
        actual: usize,
    },
    /// More bytes than one batch: a second batch where one belongs.
    #[error("{extra} bytes follow the batch of {batch} bytes where exactly one batch belongs")]
    TrailingBytes {
        /// The size of the first batch.
        batch: u32,
        /// How many bytes follow it.
        extra: usize,
    },
    /// The count of records is impossible.
    #[error("{count} records, last offset delta {last_offset_delta}, in {bytes} bytes")]
    Count {
        /// What the count field says.
        count: i32,
        /// What the last offset delta says.
        last_offset_delta: i32,
        /// The size of the batch.
        bytes: u32,
    },
    /// The bytes changed since the checksum was computed.
    #[error("stored CRC {stored:#010x}, computed {computed:#010x}")]
    Crc {
        /// What the batch carries.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Clients may not write control batches.
    #[error("a control batch from a client")]
    Control,
    /// Bits of the attributes that may not be set, or an unknown compression.
    #[error("attributes {0:#06x} are not known here or not a producer's to set")]
    Attributes(i16),
    /// Timestamps that no clock gave.
    #[error("base timestamp {base}, largest timestamp {max}")]
    Timestamps {
        /// The base timestamp.
        base: Timestamp,
        /// The largest timestamp.
        max: Timestamp,
    },
    /// An idempotent producer must number its batches.
    #[error("producer {id} with epoch {epoch} and base sequence {sequence}")]
    Producer {
        /// The producer id.
        id: i64,
        /// Its epoch.
        epoch: i16,
        /// The first sequence number.
        sequence: i32,
    },
    /// A base offset below zero, or one that the delta carries past the largest offset there is.
    #[error("base offset {base} with last offset delta {last_offset_delta}")]
    Offsets {
        /// The base offset.
        base: Offset,
        /// The last offset delta.
        last_offset_delta: i32,
    },
    /// The records are compressed, and are wanted one by one.
    #[error("the records are compressed (codec {0})")]
    Compressed(u8),
    /// A record does not decode.
    #[error("record {index} at byte {at} of the batch: {what}")]
    Record {
        /// Which record of the batch, from 0.
        index: i32,
        /// Where in the batch it begins.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl BatchHeader {
    /// Reads a header off the front of `bytes`. Believes what makes it readable and no more: magic, and a
    /// length that can hold a header. The checksum and the counts are for [`check_produced`] and [`check_stored`].
    ///
    /// # Errors
    /// Fewer than 61 bytes, another magic, an impossible length.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(header) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else {
            return Err(BatchError::TooShort(bytes.len()));
        };
        let magic = header[at::MAGIC].cast_signed();
        if magic != MAGIC {
            return Err(BatchError::Magic(magic));
        }
        let field = i32::from_be_bytes(field(header, at::LENGTH));
        let length = u32::try_from(field).unwrap_or(0);
        if length + LENGTH_OVERHEAD < BATCH_HEADER_BYTES as u32 {
            return Err(BatchError::Length { field, actual: bytes.len() });
        }
        Ok(BatchHeader {
            base_offset: Offset(i64::from_be_bytes(self::field(header, at::BASE_OFFSET))),
            bytes: length + LENGTH_OVERHEAD,
            leader_epoch: Epoch(i32::from_be_bytes(self::field(header, at::LEADER_EPOCH))),
            crc: u32::from_be_bytes(self::field(header, at::CRC)),
            attributes: i16::from_be_bytes(self::field(header, at::ATTRIBUTES)),
            last_offset_delta: i32::from_be_bytes(self::field(header, at::LAST_OFFSET_DELTA)),
            base_timestamp: Timestamp(i64::from_be_bytes(self::field(header, at::BASE_TIMESTAMP))),
            max_timestamp: Timestamp(i64::from_be_bytes(self::field(header, at::MAX_TIMESTAMP))),
            producer_id: i64::from_be_bytes(self::field(header, at::PRODUCER_ID)),
            producer_epoch: i16::from_be_bytes(self::field(header, at::PRODUCER_EPOCH)),
            base_sequence: i32::from_be_bytes(self::field(header, at::BASE_SEQUENCE)),
            count: i32::from_be_bytes(self::field(header, at::COUNT)),
        })
    }

    /// The offset of the last record. Saturates: a header fresh from a client may claim anything.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        Offset(self.base_offset.0.saturating_add(i64::from(self.last_offset_delta)))
    }

    /// The offset after the last record. Saturates like [`BatchHeader::last_offset`].
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        Offset(self.last_offset().0.saturating_add(1))
    }

    /// Whether it holds control records (transaction markers) instead of data.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & ATTRIBUTE_CONTROL != 0
    }

    /// Whether it belongs to a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// Whether the log stamped its own time over the producer's.
    #[must_use]
    pub fn is_append_time(&self) -> bool {
        self.attributes & ATTRIBUTE_APPEND_TIME != 0
    }

    /// The compression codec: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd, above that unknown.
    #[must_use]
    pub fn compression(&self) -> u8 {
        (self.attributes & ATTRIBUTE_COMPRESSION) as u8
    }

    /// What must hold of offsets and counts on disk: compaction may leave fewer records than offsets, even none.
    pub(crate) fn check_offsets(&self) -> Result<(), BatchError> {
        if self.count < 0
            || self.last_offset_delta < 0
            || i64::from(self.count) > i64::from(self.last_offset_delta) + 1
        {
            return Err(self.count_error());
        }
        let last = self.base_offset.0.checked_add(i64::from(self.last_offset_delta));
        if self.base_offset.0 < 0 || last.is_none_or(|last| last == i64::MAX) {
            let BatchHeader { base_offset: base, last_offset_delta, .. } = *self;
            return Err(BatchError::Offsets { base, last_offset_delta });
        }
        Ok(())
    }

    fn count_error(&self) -> BatchError {
        let BatchHeader { count, last_offset_delta, bytes, .. } = *self;
        BatchError::Count { count, last_offset_delta, bytes }
    }
}

/// Checks that `bytes` are exactly one batch that a client may append, and returns its header. One pass over
/// the bytes, for the CRC; records are not walked. The base offset and epoch are the client's fancy until
/// [`stamp`]ed.
///
/// # Errors
/// Whatever is wrong first, with its numbers.
pub fn check_produced(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = sized(bytes)?;
    check_produced_header(&header)?;
    check_crc(bytes, &header)?;
    Ok(header)
}

/// The same for a batch that lies in several parts of memory, one behind the other. `header` is that of its first 61
/// bytes, and says how many there are.
///
/// # Errors
/// As [`check_produced`].
pub fn check_produced_in_parts<'a>(
    header: &BatchHeader,
    parts: impl Iterator<Item = &'a [u8]>,
) -> Result<(), BatchError> {
    check_produced_header(header)?;
    let mut crc = Crc32c::new();
    let mut skip = at::ATTRIBUTES;
    for part in parts {
        let skipped = skip.min(part.len());
        crc.update(&part[skipped..]);
        skip -= skipped;
    }
    match crc.value() {
        computed if computed == header.crc => Ok(()),
        computed => Err(BatchError::Crc { stored: header.crc, computed }),
    }
}

/// What [`check_produced`] says of the header alone: not whether the bytes behind it are those that it was made for.
///
/// # Errors
/// Whatever is wrong first, with its numbers.
pub fn check_produced_header(header: &BatchHeader) -> Result<(), BatchError> {
    let uncompressed_too_small = header.compression() == 0
        && i64::from(header.count) * RECORD_BYTES_MIN > i64::from(header.bytes) - BATCH_HEADER_BYTES as i64;
    if header.count <= 0
        || i64::from(header.count) != i64::from(header.last_offset_delta) + 1
        || uncompressed_too_small
    {
        return Err(header.count_error());
    }
    if header.is_control() {
        return Err(BatchError::Control);
    }
    // Append time and the delete horizon are the log's to set, never the producer's.
    let allowed = ATTRIBUTE_COMPRESSION | ATTRIBUTE_TRANSACTIONAL;
    if header.attributes & !allowed != 0 || header.compression() > COMPRESSION_MAX {
        return Err(BatchError::Attributes(header.attributes));
    }
    // Some clients leave the largest timestamp at -1 ("none") beside a real base timestamp.
    let (base, max) = (header.base_timestamp, header.max_timestamp);
    if base < Timestamp::NONE || max < Timestamp::NONE || (max != Timestamp::NONE && max < base) {
        return Err(BatchError::Timestamps { base, max });
    }
    if header.producer_id >= 0 && (header.base_sequence < 0 || header.producer_epoch < 0) {
        let BatchHeader { producer_id: id, producer_epoch: epoch, base_sequence: sequence, .. } = *header;
        return Err(BatchError::Producer { id, epoch, sequence });
    }
    Ok(())
}

/// Checks that `bytes` are exactly one batch as it may lie in a log: control batches belong there, and
/// compaction leaves batches with fewer records than offsets.
///
/// # Errors
/// Whatever is wrong first, with its numbers.
pub fn check_stored(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = sized(bytes)?;
    header.check_offsets()?;
    check_crc(bytes, &header)?;
    Ok(header)
}

/// Writes offset and epoch into the batch: both lie before the checksummed part, so the CRC stays good.
///
/// # Panics
/// When `batch` is shorter than a header: only checked batches are stamped.
pub fn stamp(batch: &mut [u8], base_offset: Offset, epoch: Epoch) {
    assert!(batch.len() >= BATCH_HEADER_BYTES, "stamp on {} bytes, a header takes 61", batch.len());
    batch[at::BASE_OFFSET..at::LENGTH].copy_from_slice(&base_offset.0.to_be_bytes());
    batch[at::LEADER_EPOCH..at::MAGIC].copy_from_slice(&epoch.0.to_be_bytes());
}

/// Makes `now` the timestamp of every record (LogAppendTime): sets the attribute and the largest timestamp, and
/// computes the CRC anew. One of the three named exceptions to "accepted bytes never change".
///
/// # Panics
/// When `batch` is shorter than a header: only checked batches are stamped.
pub fn stamp_append_time(batch: &mut [u8], now: Timestamp) {
    assert!(batch.len() >= BATCH_HEADER_BYTES, "stamp on {} bytes, a header takes 61", batch.len());
    let attributes = i16::from_be_bytes(field(batch, at::ATTRIBUTES)) | ATTRIBUTE_APPEND_TIME;
    batch[at::ATTRIBUTES..at::LAST_OFFSET_DELTA].copy_from_slice(&attributes.to_be_bytes());
    batch[at::MAX_TIMESTAMP..at::PRODUCER_ID].copy_from_slice(&now.0.to_be_bytes());
    stamp_crc(batch);
}

/// Computes the CRC of a whole batch and writes it into its place.
pub(super) fn stamp_crc(batch: &mut [u8]) {
    let crc = crc32c(&batch[at::ATTRIBUTES..]);
    batch[at::CRC..at::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
}

/// The header, given that the batch and `bytes` have the same size.
fn sized(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(bytes)?;
    let batch = header.bytes as usize;
    if batch > bytes.len() {
        return Err(BatchError::Length {
            field: (header.bytes - LENGTH_OVERHEAD) as i32,
            actual: bytes.len(),
        });
    }
    if batch < bytes.len() {
        return Err(BatchError::TrailingBytes { batch: header.bytes, extra: bytes.len() - batch });
    }
    Ok(header)
}

fn check_crc(bytes: &[u8], header: &BatchHeader) -> Result<(), BatchError> {
    let computed = crc32c(&bytes[at::ATTRIBUTES..]);
    if computed != header.crc {
        return Err(BatchError::Crc { stored: header.crc, computed });
    }
    Ok(())
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field of the header lies within its 61 bytes")
}

#[cfg(test)]
mod tests {
    use super::super::build::BatchBuilder;
    use super::*;
    use proptest::prelude::*;

    fn three_records() -> Vec<u8> {
        let mut builder = BatchBuilder::new(Timestamp(1000));
        builder.push(Timestamp(1000), None, Some(b"a"), &[]);
        builder.push(Timestamp(1007), Some(b"key"), Some(b"bb"), &[("h", b"v")]);
        builder.push(Timestamp(1003), None, None, &[]);
        builder.finish().to_vec()
    }

    fn patched(at: usize, field: &[u8]) -> Vec<u8> {
        let mut batch = three_records();
        batch[at..at + field.len()].copy_from_slice(field);
        stamp_crc(&mut batch);
        batch
    }

    #[test]
    fn a_good_batch_is_accepted_with_its_numbers() {
        let batch = three_records();
        let header = check_produced(&batch).unwrap();
        assert_eq!(header.bytes as usize, batch.len());
        assert_eq!((header.count, header.last_offset_delta), (3, 2));
        assert_eq!((header.base_timestamp, header.max_timestamp), (Timestamp(1000), Timestamp(1007)));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (-1, -1, -1));
        assert_eq!(check_stored(&batch), Ok(header));
    }

    #[test]
    fn the_stamp_leaves_the_checksum_good() {
        let mut batch = three_records();
        stamp(&mut batch, Offset(31), Epoch(4));
        let header = check_produced(&batch).unwrap();
        assert_eq!(
            (header.base_offset, header.last_offset(), header.next_offset()),
            (Offset(31), Offset(33), Offset(34))
        );
        assert_eq!(header.leader_epoch, Epoch(4));
    }

    #[test]
    fn append_time_is_stamped_with_a_new_checksum() {
        let mut batch = three_records();
        stamp_append_time(&mut batch, Timestamp(5000));
        let header = check_stored(&batch).unwrap();
        assert!(header.is_append_time());
        assert_eq!(header.max_timestamp, Timestamp(5000));
        assert_eq!(check_produced(&batch), Err(BatchError::Attributes(8)), "not a producer's to set");
    }

    #[test]
    fn zeros_are_never_a_batch() {
        assert_eq!(BatchHeader::parse(&[0; 4096]), Err(BatchError::Magic(0)));
    }

    #[test]
    fn each_way_of_being_wrong_has_its_name() {
        let good = three_records();
        let field = good.len() as i32 - 12;
        assert_eq!(check_produced(&good[..60]), Err(BatchError::TooShort(60)));
        let short = &good[..good.len() - 1];
        assert_eq!(check_produced(short), Err(BatchError::Length { field, actual: short.len() }));
        let two = [good.clone(), good.clone()].concat();
        assert_eq!(
            check_produced(&two),
            Err(BatchError::TrailingBytes { batch: good.len() as u32, extra: good.len() })
        );
        assert_eq!(check_produced(&patched(at::MAGIC, &[1])), Err(BatchError::Magic(1)));
        for length in [-1i32, 0, 48, i32::MIN] {
            let batch = patched(at::LENGTH, &length.to_be_bytes());
            assert_eq!(
                check_produced(&batch),
                Err(BatchError::Length { field: length, actual: batch.len() })
            );
        }
        for (delta, count) in
            [(2, 2), (2, 4), (-1, 0), (2, 0), (-4, -3), (i32::MAX - 1, i32::MAX), (i32::MAX, i32::MIN)]
        {
            let mut batch = patched(at::COUNT, &i32::to_be_bytes(count));
            batch[at::LAST_OFFSET_DELTA..][..4].copy_from_slice(&i32::to_be_bytes(delta));
            stamp_crc(&mut batch);
            assert!(matches!(check_produced(&batch), Err(BatchError::Count { .. })), "{delta} {count}");
        }
        assert_eq!(check_produced(&patched(at::ATTRIBUTES, &[0, 0x20])), Err(BatchError::Control));
        assert_eq!(check_produced(&patched(at::ATTRIBUTES, &[0, 5])), Err(BatchError::Attributes(5)));
        assert_eq!(check_produced(&patched(at::ATTRIBUTES, &[1, 0])), Err(BatchError::Attributes(256)));
        assert!(check_produced(&patched(at::ATTRIBUTES, &[0, 0x10])).unwrap().is_transactional());
        assert!(matches!(
            check_produced(&patched(at::MAX_TIMESTAMP, &999i64.to_be_bytes())),
            Err(BatchError::Timestamps { .. })
        ));
        assert!(check_produced(&patched(at::MAX_TIMESTAMP, &(-1i64).to_be_bytes())).is_ok());
        assert!(matches!(
            check_produced(&patched(at::PRODUCER_ID, &7i64.to_be_bytes())),
            Err(BatchError::Producer { id: 7, epoch: -1, sequence: -1 })
        ));
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(matches!(check_produced(&flipped), Err(BatchError::Crc { .. })));
    }

    #[test]
    fn a_stored_batch_may_be_compacted_or_control() {
        let compacted = patched(at::COUNT, &1i32.to_be_bytes());
        assert_eq!(check_stored(&compacted).unwrap().count, 1);
        assert!(check_stored(&patched(at::ATTRIBUTES, &[0, 0x30])).unwrap().is_control());
        let below_zero = patched(at::BASE_OFFSET, &(-1i64).to_be_bytes());
        assert!(matches!(check_stored(&below_zero), Err(BatchError::Offsets { .. })));
        let past_the_end = patched(at::BASE_OFFSET, &(i64::MAX - 1).to_be_bytes());
        assert!(matches!(check_stored(&past_the_end), Err(BatchError::Offsets { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic && bytes.len() > at::MAGIC {
                let length = bytes.len().saturating_sub(12) as u32;
                bytes[at::MAGIC] = 2;
                bytes[at::LENGTH..at::LEADER_EPOCH].copy_from_slice(&length.to_be_bytes());
                if bytes.len() >= BATCH_HEADER_BYTES {
                    stamp_crc(&mut bytes);
                }
            }
            let _ = check_produced(&bytes);
            let _ = check_stored(&bytes);
            if let Ok(header) = BatchHeader::parse(&bytes) {
                let _ = (header.last_offset(), header.next_offset(), header.compression());
            }
        }

        #[test]
        fn every_flipped_bit_is_noticed_but_in_the_stamped_fields(bit in 0usize..8 * 90) {
            let mut batch = three_records();
            let at = bit / 8 % batch.len();
            batch[at] ^= 1 << (bit % 8);
            let stamped = at < at::LENGTH || (at::LEADER_EPOCH..at::MAGIC).contains(&at);
            prop_assert_eq!(check_produced(&batch).is_ok(), stamped);
        }
    }
}
