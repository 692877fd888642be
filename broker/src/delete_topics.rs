//! DeleteTopics.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ringlog::shard::TopicError;
use ringlog::types::TopicId;

use crate::config::REQUEST_PARTITIONS_MAX;
use crate::errors::{self, Fault, check_count};
use crate::wire::delete_topics::{DeletableTopicResult, DeleteTopicsRequest, DeleteTopicsResponse};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader, Uuid};
use crate::writer::Writer;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = DeleteTopicsRequest::decode_from(decoder, header.version)?;
    let mut asked: Vec<(Option<&str>, Uuid)> = Vec::new();
    asked.extend(request.topic_names.iter().map(|name| (Some(*name), [0; 16])));
    asked.extend(request.topics.iter().map(|state| (state.name, state.topic_id)));
    check_count("topics in a DeleteTopics request", asked.len(), REQUEST_PARTITIONS_MAX)?;
    let mut times = BTreeMap::new();
    for topic in &asked {
        *times.entry(*topic).or_insert(0) += 1;
    }
    let mut responses = Vec::with_capacity(asked.len());
    for (name, id) in asked {
        let result = match times[&(name, id)] > 1 {
            true => Err((ErrorCode::InvalidRequest, "the request names this topic twice".to_owned())),
            false => one(writer, name, TopicId(id)).await,
        };
        let told = name.map(|name| Cow::Owned(name.to_owned()));
        responses.push(match result {
            Ok((name, id)) => DeletableTopicResult {
                name: Some(Cow::Owned(name)),
                topic_id: id.0,
                ..DeletableTopicResult::default()
            },
            Err((error_code, words)) => DeletableTopicResult {
                name: told,
                topic_id: id,
                error_code,
                error_message: Some(Cow::Owned(words)),
            },
        });
    }
    let response = DeleteTopicsResponse { responses, ..DeleteTopicsResponse::default() };
    writer.encode(header, header.version, &response)
}

/// Deletes one topic; its name and id.
async fn one(
    writer: &Writer<'_>,
    name: Option<&str>,
    id: TopicId,
) -> Result<(String, TopicId), (ErrorCode, String)> {
    let shard = &writer.broker.shard;
    let found = match name {
        Some(_) if id != TopicId::ZERO => {
            let words = "a topic is named, or given by its id, not both".to_owned();
            return Err((ErrorCode::InvalidRequest, words));
        }
        Some(name) => shard.topic(name),
        None => shard.topic_by_id(id),
    };
    let unknown = match name {
        Some(_) => ErrorCode::UnknownTopicOrPartition,
        None => ErrorCode::UnknownTopicId,
    };
    let topic = found.ok_or_else(|| (unknown, "there is no such topic".to_owned()))?;
    match shard.delete_topic(&topic.name).await {
        Ok(()) => Ok((topic.name.to_string(), topic.id)),
        // Somebody else was faster.
        Err(TopicError::Unknown(_)) => Err((unknown, "there is no such topic".to_owned())),
        Err(error) => Err((errors::of_topic(&error), error.to_string())),
    }
}
