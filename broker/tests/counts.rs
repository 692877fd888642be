//! What a request costs, by counting: allocations, system calls, bytes written. Never times.
//!
//! The broker runs in this process, so that its counters can be read; clients are plain threads with plain sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringlog::log::{BatchBuilder, LogConfig};
use ringlog::sys::{Ring, UringOptions, topology};
use ringlog::types::Timestamp;
use ringlog::{
    Ack, Egress, Engine, EngineConfig, EngineCounters, Ingress, Shard, ShardConfig, TopicConfig, block_on,
};
use ringlog_broker::wire::fetch::{
    FetchPartition, FetchPartitionResponse, FetchRequestWriter, FetchResponse, FetchTerms,
};
use ringlog_broker::wire::produce::{ProduceRequestWriter, ProduceResponse, ProduceTerms};
use ringlog_broker::wire::{
    ApiKey, Decoder, Encoder, ErrorCode, GappedFrame, Message, RequestHeader, decode_response_header,
};
use ringlog_broker::{BrokerConfig, bind, serve, start};

const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;
const TOPIC: &str = "counted";
/// Where the correlation id stands in a request frame: behind length, key and version.
const CORRELATION_ID_AT: usize = 8;

struct Served {
    engine: Engine,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Served {
    fn new(ingress: Ingress, egress: Egress) -> Served {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut config = EngineConfig::new(dir.path());
        (config.shard.ingress, config.shard.egress) = (ingress, egress);
        config.shard.trusted_producers = true;
        config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
        let engine = Engine::open(config).unwrap();
        let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
        block_on(engine.create_topic(TOPIC, 4, topic)).unwrap();
        let serving = start(&engine, BrokerConfig::new("127.0.0.1:0".parse().unwrap())).unwrap();
        Served { address: serving.address(), engine, _dir: dir }
    }

    fn counters(&self) -> EngineCounters {
        block_on(self.engine.counters()).unwrap().swap_remove(0)
    }
}

struct Client {
    stream: TcpStream,
    frame: Vec<u8>,
    /// Requests under way at a time.
    window: i32,
    sent: i32,
    received: i32,
    answer: Vec<u8>,
}

impl Client {
    fn new(address: SocketAddr, frame: Vec<u8>, window: i32) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Client { stream, frame, window, sent: 0, received: 0, answer: Vec::new() }
    }

    /// Sends `count` requests, `window` of them in flight, and shows every answer to `check`.
    fn run(&mut self, count: i32, mut check: impl FnMut(&[u8])) {
        let end = self.sent + count;
        while self.received < end {
            while self.sent < end && self.sent - self.received < self.window {
                self.frame[CORRELATION_ID_AT..][..4].copy_from_slice(&self.sent.to_be_bytes());
                self.stream.write_all(&self.frame).unwrap();
                self.sent += 1;
            }
            self.receive();
            let id = i32::from_be_bytes(*self.answer.first_chunk().unwrap());
            assert_eq!(id, self.received, "answers come in the order of the requests");
            self.received += 1;
            check(&self.answer);
        }
    }

    fn receive(&mut self) {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).unwrap();
        self.answer.resize(i32::from_be_bytes(prefix) as usize, 0);
        self.stream.read_exact(&mut self.answer).unwrap();
    }
}

fn header(api: ApiKey, version: i16) -> RequestHeader<'static> {
    RequestHeader { api, version, correlation_id: 0, client_id: Some("counts") }
}

/// A batch of one record, of about `bytes`.
fn batch(bytes: usize) -> Vec<u8> {
    let now = Timestamp(1_700_000_000_000);
    let mut builder = BatchBuilder::new(now);
    let value = (0..bytes).map(|i| (i * 31) as u8).collect::<Vec<_>>();
    builder.push(now, None, Some(&value), &[]);
    builder.finish().to_vec()
}

fn produce_frame(partition: i32, batch: &[u8]) -> Vec<u8> {
    let mut frame = GappedFrame::default();
    let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 10_000 };
    let header = header(ApiKey::Produce, PRODUCE_VERSION);
    let mut writer = ProduceRequestWriter::begin(&mut frame, &header, &terms, 1).unwrap();
    writer.topic(TOPIC, &[0; 16], 1);
    writer.partition(partition, batch.len() as u64);
    writer.finish().unwrap();
    let mut bytes = frame.bytes;
    let at = frame.gaps[0].position;
    bytes.splice(at..at, batch.iter().copied());
    bytes
}

fn fetch_frame(offset: i64, partition_max_bytes: i32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = header(ApiKey::Fetch, FETCH_VERSION);
    let terms = FetchTerms { min_bytes: 1, max_wait_ms: 1000, ..FetchTerms::default() };
    let mut writer = FetchRequestWriter::begin(Encoder::growing(&mut bytes), &header, &terms, 1).unwrap();
    writer.topic(TOPIC, &[0; 16], 1);
    writer.partition(&FetchPartition { fetch_offset: offset, partition_max_bytes, ..Default::default() });
    writer.finish(&[]).unwrap();
    bytes
}

fn assert_appended(answer: &[u8]) {
    let mut decoder = Decoder::new(answer);
    decode_response_header(&mut decoder, ApiKey::Produce, PRODUCE_VERSION).unwrap();
    let response = ProduceResponse::decode_from(&mut decoder, PRODUCE_VERSION).unwrap();
    let partition = response.topics.iter().next().unwrap().partitions.iter().next().unwrap();
    assert_eq!(partition.error_code, ErrorCode::None);
}

fn assert_fetched(answer: &[u8]) {
    let mut decoder = Decoder::new(answer);
    decode_response_header(&mut decoder, ApiKey::Fetch, FETCH_VERSION).unwrap();
    let response = FetchResponse::decode_from(&mut decoder, FETCH_VERSION).unwrap();
    let topic = response.topics.iter().next().unwrap();
    let partition: FetchPartitionResponse<'_> = topic.partitions.iter().next().unwrap();
    assert_eq!(partition.error_code, ErrorCode::None);
    assert!(partition.records.is_some_and(|records| !records.is_empty()));
}

/// The pairs that the harness compares.
const PAIRS: [(Ingress, Egress); 11] = [
    (Ingress::Buffered, Egress::Copy),
    (Ingress::Buffered, Egress::Sendfile),
    (Ingress::Copy, Egress::Tail),
    (Ingress::InPlace, Egress::Tail),
    (Ingress::Dontcache, Egress::Sendfile),
    (Ingress::Provided, Egress::Tail),
    (Ingress::Mapped, Egress::Sendfile),
    (Ingress::Buffered, Egress::RingSplice),
    (Ingress::Buffered, Egress::Tee),
    (Ingress::Buffered, Egress::Vmsplice),
    (Ingress::Spliced, Egress::Sendfile),
];

#[test]
fn ten_thousand_appends_and_fetches_within_one_segment_do_not_allocate() {
    // Beside requests there are the segment, which is prepared ahead in ever larger steps, and the waiting itself.
    const OTHERS_MAX: u64 = 32;
    for (ingress, egress) in PAIRS {
        // The shard runs on this thread, because allocations are counted for the thread that asks.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let config = ShardConfig { ingress, trusted_producers: true, egress, ..ShardConfig::new(dir.path()) };
        let ring = Ring::of_kernel(&UringOptions::default(), config.arena_bytes_max).unwrap();
        let (shard, address) = ring.run(serving(ring.clone(), config));

        let mut producer = Client::new(address, produce_frame(0, &batch(1000)), 32);
        run_beside(&ring, || producer.run(1000, assert_appended));
        let appends = run_beside(&ring, || producer.run(10_000, assert_appended));
        let mut consumer = Client::new(address, fetch_frame(5000, 16 << 10), 5);
        run_beside(&ring, || consumer.run(200, assert_fetched));
        let fetches = run_beside(&ring, || consumer.run(10_000, assert_fetched));
        println!(
            "{ingress} + {egress}: {appends} allocations in 10,000 appends, {fetches} in as many fetches"
        );
        assert!(appends <= OTHERS_MAX, "{ingress}: {appends} allocations in 10,000 appends");
        assert!(fetches <= OTHERS_MAX, "{egress}: {fetches} allocations in 10,000 fetches");
        ring.run(async move { shard.close().await }).unwrap();
        ring.shut_down();
    }
}

#[test]
fn large_appends_that_are_received_where_they_stay_do_not_allocate() {
    const OTHERS_MAX: u64 = 32;
    // With those before, less than the 64 MiB after which a checkpoint is written, which allocates.
    const APPENDS: i32 = 600;
    for ingress in [Ingress::Mapped, Ingress::Spliced] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let config = ShardConfig { ingress, trusted_producers: true, ..ShardConfig::new(dir.path()) };
        let ring = Ring::of_kernel(&UringOptions::default(), config.arena_bytes_max).unwrap();
        let (shard, address) = ring.run(serving(ring.clone(), config));
        let mut producer = Client::new(address, produce_frame(0, &batch(64 << 10)), 5);
        run_beside(&ring, || producer.run(200, assert_appended));
        let before = shard.counters();
        let allocations = run_beside(&ring, || producer.run(APPENDS, assert_appended));
        let after = shard.counters();
        println!("{ingress}: {allocations} allocations in {APPENDS} large appends");
        let bytes = after.ingress_bytes - before.ingress_bytes;
        let stayed = after.ingress_in_place_bytes - before.ingress_in_place_bytes;
        assert!(stayed * 100 > bytes * 95, "{ingress}: {stayed} of {bytes} bytes");
        // Windows of `mapped` are made ahead of need: a few allocations for each MiB.
        let others = if ingress == Ingress::Spliced { OTHERS_MAX } else { OTHERS_MAX + 64 };
        assert!(allocations <= others, "{ingress}: {allocations} allocations in {APPENDS} large appends");
        ring.run(async move { shard.close().await }).unwrap();
        ring.shut_down();
    }
}

#[test]
fn ten_thousand_fetches_from_a_map_do_not_allocate() {
    const OTHERS_MAX: u64 = 32;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let config =
        ShardConfig { ingress: Ingress::Buffered, egress: Egress::Mmap, ..ShardConfig::new(dir.path()) };
    let ring = Ring::of_kernel(&UringOptions::default(), config.arena_bytes_max).unwrap();
    let log = LogConfig { segment_bytes_max: 1 << 20, ..LogConfig::default() };
    let (shard, address) = ring.run(serving_segments(ring.clone(), config, log));
    let mut producer = Client::new(address, produce_frame(0, &batch(1000)), 32);
    run_beside(&ring, || producer.run(3000, assert_appended));
    // From two sealed segments in turn.
    let mut consumers = [100, 1500].map(|offset| Client::new(address, fetch_frame(offset, 16 << 10), 5));
    let mut fetch = |count| {
        run_beside(&ring, || consumers.iter_mut().for_each(|consumer| consumer.run(count, assert_fetched)))
    };
    // Sealed segments are finished meanwhile, and checkpoints written.
    fetch(3000);
    let before = [Egress::Mmap, Egress::Copy].map(|egress| shard.transfers().egress(egress));
    let fetches = fetch(5000);
    let after = [Egress::Mmap, Egress::Copy].map(|egress| shard.transfers().egress(egress));
    println!("{fetches} allocations in 10,000 fetches from two maps");
    assert!(fetches <= OTHERS_MAX, "{fetches} allocations in 10,000 fetches");
    assert!(after[0].bytes - before[0].bytes > 10_000 * 14_000, "{before:?} {after:?}");
    assert_eq!(
        (after[0].fallback_bytes, after[0].cold_reads, after[1].bytes),
        (before[0].fallback_bytes, before[0].cold_reads, before[1].bytes)
    );
    ring.run(async move { shard.close().await }).unwrap();
    ring.shut_down();
}

/// Each answer is three sends, one after the other: before the records, the records lent, behind them; and a notice when
/// they are released. What the reads of `direct_zc` cost comes on top.
#[test]
fn zero_copy_fetches_do_not_allocate_and_cost_few_calls() {
    const FETCHES: i32 = 2000;
    for (egress, calls_max) in [(Egress::TailZc, 6.0), (Egress::DirectZc, 8.0)] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let config = ShardConfig { ingress: Ingress::Copy, egress, ..ShardConfig::new(dir.path()) };
        let ring = Ring::of_kernel(&UringOptions::default(), config.arena_bytes_max).unwrap();
        if !ring.sends_zero_copy() {
            eprintln!("SKIP: this kernel has no zero-copy sends");
            return;
        }
        let (shard, address) = ring.run(serving(ring.clone(), config));
        let mut producer = Client::new(address, produce_frame(0, &batch(60_000)), 5);
        run_beside(&ring, || producer.run(40, assert_appended));
        let mut consumer = Client::new(address, fetch_frame(10, 128 << 10), 2);
        run_beside(&ring, || consumer.run(200, assert_fetched));
        let (before, known) = (shard.counters(), shard.transfers().egress(egress));
        let allocations = run_beside(&ring, || consumer.run(FETCHES, assert_fetched));
        let (after, counted) = (shard.counters(), shard.transfers().egress(egress));
        let calls = (after.ring.system_calls - before.ring.system_calls) as f64 / f64::from(FETCHES);
        let (lent, sent) = (after.zero_copy.sends - before.zero_copy.sends, counted.sends - known.sends);
        let plain = counted.plain_sends - known.plain_sends;
        println!("{egress}: {allocations} allocations, {calls:.2} calls a fetch, {:?}", after.zero_copy);
        assert!(allocations <= 32, "{egress}: {allocations} allocations in {FETCHES} fetches");
        assert!(calls <= calls_max, "{egress}: {calls:.2} calls a fetch");
        let bytes = after.zero_copy.sent_bytes - before.zero_copy.sent_bytes;
        // All but the few that met the bound.
        assert!(
            lent >= FETCHES as u64 * 9 / 10 && sent - plain == lent,
            "{lent} of {sent} sends, {plain} plain"
        );
        assert!(bytes >= FETCHES as u64 * 9 / 10 * 100_000, "{bytes} bytes were lent");
        assert_eq!(counted.fallback_bytes, 0, "{egress}: others carried some of it");
        ring.run(async move { shard.close().await }).unwrap();
        ring.shut_down();
        assert_eq!((ring.operations_in_flight(), ring.zero_copy().unreleased_bytes), (0, 0));
    }
}

/// A shard with a topic, on the calling thread's ring, and a broker on it.
async fn serving(ring: Ring, config: ShardConfig) -> (Shard, SocketAddr) {
    serving_segments(ring, config, LogConfig::default()).await
}

async fn serving_segments(ring: Ring, config: ShardConfig, log: LogConfig) -> (Shard, SocketAddr) {
    let shard = Shard::open(&ring, config).await.unwrap();
    let topic = TopicConfig { ack: Ack::Written, log, ..TopicConfig::default() };
    shard.create_topic(TOPIC, 4, topic).await.unwrap();
    let bound = bind(&shard, BrokerConfig::new("127.0.0.1:0".parse().unwrap())).unwrap();
    let address = bound.address();
    shard.spawn(async move {
        serve(bound).await;
    });
    (shard, address)
}

/// Runs the ring on this thread and `client` on another until the client is done. How often this thread allocated.
fn run_beside(ring: &Ring, client: impl FnOnce() + Send) -> u64 {
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (tell, inner) = (done.clone(), ring.clone());
        scope.spawn(move || {
            client();
            tell.store(true, Ordering::Release);
        });
        let until_done = async move {
            while !done.load(Ordering::Acquire) {
                inner.sleep(Duration::from_millis(2)).await;
            }
        };
        allocation_counter::measure(|| ring.run(until_done)).count_total
    })
}

#[test]
fn a_batch_costs_few_system_calls_and_is_written_once() {
    // 4 connections with 5 in flight. A quiet moment costs visits to the kernel too, so the clients are kept busy.
    for (ingress, _) in [PAIRS[0], PAIRS[2], PAIRS[5], PAIRS[6], PAIRS[10]] {
        for (batch_bytes, requests, calls_max) in [(16 << 10, 800, 1.0), (256 << 10, 80, 3.0)] {
            let served = Served::new(ingress, Egress::Tail);
            let clients = 4;
            let mut connected = (0..clients)
                .map(|partition| {
                    let frame = produce_frame(partition, &batch(batch_bytes));
                    let mut client = Client::new(served.address, frame, 5);
                    client.run(20, assert_appended);
                    client
                })
                .collect::<Vec<_>>();
            let before = served.counters().shard;
            std::thread::scope(|scope| {
                for client in &mut connected {
                    scope.spawn(move || client.run(requests, assert_appended));
                }
            });
            let after = served.counters().shard;
            let batches = f64::from(requests * clients);
            let calls = (after.ring.system_calls - before.ring.system_calls) as f64 / batches;
            let appended = (after.ingress_bytes - before.ingress_bytes) as f64;
            let written = (after.ring.write_bytes - before.ring.write_bytes) as f64 / appended;
            let copied = (after.ingress_copied_bytes - before.ingress_copied_bytes) as f64 / appended;
            println!(
                "{ingress}, {} KiB: {calls:.2} calls a batch, {written:.3} bytes written and {copied:.3} copied a byte",
                batch_bytes >> 10
            );
            // A large batch is received in two steps, and its file is looked at before it counts as written; or each time
            // that something has come is a call, and its head is written apart.
            let calls_max = calls_max
                + match ingress {
                    Ingress::Mapped => 1.0,
                    Ingress::Spliced => 2.0,
                    _ => 0.0,
                };
            assert!(calls <= calls_max, "{ingress}: {calls:.2} calls a batch of {batch_bytes} bytes");
            if ingress == Ingress::Mapped {
                assert!(written == 0.0, "what is received into the file is not written");
            } else if batch_bytes >= 256 << 10 {
                assert!(written <= 1.05, "{ingress}: {written:.3} bytes written for each appended");
            }
            served.engine.close().unwrap();
        }
    }
}

#[test]
fn connections_cut_short_leave_no_task_behind() {
    let served = Served::new(Ingress::Copy, Egress::Tail);
    let tasks = || {
        let count = |shard: Shard| async move { shard.ring().executor().live_tasks() };
        block_on(served.engine.on_shard(count)).unwrap()
    };
    let settled = |at_most: usize| {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            tasks() <= at_most
        })
    };
    let frame = produce_frame(0, &batch(100_000));
    let mut producer = Client::new(served.address, frame.clone(), 5);
    producer.run(20, assert_appended);
    // With two tasks of its own, which end with it.
    let before = tasks() - 2;
    drop(producer);
    for round in 0..40 {
        // A frame and a half, and gone: with a reset where the answer to the first was not read.
        let mut stream = TcpStream::connect(served.address).unwrap();
        stream.write_all(&frame).unwrap();
        let result = stream.write_all(&frame[..frame.len() / 2 + round]);
        assert!(result.is_ok() || result.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    }
    assert!(settled(before), "{} tasks, {before} before", tasks());
    served.engine.close().unwrap();
}
