//! OffsetForLeaderEpoch: where a reign ended, so that who read records that power loss took away learns of it.

use ringlog::types::Epoch;

use crate::config::REQUEST_PARTITIONS_MAX;
use crate::errors::{Fault, check_count};
use crate::fetch::check_epoch;
use crate::wire::offset_for_leader_epoch::{
    EpochEndResult, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, OffsetForLeaderPartition,
    OffsetForLeaderTopicResult,
};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = OffsetForLeaderEpochRequest::decode_from(decoder, header.version)?;
    let count = request.topics.iter().map(|topic| topic.partitions.len()).sum();
    check_count("partitions in an OffsetForLeaderEpoch request", count, REQUEST_PARTITIONS_MAX)?;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let partition = wanted.partition;
            partitions.push(match one(writer, topic.topic, wanted).await {
                Ok((leader_epoch, end_offset)) => {
                    EpochEndResult { partition, leader_epoch, end_offset, error_code: ErrorCode::None }
                }
                Err(error_code) => EpochEndResult { partition, error_code, ..EpochEndResult::default() },
            });
        }
        topics.push(OffsetForLeaderTopicResult { topic: topic.topic, partitions });
    }
    let response = OffsetForLeaderEpochResponse { topics, ..OffsetForLeaderEpochResponse::default() };
    writer.encode(header, header.version, &response)
}

async fn one(
    writer: &Writer<'_>,
    topic: &str,
    wanted: &OffsetForLeaderPartition,
) -> Result<(i32, i64), ErrorCode> {
    let shard = &writer.broker.shard;
    let topic = shard.topic(topic).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let route = shard.route(&topic, wanted.partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    check_epoch(route.board().epoch(), wanted.current_leader_epoch)?;
    let epoch = Epoch(wanted.leader_epoch);
    let found = route.with(move |partition| async move { partition.end_offset_for(epoch) }).await;
    let (epoch, end) = found.ok_or(ErrorCode::NotLeaderOrFollower)?;
    Ok((epoch.0, end.0))
}
