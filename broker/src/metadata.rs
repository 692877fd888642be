//! Metadata: this broker, and the topics there are; asking for one may make it.

use std::collections::BTreeSet;
use std::rc::Rc;

use ringlog::shard::{Topic, TopicError};
use ringlog::types::TopicId;

use crate::errors::{self, Fault};
use crate::wire::metadata::{
    MetadataBroker, MetadataPartition, MetadataRequest, MetadataResponse, MetadataTopic,
};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

enum Found<'a> {
    Topic(Rc<Topic>),
    Not { name: Option<&'a str>, id: TopicId, code: ErrorCode },
}

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = MetadataRequest::decode_from(decoder, header.version)?;
    let broker = writer.broker.clone();
    let shard = &broker.shard;
    let mut found = Vec::new();
    if request.asks_for_all(header.version) {
        found.extend(shard.topics().into_iter().map(Found::Topic));
    } else {
        // Who asks a hundred thousand times for a topic of a thousand partitions gets it once.
        let mut asked = BTreeSet::new();
        for wanted in request.topics.as_deref().unwrap_or_default() {
            let id = TopicId(wanted.topic_id);
            if !asked.insert((wanted.name, id)) {
                continue;
            }
            found.push(match (wanted.name, id) {
                (None | Some(""), id) if id != TopicId::ZERO => match shard.topic_by_id(id) {
                    Some(topic) => Found::Topic(topic),
                    None => Found::Not { name: None, id, code: ErrorCode::UnknownTopicId },
                },
                (name, _) => {
                    by_name(writer, name.unwrap_or_default(), request.allow_auto_topic_creation).await
                }
            });
        }
    }
    let identity = shard.identity();
    let node = identity.node_id;
    let topics = found.iter().map(|found| match found {
        Found::Topic(topic) => MetadataTopic {
            name: Some(&topic.name),
            topic_id: topic.id.0,
            partitions: (0..topic.partition_count())
                .map(|index| MetadataPartition {
                    partition_index: index,
                    leader_id: node,
                    leader_epoch: topic.board(index).map_or(-1, |board| board.epoch().0),
                    replica_nodes: vec![node],
                    isr_nodes: vec![node],
                    ..MetadataPartition::default()
                })
                .collect(),
            ..MetadataTopic::default()
        },
        Found::Not { name, id, code } => {
            // Before version 12 a topic without a name cannot be written: an unknown id has none.
            let name = if header.version < 12 { Some(name.unwrap_or_default()) } else { *name };
            MetadataTopic { error_code: *code, name, topic_id: id.0, ..MetadataTopic::default() }
        }
    });
    let (host, port) = &broker.advertised;
    let response = MetadataResponse {
        brokers: vec![MetadataBroker { node_id: node, host, port: i32::from(*port), rack: None }],
        cluster_id: Some(&identity.cluster_id),
        controller_id: node,
        topics: topics.collect(),
        ..MetadataResponse::default()
    };
    writer.encode(header, header.version, &response)
}

async fn by_name<'a>(writer: &Writer<'_>, name: &'a str, may_create: bool) -> Found<'a> {
    let (shard, config) = (&writer.broker.shard, &writer.broker.config);
    if let Some(topic) = shard.topic(name) {
        return Found::Topic(topic);
    }
    let not = |code| Found::Not { name: Some(name), id: TopicId::ZERO, code };
    if let Err(error) = ringlog::log::check_topic_name(name) {
        return not(errors::of_topic(&TopicError::Name(error)));
    }
    if !(may_create && config.auto_create_topics) {
        return not(ErrorCode::UnknownTopicOrPartition);
    }
    match shard.create_topic(name, config.default_partitions, shard.config().topic_defaults.clone()).await {
        Ok(topic) => Found::Topic(topic),
        // Somebody else was faster: then it is there.
        Err(TopicError::Exists(_)) => {
            shard.topic(name).map_or(not(ErrorCode::LeaderNotAvailable), Found::Topic)
        }
        Err(error) => {
            tracing::warn!("topic {name} could not be created: {error}");
            not(errors::of_topic(&error))
        }
    }
}
