//! CreateTopics.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ringlog::TopicConfig;
use ringlog::shard::TopicError;

use crate::config::REQUEST_CREATIONS_MAX;
use crate::errors::{self, Fault};
use crate::wire::create_topics::{
    CreatableTopic, CreatableTopicResult, CreateTopicsRequest, CreateTopicsResponse,
};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = CreateTopicsRequest::decode_from(decoder, header.version)?;
    let mut topics = Vec::with_capacity(request.topics.len());
    // A map: a frame holds hundreds of thousands of names, too many to compare each with each.
    let mut named = BTreeMap::new();
    for topic in &request.topics {
        *named.entry(topic.name).or_insert(0) += 1;
    }
    let mut room = REQUEST_CREATIONS_MAX;
    for topic in &request.topics {
        topics.push(match named[topic.name] > 1 {
            true => {
                refused(topic, ErrorCode::InvalidRequest, "the request names this topic twice".to_owned())
            }
            false => one(writer, topic, request.validate_only, &mut room).await,
        });
    }
    let response = CreateTopicsResponse { topics, ..CreateTopicsResponse::default() };
    writer.encode(header, header.version, &response)
}

fn refused<'a>(topic: &CreatableTopic<'a>, error_code: ErrorCode, words: String) -> CreatableTopicResult<'a> {
    CreatableTopicResult {
        name: topic.name,
        error_code,
        error_message: Some(Cow::Owned(words)),
        ..CreatableTopicResult::default()
    }
}

async fn one<'a>(
    writer: &Writer<'_>,
    topic: &CreatableTopic<'a>,
    validate_only: bool,
    room: &mut i32,
) -> CreatableTopicResult<'a> {
    let shard = &writer.broker.shard;
    let partitions = match plan(topic, shard.identity().node_id, writer.broker.config.default_partitions) {
        Ok(partitions) => partitions,
        Err((code, words)) => return refused(topic, code, words),
    };
    if partitions > *room {
        let words = format!(
            "{partitions} partitions: a request may create {REQUEST_CREATIONS_MAX}, of which {room} are left"
        );
        return refused(topic, ErrorCode::PolicyViolation, words);
    }
    *room -= partitions;
    if let Some(config) = topic.configs.iter().find(|config| config.value.is_none()) {
        let words = format!("{} has no value", config.name);
        return refused(topic, ErrorCode::InvalidConfig, words);
    }
    let pairs = topic.configs.iter().filter_map(|config| config.value.map(|value| (config.name, value)));
    let config = match TopicConfig::from_pairs(&shard.config().topic_defaults, pairs) {
        Ok(config) => config,
        Err(words) => return refused(topic, ErrorCode::InvalidConfig, words),
    };
    let made = match validate_only {
        false => shard.create_topic(topic.name, partitions, config).await.map(|topic| topic.id.0),
        true => match (ringlog::log::check_topic_name(topic.name), shard.topic(topic.name)) {
            (Err(error), _) => Err(TopicError::Name(error)),
            (_, Some(_)) => Err(TopicError::Exists(topic.name.to_owned())),
            (Ok(()), None) => Ok([0; 16]),
        },
    };
    match made {
        Ok(topic_id) => CreatableTopicResult {
            name: topic.name,
            topic_id,
            num_partitions: partitions,
            replication_factor: 1,
            ..CreatableTopicResult::default()
        },
        Err(error) => refused(topic, errors::of_topic(&error), error.to_string()),
    }
}

/// How many partitions are meant.
fn plan(topic: &CreatableTopic<'_>, node: i32, default: i32) -> Result<i32, (ErrorCode, String)> {
    if !topic.assignments.is_empty() {
        if topic.num_partitions != -1 || topic.replication_factor != -1 {
            let words = "with assignments, partitions and replication factor must be -1".to_owned();
            return Err((ErrorCode::InvalidRequest, words));
        }
        let count = topic.assignments.len() as i32;
        let mut assignments = topic.assignments.iter().collect::<Vec<_>>();
        assignments.sort_by_key(|assignment| assignment.partition_index);
        for (expected, assignment) in (0..).zip(assignments) {
            if assignment.partition_index != expected || assignment.broker_ids != [node] {
                let words =
                    format!("partition {expected} must be assigned to node {node}, the only one there is");
                return Err((ErrorCode::InvalidReplicaAssignment, words));
            }
        }
        return Ok(count);
    }
    if !matches!(topic.replication_factor, -1 | 1) {
        let words = format!(
            "replication factor {}: this is a single broker, only 1 is possible",
            topic.replication_factor
        );
        return Err((ErrorCode::InvalidReplicationFactor, words));
    }
    match topic.num_partitions {
        -1 => Ok(default),
        count if count > 0 => Ok(count),
        count => Err((ErrorCode::InvalidPartitions, format!("{count} partitions make no sense"))),
    }
}
