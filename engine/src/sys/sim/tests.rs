use std::path::Path;

use super::*;
use crate::log::BatchBuilder;
use crate::shard::{Shard, ShardConfig, TopicConfig};
use crate::sys::{OpenOptions, Ring};
use crate::transfer::{Egress, Piece};
use crate::types::{Offset, ShardId, Timestamp};

const ARENA: u64 = 256 << 20;

async fn open_shard(ring: &Ring) -> Shard {
    Shard::open(ring, ShardId(0), ShardConfig::new("/data")).await.unwrap()
}

/// Appends batches to a new topic, waits until each is durable, and closes. Gives the final disk.
fn produce(seed: u64) -> (World, DiskImage, u64) {
    let world = World::new(seed);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shard = open_shard(&main).await;
        let topic = shard.create_topic("events", 2, TopicConfig::default()).await.unwrap();
        let partition = &topic.partitions[0];
        let mut tickets = Vec::new();
        for number in 0..20 {
            let mut builder = BatchBuilder::new(Timestamp(1000));
            builder.push(Timestamp(1000), None, Some(format!("value {number}").as_bytes()), &[]);
            let batch = builder.finish();
            let mut lease = main.lease(batch.len()).await.unwrap();
            lease[..batch.len()].copy_from_slice(batch);
            drop(lease.split_off(batch.len()));
            let header = crate::log::check_produced(&lease).unwrap();
            let ticket = partition.append(lease, header, None, main.now()).await.unwrap();
            if number % 3 == 0 {
                ticket.reached().await.unwrap();
            } else {
                tickets.push(ticket);
            }
        }
        for ticket in tickets {
            ticket.reached().await.unwrap();
        }
        drop(topic);
        shard.close().await.unwrap();
    });
    ring.shut_down();
    let now = ring.now().0;
    let recording = world.recording();
    let image = recording.cursor().image_at(recording.events(), CutKind::PowerLoss, seed);
    (world, image, now)
}

#[test]
fn a_shard_finds_after_a_restart_what_it_acknowledged() {
    for seed in 0..20 {
        let (_, image, _) = produce(seed);
        let world = World::boot(seed + 1, image);
        let ring = world.ring(ARENA);
        let main = ring.clone();
        let bytes = world.run(&[&ring], async move {
            let shard = open_shard(&main).await;
            let topic = shard.topic("events").unwrap();
            let mut pieces = Vec::new();
            let fetched =
                topic.partitions[0].fetch(Offset(0), 1 << 20, Egress::Tail, &mut pieces).await.unwrap();
            assert_eq!(fetched.high_watermark, Offset(20));
            let mut all = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Memory(lease) => all.extend_from_slice(&lease),
                    Piece::File { file, at, bytes } => {
                        let into = main.lease(bytes as usize).await.unwrap();
                        let (read, into) = main.read(&file.file, at.0, into).await;
                        assert!(read.unwrap() as u64 >= bytes);
                        all.extend_from_slice(&into[..bytes as usize]);
                    }
                }
            }
            drop(topic);
            shard.close().await.unwrap();
            all
        });
        let text = String::from_utf8_lossy(&bytes);
        for number in 0..20 {
            assert!(text.contains(&format!("value {number}")), "seed {seed}: value {number}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let contents = |image: &DiskImage| -> Vec<_> {
        image.paths().into_iter().map(|path| (image.read(&path), path)).collect()
    };
    let (first_world, first, first_now) = produce(7);
    let (second_world, second, second_now) = produce(7);
    assert_eq!(first_now, second_now);
    assert_eq!(first_world.disk_events(), second_world.disk_events());
    assert_eq!(contents(&first), contents(&second));
    assert_ne!(produce(8).2, first_now);
}

#[test]
fn direct_operations_are_aligned() {
    let world = World::new(1);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    ring.run(async move {
        let options = OpenOptions { create: true, write: true, direct: true };
        let file = main.open(Path::new("/file"), options).await.unwrap();
        let lease = main.lease(4096).await.unwrap().freeze();
        assert_eq!(main.write(&file, 4096, lease.clone()).await.0.unwrap(), 4096);
        assert_eq!(main.write(&file, 512, lease.clone()).await.0.unwrap_err().raw_os_error(), Some(22));
        assert_eq!(main.write(&file, 0, lease.slice(0..512)).await.0.unwrap_err().raw_os_error(), Some(22));
        assert_eq!(main.size(&file).await.unwrap(), 8192);
        assert!(main.open(Path::new("/no/file"), options).await.is_err());
    });
}
