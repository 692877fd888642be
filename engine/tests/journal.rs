//! The journal in the simulated world: what it holds after power is lost, what of it is damaged, what fails around it, and
//! what it costs.

mod pieces;

use std::cell::Cell;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, check_produced, check_stored};
use ringlog::shard::{
    Acked, AppendError, Commit, FetchError, JournalConfig, Node, Partition, Shard, ShardConfig, TopicConfig,
};
use ringlog::sys::Ring;
use ringlog::sys::sim::{CutKind, DiskImage, Faults, Recording, World};
use ringlog::transfer::{Egress, Ingress};
use ringlog::types::{Offset, ShardId, Timestamp};

const ARENA: u64 = 64 << 20;
const PARTITIONS: i32 = 4;

fn config() -> ShardConfig {
    ShardConfig { commit: Commit::Journal, journal: small(), ..ShardConfig::new("/data") }
}

/// With files that are used again and again.
fn tight() -> ShardConfig {
    ShardConfig { journal: JournalConfig { file_bytes: 64 << 10, files_max: 3, ..small() }, ..config() }
}

fn small() -> JournalConfig {
    JournalConfig {
        file_bytes: 256 << 10,
        files_max: 4,
        batch_bytes_max: 4 << 10,
        round_bytes_max: 8 << 10,
        destage_bytes: 1 << 20,
    }
}

async fn open(rings: &[Ring], config: &ShardConfig) -> Vec<Shard> {
    let node = Node::open(&rings[0], config, rings.len() as u16).await.unwrap();
    let mut shards = Vec::new();
    for (number, ring) in rings.iter().enumerate() {
        let id = ShardId(number as u16);
        shards.push(Shard::join(ring, id, config.clone(), node.clone()).await.unwrap());
    }
    shards
}

async fn make_topic(shard: &Shard) {
    let log = LogConfig { segment_bytes_max: 64 << 10, ..LogConfig::default() };
    shard.create_topic("t", PARTITIONS, TopicConfig { log, ..TopicConfig::default() }).await.unwrap();
}

fn partitions(shards: &[Shard]) -> Vec<Partition> {
    let topic = shards[0].topic("t").unwrap();
    let of =
        |index| shards[usize::from(topic.owner(index).0)].topic("t").unwrap().here(index).unwrap().clone();
    (0..topic.partition_count()).map(of).collect()
}

async fn append(ring: &Ring, partition: &Partition, bytes: usize) -> Result<Acked, AppendError> {
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(&vec![7; bytes]), &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).unwrap();
    partition.append(lease, header, None, ring.now()).await?.reached().await
}

/// The offsets that can be read, each batch checked, and what ends that.
async fn offsets(ring: &Ring, partition: &Partition, from: i64) -> (Vec<i64>, Option<FetchError>) {
    let (mut next, mut found) = (Offset(from), Vec::new());
    loop {
        let mut pieces = Vec::new();
        match partition.fetch(next, 64 << 10, Egress::Tail, &mut pieces).await {
            Err(error) => return (found, Some(error)),
            Ok(fetched) if fetched.bytes == 0 => return (found, None),
            Ok(_) => {}
        }
        let bytes = pieces::read(ring, pieces).await;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = BatchHeader::parse(rest).unwrap().bytes as usize;
            let header = check_stored(&rest[..length]).unwrap();
            found.push(header.base_offset.0);
            next = header.next_offset();
            rest = &rest[length..];
        }
    }
}

/// Plays on a node of one shard.
fn on_one_shard<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    config: &ShardConfig,
    play: impl FnOnce(Vec<Shard>, Faults) -> F + 'static,
) -> (T, Recording) {
    let world = World::new(seed);
    let ring = world.ring(ARENA);
    let (main, faults, config) = (ring.clone(), world.faults(), config.clone());
    let played = world.run(&[&ring], async move {
        let shards = open(&[main], &config).await;
        play(shards, faults).await
    });
    let recording = world.recording();
    ring.shut_down();
    (played, recording)
}

/// What power loss leaves of a node of `shards` shards on which `play` was played.
fn image_after<F: Future<Output = ()> + 'static>(
    seed: u64,
    shards: usize,
    play: impl FnOnce(Vec<Shard>) -> F + 'static,
) -> DiskImage {
    let world = World::new(seed);
    let rings: Vec<Ring> = (0..shards).map(|_| world.ring(ARENA)).collect();
    let all = rings.clone();
    world.run(&rings.iter().collect::<Vec<_>>(), async move {
        let shards = open(&all, &config()).await;
        make_topic(&shards[0]).await;
        play(shards).await;
    });
    let recording = world.recording();
    let image = recording.cursor().image_at(recording.events(), CutKind::PowerLoss, seed);
    rings.iter().for_each(Ring::shut_down);
    image
}

/// Opens what is left, with another number of shards, and looks.
fn look<F: Future<Output = ()> + 'static>(
    seed: u64,
    image: DiskImage,
    shards: usize,
    judge: impl FnOnce(Vec<Shard>) -> F + 'static,
) {
    let world = World::boot(seed, image);
    let rings: Vec<Ring> = (0..shards).map(|_| world.ring(ARENA)).collect();
    let all = rings.clone();
    world.run(&rings.iter().collect::<Vec<_>>(), async move {
        let shards = open(&all, &config()).await;
        assert!(all[0].list("/data/journal".as_ref()).await.unwrap().is_empty(), "old journals are removed");
        judge(shards.clone()).await;
        for shard in &shards {
            shard.drain().await.unwrap();
        }
        shards[0].seal().await.unwrap();
        shards.iter().for_each(Shard::leave);
        assert!(
            all[0].list("/data/journal".as_ref()).await.is_err(),
            "nothing of it is left by a clean stop"
        );
    });
    rings.iter().for_each(Ring::shut_down);
}

fn journals(image: &DiskImage) -> Vec<PathBuf> {
    let all = image.paths().into_iter();
    all.filter(|path| path.starts_with("/data/journal") && image.read(path).is_some()).collect()
}

/// Appends so many batches to each partition, one after the other.
async fn fill(shards: &[Shard], batches: usize) {
    for _ in 0..batches {
        for partition in &partitions(shards) {
            append(partition.ring(), partition, 700).await.unwrap();
        }
    }
}

async fn assert_whole(shards: Vec<Shard>, batches: i64) {
    for partition in &partitions(&shards) {
        let (found, error) = offsets(partition.ring(), partition, 0).await;
        assert_eq!((found, error.map(|e| e.to_string())), ((0..batches).collect(), None), "{partition}");
        assert_eq!(append(partition.ring(), partition, 10).await.unwrap().offset, Offset(batches));
    }
}

#[test]
fn what_was_promised_is_there_after_power_loss_whatever_the_number_of_shards() {
    for seed in 0..20 {
        let image = image_after(seed, 1 + seed as usize % 3, |shards| async move {
            fill(&shards, 6).await;
            let frames: u64 = shards.iter().map(|shard| shard.counters().journal.frames).sum();
            assert!(frames >= 6 * PARTITIONS as u64, "{frames} frames");
        });
        assert!(!journals(&image).is_empty());
        look(seed, image, 1 + (seed as usize + 1) % 3, |shards| assert_whole(shards, 6));
    }
}

#[test]
fn journals_under_each_others_names_are_read_for_what_they_are() {
    let mut image = image_after(3, 2, |shards| async move { fill(&shards, 5).await });
    let files = journals(&image);
    assert!(files.len() >= 2, "{files:?}");
    let bytes: Vec<Vec<u8>> = files.iter().map(|path| image.read(path).unwrap()).collect();
    for (path, bytes) in files.iter().zip(bytes.iter().rev()) {
        image.set_len(path, 0);
        image.write(path, 0, bytes);
    }
    look(3, image, 1, |shards| assert_whole(shards, 5));
}

#[test]
fn a_journal_whose_first_block_is_lost_is_known_by_its_units() {
    let mut image = image_after(7, 2, |shards| async move { fill(&shards, 5).await });
    for path in journals(&image) {
        image.write(&path, 0, &[0; 4096]);
    }
    look(7, image, 1, |shards| assert_whole(shards, 5));
}

/// Somebody put it there by mistake, perhaps in place of ours: it is not used, and not removed either.
#[test]
fn a_journal_of_another_directory_is_left_where_it_lies() {
    let mut image = image_after(9, 1, |shards| async move { fill(&shards, 3).await });
    let other = image_after(10, 1, |shards| async move { fill(&shards, 4).await });
    let foreign = PathBuf::from("/data/journal/7-0-1");
    image.write(&foreign, 0, &other.read(&journals(&other)[0]).unwrap());
    let world = World::boot(9, image);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shards = open(&[main], &config()).await;
        assert_whole(shards.clone(), 3).await;
        shards[0].close().await.unwrap();
        let left = shards[0].ring().list("/data/journal".as_ref()).await.unwrap();
        assert_eq!(left.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>(), ["7-0-1"]);
    });
    ring.shut_down();
}

/// Each bit once in a while: what was promised and can be read is there, and what cannot is an error with a name, never
/// something else.
#[test]
fn a_flipped_bit_in_a_journal_costs_what_it_lies_in() {
    let image = image_after(5, 1, |shards| async move { fill(&shards, 8).await });
    let begun = |path: &PathBuf| image.read(path).unwrap().iter().any(|byte| *byte != 0);
    let path = journals(&image).into_iter().rfind(begun).unwrap();
    let bytes = image.read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let mut fenced = 0;
    for at in (4096..end).step_by(331) {
        let mut image = image.clone();
        image.write(&path, at as u64, &[bytes[at] ^ 1 << (at % 8)]);
        let world = World::boot(at as u64, image);
        let ring = world.ring(ARENA);
        let main = ring.clone();
        fenced += world.run(&[&ring], async move {
            let shards = open(&[main], &config()).await;
            let mut lost = 0;
            for partition in &partitions(&shards) {
                let (found, error) = offsets(partition.ring(), partition, 0).await;
                let mut there = found.clone();
                if let Some(error) = error {
                    let FetchError::Corrupt { range, .. } = &error else { panic!("{error}") };
                    let (behind, error) = offsets(partition.ring(), partition, range.to.0).await;
                    assert!(error.is_none(), "{error:?}");
                    there.extend(behind);
                }
                let end = partition.marks().log_end.offset.0;
                assert!(there.is_sorted() && there.len() + 1 >= 8, "byte {at}: {partition} has {there:?}");
                lost += i32::from(there.len() < 8 && end == 8);
                assert!(append(partition.ring(), partition, 10).await.unwrap().offset.0 == end);
            }
            lost
        });
        ring.shut_down();
    }
    assert!(fenced > 0, "a hole was fenced, and what lies behind it is served");
}

#[test]
fn a_failed_write_of_the_journal_costs_the_journal_and_no_promise() {
    for seed in 0..10 {
        on_one_shard(seed, &config(), |shards, faults| async move {
            make_topic(&shards[0]).await;
            fill(&shards, 2).await;
            faults.fail_writes("/data/journal/", 1);
            fill(&shards, 3).await;
            let counted = shards[0].counters().journal;
            assert!(counted.frames >= 8, "{counted:?}");
            assert_whole(shards.clone(), 5).await;
            shards[0].close().await.unwrap();
        });
    }
}

#[test]
fn a_failed_flush_of_the_journal_latches_the_device() {
    on_one_shard(4, &config(), |shards, faults| async move {
        make_topic(&shards[0]).await;
        fill(&shards, 2).await;
        faults.fail_syncs("/data/journal/", 1);
        let all = partitions(&shards);
        for partition in &all {
            let words = append(partition.ring(), partition, 10).await.unwrap_err().to_string();
            assert!(words.contains("journal of shard 0") && words.contains("flush"), "{words}");
        }
        let (found, error) = offsets(all[0].ring(), &all[0], 0).await;
        assert_eq!((found.len(), error.is_none()), (2, true), "what was durable is served");
        assert!(shards[0].close().await.is_err(), "a stop that lost something is not a clean one");
    });
}

/// A partition whose segment cannot be written keeps what was promised: in the journal, which is not used again.
#[test]
fn a_failed_destage_latches_its_partition_and_loses_nothing() {
    for seed in 0..10 {
        let (promised, recording) = on_one_shard(seed, &tight(), |shards, faults| async move {
            make_topic(&shards[0]).await;
            let all = partitions(&shards);
            let mut promised = vec![0; all.len()];
            faults.fail_writes("/data/t-1/0000", 1);
            // Much more than the journal holds.
            for _ in 0..120 {
                for (partition, promised) in all.iter().zip(&mut promised) {
                    match append(partition.ring(), partition, 900).await {
                        Ok(acked) => *promised = acked.offset.0 + 1,
                        Err(error) => assert!(partition.index() == 1, "{partition}: {error}"),
                    }
                }
            }
            assert!(promised[1] < 120 && promised[0] == 120, "{promised:?}");
            let counted = shards[0].counters().journal;
            assert!(counted.recycled_files > 2, "{counted:?}");
            promised
        });
        let image = recording.cursor().image_at(recording.events(), CutKind::PowerLoss, seed);
        look(seed, image, 2, move |shards| async move {
            for (partition, promised) in partitions(&shards).iter().zip(promised) {
                let (found, error) = offsets(partition.ring(), partition, 0).await;
                assert!(
                    error.is_none() && found.len() as i64 >= promised,
                    "{partition}: {promised}, {found:?}"
                );
            }
        });
    }
}

#[test]
fn a_full_disk_refuses_appends_and_takes_them_again() {
    on_one_shard(6, &config(), |shards, faults| async move {
        make_topic(&shards[0]).await;
        let partition = partitions(&shards).swap_remove(0);
        append(partition.ring(), &partition, 700).await.unwrap();
        faults.fill_disk(true);
        // The journal's file has room; then what is accepted waits, and no more is.
        let taken = Rc::new(Cell::new(1));
        let (count, filling) = (taken.clone(), partition.clone());
        let done = Rc::new(Cell::new(false));
        let told = done.clone();
        partition.ring().spawn(async move {
            while append(filling.ring(), &filling, 3000).await.is_ok() && !told.get() {
                count.set(count.get() + 1);
            }
        });
        partition.ring().sleep(Duration::from_secs(3)).await;
        let refused = append(partition.ring(), &partition, 3000).await.unwrap_err();
        assert!(matches!(refused, AppendError::DiskFull(_)), "{refused}");
        let (found, error) = offsets(partition.ring(), &partition, 0).await;
        assert!(error.is_none() && found.len() >= taken.get() && taken.get() > 10, "{}", taken.get());
        faults.fill_disk(false);
        done.set(true);
        partition.ring().sleep(Duration::from_secs(2)).await;
        append(partition.ring(), &partition, 3000).await.unwrap();
        shards[0].close().await.unwrap();
    });
}

/// Cuts, resets and moved log starts of what is in the journal only.
#[test]
fn what_is_cut_stays_cut_and_what_is_appended_then_is_there() {
    for seed in 0..20 {
        let image = image_after(seed, 1, |shards| async move {
            fill(&shards, 4).await;
            let all = partitions(&shards);
            all[0].truncate_to(Offset(2)).await.unwrap();
            all[1].reset_to(Offset(100)).await.unwrap();
            all[2].advance_log_start(Offset(3)).await.unwrap();
            append(all[0].ring(), &all[0], 500).await.unwrap();
            append(all[1].ring(), &all[1], 500).await.unwrap();
        });
        look(seed, image, 2, |shards| async move {
            let all = partitions(&shards);
            let found = async |at: usize, from| offsets(all[at].ring(), &all[at], from).await.0;
            assert_eq!(found(0, 0).await, [0, 1, 2]);
            assert_eq!(found(1, 100).await, [100]);
            assert_eq!(found(2, 3).await, [3]);
            assert_eq!(found(3, 0).await, [0, 1, 2, 3]);
            let mut pieces = Vec::new();
            let fetched = all[0].fetch(Offset(2), 1, Egress::Tail, &mut pieces).await.unwrap();
            assert!(fetched.bytes > 0);
            let bytes = pieces::read(all[0].ring(), pieces).await;
            assert_eq!(BatchHeader::parse(&bytes).unwrap().leader_epoch.0, 1, "it is the later one");
        });
    }
}

/// One round serves every partition that waits.
#[test]
fn a_thousand_partitions_cost_a_few_flushes() {
    let config = ShardConfig { journal: JournalConfig { files_max: 64, ..small() }, ..config() };
    let (_, recording) = on_one_shard(8, &config, |shards, _| async move {
        shards[0].create_topic("t", 1000, TopicConfig::default()).await.unwrap();
        let before = shards[0].counters();
        append_to_all(&shards, 1, 100).await;
        let after = shards[0].counters();
        let syncs = after.ring.syncs - before.ring.syncs;
        assert!(syncs < 40, "{syncs} flushes for 1,000 promises: {:?}", after.journal);
        assert_eq!(after.journal.frames, 1000);
    });
    assert_ends(&recording, &config, 1);
}

/// Appends so many batches of `bytes` to each partition, all side by side.
async fn append_to_all(shards: &[Shard], batches: usize, bytes: usize) {
    let all = partitions(shards);
    let left = Rc::new(Cell::new(all.len()));
    for partition in all {
        let (ring, left) = (partition.ring().clone(), left.clone());
        ring.clone().spawn(async move {
            for _ in 0..batches {
                append(&ring, &partition, bytes).await.unwrap();
            }
            left.set(left.get() - 1);
        });
    }
    while left.get() > 0 {
        shards[0].ring().sleep(Duration::from_millis(1)).await;
    }
}

/// Where the log of each partition ends after power was lost at the end.
fn assert_ends(recording: &Recording, config: &ShardConfig, end: i64) {
    let image = recording.cursor().image_at(recording.events(), CutKind::PowerLoss, 8);
    let world = World::boot(9, image);
    let (ring, config) = (world.ring(ARENA), config.clone());
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shards = open(&[main], &config).await;
        for partition in partitions(&shards) {
            assert_eq!(partition.marks().log_end.offset, Offset(end), "{partition}");
        }
    });
    ring.shut_down();
}

/// Where each of many partitions has a little in a journal file that is to be free, they share a flush, and nobody makes
/// room beforehand.
#[test]
fn many_partitions_are_destaged_by_few_flushes() {
    const MANY: i32 = 150;
    let config = ShardConfig { journal: JournalConfig { files_max: 48, ..small() }, ..config() };
    let (_, recording) = on_one_shard(10, &config, |shards, _| async move {
        shards[0].create_topic("t", MANY, TopicConfig::default()).await.unwrap();
        append_to_all(&shards, 60, 2000).await;
        let after = shards[0].counters();
        // All of them have something in each file.
        assert!(after.journal.recycled_files > 10 && after.journal.full_rounds == 0, "{:?}", after.journal);
        // The journal's files are flushed while they are made, too.
        let flushes = after.ring.syncs - after.journal.rounds;
        // A destage takes what half of the files hold, at most.
        let destaged = after.journal.recycled_files * MANY as u64 / 24;
        assert!(
            after.device_flushes > 0 && flushes < destaged * 3 / 4,
            "{flushes} for {destaged}: {after:?}"
        );
    });
    assert_ends(&recording, &config, 60);
}

/// It tells of failures of other programs, too: segments are flushed one by one then, and nobody notices.
#[test]
fn a_failed_flush_for_many_is_made_one_by_one() {
    let config = ShardConfig { journal: JournalConfig { files_max: 16, ..small() }, ..config() };
    on_one_shard(14, &config, |shards, faults| async move {
        shards[0].create_topic("t", 100, TopicConfig::default()).await.unwrap();
        faults.fail_syncs("/data/.lock", 1);
        append_to_all(&shards, 40, 2000).await;
        let after = shards[0].counters();
        assert!(after.device_flushes == 1 && after.journal.recycled_files > 10, "{after:?}");
        shards[0].close().await.unwrap();
    });
}

/// Each keeps what memory it has begun to stage in: with many of them that must be little.
#[test]
fn memory_for_appends_is_shared_among_the_partitions_in_use() {
    let config = ShardConfig { tail_cache_bytes_max: 8 << 20, ..config() };
    on_one_shard(13, &config, |shards, _| async move {
        shards[0].create_topic("t", 500, TopicConfig::default()).await.unwrap();
        // With what one alone would take by then, 340 KiB, it would be far more than there is.
        append_to_all(&shards, 35, 3000).await;
        let arena = shards[0].counters().arena;
        assert!(arena.leased_bytes < ARENA * 3 / 4, "{arena:?}");
    });
}

/// Once such a segment waited, unflushed and without indexes, until something of the next one was destaged.
#[test]
fn a_sealed_segment_is_finished_though_what_follows_is_in_the_journal_only() {
    on_one_shard(12, &config(), |shards, _| async move {
        make_topic(&shards[0]).await;
        let partition = partitions(&shards).swap_remove(0);
        let ring = partition.ring();
        // A segment and the beginning of the next.
        for _ in 0..25 {
            append(ring, &partition, 3000).await.unwrap();
        }
        ring.sleep(Duration::from_secs(1)).await;
        let names = ring.list("/data/t-0".as_ref()).await.unwrap();
        let indexes = names.iter().filter(|entry| entry.name.to_string_lossy().ends_with(".index"));
        assert_eq!(indexes.count(), 1, "{names:?}");
        shards[0].close().await.unwrap();
    });
}

#[test]
fn sizes_that_make_no_sense_are_refused_by_name() {
    let world = World::new(1);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let refused = async |journal: JournalConfig| {
            let config = ShardConfig { journal, ..ShardConfig::new("/data") };
            Shard::open(&main, config).await.err().expect("refused").to_string()
        };
        assert!(refused(JournalConfig { file_bytes: 5000, ..small() }).await.contains("5000"));
        assert!(refused(JournalConfig { files_max: 1, ..small() }).await.contains("1 journal files"));
        assert!(refused(JournalConfig { round_bytes_max: 1 << 20, ..small() }).await.contains("1048576"));
        assert!(refused(JournalConfig { batch_bytes_max: 9 << 10, ..small() }).await.contains("9216"));
    });
    ring.shut_down();
}

/// What does not stage in memory has no journal.
#[test]
fn ways_in_that_keep_nothing_in_memory_go_without_a_journal() {
    for &ingress in Ingress::ALL {
        let config = ShardConfig { ingress, trusted_producers: true, ..config() };
        on_one_shard(2, &config, move |shards, _| async move {
            make_topic(&shards[0]).await;
            fill(&shards, 2).await;
            assert_eq!(shards[0].counters().journal.frames > 0, ingress.is_direct(), "{ingress}");
            shards[0].close().await.unwrap();
        });
    }
}
