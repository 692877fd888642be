//! Every message in every version against kafka-protocol: our bytes are its bytes, and we read its bytes as what was
//! meant. Each test also cuts the bytes at every place and wants an error.

mod oracle;

use bytes::Bytes;
use kafka_protocol::messages as theirs;
use kafka_protocol::protocol::Message as TheirMessage;
use oracle::*;
use proptest::prelude::*;
use ringlog_broker::wire::api_versions::*;
use ringlog_broker::wire::create_topics::*;
use ringlog_broker::wire::fetch::*;
use ringlog_broker::wire::leader::*;
use ringlog_broker::wire::list_offsets::*;
use ringlog_broker::wire::metadata::*;
use ringlog_broker::wire::produce::*;
use ringlog_broker::wire::*;

/// The versions of the two agree, but for those that kafka-protocol does not know yet.
#[test]
fn every_version_of_kafka_protocol_is_covered() {
    fn check<Theirs: TheirMessage>(api: ApiKey, beyond: i16) {
        let facts = api.facts();
        assert_eq!(facts.version_first, Theirs::VERSIONS.min, "{api:?}");
        assert_eq!(facts.version_last, Theirs::VERSIONS.max + beyond, "{api:?}");
        let their_key = theirs::ApiKey::try_from(api.number()).unwrap();
        assert_eq!(format!("{their_key:?}"), api.name());
        for version in facts.version_first..=Theirs::VERSIONS.max {
            assert_eq!(api.request_header_version(version), their_key.request_header_version(version));
            assert_eq!(api.response_header_version(version), their_key.response_header_version(version));
        }
    }
    check::<theirs::ProduceRequest>(ApiKey::Produce, 0);
    check::<theirs::FetchRequest>(ApiKey::Fetch, 0);
    check::<theirs::ListOffsetsRequest>(ApiKey::ListOffsets, 1);
    check::<theirs::MetadataRequest>(ApiKey::Metadata, 0);
    check::<theirs::ApiVersionsRequest>(ApiKey::ApiVersions, 0);
    check::<theirs::CreateTopicsRequest>(ApiKey::CreateTopics, 0);
    check::<theirs::DeleteTopicsRequest>(ApiKey::DeleteTopics, 0);
    check::<theirs::DeleteRecordsRequest>(ApiKey::DeleteRecords, 0);
    check::<theirs::OffsetForLeaderEpochRequest>(ApiKey::OffsetForLeaderEpoch, 0);
    check::<theirs::DescribeConfigsRequest>(ApiKey::DescribeConfigs, 0);
    check::<theirs::DescribeClusterRequest>(ApiKey::DescribeCluster, 0);
}

/// Version 11 only allows another timestamp (KIP-1023), so its bytes are those of version 10.
#[test]
fn list_offsets_11_looks_like_10() {
    let encode = |version| {
        let mut bytes = Vec::new();
        let partition = ListOffsetsPartition { partition_index: 3, current_leader_epoch: 4, timestamp: -6 };
        let topics = vec![ListOffsetsTopic { name: "t", partitions: vec![partition] }];
        let request = ListOffsetsRequest { replica_id: -1, isolation_level: 1, topics, timeout_ms: 9 };
        request.encode_to(&mut Encoder::growing(&mut bytes), version).unwrap();
        let partitions = vec![ListOffsetsPartitionResponse::default()];
        let topics = vec![ListOffsetsTopicResponse { name: "t", partitions }];
        let response = ListOffsetsResponse { throttle_time_ms: 1, topics };
        response.encode_to(&mut Encoder::growing(&mut bytes), version).unwrap();
        bytes
    };
    assert_eq!(encode(10), encode(11));
}

#[test]
fn headers_are_theirs() {
    for (version, client_id) in [(8i16, Some("client")), (9, None), (13, Some(LONG))] {
        let header = RequestHeader { api: ApiKey::Metadata, version, correlation_id: -5, client_id };
        let mut ours = Vec::new();
        header.encode(&mut Encoder::growing(&mut ours)).unwrap();
        let header_version = ApiKey::Metadata.request_header_version(version);
        let wanted = theirs::RequestHeader::default()
            .with_request_api_key(3)
            .with_request_api_version(version)
            .with_correlation_id(-5)
            .with_client_id(str_bytes_or_null(client_id));
        assert_eq!(ours, their_bytes(&wanted, header_version));
        assert_eq!(RequestHeader::decode(&mut Decoder::new(&ours)), Ok(header));
    }
}

/// A field that the version lacks is an error if it means something, unless Kafka says it may be dropped.
#[test]
fn what_a_version_cannot_carry_is_refused() {
    let refused = MetadataRequest { allow_auto_topic_creation: false, ..Default::default() }.encoded_len(3);
    let field = "MetadataRequest.allow_auto_topic_creation";
    assert_eq!(refused, Err(WireError::NotInVersion { field, version: 3 }));
    let refused = MetadataRequest { topics: None, ..Default::default() }.encoded_len(0);
    assert!(matches!(refused, Err(WireError::NullNotAllowed { version: 0, .. })));
    let dropped = MetadataResponse { throttle_time_ms: 7, ..Default::default() };
    assert!(dropped.encoded_len(2).is_ok());
    assert!(dropped.encoded_len(14).is_err());
}

#[test]
fn an_empty_list_means_all_topics_in_metadata_0_only() {
    let ask = |bytes: &[u8], version| {
        MetadataRequest::decode_from(&mut Decoder::new(bytes), version).unwrap().asks_for_all(version)
    };
    assert!(ask(&[0; 4], 0));
    assert!(!ask(&[0; 4], 1));
    assert!(ask(&[0xff; 4], 1));
    assert!(MetadataRequest::decode_from(&mut Decoder::new(&[0xff; 4]), 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn api_versions_request((drawn, version) in draws::<theirs::ApiVersionsRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = ApiVersionsRequest { client_software_name: draw.text(), client_software_version: draw.text() }
            .pruned(version)
            .unwrap();
        let wanted = theirs::ApiVersionsRequest::default()
            .with_client_software_name(str_bytes(ours.client_software_name))
            .with_client_software_version(str_bytes(ours.client_software_version));
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn api_versions_response((drawn, version) in draws::<theirs::ApiVersionsResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = ApiVersionsResponse {
            error_code: draw.error(),
            api_keys: draw.list(|draw| ApiVersionRange {
                api_key: draw.i16(), min_version: draw.i16(), max_version: draw.i16(),
            }),
            throttle_time_ms: draw.i32(),
            supported_features: draw.list(|draw| SupportedFeature {
                name: draw.text(), min_version: draw.i16(), max_version: draw.i16(),
            }),
            finalized_features_epoch: draw.i64(),
            finalized_features: draw.list(|draw| FinalizedFeature {
                name: draw.text(), max_version_level: draw.i16(), min_version_level: draw.i16(),
            }),
            zk_migration_ready: draw.bool(),
        }.pruned(version).unwrap();
        use theirs::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
        let wanted = theirs::ApiVersionsResponse::default()
            .with_error_code(ours.error_code.code())
            .with_api_keys(ours.api_keys.iter().map(|api| ApiVersion::default()
                .with_api_key(api.api_key)
                .with_min_version(api.min_version)
                .with_max_version(api.max_version)).collect())
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_supported_features(ours.supported_features.iter().map(|it| SupportedFeatureKey::default()
                .with_name(str_bytes(it.name))
                .with_min_version(it.min_version)
                .with_max_version(it.max_version)).collect())
            .with_finalized_features_epoch(ours.finalized_features_epoch)
            .with_finalized_features(ours.finalized_features.iter().map(|it| FinalizedFeatureKey::default()
                .with_name(str_bytes(it.name))
                .with_min_version_level(it.min_version_level)
                .with_max_version_level(it.max_version_level)).collect())
            .with_zk_migration_ready(ours.zk_migration_ready);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn metadata_request((drawn, version) in draws::<theirs::MetadataRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let all = version >= 1 && draw.bool();
        let ours = MetadataRequest {
            topics: (!all).then(|| draw.list(|draw| MetadataRequestTopic {
                topic_id: draw.uuid(),
                name: if draw.version >= 10 { draw.text_or_null() } else { Some(draw.text()) },
            })),
            allow_auto_topic_creation: draw.bool(),
            include_cluster_authorized_operations: draw.bool(),
            include_topic_authorized_operations: draw.bool(),
        }.pruned(version).unwrap();
        let wanted = theirs::MetadataRequest::default()
            .with_topics(ours.topics.as_ref().map(|topics| topics.iter().map(|topic| {
                theirs::metadata_request::MetadataRequestTopic::default()
                    .with_topic_id(uuid(topic.topic_id))
                    .with_name(topic.name.map(topic_name))
            }).collect()))
            .with_allow_auto_topic_creation(ours.allow_auto_topic_creation)
            .with_include_cluster_authorized_operations(ours.include_cluster_authorized_operations)
            .with_include_topic_authorized_operations(ours.include_topic_authorized_operations);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn metadata_response((drawn, version) in draws::<theirs::MetadataResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = MetadataResponse {
            throttle_time_ms: draw.i32(),
            brokers: draw.list(|draw| MetadataBroker {
                node_id: draw.i32(), host: draw.text(), port: draw.i32(), rack: draw.text_or_null(),
            }),
            cluster_id: draw.text_or_null(),
            controller_id: draw.i32(),
            topics: draw.list(|draw| MetadataTopic {
                error_code: draw.error(),
                name: if draw.version >= 12 { draw.text_or_null() } else { Some(draw.text()) },
                topic_id: draw.uuid(),
                is_internal: draw.bool(),
                partitions: draw.list(|draw| MetadataPartition {
                    error_code: draw.error(),
                    partition_index: draw.i32(),
                    leader_id: draw.i32(),
                    leader_epoch: draw.i32(),
                    replica_nodes: draw.list(Draw::i32),
                    isr_nodes: draw.list(Draw::i32),
                    offline_replicas: draw.list(Draw::i32),
                }),
                topic_authorized_operations: draw.i32(),
            }),
            cluster_authorized_operations: draw.i32(),
            error_code: draw.error(),
        }.pruned(version).unwrap();
        use theirs::metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        };
        let wanted = theirs::MetadataResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_brokers(ours.brokers.iter().map(|broker| MetadataResponseBroker::default()
                .with_node_id(broker.node_id.into())
                .with_host(str_bytes(broker.host))
                .with_port(broker.port)
                .with_rack(str_bytes_or_null(broker.rack))).collect())
            .with_cluster_id(str_bytes_or_null(ours.cluster_id))
            .with_controller_id(ours.controller_id.into())
            .with_topics(ours.topics.iter().map(|topic| MetadataResponseTopic::default()
                .with_error_code(topic.error_code.code())
                .with_name(topic.name.map(topic_name))
                .with_topic_id(uuid(topic.topic_id))
                .with_is_internal(topic.is_internal)
                .with_topic_authorized_operations(topic.topic_authorized_operations)
                .with_partitions(topic.partitions.iter().map(|it| MetadataResponsePartition::default()
                    .with_error_code(it.error_code.code())
                    .with_partition_index(it.partition_index)
                    .with_leader_id(it.leader_id.into())
                    .with_leader_epoch(it.leader_epoch)
                    .with_replica_nodes(brokers(&it.replica_nodes))
                    .with_isr_nodes(brokers(&it.isr_nodes))
                    .with_offline_replicas(brokers(&it.offline_replicas))).collect())).collect())
            .with_cluster_authorized_operations(ours.cluster_authorized_operations)
            .with_error_code(ours.error_code.code());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn list_offsets_request((drawn, version) in draws::<theirs::ListOffsetsRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = ListOffsetsRequest {
            replica_id: draw.i32(),
            isolation_level: if version >= 2 { draw.i8() } else { 0 },
            topics: draw.list(|draw| ListOffsetsTopic {
                name: draw.text(),
                partitions: draw.list(|draw| ListOffsetsPartition {
                    partition_index: draw.i32(), current_leader_epoch: draw.i32(), timestamp: draw.i64(),
                }),
            }),
            timeout_ms: draw.i32(),
        }.pruned(version).unwrap();
        use theirs::list_offsets_request as their;
        let wanted = theirs::ListOffsetsRequest::default()
            .with_replica_id(ours.replica_id.into())
            .with_isolation_level(ours.isolation_level)
            .with_topics(ours.topics.iter().map(|topic| their::ListOffsetsTopic::default()
                .with_name(topic_name(topic.name))
                .with_partitions(topic.partitions.iter().map(|it| their::ListOffsetsPartition::default()
                    .with_partition_index(it.partition_index)
                    .with_current_leader_epoch(it.current_leader_epoch)
                    .with_timestamp(it.timestamp)).collect())).collect())
            .with_timeout_ms(ours.timeout_ms);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn list_offsets_response((drawn, version) in draws::<theirs::ListOffsetsResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = ListOffsetsResponse {
            throttle_time_ms: draw.i32(),
            topics: draw.list(|draw| ListOffsetsTopicResponse {
                name: draw.text(),
                partitions: draw.list(|draw| ListOffsetsPartitionResponse {
                    partition_index: draw.i32(),
                    error_code: draw.error(),
                    timestamp: draw.i64(),
                    offset: draw.i64(),
                    leader_epoch: draw.i32(),
                }),
            }),
        }.pruned(version).unwrap();
        use theirs::list_offsets_response as their;
        let wanted = theirs::ListOffsetsResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_topics(ours.topics.iter().map(|topic| their::ListOffsetsTopicResponse::default()
                .with_name(topic_name(topic.name))
                .with_partitions(topic.partitions.iter().map(|it| {
                    their::ListOffsetsPartitionResponse::default()
                        .with_partition_index(it.partition_index)
                        .with_error_code(it.error_code.code())
                        .with_timestamp(it.timestamp)
                        .with_offset(it.offset)
                        .with_leader_epoch(it.leader_epoch)
                }).collect())).collect());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn create_topics_request((drawn, version) in draws::<theirs::CreateTopicsRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = CreateTopicsRequest {
            topics: draw.list(|draw| CreatableTopic {
                name: draw.text(),
                num_partitions: draw.i32(),
                replication_factor: draw.i16(),
                assignments: draw.list(|draw| CreatableReplicaAssignment {
                    partition_index: draw.i32(), broker_ids: draw.list(Draw::i32),
                }),
                configs: draw.list(|draw| CreatableTopicConfig {
                    name: draw.text(), value: draw.text_or_null(),
                }),
            }),
            timeout_ms: draw.i32(),
            validate_only: draw.bool(),
        }.pruned(version).unwrap();
        use theirs::create_topics_request as their;
        let wanted = theirs::CreateTopicsRequest::default()
            .with_topics(ours.topics.iter().map(|topic| their::CreatableTopic::default()
                .with_name(topic_name(topic.name))
                .with_num_partitions(topic.num_partitions)
                .with_replication_factor(topic.replication_factor)
                .with_assignments(topic.assignments.iter().map(|it| {
                    their::CreatableReplicaAssignment::default()
                        .with_partition_index(it.partition_index)
                        .with_broker_ids(brokers(&it.broker_ids))
                }).collect())
                .with_configs(topic.configs.iter().map(|it| their::CreatableTopicConfig::default()
                    .with_name(str_bytes(it.name))
                    .with_value(str_bytes_or_null(it.value))).collect())).collect())
            .with_timeout_ms(ours.timeout_ms)
            .with_validate_only(ours.validate_only);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn create_topics_response((drawn, version) in draws::<theirs::CreateTopicsResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = CreateTopicsResponse {
            throttle_time_ms: draw.i32(),
            topics: draw.list(|draw| CreatableTopicResult {
                name: draw.text(),
                topic_id: draw.uuid(),
                error_code: draw.error(),
                error_message: draw.text_or_null().map(Into::into),
                topic_config_error_code: draw.error(),
                num_partitions: draw.i32(),
                replication_factor: draw.i16(),
                configs: draw.bool().then(|| draw.list(|draw| CreatableTopicConfigs {
                    name: draw.text(),
                    value: draw.text_or_null(),
                    read_only: draw.bool(),
                    config_source: draw.i8(),
                    is_sensitive: draw.bool(),
                })),
            }),
        }.pruned(version).unwrap();
        use theirs::create_topics_response as their;
        let wanted = theirs::CreateTopicsResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_topics(ours.topics.iter().map(|topic| their::CreatableTopicResult::default()
                .with_name(topic_name(topic.name))
                .with_topic_id(uuid(topic.topic_id))
                .with_error_code(topic.error_code.code())
                .with_error_message(str_bytes_or_null(topic.error_message.as_deref()))
                .with_topic_config_error_code(topic.topic_config_error_code.code())
                .with_num_partitions(topic.num_partitions)
                .with_replication_factor(topic.replication_factor)
                .with_configs(topic.configs.as_ref().map(|configs| configs.iter().map(|it| {
                    their::CreatableTopicConfigs::default()
                        .with_name(str_bytes(it.name))
                        .with_value(str_bytes_or_null(it.value))
                        .with_read_only(it.read_only)
                        .with_config_source(it.config_source)
                        .with_is_sensitive(it.is_sensitive)
                }).collect()))).collect());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }
}

// The hot messages: a plain model is drawn, written by our writer and by kafka-protocol, and read back through the
// views.

/// Records and their place: (topic name, id, [(partition, records)]).
type Batches = Vec<(&'static str, Uuid, Vec<(i32, Vec<u8>)>)>;

fn draw_batches(draw: &mut Draw<'_>) -> Batches {
    draw.list(|draw| {
        let (name, id) = (draw.text(), draw.uuid());
        let partitions = draw.list(|draw| {
            let (index, length, fill) = (draw.i32(), usize::from(draw.u8()) * 2, draw.u8());
            (index, (0..length).map(|place| fill.wrapping_add(place as u8)).collect())
        });
        (name, id, partitions)
    })
}

/// What the peer receives: every gap filled with its records.
fn splice(frame: &GappedFrame, batches: &Batches) -> Vec<u8> {
    let records: Vec<&Vec<u8>> = batches
        .iter()
        .flat_map(|(_, _, partitions)| partitions.iter().map(|(_, records)| records))
        .filter(|records| !records.is_empty())
        .collect();
    assert_eq!(records.len(), frame.gaps.len());
    let mut bytes = Vec::new();
    for segment in frame.segments() {
        match segment {
            Segment::Bytes(own) => bytes.extend_from_slice(own),
            Segment::Records { gap, record_bytes } => {
                assert_eq!(records[gap].len() as u64, record_bytes);
                bytes.extend_from_slice(records[gap]);
            }
        }
    }
    assert_eq!(bytes.len() as u64, frame.total_bytes());
    bytes
}

/// Takes the frame's length prefix off and holds it against what follows.
fn unframe(bytes: &[u8]) -> &[u8] {
    assert_eq!(FrameLimits::default().peek_frame(bytes), Ok(Some(bytes.len())));
    &bytes[PREFIX_BYTES..]
}

/// The name is empty where topics go by id, and the id zero where they go by name.
fn identity(by_id: bool, name: &'static str, id: Uuid) -> (&'static str, Uuid) {
    if by_id { ("", id) } else { (name, [0; 16]) }
}

fn their_request_header(api: ApiKey, version: i16, correlation_id: i32) -> Vec<u8> {
    let header = theirs::RequestHeader::default()
        .with_request_api_key(api.number())
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(str_bytes("harness")));
    their_bytes(&header, api.request_header_version(version))
}

fn their_response_header(api: ApiKey, version: i16, correlation_id: i32) -> Vec<u8> {
    let header = theirs::ResponseHeader::default().with_correlation_id(correlation_id);
    their_bytes(&header, api.response_header_version(version))
}

fn draw_endpoints(draw: &mut Draw<'_>, from: i16) -> Vec<NodeEndpoint<'static>> {
    if draw.version < from {
        return Vec::new();
    }
    draw.list(|draw| NodeEndpoint {
        node_id: draw.i32(),
        host: draw.text(),
        port: draw.i32(),
        rack: draw.text_or_null(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn produce_request((drawn, version) in draws::<theirs::ProduceRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let by_id = version >= 13;
        let terms = ProduceTerms {
            transactional_id: draw.text_or_null(), acks: draw.i16(), timeout_ms: draw.i32(),
        };
        let correlation_id = draw.i32();
        let batches = draw_batches(&mut draw);

        let header = RequestHeader { api: ApiKey::Produce, version, correlation_id, client_id: Some("harness") };
        let mut frame = GappedFrame::default();
        let mut writer = ProduceRequestWriter::begin(&mut frame, &header, &terms, batches.len()).unwrap();
        for (name, id, partitions) in &batches {
            writer.topic(name, id, partitions.len());
            for (index, records) in partitions {
                writer.partition(*index, records.len() as u64);
            }
        }
        let total = writer.finish().unwrap();
        let bytes = splice(&frame, &batches);
        prop_assert_eq!(bytes.len() as u64, total);

        use theirs::produce_request as their;
        let wanted = theirs::ProduceRequest::default()
            .with_transactional_id(str_bytes_or_null(terms.transactional_id).map(Into::into))
            .with_acks(terms.acks)
            .with_timeout_ms(terms.timeout_ms)
            .with_topic_data(batches.iter().map(|(name, id, partitions)| {
                let (name, id) = identity(by_id, name, *id);
                their::TopicProduceData::default()
                    .with_name(topic_name(name))
                    .with_topic_id(uuid(id))
                    .with_partition_data(partitions.iter().map(|(index, records)| {
                        their::PartitionProduceData::default()
                            .with_index(*index)
                            .with_records(Some(Bytes::copy_from_slice(records)))
                    }).collect())
            }).collect());
        let mut theirs = their_request_header(ApiKey::Produce, version, correlation_id);
        theirs.extend(their_bytes(&wanted, version));
        let bytes = unframe(&bytes);
        prop_assert_eq!(bytes, &theirs[..]);

        let mut decoder = Decoder::new(bytes);
        prop_assert_eq!(RequestHeader::decode(&mut decoder), Ok(header));
        let body = &bytes[decoder.position()..];
        let request = ProduceRequest::decode_from(&mut decoder, version).unwrap();
        decoder.finish().unwrap();
        prop_assert_eq!(request.transactional_id, terms.transactional_id);
        prop_assert_eq!((request.acks, request.timeout_ms), (terms.acks, terms.timeout_ms));
        prop_assert_eq!(request.topics.len(), batches.len());
        prop_assert_eq!(request.partition_count(), batches.iter().map(|topic| topic.2.len()).sum::<usize>());
        for (topic, (name, id, partitions)) in request.topics.iter().zip(&batches) {
            prop_assert_eq!((topic.name, topic.topic_id), identity(by_id, name, *id));
            prop_assert_eq!(topic.partitions.len(), partitions.len());
            for (partition, (index, records)) in topic.partitions.iter().zip(partitions) {
                prop_assert_eq!(partition.index, *index);
                // The range holds in the whole frame, header included.
                prop_assert_eq!(&bytes[partition.records.unwrap()], &records[..]);
            }
        }
        check_truncations::<ProduceRequest<'_>>(body, version);
    }

    #[test]
    fn produce_response((drawn, version) in draws::<theirs::ProduceResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let by_id = version >= 13;
        struct Outcome {
            outcome: ProduceOutcome<'static>,
            record_errors: Vec<RecordError<'static>>,
        }
        let topics = draw.list(|draw| {
            let (name, id) = (draw.text(), draw.uuid());
            let partitions = draw.list(|draw| {
                let mut outcome = ProduceOutcome::refused(draw.i32(), draw.error());
                outcome.base_offset = draw.i64();
                outcome.log_append_time_ms = draw.i64();
                let log_start_offset = draw.i64();
                if draw.version >= 5 {
                    outcome.log_start_offset = log_start_offset;
                }
                let (mut record_errors, message) = (Vec::new(), draw.text_or_null());
                if draw.version >= 8 {
                    record_errors = draw.list(|draw| RecordError {
                        batch_index: draw.i32(), message: draw.text_or_null(),
                    });
                    outcome.error_message = message;
                }
                if draw.version >= 10 && draw.bool() {
                    outcome.current_leader =
                        LeaderIdAndEpoch { leader_id: draw.i32(), leader_epoch: draw.i32() };
                }
                Outcome { outcome, record_errors }
            });
            (name, id, partitions)
        });
        let endpoints = draw_endpoints(&mut draw, 10);
        let (throttle_time_ms, correlation_id) = (draw.i32(), draw.i32());

        let mut frame = Vec::new();
        let encoder = Encoder::growing(&mut frame);
        let mut writer = ProduceResponseWriter::begin(encoder, correlation_id, version, topics.len()).unwrap();
        for (name, id, partitions) in &topics {
            writer.topic(name, id, partitions.len());
            for it in partitions {
                writer.partition(&ProduceOutcome { record_errors: &it.record_errors, ..it.outcome });
            }
        }
        prop_assert_eq!(writer.finish(throttle_time_ms, &endpoints).unwrap(), frame.len() as u64);

        use theirs::produce_response as their;
        let wanted = theirs::ProduceResponse::default()
            .with_responses(topics.iter().map(|(name, id, partitions)| {
                let (name, id) = identity(by_id, name, *id);
                their::TopicProduceResponse::default()
                    .with_name(topic_name(name))
                    .with_topic_id(uuid(id))
                    .with_partition_responses(partitions.iter().map(|Outcome { outcome, record_errors }| {
                        their::PartitionProduceResponse::default()
                            .with_index(outcome.index)
                            .with_error_code(outcome.error_code.code())
                            .with_base_offset(outcome.base_offset)
                            .with_log_append_time_ms(outcome.log_append_time_ms)
                            .with_log_start_offset(outcome.log_start_offset)
                            .with_record_errors(record_errors.iter().map(|it| {
                                their::BatchIndexAndErrorMessage::default()
                                    .with_batch_index(it.batch_index)
                                    .with_batch_index_error_message(str_bytes_or_null(it.message))
                            }).collect())
                            .with_error_message(str_bytes_or_null(outcome.error_message))
                            .with_current_leader(their::LeaderIdAndEpoch::default()
                                .with_leader_id(outcome.current_leader.leader_id.into())
                                .with_leader_epoch(outcome.current_leader.leader_epoch))
                    }).collect())
            }).collect())
            .with_throttle_time_ms(throttle_time_ms)
            .with_node_endpoints(endpoints.iter().map(|it| their::NodeEndpoint::default()
                .with_node_id(it.node_id.into())
                .with_host(str_bytes(it.host))
                .with_port(it.port)
                .with_rack(str_bytes_or_null(it.rack))).collect());
        let header = their_response_header(ApiKey::Produce, version, correlation_id);
        let body = their_bytes(&wanted, version);
        let bytes = unframe(&frame);
        prop_assert_eq!(bytes, &[&header[..], &body[..]].concat()[..]);

        let (id, response) = decode_response::<ProduceResponse<'_>>(bytes, version).unwrap();
        prop_assert_eq!((id, response.throttle_time_ms), (correlation_id, throttle_time_ms));
        prop_assert_eq!(response.topics.len(), topics.len());
        prop_assert!(response.node_endpoints.iter().eq(endpoints));
        for (topic, (name, id, partitions)) in response.topics.iter().zip(&topics) {
            prop_assert_eq!((topic.name, topic.topic_id), identity(by_id, name, *id));
            prop_assert_eq!(topic.partitions.len(), partitions.len());
            for (read, Outcome { outcome, record_errors }) in topic.partitions.iter().zip(partitions) {
                prop_assert_eq!(read.index, outcome.index);
                prop_assert_eq!(read.error_code, outcome.error_code);
                prop_assert_eq!(read.base_offset, outcome.base_offset);
                prop_assert_eq!(read.log_append_time_ms, outcome.log_append_time_ms);
                prop_assert_eq!(read.log_start_offset, outcome.log_start_offset);
                prop_assert_eq!(read.error_message, outcome.error_message);
                prop_assert_eq!(read.current_leader, outcome.current_leader);
                prop_assert!(read.record_errors.iter().eq(record_errors.iter().cloned()));
            }
        }
        check_truncations::<ProduceResponse<'_>>(&body, version);
    }

    #[test]
    fn fetch_request((drawn, version) in draws::<theirs::FetchRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let by_id = version >= 13;
        let mut terms = FetchTerms {
            max_wait_ms: draw.i32(),
            min_bytes: draw.i32(),
            max_bytes: draw.i32(),
            isolation_level: draw.i8(),
            ..FetchTerms::default()
        };
        if version >= 7 {
            (terms.session_id, terms.session_epoch) = (draw.i32(), draw.i32());
        }
        if version >= 11 {
            terms.rack_id = draw.text();
        }
        if version >= 12 {
            terms.cluster_id = draw.text_or_null();
        }
        terms.replica.replica_id = draw.i32().max(-1);
        if version >= 15 {
            terms.replica.replica_epoch = draw.i64();
        }
        let topics = draw.list(|draw| (draw.text(), draw.uuid(), draw.list(|draw| FetchPartition {
            index: draw.i32(),
            current_leader_epoch: if draw.version >= 9 { draw.i32() } else { -1 },
            fetch_offset: draw.i64(),
            last_fetched_epoch: if draw.version >= 12 { draw.i32() } else { -1 },
            log_start_offset: if draw.version >= 5 { draw.i64() } else { -1 },
            partition_max_bytes: draw.i32(),
            replica_directory_id: if draw.version >= 17 { draw.uuid() } else { [0; 16] },
            high_watermark: if draw.version >= 18 { draw.i64() } else { i64::MAX },
        })));
        let mut forgotten = draw.list(|draw| (draw.text(), draw.uuid(), draw.list(Draw::i32)));
        if version < 7 {
            forgotten.clear();
        }
        let correlation_id = draw.i32();

        let header = RequestHeader { api: ApiKey::Fetch, version, correlation_id, client_id: Some("harness") };
        let mut frame = Vec::new();
        let encoder = Encoder::growing(&mut frame);
        let mut writer = FetchRequestWriter::begin(encoder, &header, &terms, topics.len()).unwrap();
        for (name, id, partitions) in &topics {
            writer.topic(name, id, partitions.len());
            partitions.iter().for_each(|partition| writer.partition(partition));
        }
        let forget: Vec<_> = forgotten
            .iter()
            .map(|(name, topic_id, partitions)| Forgotten { name, topic_id: *topic_id, partitions })
            .collect();
        prop_assert_eq!(writer.finish(&forget).unwrap(), frame.len() as u64);

        use theirs::fetch_request as their;
        let replica_id = if version <= 14 { terms.replica.replica_id } else { -1 };
        let mut wanted = theirs::FetchRequest::default()
            .with_cluster_id(str_bytes_or_null(terms.cluster_id))
            .with_replica_id(replica_id.into())
            .with_max_wait_ms(terms.max_wait_ms)
            .with_min_bytes(terms.min_bytes)
            .with_max_bytes(terms.max_bytes)
            .with_isolation_level(terms.isolation_level)
            .with_session_id(terms.session_id)
            .with_session_epoch(terms.session_epoch)
            .with_topics(topics.iter().map(|(name, id, partitions)| {
                let (name, id) = identity(by_id, name, *id);
                their::FetchTopic::default()
                    .with_topic(topic_name(name))
                    .with_topic_id(uuid(id))
                    .with_partitions(partitions.iter().map(|it| their::FetchPartition::default()
                        .with_partition(it.index)
                        .with_current_leader_epoch(it.current_leader_epoch)
                        .with_fetch_offset(it.fetch_offset)
                        .with_last_fetched_epoch(it.last_fetched_epoch)
                        .with_log_start_offset(it.log_start_offset)
                        .with_partition_max_bytes(it.partition_max_bytes)
                        .with_replica_directory_id(uuid(it.replica_directory_id))
                        .with_high_watermark(it.high_watermark)).collect())
            }).collect())
            .with_forgotten_topics_data(forgotten.iter().map(|(name, id, partitions)| {
                let (name, id) = identity(by_id, name, *id);
                their::ForgottenTopic::default()
                    .with_topic(topic_name(name))
                    .with_topic_id(uuid(id))
                    .with_partitions(partitions.clone())
            }).collect())
            .with_rack_id(str_bytes(terms.rack_id));
        if version >= 15 {
            wanted = wanted.with_replica_state(their::ReplicaState::default()
                .with_replica_id(terms.replica.replica_id.into())
                .with_replica_epoch(terms.replica.replica_epoch));
        }
        let mut theirs = their_request_header(ApiKey::Fetch, version, correlation_id);
        theirs.extend(their_bytes(&wanted, version));
        let bytes = unframe(&frame);
        prop_assert_eq!(bytes, &theirs[..]);

        let mut decoder = Decoder::new(bytes);
        prop_assert_eq!(RequestHeader::decode(&mut decoder), Ok(header));
        let body = &bytes[decoder.position()..];
        let request = FetchRequest::decode_from(&mut decoder, version).unwrap();
        decoder.finish().unwrap();
        prop_assert_eq!(request.cluster_id, terms.cluster_id);
        prop_assert_eq!(request.replica(), terms.replica);
        prop_assert_eq!((request.max_wait_ms, request.min_bytes), (terms.max_wait_ms, terms.min_bytes));
        prop_assert_eq!((request.max_bytes, request.isolation_level), (terms.max_bytes, terms.isolation_level));
        prop_assert_eq!((request.session_id, request.session_epoch), (terms.session_id, terms.session_epoch));
        prop_assert_eq!(request.rack_id, terms.rack_id);
        prop_assert_eq!(request.topics.len(), topics.len());
        prop_assert_eq!(request.partition_count(), topics.iter().map(|topic| topic.2.len()).sum::<usize>());
        for (topic, (name, id, partitions)) in request.topics.iter().zip(&topics) {
            prop_assert_eq!((topic.name, topic.topic_id), identity(by_id, name, *id));
            prop_assert!(topic.partitions.iter().eq(partitions.iter().copied()));
        }
        prop_assert_eq!(request.forgotten_topics.len(), forgotten.len());
        for (topic, (name, id, partitions)) in request.forgotten_topics.iter().zip(&forgotten) {
            prop_assert_eq!((topic.name, topic.topic_id), identity(by_id, name, *id));
            prop_assert!(topic.partitions.iter().eq(partitions.iter().copied()));
        }
        check_truncations::<FetchRequest<'_>>(body, version);
    }

    #[test]
    fn fetch_response((drawn, version) in draws::<theirs::FetchResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let by_id = version >= 13;
        let batches = draw_batches(&mut draw);
        let mut terms = FetchResponseTerms { throttle_time_ms: draw.i32(), ..Default::default() };
        if version >= 7 {
            (terms.error_code, terms.session_id) = (draw.error(), draw.i32());
        }
        let mut aborted = Vec::new();
        let outcomes: Vec<Vec<FetchOutcome<'static>>> = batches.iter().map(|(_, _, partitions)| {
            partitions.iter().map(|(index, records)| {
                let mut outcome = FetchOutcome::read(*index, draw.i64(), -1, records.len() as u64);
                outcome.error_code = draw.error();
                outcome.last_stable_offset = draw.i64();
                if version >= 5 {
                    outcome.log_start_offset = draw.i64();
                }
                if version >= 11 {
                    outcome.preferred_read_replica = draw.i32();
                }
                if version >= 12 && draw.bool() {
                    outcome.diverging_epoch = EpochEndOffset { epoch: draw.i32(), end_offset: draw.i64() };
                }
                if version >= 12 && draw.bool() {
                    outcome.current_leader =
                        LeaderIdAndEpoch { leader_id: draw.i32(), leader_epoch: draw.i32() };
                }
                if version >= 12 && draw.bool() {
                    outcome.snapshot_id = SnapshotId { end_offset: draw.i64(), epoch: draw.i32() };
                }
                aborted.push(draw.bool().then(|| draw.list(|draw| AbortedTransaction {
                    producer_id: draw.i64(), first_offset: draw.i64(),
                })));
                outcome
            }).collect()
        }).collect();
        let endpoints = draw_endpoints(&mut draw, 16);
        let correlation_id = draw.i32();

        let mut frame = GappedFrame::default();
        let mut writer =
            FetchResponseWriter::begin(&mut frame, correlation_id, version, &terms, batches.len()).unwrap();
        let mut next_aborted = aborted.iter();
        for ((name, id, _), outcomes) in batches.iter().zip(&outcomes) {
            writer.topic(name, id, outcomes.len());
            for outcome in outcomes {
                let aborted_transactions = next_aborted.next().unwrap().as_deref();
                writer.partition(&FetchOutcome { aborted_transactions, ..*outcome });
            }
        }
        let total = writer.finish(&endpoints).unwrap();
        let bytes = splice(&frame, &batches);
        prop_assert_eq!(bytes.len() as u64, total);

        use theirs::fetch_response as their;
        let mut next_aborted = aborted.iter();
        let wanted = theirs::FetchResponse::default()
            .with_throttle_time_ms(terms.throttle_time_ms)
            .with_error_code(terms.error_code.code())
            .with_session_id(terms.session_id)
            .with_responses(batches.iter().zip(&outcomes).map(|((name, id, partitions), outcomes)| {
                let (name, id) = identity(by_id, name, *id);
                their::FetchableTopicResponse::default()
                    .with_topic(topic_name(name))
                    .with_topic_id(uuid(id))
                    .with_partitions(partitions.iter().zip(outcomes).map(|((_, records), it)| {
                        let aborted = next_aborted.next().unwrap().as_ref();
                        their::PartitionData::default()
                            .with_partition_index(it.index)
                            .with_error_code(it.error_code.code())
                            .with_high_watermark(it.high_watermark)
                            .with_last_stable_offset(it.last_stable_offset)
                            .with_log_start_offset(it.log_start_offset)
                            .with_diverging_epoch(their::EpochEndOffset::default()
                                .with_epoch(it.diverging_epoch.epoch)
                                .with_end_offset(it.diverging_epoch.end_offset))
                            .with_current_leader(their::LeaderIdAndEpoch::default()
                                .with_leader_id(it.current_leader.leader_id.into())
                                .with_leader_epoch(it.current_leader.leader_epoch))
                            .with_snapshot_id(their::SnapshotId::default()
                                .with_end_offset(it.snapshot_id.end_offset)
                                .with_epoch(it.snapshot_id.epoch))
                            .with_aborted_transactions(aborted.map(|aborted| aborted.iter().map(|it| {
                                their::AbortedTransaction::default()
                                    .with_producer_id(it.producer_id.into())
                                    .with_first_offset(it.first_offset)
                            }).collect()))
                            .with_preferred_read_replica(it.preferred_read_replica.into())
                            .with_records(Some(Bytes::copy_from_slice(records)))
                    }).collect())
            }).collect())
            .with_node_endpoints(endpoints.iter().map(|it| their::NodeEndpoint::default()
                .with_node_id(it.node_id.into())
                .with_host(str_bytes(it.host))
                .with_port(it.port)
                .with_rack(str_bytes_or_null(it.rack))).collect());
        let header = their_response_header(ApiKey::Fetch, version, correlation_id);
        let body = their_bytes(&wanted, version);
        let bytes = unframe(&bytes);
        prop_assert_eq!(bytes, &[&header[..], &body[..]].concat()[..]);

        let (id, response) = decode_response::<FetchResponse<'_>>(bytes, version).unwrap();
        prop_assert_eq!(id, correlation_id);
        prop_assert_eq!(response.throttle_time_ms, terms.throttle_time_ms);
        prop_assert_eq!((response.error_code, response.session_id), (terms.error_code, terms.session_id));
        prop_assert_eq!(response.topics.len(), batches.len());
        prop_assert!(response.node_endpoints.iter().eq(endpoints));
        let mut next_aborted = aborted.iter();
        for ((topic, (name, id, partitions)), outcomes) in response.topics.iter().zip(&batches).zip(&outcomes) {
            prop_assert_eq!((topic.name, topic.topic_id), identity(by_id, name, *id));
            prop_assert_eq!(topic.partitions.len(), partitions.len());
            for ((read, (_, records)), wrote) in topic.partitions.iter().zip(partitions).zip(outcomes) {
                prop_assert_eq!((read.index, read.error_code), (wrote.index, wrote.error_code));
                prop_assert_eq!(read.high_watermark, wrote.high_watermark);
                prop_assert_eq!(read.last_stable_offset, wrote.last_stable_offset);
                prop_assert_eq!(read.log_start_offset, wrote.log_start_offset);
                prop_assert_eq!(read.diverging_epoch, wrote.diverging_epoch);
                prop_assert_eq!(read.current_leader, wrote.current_leader);
                prop_assert_eq!(read.snapshot_id, wrote.snapshot_id);
                prop_assert_eq!(read.preferred_read_replica, wrote.preferred_read_replica);
                let aborted = next_aborted.next().unwrap();
                prop_assert_eq!(&read.aborted_transactions.map(|it| it.iter().collect()), aborted);
                prop_assert_eq!(&bytes[read.records.unwrap()], &records[..]);
            }
        }
        check_truncations::<FetchResponse<'_>>(&body, version);
    }
}
