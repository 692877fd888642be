//! How many instructions the pure functions take. `scripts/instructions` holds them against the kept counts.
//!
//! Each function runs once under callgrind, in a process of its own, with an empty environment and without address
//! randomisation; what `setup` makes is not counted, and is leaked so that nothing is freed while counting. What takes
//! a few dozen instructions is done a thousand times, so that the slack of the gate is more than one instruction.
//!
//! What is counted is not what a modern processor runs. On a host with AVX2 valgrind 3.19 shows a fixed, older processor
//! that has it; on one with AVX-512 and VPCLMULQDQ both were seen to be hidden. `crc-fast` then takes its SSE path, 16
//! bytes at a time, and the C library its copies for AVX2. So the counts follow valgrind rather than the host, and the
//! CRC has a larger part in them than in earnest: whether it is fast is told by the times in `pure.rs`.

use std::hint::black_box;

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use ringlog::log::{
    BatchBuilder, BatchHeader, EpochCache, EpochOwner, HeaderWalk, Log, LogConfig, OffsetIndex, Records,
    TimeIndex, WalkStep, check_produced, stamp, stamp_append_time,
};
use ringlog::types::{Epoch, Offset, Position, Timestamp};
use ringlog_broker::wire::fetch::{
    FetchOutcome, FetchPartition, FetchRequest, FetchRequestWriter, FetchResponseTerms, FetchResponseWriter,
    FetchTerms,
};
use ringlog_broker::wire::produce::{
    ProduceOutcome, ProduceRequest, ProduceResponseWriter, ProduceTerms, encode_produce_prefix,
};
use ringlog_broker::wire::{
    ApiKey, Decoder, Encoder, GappedFrame, Message, PREFIX_BYTES, ProduceHead, RequestHeader, Segment,
};

/// How often the short ones are done.
const TIMES: i64 = 1000;
const TOPIC: &str = "measurements";
const TOPIC_ID: [u8; 16] = [7; 16];
const PRODUCE_VERSION: i16 = 13;
const FETCH_VERSION: i16 = 18;

// Batches.

/// A batch of nearly that many bytes. Building it computes a CRC: how it is done on this processor is known thereafter.
fn batch(bytes: usize, value_bytes: usize) -> &'static mut [u8] {
    let mut builder = BatchBuilder::new(Timestamp(1));
    while builder.count() == 0 || builder.bytes() + value_bytes + 32 < bytes {
        builder.push(Timestamp(1), Some(b"sensor 7"), Some(&vec![7; value_bytes]), &[]);
    }
    builder.finish().to_vec().leak()
}

#[library_benchmark]
#[bench::of_1_kib(args = (1 << 10, 900), setup = batch)]
#[bench::of_16_kib(args = (16 << 10, 1024), setup = batch)]
#[bench::of_256_kib(args = (256 << 10, 1024), setup = batch)]
fn check_batch(batch: &'static mut [u8]) -> BatchHeader {
    check_produced(black_box(batch)).expect("it was built well")
}

#[library_benchmark]
#[bench::of_16_kib(args = (16 << 10, 100), setup = batch)]
fn walk_records(batch: &'static mut [u8]) -> usize {
    let records = Records::new(black_box(batch)).expect("it was built well");
    records.map(|record| record.expect("it was built well").value.map_or(0, <[u8]>::len)).sum()
}

#[library_benchmark]
#[bench::thousand(args = (1 << 10, 900), setup = batch)]
fn stamp_batch(batch: &'static mut [u8]) {
    for number in 0..TIMES {
        stamp(black_box(batch), black_box(Offset(number)), black_box(Epoch(3)));
    }
}

#[library_benchmark]
#[bench::of_16_kib(args = (16 << 10, 1024), setup = batch)]
fn stamp_time(batch: &'static mut [u8]) {
    stamp_append_time(black_box(batch), black_box(Timestamp(5)));
}

// Looking up.

/// Places to look at, far apart, and the same in every run.
fn places(end: i64) -> impl Iterator<Item = i64> {
    (1..=TIMES).map(move |number| black_box(number * 1_234_567 % end))
}

const INDEX_ENTRIES: i64 = 262_144;

/// The index of a full segment: batches of 16 records and 4 KiB, each with its entry.
fn offset_index() -> &'static OffsetIndex {
    let mut index = OffsetIndex::new(Offset(0), 4095);
    for number in 0..INDEX_ENTRIES {
        let (base, last) = (Offset(number * 16), Offset(number * 16 + 15));
        index.note_batch(base, last, Position(number as u64 * 4096), 4096);
    }
    Box::leak(Box::new(index))
}

#[library_benchmark]
#[bench::thousand(setup = offset_index)]
fn look_up_offset(index: &'static OffsetIndex) {
    for offset in places(INDEX_ENTRIES * 16) {
        black_box(index.floor(Offset(offset)));
    }
}

fn time_index() -> &'static TimeIndex {
    let mut index = TimeIndex::new(Offset(0));
    for number in 0..INDEX_ENTRIES {
        index.note(Timestamp(number * 10), Offset(number * 16 + 15));
    }
    Box::leak(Box::new(index))
}

#[library_benchmark]
#[bench::thousand(setup = time_index)]
fn look_up_time(index: &'static TimeIndex) {
    for time in places(INDEX_ENTRIES * 10) {
        black_box(index.floor(Timestamp(time)));
    }
}

const EPOCHS: i32 = 64;
const EPOCH_RECORDS: i64 = 100_000;

fn epochs() -> &'static EpochCache {
    let mut epochs = EpochCache::new();
    (0..EPOCHS).for_each(|epoch| epochs.assign(Epoch(epoch), Offset(i64::from(epoch) * EPOCH_RECORDS)));
    Box::leak(Box::new(epochs))
}

#[library_benchmark]
#[bench::thousand(setup = epochs)]
fn look_up_epoch_of_offset(epochs: &'static EpochCache) {
    for offset in places(i64::from(EPOCHS) * EPOCH_RECORDS) {
        black_box(epochs.epoch_at(Offset(offset)));
    }
}

#[library_benchmark]
#[bench::thousand(setup = epochs)]
fn look_up_end_of_epoch(epochs: &'static EpochCache) {
    for epoch in places(i64::from(EPOCHS)) {
        black_box(epochs.end_offset_for(Epoch(epoch as i32), Offset(10_000_000)));
    }
}

const WALK_BATCHES: i64 = 64;

/// The bytes that a walk reads at a time: 64 batches of 1 KiB, stamped one behind the other.
fn walk_bytes() -> &'static [u8] {
    let one = batch(1 << 10, 900);
    let mut bytes = Vec::new();
    for number in 0..WALK_BATCHES {
        stamp(one, Offset(number), Epoch(0));
        bytes.extend_from_slice(one);
    }
    bytes.leak()
}

#[library_benchmark]
#[bench::of_64_batches(setup = walk_bytes)]
fn walk_headers(bytes: &'static [u8]) -> WalkStep {
    let (last, end) = (Offset(WALK_BATCHES - 1), Position(bytes.len() as u64));
    let step = HeaderWalk::to_offset(black_box(last), Position(0), end).feed(Position(0), black_box(bytes));
    assert!(matches!(step, WalkStep::Found(found) if found.base_offset == last), "{step:?}");
    step
}

// Placing and planning.

const LOG_BATCHES: i64 = 10_000;

fn log_config() -> LogConfig {
    LogConfig { segment_bytes_max: 16 << 20, ..LogConfig::default() }
}

/// A log of some ten segments, with batches of 16 KiB, and the header of one more.
fn log() -> (&'static mut Log, BatchHeader) {
    let header = check_produced(batch(16 << 10, 1024)).expect("it was built well");
    let mut log = Log::new(log_config(), EpochOwner::Local, Offset(0));
    for _ in 0..LOG_BATCHES {
        if log.needs_roll(header.bytes, header.count, Timestamp(1)) {
            log.roll();
        }
        log.append_local(&header, Timestamp(1));
    }
    (Box::leak(Box::new(log)), header)
}

/// A log with an empty segment that a thousand batches do not fill.
fn rolled_log() -> (&'static mut Log, BatchHeader) {
    let (log, header) = log();
    log.roll();
    (log, header)
}

#[library_benchmark]
#[bench::thousand(setup = rolled_log)]
fn place_batch((log, header): (&'static mut Log, BatchHeader)) {
    for _ in 0..TIMES {
        assert!(!log.needs_roll(header.bytes, header.count, Timestamp(2)), "the segment has room");
        black_box(log.append_local(black_box(&header), black_box(Timestamp(2))));
    }
}

#[library_benchmark]
#[bench::thousand(setup = log)]
fn plan_fetch((log, _): (&'static mut Log, BatchHeader)) {
    let end = log.log_end();
    for offset in places(end.offset.0) {
        black_box(log.locate(Offset(offset), black_box(1 << 20), end)).expect("the offset is in the log");
    }
}

// Requests as they come, without the length before them.

fn header(api: ApiKey, version: i16) -> RequestHeader<'static> {
    RequestHeader { api, version, correlation_id: 7, client_id: Some("counter") }
}

fn produce_request() -> &'static [u8] {
    let batch = batch(16 << 10, 1024);
    let mut frame = GappedFrame::default();
    let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 30_000 };
    let partitions = [(3, batch.len() as u64)];
    let header = header(ApiKey::Produce, PRODUCE_VERSION);
    encode_produce_prefix(&mut frame, &header, &terms, (TOPIC, &TOPIC_ID), &partitions)
        .expect("the request fits");
    let parts = frame.segments().map(|segment| match segment {
        Segment::Bytes(bytes) => bytes,
        Segment::Records { .. } => &*batch,
    });
    parts.collect::<Vec<_>>().concat().split_off(PREFIX_BYTES).leak()
}

#[library_benchmark]
#[bench::of_16_kib(setup = produce_request)]
fn decode_produce(frame: &'static [u8]) {
    let mut decoder = Decoder::new(black_box(frame));
    let header = RequestHeader::decode(&mut decoder).expect("it was written well");
    let request = ProduceRequest::decode_from(&mut decoder, header.version).expect("it was written well");
    for topic in request.topics.iter() {
        for partition in topic.partitions.iter() {
            black_box(partition);
        }
    }
}

#[library_benchmark]
#[bench::of_16_kib(setup = produce_request)]
fn look_at_produce_head(frame: &'static [u8]) -> ProduceHead<'static> {
    ProduceHead::look(black_box(frame)).expect("it is one produce of one batch")
}

const FETCH_PARTITIONS: i32 = 10;

fn fetch_request() -> &'static [u8] {
    let mut bytes = Vec::new();
    let header = header(ApiKey::Fetch, FETCH_VERSION);
    let encoder = Encoder::growing(&mut bytes);
    let mut writer =
        FetchRequestWriter::begin(encoder, &header, &FetchTerms::default(), 1).expect("it is served");
    writer.topic(TOPIC, &TOPIC_ID, FETCH_PARTITIONS as usize);
    for index in 0..FETCH_PARTITIONS {
        let partition_max_bytes = 1 << 20;
        writer.partition(&FetchPartition {
            index,
            fetch_offset: 1_000_000,
            partition_max_bytes,
            ..FetchPartition::default()
        });
    }
    writer.finish(&[]).expect("the request fits");
    bytes.split_off(PREFIX_BYTES).leak()
}

#[library_benchmark]
#[bench::of_10_partitions(setup = fetch_request)]
fn decode_fetch(frame: &'static [u8]) {
    let mut decoder = Decoder::new(black_box(frame));
    let header = RequestHeader::decode(&mut decoder).expect("it was written well");
    let request = FetchRequest::decode_from(&mut decoder, header.version).expect("it was written well");
    for topic in request.topics.iter() {
        for partition in topic.partitions.iter() {
            black_box(partition);
        }
    }
}

// Answers, into memory that is there already.

fn answer() -> &'static mut GappedFrame {
    Box::leak(Box::new(GappedFrame::with_capacity(64 << 10, 64)))
}

#[library_benchmark]
#[bench::of_10_partitions(setup = answer)]
fn encode_fetch_answer(frame: &'static mut GappedFrame) -> u64 {
    let terms = FetchResponseTerms::default();
    let mut writer =
        FetchResponseWriter::begin(frame, black_box(7), FETCH_VERSION, &terms, 1).expect("it is served");
    writer.topic(TOPIC, &TOPIC_ID, FETCH_PARTITIONS as usize);
    for index in 0..FETCH_PARTITIONS {
        writer.partition(black_box(&FetchOutcome::read(index, 1_000_000, 0, 16 << 10)));
    }
    writer.finish(&[]).expect("the answer fits")
}

#[library_benchmark]
#[bench::of_1_partition(args = (1), setup = answer_of)]
#[bench::of_10_partitions(args = (10), setup = answer_of)]
fn encode_produce_answer((frame, partitions): (&'static mut GappedFrame, i32)) -> u64 {
    let encoder = Encoder::growing(&mut frame.bytes);
    let mut writer =
        ProduceResponseWriter::begin(encoder, black_box(7), PRODUCE_VERSION, 1).expect("it is served");
    writer.topic(TOPIC, &TOPIC_ID, partitions as usize);
    for index in 0..partitions {
        writer.partition(black_box(&ProduceOutcome::appended(index, 1_000_000, -1, 0)));
    }
    writer.finish(0, &[]).expect("the answer fits")
}

fn answer_of(partitions: i32) -> (&'static mut GappedFrame, i32) {
    (answer(), partitions)
}

library_benchmark_group!(
    name = log,
    benchmarks = [
        check_batch,
        walk_records,
        stamp_batch,
        stamp_time,
        look_up_offset,
        look_up_time,
        look_up_epoch_of_offset,
        look_up_end_of_epoch,
        walk_headers,
        place_batch,
        plan_fetch
    ]
);

library_benchmark_group!(
    name = wire,
    benchmarks =
        [decode_produce, look_at_produce_head, decode_fetch, encode_fetch_answer, encode_produce_answer]
);

main!(
    config = LibraryBenchmarkConfig::default().env_clear(true).tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [log, wire]
);
