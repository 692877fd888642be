//! Directories that were damaged at random, in the simulated world: bits flipped, files cut, swapped, removed, filled with
//! noise. Whatever was done to them: opening ends with an engine or an error, never a panic; what is served are sound
//! batches in order; the log goes on; and a second opening finds the same.

use std::path::PathBuf;

use ringlog::Ingress;
use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, check_produced, check_stored};
use ringlog::shard::{FetchError, Partition, Shard, ShardConfig, TopicConfig};
use ringlog::sys::Ring;
use ringlog::sys::sim::{CutKind, DiskImage, World};
use ringlog::transfer::{Egress, Piece};
use ringlog::types::{Offset, Timestamp};

const ARENA: u64 = 64 << 20;
const PARTITIONS: i32 = 2;

fn config(seed: u64) -> ShardConfig {
    let mut config = ShardConfig::new("/data");
    config.ingress = Ingress::ALL[seed as usize % Ingress::ALL.len()];
    config.trusted_producers = true;
    config.arena_bytes_max = ARENA;
    config
}

async fn append(ring: &Ring, partition: &Partition, number: i64, bytes: usize) -> Result<Offset, String> {
    let mut builder = BatchBuilder::new(Timestamp(number));
    builder.push(Timestamp(number), None, Some(&vec![number as u8; bytes]), &[]);
    builder.push(Timestamp(number), Some(b"key"), None, &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).unwrap();
    let ticket = partition.append(lease, header, None, ring.now()).await.map_err(|e| e.to_string())?;
    ticket.reached().await.map(|acked| acked.offset).map_err(|e| e.to_string())
}

/// A directory as a run leaves it: some stopped cleanly, some were cut off.
fn image(seed: u64) -> DiskImage {
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::new(seed);
    let ring = world.ring(ARENA);
    let (main, clean, power) = (ring.clone(), random.bool(), random.bool());
    world.run(&[&ring], async move {
        let shard = Shard::open(&main, config(seed)).await.unwrap();
        let log = LogConfig { segment_bytes_max: 8 << 10, index_interval_bytes: 512, ..LogConfig::default() };
        let topic = TopicConfig { log, ..TopicConfig::default() };
        let topic = shard.create_topic("t", PARTITIONS, topic).await.unwrap();
        for number in 0..60 {
            let partition = topic.here(random.i32(0..PARTITIONS)).unwrap();
            append(&main, partition, number, random.usize(1..1500)).await.unwrap();
        }
        if clean {
            shard.close().await.unwrap();
        }
    });
    let recording = world.recording();
    let kind = if power { CutKind::PowerLoss } else { CutKind::ProcessDeath };
    let image = recording.cursor().image_at(recording.events(), kind, seed);
    ring.shut_down();
    image
}

/// Does something to one file; says what.
fn damage(image: &mut DiskImage, random: &mut fastrand::Rng) -> String {
    let files: Vec<PathBuf> = image
        .paths()
        .into_iter()
        .filter(|path| image.read(path).is_some() && !path.ends_with(".lock"))
        .collect();
    let path = &files[random.usize(..files.len())];
    let bytes = image.read(path).unwrap();
    let at = if bytes.is_empty() { 0 } else { random.usize(..bytes.len()) };
    let what = match random.u8(..8) {
        0 => {
            image.remove(path);
            "removed".to_owned()
        }
        1 => {
            image.set_len(path, at as u64);
            format!("cut to {at}")
        }
        2 => {
            let noise: Vec<u8> = (0..random.usize(1..600)).map(|_| random.u8(..)).collect();
            image.write(path, at as u64, &noise);
            format!("noise of {} at {at}", noise.len())
        }
        3 => {
            image.write(path, at as u64, &vec![0; random.usize(1..2000)]);
            format!("zeros at {at}")
        }
        4 => {
            let other = &files[random.usize(..files.len())];
            let content = image.read(other).unwrap();
            image.set_len(path, 0);
            image.write(path, 0, &content);
            format!("made a copy of {}", other.display())
        }
        5 => {
            image.write(path, bytes.len() as u64, &bytes[at..]);
            format!("its end from {at} on again behind it")
        }
        _ if bytes.is_empty() => "left empty".to_owned(),
        _ => {
            let bit = 1 << random.u8(..8);
            image.write(path, at as u64, &[bytes[at] ^ bit]);
            format!("bit {bit} at {at} flipped")
        }
    };
    format!("{}: {what}", path.display())
}

/// Opens, reads all there is, appends, reads again. What each partition holds, or why it could not be opened.
async fn look(ring: &Ring, seed: u64, verify: bool) -> Result<Vec<Vec<i64>>, String> {
    let shard =
        Shard::open(ring, ShardConfig { verify, ..config(seed) }).await.map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for topic in shard.topics() {
        for partition in topic.all_here() {
            let (before, whole) = read_all(ring, partition).await;
            let end = partition.marks().log_end.offset;
            assert!(before.last().is_none_or(|last| *last < end.0), "{partition}: {before:?} beyond {end}");
            if let Ok(offset) = append(ring, partition, 99, 700).await {
                assert_eq!(offset, end, "{partition}: no offset is left out or given twice");
                let (after, _) = read_all(ring, partition).await;
                if whole {
                    assert_eq!(after.len(), before.len() + 1, "{partition}: {before:?}, then {after:?}");
                    assert_eq!(after.last(), Some(&offset.0), "{partition}");
                }
            }
            found.push(read_all(ring, partition).await.0);
            for timestamp in [0, 30, 99] {
                let _ = partition.offset_for_timestamp(Timestamp(timestamp)).await;
            }
        }
    }
    shard.close().await.map_err(|error| error.to_string())?;
    Ok(found)
}

/// Every batch from the log start on, around what is fenced, and whether that led to the end: a batch that rotted in a
/// segment whose indexes are believed is served as it lies, and its reader finds out.
async fn read_all(ring: &Ring, partition: &Partition) -> (Vec<i64>, bool) {
    let (mut next, mut found) = (partition.marks().log_start, Vec::new());
    loop {
        let mut pieces = Vec::new();
        match partition.fetch(next, 1 << 20, Egress::Copy, &mut pieces).await {
            Ok(fetched) if fetched.bytes == 0 => return (found, true),
            Ok(_) => {}
            Err(FetchError::Corrupt { range, .. }) => {
                assert!(range.to > next, "{range:?} at {next}");
                next = range.to;
                continue;
            }
            Err(FetchError::OutOfRange { .. } | FetchError::Io(_)) => return (found, false),
            Err(error) => panic!("{partition} at {next}: {error}"),
        }
        let mut bytes = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Memory(lease) => bytes.extend_from_slice(&lease),
                Piece::File { file, at, bytes: length } => {
                    let mut into = ring.lease(length as usize).await.unwrap();
                    drop(into.split_off(length as usize));
                    let (read, into) = ring.read(&file.file, at.0, into).await;
                    assert_eq!(read.unwrap() as u64, length, "{}", file.path.display());
                    bytes.extend_from_slice(&into);
                }
            }
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let sound = BatchHeader::parse(rest).ok().filter(|header| {
                rest.get(..header.bytes as usize).is_some_and(|one| check_stored(one).is_ok())
            });
            let Some(header) = sound else { return (found, false) };
            // No checksum covers a stamp: one that rotted shows by not going on.
            if header.base_offset > next || header.next_offset() <= next {
                return (found, false);
            }
            let (_, behind) = rest.split_at(header.bytes as usize);
            assert!(found.last().is_none_or(|last| *last < header.base_offset.0), "{partition}: {found:?}");
            found.push(header.base_offset.0);
            next = header.next_offset();
            rest = behind;
        }
    }
}

fn cases() -> u64 {
    std::env::var("RINGLOG_DAMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(1500)
}

#[test]
fn whatever_was_done_to_a_directory_opening_it_ends_well() {
    let first = std::env::var("RINGLOG_SEED").ok().and_then(|text| text.parse().ok());
    let first: u64 = first.unwrap_or_else(|| fastrand::u64(..1 << 40));
    println!("RINGLOG_SEED={first}");
    let mut opened = 0;
    for seed in first..first + cases() {
        let mut random = fastrand::Rng::with_seed(seed ^ 0xda);
        // Directories are dear to make: each is damaged in many ways.
        let mut image = image(seed / 50);
        let done: Vec<String> = (0..random.usize(1..4)).map(|_| damage(&mut image, &mut random)).collect();
        let words = format!("RINGLOG_SEED={seed}: {done:?}");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let world = World::boot(seed, image);
            let ring = world.ring(ARENA);
            let main = ring.clone();
            let result = world.run(&[&ring], async move {
                match look(&main, seed / 50, seed % 2 == 0).await {
                    Err(error) => {
                        assert!(!error.is_empty());
                        false
                    }
                    Ok(_) => true,
                }
            });
            ring.shut_down();
            result
        }));
        match result {
            Ok(true) => opened += 1,
            Ok(false) => {}
            Err(_) => panic!("{words}"),
        }
    }
    assert!(opened * 2 > cases(), "{opened} of {} could be opened", cases());
}

/// One batch is all there is in the only segment; its file is emptied in one way or another. Nothing in it says any more
/// where the log goes on, so what is appended next must not have to.
#[test]
fn what_is_appended_behind_a_segment_of_which_nothing_is_left_is_there_after_the_next_start() {
    for left in [0, 1 << 16] {
        let world = World::new(7);
        let ring = world.ring(ARENA);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let shard = Shard::open(&main, config(0)).await.unwrap();
            let topic = shard.create_topic("t", 1, TopicConfig::default()).await.unwrap();
            append(&main, topic.here(0).unwrap(), 1, 700).await.unwrap();
            shard.close().await.unwrap();
        });
        let recording = world.recording();
        let mut image = recording.cursor().image_at(recording.events(), CutKind::PowerLoss, 7);
        ring.shut_down();
        let path = PathBuf::from("/data/t-0/00000000000000000000.log");
        assert!(image.read(&path).is_some_and(|bytes| bytes.len() > 700));
        image.set_len(&path, 0);
        image.set_len(&path, left);

        let world = World::boot(7, image);
        let ring = world.ring(ARENA);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let mut acknowledged = Vec::new();
            for number in 2..5 {
                let verify = ShardConfig { verify: true, ..config(0) };
                let shard = Shard::open(&main, verify).await.unwrap();
                let topic = shard.topics().pop().unwrap();
                let partition = topic.here(0).unwrap();
                assert_eq!(read_all(&main, partition).await, (acknowledged.clone(), true), "start {number}");
                let lost = partition.fetch(Offset(0), 1 << 20, Egress::Copy, &mut Vec::new()).await;
                let Err(FetchError::Corrupt { range, .. }) = lost else { panic!("{lost:?}") };
                assert_eq!(
                    (range.from, range.to),
                    (Offset(0), Offset(2)),
                    "what was lost is said, and no more"
                );
                acknowledged.push(append(&main, partition, number, 700).await.unwrap().0);
                shard.close().await.unwrap();
            }
            assert_eq!(acknowledged, [2, 4, 6]);
        });
        ring.shut_down();
    }
}
