//! Clients that ask and do not listen: what they hold is bounded, others go on, and it comes to an end. Over real sockets
//! with small receive buffers.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::*;
use nix::sys::socket::{setsockopt, sockopt};
use ringlog::shard::ShardCounters;
use ringlog::sys::topology;
use ringlog::{Ack, Egress, Engine, EngineConfig, TopicConfig, block_on};
use ringlog_broker::wire::ErrorCode;
use ringlog_broker::wire::fetch::FetchTerms;
use ringlog_broker::{BrokerConfig, start};

const TOPIC: &str = "slow";
const MIB: usize = 1 << 20;
const BATCH_BYTES: usize = MIB - 1000;
const ARENA: u64 = 64 << 20;
const RECEIVE_BUFFER: usize = 4096;

struct Served {
    engine: Engine,
    address: SocketAddr,
    _home: tempfile::TempDir,
}

/// On one core: what is bounded is a shard's.
fn served(egress: Egress, silence_max: Duration) -> Served {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = EngineConfig::new(home.path());
    config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
    config.shard.arena_bytes_max = ARENA;
    config.shard.tail_cache_bytes_max = 16 << 20;
    config.shard.egress = egress;
    let engine = Engine::open(config).unwrap();
    let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    block_on(engine.create_topic(TOPIC, 1, topic)).unwrap();
    let mut broker = BrokerConfig::new("127.0.0.1:0".parse().unwrap());
    broker.silence_max = silence_max;
    let serving = start(&engine, broker).unwrap();
    Served { address: serving.address(), engine, _home: home }
}

impl Served {
    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    fn shard(&self) -> ShardCounters {
        block_on(self.engine.counters()).unwrap().swap_remove(0).shard
    }

    fn leased_bytes(&self) -> u64 {
        self.shard().arena.leased_bytes
    }

    fn sends_zero_copy(&self) -> bool {
        self.engine.capabilities().zero_copy_sends
    }

    /// Asks for `bytes_max` from `offset` on, and listens to nothing.
    fn asks_and_stalls(&self, offset: i64, bytes_max: usize) -> Client {
        let mut client = self.client();
        setsockopt(&client.stream, sockopt::RcvBuf, &RECEIVE_BUFFER).unwrap();
        let terms = FetchTerms { max_bytes: bytes_max as i32, ..FetchTerms::default() };
        client.send_fetch(TOPIC, 0, offset, &terms);
        // The answer has begun to come: it is under way.
        client.stream.peek(&mut [0]).unwrap();
        client
    }
}

fn produce(client: &mut Client, batches: i64) -> i64 {
    let sent = batch(&[&[7; BATCH_BYTES]]);
    (0..batches).map(|_| client.produce(TOPIC, 0, &sent).unwrap()).last().unwrap()
}

/// Whether the broker has ended this conversation: everything that it still sends is taken, for at most `patience`.
fn is_cut(client: &mut Client, patience: Duration) -> bool {
    client.stream.set_read_timeout(Some(patience)).unwrap();
    let mut bytes = vec![0; MIB];
    loop {
        match client.stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn readers_that_stop_reading_cannot_hold_the_memory_of_all() {
    stalled_readers_are_cut(Egress::Tail);
}

/// What they have not acknowledged is held as well, though its sends have completed.
#[test]
fn readers_that_stop_reading_cannot_hold_what_zero_copy_sends_lend() {
    stalled_readers_are_cut(Egress::TailZc);
}

fn stalled_readers_are_cut(egress: Egress) {
    // Nobody is cut for silence here.
    let served = served(egress, Duration::from_secs(600));
    let mut producer = served.client();
    let mut stalled = Vec::new();
    // Twelve of them, each on other batches: together they want half as much again as there is.
    for _ in 0..12 {
        let last = produce(&mut producer, 8);
        stalled.push(served.asks_and_stalls(last - 7, 8 * MIB));
        let fetched = served.client().fetch(TOPIC, 0, last);
        assert_eq!(
            (fetched.error, fetched.records.len()),
            (ErrorCode::None, batch(&[&[7; BATCH_BYTES]]).len())
        );
        assert!(served.leased_bytes() <= ARENA);
        let lent = served.shard().arena.lent_bytes;
        assert!(lent <= ARENA / 4, "{lent} bytes are lent to the kernel");
    }
    let zero_copy = served.shard().zero_copy;
    println!("{egress}: {zero_copy:?}");
    assert_eq!(zero_copy.sends > 0, egress.is_zero_copy() && served.sends_zero_copy());
    produce(&mut producer, 8);
    let cut = stalled
        .iter_mut()
        .filter_map(|client| is_cut(client, Duration::from_millis(50)).then_some(()))
        .count();
    assert!(cut >= 4, "{cut} of 12 were cut");
    drop(stalled);
    wait_until(|| served.leased_bytes() < ARENA / 2, "what they held is free again");
    wait_until(|| served.shard().zero_copy.unreleased_bytes == 0, "and what was lent");
    served.engine.close().unwrap();
}

/// Some of them after their sends have completed. Each further one holds another block: what may be lent is soon lent,
/// others are served by copies, and who takes too little for too long is reset.
#[test]
fn what_was_sent_and_is_not_acknowledged_is_bounded_and_comes_back() {
    let served = served(Egress::TailZc, Duration::from_secs(2));
    let mut producer = served.client();
    // Small enough for the socket's buffer: their sends complete, and what the readers' buffers do not take stays lent.
    producer.produce(TOPIC, 0, &batch(&[&[7; 200_000]])).unwrap();
    let mut readers: Vec<Client> = (0..4).map(|_| served.asks_and_stalls(0, MIB)).collect();
    if served.sends_zero_copy() {
        wait_until(|| served.shard().zero_copy.sends >= 4, "the sends complete");
        assert!(served.shard().zero_copy.unreleased_bytes > 0);
    }
    for _ in 0..24 {
        let last = produce(&mut producer, 1);
        readers.push(served.asks_and_stalls(last, MIB));
        let lent = served.shard().arena.lent_bytes;
        assert!(lent <= ARENA / 4, "{lent} bytes are lent to the kernel");
    }
    let counted = served.shard().zero_copy;
    println!("{counted:?}");
    if served.sends_zero_copy() {
        assert!(counted.unreleased_bytes > 0 && counted.full_sends > 0, "{counted:?}");
    }
    wait_until(|| served.shard().zero_copy.unreleased_bytes == 0, "they are reset when they take too little");
    let cut = readers.iter_mut().filter_map(|c| is_cut(c, Duration::from_millis(200)).then_some(())).count();
    assert!(cut > 0, "{cut} of 28 were cut");
    wait_until(|| served.shard().arena.lent_bytes == 0, "and the memory is free");
    served.engine.close().unwrap();
}

fn wait_until(mut holds: impl FnMut() -> bool, what: &str) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// And ends it, whichever way the bytes take.
#[test]
fn a_byte_now_and_then_is_not_enough_for_ever() {
    for egress in Egress::ALL.iter().copied().filter(|egress| egress.delivers()) {
        let served = served(egress, Duration::from_millis(1000));
        let mut producer = served.client();
        produce(&mut producer, 12);
        let before = served.leased_bytes();
        let mut slow = served.asks_and_stalls(0, 12 * MIB);
        let (began, mut taken) = (Instant::now(), 0);
        let ended = loop {
            match slow.stream.read(&mut [0]) {
                Ok(1) => taken += 1,
                Ok(_) => break "an end",
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break "a reset",
                Err(error) => panic!("{egress}: {error}"),
            }
            // What lies in its own kernel it could go on reading.
            if slow.stream.take_error().unwrap().is_some() {
                break "a reset";
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{egress}: {taken} bytes taken, one at a time, and no end of it"
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(taken < 12 * MIB, "{egress}: {ended} after {taken} bytes");
        wait_until(|| served.leased_bytes() <= before, "what it held is free again");
        // Who takes what it asked for, as slowly as it likes within reason, is not cut.
        let mut steady = served.client();
        let terms = FetchTerms { max_bytes: 12 << 20, ..FetchTerms::default() };
        steady.send_fetch(TOPIC, 0, 0, &terms);
        let (mut chunk, mut received) = (vec![0; 96 << 10], 0);
        // For longer than the window in which somebody is judged.
        for _ in 0..25 {
            steady.stream.read_exact(&mut chunk).unwrap();
            received += chunk.len();
            std::thread::sleep(Duration::from_millis(60));
        }
        assert_eq!(received, 25 * chunk.len(), "{egress}");
        drop(steady);
        let mut producer = served.client();
        produce(&mut producer, 1);
        served.engine.close().unwrap();
    }
}

#[test]
fn producers_that_stop_in_the_middle_cannot_hold_the_memory_of_all() {
    let served = served(Egress::Tail, Duration::from_secs(600));
    let big = batch(&[&vec![7; 30 * MIB]]);
    let mut probe = served.client();
    let header = probe.header(ringlog_broker::wire::ApiKey::Produce, PRODUCE_VERSION);
    let frame = produce_frame(&header, -1, TOPIC, &[(0, &big)]);
    // Each has sent enough of its frame to be given memory for all of it.
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut client = served.client();
        client.send(&frame[..10 * MIB]);
        stuck.push(client);
    }
    let mut producer = served.client();
    let refused =
        (0..40).filter(|_| producer.produce(TOPIC, 0, &batch(&[&[7; BATCH_BYTES]])).is_err()).count();
    assert_eq!(refused, 0, "others find memory");
    let mut cut = 0;
    for client in &mut stuck {
        cut += usize::from(
            client.stream.write_all(&[0; 1]).is_err() || is_cut(client, Duration::from_millis(50)),
        );
    }
    assert!(cut >= 1, "{cut} of 4 were cut");
    drop(stuck);
    wait_until(|| served.leased_bytes() < ARENA / 2, "what they held is free again");
    served.engine.close().unwrap();
}

#[test]
fn stalled_readers_that_go_take_their_descriptors_along() {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let broker = Broker::start(home.path(), &["--ack", "written", "--egress", "splice", "--cores", "0-0"]);
    let mut producer = broker.client();
    producer.epochs(TOPIC);
    produce(&mut producer, 8);
    let (before, mut stalled) = (broker.descriptors(), Vec::new());
    for _ in 0..20 {
        let mut client = broker.client();
        setsockopt(&client.stream, sockopt::RcvBuf, &RECEIVE_BUFFER).unwrap();
        let terms = FetchTerms { max_bytes: 8 << 20, ..FetchTerms::default() };
        client.send_fetch(TOPIC, 0, 0, &terms);
        client.stream.peek(&mut [0]).unwrap();
        stalled.push(client);
    }
    assert!(broker.descriptors() >= before + 20);
    produce(&mut producer, 1);
    drop(stalled);
    // Pipes are kept for the next ones, two descriptors each, up to a bound.
    let kept = before + 2 * ringlog::sys::PIPES_KEPT_MAX;
    wait_until(|| broker.descriptors() <= kept, "descriptors are given back");
    produce(&mut producer, 1);
    broker.stop();
}
