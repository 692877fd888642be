//! Receiving through a pipe into the segment file: what goes that way and what does not, what is not looked at, and producers
//! that leave in the middle.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Broker, Client, batch, batches_in, content, produce_frame};
use ringlog::log::{BATCH_HEADER_BYTES, check_stored};
use ringlog::shard::{ShardCounters, Timestamps};
use ringlog::sys::topology;
use ringlog::{Ack, Engine, EngineConfig, Ingress, TopicConfig, block_on};
use ringlog_broker::wire::{ApiKey, ErrorCode};
use ringlog_broker::{BrokerConfig, Serving, start};

const TOPIC: &str = "spliced";
/// Of a frame no more than this is received in our memory.
const HEAD_BYTES: u64 = 512;
const OPTIONS: [&str; 7] =
    ["--ingress", "spliced", "--trusted-producers", "--egress", "sendfile", "--ack", "written"];

struct Served {
    engine: Engine,
    serving: Serving,
}

fn config(home: &Path) -> EngineConfig {
    let mut config = EngineConfig::new(home);
    config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
    (config.shard.ingress, config.shard.trusted_producers) = (Ingress::Spliced, true);
    config
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn served(home: &Path) -> Served {
    let engine = Engine::open(config(home)).unwrap();
    let mut topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    topic.log.batch_bytes_max = 8 << 20;
    block_on(engine.create_topic(TOPIC, 2, topic)).unwrap();
    let serving = start(&engine, BrokerConfig::new("127.0.0.1:0".parse().unwrap())).unwrap();
    Served { engine, serving }
}

impl Served {
    fn client(&self) -> Client {
        Client::connect(self.serving.address())
    }

    fn counts(&self) -> ShardCounters {
        block_on(self.engine.counters()).unwrap().swap_remove(0).shard
    }
}

/// A batch of about `bytes`, of its own content.
fn large(number: u8, bytes: usize) -> Vec<u8> {
    let value: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ number).collect();
    batch(&[&value])
}

fn frame(client: &mut Client, partition: i32, bytes: &[u8]) -> Vec<u8> {
    let header = client.header(ApiKey::Produce, common::PRODUCE_VERSION);
    produce_frame(&header, -1, TOPIC, &[(partition, bytes)])
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
fn large_batches_go_through_the_pipe_and_others_are_counted() {
    let home = home();
    let served = served(home.path());
    let mut client = served.client();
    // The first frame of a connection is not expected to be large.
    let mut sent = vec![large(0, 200_000)];
    client.produce(TOPIC, 0, &sent[0]).unwrap();
    let before = served.counts();
    for number in 1..40u8 {
        sent.push(large(number, 100_000 + usize::from(number) * 3_333));
        assert_eq!(client.produce(TOPIC, 0, sent.last().unwrap()), Ok(i64::from(number)));
    }
    // Larger than a pipe.
    sent.push(large(40, 5_000_000));
    client.produce(TOPIC, 0, sent.last().unwrap()).unwrap();
    let after = served.counts();
    let bytes = after.ingress_bytes - before.ingress_bytes;
    let spliced = after.ingress_in_place_bytes - before.ingress_in_place_bytes;
    assert!(bytes - spliced <= 40 * HEAD_BYTES, "{spliced} of {bytes} bytes went through the pipe");
    assert_eq!(after.ingress_fallback_bytes, before.ingress_fallback_bytes);
    let copied = after.ingress_copied_bytes - before.ingress_copied_bytes;
    assert!(copied <= 40 * HEAD_BYTES, "{copied} bytes were copied by us");

    // Small ones, and several in a request.
    let (small, one, other) = (large(50, 1000), large(51, 60_000), large(52, 60_000));
    client.produce(TOPIC, 0, &small).unwrap();
    client.send_produce(-1, TOPIC, &[(0, &one), (1, &other)]);
    assert!(client.try_receive_produce().unwrap().1.iter().all(|(_, error, _)| error.is_ok()));
    let others = served.counts().ingress_fallback_bytes - after.ingress_fallback_bytes;
    assert_eq!(others, (small.len() + one.len() + other.len()) as u64);
    sent.extend([small, one]);
    assert_holds(&mut client, 0, &sent);
    assert_holds(&mut client, 1, &[other]);
    served.engine.close().unwrap();
}

#[test]
fn where_the_logs_own_time_is_stamped_the_checksum_is_made_anew_and_so_looked_at() {
    let home = home();
    let served = served(home.path());
    let topic = TopicConfig { ack: Ack::Written, timestamps: Timestamps::Append, ..TopicConfig::default() };
    block_on(served.engine.create_topic("stamped", 1, topic)).unwrap();
    let mut client = served.client();
    for number in 0..4 {
        client.produce("stamped", 0, &large(number, 200_000)).unwrap();
    }
    let mut rotten = large(9, 200_000);
    rotten[100_000] ^= 1;
    assert_eq!(client.produce("stamped", 0, &rotten), Err(ErrorCode::CorruptMessage));
    let counts = served.counts();
    assert_eq!((counts.ingress_in_place_bytes, counts.ingress_fallback_bytes), (0, counts.ingress_bytes));
    served.engine.close().unwrap();
}

/// That is the price. What the head says is checked all the same.
#[test]
fn a_corrupt_payload_is_accepted_and_found_by_its_reader_and_a_wrong_head_is_refused() {
    let home = home();
    let served = served(home.path());
    let mut client = served.client();
    client.produce(TOPIC, 0, &large(0, 200_000)).unwrap();
    let mut rotten = large(1, 200_000);
    rotten[150_000] ^= 1;
    assert_eq!(client.produce(TOPIC, 0, &rotten), Ok(1));
    let good = large(2, 200_000);
    assert_eq!(client.produce(TOPIC, 0, &good), Ok(2));
    let blob = client.fetch(TOPIC, 0, 1).records;
    let whole = rotten.len();
    let found = check_stored(&blob[..whole]).unwrap_err().to_string();
    assert!(found.contains("CRC"), "{found}");
    assert!(content(&blob[..whole]) == content(&rotten), "as it was sent");
    check_stored(&blob[whole..whole + good.len()]).unwrap();
    for wrong in [57, 23] {
        // The number of records, and the delta of the last one.
        let mut wrong_head = large(3, 200_000);
        wrong_head[wrong] ^= 1;
        assert!(client.produce(TOPIC, 0, &wrong_head).is_err(), "byte {wrong} of the head");
    }
    assert_eq!(client.produce(TOPIC, 0, &good), Ok(3), "the connection goes on");
    served.engine.close().unwrap();
}

/// What they left behind the log end holds whole good batches, of which none may ever be believed.
#[test]
fn producers_that_leave_at_random_points_leave_an_intact_log() {
    let seed = std::env::var("RINGLOG_SPLICED_SEED").map_or_else(
        |_| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        |text| text.parse().unwrap(),
    );
    println!("RINGLOG_SPLICED_SEED={seed}");
    let mut state = seed;
    // One of so many, in turn.
    let mut below = |most: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    let home = home();
    let mut broker = Broker::start(home.path(), &OPTIONS);
    // A batch in whose payload good batches lie one behind the other, everywhere.
    let within = large(7, 400).repeat(2000);
    let bait = batch(&[&within]);
    let mut sent = vec![large(1, 300_000)];
    // Asking for the topic makes it.
    assert_eq!(broker.client().epochs(TOPIC).len(), 1);
    broker.client().produce(TOPIC, 0, &sent[0]).unwrap();
    for round in 0..60u8 {
        let mut gone = broker.client();
        // The partition exists; a first large frame makes the connection expect the next.
        sent.push(large(round, 40_000));
        gone.produce(TOPIC, 0, sent.last().unwrap()).unwrap();
        let frame = frame(&mut gone, 0, &bait);
        let cut = 1 + below(frame.len() as u64 - 1) as usize;
        gone.stream.write_all(&frame[..cut]).unwrap();
        std::thread::sleep(Duration::from_millis(below(5)));
        drop(gone);
        match below(8) {
            // A start after a crash, with that behind the log end.
            0 => {
                broker.kill();
                broker = Broker::start(home.path(), &OPTIONS);
            }
            1 => {
                broker.stop();
                broker = Broker::start(home.path(), &OPTIONS);
            }
            _ => {}
        }
        sent.push(large(round, 10 + below(100_000) as usize));
        let expected = sent.len() as i64 - 1;
        assert_eq!(broker.client().produce(TOPIC, 0, sent.last().unwrap()), Ok(expected), "round {round}");
        if below(8) == 0 {
            broker.kill();
            broker = Broker::start(home.path(), &OPTIONS);
        }
    }
    assert_holds(&mut broker.client(), 0, &sent);
    broker.kill();
    let broker = Broker::start(home.path(), &OPTIONS);
    assert_holds(&mut broker.client(), 0, &sent);
}

#[test]
fn what_came_of_a_batch_that_was_given_up_is_zeroed_before_the_next_and_cut_by_a_stop() {
    let home = home();
    let path = home.path().join(format!("{TOPIC}-0/00000000000000000000.log"));
    let served = served(home.path());
    let mut client = served.client();
    let first = large(1, 40_000);
    client.produce(TOPIC, 0, &first).unwrap();
    let leave = |client: &mut Client| {
        let frame = frame(client, 0, &batch(&[&vec![0xaa; 700_000]]));
        client.stream.write_all(&frame[..650_000]).unwrap();
        // Until the pipe has been emptied into the file for once.
        let log = || std::fs::read(&path).unwrap();
        let begun = std::time::Instant::now();
        while !log().contains(&0xaa) {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing came into the file");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    leave(&mut client);
    drop(client);
    let mut client = served.client();
    let second = large(2, 40_000);
    assert_eq!(client.produce(TOPIC, 0, &second), Ok(1));
    let log = std::fs::read(&path).unwrap();
    let end = first.len() + second.len();
    assert!(log.len() > end && log[end..].iter().all(|byte| *byte == 0), "zeros behind the log end");
    leave(&mut client);
    // Stopped while somebody is in the middle.
    served.engine.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), end as u64);
    drop(client);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), end as u64, "nothing comes after the stop");
}

/// What a slow producer had sent is in the file when others take the tail: it is read back, and nothing is lost.
#[test]
fn a_batch_that_was_given_up_in_favour_of_others_arrives_whole() {
    let home = home();
    let served = served(home.path());
    let (mut slow, mut other) = (served.client(), served.client());
    let mut sent = vec![large(1, 300_000)];
    slow.produce(TOPIC, 0, &sent[0]).unwrap();
    for (round, pause_at) in [700, 100_000, 799_000].into_iter().enumerate() {
        let stalled = large(100 + round as u8, 800_000);
        let frame = frame(&mut slow, 0, &stalled);
        slow.send(&frame[..pause_at]);
        std::thread::sleep(Duration::from_millis(20));
        for number in 0..3 {
            sent.push(large(number, [100_000, 500, 40_000][usize::from(number)]));
            let expected = Ok(sent.len() as i64 - 1);
            assert_eq!(other.produce(TOPIC, 0, sent.last().unwrap()), expected, "round {round}");
        }
        slow.send(&frame[pause_at..]);
        let (_, outcomes) = slow.try_receive_produce().unwrap();
        assert_eq!(outcomes, [(0, ErrorCode::None, sent.len() as i64)]);
        sent.push(stalled);
    }
    assert!(served.counts().ingress_fallback_bytes >= 3 * 800_000);
    assert_holds(&mut other, 0, &sent);
    served.engine.close().unwrap();
}

#[test]
fn it_must_be_allowed_as_well_as_chosen() {
    let home = home();
    let mut told = config(&home.path().join("data"));
    told.shard.trusted_producers = false;
    let Err(refused) = Engine::open(told) else { panic!("not refused") };
    assert!(refused.to_string().contains("ingress spliced checks no checksum"), "{refused}");
    assert!(!home.path().join("data").exists());
    let output = Command::new(env!("CARGO_BIN_EXE_ringlog-broker"))
        .args(["serve", "--listen", "127.0.0.1:0", "--ingress", "spliced", "--data-dir"])
        .arg(home.path().join("data"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("--ingress spliced") && said.contains("--trusted-producers"), "{said}");
    assert_eq!(Ingress::ALL.iter().filter(|ingress| !ingress.checks_payload()).count(), 1);
    const { assert!(BATCH_HEADER_BYTES as u64 <= HEAD_BYTES) };
}
