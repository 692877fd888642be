//! One batch as a client might send it, then a segment of several.
//!
//! An input is one byte of choices, a byte for where to part the memory, and the batch. A choice puts the length and the
//! checksum right: else nothing that the fuzzer thinks of would ever come past them.

use ringlog::log::{
    BATCH_HEADER_BYTES, BatchBuilder, BatchError, BatchHeader, FoundBatch, HeaderWalk, Records, WalkStep,
    check_produced, check_produced_in_parts, check_stored, stamp, stamp_append_time,
};
use ringlog::types::{Epoch, Offset, Position, Timestamp};

use crate::input::Input;

const LENGTH: usize = 8;
const CRC: usize = 17;
const ATTRIBUTES: usize = 21;

const FIX_LENGTH: u8 = 1;
const FIX_CRC: u8 = 2;
const WALK: u8 = 4;

/// See the module's words.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (choices, part) = (input.byte(), usize::from(input.byte()));
    let mut batch = input.rest().to_vec();
    if choices & WALK != 0 {
        return walks(&mut batch, part, choices);
    }
    put_right(&mut batch, choices);
    one_batch(&batch, part);
}

/// Puts right what the choices say.
pub fn put_right(batch: &mut [u8], choices: u8) {
    if batch.len() < BATCH_HEADER_BYTES {
        return;
    }
    if choices & FIX_LENGTH != 0 {
        let length = batch.len() as i32 - 12;
        batch[LENGTH..LENGTH + 4].copy_from_slice(&length.to_be_bytes());
    }
    if choices & FIX_CRC != 0 {
        let crc = crc32c::crc32c(&batch[ATTRIBUTES..]);
        batch[CRC..ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
    }
}

fn one_batch(batch: &[u8], part: usize) {
    let produced = check_produced(batch);
    let stored = check_stored(batch);
    for result in [&produced, &stored] {
        match result {
            Ok(header) => agrees(header, batch),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    in_parts(batch, part, &produced);
    match Records::new(batch) {
        Ok(records) => {
            let sound = walk_records(records, batch);
            if let (Ok(header), Some(count)) = (&produced, sound) {
                assert_eq!(count, header.count, "as many records as were promised");
            }
        }
        Err(BatchError::Compressed(codec)) => assert!((1..8).contains(&codec)),
        Err(_) => assert!(stored.is_err(), "{stored:?} has no records"),
    }
    if let Ok(header) = produced {
        stamped(batch, &header);
    }
}

/// What a checked header says is so.
fn agrees(header: &BatchHeader, batch: &[u8]) {
    assert_eq!(header.bytes as usize, batch.len());
    assert_eq!(header.crc, crc32c::crc32c(&batch[ATTRIBUTES..]), "the other implementation's sum");
    assert!(
        header.last_offset_delta >= 0 && i64::from(header.count) <= i64::from(header.last_offset_delta) + 1
    );
}

/// The same bytes in several pieces of memory are judged the same.
fn in_parts(batch: &[u8], part: usize, whole: &Result<BatchHeader, BatchError>) {
    let Ok(header) = BatchHeader::parse(batch) else { return };
    if header.bytes as usize != batch.len() {
        return;
    }
    let parted = check_produced_in_parts(&header, batch.chunks(part.max(1)));
    assert_eq!(parted.as_ref().err(), whole.as_ref().err(), "in parts of {part}");
}

/// Reads every record; how many there are if all of them are sound.
fn walk_records(records: Records<'_>, batch: &[u8]) -> Option<i32> {
    let header = *records.header();
    let inside = batch[..header.bytes as usize].as_ptr_range();
    let lies_inside = |bytes: &[u8]| {
        let range = bytes.as_ptr_range();
        assert!(inside.start <= range.start && range.end <= inside.end, "a record beyond its batch");
        bytes.len()
    };
    let (mut count, mut taken) = (0i32, 0usize);
    let mut builder = BatchBuilder::new(header.base_timestamp);
    let mut rebuilt = true;
    for record in records.clone() {
        let Ok(record) = record else { return None };
        assert!((header.base_offset..=header.last_offset()).contains(&record.offset));
        taken += record.key.map_or(0, lies_inside) + record.value.map_or(0, lies_inside);
        let mut headers = Vec::new();
        for (name, value) in record.headers.clone() {
            taken += lies_inside(name.as_bytes()) + value.map_or(0, lies_inside);
            rebuilt &= value.is_some();
            headers.push((name, value.unwrap_or_default()));
        }
        builder.push(record.timestamp, record.key, record.value, &headers);
        count += 1;
    }
    assert!(count <= header.count && taken <= batch.len());
    // Batches of our own making have the same records.
    if rebuilt && count > 0 && !header.is_append_time() {
        let ours = builder.finish();
        assert!(check_stored(ours).is_ok());
        let again = Records::new(ours).expect("a batch of our own making");
        for (one, other) in records.flatten().zip(again.map(|record| record.expect("a record of our own"))) {
            assert_eq!((one.key, one.value, one.timestamp), (other.key, other.value, other.timestamp));
            assert!(one.headers.eq(other.headers));
        }
    }
    Some(count)
}

/// What a client may append stays good when it gets its place, and when it gets our time.
fn stamped(batch: &[u8], header: &BatchHeader) {
    let mut batch = batch.to_vec();
    let last = Offset(i64::MAX - 1 - i64::from(header.last_offset_delta));
    for (offset, epoch) in [(Offset(0), Epoch(0)), (Offset(1 << 40), Epoch(7)), (last, Epoch(i32::MAX))] {
        stamp(&mut batch, offset, epoch);
        let stamped = BatchHeader { base_offset: offset, leader_epoch: epoch, ..*header };
        assert_eq!(check_produced(&batch), Ok(stamped));
        assert_eq!(check_stored(&batch), Ok(stamped));
        assert_eq!(stamped.next_offset().since(offset), i64::from(header.count));
    }
    stamp_append_time(&mut batch, Timestamp(77));
    let ours = check_stored(&batch).expect("our own stamp");
    assert!(ours.is_append_time() && ours.max_timestamp == Timestamp(77));
    assert_eq!((ours.count, ours.attributes & !8), (header.count, header.attributes));
    if let Ok(records) = Records::new(&batch) {
        assert!(records.flatten().all(|record| record.timestamp == Timestamp(77)));
    }
}

/// The bytes are a segment: walks through it find the same whether they get it whole or in pieces.
fn walks(segment: &mut [u8], part: usize, choices: u8) {
    let mut at = 0;
    while let Ok(header) = BatchHeader::parse(&segment[at..]) {
        let end = at + header.bytes as usize;
        let Some(batch) = segment.get_mut(at..end) else { break };
        put_right(batch, choices & !FIX_LENGTH);
        at = end;
    }
    let headers = std::iter::successors(Some(0), |&at| {
        BatchHeader::parse(segment.get(at..)?).ok().map(|header| at + header.bytes as usize)
    });
    let mut wanted: Vec<(Offset, Timestamp)> = headers
        .filter_map(|at| BatchHeader::parse(segment.get(at..)?).ok())
        .take(8)
        .map(|header| (header.last_offset(), header.max_timestamp))
        .collect();
    wanted.push((Offset(0), Timestamp(0)));
    let end = Position(segment.len() as u64);
    for (offset, time) in wanted {
        for by_time in [false, true] {
            let begin = || match by_time {
                true => HeaderWalk::to_timestamp(time, Offset(1), Position(0), end),
                false => HeaderWalk::to_offset(offset, Position(0), end),
            };
            let whole = begin().feed(Position(0), segment);
            let mut walk = begin();
            let in_pieces = loop {
                let from = walk.position().0 as usize;
                let piece = &segment[from..segment.len().min(from + BATCH_HEADER_BYTES + part)];
                match walk.feed(Position(from as u64), piece) {
                    WalkStep::NeedMore { position } => assert!(position.0 as usize > from, "no step forward"),
                    step => break step,
                }
            };
            assert_eq!(place(&in_pieces), place(&whole), "{in_pieces:?} in pieces of {part}, {whole:?}");
            if let WalkStep::Found(found) = whole {
                let header = BatchHeader::parse(&segment[found.position.0 as usize..]).expect("found");
                assert!(found.position.0 + u64::from(found.bytes) <= end.0);
                assert_eq!((found.base_offset, found.bytes), (header.base_offset, header.bytes));
                match by_time {
                    true => assert!(found.max_timestamp >= time && header.last_offset() >= Offset(1)),
                    false => assert!(header.last_offset() >= offset),
                }
            }
        }
    }
}

/// A step without what was at hand when it went wrong.
fn place(step: &WalkStep) -> (std::mem::Discriminant<WalkStep>, Option<FoundBatch>, Option<Position>) {
    let (found, bad) = match step {
        WalkStep::Found(found) => (Some(*found), None),
        WalkStep::Bad { position, .. } => (None, Some(*position)),
        WalkStep::NeedMore { .. } | WalkStep::Exhausted => (None, None),
    };
    (std::mem::discriminant(step), found, bad)
}
