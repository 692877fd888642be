//! DeleteRecords: the log start moves forward, and stays there: the answer comes when that is durable.

use ringlog::shard::TruncateError;
use ringlog::types::Offset;

use crate::config::REQUEST_PARTITIONS_MAX;
use crate::errors::{self, Fault, check_count};
use crate::wire::delete_records::{
    DeleteRecordsPartition, DeleteRecordsPartitionResult, DeleteRecordsRequest, DeleteRecordsResponse,
    DeleteRecordsTopicResult,
};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = DeleteRecordsRequest::decode_from(decoder, header.version)?;
    let count = request.topics.iter().map(|topic| topic.partitions.len()).sum();
    check_count("partitions in a DeleteRecords request", count, REQUEST_PARTITIONS_MAX)?;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let (low_watermark, error_code) = match one(writer, topic.name, wanted).await {
                Ok(start) => (start.0, ErrorCode::None),
                Err(code) => (-1, code),
            };
            let partition_index = wanted.partition_index;
            partitions.push(DeleteRecordsPartitionResult { partition_index, low_watermark, error_code });
        }
        topics.push(DeleteRecordsTopicResult { name: topic.name, partitions });
    }
    if let Err(error) = writer.broker.shard.checkpoint().await {
        tracing::warn!("DeleteRecords: checkpoints: {error}");
        for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            if partition.error_code.is_ok() {
                (partition.low_watermark, partition.error_code) = (-1, ErrorCode::KafkaStorageError);
            }
        }
    }
    let response = DeleteRecordsResponse { topics, ..DeleteRecordsResponse::default() };
    writer.encode(header, header.version, &response)
}

async fn one(writer: &Writer<'_>, topic: &str, wanted: &DeleteRecordsPartition) -> Result<Offset, ErrorCode> {
    let shard = &writer.broker.shard;
    let topic = shard.topic(topic).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let route = shard.route(&topic, wanted.partition_index).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let offset = wanted.offset;
    if offset < -1 {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    let moved = route.with(move |partition| async move {
        let marks = partition.marks();
        let to = if offset == -1 { marks.high_watermark.offset } else { Offset(offset) };
        // What is gone already need not go again.
        if to > marks.log_start {
            partition.advance_log_start(to).await?;
        }
        Ok::<_, TruncateError>(partition.marks().log_start)
    });
    match moved.await {
        None => Err(ErrorCode::NotLeaderOrFollower),
        Some(Ok(start)) => Ok(start),
        Some(Err(error)) => {
            tracing::info!("{route}: records up to {offset} are not deleted: {error}");
            Err(errors::of_truncate(&error))
        }
    }
}
