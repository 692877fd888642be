//! Receiving into provided buffers, through real sockets: what is copied how often, and producers that are slow, wrong or
//! gone.

mod common;

use std::time::Duration;

use common::{Client, batch, batches_in, content, produce_frame};
use ringlog::sys::{PROVIDED_BYTES, topology};
use ringlog::{Ack, Engine, EngineConfig, Ingress, TopicConfig, block_on};
use ringlog_broker::wire::{ApiKey, ErrorCode};
use ringlog_broker::{BrokerConfig, Serving, start};

const TOPIC: &str = "provided";

struct Served {
    engine: Engine,
    serving: Serving,
    _home: tempfile::TempDir,
}

fn served() -> Served {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = EngineConfig::new(home.path());
    config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
    config.shard.ingress = Ingress::Provided;
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

    /// Accepted bytes, and bytes copied on the way in.
    fn counts(&self) -> (u64, u64) {
        let shard = block_on(self.engine.counters()).unwrap().swap_remove(0).shard;
        (shard.ingress_bytes, shard.ingress_copied_bytes)
    }

    fn leased_bytes(&self) -> u64 {
        block_on(self.engine.counters()).unwrap().swap_remove(0).shard.arena.leased_bytes
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
fn a_frame_without_a_body_ends_its_connection_and_nothing_else() {
    let served = served();
    let mut client = served.client();
    // Alone in its buffer, and with bytes behind it.
    for sent in [vec![0; 4], vec![0; 40]] {
        let mut wrong = served.client();
        wrong.send(&sent);
        wrong.expect_closed("an empty frame");
    }
    assert_eq!(client.produce(TOPIC, 0, &large(1, 1000)), Ok(0));
}

#[test]
fn a_byte_is_copied_once_into_staging_and_small_rests_once_more() {
    let served = served();
    let mut client = served.client();
    let mut sent = Vec::new();
    // In one buffer, in two, in three.
    for number in 0..60u8 {
        sent.push(large(number, 1_000 + usize::from(number) * 9_999));
        assert_eq!(client.produce(TOPIC, 0, sent.last().unwrap()), Ok(i64::from(number)));
    }
    let (bytes, copied) = served.counts();
    println!("{:.4} user-space copies a byte", copied as f64 / bytes as f64);
    assert!(copied >= bytes, "each byte once at least: {copied} of {bytes}");
    // A rest that fits behind the last one is moved there: at most one buffer a batch.
    assert!(copied <= bytes + 60 * PROVIDED_BYTES as u64, "{copied} of {bytes}");
    assert_holds(&mut client, 0, &sent);
    served.engine.close().unwrap();
}

#[test]
fn small_batches_several_in_a_request_and_large_ones_mix() {
    let served = served();
    let mut client = served.client();
    let mut sent = [Vec::new(), Vec::new()];
    for number in 0..40u8 {
        let sizes = [10, 200_000, 3000, 700_000];
        let (one, other) = (large(number, sizes[usize::from(number) % 4]), large(number, 500));
        client.send_produce(-1, TOPIC, &[(0, &one), (1, &other)]);
        let (_, outcomes) = client.try_receive_produce().unwrap();
        assert!(outcomes.iter().all(|(_, error, _)| error.is_ok()), "{outcomes:?}");
        client.produce(TOPIC, 1, &one).unwrap();
        sent[0].push(one.clone());
        sent[1].extend([other, one]);
    }
    assert_holds(&mut client, 0, &sent[0]);
    assert_holds(&mut client, 1, &sent[1]);
    served.engine.close().unwrap();
}

#[test]
fn a_producer_that_stalls_in_the_middle_holds_up_nobody_and_one_that_trickles_holds_little() {
    let served = served();
    let (mut slow, mut other) = (served.client(), served.client());
    let mut sent = vec![large(1, 600_000)];
    slow.produce(TOPIC, 0, &sent[0]).unwrap();
    let before = served.leased_bytes();
    let stalled = large(2, 600_000);
    let header = slow.header(ApiKey::Produce, common::PRODUCE_VERSION);
    let frame = produce_frame(&header, -1, TOPIC, &[(0, &stalled)]);
    // The first bytes one by one, each in a buffer of its own as far as the kernel is concerned.
    let (trickled, rest) = frame.split_at(300);
    for byte in trickled.chunks(1) {
        slow.send(byte);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(served.leased_bytes() <= before + 2 * PROVIDED_BYTES as u64, "a buffer for a few bytes");
    slow.send(&rest[..400_000]);
    std::thread::sleep(Duration::from_millis(20));
    for number in 3..13 {
        sent.push(large(number, 100_000));
        let offset = other.produce(TOPIC, 0, sent.last().unwrap());
        assert_eq!(offset, Ok(i64::from(number) - 2), "the tail is not the stalled producer's");
    }
    slow.send(&rest[400_000..]);
    let (id, outcomes) = slow.try_receive_produce().unwrap();
    assert_eq!((id, &outcomes[..]), (header.correlation_id, &[(0, ErrorCode::None, 11)][..]));
    sent.push(stalled);
    assert_holds(&mut other, 0, &sent);
    served.engine.close().unwrap();
}

#[test]
fn a_rotten_batch_and_a_producer_that_vanishes_leave_no_trace() {
    let served = served();
    let mut client = served.client();
    let mut sent = vec![large(1, 600_000)];
    client.produce(TOPIC, 0, &sent[0]).unwrap();
    for number in 0..5 {
        let mut rotten = large(9, 600_000);
        rotten[500_000 + number] ^= 1;
        assert_eq!(client.produce(TOPIC, 0, &rotten), Err(ErrorCode::CorruptMessage));
        let mut gone = served.client();
        let header = gone.header(ApiKey::Produce, common::PRODUCE_VERSION);
        let frame = produce_frame(&header, -1, TOPIC, &[(0, &large(8, 600_000))]);
        gone.send(&frame[..300_000 + 10_000 * number]);
        drop(gone);
        sent.push(large(number as u8, 250_000));
        client.produce(TOPIC, 0, sent.last().unwrap()).unwrap();
    }
    assert_holds(&mut client, 0, &sent);
    served.engine.close().unwrap();
}
