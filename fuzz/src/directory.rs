//! A whole data directory and what happened to it, opened by the engine in the simulated world.
//!
//! An input chooses one of a few directories, as runs left them, then up to six damages. Whatever they are: the engine
//! opens it or says why not, serves sound batches that were appended to that partition, in order; takes new ones; and
//! finds the same when it is opened again. With `RINGLOG_WORDS=1` each damage is said.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;

use ringlog::Ingress;
use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, check_produced, check_stored};
use ringlog::shard::{FetchError, Partition, Shard, ShardConfig, TopicConfig};
use ringlog::sys::Ring;
use ringlog::sys::sim::{CutKind, DiskImage, World};
use ringlog::transfer::{Egress, Piece};
use ringlog::types::{Offset, Timestamp};

use crate::input::Input;

const ARENA: u64 = 64 << 20;
const PARTITIONS: i32 = 2;
const IMAGES: u8 = 8;
const DAMAGES_MAX: usize = 6;
/// Where the checksum of a batch begins, and what nobody stamps.
const UNSTAMPED: usize = 17;

/// What was appended to each partition, without the stamps.
type Contents = BTreeMap<i32, HashSet<Vec<u8>>>;

/// A directory as a run left it, and what it holds.
#[derive(Clone)]
struct Left {
    image: DiskImage,
    appended: Rc<Contents>,
}

thread_local! {
    /// They are dear to make: each is damaged in many ways.
    static LEFT: RefCell<BTreeMap<u8, Left>> = const { RefCell::new(BTreeMap::new()) };
}

/// See the module's words.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let number = input.byte() % IMAGES;
    let mut left = LEFT.with_borrow_mut(|all| all.entry(number).or_insert_with(|| leave(number)).clone());
    let (mut damages, mut moved) = (0, false);
    while !input.is_empty() && damages < DAMAGES_MAX {
        moved |= damage(&mut left.image, &mut input);
        damages += 1;
    }
    let expected = Expected { appended: (!moved).then(|| left.appended.clone()), intact: damages == 0 };
    let world = World::boot(u64::from(number), left.image);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        match look(&main, number, &expected).await {
            Ok(()) => {}
            Err(error) => assert!(!error.is_empty() && !expected.intact, "{error}"),
        }
    });
    ring.shut_down();
}

/// What may be found.
struct Expected {
    /// What was appended, unless files were exchanged: no checksum says where a batch belongs.
    appended: Option<Rc<Contents>>,
    intact: bool,
}

fn config(number: u8) -> ShardConfig {
    let mut config = ShardConfig::new("/data");
    config.ingress = Ingress::ALL[usize::from(number) % Ingress::ALL.len()];
    config.trusted_producers = true;
    config.arena_bytes_max = ARENA;
    config
}

async fn append(
    ring: &Ring,
    partition: &Partition,
    number: i64,
    bytes: usize,
) -> Result<(Offset, Vec<u8>), String> {
    let mut builder = BatchBuilder::new(Timestamp(number));
    builder.push(Timestamp(number), None, Some(&vec![number as u8; bytes]), &[]);
    builder.push(Timestamp(number), Some(b"key"), None, &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.expect("memory for a batch");
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).expect("a batch of our own");
    let ticket =
        partition.append(lease, header, None, ring.now()).await.map_err(|error| error.to_string())?;
    let acked = ticket.reached().await.map_err(|error| error.to_string())?;
    Ok((acked.offset, batch))
}

/// A run and its end: stopped, killed, or without power.
fn leave(number: u8) -> Left {
    let seed = u64::from(number);
    let world = World::new(seed);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    let appended = world.run(&[&ring], async move {
        let mut random = fastrand::Rng::with_seed(seed);
        let shard = Shard::open(&main, config(number)).await.expect("an empty directory");
        let log = LogConfig { segment_bytes_max: 8 << 10, index_interval_bytes: 512, ..LogConfig::default() };
        let topic = TopicConfig { log, ..TopicConfig::default() };
        let topic = shard.create_topic("t", PARTITIONS, topic).await.expect("a topic");
        let mut appended = Contents::new();
        for batch in 0..40 {
            let index = random.i32(0..PARTITIONS);
            let partition = topic.here(index).expect("of one shard");
            let (_, bytes) =
                append(&main, partition, batch, random.usize(1..1500)).await.expect("a sound disk");
            appended.entry(index).or_default().insert(bytes[UNSTAMPED..].to_vec());
        }
        if number & 1 == 0 {
            shard.close().await.expect("a sound disk");
        }
        appended
    });
    let recording = world.recording();
    let kind = if number & 2 == 0 { CutKind::PowerLoss } else { CutKind::ProcessDeath };
    let image = recording.cursor().image_at(recording.events(), kind, seed);
    ring.shut_down();
    Left { image, appended: Rc::new(appended) }
}

/// Does something to one file; whether batches may lie in another partition than before.
fn damage(image: &mut DiskImage, input: &mut Input<'_>) -> bool {
    let files: Vec<PathBuf> = image
        .paths()
        .into_iter()
        .filter(|path| image.read(path).is_some() && !path.ends_with(".lock"))
        .collect();
    let what = input.byte();
    let Some(path) = files.get(input.below(files.len())) else { return false };
    let bytes = image.read(path).expect("listed as a file");
    let at = input.below(bytes.len() + 1);
    let length = usize::from(what >> 4) + 1;
    if std::env::var_os("RINGLOG_WORDS").is_some() {
        eprintln!("{}: {what:#04x} at {at} of {}", path.display(), bytes.len());
    }
    let rewrite = |image: &mut DiskImage, path: &PathBuf, content: &[u8]| {
        image.set_len(path, 0);
        image.write(path, 0, content);
    };
    match what & 15 {
        0 => {
            image.remove(path);
        }
        1 => image.set_len(path, at as u64),
        2 | 3 => image.write(path, at as u64, input.piece(length * 4)),
        4 => image.write(path, at as u64, &vec![0; length * 128]),
        5 => {
            let other = image.read(&files[input.below(files.len())]).expect("listed as a file");
            rewrite(image, path, &other);
            return true;
        }
        6 => image.write(path, bytes.len() as u64, &bytes[at..]),
        7 | 8 => {
            let mut bytes = bytes;
            bytes.splice(at..at, input.piece(length).iter().copied());
            rewrite(image, path, &bytes);
        }
        9 => {
            let mut bytes = bytes;
            bytes.drain(at..bytes.len().min(at + length));
            rewrite(image, path, &bytes);
        }
        10 => {
            // Another base offset.
            let base =
                [0, 1, 7, 1 << 31, 1 << 40, i64::MAX - 1, i64::MAX, input.long() & i64::MAX][length & 7];
            let ext = path.extension().map_or("log".into(), |ext| ext.to_string_lossy().into_owned());
            image.remove(path);
            rewrite(image, &path.with_file_name(format!("{base:0>20}.{ext}")), &bytes);
        }
        11 => {
            // A text, or an index, of the fuzzer's own.
            let content = input.piece(length * 16).to_vec();
            rewrite(image, path, &content);
        }
        _ => {
            if let Some(byte) = bytes.get(at) {
                image.write(path, at as u64, &[byte ^ 1 << (length & 7)]);
            }
        }
    }
    false
}

/// What one partition holds, by base offsets.
#[derive(Debug, PartialEq)]
struct Held {
    partition: i32,
    batches: Vec<Offset>,
    reached: Reached,
}

/// How far reading led.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reached {
    /// To the end.
    End,
    /// To the end, around what is fenced.
    EndAroundFences,
    /// To where no batch follows, below the end: offsets may be missing, as compaction leaves them, and a file that was put
    /// there may say that the log goes on far above.
    Gap,
    /// To a rotten batch: a segment whose indexes are believed is served as it lies, and its reader finds out.
    Rot,
}

/// Opens, reads all there is, appends, reads again, closes; opens again and finds the same.
async fn look(ring: &Ring, number: u8, expected: &Expected) -> Result<(), String> {
    let shard = Shard::open(ring, config(number)).await.map_err(|error| error.to_string())?;
    let mut held = Vec::new();
    for topic in shard.topics() {
        for partition in topic.all_here() {
            let mut before = read_all(ring, partition, expected).await;
            let end = partition.marks().log_end.offset;
            // A file of another partition may hold what goes on beyond the end of this one.
            let beyond = before.batches.last().is_some_and(|last| *last >= end);
            assert!(!beyond || expected.appended.is_none(), "{before:?} beyond {end}");
            if expected.intact {
                let appended = expected.appended.as_ref().and_then(|all| all.get(&before.partition));
                let count = appended.map_or(0, HashSet::len);
                assert_eq!((before.batches.len(), before.reached), (count, Reached::End), "{before:?}");
            }
            match append(ring, partition, 99, 700).await {
                Ok((offset, _)) => {
                    assert_eq!(offset, end, "{partition}: no offset is left out or given twice");
                    before.batches.push(offset);
                }
                Err(error) => assert!(!expected.intact, "{error}"),
            }
            // A new batch is all that is new.
            let after = read_all(ring, partition, &Expected { appended: None, intact: false }).await;
            if !matches!(before.reached, Reached::Rot | Reached::Gap) {
                assert_eq!(after, before, "{partition} after an append");
            }
            for timestamp in [0, 20, 99] {
                let _ = partition.offset_for_timestamp(Timestamp(timestamp)).await;
            }
            held.push(after);
        }
    }
    shard.close().await.map_err(|error| error.to_string())?;
    drop(shard);
    // Nothing happened since then but a clean stop.
    let shard = Shard::open(ring, config(number)).await.expect("a directory that was closed");
    let mut held = held.into_iter();
    for topic in shard.topics() {
        for partition in topic.all_here() {
            let before = held.next().expect("the same partitions");
            let now = read_all(ring, partition, &Expected { appended: None, intact: false }).await;
            if !matches!(before.reached, Reached::Rot | Reached::Gap) {
                assert_eq!(now, before, "{partition} opened again");
            }
        }
    }
    shard.close().await.map_err(|error| error.to_string())
}

async fn read_all(ring: &Ring, partition: &Partition, expected: &Expected) -> Held {
    let (mut next, mut reached) = (partition.marks().log_start, Reached::End);
    let mut held = Held { partition: partition.index(), batches: Vec::new(), reached: Reached::Rot };
    let contents = expected.appended.as_ref().and_then(|all| all.get(&held.partition));
    loop {
        let mut pieces = Vec::new();
        match partition.fetch(next, 1 << 20, Egress::Copy, &mut pieces).await {
            Ok(fetched) if fetched.bytes == 0 => {
                let gap = reached == Reached::End && next < partition.marks().log_end.offset;
                return Held { reached: if gap { Reached::Gap } else { reached }, ..held };
            }
            Ok(_) => {}
            Err(FetchError::Corrupt { range, .. }) => {
                assert!(range.to > next, "{range:?} at {next}");
                (next, reached) = (range.to, Reached::EndAroundFences);
                continue;
            }
            Err(FetchError::OutOfRange { .. } | FetchError::Io(_)) => return held,
            Err(error) => panic!("{partition} at {next}: {error}"),
        }
        let bytes = bytes_of(ring, pieces).await;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let sound = BatchHeader::parse(rest).ok().filter(|header| {
                rest.get(..header.bytes as usize).is_some_and(|one| check_stored(one).is_ok())
            });
            // No checksum covers a stamp: one that rotted shows by not going on.
            let Some(header) =
                sound.filter(|header| header.base_offset <= next && header.next_offset() > next)
            else {
                return held;
            };
            let (batch, behind) = rest.split_at(header.bytes as usize);
            if expected.appended.is_some() {
                let known = contents.is_some_and(|known| known.contains(&batch[UNSTAMPED..]));
                assert!(known, "{partition}: {header:?} was never appended");
            }
            held.batches.push(header.base_offset);
            (next, rest) = (header.next_offset(), behind);
        }
    }
}

async fn bytes_of(ring: &Ring, pieces: Vec<Piece>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Memory(lease) => bytes.extend_from_slice(&lease),
            Piece::File { file, at, bytes: length } => {
                let mut into = ring.lease(length as usize).await.expect("memory for what is read");
                drop(into.split_off(length as usize));
                let (read, into) = ring.read(&file.file, at.0, into).await;
                assert_eq!(read.expect("a sound disk") as u64, length, "{}", file.path.display());
                bytes.extend_from_slice(&into);
            }
        }
    }
    bytes
}
