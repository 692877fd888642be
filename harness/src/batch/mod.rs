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

mod read;
mod write;

pub use read::{Batch, Batches, Malformed, Record, Records};
pub use write::{BatchWriter, Shape, batch_bytes_of_one};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::read::Reader;
    use super::write::{put_varint, varint_bytes};
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
