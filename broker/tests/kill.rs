//! Killed under load, twenty times: whatever was acknowledged is there afterwards, once and in its place.
//!
//! The seed is printed with every failure; `RINGLOG_KILL_SEED` runs it again.

mod common;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::*;
use ringlog::log::Records;
use ringlog_broker::wire::{ApiKey, ErrorCode};

const TOPIC: &str = "killed";
const PARTITIONS: i32 = 4;
const CONNECTIONS: u32 = 4;
const IN_FLIGHT: usize = 5;
const KILLS: u32 = 10;

/// Who sent a batch: everything about it follows from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin {
    kill: u32,
    connection: u32,
    sequence: u32,
}

/// A promise the broker gave.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    partition: i32,
    base_offset: i64,
    count: i32,
    origin: Origin,
}

impl Origin {
    fn mixed(self, salt: u64) -> u64 {
        let id = u64::from(self.kill) << 48 | u64::from(self.connection) << 32 | u64::from(self.sequence);
        mix(id ^ salt << 56)
    }

    fn partition(self) -> i32 {
        (self.mixed(1) % PARTITIONS as u64) as i32
    }

    /// One to four records of up to 200 bytes, now and then of 60,000, each naming its origin.
    fn batch(self) -> Vec<u8> {
        let values: Vec<Vec<u8>> = (0..1 + self.mixed(2) % 4)
            .map(|record| {
                let Origin { kill, connection, sequence } = self;
                let mut value = format!("{kill}/{connection}/{sequence}/{record} ").into_bytes();
                let large = if self.mixed(8).is_multiple_of(16) { 60_000 } else { 0 };
                let filler = large + (self.mixed(3 + record) % 200) as usize;
                value.resize(value.len() + filler, b'a' + record as u8);
                value
            })
            .collect();
        batch(&values.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// Who sent what lies in the log, by the value of its first record.
    fn of(stored: &[u8]) -> Origin {
        let first = Records::new(stored).unwrap().next().expect("a record").unwrap();
        let text = String::from_utf8_lossy(first.value.expect("a value")).into_owned();
        let numbers: Vec<u32> = text.split(['/', ' ']).map_while(|part| part.parse().ok()).collect();
        let [kill, connection, sequence, 0] = numbers[..] else { panic!("nobody sent this: {text}") };
        let origin = Origin { kill, connection, sequence };
        assert!(content(&origin.batch()) == content(stored), "not what was sent: {origin:?}");
        origin
    }
}

/// SplitMix64: good enough to be unpredictable, short enough to be here.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sends until the connection breaks, with five requests under way, and notes what was acknowledged.
fn load(address: SocketAddr, kill: u32, connection: u32, acknowledged: &AtomicUsize) -> Vec<Acknowledged> {
    let mut client = Client::connect(address);
    let (mut journal, mut under_way) = (Vec::new(), VecDeque::new());
    for sequence in 0.. {
        let origin = Origin { kill, connection, sequence };
        let bytes = origin.batch();
        let header = client.header(ApiKey::Produce, PRODUCE_VERSION);
        let frame = produce_frame(&header, -1, TOPIC, &[(origin.partition(), &bytes)]);
        under_way.push_back((header.correlation_id, origin));
        if client.stream.write_all(&frame).is_err() {
            break;
        }
        if under_way.len() < IN_FLIGHT {
            continue;
        }
        match take_answer(&mut client, &mut under_way) {
            Some(promise) => journal.push(promise),
            None => return journal,
        }
        acknowledged.fetch_add(1, Relaxed);
    }
    // What was answered before the end counts, whether or not we could go on sending.
    while let Some(promise) = take_answer(&mut client, &mut under_way) {
        journal.push(promise);
    }
    journal
}

fn take_answer(client: &mut Client, under_way: &mut VecDeque<(i32, Origin)>) -> Option<Acknowledged> {
    let (id, outcomes) = client.try_receive_produce().ok()?;
    let (sent, origin) = under_way.pop_front().expect("an answer to something that was asked");
    assert_eq!(id, sent, "answers in the order of the requests");
    let [(partition, error, base_offset)] = outcomes[..] else { panic!("one partition: {outcomes:?}") };
    assert_eq!((partition, error), (origin.partition(), ErrorCode::None));
    let count = 1 + (origin.mixed(2) % 4) as i32;
    Some(Acknowledged { partition, base_offset, count, origin })
}

/// Every promise kept, nothing twice, nothing that nobody sent.
fn check(broker: &Broker, journal: &[Acknowledged]) -> usize {
    let mut client = broker.client();
    let mut origins = HashSet::new();
    for partition in 0..PARTITIONS {
        let all = client.fetch_all(TOPIC, partition);
        // In here it is checked that each batch begins where the one before ended.
        let stored = batches_in(&all);
        assert_eq!(stored.first().map_or(0, |(header, _)| header.base_offset.0), 0, "from the beginning");
        let mut by_offset = HashMap::new();
        for (header, bytes) in &stored {
            let origin = Origin::of(bytes);
            assert_eq!(origin.partition(), partition, "{origin:?} lies where it was sent");
            assert!(origins.insert(origin), "{origin:?} is there twice");
            by_offset.insert(header.base_offset.0, (origin, header.count));
        }
        for promise in journal.iter().filter(|promise| promise.partition == partition) {
            let found = by_offset.get(&promise.base_offset);
            assert_eq!(found, Some(&(promise.origin, promise.count)), "lost or changed: {promise:?}");
        }
    }
    origins.len()
}

fn kill_again_and_again(ack: &str, ingress: &str, home: &Path, seed: u64) {
    let options = ["--ack", ack, "--ingress", ingress, "--partitions", "4", "--trusted-producers"];
    let mut broker = Broker::start(home, &options);
    let mut epochs = broker.client().epochs(TOPIC);
    assert_eq!(epochs.len() as i32, PARTITIONS);
    let mut journal = Vec::new();
    for kill in 0..KILLS {
        let moment = Duration::from_micros(20_000 + mix(seed ^ u64::from(kill)) % 180_000);
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let loaders: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let (address, acknowledged) = (broker.address, acknowledged.clone());
                std::thread::spawn(move || load(address, kill, connection, &acknowledged))
            })
            .collect();
        // The clock of the kill starts with the first promise: an idle broker is no target.
        let began = Instant::now();
        while acknowledged.load(Relaxed) == 0 {
            assert!(began.elapsed() < PATIENCE, "nothing was acknowledged");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(moment);
        broker.kill();
        let before = journal.len();
        for loader in loaders {
            journal.extend(loader.join().unwrap());
        }
        let promises = journal.len() - before;
        println!("{ack}, kill {kill} after {moment:?}: {promises} batches were acknowledged");

        broker = Broker::start(home, &options);
        let stored = check(&broker, &journal);
        println!("{ack}, kill {kill}: {} promises kept, {stored} batches stored", journal.len());
        let now = broker.client().epochs(TOPIC);
        assert!(now.iter().zip(&epochs).all(|(now, before)| now > before), "{epochs:?}, then {now:?}");
        epochs = now;
    }
    // Appends go on: the next load would have shown it, and so does this after the last kill.
    let mut client = broker.client();
    let origin = Origin { kill: KILLS, connection: 0, sequence: 0 };
    let end = client.fetch(TOPIC, origin.partition(), 0).high_watermark;
    assert_eq!(client.produce(TOPIC, origin.partition(), &origin.batch()), Ok(end));
    broker.stop();
    check(&Broker::start(home, &options), &journal);
}

fn seed() -> u64 {
    let told = std::env::var("RINGLOG_KILL_SEED").ok().map(|text| text.parse().expect("a number"));
    let seed = told.unwrap_or_else(|| {
        std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007)
    });
    println!("RINGLOG_KILL_SEED={seed}");
    seed
}

#[test]
fn what_was_written_survives_ten_kills_under_load() {
    kill_again_and_again(
        "written",
        "copy",
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().path(),
        seed(),
    );
}

#[test]
fn what_was_durable_survives_ten_kills_under_load() {
    kill_again_and_again(
        "durable",
        "copy",
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().path(),
        seed(),
    );
}

/// Nothing of it was ever written by a call: it was received into the file.
#[test]
fn what_was_received_into_the_mapped_file_survives_ten_kills_under_load() {
    kill_again_and_again(
        "written",
        "mapped",
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().path(),
        seed(),
    );
}

/// Killed with bytes behind the log end that went there through a pipe and are no batch yet.
#[test]
fn what_was_spliced_into_the_file_survives_ten_kills_under_load() {
    kill_again_and_again(
        "written",
        "spliced",
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().path(),
        seed(),
    );
}
