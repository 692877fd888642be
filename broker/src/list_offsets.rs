//! ListOffsets: the offset that belongs to a timestamp, to the start or to the end.

use std::collections::BTreeMap;

use ringlog::shard::{FetchError, Partition, Route};
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
            let shard = &writer.broker.shard;
            let route = known.as_ref().and_then(|topic| shard.route(topic, wanted.partition_index));
            partitions.push(match route {
                _ if asked[&(topic.name, wanted.partition_index)] > 1 => {
                    refused(wanted, ErrorCode::InvalidRequest)
                }
                Some(route) => one(&route, wanted).await,
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

async fn one(route: &Route, wanted: &ListOffsetsPartition) -> ListOffsetsPartitionResponse {
    let epoch = route.board().epoch();
    if let Err(code) = check_epoch(epoch, wanted.current_leader_epoch) {
        return refused(wanted, code);
    }
    match look(route, wanted.timestamp).await {
        Ok(found) => {
            let none = (Offset(-1), Timestamp::NONE);
            let (offset, timestamp) = found.unwrap_or(none);
            ListOffsetsPartitionResponse {
                partition_index: wanted.partition_index,
                error_code: ErrorCode::None,
                timestamp: timestamp.0,
                offset: offset.0,
                leader_epoch: if found.is_some() { epoch.0 } else { -1 },
            }
        }
        Err(error) => refused(wanted, errors::of_fetch(&error)),
    }
}

async fn look(route: &Route, timestamp: i64) -> Result<Option<(Offset, Timestamp)>, FetchError> {
    match timestamp {
        TIMESTAMP_LATEST => Ok(Some((route.board().high_watermark(), Timestamp::NONE))),
        TIMESTAMP_EARLIEST | TIMESTAMP_EARLIEST_LOCAL => {
            Ok(Some((route.board().log_start(), Timestamp::NONE)))
        }
        // Names that belong to tiered storage, which there is none of.
        named if named < 0 && named != TIMESTAMP_MAX => Ok(None),
        timestamp => {
            let search = move |partition: Partition| async move {
                match timestamp {
                    TIMESTAMP_MAX => match partition.largest_timestamp() {
                        Some(largest) => partition.offset_for_timestamp(largest).await,
                        None => Ok(None),
                    },
                    timestamp => partition.offset_for_timestamp(Timestamp(timestamp)).await,
                }
            };
            route.with(search).await.unwrap_or(Err(FetchError::Closed))
        }
    }
}
