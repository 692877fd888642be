//! The stage against a plain model: whatever is appended, written and let go of, in whatever order, each byte of the log
//! is in the file for good or in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::sys::Ring;
use crate::sys::sim::World;

const ARENA: u64 = 512 << 20;
const MIB: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A batch of so many bytes that was received elsewhere.
    Append(usize),
    /// Memory for a batch of so many bytes, which comes back with the next append or roll.
    Reserve(usize),
    Roll,
    /// The next unit goes out, or the one that is under way is complete: then all that can be let go of is.
    Write,
    Evict,
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = || prop_oneof![61..9000usize, 60_000..70_000usize, MIB - 5000..3 * MIB];
    prop_oneof![
        4 => bytes().prop_map(Op::Append),
        2 => bytes().prop_map(Op::Reserve),
        1 => Just(Op::Roll),
        8 => Just(Op::Write),
        1 => Just(Op::Evict),
    ]
}

#[derive(Default)]
struct Segment {
    log: Vec<u8>,
    file: Vec<u8>,
    /// Up to where blocks were said never to be written again.
    promised: u64,
}

struct Model {
    world: World,
    ring: Ring,
    stage: Stage,
    segments: BTreeMap<Offset, Segment>,
    end: LogPoint,
    slot: Option<(Slot, usize)>,
    under_way: Option<WriteUnit>,
    writes: usize,
}

impl Model {
    /// As after opening: the file holds so many bytes and memory nothing.
    fn new(bytes: usize) -> Model {
        let world = World::new(1);
        let ring = world.ring(ARENA);
        let end = LogPoint { offset: Offset(1), segment: Offset(0), position: Position(bytes as u64) };
        let log = content(end.segment, 0, bytes);
        let segment = Segment { file: log.clone(), log, promised: 0 };
        let segments = BTreeMap::from([(end.segment, segment)]);
        Model { world, ring, stage: Stage::new(end), segments, end, slot: None, under_way: None, writes: 0 }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Append(bytes) => {
                if !self.accept_slot() {
                    self.supply(bytes);
                    let next = self.extend_log(bytes);
                    let mut batch = self.lease(bytes);
                    batch.copy_from_slice(&self.segments[&next.segment].log[self.end.position.0 as usize..]);
                    self.stage.accept(batch.freeze(), self.end, next, Moment(0));
                    self.end = next;
                }
            }
            Op::Reserve(bytes) => {
                if self.slot.is_none() {
                    self.supply(bytes);
                    self.slot = Some((self.stage.reserve(self.end, bytes), bytes));
                }
            }
            Op::Roll => {
                if let Some((slot, _)) = self.slot.take() {
                    self.stage.release(slot);
                }
                if self.end.position > Position(0) {
                    let segment = Offset(self.end.offset.0);
                    self.end = LogPoint { segment, position: Position(0), ..self.end };
                }
            }
            Op::Write => self.write(),
            Op::Evict => while self.stage.evict_oldest() {},
        }
    }

    fn accept_slot(&mut self) -> bool {
        let Some((mut slot, bytes)) = self.slot.take() else { return false };
        let next = self.extend_log(bytes);
        slot.write(0, &self.segments[&next.segment].log[self.end.position.0 as usize..]);
        self.stage.accept_in_place(slot, next, Moment(0));
        self.end = next;
        true
    }

    fn extend_log(&mut self, bytes: usize) -> LogPoint {
        let LogPoint { offset, segment, position } = self.end;
        let log = &mut self.segments.entry(segment).or_default().log;
        log.extend(content(segment, position.0, bytes));
        LogPoint { offset: Offset(offset.0 + 1), segment, position: position.plus(bytes as u64) }
    }

    fn supply(&mut self, bytes: usize) {
        loop {
            match self.stage.need(self.end, bytes) {
                Need::Nothing => return,
                Need::Memory(bytes) => {
                    let memory = self.lease(bytes);
                    self.stage.supply(memory);
                }
                Need::Block(at) => {
                    let mut block = self.lease(BLOCK_BYTES);
                    let there = &self.segments[&self.end.segment].file[at.0 as usize..];
                    block[..there.len()].copy_from_slice(there);
                    self.stage.prime(self.end, block);
                }
                Need::Window { .. } => unreachable!("staging is memory of its own"),
            }
        }
    }

    fn lease(&self, bytes: usize) -> LeaseMut {
        let ring = self.ring.clone();
        let mut lease =
            self.world.run(&[&self.ring], async move { ring.lease(bytes).await }).expect("memory for a test");
        drop(lease.split_off(bytes));
        lease
    }

    fn write(&mut self) {
        if let Some(unit) = self.under_way.take() {
            let file = &mut self.segments.get_mut(&unit.segment).unwrap().file;
            each_write(&unit, |at, bytes| file[at..at + bytes.len()].copy_from_slice(bytes));
            self.stage.finish_unit(unit);
            while self.stage.evict_oldest() {}
        } else if let Some(unit) = {
            // Some of what waits, or all of it.
            self.writes += 1;
            let ends = self.stage.ends.len();
            let limit =
                if ends > 0 { self.stage.ends[self.writes * 7 / 4 % ends].0 } else { LogPoint::BEYOND };
            self.stage.take_unit(limit)
        } {
            let (_, reached) = self.stage.under_way.unwrap();
            assert_eq!(unit.copied_bytes, reached.0 % BLOCK, "copied of a unit that ends at {reached}");
            let Segment { file, promised, .. } = self.segments.get_mut(&unit.segment).unwrap();
            each_write(&unit, |at, bytes| {
                assert!(at as u64 >= *promised, "{at} is written, {promised} was there for good");
                // Until it is complete nothing is known of what is there.
                file.resize(file.len().max(at + bytes.len()), 0);
                file[at..at + bytes.len()].fill(0xee);
            });
            self.under_way = Some(unit);
        }
    }

    fn check(&mut self) {
        for (&base, segment) in &mut self.segments {
            let end = segment.log.len();
            let limit = self.stage.file_limit(base).0.min(end as u64) as usize;
            assert!(limit as u64 >= segment.promised, "{limit} after {} in segment {base}", segment.promised);
            assert!(segment.file[..limit] == segment.log[..limit], "segment {base} up to {limit}");
            // A block that is held in part when it is read back after opening is written once more.
            segment.promised = limit as u64 / BLOCK * BLOCK;
            for from in [0, limit] {
                let (from, to) = (Position(from as u64), Position(end as u64));
                let mut at = self.stage.memory(base, from, to, &mut drop).0 as usize;
                assert!(at <= limit, "segment {base}: the file is good up to {limit}, memory begins at {at}");
                self.stage.memory(base, from, to, &mut |lease| {
                    assert!(lease[..] == segment.log[at..at + lease.len()], "segment {base} at {at}");
                    at += lease.len();
                });
                assert_eq!(at, end, "segment {base}");
            }
        }
    }
}

fn each_write(unit: &WriteUnit, mut visit: impl FnMut(usize, &[u8])) {
    for (at, data) in unit.writes.iter().flatten() {
        let WriteData::One(lease) = data else { unreachable!("staging writes single leases") };
        visit(at.0 as usize, lease);
    }
}

/// Every eight bytes of a log are its own.
fn content(segment: Offset, position: u64, bytes: usize) -> Vec<u8> {
    let first = position / 8;
    let words = first..(position + bytes as u64).div_ceil(8);
    let all: Vec<u8> = words.flat_map(|word| (word ^ (segment.0 as u64) << 40).to_le_bytes()).collect();
    all[(position - first * 8) as usize..][..bytes].to_vec()
}

/// A unit writes at most a few staging blocks, so it may end inside a large batch. What it wrote was let go of up to
/// there, while the file was believed only up to the end of the batch before.
#[test]
fn a_unit_that_ends_inside_a_batch_lets_go_of_no_byte_that_the_file_does_not_hold_for_good() {
    let mut model = Model::new(0);
    let first = [Op::Append(5000), Op::Write, Op::Write, Op::Append(16 * MIB - 100)];
    for op in first.iter().chain([Op::Write; 20].iter()) {
        model.apply(op);
        model.check();
    }
    assert!(model.stage.take_unit(LogPoint::BEYOND).is_none() && model.under_way.is_none(), "all is written");
    assert_eq!(model.stage.blocks.len(), 1, "only the block that the log ends in is kept");
}

/// The segment's last block was believed to be in the file for good as soon as a batch of the next segment was staged,
/// while more batches were still to be written into it.
#[test]
fn a_block_that_waits_to_be_written_again_is_not_there_for_good_when_the_segment_is_sealed() {
    let mut model = Model::new(0);
    for op in [Op::Append(5000), Op::Write, Op::Write, Op::Append(900), Op::Roll, Op::Append(900)] {
        model.apply(&op);
        model.check();
    }
    assert_eq!(model.stage.file_limit(Offset(0)), Position(4096));
    for _ in 0..4 {
        model.apply(&Op::Write);
        model.check();
    }
    assert_eq!(model.stage.file_limit(Offset(0)), Position(u64::MAX));
}

/// A partition that is closed keeps nothing, though a unit of it may be under way.
#[test]
fn a_unit_may_come_back_to_a_stage_that_did_not_give_it() {
    let mut model = Model::new(0);
    model.apply(&Op::Append(2 * MIB));
    model.apply(&Op::Write);
    model.stage = Stage::new(model.end);
    model.stage.finish_unit(model.under_way.take().unwrap());
    model.apply(&Op::Evict);
    assert_eq!(model.stage.file_limit(model.end.segment), model.end.position);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_byte_is_in_the_file_for_good_or_in_memory(
        opened_at in prop_oneof![Just(0usize), 1..20_000usize],
        ops in proptest::collection::vec(op(), 1..50),
    ) {
        let mut model = Model::new(opened_at);
        model.check();
        for op in &ops {
            model.apply(op);
            model.check();
        }
    }
}
