//! Many shards in the simulated world: what crosses, in which order, how long it waits.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, BatchHeader, check_produced};
use ringlog::shard::{Ack, Commit, LANE_CALLS_MAX, Node, Shard, ShardConfig, Topic, TopicConfig};
use ringlog::sys::sim::World;
use ringlog::sys::{LeaseMut, Ring};
use ringlog::transfer::{Egress, Piece};
use ringlog::types::{Offset, ShardId, Timestamp};

const ARENA: u64 = 64 << 20;
/// A call waits for its turn no longer than the calls before it take on a disk that needs 10 ms at worst for each of
/// an append's write and flush, and helpers that open files.
const WAIT_MAX: Duration = Duration::from_millis(500);

async fn open(rings: &[Ring]) -> Vec<Shard> {
    let config = ShardConfig { commit: Commit::Files, ..ShardConfig::new("/data") };
    let node = Node::open(&rings[0], &config, rings.len() as u16).await.unwrap();
    let mut shards = Vec::new();
    for (number, ring) in rings.iter().enumerate() {
        let id = ShardId(number as u16);
        shards.push(Shard::join(ring, id, config.clone(), node.clone()).await.unwrap());
    }
    shards
}

/// Runs `main` on a node of `shards` shards with a topic of `partitions`.
fn with_node<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    shards: usize,
    partitions: i32,
    main: impl FnOnce(Vec<Shard>) -> F + 'static,
) -> T {
    let world = World::new(seed);
    let rings: Vec<Ring> = (0..shards).map(|_| world.ring(ARENA)).collect();
    let all = rings.clone();
    let result = world.run(&rings.iter().collect::<Vec<_>>(), async move {
        let shards = open(&all).await;
        let config = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
        shards[shards.len() / 2].create_topic("t", partitions, config).await.unwrap();
        main(shards).await
    });
    rings.iter().for_each(Ring::shut_down);
    result
}

async fn lease_of(ring: &Ring, bytes: &[u8]) -> LeaseMut {
    let mut lease = ring.lease(bytes.len()).await.unwrap();
    drop(lease.split_off(bytes.len()));
    lease.copy_from_slice(bytes);
    lease
}

async fn batch(ring: &Ring, value: &[u8]) -> (LeaseMut, BatchHeader) {
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(value), &[]);
    let bytes = builder.finish().to_vec();
    (lease_of(ring, &bytes).await, check_produced(&bytes).unwrap())
}

fn topic(shard: &Shard) -> Rc<Topic> {
    shard.topic("t").expect("a topic that was made is shown by every shard")
}

/// Every shard appends to partitions of every shard, far more at a time than a lane takes.
async fn storm(shards: &[Shard], appends: usize) {
    let left = Rc::new(Cell::new(shards.len() * appends));
    for shard in shards {
        for number in 0..appends {
            let (shard, left) = (shard.clone(), left.clone());
            shard.clone().spawn(async move {
                let topic = topic(&shard);
                let index = (number as i32 * 7 + i32::from(shard.id().0)) % topic.partition_count();
                let route = shard.route(&topic, index).unwrap();
                let (lease, header) = batch(shard.ring(), &[number as u8; 300]).await;
                let promise = route.append(lease, header, None, shard.ring().now()).await.unwrap();
                promise.kept().await.unwrap();
                left.set(left.get() - 1);
            });
        }
    }
    while left.get() > 0 {
        shards[0].ring().sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn from_1_to_64_shards_nobody_starves_and_no_lane_stays_full() {
    for (seed, count) in [1, 2, 3, 7, 16, 64].into_iter().enumerate() {
        with_node(seed as u64, count, 64, move |shards| async move {
            let appends = 3 * LANE_CALLS_MAX;
            storm(&shards, appends).await;
            let ends: i64 = (0..64).map(|index| topic(&shards[0]).board(index).unwrap().log_end().0).sum();
            assert_eq!(ends, (count * appends) as i64, "{count} shards: every append has its offset");
            for shard in &shards {
                let lanes = shard.counters().lanes;
                let waited = Duration::from_nanos(lanes.longest_wait_nanos);
                assert!(
                    waited <= WAIT_MAX,
                    "{count} shards: a call of shard {} waited {waited:?}",
                    shard.id()
                );
                if count == 1 {
                    assert_eq!((lanes.calls_in, lanes.calls_out), (0, 0), "nothing crosses on one shard");
                }
                if count == 2 {
                    assert!(lanes.waits > 0, "more was asked for than a lane takes at a time");
                }
            }
        });
    }
}

#[test]
fn what_is_for_the_own_core_does_not_cross() {
    with_node(11, 4, 8, |shards| async move {
        let before: Vec<_> = shards.iter().map(|shard| shard.counters().lanes).collect();
        for shard in &shards {
            let topic = topic(shard);
            for index in (0..8).filter(|&index| topic.owner(index) == shard.id()) {
                let route = shard.route(&topic, index).unwrap();
                let (lease, header) = batch(shard.ring(), b"mine").await;
                let promise = route.append(lease, header, None, shard.ring().now()).await.unwrap();
                assert_eq!(promise.kept().await.unwrap().offset, Offset(0));
                let mut pieces = Vec::new();
                let fetching = route.begin_fetch(Offset(0), 1000, Egress::Tail).await;
                assert!(fetching.into(1000, &mut pieces).await.unwrap().bytes > 0);
            }
        }
        let after: Vec<_> = shards.iter().map(|shard| shard.counters().lanes).collect();
        assert_eq!(before, after);
    });
}

#[test]
fn a_fetch_from_another_shard_finds_the_same_memory_and_the_same_file() {
    with_node(12, 2, 2, |shards| async move {
        let (here, there) = (&shards[0], &shards[1]);
        let topic = topic(here);
        let index = (0..2).find(|&index| topic.owner(index) == there.id()).unwrap();
        let route = here.route(&topic, index).unwrap();
        let (lease, header) = batch(here.ring(), &[7; 5000]).await;
        let promise = route.append(lease, header, None, here.ring().now()).await.unwrap();
        promise.kept().await.unwrap();
        for egress in [Egress::Tail, Egress::Copy] {
            let mut found = Vec::new();
            let fetching = route.begin_fetch(Offset(0), 1 << 20, egress).await;
            let fetched = fetching.into(1 << 20, &mut found).await.unwrap();
            let mut own = Vec::new();
            let partition = there.topic("t").unwrap().here(index).unwrap().clone();
            assert_eq!(partition.fetch(Offset(0), 1 << 20, egress, &mut own).await.unwrap(), fetched);
            assert_eq!(found.len(), own.len());
            for (found, own) in found.iter().zip(&own) {
                match (found, own) {
                    (Piece::Memory(found), Piece::Memory(own)) => {
                        assert_eq!(found.as_ptr(), own.as_ptr(), "the lease crosses, the bytes do not");
                    }
                    (Piece::File { file: found, at, bytes }, Piece::File { file: own, at: a, bytes: b }) => {
                        assert_eq!((&found.path, at, bytes), (&own.path, a, b));
                        let into = here.ring().lease(4096).await.unwrap();
                        let (read, _) = here.ring().read(&found.file, at.0, into).await;
                        assert!(read.unwrap() > 0, "the descriptor can be read from here");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

#[test]
fn a_reader_on_another_shard_is_woken_when_more_is_there() {
    with_node(13, 2, 2, |shards| async move {
        let topic = topic(&shards[0]);
        let index = (0..2).find(|&index| topic.owner(index) == shards[1].id()).unwrap();
        let route = shards[0].route(&topic, index).unwrap();
        let waker = std::future::poll_fn(|cx| std::task::Poll::Ready(cx.waker().clone())).await;
        let moves = route.board().moves();
        assert_eq!(route.readable_bytes(Offset(0), &waker).await, Ok(0));
        let producer = shards[1].clone();
        shards[1].spawn(async move {
            producer.ring().sleep(Duration::from_secs(3)).await;
            let route = producer.route(&producer.topic("t").unwrap(), index).unwrap();
            let (lease, header) = batch(producer.ring(), b"more").await;
            route.append(lease, header, None, producer.ring().now()).await.unwrap();
        });
        std::future::poll_fn(|_| match route.board().moves() == moves {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        })
        .await;
        assert!(route.readable_bytes(Offset(0), &waker).await.unwrap() > 0);
        assert_eq!(route.board().high_watermark(), Offset(1));
    });
}

#[test]
fn a_failed_flush_latches_the_device_on_every_shard() {
    let world = World::new(14);
    let rings: Vec<Ring> = (0..3).map(|_| world.ring(ARENA)).collect();
    let (all, faults) = (rings.clone(), world.faults());
    world.run(&rings.iter().collect::<Vec<_>>(), async move {
        let shards = open(&all).await;
        shards[0].create_topic("t", 3, TopicConfig::default()).await.unwrap();
        faults.fail_syncs("t-1/0000", 1);
        let topic = topic(&shards[0]);
        let append = async |index| {
            let route = shards[0].route(&topic, index).unwrap();
            let (lease, header) = batch(shards[0].ring(), b"x").await;
            match route.append(lease, header, None, shards[0].ring().now()).await {
                Ok(promise) => promise.kept().await,
                Err(error) => Err(error),
            }
        };
        assert!(append(0).await.is_ok() && append(2).await.is_ok());
        let failed = append(1).await.unwrap_err().to_string();
        assert!(failed.contains("t-1") && failed.contains("flush"), "{failed}");
        shards[0].ring().sleep(Duration::from_millis(10)).await;
        for index in 0..3 {
            let refused = append(index).await.unwrap_err().to_string();
            assert!(refused.contains("takes no more appends") && refused.contains("flush"), "{refused}");
        }
    });
    rings.iter().for_each(Ring::shut_down);
}
