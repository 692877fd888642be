//! The messages of administrators against kafka-protocol, as `wire_oracle` does it for the others.

mod oracle;

use kafka_protocol::messages as theirs;
use oracle::*;
use proptest::prelude::*;
use ringlog_broker::wire::Message;
use ringlog_broker::wire::delete_records::*;
use ringlog_broker::wire::delete_topics::*;
use ringlog_broker::wire::describe_cluster::*;
use ringlog_broker::wire::describe_configs::*;
use ringlog_broker::wire::offset_for_leader_epoch::*;

proptest! {
    #[test]
    fn delete_topics_request((drawn, version) in draws::<theirs::DeleteTopicsRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let by_state = version >= 6;
        let state = |draw: &mut Draw<'_>| DeleteTopicState { name: draw.text_or_null(), topic_id: draw.uuid() };
        let ours = DeleteTopicsRequest {
            topics: if by_state { draw.list(state) } else { Vec::new() },
            topic_names: if by_state { Vec::new() } else { draw.list(Draw::text) },
            timeout_ms: draw.i32(),
        };
        use theirs::delete_topics_request as their;
        let wanted = theirs::DeleteTopicsRequest::default()
            .with_topics(ours.topics.iter().map(|it| their::DeleteTopicState::default()
                .with_name(it.name.map(topic_name))
                .with_topic_id(uuid(it.topic_id))).collect())
            .with_topic_names(ours.topic_names.iter().map(|name| topic_name(name)).collect())
            .with_timeout_ms(ours.timeout_ms);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn delete_topics_response((drawn, version) in draws::<theirs::DeleteTopicsResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = DeleteTopicsResponse {
            throttle_time_ms: draw.i32(),
            responses: draw.list(|draw| DeletableTopicResult {
                name: if version >= 6 { draw.text_or_null() } else { Some(draw.text()) }.map(Into::into),
                topic_id: draw.uuid(),
                error_code: draw.error(),
                error_message: draw.text_or_null().map(Into::into),
            }),
        }.pruned(version).unwrap();
        use theirs::delete_topics_response as their;
        let wanted = theirs::DeleteTopicsResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_responses(ours.responses.iter().map(|it| their::DeletableTopicResult::default()
                .with_name(it.name.as_deref().map(topic_name))
                .with_topic_id(uuid(it.topic_id))
                .with_error_code(it.error_code.code())
                .with_error_message(str_bytes_or_null(it.error_message.as_deref()))).collect());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn delete_records_request((drawn, version) in draws::<theirs::DeleteRecordsRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = DeleteRecordsRequest {
            topics: draw.list(|draw| DeleteRecordsTopic {
                name: draw.text(),
                partitions: draw.list(|draw| DeleteRecordsPartition {
                    partition_index: draw.i32(), offset: draw.i64(),
                }),
            }),
            timeout_ms: draw.i32(),
        };
        use theirs::delete_records_request as their;
        let wanted = theirs::DeleteRecordsRequest::default()
            .with_topics(ours.topics.iter().map(|topic| their::DeleteRecordsTopic::default()
                .with_name(topic_name(topic.name))
                .with_partitions(topic.partitions.iter().map(|it| their::DeleteRecordsPartition::default()
                    .with_partition_index(it.partition_index)
                    .with_offset(it.offset)).collect())).collect())
            .with_timeout_ms(ours.timeout_ms);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn delete_records_response((drawn, version) in draws::<theirs::DeleteRecordsResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = DeleteRecordsResponse {
            throttle_time_ms: draw.i32(),
            topics: draw.list(|draw| DeleteRecordsTopicResult {
                name: draw.text(),
                partitions: draw.list(|draw| DeleteRecordsPartitionResult {
                    partition_index: draw.i32(), low_watermark: draw.i64(), error_code: draw.error(),
                }),
            }),
        };
        use theirs::delete_records_response as their;
        let wanted = theirs::DeleteRecordsResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_topics(ours.topics.iter().map(|topic| their::DeleteRecordsTopicResult::default()
                .with_name(topic_name(topic.name))
                .with_partitions(topic.partitions.iter().map(|it| {
                    their::DeleteRecordsPartitionResult::default()
                        .with_partition_index(it.partition_index)
                        .with_low_watermark(it.low_watermark)
                        .with_error_code(it.error_code.code())
                }).collect())).collect());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn offset_for_leader_epoch_request((drawn, version) in draws::<theirs::OffsetForLeaderEpochRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = OffsetForLeaderEpochRequest {
            replica_id: draw.i32(),
            topics: draw.list(|draw| OffsetForLeaderTopic {
                topic: draw.text(),
                partitions: draw.list(|draw| OffsetForLeaderPartition {
                    partition: draw.i32(), current_leader_epoch: draw.i32(), leader_epoch: draw.i32(),
                }),
            }),
        }.pruned(version).unwrap();
        use theirs::offset_for_leader_epoch_request as their;
        let wanted = theirs::OffsetForLeaderEpochRequest::default()
            .with_replica_id(ours.replica_id.into())
            .with_topics(ours.topics.iter().map(|topic| their::OffsetForLeaderTopic::default()
                .with_topic(topic_name(topic.topic))
                .with_partitions(topic.partitions.iter().map(|it| their::OffsetForLeaderPartition::default()
                    .with_partition(it.partition)
                    .with_current_leader_epoch(it.current_leader_epoch)
                    .with_leader_epoch(it.leader_epoch)).collect())).collect());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn offset_for_leader_epoch_response((drawn, version) in draws::<theirs::OffsetForLeaderEpochResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = OffsetForLeaderEpochResponse {
            throttle_time_ms: draw.i32(),
            topics: draw.list(|draw| OffsetForLeaderTopicResult {
                topic: draw.text(),
                partitions: draw.list(|draw| EpochEndResult {
                    error_code: draw.error(),
                    partition: draw.i32(),
                    leader_epoch: draw.i32(),
                    end_offset: draw.i64(),
                }),
            }),
        };
        use theirs::offset_for_leader_epoch_response as their;
        let wanted = theirs::OffsetForLeaderEpochResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_topics(ours.topics.iter().map(|topic| their::OffsetForLeaderTopicResult::default()
                .with_topic(topic_name(topic.topic))
                .with_partitions(topic.partitions.iter().map(|it| their::EpochEndOffset::default()
                    .with_error_code(it.error_code.code())
                    .with_partition(it.partition)
                    .with_leader_epoch(it.leader_epoch)
                    .with_end_offset(it.end_offset)).collect())).collect());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn describe_configs_request((drawn, version) in draws::<theirs::DescribeConfigsRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = DescribeConfigsRequest {
            resources: draw.list(|draw| DescribeConfigsResource {
                resource_type: draw.i8(),
                resource_name: draw.text(),
                configuration_keys: draw.bool().then(|| draw.list(Draw::text)),
            }),
            include_synonyms: draw.bool(),
            include_documentation: version >= 3 && draw.bool(),
        };
        use theirs::describe_configs_request as their;
        let keys = |keys: &Vec<&str>| keys.iter().map(|key| str_bytes(key)).collect();
        let wanted = theirs::DescribeConfigsRequest::default()
            .with_resources(ours.resources.iter().map(|it| their::DescribeConfigsResource::default()
                .with_resource_type(it.resource_type)
                .with_resource_name(str_bytes(it.resource_name))
                .with_configuration_keys(it.configuration_keys.as_ref().map(keys))).collect())
            .with_include_synonyms(ours.include_synonyms)
            .with_include_documentation(ours.include_documentation);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn describe_configs_response((drawn, version) in draws::<theirs::DescribeConfigsResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = DescribeConfigsResponse {
            throttle_time_ms: draw.i32(),
            results: draw.list(|draw| DescribeConfigsResult {
                error_code: draw.error(),
                error_message: draw.text_or_null().map(Into::into),
                resource_type: draw.i8(),
                resource_name: draw.text(),
                configs: draw.list(|draw| DescribeConfigsResourceResult {
                    name: draw.text().into(),
                    value: draw.text_or_null().map(Into::into),
                    read_only: draw.bool(),
                    config_source: draw.i8(),
                    is_sensitive: draw.bool(),
                    synonyms: draw.list(|draw| DescribeConfigsSynonym {
                        name: draw.text().into(),
                        value: draw.text_or_null().map(Into::into),
                        source: draw.i8(),
                    }),
                    config_type: draw.i8(),
                    documentation: draw.text_or_null().map(Into::into),
                }),
            }),
        }.pruned(version).unwrap();
        use theirs::describe_configs_response as their;
        let wanted = theirs::DescribeConfigsResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_results(ours.results.iter().map(|result| their::DescribeConfigsResult::default()
                .with_error_code(result.error_code.code())
                .with_error_message(str_bytes_or_null(result.error_message.as_deref()))
                .with_resource_type(result.resource_type)
                .with_resource_name(str_bytes(result.resource_name))
                .with_configs(result.configs.iter().map(|it| their::DescribeConfigsResourceResult::default()
                    .with_name(str_bytes(&it.name))
                    .with_value(str_bytes_or_null(it.value.as_deref()))
                    .with_read_only(it.read_only)
                    .with_config_source(it.config_source)
                    .with_is_sensitive(it.is_sensitive)
                    .with_synonyms(it.synonyms.iter().map(|it| their::DescribeConfigsSynonym::default()
                        .with_name(str_bytes(&it.name))
                        .with_value(str_bytes_or_null(it.value.as_deref()))
                        .with_source(it.source)).collect())
                    .with_config_type(it.config_type)
                    .with_documentation(str_bytes_or_null(it.documentation.as_deref()))).collect())).collect());
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn describe_cluster_request((drawn, version) in draws::<theirs::DescribeClusterRequest>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = DescribeClusterRequest {
            include_cluster_authorized_operations: draw.bool(),
            endpoint_type: if version >= 1 { draw.i8() } else { 1 },
            include_fenced_brokers: version >= 2 && draw.bool(),
        };
        let wanted = theirs::DescribeClusterRequest::default()
            .with_include_cluster_authorized_operations(ours.include_cluster_authorized_operations)
            .with_endpoint_type(ours.endpoint_type)
            .with_include_fenced_brokers(ours.include_fenced_brokers);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }

    #[test]
    fn describe_cluster_response((drawn, version) in draws::<theirs::DescribeClusterResponse>()) {
        let mut draw = Draw { bytes: drawn.iter(), version };
        let ours = DescribeClusterResponse {
            throttle_time_ms: draw.i32(),
            error_code: draw.error(),
            error_message: draw.text_or_null().map(Into::into),
            endpoint_type: if version >= 1 { draw.i8() } else { 1 },
            cluster_id: draw.text(),
            controller_id: draw.i32(),
            brokers: draw.list(|draw| DescribeClusterBroker {
                broker_id: draw.i32(),
                host: draw.text(),
                port: draw.i32(),
                rack: draw.text_or_null(),
                is_fenced: version >= 2 && draw.bool(),
            }),
            cluster_authorized_operations: draw.i32(),
        };
        use theirs::describe_cluster_response as their;
        let wanted = theirs::DescribeClusterResponse::default()
            .with_throttle_time_ms(ours.throttle_time_ms)
            .with_error_code(ours.error_code.code())
            .with_error_message(str_bytes_or_null(ours.error_message.as_deref()))
            .with_endpoint_type(ours.endpoint_type)
            .with_cluster_id(str_bytes(ours.cluster_id))
            .with_controller_id(ours.controller_id.into())
            .with_brokers(ours.brokers.iter().map(|it| their::DescribeClusterBroker::default()
                .with_broker_id(it.broker_id.into())
                .with_host(str_bytes(it.host))
                .with_port(it.port)
                .with_rack(str_bytes_or_null(it.rack))
                .with_is_fenced(it.is_fenced)).collect())
            .with_cluster_authorized_operations(ours.cluster_authorized_operations);
        check_both_ways(ours, &their_bytes(&wanted, version), version);
    }
}
