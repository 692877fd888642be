//! What a start knows without looking: partitions that sleep are served from what the manifest says of them.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, LogConfig, check_produced};
use ringlog::shard::{Commit, FetchError, Partition, Shard, ShardConfig, TopicConfig};
use ringlog::sys::Ring;
use ringlog::sys::sim::{CutKind, DiskImage, World};
use ringlog::transfer::{Egress, Piece};
use ringlog::types::{Offset, Timestamp};

const ARENA: u64 = 32 << 20;

fn config(commit: Commit) -> ShardConfig {
    let log = LogConfig { segment_bytes_max: 100_000, index_interval_bytes: 500, ..LogConfig::default() };
    let topic_defaults = TopicConfig { log, ..TopicConfig::default() };
    ShardConfig {
        arena_bytes_max: ARENA,
        commit,
        topic_defaults,
        sleep_after: Duration::from_secs(1),
        ..ShardConfig::new("/data")
    }
}

async fn append(ring: &Ring, partition: &Partition, bytes: usize) -> Offset {
    let mut builder = BatchBuilder::new(Timestamp(1000));
    builder.push(Timestamp(1000), None, Some(&vec![7; bytes]), &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).unwrap();
    let ticket = partition.append(lease, header, None, ring.now()).await.unwrap();
    ticket.reached().await.unwrap().offset
}

/// How many bytes a fetch at `offset` leads to, each of them read.
async fn fetch(ring: &Ring, partition: &Partition, offset: i64) -> Result<u64, FetchError> {
    let mut pieces = Vec::new();
    let fetched = partition.fetch(Offset(offset), 1, Egress::Copy, &mut pieces).await?;
    for piece in pieces {
        if let Piece::File { file, at, bytes } = piece {
            let mut into = ring.lease(bytes as usize).await.unwrap();
            drop(into.split_off(bytes as usize));
            let (read, _) = ring.read(&file.file, at.0, into).await;
            assert_eq!(read.unwrap() as u64, bytes);
        }
    }
    Ok(fetched.bytes)
}

/// Adds so many records to each of the partitions of "t"; some fill segments with that.
async fn fill(ring: &Ring, shard: &Shard, partitions: i32, records: i64) {
    let defaults = shard.config().topic_defaults.clone();
    let topic = match shard.topic("t") {
        Some(topic) => topic,
        None => shard.create_topic("t", partitions, defaults).await.unwrap(),
    };
    for index in 0..partitions {
        let partition = topic.here(index).unwrap();
        for _ in 0..records {
            append(ring, partition, 3000 * (index % 5) as usize).await;
        }
    }
}

fn on_a_shard<F: Future<Output = T> + 'static, T: 'static>(
    image: Option<DiskImage>,
    config: ShardConfig,
    work: impl FnOnce(Ring, Shard) -> F + 'static,
) -> (T, Rc<World>) {
    let world = Rc::new(match image {
        None => World::new(3),
        Some(image) => World::boot(3, image),
    });
    let ring = world.ring(ARENA);
    let main = ring.clone();
    let done = world.run(&[&ring], async move {
        let shard = Shard::open(&main, config).await.unwrap();
        work(main, shard).await
    });
    ring.shut_down();
    (done, world)
}

fn image(world: &World, kind: CutKind) -> DiskImage {
    let recording = world.recording();
    recording.cursor().image_at(recording.events(), kind, 3)
}

fn manifests(image: &DiskImage) -> Vec<PathBuf> {
    image
        .paths()
        .into_iter()
        .filter(|path| path.starts_with("/data/manifest") && image.read(path).is_some())
        .collect()
}

/// Operations of a start that finds what `work` left.
fn start_operations(image: DiskImage, config: ShardConfig) -> u64 {
    let counted = on_a_shard(Some(image), config, |ring, shard| async move {
        assert!(shard.topic("t").is_some());
        ring.counters().submissions
    });
    counted.0
}

#[test]
fn a_start_looks_at_no_partition_that_sleeps_however_it_ended_before() {
    for commit in [Commit::Journal, Commit::Device, Commit::Files] {
        let mut counted = Vec::new();
        for partitions in [2, 40] {
            let ((), world) = on_a_shard(None, config(commit), move |ring, shard| async move {
                fill(&ring, &shard, partitions, 50).await;
                shard.close().await.unwrap();
            });
            let clean = image(&world, CutKind::PowerLoss);
            let ((), world) = on_a_shard(None, config(commit), move |ring, shard| async move {
                fill(&ring, &shard, partitions, 50).await;
                ring.sleep(Duration::from_secs(10)).await;
            });
            let idle = image(&world, CutKind::PowerLoss);
            counted.push([clean, idle].map(|image| start_operations(image, config(commit))));
        }
        let ([clean, idle], [clean_of_more, idle_of_more]) = (counted[0], counted[1]);
        assert_eq!(clean, clean_of_more, "{commit}: 2 partitions, then 40");
        // The journal holds more units then, and all of them are read.
        let units = if commit == Commit::Journal { 30 } else { 0 };
        assert!(idle_of_more <= idle + units, "{commit}: {idle} for 2 partitions, {idle_of_more} for 40");
    }
}

#[test]
fn what_sleeps_is_read_and_appended_to_as_if_nothing_had_been() {
    for commit in [Commit::Journal, Commit::Device, Commit::Files] {
        for clean in [true, false] {
            let ((), world) = on_a_shard(None, config(commit), move |ring, shard| async move {
                fill(&ring, &shard, 5, 50).await;
                if clean {
                    shard.close().await.unwrap();
                }
                ring.sleep(Duration::from_secs(10)).await;
            });
            let mut image = image(&world, CutKind::ProcessDeath);
            for records in [50, 51, 52] {
                let ((), world) = on_a_shard(Some(image), config(commit), move |ring, shard| async move {
                    let topic = shard.topic("t").unwrap();
                    for partition in topic.all_here() {
                        assert_eq!(partition.marks().log_end.offset, Offset(records));
                        assert_eq!(append(&ring, partition, 10).await, Offset(records));
                        for offset in [0, 17, 33, 49, records] {
                            assert!(fetch(&ring, partition, offset).await.unwrap() > 0);
                        }
                        let found = partition.offset_for_timestamp(Timestamp(1000)).await.unwrap();
                        assert_eq!(found, Some((Offset(0), Timestamp(1000))));
                    }
                    if records == 51 {
                        ring.sleep(Duration::from_secs(10)).await;
                    }
                });
                image = self::image(&world, CutKind::PowerLoss);
            }
        }
    }
}

/// Whoever cut a file that nobody had open is found out when it is next opened, and says so; a start that verifies
/// everything goes on without what is lost.
#[test]
fn a_file_that_was_cut_while_its_partition_slept_is_an_error_with_a_cure() {
    let ((), world) = on_a_shard(None, config(Commit::Files), |ring, shard| async move {
        fill(&ring, &shard, 1, 50).await;
        shard.close().await.unwrap();
    });
    let mut cut = image(&world, CutKind::PowerLoss);
    let last =
        cut.paths().into_iter().rfind(|path| path.extension().is_some_and(|ext| ext == "log")).unwrap();
    cut.set_len(&last, 100);
    on_a_shard(Some(cut.clone()), config(Commit::Files), |ring, shard| async move {
        let partition = shard.topic("t").unwrap().here(0).unwrap().clone();
        let words = fetch(&ring, &partition, 49).await.unwrap_err().to_string();
        assert!(words.contains("ends at position 100") && words.contains("verifies"), "{words}");
    });
    let verify = ShardConfig { verify: true, ..config(Commit::Files) };
    on_a_shard(Some(cut), verify, |ring, shard| async move {
        let partition = shard.topic("t").unwrap().here(0).unwrap().clone();
        assert!(matches!(fetch(&ring, &partition, 49).await, Err(FetchError::Corrupt { .. })));
        assert_eq!(append(&ring, &partition, 10).await, Offset(50));
    });
}

/// A manifest that is lost, cut, flipped or another's costs time and nothing else.
#[test]
fn without_a_manifest_that_can_be_believed_everything_is_walked() {
    let ((), world) = on_a_shard(None, config(Commit::Journal), |ring, shard| async move {
        fill(&ring, &shard, 3, 20).await;
        ring.sleep(Duration::from_secs(10)).await;
        fill(&ring, &shard, 3, 5).await;
    });
    let image = image(&world, CutKind::PowerLoss);
    let path = manifests(&image).pop().unwrap();
    let bytes = image.read(&path).unwrap();
    for step in 0..40 {
        let mut image = image.clone();
        let at = bytes.len() as u64 * step / 40;
        match step % 4 {
            0 => image.write(&path, at, &[bytes[at as usize] ^ 4]),
            1 => image.set_len(&path, at),
            2 => image.write(&path, bytes.len() as u64, b"something else"),
            _ => assert!(image.remove(&path)),
        }
        on_a_shard(Some(image), config(Commit::Journal), move |ring, shard| async move {
            for partition in shard.topic("t").unwrap().all_here() {
                for offset in [0, 19, 24] {
                    assert!(fetch(&ring, partition, offset).await.unwrap() > 0, "step {step}");
                }
                assert_eq!(append(&ring, partition, 10).await, Offset(25), "step {step}");
            }
        });
    }
}

/// What was appended in an epoch that began with a crash is there for a start that walks everything, too.
#[test]
fn an_epoch_that_began_at_a_start_is_known_to_one_that_verifies() {
    for commit in [Commit::Journal, Commit::Device, Commit::Files] {
        let ((), world) = on_a_shard(None, config(commit), |ring, shard| async move {
            fill(&ring, &shard, 2, 5).await;
            shard.close().await.unwrap();
        });
        let mut image = image(&world, CutKind::PowerLoss);
        for _ in 0..2 {
            let ((), world) = on_a_shard(Some(image), config(commit), |ring, shard| async move {
                fill(&ring, &shard, 2, 5).await;
            });
            image = self::image(&world, CutKind::PowerLoss);
        }
        let verify = ShardConfig { verify: true, ..config(commit) };
        on_a_shard(Some(image), verify, |ring, shard| async move {
            for partition in shard.topic("t").unwrap().all_here() {
                for offset in [0, 5, 10, 14] {
                    assert!(fetch(&ring, partition, offset).await.unwrap() > 0);
                }
                assert_eq!(append(&ring, partition, 10).await, Offset(15));
            }
        });
    }
}

/// Retention seals the last segment of a partition that nobody appends to: what begins behind it is empty, and known.
#[test]
fn a_segment_that_was_begun_and_is_empty_is_known_to_the_next_start() {
    for clean in [true, false] {
        let mut config = config(Commit::Files);
        config.topic_defaults.log.segment_age_ms_max = Some(3000);
        config.retention_interval = Duration::from_secs(1);
        let ((), world) = on_a_shard(None, config.clone(), move |ring, shard| async move {
            fill(&ring, &shard, 2, 5).await;
            ring.sleep(Duration::from_secs(20)).await;
            if clean {
                shard.close().await.unwrap();
            }
        });
        let mut image = image(&world, CutKind::PowerLoss);
        for records in [5, 15, 25] {
            let ((), world) = on_a_shard(Some(image), config.clone(), move |ring, shard| async move {
                for partition in shard.topic("t").unwrap().all_here() {
                    assert_eq!(partition.marks().log_end.offset, Offset(records));
                }
                fill(&ring, &shard, 2, 10).await;
                for partition in shard.topic("t").unwrap().all_here() {
                    for offset in [0, 4, records, records + 9] {
                        assert!(fetch(&ring, partition, offset).await.unwrap() > 0);
                    }
                }
            });
            image = self::image(&world, CutKind::PowerLoss);
        }
    }
}

#[test]
fn a_log_that_begins_later_than_anything_its_files_held_gets_its_directory_all_the_same() {
    for commit in [Commit::Journal, Commit::Device, Commit::Files] {
        let ((), world) = on_a_shard(None, config(commit), move |ring, shard| async move {
            fill(&ring, &shard, 1, 10).await;
            let partition = shard.topic("t").unwrap().here(0).unwrap().clone();
            partition.advance_log_start(Offset(5)).await.unwrap();
            ring.sleep(Duration::from_secs(10)).await;
            assert!(fetch(&ring, &partition, 5).await.unwrap() > 0, "{commit}");
            assert_eq!(append(&ring, &partition, 10).await, Offset(10), "{commit}");
        });
        let ((), _) = on_a_shard(
            Some(image(&world, CutKind::PowerLoss)),
            config(commit),
            move |ring, shard| async move {
                let partition = shard.topic("t").unwrap().here(0).unwrap().clone();
                assert_eq!(partition.marks().log_start, Offset(5), "{commit}");
                assert!(fetch(&ring, &partition, 10).await.unwrap() > 0, "{commit}");
            },
        );
    }
}

#[test]
fn one_flush_of_the_device_is_for_all_who_wait() {
    const PARTITIONS: i32 = 100;
    const ROUNDS: i64 = 5;
    let ((), world) = on_a_shard(None, config(Commit::Device), |ring, shard| async move {
        fill(&ring, &shard, PARTITIONS, 1).await;
        let topic = shard.topic("t").unwrap();
        let before = shard.counters();
        let left = Rc::new(Cell::new(PARTITIONS));
        for index in 0..PARTITIONS {
            let (ring, left, partition) = (ring.clone(), left.clone(), topic.here(index).unwrap().clone());
            ring.clone().spawn(async move {
                for _ in 0..ROUNDS {
                    append(&ring, &partition, 100).await;
                }
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            ring.sleep(Duration::from_millis(1)).await;
        }
        let after = shard.counters();
        let flushes = after.device_flushes - before.device_flushes;
        assert!((ROUNDS as u64..=4 * ROUNDS as u64).contains(&flushes), "{flushes} for {ROUNDS} rounds");
        let writes = after.ring.writes - before.ring.writes;
        assert!(writes >= (i64::from(PARTITIONS) * ROUNDS) as u64, "each in its own segment: {writes}");
    });
    let ((), _) =
        on_a_shard(Some(image(&world, CutKind::PowerLoss)), config(Commit::Device), |_, shard| async move {
            let topic = shard.topic("t").unwrap();
            for index in 0..PARTITIONS {
                let end = topic.here(index).unwrap().marks().log_end.offset;
                assert_eq!(end, Offset(1 + ROUNDS), "partition {index}");
            }
        });
}
