//! ListOffsets: the offset that belongs to a timestamp, to the start or to the end.

use std::collections::BTreeMap;

use ringlog::shard::{FetchError, Partition};
use ringlog::types::{Offset, Timestamp};

use crate::config::REQUEST_PARTITIONS_MAX;
use crate::errors::{self, Fault, check_count};
use crate::fetch::check_epoch;
use crate::wire::list_offsets::{
    ListOffsetsPartition, ListOffsetsPartitionResponse, ListOffsetsRequest, ListOffsetsResponse,
    ListOffsetsTopicResponse, TIMESTAMP_EARLIEST, TIMESTAMP_EARLIEST_LOCAL, TIMESTAMP_LATEST, TIMESTAMP_MAX,
};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = ListOffsetsRequest::decode_from(decoder, header.version)?;
    let count = request.topics.iter().map(|topic| topic.partitions.len()).sum();
    check_count("partitions in a ListOffsets request", count, REQUEST_PARTITIONS_MAX)?;
    let mut topics = Vec::with_capacity(request.topics.len());
    let mut asked = BTreeMap::new();
    for topic in &request.topics {
        for wanted in &topic.partitions {
            *asked.entry((topic.name, wanted.partition_index)).or_insert(0) += 1;
        }
    }
    for topic in &request.topics {
        let known = writer.broker.shard.topic(topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let place = usize::try_from(wanted.partition_index).ok();
            let partition = known.as_ref().and_then(|t| t.partitions.get(place?));
            partitions.push(match partition {
                _ if asked[&(topic.name, wanted.partition_index)] > 1 => {
                    refused(wanted, ErrorCode::InvalidRequest)
                }
                Some(partition) => one(partition, wanted).await,
                None => refused(wanted, ErrorCode::UnknownTopicOrPartition),
            });
        }
        topics.push(ListOffsetsTopicResponse { name: topic.name, partitions });
    }
    let response = ListOffsetsResponse { topics, ..ListOffsetsResponse::default() };
    // Before version 4 there is no place for the epoch.
    writer.encode(header, header.version, &response.pruned(header.version)?)
}

fn refused(wanted: &ListOffsetsPartition, error_code: ErrorCode) -> ListOffsetsPartitionResponse {
    let partition_index = wanted.partition_index;
    ListOffsetsPartitionResponse { partition_index, error_code, ..ListOffsetsPartitionResponse::default() }
}

async fn one(partition: &Partition, wanted: &ListOffsetsPartition) -> ListOffsetsPartitionResponse {
    if let Err(code) = check_epoch(partition, wanted.current_leader_epoch) {
        return refused(wanted, code);
    }
    match look(partition, wanted.timestamp).await {
        Ok(found) => {
            let none = (Offset(-1), Timestamp::NONE);
            let (offset, timestamp) = found.unwrap_or(none);
            ListOffsetsPartitionResponse {
                partition_index: wanted.partition_index,
                error_code: ErrorCode::None,
                timestamp: timestamp.0,
                offset: offset.0,
                leader_epoch: if found.is_some() { partition.epoch().0 } else { -1 },
            }
        }
        Err(error) => refused(wanted, errors::of_fetch(&error)),
    }
}

async fn look(partition: &Partition, timestamp: i64) -> Result<Option<(Offset, Timestamp)>, FetchError> {
    let marks = partition.marks();
    match timestamp {
        TIMESTAMP_LATEST => Ok(Some((marks.high_watermark.offset, Timestamp::NONE))),
        TIMESTAMP_EARLIEST | TIMESTAMP_EARLIEST_LOCAL => Ok(Some((marks.log_start, Timestamp::NONE))),
        TIMESTAMP_MAX => match partition.largest_timestamp() {
            Some(largest) => partition.offset_for_timestamp(largest).await,
            None => Ok(None),
        },
        // Names that belong to tiered storage, which there is none of.
        named if named < 0 => Ok(None),
        timestamp => partition.offset_for_timestamp(Timestamp(timestamp)).await,
    }
}
