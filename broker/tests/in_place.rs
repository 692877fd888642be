//! Receiving in place, through real sockets: what is copied and what is not, and producers that are slow, wrong or gone.

mod common;

use std::time::Duration;

use common::{Client, batch, batches_in, content, produce_frame};
use ringlog::sys::topology;
use ringlog::{Ack, Engine, EngineConfig, Ingress, TopicConfig, block_on};
use ringlog_broker::wire::{ApiKey, ErrorCode};
use ringlog_broker::{BrokerConfig, Serving, start};

const TOPIC: &str = "in-place";
/// Of a frame no more than this is received before it is known where the rest belongs.
const HEAD_BYTES: u64 = 512;

struct Served {
    engine: Engine,
    serving: Serving,
    _home: tempfile::TempDir,
}

/// The ways in that receive large batches where they belong.
const IN_PLACE: [Ingress; 2] = [Ingress::InPlace, Ingress::Mapped];
/// And the one that receives them without looking at them.
const RESERVING: [Ingress; 3] = [Ingress::InPlace, Ingress::Mapped, Ingress::Spliced];

fn served(ingress: Ingress) -> Served {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = EngineConfig::new(home.path());
    config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
    (config.shard.ingress, config.shard.trusted_producers) = (ingress, true);
    let engine = Engine::open(config).unwrap();
    let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    block_on(engine.create_topic(TOPIC, 2, topic)).unwrap();
    let serving = start(&engine, BrokerConfig::new("127.0.0.1:0".parse().unwrap())).unwrap();
    Served { engine, serving, _home: home }
}

impl Served {
    fn client(&self) -> Client {
        Client::connect(self.serving.address())
    }

    /// Accepted bytes; of these received in place; bytes copied on the way in.
    fn counts(&self) -> (u64, u64, u64) {
        let shard = block_on(self.engine.counters()).unwrap().swap_remove(0).shard;
        (shard.ingress_bytes, shard.ingress_in_place_bytes, shard.ingress_copied_bytes)
    }
}

/// A batch of about `bytes`, of its own content.
fn large(number: u8, bytes: usize) -> Vec<u8> {
    let value: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ number).collect();
    batch(&[&value])
}

fn assert_holds(client: &mut Client, partition: i32, expected: &[Vec<u8>]) {
    let blob = client.fetch_all(TOPIC, partition);
    let found = batches_in(&blob);
    assert_eq!(found.len(), expected.len());
    for (number, ((_, found), expected)) in found.iter().zip(expected).enumerate() {
        assert!(content(found) == content(expected), "batch {number}");
    }
}

#[test]
fn of_large_batches_only_what_comes_with_their_heads_is_copied() {
    IN_PLACE.into_iter().for_each(|ingress| {
        let served = served(ingress);
        of_large_batches_only_what_com_by(&served);
        served.engine.close().unwrap();
    });
}

fn of_large_batches_only_what_com_by(served: &Served) {
    let mut client = served.client();
    // The first frame of a connection is not expected to be large.
    let mut sent = vec![large(0, 200_000)];
    client.produce(TOPIC, 0, &sent[0]).unwrap();
    let before = served.counts();
    // Sizes at which batches begin and end everywhere within staging blocks, and span two of them.
    for number in 1..60u8 {
        sent.push(large(number, 100_000 + usize::from(number) * 3_333));
        assert_eq!(client.produce(TOPIC, 0, sent.last().unwrap()), Ok(i64::from(number)));
    }
    let after = served.counts();
    let (bytes, in_place, copied) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    assert_eq!(in_place + copied, bytes, "every byte went one way or the other");
    assert!(copied <= 59 * HEAD_BYTES, "{copied} of {bytes} bytes were copied");
    assert_holds(&mut client, 0, &sent);
}

#[test]
fn a_topic_that_is_deleted_under_a_receiver_takes_nobody_along() {
    for ingress in RESERVING {
        let served = served(ingress);
        let mut other = served.client();
        // One goes on to the end of its batch, one leaves.
        for leaves in [false, true] {
            let mut client = served.client();
            client.produce(TOPIC, 0, &large(1, 100_000)).unwrap();
            let header = client.header(ApiKey::Produce, common::PRODUCE_VERSION);
            let frame = produce_frame(&header, 1, TOPIC, &[(0, &large(2, 200_000))]);
            client.send(&frame[..100_000]);
            std::thread::sleep(Duration::from_millis(50));
            block_on(served.engine.delete_topic(TOPIC)).unwrap();
            if !leaves {
                client.send(&frame[100_000..]);
                // An error, or the end of a conversation in which nothing can be skipped.
                if let Ok((_, answers)) = client.try_receive_produce() {
                    assert_ne!(answers[0].1, ErrorCode::None, "{ingress}");
                }
            }
            drop(client);
            let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
            block_on(served.engine.create_topic(TOPIC, 2, topic)).unwrap();
            assert_eq!(other.produce(TOPIC, 0, &large(3, 1000)), Ok(0), "{ingress}");
            block_on(served.engine.delete_topic(TOPIC)).unwrap();
            let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
            block_on(served.engine.create_topic(TOPIC, 2, topic)).unwrap();
        }
        served.engine.close().unwrap();
    }
}

#[test]
fn small_batches_several_in_a_request_and_large_ones_mix() {
    RESERVING.into_iter().for_each(|ingress| {
        let served = served(ingress);
        small_batches_several_in_a_req_by(&served);
        served.engine.close().unwrap();
    });
}

fn small_batches_several_in_a_req_by(served: &Served) {
    let mut client = served.client();
    let mut sent = [Vec::new(), Vec::new()];
    for number in 0..40u8 {
        let (one, other) = (large(number, [10, 200_000, 3000][usize::from(number) % 3]), large(number, 500));
        client.send_produce(-1, TOPIC, &[(0, &one), (1, &other)]);
        let (_, outcomes) = client.try_receive_produce().unwrap();
        assert!(outcomes.iter().all(|(_, error, _)| error.is_ok()), "{outcomes:?}");
        client.produce(TOPIC, 1, &one).unwrap();
        sent[0].push(one.clone());
        sent[1].extend([other, one]);
    }
    assert_holds(&mut client, 0, &sent[0]);
    assert_holds(&mut client, 1, &sent[1]);
}

#[test]
fn a_producer_that_stalls_in_the_middle_holds_up_nobody() {
    RESERVING.into_iter().for_each(|ingress| {
        let served = served(ingress);
        a_producer_that_stalls_in_the_by(&served);
        served.engine.close().unwrap();
    });
}

fn a_producer_that_stalls_in_the_by(served: &Served) {
    let (mut slow, mut other) = (served.client(), served.client());
    let mut sent = vec![large(1, 300_000)];
    slow.produce(TOPIC, 0, &sent[0]).unwrap();
    let stalled = large(2, 300_000);
    let header = slow.header(ApiKey::Produce, common::PRODUCE_VERSION);
    let frame = produce_frame(&header, -1, TOPIC, &[(0, &stalled)]);
    slow.send(&frame[..150_000]);
    std::thread::sleep(Duration::from_millis(20));
    for number in 3..13 {
        sent.push(large(number, 100_000));
        let offset = other.produce(TOPIC, 0, sent.last().unwrap());
        assert_eq!(offset, Ok(i64::from(number) - 2), "the tail is not the stalled producer's");
    }
    slow.send(&frame[150_000..]);
    let (id, outcomes) = slow.try_receive_produce().unwrap();
    assert_eq!((id, &outcomes[..]), (header.correlation_id, &[(0, ErrorCode::None, 11)][..]));
    sent.push(stalled);
    // And in place again from here on.
    let before = served.counts().1;
    sent.push(large(14, 300_000));
    slow.produce(TOPIC, 0, sent.last().unwrap()).unwrap();
    assert!(served.counts().1 > before);
    assert_holds(&mut other, 0, &sent);
}

#[test]
fn a_rotten_batch_and_a_producer_that_vanishes_leave_no_trace() {
    IN_PLACE.into_iter().for_each(|ingress| {
        let served = served(ingress);
        a_rotten_batch_and_a_producer_by(&served);
        served.engine.close().unwrap();
    });
}

fn a_rotten_batch_and_a_producer_by(served: &Served) {
    let mut client = served.client();
    let mut sent = vec![large(1, 300_000)];
    client.produce(TOPIC, 0, &sent[0]).unwrap();
    for number in 0..5 {
        let mut rotten = large(9, 300_000);
        rotten[200_000 + number] ^= 1;
        assert_eq!(client.produce(TOPIC, 0, &rotten), Err(ErrorCode::CorruptMessage));
        let mut gone = served.client();
        gone.produce(TOPIC, 1, &large(1, 40_000)).unwrap();
        let header = gone.header(ApiKey::Produce, common::PRODUCE_VERSION);
        let frame = produce_frame(&header, -1, TOPIC, &[(0, &large(8, 300_000))]);
        gone.send(&frame[..100_000 + 10_000 * number]);
        drop(gone);
        sent.push(large(number as u8, 250_000));
        client.produce(TOPIC, 0, sent.last().unwrap()).unwrap();
    }
    assert_holds(&mut client, 0, &sent);
}

#[test]
fn many_producers_of_one_partition_keep_their_orders() {
    RESERVING.into_iter().for_each(|ingress| {
        let served = served(ingress);
        many_producers_of_one_partitio_by(&served);
        served.engine.close().unwrap();
    });
}

fn many_producers_of_one_partitio_by(served: &Served) {
    let address = served.serving.address();
    std::thread::scope(|scope| {
        for producer in 0..4u8 {
            scope.spawn(move || {
                let mut client = Client::connect(address);
                let batches: Vec<Vec<u8>> =
                    (0..40u8).map(|number| batch(&[&[producer, number], &[0; 70_000][..]])).collect();
                // Five under way at a time.
                let mut last = -1;
                for (number, one) in batches.iter().enumerate() {
                    client.send_produce(-1, TOPIC, &[(0, one)]);
                    if number >= 5 {
                        let (_, outcomes) = client.try_receive_produce().unwrap();
                        assert!(outcomes[0].2 > last, "{outcomes:?} after {last}");
                        last = outcomes[0].2;
                    }
                }
                (0..5).for_each(|_| assert!(client.try_receive_produce().unwrap().1[0].1.is_ok()));
            });
        }
    });
    let blob = served.client().fetch_all(TOPIC, 0);
    assert_eq!(batches_in(&blob).len(), 160);
}
