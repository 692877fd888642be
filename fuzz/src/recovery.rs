//! One segment, what happened to it, and the walk that finds out.
//!
//! An input describes batches, where the recovery point lies, and up to four damages; the segment is built from that, so
//! that it is a valid one before it is damaged.

use ringlog::log::{
    BATCH_HEADER_BYTES, BatchBuilder, BatchHeader, EpochCache, LogConfig, OffsetIndex, RecoveryStart,
    RecoveryWalk, Segment, Tail, TimeIndex, WalkOutcome, check_stored, stamp,
};
use ringlog::types::{Epoch, Offset, Position, Timestamp};

use crate::input::Input;

const BATCHES_MAX: usize = 24;
const DAMAGES_MAX: usize = 4;
/// How often each byte of the file may be asked for: much more is as bad as never to end.
const READINGS_MAX: u64 = 64;

/// One batch that was appended.
#[derive(Debug)]
struct Appended {
    base: Offset,
    at: usize,
    end: usize,
    epoch: Epoch,
}

/// What is known of the segment.
struct Case {
    appended: Vec<Appended>,
    intact: Vec<u8>,
    file: Vec<u8>,
    start: RecoveryStart,
    /// Places that differ from what was appended, in the order of the damages.
    damaged: Vec<std::ops::Range<usize>>,
    /// Whether a damage moved batches about, so that they may lie where they never were.
    moved: bool,
}

/// See the module's words.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let chunk = BATCH_HEADER_BYTES + usize::from(input.byte()) * 4;
    let case = build(&mut input);
    let outcome = walk(&case, usize::MAX);
    same(&outcome, &walk(&case, chunk), chunk);
    let served = served(&case, &outcome);
    kept(&case, &outcome, &served);
    indexes(&outcome, &served);
}

fn config() -> LogConfig {
    LogConfig { index_interval_bytes: 200, ..LogConfig::default() }
}

fn build(input: &mut Input<'_>) -> Case {
    let shape = input.byte();
    let base = Offset([0, 1000, 1 << 40, i64::MAX - 80][usize::from(shape & 3)]);
    let batches = usize::from(input.byte()) % (BATCHES_MAX + 1);
    let (mut file, mut appended) = (Vec::new(), Vec::new());
    let (mut next, mut epoch, mut epochs) = (base, Epoch(0), EpochCache::new());
    for number in 0..batches {
        let (what, size) = (input.byte(), usize::from(input.byte()));
        let time = Timestamp(i64::from(what >> 4) * 100);
        let mut builder = BatchBuilder::new(time);
        let records = 1 + i64::from(what & 3) % 3;
        for _ in 0..records {
            builder.push(time, None, Some(&vec![number as u8 ^ 0x55; size]), &[]);
        }
        if what & 12 == 12 {
            epoch = Epoch(epoch.0 + 1);
        }
        let mut batch = builder.finish().to_vec();
        stamp(&mut batch, next, epoch);
        let at = file.len();
        file.extend_from_slice(&batch);
        epochs.assign(epoch, next);
        appended.push(Appended { base: next, at, end: file.len(), epoch });
        next = next.plus(records);
    }
    let point = input.below(batches + 1);
    let recovery_point = appended.get(point).map_or(next, |batch: &Appended| batch.base);
    let intact = file.clone();
    if shape & 4 != 0 {
        // Room that was set aside.
        file.resize(file.len() + 100 * (1 + usize::from(shape >> 5)), 0);
    }
    let (mut damaged, mut moved) = (Vec::new(), false);
    while !input.is_empty() && damaged.len() < DAMAGES_MAX {
        let (place, is_move) = damage(&mut file, input);
        moved |= is_move;
        damaged.push(place);
    }
    let start = RecoveryStart {
        segment: Segment::new(base, &config()),
        next_base: (shape & 8 != 0 && next > base).then_some(next),
        recovery_point,
        last_epoch: Epoch::NONE,
        epochs: if shape & 16 != 0 { epochs } else { EpochCache::new() },
        gaps: false,
        file_bytes: file.len() as u64,
    };
    Case { appended, intact, file, start, damaged, moved }
}

/// Does something to the file: where, and whether it moved bytes that were there.
fn damage(file: &mut Vec<u8>, input: &mut Input<'_>) -> (std::ops::Range<usize>, bool) {
    let what = input.byte();
    let at = input.below(file.len() + 1);
    let length = usize::from(what >> 3);
    match what & 7 {
        0 => {
            file.truncate(at);
            (at..usize::MAX, false)
        }
        1 | 2 => {
            // Some bytes changed.
            let noise = input.piece(length);
            let end = file.len().min(at + noise.len());
            file[at..end].copy_from_slice(&noise[..end - at]);
            (at..end, false)
        }
        3 => {
            let end = file.len().min(at + length * 32);
            file[at..end].fill(0);
            (at..end, false)
        }
        4 => {
            file.splice(at..at, input.piece(length).iter().copied());
            (at..usize::MAX, true)
        }
        5 => {
            file.drain(at..file.len().min(at + length * 8));
            (at..usize::MAX, true)
        }
        6 => {
            // A piece of the file again at another place, as a misdirected write leaves it.
            let from = input.below(file.len() + 1);
            let piece = file[from..file.len().min(from + length * 32)].to_vec();
            let end = file.len().min(at + piece.len());
            file[at..end].copy_from_slice(&piece[..end - at]);
            (at..end, true)
        }
        _ => {
            let Some(byte) = file.get_mut(at) else { return (at..at, false) };
            *byte ^= 1 << (length & 7);
            (at..at + 1, false)
        }
    }
}

/// Walks the file, fed with at most so many bytes at a time.
fn walk(case: &Case, chunk: usize) -> WalkOutcome {
    let mut walk = RecoveryWalk::new(case.start.clone());
    let mut fed = 0u64;
    while let Some((from, length)) = walk.wants() {
        let from = from.0 as usize;
        walk.feed(&case.file[from..from + length.min(chunk)]);
        fed += length.min(chunk) as u64;
        let fed_max = READINGS_MAX * (case.file.len() as u64 + 1000);
        assert!(fed <= fed_max, "{fed} bytes read of a file of {}", case.file.len());
    }
    walk.finish()
}

fn same(one: &WalkOutcome, other: &WalkOutcome, chunk: usize) {
    let parts = |outcome: &WalkOutcome| {
        let WalkOutcome { segment, next_offset, epochs, tail, fenced } = outcome.clone();
        // The reason names how many bytes were at hand.
        let tail = match tail {
            Tail::Clean => None,
            Tail::Torn { at, bytes, .. } => Some((at, bytes)),
        };
        let indexes = (segment.index, segment.time_index, segment.largest_timestamp);
        (segment.end, segment.next_offset, indexes, next_offset, epochs, tail, fenced)
    };
    assert_eq!(parts(one), parts(other), "fed whole, and {chunk} bytes at a time");
}

/// Every batch that the outcome lets be served, with its position. Asserts that they follow one another.
fn served(case: &Case, outcome: &WalkOutcome) -> Vec<(BatchHeader, Position)> {
    let WalkOutcome { segment, next_offset, fenced, .. } = outcome;
    let (mut at, mut next, mut epoch) = (Position(0), segment.base, Epoch::NONE);
    let (mut served, mut fences) = (Vec::new(), fenced.iter().peekable());
    loop {
        if let Some(fence) = fences.next_if(|fence| fence.from_position == at) {
            assert_eq!((fence.segment, fence.from), (segment.base, next), "{fence:?}");
            assert!(fence.to >= next && fence.to_position >= at, "{fence:?}");
            (next, at) = (fence.to, fence.to_position);
            continue;
        }
        if at == segment.end {
            break;
        }
        let rest = &case.file[at.0 as usize..];
        let header = BatchHeader::parse(rest).expect("a batch in what is served");
        let batch = rest.get(..header.bytes as usize).expect("all of it in the file");
        check_stored(batch).expect("a sound batch in what is served");
        assert!(header.base_offset == next && header.leader_epoch >= epoch, "{header:?} at {at}");
        // Nobody can make up a checksum: it was appended once.
        let content = |bytes: &[u8]| bytes[17..].to_vec();
        let known = case.appended.iter().any(|one| content(&case.intact[one.at..one.end]) == content(batch));
        assert!(known, "{header:?} was never appended");
        served.push((header, at));
        (at, next, epoch) = (at.plus(u64::from(header.bytes)), header.next_offset(), header.leader_epoch);
    }
    assert!(fences.next().is_none(), "{fenced:?} beyond the end {}", segment.end);
    assert_eq!((next, segment.next_offset), (*next_offset, *next_offset));
    let mut epochs: Vec<(Epoch, Offset)> = Vec::new();
    for (header, _) in &served {
        if epochs.last().map_or(Epoch::NONE, |last| last.0) < header.leader_epoch {
            epochs.push((header.leader_epoch, header.base_offset));
        }
    }
    assert_eq!(outcome.epochs, epochs);
    served
}

/// What must still be there.
fn kept(case: &Case, outcome: &WalkOutcome, served: &[(BatchHeader, Position)]) {
    let RecoveryStart { next_base, recovery_point, segment, .. } = &case.start;
    let required = next_base.map_or(*recovery_point, |next| next.min(*recovery_point)).max(segment.base);
    assert!(outcome.next_offset >= required, "durable up to {required}, kept to {}", outcome.next_offset);
    for fence in &outcome.fenced {
        assert!(fence.to <= required, "{fence:?}, durable up to {required}: what is torn is cut, not fenced");
    }
    let is_served = |one: &Appended| {
        served.iter().any(|(header, at)| {
            (header.base_offset, header.leader_epoch, at.0 as usize) == (one.base, one.epoch, one.at)
        })
    };
    // Up to the first damage all is well.
    let first = case.damaged.iter().map(|place| place.start).min().unwrap_or(usize::MAX);
    for one in case.appended.iter().filter(|one| one.end <= first) {
        assert!(is_served(one), "{one:?} lies before any damage: {outcome:?}");
    }
    if case.damaged.is_empty() {
        assert!(outcome.tail == Tail::Clean && outcome.fenced.is_empty());
        assert_eq!(served.len(), case.appended.len());
    }
    // One damage within one durable batch costs that batch and no other; unless its length leads to a later one, or its
    // epoch is a later one: that is believed, as no checksum covers it, and what follows is not.
    let [place] = &case.damaged[..] else { return };
    let hit = case.appended.iter().find(|one| one.at <= place.start && place.end <= one.end);
    if let Some(hit) = hit.filter(|hit| !case.moved && hit.base < required) {
        let field = [8, 9, 10, 11].map(|byte| case.file[hit.at + byte]);
        let claimed = (hit.at as i64 + 12).checked_add(i64::from(i32::from_be_bytes(field)));
        let misled = case.appended.iter().any(|one| one.at > hit.end && Some(one.at as i64) == claimed);
        let epoch = hit.at + 12..hit.at + 16;
        if !misled && (place.end <= epoch.start || place.start >= epoch.end) {
            let others = case.appended.iter().filter(|one| one.at != hit.at);
            let lost: Vec<_> = others.filter(|one| !is_served(one)).collect();
            assert!(lost.is_empty(), "{hit:?} was hit, {lost:?} are lost: {outcome:?}");
        }
    }
}

/// The indexes lead to batches, and never past the one that is wanted; and they can be stored.
fn indexes(outcome: &WalkOutcome, served: &[(BatchHeader, Position)]) {
    let segment = &outcome.segment;
    for (header, at) in served {
        for wanted in [header.base_offset, header.last_offset()] {
            let (floor, exact) = segment.index.floor(wanted);
            assert!(floor <= *at && (!exact || floor == *at), "{wanted} at {at}, the index says {floor}");
            assert!(floor == Position(0) || served.iter().any(|(_, start)| *start == floor));
        }
        let first = served.iter().find(|(other, _)| other.max_timestamp >= header.max_timestamp);
        let first = first.expect("at least itself").0.last_offset();
        assert!(segment.time_index.floor(header.max_timestamp) <= first);
        assert!(header.max_timestamp <= segment.largest_timestamp);
    }
    let mut sealed = segment.clone();
    sealed.seal();
    let index = OffsetIndex::decode(segment.base, 200, &sealed.index.encode(), segment.end.0);
    assert_eq!(index.expect("our own index").entries(), sealed.index.entries());
    let time_index = TimeIndex::decode(segment.base, &sealed.time_index.encode(), segment.next_offset);
    assert_eq!(time_index.expect("our own time index"), sealed.time_index);
}
