//! What goes on without being asked, in the simulated world: retention, and the log's own time.

mod pieces;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, Records, check_produced, check_stored};
use ringlog::shard::{Ack, Acked, AppendError, Partition, Shard, ShardConfig, Timestamps, TopicConfig};
use ringlog::sys::Ring;
use ringlog::sys::sim::World;
use ringlog::transfer::{Egress, Ingress, Piece};
use ringlog::types::{Offset, Timestamp};

use pieces::read;

const ARENA: u64 = 64 << 20;
const INTERVAL: Duration = Duration::from_secs(10);

fn config() -> ShardConfig {
    ShardConfig { retention_interval: INTERVAL, ..ShardConfig::new("/data") }
}

async fn append(ring: &Ring, partition: &Partition, timestamp: Timestamp, bytes: usize) -> Acked {
    let mut builder = BatchBuilder::new(timestamp);
    builder.push(timestamp, None, Some(&vec![7; bytes]), &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).unwrap();
    partition.append(lease, header, None, ring.now()).await.unwrap().reached().await.unwrap()
}

#[test]
fn old_segments_go_also_from_an_idle_partition_and_a_reader_keeps_its_bytes() {
    let world = World::new(1);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shard = Shard::open(&main, config()).await.unwrap();
        let log = LogConfig { segment_bytes_max: 10_000, retention_ms: Some(60_000), ..LogConfig::default() };
        let topic = TopicConfig { log, ..TopicConfig::default() };
        let topic = shard.create_topic("t", 1, topic).await.unwrap();
        let partition = topic.here(0).unwrap().clone();
        for _ in 0..7 {
            append(&main, &partition, main.wall_clock(), 4000).await;
        }
        let mut pieces = Vec::new();
        partition.fetch(Offset(0), 1 << 20, Egress::Copy, &mut pieces).await.unwrap();
        main.sleep(Duration::from_secs(40)).await;
        assert_eq!(partition.marks().log_start, Offset(0), "nothing is old yet");
        append(&main, &partition, main.wall_clock(), 4000).await;
        main.sleep(Duration::from_secs(35)).await;
        let start = partition.marks().log_start;
        assert!(start > Offset(0) && start <= Offset(7), "what is older than a minute is gone: {start}");
        let bytes = read(&main, pieces).await;
        let header = check_stored(&bytes[..BatchHeader::parse(&bytes).unwrap().bytes as usize]).unwrap();
        assert_eq!(header.base_offset, Offset(0), "a plan keeps what it needs");
        // The last segment is sealed when all in it is old, though nobody appends.
        main.sleep(Duration::from_secs(90)).await;
        let marks = partition.marks();
        assert_eq!((marks.log_start, marks.log_end.offset), (Offset(8), Offset(8)));
        let logs = |entries: Vec<ringlog::sys::DirEntry>| {
            entries.iter().filter(|entry| entry.name.to_string_lossy().ends_with(".log")).count()
        };
        assert_eq!(logs(main.list("/data/t-0".as_ref()).await.unwrap()), 1, "one empty segment is left");
        assert_eq!(append(&main, &partition, main.wall_clock(), 10).await.offset, Offset(8));
        shard.close().await.unwrap();
        drop((partition, topic, shard));
        let shard = Shard::open(&main, config()).await.unwrap();
        assert_eq!(shard.topic("t").unwrap().here(0).unwrap().marks().log_start, Offset(8));
    });
    ring.shut_down();
}

/// Once an assertion failed here: of a large batch that was written in part, memory was let go of that held the end of the
/// batch before, in a block of the file that was still to be written again.
#[test]
fn large_batches_are_read_while_they_are_written_and_hardly_anything_is_cached() {
    for &ingress in Ingress::ALL {
        let world = World::new(1);
        let ring = world.ring(4 * ARENA);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let config =
                ShardConfig { tail_cache_bytes_max: 64 << 10, ingress, trusted_producers: true, ..config() };
            let shard = Shard::open(&main, config).await.unwrap();
            let log = LogConfig { batch_bytes_max: 16 << 20, ..LogConfig::default() };
            let topic = TopicConfig { log, ..TopicConfig::default() };
            let topic = shard.create_topic("t", 1, topic).await.unwrap();
            let partition = topic.here(0).unwrap().clone();
            let (writer, to) = (main.clone(), partition.clone());
            main.spawn(async move {
                for bytes in [5000, 1_300_000, 9_000_000, 70_000, 4_200_000] {
                    append(&writer, &to, Timestamp(1), bytes).await;
                }
            });
            let mut looks = 0;
            while partition.marks().high_watermark.offset < Offset(5) {
                for egress in Egress::ALL {
                    let mut pieces = Vec::new();
                    let fetched = partition.fetch(Offset(0), u64::MAX, *egress, &mut pieces).await.unwrap();
                    let bytes: u64 = pieces.iter().map(Piece::bytes).sum();
                    assert_eq!(bytes, fetched.bytes, "{ingress} {egress}");
                }
                looks += 1;
                main.sleep(Duration::from_micros(1)).await;
            }
            assert!(looks > 20, "looked {looks} times while it was written");
            for egress in Egress::ALL {
                let mut pieces = Vec::new();
                partition.fetch(Offset(0), 1, *egress, &mut pieces).await.unwrap();
                let first = read(&main, pieces).await;
                check_stored(&first).unwrap();
            }
        });
        ring.shut_down();
    }
}

/// Once looked for again and again: the batch that was found begins before the offset that was asked for.
#[test]
fn a_fetch_from_within_a_batch_gets_that_batch() {
    let world = World::new(4);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shard = Shard::open(&main, config()).await.unwrap();
        let topic = shard.create_topic("t", 1, TopicConfig::default()).await.unwrap();
        let partition = topic.here(0).unwrap();
        for _ in 0..3 {
            let mut builder = BatchBuilder::new(Timestamp(1));
            (0..100).for_each(|_| builder.push(Timestamp(1), None, Some(&[7; 20]), &[]));
            let batch = builder.finish().to_vec();
            let mut lease = main.lease(batch.len()).await.unwrap();
            drop(lease.split_off(batch.len()));
            lease.copy_from_slice(&batch);
            let header = check_produced(&batch).unwrap();
            partition.append(lease, header, None, main.now()).await.unwrap().reached().await.unwrap();
        }
        for egress in Egress::ALL {
            for offset in [0, 1, 40, 99, 100, 101, 199, 250, 299] {
                let mut pieces = Vec::new();
                partition.fetch(Offset(offset), 1, *egress, &mut pieces).await.unwrap();
                let header = BatchHeader::parse(&read(&main, pieces).await).unwrap();
                assert_eq!(header.base_offset, Offset(offset / 100 * 100), "a fetch at {offset}");
            }
        }
        partition.advance_log_start(Offset(40)).await.unwrap();
        let mut pieces = Vec::new();
        let fetched = partition.fetch(Offset(40), 1, Egress::Tail, &mut pieces).await.unwrap();
        assert!(fetched.bytes > 0 && fetched.log_start == Offset(40));
    });
    ring.shut_down();
}

#[test]
fn a_partition_that_is_too_large_loses_its_oldest_segments() {
    let world = World::new(2);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shard = Shard::open(&main, config()).await.unwrap();
        let log =
            LogConfig { segment_bytes_max: 10_000, retention_bytes: Some(30_000), ..LogConfig::default() };
        let topic = TopicConfig { log, ..TopicConfig::default() };
        let topic = shard.create_topic("t", 1, topic).await.unwrap();
        let partition = topic.here(0).unwrap();
        for _ in 0..40 {
            append(&main, partition, Timestamp(1), 4000).await;
        }
        main.sleep(2 * INTERVAL).await;
        let marks = partition.marks();
        let records = marks.log_end.offset.since(marks.log_start);
        // At least what is to be kept, and less than one segment more.
        assert!((7..=10).contains(&records), "{records} records of 4 kB are left");
    });
    ring.shut_down();
}

#[test]
fn a_full_disk_refuses_appends_and_nothing_else_until_there_is_room() {
    let world = World::new(5);
    let (ring, faults) = (world.ring(ARENA), world.faults());
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shard = Shard::open(&main, config()).await.unwrap();
        let log = LogConfig { segment_bytes_max: 200_000, ..LogConfig::default() };
        let topic = TopicConfig { log, ..TopicConfig::default() };
        let other = shard.create_topic("other", 1, topic.clone()).await.unwrap();
        append(&main, other.here(0).unwrap(), Timestamp(1), 4000).await;
        let topic = shard.create_topic("t", 1, topic).await.unwrap();
        let partition = topic.here(0).unwrap().clone();
        append(&main, &partition, Timestamp(1), 4000).await;
        faults.fill_disk(true);
        // What there is room for is taken, and what was taken before the lack was known keeps its place.
        let mut waiting = Vec::new();
        let refused = loop {
            let mut builder = BatchBuilder::new(Timestamp(1));
            builder.push(Timestamp(1), None, Some(&[7; 4000]), &[]);
            let batch = builder.finish().to_vec();
            let mut lease = main.lease(batch.len()).await.unwrap();
            drop(lease.split_off(batch.len()));
            lease.copy_from_slice(&batch);
            let header = check_produced(&batch).unwrap();
            match partition.append(lease, header, None, main.now()).await {
                Ok(ticket) => waiting.push(ticket),
                Err(error) => break error,
            }
            main.sleep(Duration::from_millis(20)).await;
        };
        let words = refused.to_string();
        assert!(matches!(refused, AppendError::DiskFull(_)), "{words}");
        assert!(words.contains("/data/t-0/") && words.contains("position"), "{words}");
        let accepted = waiting.len() as i64 + 1;
        // Reading, moving log starts and deleting go on.
        let mut pieces = Vec::new();
        let fetched = partition.fetch(Offset(0), 1 << 20, Egress::Copy, &mut pieces).await.unwrap();
        assert_eq!(read(&main, pieces).await.len() as u64, fetched.bytes);
        other.here(0).unwrap().advance_log_start(Offset(1)).await.unwrap();
        shard.checkpoint().await.unwrap();
        shard.delete_topic("other").await.unwrap();
        assert!(shard.topic("other").is_none());
        let made = shard.create_topic("more", 1, TopicConfig::default()).await;
        assert!(made.is_err() && shard.topic("more").is_none(), "a new topic needs room");
        // Room returns, and with it appends; nothing that was accepted is lost or out of order.
        faults.fill_disk(false);
        main.sleep(Duration::from_secs(1)).await;
        for ticket in &waiting {
            ticket.reached().await.unwrap();
        }
        let acked = append(&main, &partition, Timestamp(1), 4000).await;
        assert_eq!(acked.offset, Offset(accepted));
        shard.close().await.unwrap();
        drop((waiting, partition, topic, other, shard));
        let shard = Shard::open(&main, config()).await.unwrap();
        let end = shard.topic("t").unwrap().here(0).unwrap().marks().log_end.offset;
        assert_eq!(end, Offset(accepted + 1));
        assert!(shard.topic("other").is_none());
    });
    ring.shut_down();
}

#[test]
fn durable_is_refused_where_flushes_are_known_to_be_lost() {
    let world = World::new(6);
    let (ring, faults) = (world.ring(ARENA), world.faults());
    let main = ring.clone();
    world.run(&[&ring], async move {
        faults.lose_flushes(true);
        let refused = Shard::open(&main, config()).await.err().unwrap().to_string();
        assert!(refused.contains("durable") && refused.contains("written"), "cause and cure: {refused}");
        let mut weaker = config();
        weaker.topic_defaults.ack = Ack::Written;
        let shard = Shard::open(&main, weaker.clone()).await.unwrap();
        let durable = shard.create_topic("t", 1, TopicConfig::default()).await.err().unwrap().to_string();
        assert!(durable.contains("ringlog.ack=durable"), "{durable}");
        let topic = shard.create_topic("t", 1, weaker.topic_defaults.clone()).await.unwrap();
        let acked = append(&main, topic.here(0).unwrap(), Timestamp(1), 10).await;
        assert!(acked.reached >= Ack::Written);
        let mut builder = BatchBuilder::new(Timestamp(1));
        builder.push(Timestamp(1), None, Some(b"x"), &[]);
        let batch = builder.finish().to_vec();
        let mut lease = main.lease(batch.len()).await.unwrap();
        drop(lease.split_off(batch.len()));
        lease.copy_from_slice(&batch);
        let header = check_produced(&batch).unwrap();
        let asked = topic.here(0).unwrap().append(lease, header, Some(Ack::Durable), main.now()).await;
        assert!(matches!(asked, Err(AppendError::Refused(_))), "an append's own wish, too");
    });
    ring.shut_down();
}

#[test]
fn the_logs_own_time_is_stamped_and_never_goes_back() {
    let world = World::new(3);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shard = Shard::open(&main, config()).await.unwrap();
        let topic = TopicConfig { timestamps: Timestamps::Append, ..TopicConfig::default() };
        let topic = shard.create_topic("t", 1, topic).await.unwrap();
        let partition = topic.here(0).unwrap();
        let mut last = Timestamp(0);
        for number in 0..20 {
            // The producer's own time is all over the place.
            let acked = append(&main, partition, Timestamp(1000 - number), 100).await;
            assert!(acked.append_time >= last && acked.append_time >= Timestamp(1_000_000), "{acked:?}");
            last = acked.append_time;
            main.sleep(Duration::from_millis(3)).await;
        }
        let mut pieces = Vec::new();
        partition.fetch(Offset(0), 1 << 20, Egress::Tail, &mut pieces).await.unwrap();
        let bytes = read(&main, pieces).await;
        let mut rest = &bytes[..];
        let mut times = Vec::new();
        while !rest.is_empty() {
            let whole = BatchHeader::parse(rest).unwrap().bytes as usize;
            let header = check_stored(&rest[..whole]).unwrap();
            assert!(header.is_append_time());
            let record = Records::new(&rest[..whole]).unwrap().next().unwrap().unwrap();
            assert_eq!(record.timestamp, header.max_timestamp);
            times.push(record.timestamp);
            rest = &rest[whole..];
        }
        assert!(times.len() == 20 && times.is_sorted());
        let (offset, time) = partition.offset_for_timestamp(times[11]).await.unwrap().unwrap();
        assert!(offset <= Offset(11) && time == times[11], "{offset} {time}");
    });
    ring.shut_down();
}

/// Once only those waited who receive into the file: what others appended while the log was being cut was promised a place
/// that the cut then took, and written beside the file that took the place of the old one.
#[test]
fn an_append_that_comes_while_the_log_is_cut_comes_behind_the_cut() {
    for (&ingress, seed) in Ingress::ALL.iter().zip(1..) {
        // At each step of the cut: a step of the simulated disk takes some tens of microseconds.
        for delay in (1..2000).step_by(25) {
            let world = World::new(seed);
            let ring = world.ring(ARENA);
            let main = ring.clone();
            world.run(&[&ring], async move {
                let config = ShardConfig { ingress, trusted_producers: true, ..config() };
                let shard = Shard::open(&main, config).await.unwrap();
                let topic = shard.create_topic("t", 1, TopicConfig::default()).await.unwrap();
                let partition = topic.here(0).unwrap().clone();
                for _ in 0..6 {
                    append(&main, &partition, Timestamp(1), 3000).await;
                }
                let cut = Rc::new(Cell::new(None));
                let (cutter, told) = (partition.clone(), cut.clone());
                main.spawn(async move { told.set(Some(cutter.truncate_to(Offset(2)).await)) });
                main.sleep(Duration::from_micros(delay)).await;
                let what = format!("{ingress}, after {delay} us, cut then: {}", cut.take().is_some());
                let acked = append(&main, &partition, Timestamp(2), 3000).await;
                assert_eq!(acked.offset, Offset(2), "{what}");
                assert_eq!(partition.marks().log_end.offset, Offset(3), "{what}");
            });
            ring.shut_down();
        }
    }
}
