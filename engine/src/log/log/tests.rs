//! The log against a plain model: a list of batches, and the bytes of each segment.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::log::{
    BatchBuilder, HeaderWalk, OffsetIndex, TimeIndex, WalkStep, check_produced, check_stored, stamp,
};

const NOW: Timestamp = Timestamp(1_000_000);

fn config() -> LogConfig {
    LogConfig { segment_bytes_max: 6000, index_interval_bytes: 500, ..LogConfig::default() }
}

/// What the model knows of one batch.
#[derive(Clone, Copy, Debug)]
struct Known {
    base: Offset,
    last: Offset,
    epoch: Epoch,
    time: Timestamp,
    place: LogPoint,
    bytes: u64,
}

struct World {
    log: Log,
    batches: Vec<Known>,
    /// The bytes of every segment, as a disk would have them.
    image: BTreeMap<Offset, Vec<u8>>,
}

impl World {
    fn new(owner: EpochOwner) -> World {
        let log = Log::new(config(), owner, Offset(5));
        World { log, batches: Vec::new(), image: BTreeMap::from([(Offset(5), Vec::new())]) }
    }

    fn append(&mut self, records: usize, value_bytes: usize, time: Timestamp, jump: i64) {
        let mut builder = BatchBuilder::new(time);
        (0..records).for_each(|_| builder.push(time, None, Some(&vec![0x5a; value_bytes]), &[]));
        let mut batch = builder.finish().to_vec();
        let mut header = check_produced(&batch).unwrap();
        let placement = match self.log.owner() {
            EpochOwner::Local => {
                if self.log.needs_roll(header.bytes, header.count, NOW) {
                    self.roll();
                }
                self.log.append_local(&header, NOW)
            }
            EpochOwner::Foreign => {
                header.base_offset = self.log.log_end().offset.plus(jump);
                header.leader_epoch = Epoch(self.log.epoch().0.max(0) + i32::from(jump == 3));
                if self.log.needs_roll_for(&header, NOW) {
                    self.roll();
                }
                self.log.append_at(&header, NOW).unwrap()
            }
        };
        stamp(&mut batch, placement.start.offset, placement.epoch);
        let header = check_stored(&batch).unwrap();
        let file = self.image.get_mut(&placement.start.segment).unwrap();
        assert_eq!(file.len() as u64, placement.start.position.0);
        file.extend_from_slice(&batch);
        assert_eq!(placement.end, self.log.log_end());
        self.batches.push(Known {
            base: header.base_offset,
            last: header.last_offset(),
            epoch: placement.epoch,
            time,
            place: placement.start,
            bytes: batch.len() as u64,
        });
    }

    fn roll(&mut self) {
        if !self.log.active().is_empty() {
            self.image.insert(self.log.roll(), Vec::new());
        }
    }

    fn see_all(&mut self) {
        let end = self.log.log_end();
        self.log.set_written(end);
        self.log.set_durable(end);
        self.log.set_high_watermark(end);
    }

    /// Cuts before the batch of that number, counted from the log start.
    fn truncate(&mut self, at: prop::sample::Index) {
        let start = self.log.log_start();
        let candidates: Vec<usize> =
            (0..self.batches.len()).filter(|at| self.batches[*at].base >= start).collect();
        if candidates.is_empty() {
            return;
        }
        let at = candidates[at.index(candidates.len())];
        let point = self.batches[at].place;
        let before = self.log.epoch();
        let truncation = self.log.truncate_to(point);
        self.batches.truncate(at);
        for removed in truncation.removed_segments {
            self.image.remove(&removed).unwrap();
        }
        let (segment, position) = truncation.cut;
        self.image.get_mut(&segment).unwrap().truncate(position.0 as usize);
        assert_eq!(self.log.log_end(), point);
        if self.log.owner() == EpochOwner::Local {
            assert_eq!(self.log.epoch(), Epoch(before.0 + 1), "no (offset, epoch) is assigned twice");
        }
    }

    fn advance(&mut self, part: u8) {
        let (start, end) = (self.log.log_start(), self.log.high_watermark().offset);
        let to = start.plus(end.since(start) * i64::from(part) / 255);
        for removed in self.log.advance_log_start(to, Offset(i64::MAX)).unwrap() {
            self.image.remove(&removed).unwrap();
            self.batches.retain(|batch| batch.place.segment != removed);
        }
        assert_eq!(self.log.log_start(), to);
    }

    /// A clean stop and a start: indexes go through their files.
    fn restart(&mut self) {
        let segments = self.log.segments().iter().map(|segment| {
            let interval = config().index_interval_bytes;
            let index =
                OffsetIndex::decode(segment.base, interval, &segment.index.encode(), segment.end.0).unwrap();
            let mut time_index = segment.time_index.clone();
            if !segment.sealed && segment.largest_timestamp.0 >= 0 {
                time_index = TimeIndex::new(segment.base);
            }
            let time_index =
                TimeIndex::decode(segment.base, &time_index.encode(), segment.next_offset).unwrap();
            let mut found = Segment::found(segment.base, segment.next_offset, segment.end, index, time_index);
            found.largest_timestamp = segment.largest_timestamp;
            found
        });
        let epochs = EpochCache::parse(&self.log.epochs().format()).unwrap();
        let (owner, log_start, epoch) = (self.log.owner(), self.log.log_start(), self.log.epoch());
        self.log = Log::restore(config(), owner, segments.collect(), epochs, log_start, Vec::new());
        assert_eq!(self.log.epoch(), epoch);
        self.see_all();
    }

    fn walk(&self, mut walk: HeaderWalk, segment: Offset) -> Option<LogPoint> {
        let file = &self.image[&segment];
        loop {
            let at = walk.position();
            let fed = &file[(at.0 as usize).min(file.len())..file.len().min(at.0 as usize + 300)];
            match walk.feed(at, fed) {
                WalkStep::Found(found) => {
                    return Some(LogPoint { offset: found.base_offset, segment, position: found.position });
                }
                WalkStep::NeedMore { .. } => {}
                WalkStep::Exhausted => return None,
                WalkStep::Bad { position, why } => panic!("bad batch at {position}: {why}"),
            }
        }
    }

    fn fetch(&mut self, offset: Offset, max_bytes: u64, end: LogPoint) {
        let extent = match self.log.locate(offset, max_bytes, end) {
            Err(ReadError::BelowLogStart { .. }) => return assert!(offset < self.log.log_start()),
            Err(ReadError::AboveEnd { .. }) => return assert!(offset > self.log.log_end().offset),
            Err(ReadError::Fenced(range)) => panic!("{range:?}"),
            Ok(Lookup::AtEnd) => {
                let wanted = self.batches.iter().find(|batch| batch.last >= offset);
                return assert!(
                    wanted.is_none_or(|batch| batch.base >= end.offset),
                    "{offset} {end:?} {wanted:?}"
                );
            }
            Ok(Lookup::Extent(extent)) => extent,
            Ok(Lookup::Walk { segment, from, to }) => {
                let Some(start) = self.walk(HeaderWalk::to_offset(offset, from, to), segment) else {
                    // A gap at the end of a segment, or of what is visible.
                    let wanted = self.batches.iter().find(|batch| batch.last >= offset);
                    return assert!(wanted.is_none_or(|b| b.place.segment > segment || b.base >= end.offset));
                };
                let extent = self.log.extent_from(start, max_bytes, end);
                self.log.note_boundary(start);
                if start.offset >= self.log.log_start() {
                    let again = self.log.locate(start.offset, max_bytes, end).unwrap();
                    assert!(
                        matches!(again, Lookup::Extent(again) if again.from == extent.from),
                        "learnt: {again:?}"
                    );
                }
                extent
            }
        };
        let holding = self.batches.iter().position(|batch| batch.last >= offset).unwrap();
        let first = self.batches[holding];
        assert_eq!(
            (extent.segment, extent.from),
            (first.place.segment, first.place.position),
            "fetch at {offset}"
        );
        let mut at = extent.from;
        let mut batches =
            self.batches[holding..].iter().filter(|batch| batch.place.segment == extent.segment);
        let mut longest = 0;
        while at < extent.to {
            let batch = batches.next().expect("an extent ends with its segment");
            assert_eq!(batch.place.position, at);
            assert!(batch.base < end.offset, "batch {batch:?} beyond {end:?}");
            let bytes = &self.image[&extent.segment][at.0 as usize..][..batch.bytes as usize];
            let header = check_stored(bytes).unwrap();
            assert_eq!((header.base_offset, header.leader_epoch), (batch.base, batch.epoch));
            longest = longest.max(batch.bytes);
            at = at.plus(batch.bytes);
        }
        assert_eq!(at, extent.to, "whole batches only");
        let interval = u64::from(config().index_interval_bytes);
        let bound = max_bytes.max(interval + 2 * longest);
        assert!(extent.to.since(extent.from) <= bound, "{extent:?} for {max_bytes}");
        assert!(extent.from < extent.to, "the first batch is whole");
    }

    fn find_time(&self, time: Timestamp) {
        let end = self.log.high_watermark();
        let start = self.log.log_start();
        let is_it = |batch: &&Known| batch.last >= start && batch.time >= time && batch.base < end.offset;
        let expected = self.batches.iter().find(is_it).map(|batch| batch.base);
        let mut lookup = self.log.offset_for_timestamp(time, end);
        let mut found = None;
        while let (None, Some(TimeLookup { segment, from, to })) = (found, lookup) {
            found =
                self.walk(HeaderWalk::to_timestamp(time, start, from, to), segment).map(|point| point.offset);
            lookup = self.log.offset_for_timestamp_after(time, segment, to, end);
        }
        assert_eq!(found, expected, "time {time}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append { records: usize, value_bytes: usize, time: i64, jump: i64 },
    Roll,
    SeeAll,
    See(i64),
    Truncate(prop::sample::Index),
    Advance(u8),
    Restart,
    Fetch { back: i64, max_bytes: u64 },
    FindTime(i64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (1usize..8, 0usize..120, 1i64..200, 0i64..4)
            .prop_map(|(records, value_bytes, time, jump)| Op::Append { records, value_bytes, time, jump }),
        1 => Just(Op::Roll),
        3 => Just(Op::SeeAll),
        3 => (0i64..40).prop_map(Op::See),
        1 => any::<prop::sample::Index>().prop_map(Op::Truncate),
        1 => any::<u8>().prop_map(Op::Advance),
        1 => Just(Op::Restart),
        12 => (-2i64..300, 0u64..8000).prop_map(|(back, max_bytes)| Op::Fetch { back, max_bytes }),
        3 => (0i64..210).prop_map(Op::FindTime),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_log_agrees_with_the_model(local: bool, ops in proptest::collection::vec(op(), 1..150)) {
        let mut world = World::new(if local { EpochOwner::Local } else { EpochOwner::Foreign });
        for op in ops {
            match op {
                Op::Append { records, value_bytes, time, jump } => {
                    world.append(records, value_bytes, Timestamp(time), jump);
                }
                Op::Roll => world.roll(),
                Op::SeeAll => world.see_all(),
                Op::See(back) => {
                    let offset = world.log.log_end().offset.plus(-back);
                    world.log.set_high_watermark_offset(offset);
                    let now = world.log.high_watermark();
                    // Everything before the offset lies before the place, everything after it after.
                    let place = (now.segment, now.position);
                    let boundary = world.batches.iter().all(|batch| {
                        let begin = (batch.place.segment, batch.place.position);
                        let end = (begin.0, begin.1.plus(batch.bytes));
                        (batch.last < now.offset && end <= place) || (batch.base >= now.offset && begin >= place)
                    }) || now.offset == world.log.log_start();
                    prop_assert!(boundary, "{:?}", now);
                }
                Op::Truncate(at) => world.truncate(at),
                Op::Advance(part) => world.advance(part),
                Op::Restart => world.restart(),
                Op::Fetch { back, max_bytes } => {
                    let offset = world.log.log_end().offset.plus(-back);
                    let end = world.log.high_watermark();
                    world.fetch(offset, max_bytes, end);
                }
                Op::FindTime(time) => world.find_time(Timestamp(time)),
            }
            let bytes: u64 = world.batches.iter().map(|batch| batch.bytes).sum();
            prop_assert_eq!(world.log.segments().iter().map(|segment| segment.end.0).sum::<u64>(), bytes);
            for batch in &world.batches {
                prop_assert!(batch.base < world.log.log_start() || world.log.epochs().epoch_at(batch.base) == batch.epoch);
            }
        }
    }
}

fn point(offset: i64, position: u64) -> LogPoint {
    LogPoint { offset: Offset(offset), segment: Offset(0), position: Position(position) }
}

#[test]
fn a_reader_at_the_tail_never_walks() {
    let mut world = World::new(EpochOwner::Local);
    for round in 0..50 {
        let end = world.log.high_watermark();
        if round > 0 {
            assert_eq!(world.log.locate(end.offset, 10_000, end), Ok(Lookup::AtEnd));
        }
        (0..round).for_each(|_| world.append(3, 1, Timestamp(0), 0));
        let from = world.log.high_watermark().offset;
        world.see_all();
        let mut at = from;
        while at < world.log.log_end().offset {
            let Lookup::Extent(extent) = world.log.locate(at, 10_000, world.log.high_watermark()).unwrap()
            else {
                panic!("a walk at {at} in round {round}");
            };
            let mut read = world.batches.iter().filter(|batch| batch.place.segment == extent.segment);
            at = read.rfind(|batch| batch.place.position < extent.to).unwrap().last.plus(1);
        }
    }
}

#[test]
fn ten_thousand_appends_do_not_grow_the_indexes() {
    let config = LogConfig { index_interval_bytes: 0, ..LogConfig::default() };
    let mut log = Log::new(config, EpochOwner::Local, Offset(0));
    let mut builder = BatchBuilder::new(Timestamp(0));
    builder.push(Timestamp(0), None, None, &[]);
    let mut header = check_produced(builder.finish()).unwrap();
    // The first entry makes the room.
    for _ in 0..2 {
        log.append_local(&header, NOW);
    }
    let reserved = log.active().index.capacity();
    for time in 2..10_000 {
        header.max_timestamp = Timestamp(time);
        log.append_local(&header, NOW);
    }
    assert_eq!(log.active().index.entries(), 9_999);
    assert_eq!(log.active().index.capacity(), reserved);
}

#[test]
fn a_fenced_range_is_an_error_and_its_neighbours_are_served() {
    let mut world = World::new(EpochOwner::Local);
    (0..6).for_each(|_| world.append(10, 1, Timestamp(0), 0));
    let (lost, next) = (world.batches[2], world.batches[3]);
    let range = FencedRange {
        segment: Offset(5),
        from: lost.base,
        to: next.base,
        from_position: lost.place.position,
        to_position: next.place.position,
    };
    let segments = world.log.segments().to_vec();
    let log = Log::restore(
        config(),
        EpochOwner::Local,
        segments,
        world.log.epochs().clone(),
        Offset(5),
        vec![range],
    );
    let end = log.high_watermark();
    assert_eq!(log.locate(lost.base.plus(4), 1 << 20, end), Err(ReadError::Fenced(range)));
    let before = Extent { segment: Offset(5), from: Position(0), to: range.from_position };
    assert_eq!(log.locate(Offset(5), 1 << 20, end), Ok(Lookup::Extent(before)));
    let after = Extent { segment: Offset(5), from: range.to_position, to: end.position };
    assert_eq!(log.locate(next.base, 1 << 20, end), Ok(Lookup::Extent(after)));
    let Lookup::Walk { from, .. } = log.locate(world.batches[4].base.plus(3), 9, end).unwrap() else {
        return;
    };
    assert!(from >= range.to_position, "a walk does not enter the fence");
}

#[test]
fn foreign_batches_are_refused_for_what_they_are() {
    let mut builder = BatchBuilder::new(Timestamp(0));
    builder.push(Timestamp(0), None, None, &[]);
    let mut header = check_produced(builder.finish()).unwrap();
    let mut local = Log::new(config(), EpochOwner::Local, Offset(0));
    assert_eq!(local.append_at(&header, NOW), Err(AppendAtError::LocalOwner));

    let mut log = Log::new(config(), EpochOwner::Foreign, Offset(0));
    assert_eq!(log.epoch(), Epoch::NONE);
    (header.base_offset, header.leader_epoch) = (Offset(10), Epoch(4));
    log.append_at(&header, NOW).unwrap();
    assert_eq!(log.epochs().starts(), [(Epoch(4), Offset(10))]);
    let backwards = Err(AppendAtError::Offset { log_end: Offset(11), found: Offset(10) });
    assert_eq!(log.append_at(&header, NOW), backwards);
    (header.base_offset, header.leader_epoch) = (Offset(11), Epoch(3));
    let stale = Err(AppendAtError::Epoch { latest: Epoch(4), found: Epoch(3) });
    assert_eq!(log.append_at(&header, NOW), stale);
    let mut empty = Log::new(config(), EpochOwner::Foreign, Offset(0));
    header.base_offset = Offset(1 << 31);
    let far = Err(AppendAtError::Gap { base: Offset(0), found: Offset(1 << 31) });
    assert_eq!(empty.append_at(&header, NOW), far);
}

#[test]
fn retention_by_size_and_time() {
    let mut world = World::new(EpochOwner::Local);
    for time in [100, 200, 300] {
        world.append(10, 100, Timestamp(time), 0);
        world.roll();
    }
    let bases: Vec<Offset> = world.log.segments().iter().map(|segment| segment.base).collect();
    let bytes = world.log.segments()[0].end.0;
    let mut ask = |retention_bytes, retention_ms, now| {
        (world.log.config.retention_bytes, world.log.config.retention_ms) = (retention_bytes, retention_ms);
        world.log.retention(Timestamp(now))
    };
    assert_eq!(ask(Some(2 * bytes), None, 0), None, "nothing below the high watermark yet");
    world.see_all();
    let mut ask = |retention_bytes, retention_ms, now| {
        (world.log.config.retention_bytes, world.log.config.retention_ms) = (retention_bytes, retention_ms);
        world.log.retention(Timestamp(now))
    };
    assert_eq!(ask(None, None, i64::MAX), None);
    assert_eq!(ask(Some(3 * bytes), None, 0), None);
    assert_eq!(ask(Some(2 * bytes), None, 0), Some(bases[1]));
    assert_eq!(ask(Some(0), None, 0), Some(bases[3]), "the active segment stays");
    assert_eq!(ask(None, Some(50), 251), Some(bases[2]));
    assert_eq!(ask(None, Some(50), 250), Some(bases[1]), "not older than 50 ms");
    let removed = world.log.advance_log_start(bases[2], Offset(i64::MAX)).unwrap();
    assert_eq!(removed, bases[..2]);
    assert!(world.log.advance_log_start(Offset(1000), Offset(i64::MAX)).is_err());
}

#[test]
fn a_segment_that_is_not_durable_stays_until_it_is() {
    let mut world = World::new(EpochOwner::Local);
    world.append(10, 1, Timestamp(0), 0);
    world.roll();
    let end = world.log.log_end();
    world.log.set_written(end);
    world.log.set_high_watermark(end);
    assert_eq!(world.log.advance_log_start(end.offset, Offset(i64::MAX)), Ok(vec![]));
    world.log.set_durable(end);
    assert_eq!(world.log.advance_log_start(end.offset, Offset(i64::MAX)), Ok(vec![Offset(5)]));
}

#[test]
fn reset_drops_everything_but_the_epoch_count() {
    let mut world = World::new(EpochOwner::Local);
    world.append(10, 1, Timestamp(0), 0);
    assert_eq!(world.log.bump_epoch(), Epoch(1));
    assert_eq!(world.log.reset_to(Offset(900)), [Offset(5)]);
    assert_eq!((world.log.log_start(), world.log.epoch()), (Offset(900), Epoch(2)));
    assert_eq!(world.log.log_end(), LogPoint { segment: Offset(900), ..point(900, 0) });
}

#[test]
#[should_panic(expected = "which is empty")]
fn an_empty_segment_is_not_rolled() {
    Log::new(config(), EpochOwner::Local, Offset(0)).roll();
}

#[test]
#[should_panic(expected = "do not fit")]
fn the_caller_rolls() {
    let mut world = World::new(EpochOwner::Local);
    world.append(10, 400, Timestamp(0), 0);
    let header = check_stored(&world.image[&Offset(5)]).unwrap();
    world.log.append_local(&header, NOW);
    world.log.append_local(&header, NOW);
}
