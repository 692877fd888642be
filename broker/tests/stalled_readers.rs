//! A reader on every strategy, each of a topic of its own that pins it, all stalled at once: what they hold stays under
//! its bound, and appends and other readers go on.
//!
//! Response times with them and without are printed, in turns, for who runs it by hand for a minute
//! (`RINGLOG_STALL_SECONDS=60`): a machine with other work decides nothing here.

mod common;

use std::time::{Duration, Instant};

use common::*;
use nix::sys::socket::{setsockopt, sockopt};
use ringlog::sys::{UNRELEASED_BYTES_MAX, topology};
use ringlog::{Ack, Egress, Engine, EngineConfig, TopicConfig, block_on};
use ringlog_broker::wire::ErrorCode;
use ringlog_broker::wire::fetch::FetchTerms;
use ringlog_broker::{BrokerConfig, start};

const MIB: usize = 1 << 20;
const BATCH_BYTES: usize = MIB - 1000;
const BATCHES: i64 = 8;
const ARENA: u64 = 192 << 20;
const TURNS: u32 = 4;
/// Beside the arena: code, maps of segments, pages that `vmsplice` lends, the harness of the test.
const OTHER_MEMORY: u64 = 256 << 20;

#[test]
fn a_stalled_reader_on_every_strategy_holds_little_and_nobody_up() {
    let seconds = std::env::var("RINGLOG_STALL_SECONDS").map_or(2.0, |words| words.parse().unwrap());
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = EngineConfig::new(home.path());
    config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
    config.shard.arena_bytes_max = ARENA;
    config.shard.tail_cache_bytes_max = 32 << 20;
    // One that reads past the page cache, or only topics that want it would.
    config.shard.egress = Egress::Direct;
    let engine = Engine::open(config).unwrap();
    let strategies: Vec<Egress> = Egress::ALL.iter().copied().filter(|egress| egress.delivers()).collect();
    for &egress in &strategies {
        let mut topic = TopicConfig { ack: Ack::Written, egress: Some(egress), ..TopicConfig::default() };
        topic.log.segment_bytes_max = 3 * MIB as u64;
        block_on(engine.create_topic(egress.name(), 1, topic)).unwrap();
    }
    let written = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    block_on(engine.create_topic("others", 1, written)).unwrap();
    let mut broker = BrokerConfig::new("127.0.0.1:0".parse().unwrap());
    broker.silence_max = Duration::from_secs(600);
    let serving = start(&engine, broker).unwrap();
    let client = || Client::connect(serving.address());
    let mut producer = client();
    let sent = batch(&[&[7; BATCH_BYTES]]);
    for egress in &strategies {
        for _ in 0..BATCHES {
            producer.produce(egress.name(), 0, &sent).unwrap();
        }
    }
    let stall = || -> Vec<Client> {
        let asks = |egress: &Egress| {
            let mut client = client();
            setsockopt(&client.stream, sockopt::RcvBuf, &4096).unwrap();
            let terms = FetchTerms { max_bytes: (BATCHES as usize * MIB) as i32, ..FetchTerms::default() };
            client.send_fetch(egress.name(), 0, 0, &terms);
            client.stream.peek(&mut [0]).unwrap();
            client
        };
        strategies.iter().map(asks).collect()
    };
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        go_on(&mut client(), seconds / f64::from(TURNS), &mut alone);
        let stalled = stall();
        let begun = Instant::now();
        while begun.elapsed().as_secs_f64() < seconds / f64::from(TURNS) {
            go_on(&mut client(), 0.2, &mut beside);
            let shard = block_on(engine.counters()).unwrap().swap_remove(0).shard;
            assert!(shard.arena.leased_bytes <= ARENA, "{:?}", shard.arena);
            let unreleased =
                strategies.iter().filter(|egress| egress.is_zero_copy() || egress.chooses()).count();
            let unreleased_max = (unreleased as u64 * UNRELEASED_BYTES_MAX).min(ARENA / 4);
            assert!(shard.zero_copy.unreleased_bytes <= unreleased_max, "{:?}", shard.zero_copy);
            assert!(resident_bytes() <= ARENA + OTHER_MEMORY, "{} bytes are resident", resident_bytes());
        }
        drop(stalled);
    }
    let p99 = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() * 99 / 100]
    };
    println!(
        "{} strategies stalled: an append of 16 KB and its fetch, p99 {:?} of {} without them, {:?} of {} beside them",
        strategies.len(),
        p99(&mut alone),
        alone.len(),
        p99(&mut beside),
        beside.len()
    );
    assert!(beside.len() >= 10 * TURNS as usize, "{} appends beside them", beside.len());
    engine.close().unwrap();
}

/// Appends and reads what was appended, for so long.
fn go_on(client: &mut Client, seconds: f64, times: &mut Vec<Duration>) {
    let small = batch(&[&[9; 16_000]]);
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < seconds {
        let one = Instant::now();
        let offset = client.produce("others", 0, &small).unwrap();
        let fetched = client.fetch("others", 0, offset);
        assert_eq!((fetched.error, fetched.records.len()), (ErrorCode::None, small.len()));
        times.push(one.elapsed());
    }
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
