//! What one client may ask for at most, and that nobody else notices when it asks for more.

mod common;

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Client, batch, produce_frame};
use ringlog::log::{BatchBuilder, crc32c};
use ringlog::sys::topology;
use ringlog::types::Timestamp;
use ringlog::{Ack, Engine, EngineConfig, TopicConfig, block_on};
use ringlog_broker::wire::create_topics::{CreatableTopic, CreateTopicsRequest, CreateTopicsResponse};
use ringlog_broker::wire::fetch::FetchTerms;
use ringlog_broker::wire::list_offsets::{
    ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic, TIMESTAMP_LATEST,
};
use ringlog_broker::wire::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use ringlog_broker::wire::produce::{ProduceRequestWriter, ProduceResponse, ProduceTerms};
use ringlog_broker::wire::{
    ApiKey, Encode, Encoder, ErrorCode, GappedFrame, Message, decode_response, encode_request,
};
use ringlog_broker::{BrokerConfig, start};

const TOPIC: &str = "limited";

struct Served {
    engine: Engine,
    address: SocketAddr,
    _home: tempfile::TempDir,
}

fn served(change: impl FnOnce(&mut BrokerConfig)) -> Served {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = EngineConfig::new(home.path());
    // Limits are a shard's.
    config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
    let engine = Engine::open(config).unwrap();
    let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    block_on(engine.create_topic(TOPIC, 2, topic)).unwrap();
    let mut broker = BrokerConfig::new("127.0.0.1:0".parse().unwrap());
    broker.auto_create_topics = false;
    change(&mut broker);
    let serving = start(&engine, broker).unwrap();
    Served { address: serving.address(), engine, _home: home }
}

impl Served {
    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Somebody else is served, and the broker stops as it should.
    fn assert_serves_others(self) {
        self.client().produce(TOPIC, 0, &batch(&[b"still here"])).unwrap();
        self.engine.close().unwrap();
    }
}

/// Asks, and gives the frame of the answer.
fn ask<Q: Message + Encode>(client: &mut Client, version: i16, question: &Q) -> Vec<u8> {
    let header = client.header(Q::API, version);
    let mut bytes = Vec::new();
    encode_request(&mut Encoder::growing(&mut bytes), &header, question).unwrap();
    client.send(&bytes);
    client.receive()
}

#[test]
fn a_topic_asked_for_a_thousand_times_is_described_once() {
    let served = served(|_| {});
    let mut client = served.client();
    let wanted = MetadataRequestTopic { name: Some(TOPIC), ..Default::default() };
    let request = MetadataRequest { topics: Some(vec![wanted; 1000]), ..Default::default() };
    let frame = ask(&mut client, 9, &request);
    let (_, response) = decode_response::<MetadataResponse<'_>>(&frame, 9).unwrap();
    assert_eq!(response.topics.len(), 1);
    assert_eq!(response.topics[0].partitions.len(), 2);
    served.assert_serves_others();
}

#[test]
fn an_answer_larger_than_a_lease_arrives_whole() {
    let served = served(|_| {});
    let mut client = served.client();
    let names = (0..40_000).map(|number| format!("{number:0>60}")).collect::<Vec<_>>();
    let topics = names.iter().map(|name| MetadataRequestTopic { name: Some(name), ..Default::default() });
    let request = MetadataRequest { topics: Some(topics.collect()), ..Default::default() };
    let frame = ask(&mut client, 9, &request);
    assert!(frame.len() > 2 << 20, "{} bytes", frame.len());
    let (_, response) = decode_response::<MetadataResponse<'_>>(&frame, 9).unwrap();
    assert_eq!(response.topics.len(), names.len());
    for (topic, name) in response.topics.iter().zip(&names) {
        assert_eq!((topic.name, topic.error_code), (Some(&**name), ErrorCode::UnknownTopicOrPartition));
    }
    served.assert_serves_others();
}

#[test]
fn a_partition_listed_twice_is_an_invalid_request() {
    let served = served(|_| {});
    let mut client = served.client();
    let partition = |partition_index| ListOffsetsPartition {
        partition_index,
        timestamp: TIMESTAMP_LATEST,
        ..Default::default()
    };
    let partitions = vec![partition(0), partition(1), partition(0)];
    let topics = vec![ListOffsetsTopic { name: TOPIC, partitions }];
    let request = ListOffsetsRequest { replica_id: -1, topics, ..Default::default() };
    let frame = ask(&mut client, 6, &request);
    let (_, response) = decode_response::<ListOffsetsResponse<'_>>(&frame, 6).unwrap();
    let codes = response.topics[0].partitions.iter().map(|p| (p.partition_index, p.error_code));
    let invalid = ErrorCode::InvalidRequest;
    assert_eq!(codes.collect::<Vec<_>>(), [(0, invalid), (1, ErrorCode::None), (0, invalid)]);
    served.assert_serves_others();
}

#[test]
fn one_request_creates_ten_thousand_partitions_at_most() {
    let served = served(|_| {});
    let mut client = served.client();
    let topic = |name, num_partitions| CreatableTopic {
        name,
        num_partitions,
        replication_factor: 1,
        ..Default::default()
    };
    let topics = vec![topic("first", 6000), topic("second", 6000), topic("third", 4000)];
    let request = CreateTopicsRequest { topics, validate_only: true, ..Default::default() };
    let frame = ask(&mut client, 5, &request);
    let (_, response) = decode_response::<CreateTopicsResponse<'_>>(&frame, 5).unwrap();
    let codes = response.topics.iter().map(|t| t.error_code).collect::<Vec<_>>();
    assert_eq!(codes, [ErrorCode::None, ErrorCode::PolicyViolation, ErrorCode::None]);
    let words = response.topics[1].error_message.as_deref().unwrap();
    assert!(words.contains("6000") && words.contains("10000") && words.contains("4000"), "{words}");
    served.assert_serves_others();
}

#[test]
fn batches_of_a_transaction_and_zstd_before_its_time_are_refused() {
    let served = served(|_| {});
    let mut client = served.client();
    let now = Timestamp(1_700_000_000_000);
    let mut builder = BatchBuilder::new(now);
    builder.set_transactional(true);
    builder.push(now, None, Some(b"half of a deed"), &[]);
    assert_eq!(client.produce(TOPIC, 0, builder.finish()), Err(ErrorCode::InvalidTxnState));

    // Attributes stand at 21, the checksum of what follows it at 17.
    let mut zstd = batch(&[b"not really compressed, but nobody looks"]);
    zstd[22] |= 4;
    let crc = crc32c(&zstd[21..]);
    zstd[17..21].copy_from_slice(&crc.to_be_bytes());
    let mut outcome_in = |version| {
        let header = client.header(ApiKey::Produce, version);
        client.send(&produce_frame(&header, 1, TOPIC, &[(0, &zstd)]));
        let frame = client.receive();
        let (_, response) = decode_response::<ProduceResponse<'_>>(&frame, version).unwrap();
        let topic = response.topics.iter().next().unwrap();
        topic.partitions.iter().next().unwrap().error_code
    };
    assert_eq!(outcome_in(6), ErrorCode::UnsupportedCompressionType);
    assert_eq!(outcome_in(7), ErrorCode::None);
    served.assert_serves_others();
}

#[test]
fn a_request_for_more_partitions_than_anybody_has_ends_its_connection() {
    let served = served(|_| {});
    let mut client = served.client();
    let header = client.header(ApiKey::Produce, 9);
    let mut frame = GappedFrame::default();
    let terms = ProduceTerms { transactional_id: None, acks: 1, timeout_ms: 1000 };
    let mut writer = ProduceRequestWriter::begin(&mut frame, &header, &terms, 1).unwrap();
    writer.topic(TOPIC, &[0; 16], 200_000);
    (0..200_000).for_each(|index| writer.partition(index, 0));
    writer.finish().unwrap();
    client.send(&frame.bytes);
    client.expect_closed("200,000 partitions in one request");
    served.assert_serves_others();
}

#[test]
fn a_fetch_request_is_no_larger_than_any_other_that_carries_no_records() {
    let served = served(|_| {});
    let mut client = served.client();
    // Length, key 1, version 12: the rest is never waited for.
    let mut start = (5i32 << 20).to_be_bytes().to_vec();
    start.extend_from_slice(&[0, 1, 0, 12]);
    client.stream.write_all(&start).unwrap();
    client.expect_closed("a Fetch request of 5 MiB");
    served.assert_serves_others();
}

#[test]
fn a_connection_that_says_nothing_is_closed_and_one_that_waits_is_not() {
    let served = served(|config| config.silence_max = Duration::from_millis(300));
    let silent = served.client();
    let mut stuck = served.client();
    stuck.send(&[0, 0, 4, 0, 0, 3]);
    let mut waiting = served.client();
    let began = Instant::now();
    let terms = FetchTerms { max_wait_ms: 1500, min_bytes: 1, max_bytes: 1000, ..FetchTerms::default() };
    let fetched = waiting.fetch_with(TOPIC, 0, 0, &terms);
    assert_eq!((fetched.error, fetched.records.len()), (ErrorCode::None, 0));
    assert!(began.elapsed() >= Duration::from_millis(1500), "a long poll is not silence");
    silent.expect_closed("a silent connection");
    stuck.expect_closed("a connection stuck in the middle of a frame");
    served.assert_serves_others();
}
