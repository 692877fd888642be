//! What fails, in the simulated world: writes, flushes, reads, descriptors, names. Who is told what, who goes on, and what
//! comes back without a restart. Every seed is another order of completions; a failure names its seed.

mod pieces;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, check_produced};
use ringlog::shard::{
    Ack, Acked, AppendError, Commit, FetchError, Partition, Shard, ShardConfig, TopicConfig,
};
use ringlog::sys::Ring;
use ringlog::sys::sim::{Faults, World};
use ringlog::transfer::{Egress, Ingress};
use ringlog::types::{Offset, Timestamp};

use pieces::read;

const ARENA: u64 = 64 << 20;
const SEEDS: std::ops::Range<u64> = 0..20;
const SEGMENT_BYTES: u64 = 20_000;
const VALUE_BYTES: usize = 4000;

/// Runs `play` in a world of each seed.
fn in_bare_worlds<F: Future<Output = ()> + 'static>(play: impl Fn(Ring, Faults) -> F) {
    for seed in SEEDS {
        println!("seed {seed}");
        let world = World::new(seed);
        let ring = world.ring(ARENA);
        world.run(&[&ring], play(ring.clone(), world.faults()));
        ring.shut_down();
    }
}

/// The same with a shard on an empty directory, by two ways in.
fn in_worlds<F: Future<Output = ()> + 'static>(play: impl Fn(Ring, Shard, Faults) -> F + Clone + 'static) {
    for &ingress in Ingress::ALL {
        println!("ingress {ingress}");
        let play = play.clone();
        in_bare_worlds(move |ring, faults| {
            let play = play.clone();
            async move {
                // What fails is what segments are written with; `journal.rs` has the journal.
                let config = ShardConfig {
                    ingress,
                    trusted_producers: true,
                    commit: Commit::Files,
                    ..ShardConfig::new("/data")
                };
                let shard = Shard::open(&ring, config).await.unwrap();
                play(ring, shard, faults).await;
            }
        });
    }
}

async fn topic(shard: &Shard, name: &str) -> Partition {
    let log = LogConfig { segment_bytes_max: SEGMENT_BYTES, ..LogConfig::default() };
    let config = TopicConfig { log, ..TopicConfig::default() };
    shard.create_topic(name, 1, config).await.unwrap().here(0).unwrap().clone()
}

async fn append(ring: &Ring, partition: &Partition) -> Result<Acked, AppendError> {
    append_for(ring, partition, Ack::Durable).await
}

async fn append_for(ring: &Ring, partition: &Partition, ack: Ack) -> Result<Acked, AppendError> {
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(&[7; VALUE_BYTES]), &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).unwrap();
    partition.append(lease, header, Some(ack), ring.now()).await?.reached().await
}

/// How many records can be read from the beginning, each checked.
async fn records(ring: &Ring, partition: &Partition) -> i64 {
    let mut next = Offset(partition.marks().log_start.0);
    loop {
        let mut pieces = Vec::new();
        partition.fetch(next, 1 << 20, Egress::Copy, &mut pieces).await.unwrap();
        if pieces.is_empty() {
            return next.since(partition.marks().log_start);
        }
        let bytes = read(ring, pieces).await;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let header = BatchHeader::parse(rest).unwrap();
            assert_eq!(header.base_offset, next);
            next = header.next_offset();
            rest = &rest[header.bytes as usize..];
        }
    }
}

fn assert_names(words: &str, names: &[&str]) {
    for name in names {
        assert!(words.contains(name), "\"{name}\" is missing in: {words}");
    }
}

#[test]
fn a_failed_write_latches_its_partition_and_no_other() {
    in_worlds(|ring, shard, faults| async move {
        let (partition, other) = (topic(&shard, "t").await, topic(&shard, "other").await);
        for _ in 0..3 {
            append(&ring, &partition).await.unwrap();
        }
        faults.fail_writes("/data/t-0/", 1);
        for _ in 0..2 {
            let words = append(&ring, &partition).await.unwrap_err().to_string();
            assert_names(&words, &["t-0", "/data/t-0/00000000000000000000.log", "position", "offset 3"]);
        }
        assert_eq!(records(&ring, &partition).await, 3, "what was durable is served");
        append(&ring, &other).await.unwrap();
        assert!(shard.close().await.is_err(), "a stop that lost something is not a clean one");
    });
}

/// As on tmpfs, which takes prepared room back when it cannot prepare more, and where blocks are taken as they are written.
/// Once that latched the partition for good.
#[test]
fn a_write_that_finds_the_disk_full_waits_for_room_as_any_other() {
    in_worlds(|ring, shard, faults| async move {
        let partition = topic(&shard, "t").await;
        append(&ring, &partition).await.unwrap();
        faults.deny_writes("/data/t-0/", 4);
        let (main, waits) = (ring.clone(), partition.clone());
        ring.spawn(async move {
            append(&main, &waits).await.expect("it keeps its place");
        });
        ring.sleep(Duration::from_millis(200)).await;
        let refused = append(&ring, &partition).await.unwrap_err();
        assert!(matches!(refused, AppendError::DiskFull(_)), "{refused}");
        assert_names(&refused.to_string(), &["/data/t-0/00000000000000000000.log", "position"]);
        ring.sleep(Duration::from_secs(2)).await;
        assert_eq!(append(&ring, &partition).await.unwrap().offset, Offset(2));
        assert_eq!(records(&ring, &partition).await, 3);
        shard.close().await.unwrap();
    });
}

/// A new epoch that finds no room at the start: reading goes on, and no append bears it before it is stored.
#[test]
fn an_epoch_without_room_is_stored_before_the_first_append_of_it() {
    in_worlds(|ring, shard, faults| async move {
        let config = shard.config().clone();
        let partition = topic(&shard, "t").await;
        for _ in 0..7 {
            append(&ring, &partition).await.unwrap();
        }
        let epoch = partition.epoch();
        shard.begin_stop();
        shard.leave();
        drop((partition, shard));
        ring.sleep(Duration::from_secs(1)).await;
        // Without a manifest the partition's own file has to tell of it.
        faults.deny_writes("/data/manifest/", 1);
        faults.deny_writes("leader-epoch-checkpoint", 6);
        let shard = Shard::open(&ring, config.clone()).await.expect("a full disk is opened");
        let partition = shard.topic("t").unwrap().here(0).unwrap().clone();
        assert_eq!(records(&ring, &partition).await, 7);
        for _ in 0..2 {
            let refused = append(&ring, &partition).await.unwrap_err();
            assert!(matches!(refused, AppendError::DiskFull(_)), "{refused}");
            assert_names(&refused.to_string(), &["/data/t-0/leader-epoch-checkpoint"]);
            ring.sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(append(&ring, &partition).await.unwrap().offset, Offset(7));
        assert!(partition.epoch() > epoch);
        let epoch = partition.epoch();
        shard.close().await.unwrap();
        drop((partition, shard));
        let shard = Shard::open(&ring, config).await.unwrap();
        let partition = shard.topic("t").unwrap().here(0).unwrap().clone();
        assert_eq!((partition.epoch(), records(&ring, &partition).await), (epoch, 8));
        shard.close().await.unwrap();
    });
}

#[test]
fn a_failed_flush_latches_the_device_and_what_is_made_on_it_later() {
    in_worlds(|ring, shard, faults| async move {
        let (partition, other) = (topic(&shard, "t").await, topic(&shard, "other").await);
        for _ in 0..3 {
            append(&ring, &partition).await.unwrap();
        }
        faults.fail_syncs("/data/t-0/", 1);
        let words = loop {
            // It may be the flush of prepared room that fails first.
            match append(&ring, &partition).await {
                Ok(acked) => assert!(acked.offset < Offset(20), "the flush never failed"),
                Err(error) => break error.to_string(),
            }
        };
        assert_names(&words, &["t-0", "/data/t-0/0", "flush", "position"]);
        assert_names(&append(&ring, &other).await.unwrap_err().to_string(), &["other-0", "t-0", "flush"]);
        assert!(records(&ring, &partition).await >= 3);
        let made = shard.create_topic("later", 1, TopicConfig::default()).await;
        assert_names(
            &made.err().expect("nothing on this device can be durable").to_string(),
            &["flush", "t-0"],
        );
    });
}

/// Where one flush is for all, all who wait for it are told, and nothing later is promised.
#[test]
fn a_failed_flush_of_the_whole_device_is_everybodys() {
    in_bare_worlds(|ring, faults| async move {
        let config = ShardConfig { commit: Commit::Device, ..ShardConfig::new("/data") };
        let shard = Shard::open(&ring, config).await.unwrap();
        let partitions = [topic(&shard, "t").await, topic(&shard, "other").await];
        for partition in &partitions {
            append(&ring, partition).await.unwrap();
        }
        faults.fail_syncs("/data/.lock", 1);
        let waiting: Vec<_> = partitions
            .iter()
            .map(|partition| {
                let told = Rc::new(Cell::new(None));
                let (slot, waiter, partition) = (told.clone(), ring.clone(), partition.clone());
                ring.spawn(async move { slot.set(Some(append(&waiter, &partition).await)) });
                told
            })
            .collect();
        ring.sleep(Duration::from_secs(1)).await;
        for told in &waiting {
            let words = told.take().expect("answered").expect_err("nothing was flushed").to_string();
            assert_names(&words, &["flush of the file system"]);
        }
        for partition in &partitions {
            append(&ring, partition).await.unwrap_err();
            assert_eq!(records(&ring, partition).await, 1, "what was promised is served");
        }
    });
}

/// The kernel tells of a lost write once for each descriptor. Asked again it says that all is well.
#[test]
fn a_flush_that_fails_while_room_is_made_is_not_asked_again() {
    in_worlds(|ring, shard, faults| async move {
        let config = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
        let topic = shard.create_topic("t", 1, config).await.unwrap();
        let partition = topic.here(0).unwrap().clone();
        append(&ring, &partition).await.unwrap();
        ring.sleep(Duration::from_millis(50)).await;
        // Nobody asks for a promise, so that the next flush is one that comes with room.
        faults.fail_syncs("/data/t-0/", 1);
        let mut acked = 1;
        for _ in 0..60 {
            acked += i64::from(append_for(&ring, &partition, Ack::Written).await.is_ok());
        }
        ring.sleep(Duration::from_secs(1)).await;
        let refused = append(&ring, &partition).await.expect_err("a flush had failed");
        assert!(matches!(refused, AppendError::Failed(_)), "{refused}");
        assert_names(&refused.to_string(), &["t-0", "/data/t-0/0", "flush", "position"]);
        assert!(records(&ring, &partition).await >= acked, "what was written is served");
    });
}

#[test]
fn a_failed_read_is_an_error_to_that_reader_only() {
    in_worlds(|ring, shard, faults| async move {
        let partition = topic(&shard, "t").await;
        for _ in 0..12 {
            append(&ring, &partition).await.unwrap();
        }
        // Far enough ago to be looked for in the file.
        faults.fail_reads("/data/t-0/", 1);
        let error = partition.offset_for_timestamp(Timestamp(1)).await.unwrap_err();
        assert!(matches!(error, FetchError::Io(_)), "{error}");
        assert_names(&error.to_string(), &["t-0", "/data/t-0/0000000000000000", ".log", "position"]);
        assert!(
            partition.offset_for_timestamp(Timestamp(1)).await.unwrap().is_some(),
            "the next one is served"
        );
        assert_eq!(records(&ring, &partition).await, 12);
        append(&ring, &partition).await.unwrap();
        shard.close().await.unwrap();
    });
}

#[test]
fn without_descriptors_appends_wait_or_are_refused_and_come_back_with_them() {
    in_worlds(|ring, shard, faults| async move {
        let partition = topic(&shard, "t").await;
        append(&ring, &partition).await.unwrap();
        faults.exhaust_descriptors(true);
        // Until a segment is to be opened nobody needs one.
        let mut acked = 1;
        let (tx, waiting) = (partition.clone(), std::rc::Rc::new(std::cell::Cell::new(0)));
        let (count, main) = (waiting.clone(), ring.clone());
        ring.spawn(async move {
            for _ in 0..12 {
                if append(&main, &tx).await.is_ok() {
                    count.set(count.get() + 1);
                }
            }
            count.set(count.get() + 100);
        });
        ring.sleep(Duration::from_secs(3)).await;
        let refused = append(&ring, &partition).await.unwrap_err();
        assert!(matches!(refused, AppendError::Exhausted(_)), "{refused}");
        assert_names(&refused.to_string(), &["/data/t-0/0000000000000000", "Too many open files"]);
        assert!(records(&ring, &partition).await >= 1);
        let enters = ring.counters().submissions;
        ring.sleep(Duration::from_secs(10)).await;
        let spent = ring.counters().submissions - enters;
        assert!(spent < 500, "{spent} operations in ten seconds of waiting");
        faults.exhaust_descriptors(false);
        ring.sleep(Duration::from_secs(2)).await;
        assert!(waiting.get() >= 100, "who waited is answered: {}", waiting.get());
        acked += waiting.get() - 100;
        append(&ring, &partition).await.unwrap();
        assert!(records(&ring, &partition).await > acked);
        shard.close().await.unwrap();
    });
}

/// Once the flush found no directory, took that for a failed device, and latched every partition there was.
#[test]
fn deleting_a_topic_during_its_first_flush_hurts_nobody() {
    for wait_micros in [0, 50, 200, 1000, 5000] {
        in_worlds(move |ring, shard, _| async move {
            let (partition, other) = (topic(&shard, "t").await, topic(&shard, "other").await);
            let main = ring.clone();
            ring.spawn(async move {
                let _ = append(&main, &partition).await;
            });
            ring.sleep(Duration::from_micros(wait_micros)).await;
            shard.delete_topic("t").await.unwrap();
            ring.sleep(Duration::from_millis(100)).await;
            append(&ring, &other).await.unwrap();
            shard.close().await.unwrap();
        });
    }
}

#[test]
fn a_segment_removed_by_hand_while_open_takes_no_promise_with_it() {
    in_worlds(|ring, shard, _| async move {
        let (partition, other) = (topic(&shard, "t").await, topic(&shard, "other").await);
        for _ in 0..3 {
            append(&ring, &partition).await.unwrap();
        }
        ring.remove("/data/t-0/00000000000000000000.log".as_ref()).await.unwrap();
        let words = append(&ring, &partition).await.unwrap_err().to_string();
        assert_names(
            &words,
            &["t-0", "/data/t-0/00000000000000000000.log", "position", "removed", "offsets 3 to 4"],
        );
        append(&ring, &other).await.unwrap();
        // A directory likewise.
        ring.remove_dir("/data/other-0".as_ref()).await.unwrap();
        assert_names(&append(&ring, &other).await.unwrap_err().to_string(), &["other-0", "removed"]);
        let made = topic(&shard, "made").await;
        append(&ring, &made).await.unwrap();
    });
}

/// Once the deletion was begun again at the next start, by name, and took what had been made under that name since.
#[test]
fn a_deletion_that_failed_does_not_take_the_topic_that_came_after() {
    in_bare_worlds(|main, faults| async move {
        let shard = Shard::open(&main, ShardConfig::new("/data")).await.unwrap();
        append(&main, &topic(&shard, "t").await).await.unwrap();
        faults.fail_removals("/data/t-0", 1);
        shard.delete_topic("t").await.unwrap_err();
        assert!(shard.topic("t").is_none(), "it is gone for clients");
        let again = topic(&shard, "t").await;
        for _ in 0..2 {
            append(&main, &again).await.unwrap();
        }
        shard.close().await.unwrap();
        drop((again, shard));
        let shard = Shard::open(&main, ShardConfig::new("/data")).await.unwrap();
        let found = shard.topic("t").unwrap().here(0).unwrap().clone();
        assert_eq!(records(&main, &found).await, 2);
    });
}

/// Once such files stayed until the next start, just when their room was needed.
#[test]
fn what_retention_could_not_remove_it_removes_the_next_time() {
    in_worlds(|ring, shard, faults| async move {
        let partition = topic(&shard, "t").await;
        for _ in 0..12 {
            append(&ring, &partition).await.unwrap();
        }
        let logs = async || {
            let entries = ring.list("/data/t-0".as_ref()).await.unwrap();
            entries.iter().filter(|entry| entry.name.to_string_lossy().ends_with(".log")).count()
        };
        let before = logs().await;
        faults.fail_removals("/data/t-0/", 1);
        partition.advance_log_start(Offset(9)).await.unwrap_err();
        assert_eq!(partition.marks().log_start, Offset(9));
        assert_eq!(logs().await, before);
        shard.enforce_retention().await;
        assert!(logs().await <= 2, "{} of {before} segments are left", logs().await);
        append(&ring, &partition).await.unwrap();
        shard.close().await.unwrap();
    });
}

#[test]
fn without_a_way_past_the_page_cache_everything_goes_through_it_and_says_so() {
    in_bare_worlds(|main, faults| async move {
        faults.refuse_direct(true);
        let config = ShardConfig { egress: Egress::Direct, ..ShardConfig::new("/data") };
        let shard = Shard::open(&main, config.clone()).await.unwrap();
        assert_eq!(shard.ingress_lacks(), Some("O_DIRECT"), "whoever asks is told");
        let partition = topic(&shard, "t").await;
        for _ in 0..12 {
            append(&main, &partition).await.unwrap();
        }
        assert_eq!(records(&main, &partition).await, 12);
        shard.close().await.unwrap();
        drop((partition, shard));
        let shard = Shard::open(&main, config).await.unwrap();
        assert_eq!(records(&main, shard.topic("t").unwrap().here(0).unwrap()).await, 12);
    });
}

#[test]
fn a_read_that_fails_while_opening_says_where_and_an_index_is_done_without() {
    in_bare_worlds(|main, faults| async move {
        let shard = Shard::open(&main, ShardConfig::new("/data")).await.unwrap();
        let partition = topic(&shard, "t").await;
        for _ in 0..12 {
            append(&main, &partition).await.unwrap();
        }
        shard.close().await.unwrap();
        drop((partition, shard));
        faults.fail_reads(".log", 1);
        let verify = ShardConfig { verify: true, ..ShardConfig::new("/data") };
        let words = Shard::open(&main, verify.clone()).await.err().unwrap().to_string();
        assert_names(&words, &["/data/t-0/0000000000000000", ".log", "position"]);
        faults.fail_reads(".index", 1);
        let shard = Shard::open(&main, verify).await.unwrap();
        assert_eq!(records(&main, shard.topic("t").unwrap().here(0).unwrap()).await, 12);
    });
}
