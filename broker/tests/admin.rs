//! What administrators ask: deleting topics and records, settings, epochs, who is there. Through real sockets, on every
//! core there is, over a restart.

mod common;

use common::{Client, batch, batches_in, content};
use ringlog::sys::topology;
use ringlog::{Ack, Engine, EngineConfig, TopicConfig, block_on};
use ringlog_broker::wire::create_topics::*;
use ringlog_broker::wire::delete_records::*;
use ringlog_broker::wire::delete_topics::*;
use ringlog_broker::wire::describe_cluster::*;
use ringlog_broker::wire::describe_configs::*;
use ringlog_broker::wire::offset_for_leader_epoch::*;
use ringlog_broker::wire::{
    ApiKey, Decode, Encode, Encoder, ErrorCode, Message, decode_response, encode_request,
};
use ringlog_broker::{BrokerConfig, start};

const TOPIC: &str = "administered";
const PARTITIONS: i32 = 4;

struct Served {
    engine: Engine,
    client: Client,
}

fn serve(home: &std::path::Path) -> Served {
    let mut config = EngineConfig::new(home);
    config.cores = Some(topology::usable_cores().unwrap());
    config.shard.topic_defaults.ack = Ack::Written;
    config.shard.arena_bytes_max = 64 << 20;
    let engine = Engine::open(config).unwrap();
    let mut broker = BrokerConfig::new("127.0.0.1:0".parse().unwrap());
    broker.auto_create_topics = false;
    let serving = start(&engine, broker).unwrap();
    Served { client: Client::connect(serving.address()), engine }
}

impl Served {
    fn ask<Q: Message + Encode>(&mut self, version: i16, question: &Q) -> Vec<u8> {
        let header = self.client.header(Q::API, version);
        let mut bytes = Vec::new();
        encode_request(&mut Encoder::growing(&mut bytes), &header, question).unwrap();
        self.client.send(&bytes);
        self.client.receive()
    }

    fn delete_records(&mut self, version: i16, partition_index: i32, offset: i64) -> (i64, ErrorCode) {
        let partitions = vec![DeleteRecordsPartition { partition_index, offset }];
        let topics = vec![DeleteRecordsTopic { name: TOPIC, partitions }];
        let frame = self.ask(version, &DeleteRecordsRequest { topics, timeout_ms: 1000 });
        let (_, answer) = decode_response::<DeleteRecordsResponse<'_>>(&frame, version).unwrap();
        let partition = &answer.topics[0].partitions[0];
        (partition.low_watermark, partition.error_code)
    }

    fn epoch_end(&mut self, version: i16, partition: i32, current: i32, epoch: i32) -> EpochEndResult {
        let asked =
            OffsetForLeaderPartition { partition, current_leader_epoch: current, leader_epoch: epoch };
        let topics = vec![OffsetForLeaderTopic { topic: TOPIC, partitions: vec![asked] }];
        let frame = self.ask(version, &OffsetForLeaderEpochRequest { replica_id: -1, topics });
        let (_, answer) = decode_response::<OffsetForLeaderEpochResponse<'_>>(&frame, version).unwrap();
        answer.topics[0].partitions[0].clone()
    }
}

fn answer<'a, M: Message + Decode<'a>>(frame: &'a [u8], version: i16) -> M {
    decode_response(frame, version).unwrap().1
}

fn served() -> (tempfile::TempDir, Served) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let served = serve(home.path());
    let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    block_on(served.engine.create_topic(TOPIC, PARTITIONS, topic)).unwrap();
    (home, served)
}

#[test]
fn deleted_records_stay_deleted_and_what_is_beyond_the_end_is_refused() {
    let (home, mut served) = served();
    for partition in 0..PARTITIONS {
        for number in 0..5u8 {
            served.client.produce(TOPIC, partition, &batch(&[&[number; 100]])).unwrap();
        }
        let version = (partition % 3) as i16;
        assert_eq!(served.delete_records(version, partition, 2), (2, ErrorCode::None));
        assert_eq!(served.delete_records(version, partition, 1), (2, ErrorCode::None), "it never moves back");
        assert_eq!(served.delete_records(version, partition, 6), (-1, ErrorCode::OffsetOutOfRange));
        assert_eq!(served.delete_records(version, partition, -2), (-1, ErrorCode::OffsetOutOfRange));
        let below = served.client.fetch(TOPIC, partition, 1);
        assert_eq!(below.error, ErrorCode::OffsetOutOfRange);
        let found = served.client.fetch(TOPIC, partition, 2);
        assert_eq!(content(batches_in(&found.records)[0].1), content(&batch(&[&[2; 100]])));
    }
    assert_eq!(served.delete_records(2, 3, -1), (5, ErrorCode::None), "-1 is the high watermark");
    assert_eq!(served.delete_records(2, 9, 0), (-1, ErrorCode::UnknownTopicOrPartition));
    // As after a crash: what was answered is durable.
    drop(served);
    let mut served = serve(home.path());
    assert_eq!(served.client.fetch(TOPIC, 0, 1).error, ErrorCode::OffsetOutOfRange);
    assert_eq!(served.delete_records(0, 0, 0), (2, ErrorCode::None));
    assert_eq!(served.delete_records(0, 3, 0), (5, ErrorCode::None));
    served.engine.close().unwrap();
}

#[test]
fn a_reign_that_ended_is_known_by_its_end() {
    let (home, mut served) = served();
    for partition in 0..PARTITIONS {
        served.client.produce(TOPIC, partition, &batch(&[b"first"])).unwrap();
        served.client.produce(TOPIC, partition, &batch(&[b"second"])).unwrap();
    }
    let before = served.epoch_end(4, 0, -1, 0);
    assert_eq!((before.error_code, before.end_offset), (ErrorCode::None, 2));
    drop(served);
    let mut served = serve(home.path());
    for partition in 0..PARTITIONS {
        served.client.produce(TOPIC, partition, &batch(&[b"third"])).unwrap();
        for version in 2..=4 {
            let old = served.epoch_end(version, partition, -1, before.leader_epoch);
            assert_eq!((old.leader_epoch, old.end_offset), (before.leader_epoch, 2), "partition {partition}");
            let current = before.leader_epoch + 1;
            assert_eq!(served.epoch_end(version, partition, current, current).end_offset, 3);
            let fenced = served.epoch_end(version, partition, before.leader_epoch, before.leader_epoch);
            assert_eq!(fenced.error_code, ErrorCode::FencedLeaderEpoch);
            let unknown = served.epoch_end(version, partition, 99, 0);
            assert_eq!((unknown.error_code, unknown.end_offset), (ErrorCode::UnknownLeaderEpoch, -1));
        }
    }
    let nowhere = served.epoch_end(2, 77, -1, 0);
    assert_eq!(nowhere.error_code, ErrorCode::UnknownTopicOrPartition);
    served.engine.close().unwrap();
}

#[test]
fn a_topic_is_deleted_by_name_and_by_id_and_then_it_is_gone() {
    let (_home, mut served) = served();
    let make = |name| CreateTopicsRequest {
        topics: vec![CreatableTopic {
            name,
            num_partitions: 3,
            replication_factor: 1,
            ..CreatableTopic::default()
        }],
        ..CreateTopicsRequest::default()
    };
    let frame = served.ask(7, &make("by-id"));
    let id = answer::<CreateTopicsResponse<'_>>(&frame, 7).topics[0].topic_id;
    served.client.produce("by-id", 2, &batch(&[b"soon gone"])).unwrap();
    let state = |name, topic_id| DeleteTopicState { name, topic_id };
    let topics =
        vec![state(None, id), state(None, [9; 16]), state(Some("nothing"), [0; 16]), state(Some("x"), id)];
    let frame = served.ask(6, &DeleteTopicsRequest { topics, ..DeleteTopicsRequest::default() });
    let deleted: DeleteTopicsResponse<'_> = answer(&frame, 6);
    let codes: Vec<ErrorCode> = deleted.responses.iter().map(|response| response.error_code).collect();
    let expected = [
        ErrorCode::None,
        ErrorCode::UnknownTopicId,
        ErrorCode::UnknownTopicOrPartition,
        ErrorCode::InvalidRequest,
    ];
    assert_eq!(codes, expected);
    assert_eq!(deleted.responses[0].name.as_deref(), Some("by-id"));
    for version in 1..=5 {
        let topic_names = vec![TOPIC, "twice", "twice"];
        let frame =
            served.ask(version, &DeleteTopicsRequest { topic_names, ..DeleteTopicsRequest::default() });
        let deleted: DeleteTopicsResponse<'_> = answer(&frame, version);
        let first = if version == 1 { ErrorCode::None } else { ErrorCode::UnknownTopicOrPartition };
        let codes: Vec<ErrorCode> = deleted.responses.iter().map(|response| response.error_code).collect();
        assert_eq!(codes, [first, ErrorCode::InvalidRequest, ErrorCode::InvalidRequest], "version {version}");
    }
    let refused = served.client.produce(TOPIC, 1, &batch(&[b"too late"]));
    assert_eq!(refused, Err(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(block_on(served.engine.topics()).unwrap(), []);
    let frame = served.ask(7, &make("by-id"));
    let again = &answer::<CreateTopicsResponse<'_>>(&frame, 7).topics[0];
    assert!(again.error_code.is_ok() && again.topic_id != id, "the same name, another topic");
    assert_eq!(served.client.produce("by-id", 2, &batch(&[b"anew"])), Ok(0));
    served.engine.close().unwrap();
}

#[test]
fn settings_say_where_they_come_from() {
    let (_home, mut served) = served();
    let resource = |resource_type, resource_name, configuration_keys| DescribeConfigsResource {
        resource_type,
        resource_name,
        configuration_keys,
    };
    let pair = |name, value| CreatableTopicConfig { name, value: Some(value) };
    let topic = CreatableTopic {
        name: "special",
        num_partitions: 1,
        replication_factor: -1,
        configs: vec![pair("retention.ms", "60000"), pair("message.timestamp.type", "LogAppendTime")],
        ..CreatableTopic::default()
    };
    served.ask(5, &CreateTopicsRequest { topics: vec![topic], ..CreateTopicsRequest::default() });
    for version in 1..=4 {
        let resources = vec![
            resource(2, "special", None),
            resource(2, TOPIC, Some(vec!["segment.bytes", "no.such"])),
            resource(4, "0", None),
            resource(4, "77", None),
            resource(2, "nothing", None),
            resource(2, "no/name", None),
            resource(8, "0", None),
        ];
        let question =
            DescribeConfigsRequest { resources, include_synonyms: true, include_documentation: version >= 3 };
        let frame = served.ask(version, &question);
        let described: DescribeConfigsResponse<'_> = answer(&frame, version);
        let codes: Vec<ErrorCode> = described.results.iter().map(|result| result.error_code).collect();
        use ErrorCode::{InvalidRequest, InvalidTopicException, None as Fine, UnknownTopicOrPartition};
        let expected = [
            Fine,
            Fine,
            Fine,
            InvalidRequest,
            UnknownTopicOrPartition,
            InvalidTopicException,
            InvalidRequest,
        ];
        assert_eq!(codes, expected, "version {version}");
        let value = |result: usize, name: &str| {
            let found = described.results[result].configs.iter().find(|config| config.name == name).unwrap();
            (found.value.as_deref().unwrap().to_owned(), found.config_source)
        };
        assert_eq!(value(0, "retention.ms"), ("60000".to_owned(), 1), "the topic's own choice");
        assert_eq!(value(0, "message.timestamp.type"), ("LogAppendTime".to_owned(), 1));
        assert_eq!(value(0, "ringlog.ack"), ("written".to_owned(), 4), "the broker was told so");
        assert_eq!(value(0, "segment.bytes"), ("1073741824".to_owned(), 5), "built in");
        assert_eq!(described.results[1].configs.len(), 1, "only what was asked for");
        assert_eq!(value(2, "node.id").0, "0");
        assert_eq!(value(2, "ringlog.ack"), ("written".to_owned(), 4));
        let words = described.results[0].configs[0].documentation.as_deref().unwrap_or_default();
        assert_eq!(words.is_empty(), version < 3);
    }
    served.engine.close().unwrap();
}

#[test]
fn the_cluster_is_this_broker() {
    let (_home, mut served) = served();
    for version in 0..=2 {
        let frame = served.ask(version, &DescribeClusterRequest { endpoint_type: 1, ..Default::default() });
        let cluster: DescribeClusterResponse<'_> = answer(&frame, version);
        assert_eq!((cluster.error_code, cluster.brokers.len()), (ErrorCode::None, 1));
        assert_eq!(cluster.controller_id, cluster.brokers[0].broker_id);
        assert!(cluster.brokers[0].port > 0 && cluster.cluster_id.len() == 22, "{cluster:?}");
    }
    for (endpoint_type, code) in
        [(2, ErrorCode::MismatchedEndpointType), (3, ErrorCode::UnsupportedEndpointType)]
    {
        let frame = served.ask(1, &DescribeClusterRequest { endpoint_type, ..Default::default() });
        assert_eq!(answer::<DescribeClusterResponse<'_>>(&frame, 1).error_code, code);
    }
    assert_eq!(ApiKey::DescribeCluster.number(), 60);
    served.engine.close().unwrap();
}
