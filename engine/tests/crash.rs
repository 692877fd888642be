//! Crashes in the simulated world: runs under load are recorded, then cut anywhere, and what is left is opened.
//!
//! Power loss keeps what was synced and a seeded subset of the rest; the death of the process keeps what the kernel had
//! completed. After either, what was acknowledged as that safe must be there, and everything that is there must be
//! a prefix of what was accepted, byte for byte. Builds with a mistake made on purpose must be caught.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, Records, check_produced, check_stored};
use ringlog::shard::{
    Ack, AppendError, Commit, JournalConfig, Mutant, Node, Partition, Shard, ShardConfig, TopicConfig,
};
use ringlog::sys::sim::{CutKind, DiskImage, Recording, World};
use ringlog::sys::{LeaseMut, Ring};
use ringlog::transfer::{Egress, Ingress, Piece};
use ringlog::types::{Offset, ShardId, Timestamp};

const ARENA: u64 = 64 << 20;
const SCARCE: u64 = 4 << 20;
const PARTITIONS: usize = 3;
const APPENDERS: u64 = 4;
const APPENDS: usize = 24;
const TOPIC: &str = "crash";

/// A batch that was accepted: which one, by whom, and when which promise was made for it. Offset and epoch are known
/// once that is so: from another shard they come with the promise.
#[derive(Clone, Debug)]
struct Accepted {
    appender: u64,
    partition: usize,
    base_offset: i64,
    epoch: i32,
    value: Vec<u8>,
    acked: Option<(usize, Ack)>,
    /// The log was cut before the promise was kept.
    moved: bool,
}

/// A log that was cut, or begun later, by somebody: between which events, at which offset.
#[derive(Clone, Copy, Debug)]
struct Surgery {
    partition: usize,
    kind: Operation,
    at: i64,
    begun: usize,
    done: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Operation {
    /// What lay at or beyond the offset is gone.
    Truncate,
    /// What lies below it may go.
    MoveLogStart,
}

/// A topic's name, the event at which its deletion was asked for, and the one at which that was over.
type Deletion = (String, usize, Option<usize>);

struct Run {
    recording: Recording,
    accepted: Vec<Accepted>,
    surgeries: Vec<Surgery>,
    deletions: Vec<Deletion>,
    ingress: Ingress,
    commit: Commit,
    mutant: Mutant,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Mistake {
    None,
    Engine(Mutant),
    ReuseMemory,
}

fn shard_config(ingress: Ingress, commit: Commit, mutant: Mutant) -> ShardConfig {
    let mut config = ShardConfig::new("/data");
    config.ingress = ingress;
    config.trusted_producers = true;
    config.arena_bytes_max = ARENA;
    config.tail_cache_bytes_max = 256 << 10;
    config.mutant = mutant;
    config.commit = commit;
    // Small, so that files are used again and again.
    config.journal = JournalConfig {
        file_bytes: 64 << 10,
        files_max: 2,
        batch_bytes_max: 4000,
        round_bytes_max: 6000,
        destage_bytes: 12 << 10,
    };
    config
}

fn batch(value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(value), &[]);
    builder.finish().to_vec()
}

/// Leaves three free blocks of each of the two classes that a scarce arena has.
async fn hold_most_memory(ring: &Ring) -> Vec<LeaseMut> {
    let mut held = Vec::new();
    for bytes in [4 << 10, 16 << 10] {
        held.push(ring.lease(bytes).await.unwrap());
        while ring.arena().free_blocks(bytes) > 3 {
            held.push(ring.try_lease(bytes).unwrap());
        }
    }
    held
}

/// A node on so many rings.
async fn open(rings: &[Ring], config: ShardConfig) -> Vec<Shard> {
    let node = Node::open(&rings[0], &config, rings.len() as u16).await.unwrap();
    let mut shards = Vec::new();
    for (number, ring) in rings.iter().enumerate() {
        let id = ShardId(number as u16);
        shards.push(Shard::join(ring, id, config.clone(), node.clone()).await.unwrap());
    }
    shards
}

/// A recorded run: appenders with their own mix of sizes and promises, small segments so that it rolls often.
fn record(seed: u64, mistake: Mistake) -> Run {
    let mut random = fastrand::Rng::with_seed(seed);
    let ingress = match mistake {
        Mistake::ReuseMemory => Ingress::Buffered,
        _ => Ingress::ALL[random.usize(..Ingress::ALL.len())],
    };
    let commit = match mistake {
        Mistake::ReuseMemory => Commit::Files,
        Mistake::Engine(
            Mutant::EarlyReuse | Mutant::CarryNothing | Mutant::ReplayTwice | Mutant::ReplayVoid,
        ) => Commit::Journal,
        _ => match random.u8(..) {
            0..48 => Commit::Files,
            48..96 => Commit::Device,
            _ => Commit::Journal,
        },
    };
    let ingress = match commit {
        // The others have no journal.
        Commit::Journal if !ingress.is_direct() && random.u8(..) < 200 => Ingress::Copy,
        _ => ingress,
    };
    let topic_ack = if random.bool() { Ack::Durable } else { Ack::Written };
    let mutant = if let Mistake::Engine(mutant) = mistake { mutant } else { Mutant::None };
    let world = World::new(seed);
    world.faults().reuse_memory_in_flight(mistake == Mistake::ReuseMemory);
    world.faults().short_writes(if mistake == Mistake::None { 0.05 } else { 0.0 });
    // Memory in flight can only be reused where there is little of it.
    let shards = if mistake == Mistake::ReuseMemory { 1 } else { random.usize(1..=4) };
    let arena = if mistake == Mistake::ReuseMemory { SCARCE } else { ARENA };
    let rings: Vec<Ring> = (0..shards).map(|_| world.ring(arena)).collect();
    let accepted: Rc<RefCell<Vec<Accepted>>> = Rc::default();
    let surgeries: Rc<RefCell<Vec<Surgery>>> = Rc::default();
    let deletions: Rc<RefCell<Vec<Deletion>>> = Rc::default();
    let (main, list, clock) = (rings[0].clone(), accepted.clone(), world.clone());
    let (cuts, gone) = (surgeries.clone(), deletions.clone());
    let all = rings.clone();
    world.run(&rings.iter().collect::<Vec<_>>(), async move {
        let shards = open(&all, shard_config(ingress, commit, mutant)).await;
        let shard = &shards[0];
        let _held = if mistake == Mistake::ReuseMemory { hold_most_memory(&main).await } else { Vec::new() };
        let log = LogConfig { segment_bytes_max: 32 << 10, ..LogConfig::default() };
        let config = TopicConfig { ack: topic_ack, log, ..TopicConfig::default() };
        shard.create_topic(TOPIC, PARTITIONS as i32, config).await.unwrap();
        let left = Rc::new(RefCell::new(APPENDERS));
        // What was not carried is missed once its journal file is used again.
        let long = mistake == Mistake::Engine(Mutant::CarryNothing);
        let appends = if long { 4 * APPENDS } else { APPENDS };
        for appender in 0..APPENDERS {
            // Each on a shard of its own, where there are enough; every partition is somebody's own.
            let shard = shards[appender as usize % shards.len()].clone();
            let topic = shard.topic(TOPIC).expect("a topic that was made is shown everywhere");
            let (list, clock, left) = (list.clone(), clock.clone(), left.clone());
            let (ring, spawner) = (shard.ring().clone(), shard.ring().clone());
            let mut random = fastrand::Rng::with_seed(seed ^ (appender + 1) << 32);
            spawner.clone().spawn(async move {
                for _ in 0..appends {
                    let number = random.usize(..PARTITIONS);
                    let bytes =
                        if random.u8(..) < 40 { random.usize(3000..9000) } else { random.usize(10..900) };
                    let value: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(bytes).collect();
                    let ack = if random.bool() { Ack::Durable } else { Ack::Written };
                    let bytes = batch(&value);
                    let header = check_produced(&bytes).unwrap();
                    let lease = ring.lease(bytes.len()).await;
                    if lease.is_err() && mistake == Mistake::ReuseMemory {
                        break; // There is little, and that is the point; what was accepted is looked at.
                    }
                    let mut lease = lease.unwrap();
                    drop(lease.split_off(bytes.len()));
                    lease.copy_from_slice(&bytes);
                    let route = shard.route(&topic, number as i32).unwrap();
                    let promise = route.append(lease, header, Some(ack), ring.now()).await.unwrap();
                    let place = list.borrow().len();
                    list.borrow_mut().push(Accepted {
                        appender,
                        partition: number,
                        base_offset: -1,
                        epoch: -1,
                        value,
                        acked: None,
                        moved: false,
                    });
                    let (list, clock) = (list.clone(), clock.clone());
                    let wait = async move {
                        let kept = promise.kept().await;
                        let accepted = &mut list.borrow_mut()[place];
                        match kept {
                            Ok(acked) => {
                                (accepted.base_offset, accepted.epoch) = (acked.offset.0, acked.epoch.0);
                                accepted.acked = Some((clock.disk_events(), acked.reached));
                            }
                            Err(AppendError::Moved) => accepted.moved = true,
                            Err(error) => panic!("{error}"),
                        }
                    };
                    // Some wait for their answer, some send on.
                    if random.bool() {
                        wait.await;
                    } else {
                        spawner.spawn(wait);
                    }
                }
                *left.borrow_mut() -= 1;
            });
        }
        let operating = Rc::new(Cell::new(mistake != Mistake::ReuseMemory));
        if operating.get() {
            let work = operate(shards.clone(), clock.clone(), seed, mistake, cuts, gone);
            let operating = operating.clone();
            main.spawn(async move {
                work.await;
                operating.set(false);
            });
        }
        let pending = |accepted: &Accepted| accepted.acked.is_none() && !accepted.moved;
        let mut waited = 0;
        while *left.borrow() > 0 || operating.get() || list.borrow().iter().any(pending) {
            main.sleep(Duration::from_millis(1)).await;
            waited += 1;
            if mistake == Mistake::ReuseMemory && waited > 10_000 {
                break; // Appends may be stuck for want of memory; what was promised is looked at.
            }
        }
    });
    let recording = world.recording();
    let accepted = accepted.borrow().clone();
    rings.iter().for_each(Ring::shut_down);
    let (surgeries, deletions) = (surgeries.borrow().clone(), deletions.borrow().clone());
    Run { recording, accepted, surgeries, deletions, ingress, commit, mutant }
}

/// Cuts logs, begins them later, makes topics and deletes them, while others append.
async fn operate(
    shards: Vec<Shard>,
    clock: World,
    seed: u64,
    mistake: Mistake,
    surgeries: Rc<RefCell<Vec<Surgery>>>,
    deletions: Rc<RefCell<Vec<Deletion>>>,
) {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x0b5);
    let ring = shards[0].ring().clone();
    // A mistake about cuts shows where logs are cut.
    let cuts_only = mistake == Mistake::Engine(Mutant::ReplayVoid);
    for round in 0..if cuts_only { 5 } else { random.usize(0..5) } {
        ring.sleep(Duration::from_micros(random.u64(..6000))).await;
        let partition = random.usize(..PARTITIONS);
        let topic = shards[0].topic(TOPIC).unwrap();
        let owner = usize::from(topic.owner(partition as i32).0);
        let there = shards[owner].topic(TOPIC).unwrap().here(partition as i32).unwrap().clone();
        let marks = there.marks();
        let between = random.i64(marks.log_start.0..=marks.high_watermark.offset.0);
        let mut note = Surgery {
            partition,
            kind: Operation::Truncate,
            at: between,
            begun: clock.disk_events(),
            done: None,
        };
        let place = surgeries.borrow().len();
        match random.u8(..3) {
            kind if kind == 0 || cuts_only => {
                surgeries.borrow_mut().push(note);
                let at = there.truncate_to(Offset(between)).await.unwrap();
                surgeries.borrow_mut()[place].at = at.0;
                surgeries.borrow_mut()[place].done = Some(clock.disk_events());
            }
            1 => {
                note.kind = Operation::MoveLogStart;
                surgeries.borrow_mut().push(note);
                there.advance_log_start(Offset(between)).await.unwrap();
                surgeries.borrow_mut()[place].done = Some(clock.disk_events());
            }
            _ => {
                let name = format!("victim-{round}");
                let config = TopicConfig::default();
                shards[0].create_topic(&name, 2, config).await.unwrap();
                let victim = shards[0].topic(&name).unwrap();
                let bytes = batch(name.as_bytes());
                for index in 0..2 {
                    let mut lease = ring.lease(bytes.len()).await.unwrap();
                    drop(lease.split_off(bytes.len()));
                    lease.copy_from_slice(&bytes);
                    let header = check_produced(&bytes).unwrap();
                    let route = shards[0].route(&victim, index).unwrap();
                    let promise = route.append(lease, header, Some(Ack::Durable), ring.now()).await.unwrap();
                    if random.bool() {
                        promise.kept().await.unwrap();
                    }
                }
                drop(victim);
                let place = deletions.borrow().len();
                deletions.borrow_mut().push((name.clone(), clock.disk_events(), None));
                shards[0].delete_topic(&name).await.unwrap();
                deletions.borrow_mut()[place].2 = Some(clock.disk_events());
            }
        }
    }
}

/// What a start found.
struct Contents {
    /// Of each partition, its epoch, its log start, and its bytes or why they cannot be read.
    partitions: Vec<(i32, i64, Result<Vec<u8>, String>)>,
    topics: Vec<String>,
}

/// Opens what a cut left and reads everything. Gives the image's successor world's recording, for a second cut.
fn reopen(image: DiskImage, seed: u64, run: &Run) -> (Recording, Contents) {
    let (ingress, commit, mutant) = (run.ingress, run.commit, run.mutant);
    let world = World::boot(seed, image);
    // Another number of shards than before, most times.
    let rings: Vec<Ring> = (0..1 + seed % 4).map(|_| world.ring(ARENA)).collect();
    let all = rings.clone();
    let found = world.run(&rings.iter().collect::<Vec<_>>(), async move {
        let shards = open(&all, shard_config(ingress, commit, mutant)).await;
        let mut found = Vec::new();
        let topics = shards[0].topics().iter().map(|topic| topic.name.to_string()).collect();
        if let Some(topic) = shards[0].topic(TOPIC) {
            for index in 0..topic.partition_count() {
                let owner = &shards[usize::from(topic.owner(index).0)];
                let there = owner.topic(TOPIC).unwrap();
                let partition = there.here(index).unwrap();
                let log_start = partition.marks().log_start.0;
                found.push((partition.epoch().0, log_start, read_all(owner.ring(), partition).await));
            }
        }
        Contents { partitions: found, topics }
    });
    let recording = world.recording();
    rings.iter().for_each(Ring::shut_down);
    (recording, found)
}

async fn read_all(ring: &Ring, partition: &Partition) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    let mut next = partition.marks().log_start;
    loop {
        let mut pieces = Vec::new();
        let fetched = partition.fetch(next, 1 << 20, Egress::Tail, &mut pieces).await;
        if fetched.map_err(|e| format!("offset {next}: {e}"))?.bytes == 0 {
            return Ok(all);
        }
        let from = all.len();
        for piece in pieces {
            match piece {
                Piece::Memory(lease) => all.extend_from_slice(&lease),
                Piece::File { file, at, bytes } => {
                    let mut at = at.0;
                    let end = at + bytes;
                    while at < end {
                        let mut into = ring.lease((end - at).min(64 << 10) as usize).await.unwrap();
                        drop(into.split_off((end - at).min(64 << 10) as usize));
                        let (read, into) = ring.read(&file.file, at, into).await;
                        let n = read.unwrap();
                        assert!(n > 0, "{} ends at {at}", file.path.display());
                        all.extend_from_slice(&into[..n]);
                        at += n as u64;
                    }
                }
            }
        }
        let mut rest = &all[from..];
        while !rest.is_empty() {
            let header = BatchHeader::parse(rest).map_err(|e| format!("behind offset {next}: {e}"))?;
            next = header.next_offset();
            rest = rest.get(header.bytes as usize..).ok_or_else(|| format!("half a batch before {next}"))?;
        }
    }
}

/// What is wrong with what was found, if anything is.
fn judge(run: &Run, found: &Contents, cut: usize, kind: CutKind) -> Result<(), String> {
    let needed = match kind {
        CutKind::PowerLoss => Ack::Durable,
        CutKind::ProcessDeath => Ack::Written,
    };
    for (name, begun, done) in &run.deletions {
        if done.is_some_and(|done| done <= cut) && found.topics.contains(name) {
            return Err(format!(
                "topic {name} was deleted between events {begun} and {done:?}, and is there"
            ));
        }
    }
    let mut accepted: BTreeMap<&[u8], (usize, &Accepted)> = BTreeMap::new();
    let mut identities = BTreeMap::new();
    for (number, one) in run.accepted.iter().enumerate() {
        accepted.insert(&one.value, (number, one));
        let known = one.acked.is_some();
        if known && identities.insert((one.partition, one.base_offset, one.epoch), number).is_some() {
            let Accepted { partition, base_offset, epoch, .. } = one;
            return Err(format!(
                "offset {base_offset} of partition {partition}, epoch {epoch}: assigned twice"
            ));
        }
    }
    let mut last = [[(-1, -1); PARTITIONS]; APPENDERS as usize];
    for one in run.accepted.iter().filter(|one| one.acked.is_some()) {
        let place = (one.epoch, one.base_offset);
        let before = std::mem::replace(&mut last[one.appender as usize][one.partition], place);
        if before >= place {
            let Accepted { appender, partition, .. } = one;
            return Err(format!(
                "appender {appender} to partition {partition}: {place:?} came after {before:?}"
            ));
        }
    }
    let mut there = vec![false; run.accepted.len()];
    for (number, (epoch, log_start, bytes)) in found.partitions.iter().enumerate() {
        let mut end = None;
        let mut rest = &bytes.as_ref().map_err(|why| format!("partition {number}: {why}"))?[..];
        while !rest.is_empty() {
            let whole = BatchHeader::parse(rest).map_err(|e| e.to_string())?.bytes as usize;
            let (one, behind) = rest.split_at(whole);
            rest = behind;
            let header = check_stored(one).map_err(|e| format!("partition {number}: {e}"))?;
            let goes_on = end.map_or(header.base_offset.0 <= *log_start, |end| header.base_offset.0 == end);
            if !goes_on {
                return Err(format!(
                    "partition {number}: offset {} after {end:?}, log start {log_start}",
                    header.base_offset
                ));
            }
            end = Some(header.next_offset().0);
            let record = Records::new(one).unwrap().next().unwrap().map_err(|e| e.to_string())?;
            let Some(&(place, expected)) = record.value.and_then(|value| accepted.get(value)) else {
                return Err(format!("partition {number}: offset {} was never accepted", header.base_offset));
            };
            let known = expected.acked.is_some();
            if expected.partition != number
                || known
                    && (expected.base_offset, expected.epoch) != (header.base_offset.0, header.leader_epoch.0)
                || std::mem::replace(&mut there[place], true)
            {
                let (offset, in_epoch) = (header.base_offset, header.leader_epoch);
                return Err(format!(
                    "partition {number}: offset {offset} of epoch {in_epoch} holds what was accepted as {expected:?}"
                ));
            }
            if *epoch <= header.leader_epoch.0 {
                return Err(format!("partition {number}: epoch {epoch} did not go up"));
            }
            let gone = run.surgeries.iter().find(|surgery| {
                surgery.kind == Operation::Truncate
                    && surgery.partition == number
                    && surgery.done.is_some_and(|done| done <= cut)
                    && expected.acked.is_some_and(|(event, _)| event <= surgery.begun)
                    && header.base_offset.0 >= surgery.at
            });
            if let Some(surgery) = gone {
                return Err(format!("partition {number}: {expected:?} is back after {surgery:?}"));
            }
        }
    }
    for (one, there) in run.accepted.iter().zip(&there) {
        let promised = one.acked.is_some_and(|(event, reached)| event <= cut && reached >= needed);
        let removed = run.surgeries.iter().any(|surgery| {
            let below = one.base_offset < surgery.at;
            surgery.partition == one.partition
                && surgery.begun <= cut
                && match surgery.kind {
                    // What was promised later lies in the log that was cut.
                    Operation::Truncate => {
                        let last = surgery.done.unwrap_or(usize::MAX);
                        !below && one.acked.is_some_and(|(event, _)| event <= last)
                    }
                    Operation::MoveLogStart => below,
                }
        });
        if promised && !removed && !there {
            return Err(format!("partition {}: {one:?} is lost", one.partition));
        }
    }
    Ok(())
}

/// Cuts a run `cuts` times, one in ten a second time during recovery. The first violation, or how many were made.
fn cut_run(seed: u64, mistake: Mistake, cuts: usize) -> Result<usize, String> {
    let run = record(seed, mistake);
    let mut random = fastrand::Rng::with_seed(seed ^ 0xc07);
    let events = run.recording.events();
    let mut points: Vec<usize> = (0..cuts).map(|_| random.usize(..=events)).collect();
    points.sort_unstable();
    let mut cursor = run.recording.cursor();
    for point in points {
        let kind = if random.bool() { CutKind::PowerLoss } else { CutKind::ProcessDeath };
        let image_seed = random.u64(..);
        let image = cursor.image_at(point, kind, image_seed);
        let (again, found) = reopen(image, random.u64(..), &run);
        let say = |why: String| {
            format!(
                "seed {seed}, {mistake:?}, {kind:?} at {point} of {events}, image {image_seed}: {why}; {:?}",
                run.surgeries
            )
        };
        judge(&run, &found, point, kind).map_err(say)?;
        if random.u8(..) < 26 {
            let second = random.usize(..=again.events());
            let image = again.cursor().image_at(second, kind, random.u64(..));
            let (_, found) = reopen(image, random.u64(..), &run);
            judge(&run, &found, point, kind).map_err(|why| say(format!("cut again at {second}: {why}")))?;
        }
    }
    Ok(cuts)
}

/// How many cuts over how many recorded runs; `RINGLOG_CUTS` asks for more than the gate makes.
fn cuts_wanted() -> usize {
    std::env::var("RINGLOG_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

fn first_seed() -> u64 {
    let seed = std::env::var("RINGLOG_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 40));
    println!("RINGLOG_SEED={seed}");
    seed
}

#[test]
fn no_promise_is_broken_wherever_the_run_is_cut() {
    let (seed, wanted) = (first_seed(), cuts_wanted());
    const CUTS_A_RUN: usize = 250;
    let runs = wanted.div_ceil(CUTS_A_RUN) as u64;
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let made: usize = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let mine = (0..runs).filter(move |run| run % threads == thread);
            mine.map(|run| {
                cut_run(seed + run, Mistake::None, CUTS_A_RUN).unwrap_or_else(|why| panic!("{why}"))
            })
            .sum::<usize>()
        };
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).sum()
    });
    assert!(made >= wanted, "{made} cuts of {wanted}");
}

fn caught(mistake: Mistake) {
    const CUTS_A_RUN: usize = 50;
    let seed = first_seed();
    let violation = (0..40).find_map(|run| cut_run(seed + run, mistake, CUTS_A_RUN).err());
    assert!(violation.is_some(), "{mistake:?} was not caught in {} cuts from seed {seed}", 40 * CUTS_A_RUN);
}

#[test]
fn a_build_that_skips_the_flush_is_caught() {
    caught(Mistake::Engine(Mutant::SkipFlush));
}

#[test]
fn a_build_that_calls_written_what_is_only_submitted_is_caught() {
    caught(Mistake::Engine(Mutant::EarlyWatermark));
}

#[test]
fn a_build_that_writes_over_what_is_in_no_segment_yet_is_caught() {
    caught(Mistake::Engine(Mutant::EarlyReuse));
}

#[test]
fn a_build_that_does_not_carry_journaled_batches_with_a_large_one_is_caught() {
    caught(Mistake::Engine(Mutant::CarryNothing));
}

#[test]
fn a_build_that_replays_twice_is_caught() {
    caught(Mistake::Engine(Mutant::ReplayTwice));
}

#[test]
fn a_build_that_replays_what_was_cut_is_caught() {
    caught(Mistake::Engine(Mutant::ReplayVoid));
}

#[test]
fn a_build_that_reuses_memory_in_flight_is_caught() {
    caught(Mistake::ReuseMemory);
}

#[test]
fn a_log_start_that_moved_stays_moved() {
    let run = record(1, Mistake::None);
    let events = run.recording.events();
    let image = run.recording.cursor().image_at(events, CutKind::ProcessDeath, 1);
    let world = World::boot(2, image);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    let (ingress, commit) = (run.ingress, run.commit);
    world.run(&[&ring], async move {
        let shard = Shard::open(&main, shard_config(ingress, commit, Mutant::None)).await.unwrap();
        let partition = shard.topic(TOPIC).unwrap().here(0).unwrap().clone();
        let end = partition.marks().high_watermark.offset;
        partition.advance_log_start(Offset(end.0 / 2)).await.unwrap();
        shard.close().await.unwrap();
        drop((partition, shard));
        let shard = Shard::open(&main, shard_config(ingress, commit, Mutant::None)).await.unwrap();
        let marks = shard.topic(TOPIC).unwrap().here(0).unwrap().marks();
        assert_eq!((marks.log_start, marks.log_end.offset), (Offset(end.0 / 2), end));
    });
}
