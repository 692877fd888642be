//! What each way in leaves behind, and what it does where the host does not offer what it needs.

use std::path::Path;
use std::time::{Duration, Instant};

use ringlog::log::{BatchBuilder, check_produced};
use ringlog::shard::{Ack, Partition, Shard, ShardConfig};
use ringlog::sys::sim::World;
use ringlog::sys::{Ring, UringOptions, residency};
use ringlog::types::{Offset, Timestamp};
use ringlog::{Egress, Ingress, TopicConfig};

const ARENA: u64 = 64 << 20;

async fn append(ring: &Ring, partition: &Partition, bytes: usize, ack: Ack) {
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(&vec![7; bytes]), &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).unwrap();
    partition.append(lease, header, Some(ack), ring.now()).await.unwrap().reached().await.unwrap();
}

async fn open(ring: &Ring, ingress: Ingress, home: &Path) -> (Shard, Partition) {
    let config =
        ShardConfig { ingress, trusted_producers: true, arena_bytes_max: ARENA, ..ShardConfig::new(home) };
    let shard = Shard::open(ring, config).await.unwrap();
    let topic = shard.create_topic("t", 1, TopicConfig::default()).await.unwrap();
    let partition = topic.here(0).unwrap().clone();
    (shard, partition)
}

#[test]
fn what_the_host_does_not_offer_goes_another_way_and_is_counted() {
    for &ingress in Ingress::ALL {
        for refused in [false, true] {
            let world = World::new(3);
            let ring = world.ring(ARENA);
            world.faults().refuse_direct(refused);
            let main = ring.clone();
            world.run(&[&ring], async move {
                let (shard, partition) = open(&main, ingress, Path::new("/data")).await;
                for _ in 0..5 {
                    append(&main, &partition, 9000, Ack::Durable).await;
                }
                let counted = shard.counters();
                let lacks = refused && (ingress.is_direct() || ingress.is_uncached());
                // What is appended from memory goes by no pipe.
                let other = lacks || ingress == Ingress::Spliced;
                let expected = if other { counted.ingress_bytes } else { 0 };
                assert_eq!(counted.ingress_fallback_bytes, expected, "{ingress}, refused: {refused}");
                assert_eq!(shard.ingress_lacks().is_some(), lacks, "{ingress}");
                let mut pieces = Vec::new();
                let found = partition.fetch(Offset(0), 1 << 20, Egress::Tail, &mut pieces).await.unwrap();
                assert_eq!(found.bytes, counted.ingress_bytes, "{ingress}: all of it is there");
                drop(pieces);
                shard.close().await.unwrap();
            });
            ring.shut_down();
        }
    }
}

#[test]
fn what_dontcache_writes_is_soon_out_of_the_page_cache_and_what_buffered_writes_stays() {
    for ingress in [Ingress::Buffered, Ingress::Dontcache] {
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let ring = Ring::of_kernel(&UringOptions::default(), ARENA).unwrap();
        let (main, path) = (ring.clone(), home.path().to_owned());
        ring.run(async move {
            let (shard, partition) = open(&main, ingress, &path).await;
            if let Some(what) = shard.ingress_lacks() {
                println!("skipped: no {what} here");
                return shard.close().await.unwrap();
            }
            for _ in 0..16 {
                append(&main, &partition, 256 << 10, Ack::Durable).await;
            }
            let log = std::fs::File::open(path.join("t-0/00000000000000000000.log")).unwrap();
            let cached = || residency(&log, 0, 4 << 20).unwrap().cached_pages;
            let begun = Instant::now();
            // The pages go when their write-back is through, which a flush waits for; a last few may be later.
            while ingress == Ingress::Dontcache && cached() > 64 && begun.elapsed() < Duration::from_secs(20)
            {
                main.sleep(Duration::from_millis(10)).await;
            }
            let pages = cached();
            println!("{ingress}: {pages} of 1024 pages are cached");
            assert_eq!(pages <= 64, ingress == Ingress::Dontcache, "{ingress}: {pages} of 1024 pages");
            shard.close().await.unwrap();
        });
        ring.shut_down();
    }
}
