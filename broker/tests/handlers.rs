//! What the handlers promise beyond bytes in and bytes out: epochs, limits, names, ids, stops; and that a length is
//! given memory only as it comes true. The broker runs inside the test, so that its counters can be asked.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use ringlog::log::BatchBuilder;
use ringlog::sys::topology;
use ringlog::types::Timestamp;
use ringlog::{Ack, Engine, EngineConfig, TopicConfig, block_on};
use ringlog_broker::wire::api_versions::{ApiVersionsRequest, ApiVersionsResponse};
use ringlog_broker::wire::create_topics::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig, CreateTopicsRequest,
    CreateTopicsResponse,
};
use ringlog_broker::wire::fetch::{
    EpochEndOffset, FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms,
};
use ringlog_broker::wire::list_offsets::{
    ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse, ListOffsetsTopic,
};
use ringlog_broker::wire::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use ringlog_broker::wire::produce::{ProduceRequestWriter, ProduceResponse, ProduceTerms};
use ringlog_broker::wire::{
    ApiKey, Encode, Encoder, ErrorCode, GappedFrame, Message, RequestHeader, Segment, Uuid, decode_response,
    encode_request,
};
use ringlog_broker::{BrokerConfig, Serving, start};

/// Whoever waits that long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const TOPIC: &str = "events";

struct Served {
    engine: Engine,
    address: SocketAddr,
    serving: Serving,
    _home: tempfile::TempDir,
}

/// On every core that there is.
fn served(change: impl FnOnce(&mut BrokerConfig)) -> Served {
    served_on(topology::usable_cores().unwrap(), change)
}

fn served_on(cores: Vec<usize>, change: impl FnOnce(&mut BrokerConfig)) -> Served {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = EngineConfig::new(home.path());
    config.cores = Some(cores);
    config.shard.arena_bytes_max = 128 << 20;
    config.shard.tail_cache_bytes_max = 8 << 20;
    config.shard.topic_defaults.ack = Ack::Written;
    let engine = Engine::open(config).unwrap();
    let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    block_on(engine.create_topic(TOPIC, 3, topic)).unwrap();
    let mut broker = BrokerConfig::new("127.0.0.1:0".parse().unwrap());
    change(&mut broker);
    let serving = start(&engine, broker).unwrap();
    Served { engine, address: serving.address(), serving, _home: home }
}

impl Served {
    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, correlation_id: 0, words: None }
    }

    fn leased_bytes(&self) -> u64 {
        block_on(self.engine.counters()).unwrap().iter().map(|c| c.shard.arena.leased_bytes).sum()
    }
}

struct Client {
    stream: TcpStream,
    correlation_id: i32,
    /// What the last Produce response said beside its code.
    words: Option<String>,
}

/// The answer for one partition.
#[derive(Debug, PartialEq)]
struct Fetched {
    error: ErrorCode,
    high_watermark: i64,
    diverging: EpochEndOffset,
    record_bytes: usize,
}

impl Client {
    fn header(&mut self, api: ApiKey, version: i16) -> RequestHeader<'static> {
        self.correlation_id += 1;
        RequestHeader { api, version, correlation_id: self.correlation_id, client_id: Some("a test") }
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; i32::from_be_bytes(prefix) as usize];
        self.stream.read_exact(&mut frame).unwrap();
        frame
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
            || self.stream.take_error().is_ok_and(|error| error.is_some())
    }

    /// Asks, and gives the frame of the answer.
    fn ask<Q: Message + Encode>(&mut self, version: i16, question: &Q) -> Vec<u8> {
        let header = self.header(Q::API, version);
        let mut bytes = Vec::new();
        encode_request(&mut Encoder::growing(&mut bytes), &header, question).unwrap();
        self.stream.write_all(&bytes).unwrap();
        self.receive()
    }

    /// Produces to partition 0, by id if `version` wants it so.
    fn produce(&mut self, version: i16, topic: (&str, &Uuid), batch: &[u8]) -> (ErrorCode, i64) {
        let header = self.header(ApiKey::Produce, version);
        let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 1000 };
        let mut frame = GappedFrame::default();
        let mut writer = ProduceRequestWriter::begin(&mut frame, &header, &terms, 1).unwrap();
        writer.topic(topic.0, topic.1, 1);
        writer.partition(0, batch.len() as u64);
        writer.finish().unwrap();
        for segment in frame.segments() {
            match segment {
                Segment::Bytes(bytes) => self.stream.write_all(bytes).unwrap(),
                Segment::Records { .. } => self.stream.write_all(batch).unwrap(),
            }
        }
        let answer = self.receive();
        let (_, answer) = decode_response::<ProduceResponse<'_>>(&answer, version).unwrap();
        let partition = answer.topics.iter().next().unwrap().partitions.iter().next().unwrap();
        self.words = partition.error_message.map(str::to_owned);
        (partition.error_code, partition.base_offset)
    }

    fn send_fetch(
        &mut self,
        version: i16,
        terms: &FetchTerms<'_>,
        topic: (&str, &Uuid),
        wanted: &[FetchPartition],
    ) {
        let header = self.header(ApiKey::Fetch, version);
        let mut bytes = Vec::new();
        let encoder = Encoder::growing(&mut bytes);
        let mut writer = FetchRequestWriter::begin(encoder, &header, terms, 1).unwrap();
        writer.topic(topic.0, topic.1, wanted.len());
        wanted.iter().for_each(|partition| writer.partition(partition));
        writer.finish(&[]).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn receive_fetch(&mut self, version: i16) -> (ErrorCode, Vec<Fetched>) {
        let frame = self.receive();
        let (_, answer) = decode_response::<FetchResponse<'_>>(&frame, version).unwrap();
        let partitions = answer.topics.iter().flat_map(|topic| topic.partitions.iter().collect::<Vec<_>>());
        let fetched = partitions.map(|p| Fetched {
            error: p.error_code,
            high_watermark: p.high_watermark,
            diverging: p.diverging_epoch,
            record_bytes: p.records.map_or(0, |records| records.len()),
        });
        (answer.error_code, fetched.collect())
    }

    fn fetch(&mut self, wanted: FetchPartition) -> Fetched {
        self.send_fetch(12, &terms(), (TOPIC, &NO_ID), &[wanted]);
        self.receive_fetch(12).1.remove(0)
    }
}

const NO_ID: Uuid = [0; 16];

fn terms() -> FetchTerms<'static> {
    FetchTerms { max_bytes: 1 << 20, ..FetchTerms::default() }
}

fn at(offset: i64) -> FetchPartition {
    FetchPartition { fetch_offset: offset, partition_max_bytes: 1 << 20, ..FetchPartition::default() }
}

fn batch_of(value_bytes: usize, timestamp: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(timestamp));
    builder.push(Timestamp(timestamp), None, Some(&vec![7; value_bytes]), &[]);
    builder.finish().to_vec()
}

#[test]
fn a_promised_length_gets_memory_only_as_it_comes_true() {
    let served = served(|_| {});
    let before = served.leased_bytes();
    let promise = |length: i32, api: i16| [&length.to_be_bytes()[..], &api.to_be_bytes(), &[0, 9]].concat();
    let mut clients: Vec<Client> = (0..12).map(|_| served.client()).collect();
    for client in &mut clients {
        client.stream.write_all(&promise(60 << 20, ApiKey::Produce.number())).unwrap();
    }
    // By the time that a later connection is answered twice, the promises were seen.
    let mut bystander = served.client();
    for _ in 0..2 {
        assert_eq!(bystander.produce(9, (TOPIC, &NO_ID), &batch_of(10, 1)).0, ErrorCode::None);
    }
    let leased = served.leased_bytes() - before;
    assert!(leased < 20 << 20, "twelve promises of 60 MiB were given {leased} bytes");
    // What carries no records may not even promise that much, and is told so before it sends.
    let mut cold = served.client();
    cold.stream.write_all(&promise(60 << 20, ApiKey::Metadata.number())).unwrap();
    assert!(cold.is_closed());
}

#[test]
fn a_refused_batch_is_told_why() {
    let served = served(|_| {});
    let mut client = served.client();
    let mut bad = batch_of(10, 1);
    *bad.last_mut().unwrap() ^= 1;
    let refused = (ErrorCode::CorruptMessage, -1);
    assert_eq!(client.produce(9, (TOPIC, &NO_ID), &bad), refused);
    assert!(client.words.as_deref().is_some_and(|words| words.contains("CRC")), "{:?}", client.words);
    assert_eq!(client.produce(9, (TOPIC, &NO_ID), &[]), (ErrorCode::CorruptMessage, -1));
    assert!(client.words.is_some());
    assert_eq!(client.produce(9, (TOPIC, &NO_ID), &batch_of(10, 1)), (ErrorCode::None, 0));
    assert_eq!(client.words, None);
    // Before version 8 there is no place for words.
    assert_eq!(client.produce(7, (TOPIC, &NO_ID), &bad), refused);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_leave_room_when_others_go() {
    let one_core = topology::usable_cores().unwrap()[..1].to_vec();
    let served = served_on(one_core, |config| config.connections_max = 2);
    let good = batch_of(10, 1);
    let (mut one, mut two) = (served.client(), served.client());
    assert_eq!(one.produce(9, (TOPIC, &NO_ID), &good), (ErrorCode::None, 0));
    assert_eq!(two.produce(9, (TOPIC, &NO_ID), &good), (ErrorCode::None, 1));
    assert!(served.client().is_closed());
    one.stream.shutdown(Shutdown::Both).unwrap();
    let mut answered = false;
    for _ in 0..1000 {
        let mut three = served.client();
        let _ = three.stream.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff]);
        answered |= matches!(three.stream.read(&mut [0; 4]), Ok(4));
        if answered {
            break;
        }
    }
    assert!(answered, "one left, so one may come");
}

#[test]
fn epochs_that_a_client_knows_are_compared_with_ours() {
    let served = served(|_| {});
    let mut client = served.client();
    assert_eq!(client.produce(9, (TOPIC, &NO_ID), &batch_of(10, 1)).0, ErrorCode::None);
    let epoch = {
        let question = MetadataRequest::default();
        let frame = client.ask(12, &question);
        let (_, answer) = decode_response::<MetadataResponse<'_>>(&frame, 12).unwrap();
        answer.topics[0].partitions[0].leader_epoch
    };
    let knowing = |current_leader_epoch| FetchPartition { current_leader_epoch, ..at(0) };
    assert_eq!(client.fetch(knowing(epoch)).error, ErrorCode::None);
    assert_eq!(client.fetch(knowing(epoch + 1)).error, ErrorCode::UnknownLeaderEpoch);
    if epoch > 0 {
        assert_eq!(client.fetch(knowing(epoch - 1)).error, ErrorCode::FencedLeaderEpoch);
    }
    let last = |offset, last_fetched_epoch| FetchPartition { last_fetched_epoch, ..at(offset) };
    let fetched = client.fetch(last(0, epoch));
    assert_eq!((fetched.error, fetched.diverging), (ErrorCode::None, EpochEndOffset::default()));
    // A reader that is beyond our end has records that we lost; one from an unknown reign gets no silent answer.
    let fetched = client.fetch(last(7, epoch));
    assert_eq!(fetched.diverging, EpochEndOffset { epoch, end_offset: 1 });
    let fetched = client.fetch(last(0, epoch + 1));
    let told = fetched.error == ErrorCode::OffsetOutOfRange || fetched.diverging != EpochEndOffset::default();
    assert!(told, "{fetched:?}");
}

#[test]
fn a_full_session_epoch_is_a_full_fetch_and_any_other_has_no_session() {
    let served = served(|_| {});
    let mut client = served.client();
    for (session_id, session_epoch, wanted) in [
        (0, -1, ErrorCode::None),
        (0, 0, ErrorCode::None),
        (5, -1, ErrorCode::None),
        (5, 3, ErrorCode::FetchSessionIdNotFound),
        (0, 3, ErrorCode::FetchSessionIdNotFound),
    ] {
        let terms = FetchTerms { session_id, session_epoch, ..terms() };
        client.send_fetch(12, &terms, (TOPIC, &NO_ID), &[at(0)]);
        assert_eq!(client.receive_fetch(12).0, wanted, "session {session_id}, epoch {session_epoch}");
    }
}

#[test]
fn an_answer_holds_what_was_asked_for_and_its_first_batch_in_any_case() {
    let served = served(|_| {});
    let mut client = served.client();
    let batch = batch_of(1000, 1);
    for offset in 0..4 {
        assert_eq!(client.produce(9, (TOPIC, &NO_ID), &batch), (ErrorCode::None, offset));
    }
    let mut bytes_for = |max_bytes, partition_max_bytes| {
        let wanted = FetchPartition { partition_max_bytes, ..at(0) };
        let again = FetchPartition { partition_max_bytes, ..at(1) };
        let beyond = FetchPartition { partition_max_bytes, ..at(99) };
        let terms = FetchTerms { max_bytes, ..terms() };
        client.send_fetch(12, &terms, (TOPIC, &NO_ID), &[wanted, again, beyond]);
        let (_, fetched) = client.receive_fetch(12);
        assert_eq!(fetched[2].error, ErrorCode::OffsetOutOfRange, "said although there was no room");
        (fetched[0].record_bytes / batch.len(), fetched[1].record_bytes / batch.len())
    };
    assert_eq!(bytes_for(1 << 20, 1 << 20), (4, 3));
    assert_eq!(bytes_for(1, 1), (1, 0), "the first batch comes whole, the second not at all");
    assert_eq!(bytes_for(1 << 20, 0), (1, 1), "a partition's limit lets its first batch pass");
    assert_eq!(bytes_for(-1, -1), (1, 0));
}

#[test]
fn long_polls_end_by_time_by_their_client_and_by_a_stop() {
    let served = served(|config| config.connections_max = 3);
    let weeks = FetchTerms { max_wait_ms: i32::MAX, min_bytes: 1, ..terms() };
    let mut timed = served.client();
    timed.send_fetch(12, &FetchTerms { max_wait_ms: 20, ..weeks }, (TOPIC, &NO_ID), &[at(0)]);
    assert_eq!(timed.receive_fetch(12).1[0].record_bytes, 0);

    let mut leaving = served.client();
    leaving.send_fetch(12, &weeks, (TOPIC, &NO_ID), &[at(0)]);
    leaving.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(leaving.receive_fetch(12).1[0].error, ErrorCode::None, "nobody stays behind for weeks");

    let nobody = (ErrorCode::UnknownTopicOrPartition, -1);
    let mut stopped = served.client();
    assert_eq!(stopped.produce(9, ("nobody", &NO_ID), &batch_of(1, 1)), nobody);
    stopped.send_fetch(12, &weeks, (TOPIC, &NO_ID), &[at(0)]);
    // One thread serves both, and receives in the order of arrival: when this one has two answers, the poll is under
    // way.
    for _ in 0..2 {
        assert_eq!(timed.produce(9, ("nobody", &NO_ID), &batch_of(1, 1)), nobody);
    }
    served.engine.close().unwrap();
    assert_eq!(stopped.receive_fetch(12).1[0].record_bytes, 0, "a stop answers what is under way");
    assert!(stopped.is_closed());
    let cut_off: usize = served.serving.ended().iter().flatten().map(|served| served.cut_off).sum();
    assert_eq!(cut_off, 0, "and waits for nobody who has all answers");
}

#[test]
fn topics_go_by_their_ids_too() {
    let served = served(|_| {});
    let mut client = served.client();
    let frame = client.ask(12, &MetadataRequest::default());
    let (_, answer) = decode_response::<MetadataResponse<'_>>(&frame, 12).unwrap();
    let (id, unknown) = (answer.topics[0].topic_id, [9; 16]);
    let good = batch_of(10, 1);
    assert_eq!(client.produce(13, ("", &id), &good), (ErrorCode::None, 0));
    assert_eq!(client.produce(13, ("", &unknown), &good), (ErrorCode::UnknownTopicId, -1));
    for version in [13, 15, 17, 18] {
        client.send_fetch(version, &terms(), ("", &id), &[at(0)]);
        assert_eq!(client.receive_fetch(version).1[0].record_bytes, good.len(), "version {version}");
        client.send_fetch(version, &terms(), ("", &unknown), &[at(0)]);
        assert_eq!(client.receive_fetch(version).1[0].error, ErrorCode::UnknownTopicId, "version {version}");
    }
    let by_id = |topic_id| MetadataRequestTopic { topic_id, name: None };
    let question = MetadataRequest { topics: Some(vec![by_id(id), by_id(unknown)]), ..Default::default() };
    let frame = client.ask(12, &question);
    let (_, answer) = decode_response::<MetadataResponse<'_>>(&frame, 12).unwrap();
    assert_eq!((answer.topics[0].name, answer.topics[0].error_code), (Some(TOPIC), ErrorCode::None));
    assert_eq!((answer.topics[1].name, answer.topics[1].error_code), (None, ErrorCode::UnknownTopicId));
}

#[test]
fn asking_creates_a_topic_only_where_broker_and_client_allow_it() {
    for (broker_allows, client_allows, name, wanted) in [
        (true, true, "new", ErrorCode::None),
        (true, false, "new", ErrorCode::UnknownTopicOrPartition),
        (false, true, "new", ErrorCode::UnknownTopicOrPartition),
        (true, true, "not/a/name", ErrorCode::InvalidTopicException),
        (true, true, "", ErrorCode::InvalidTopicException),
    ] {
        let served = served(|config| {
            config.auto_create_topics = broker_allows;
            config.default_partitions = 5;
            config.advertise = Some(("logs.example".to_owned(), 4242));
        });
        let topics = Some(vec![MetadataRequestTopic { name: Some(name), ..Default::default() }]);
        let question =
            MetadataRequest { topics, allow_auto_topic_creation: client_allows, ..Default::default() };
        let frame = served.client().ask(9, &question);
        let (_, answer) = decode_response::<MetadataResponse<'_>>(&frame, 9).unwrap();
        let partitions = if wanted.is_ok() { 5 } else { 0 };
        let topic = &answer.topics[0];
        assert_eq!((topic.error_code, topic.partitions.len()), (wanted, partitions), "{name}");
        assert_eq!((answer.brokers[0].host, answer.brokers[0].port), ("logs.example", 4242));
    }
}

#[test]
fn offsets_are_found_by_name_and_by_time() {
    let served = served(|_| {});
    let mut client = served.client();
    for timestamp in [100, 300, 200] {
        assert_eq!(client.produce(9, (TOPIC, &NO_ID), &batch_of(10, timestamp)).0, ErrorCode::None);
    }
    let mut look = |timestamp, current_leader_epoch| {
        let partition = ListOffsetsPartition { partition_index: 0, current_leader_epoch, timestamp };
        let topics = vec![ListOffsetsTopic { name: TOPIC, partitions: vec![partition] }];
        let frame = client.ask(8, &ListOffsetsRequest { replica_id: -1, topics, ..Default::default() });
        let (_, answer) = decode_response::<ListOffsetsResponse<'_>>(&frame, 8).unwrap();
        let found = &answer.topics[0].partitions[0];
        (found.error_code, found.offset, found.timestamp)
    };
    let ok = ErrorCode::None;
    assert_eq!(look(-1, -1), (ok, 3, -1), "latest");
    assert_eq!(look(-2, -1), (ok, 0, -1), "earliest");
    assert_eq!(look(-3, -1), (ok, 1, 300), "the largest timestamp");
    assert_eq!(look(-4, -1), (ok, 0, -1), "earliest local");
    assert_eq!(look(-5, -1), (ok, -1, -1), "tiered: there is none");
    assert_eq!(look(150, -1), (ok, 1, 300));
    assert_eq!(look(301, -1), (ok, -1, -1), "nothing that young");
    assert_eq!(look(-1, 1000), (ErrorCode::UnknownLeaderEpoch, -1, -1));
}

#[test]
fn topics_are_created_as_told_or_refused_in_words() {
    let served = served(|_| {});
    let mut client = served.client();
    let mut create = |topic: CreatableTopic<'_>, validate_only| {
        let question = CreateTopicsRequest { topics: vec![topic], validate_only, ..Default::default() };
        let frame = client.ask(7, &question);
        let (_, answer) = decode_response::<CreateTopicsResponse<'_>>(&frame, 7).unwrap();
        let made = &answer.topics[0];
        let words = made.error_message.clone().map(Cow::into_owned);
        assert_eq!(made.error_code.is_ok(), words.is_none(), "a refusal has words: {words:?}");
        (made.error_code, made.num_partitions)
    };
    let topic =
        |name| CreatableTopic { name, num_partitions: 2, replication_factor: 1, ..Default::default() };
    assert_eq!(create(topic("one"), true), (ErrorCode::None, 2));
    assert_eq!(create(topic("one"), false), (ErrorCode::None, 2), "validating has not made it");
    assert_eq!(create(topic("one"), true).0, ErrorCode::TopicAlreadyExists);
    assert_eq!(create(topic(".."), false).0, ErrorCode::InvalidTopicException);
    let three = CreatableTopic { replication_factor: 3, ..topic("two") };
    assert_eq!(create(three, false).0, ErrorCode::InvalidReplicationFactor);
    assert_eq!(
        create(CreatableTopic { num_partitions: 0, ..topic("two") }, false).0,
        ErrorCode::InvalidPartitions
    );
    for (name, value) in [
        ("no.such.setting", Some("1")),
        ("segment.bytes", Some("many")),
        ("segment.bytes", None),
        ("cleanup.policy", Some("compact")),
    ] {
        let configs = vec![CreatableTopicConfig { name, value }];
        assert_eq!(
            create(CreatableTopic { configs, ..topic("two") }, false).0,
            ErrorCode::InvalidConfig,
            "{name}"
        );
    }
    for (node, wanted) in [(0, ErrorCode::None), (7, ErrorCode::InvalidReplicaAssignment)] {
        let assignment = CreatableReplicaAssignment { partition_index: 0, broker_ids: vec![node] };
        let by_hand = CreatableTopic {
            num_partitions: -1,
            replication_factor: -1,
            assignments: vec![assignment],
            ..topic("by-hand")
        };
        assert_eq!(create(by_hand, false).0, wanted);
    }
}

#[test]
fn what_is_listed_is_served_and_names_its_versions() {
    let served = served(|_| {});
    let frame = served.client().ask(4, &ApiVersionsRequest::default());
    let (_, answer) = decode_response::<ApiVersionsResponse<'_>>(&frame, 4).unwrap();
    let listed: Vec<i16> = answer.api_keys.iter().map(|api| api.api_key).collect();
    assert_eq!(listed, [0, 1, 2, 3, 18, 19, 20, 21, 23, 32, 60]);
}
