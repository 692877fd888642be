//! Another process changes a segment file while it is served: truncates it, puts another in its place, removes it, or
//! writes into it, at random moments, with every egress strategy. No crash, no wrong byte taken for right by a reader that
//! checks CRCs as Kafka's clients do, words with partition, file and position in the log, and nobody else notices.
//!
//! `RINGLOG_CHANGES=1000` for that many changes over all strategies (a few of each by default), `RINGLOG_SEED` for the
//! same moments again.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use common::*;
use nix::sys::socket::{setsockopt, sockopt};
use ringlog::log::{BatchHeader, LogConfig, check_stored};
use ringlog::sys::topology;
use ringlog::{Ack, Egress, Engine, EngineConfig, Ingress, TopicConfig, block_on};
use ringlog_broker::wire::fetch::{FetchResponse, FetchTerms};
use ringlog_broker::wire::{ApiKey, Decoder, ErrorCode, Message, decode_response_header};
use ringlog_broker::{BrokerConfig, start};

/// Changes of each kind with each strategy, unless told otherwise.
const ROUNDS: usize = 2;
const BATCH_BYTES: usize = 100_000;
/// In the segment that is changed; three more follow in the active one.
const SEALED: i64 = 30;
const KINDS: [Kind; 4] = [Kind::Truncated, Kind::Replaced, Kind::Removed, Kind::Overwritten];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Truncated,
    Replaced,
    Removed,
    Overwritten,
}

/// What became of the reader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    /// Got all of it, as it was written.
    Whole,
    /// Its connection was closed in the middle of an answer.
    Closed,
    /// An answer with an error code.
    Refused,
    /// A whole answer with wrong bytes, which the CRC tells.
    BadCrc,
}

/// A generator of its own: moments must be the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// What the broker and the engine say.
struct Said;

static SAID: OnceLock<Mutex<Vec<String>>> = OnceLock::new();

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SAID.get_or_init(Mutex::default).lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn said() -> Vec<String> {
    std::mem::take(&mut *SAID.get_or_init(Mutex::default).lock().unwrap())
}

fn value(number: i64) -> Vec<u8> {
    (0..BATCH_BYTES).map(|at| (at as i64 * 31 + number * 7) as u8).collect()
}

fn change(kind: Kind, path: &Path, random: &mut Random) {
    let bytes = std::fs::metadata(path).unwrap().len();
    match kind {
        Kind::Truncated => {
            let to = random.below(bytes);
            // By descriptor as by name.
            match random.below(2) {
                0 => File::options().write(true).open(path).unwrap().set_len(to).unwrap(),
                _ => nix::unistd::truncate(path, to as i64).unwrap(),
            }
        }
        Kind::Replaced => {
            let other = path.with_extension("other");
            std::fs::write(&other, vec![0x5a; random.below(2 * bytes) as usize]).unwrap();
            std::fs::rename(other, path).unwrap();
        }
        Kind::Removed => std::fs::remove_file(path).unwrap(),
        Kind::Overwritten => {
            let at = random.below(bytes - 50_000);
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[0x5a; 50_000], at).unwrap();
        }
    }
}

/// Reads the sealed segment, slowly, as far as it gets.
fn read(client: &mut Client, topic: &str, random: &mut Random) -> End {
    let mut next = 0;
    while next < SEALED {
        let terms = FetchTerms { max_bytes: 4 << 20, ..FetchTerms::default() };
        client.send_fetch(topic, 0, next, &terms);
        let frame = match receive_slowly(client, random) {
            Ok(frame) => frame,
            Err(error) => {
                let waited = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind());
                assert!(!waited, "nothing came, and no end either");
                return End::Closed;
            }
        };
        let mut decoder = Decoder::new(&frame);
        decode_response_header(&mut decoder, ApiKey::Fetch, 12).unwrap();
        let response = FetchResponse::decode_from(&mut decoder, 12).unwrap();
        let topic = response.topics.iter().next().unwrap();
        let answer = topic.partitions.iter().next().unwrap();
        if answer.error_code != ErrorCode::None {
            assert_eq!(answer.error_code, ErrorCode::KafkaStorageError);
            return End::Refused;
        }
        let records = &frame[answer.records.unwrap()];
        let mut rest = records;
        // Only the last batch of an answer may be cut short.
        while let Ok(header) = BatchHeader::parse(rest)
            && header.bytes as usize <= rest.len()
        {
            let (stored, after) = rest.split_at(header.bytes as usize);
            let Ok(header) = check_stored(stored) else { return End::BadCrc };
            // Taken for right: then it is right.
            assert_eq!(header.base_offset.0, next);
            assert_eq!(content(stored), content(&batch(&[&value(next)])), "a wrong byte was taken for right");
            (next, rest) = (next + 1, after);
        }
        if next < SEALED && rest.len() >= 61 {
            return End::BadCrc; // No batch can be made of it.
        }
    }
    End::Whole
}

/// Whether what is in the socket's queue changes with the file.
fn shares_pages_of_the_file(egress: Egress) -> bool {
    matches!(egress, Egress::Sendfile | Egress::Splice | Egress::RingSplice | Egress::Tee | Egress::Auto)
}

fn receive_slowly(client: &mut Client, random: &mut Random) -> io::Result<Vec<u8>> {
    let mut prefix = [0; 4];
    client.stream.read_exact(&mut prefix)?;
    let mut frame = vec![0; i32::from_be_bytes(prefix) as usize];
    let mut at = 0;
    while at < frame.len() {
        let to = frame.len().min(at + 1 + random.below(300_000) as usize);
        client.stream.read_exact(&mut frame[at..to])?;
        at = to;
        std::thread::sleep(Duration::from_micros(random.below(1500)));
    }
    Ok(frame)
}

fn wait_until(mut holds: impl FnMut() -> bool, what: &str) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_segment_that_another_process_changes_harms_nobody() {
    let told = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let time =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = told("RINGLOG_SEED").unwrap_or_else(time);
    println!("RINGLOG_SEED={seed}");
    let strategies: Vec<Egress> = Egress::ALL.iter().copied().filter(|egress| egress.delivers()).collect();
    let rounds = told("RINGLOG_CHANGES")
        .map_or(ROUNDS, |changes| (changes as usize).div_ceil(strategies.len() * KINDS.len()));
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Said).init();
    for &egress in &strategies {
        let ends = changes_under(egress, rounds, &mut Random(seed));
        println!("{egress}: {ends:?}");
    }
}

fn changes_under(egress: Egress, rounds: usize, random: &mut Random) -> BTreeMap<(Kind, End), u32> {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = EngineConfig::new(home.path());
    config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
    (config.shard.ingress, config.shard.egress) = (Ingress::Buffered, egress);
    let engine = Engine::open(config).unwrap();
    let serving = start(&engine, BrokerConfig::new("127.0.0.1:0".parse().unwrap())).unwrap();
    let make = |topic: &str| {
        let log = LogConfig { segment_bytes_max: SEALED as u64 * 100_200, ..LogConfig::default() };
        let config = TopicConfig { ack: Ack::Written, log, ..TopicConfig::default() };
        block_on(engine.create_topic(topic, 1, config)).unwrap();
        let mut producer = Client::connect(serving.address());
        for number in 0..SEALED + 3 {
            assert_eq!(producer.produce(topic, 0, &batch(&[&value(number)])), Ok(number));
        }
        let path: PathBuf = home.path().join(format!("{topic}-0/{:020}.log", 0));
        wait_until(|| path.with_extension("index").exists(), "the segment is finished");
        block_on(engine.on_shard(|shard| async move { shard.drop_tail_caches() })).unwrap();
        path
    };
    make("bystander");
    let mut bystander = Client::connect(serving.address());
    let mut ends = BTreeMap::new();
    for round in 0..rounds * KINDS.len() {
        let kind = KINDS[round % KINDS.len()];
        let topic = format!("changed-{round}");
        let path = make(&topic);
        let mut client = Client::connect(serving.address());
        // What is under way is much more than the reader's own kernel takes.
        setsockopt(&client.stream, sockopt::RcvBuf, &(16 << 10)).unwrap();
        let (mut pace, wait) = (Random(random.below(u64::MAX >> 1)), random.below(15_000));
        said();
        let end = std::thread::scope(|scope| {
            let reading = scope.spawn(|| read(&mut client, &topic, &mut pace));
            let others =
                scope.spawn(|| assert_eq!(read(&mut bystander, "bystander", &mut Random(1)), End::Whole));
            std::thread::sleep(Duration::from_micros(wait));
            change(kind, &path, random);
            others.join().unwrap();
            reading.join().unwrap()
        });
        *ends.entry((kind, end)).or_default() += 1;
        match kind {
            // Who has the old one open reads the old one; who comes too late finds no file.
            Kind::Replaced | Kind::Removed => {
                assert_ne!(end, End::BadCrc, "{egress}, {kind:?}, round {round}")
            }
            // Where bytes were in memory of ours, or the kernel's own, before the file was looked at, a whole answer is
            // right: the CRC has nothing to find.
            Kind::Truncated | Kind::Overwritten if !shares_pages_of_the_file(egress) => {
                assert_ne!(end, End::BadCrc, "{egress}, {kind:?}, round {round}");
            }
            Kind::Truncated | Kind::Overwritten => {}
        }
        if round < 8 && matches!(end, End::Closed | End::Refused) {
            // The connection's end is said after the peer has seen it.
            let mut words = Vec::new();
            let named = |line: &String| line.contains(&format!("{topic}-0")) && line.contains(".log");
            wait_until(
                || {
                    words.extend(said());
                    words.iter().any(named)
                },
                &format!("{egress}, {kind:?}, {end:?}: words that name the file"),
            );
            let line = words.iter().find(|line| named(line)).unwrap();
            assert!(line.contains("position") || end == End::Refused, "{line}");
        }
        // Whoever comes now gets an error or the old bytes, never a crash; and the partition next to it all.
        let mut late = Client::connect(serving.address());
        let again = read(&mut late, &topic, &mut Random(2));
        match kind {
            Kind::Truncated | Kind::Overwritten => {
                assert_ne!(again, End::Whole, "{egress}, {kind:?}, round {round}");
            }
            Kind::Replaced | Kind::Removed => {
                assert_ne!(again, End::BadCrc, "{egress}, {kind:?}, round {round}")
            }
        }
        block_on(engine.delete_topic(&topic)).unwrap();
    }
    engine.close().unwrap();
    ends
}
