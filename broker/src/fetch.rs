//! Fetch: what lies beyond an offset, now or as soon as enough is there.
//!
//! A long poll is registered on the partitions it asks about and looked at again when one of them moves; nothing is
//! scanned by time. Sessions are not kept: every request is a full one and is answered with session id 0.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringlog::log::OFFSET_UNKNOWN;
use ringlog::shard::{Partition, Topic};
use ringlog::types::{Epoch, Offset, TopicId};

use crate::config::REQUEST_PARTITIONS_MAX;
use crate::errors::{self, Fault, check_count};
use crate::wire::fetch::{
    EpochEndOffset, FetchOutcome, FetchPartition, FetchRequest, FetchResponseTerms, FetchResponseWriter,
    FetchTopic, TOPIC_IDS_FROM,
};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

/// What one answer holds at most, whatever the client asks for.
const ANSWER_BYTES_MAX: i64 = 64 << 20;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = FetchRequest::decode_from(decoder, header.version)?;
    check_count("partitions in a Fetch request", request.partition_count(), REQUEST_PARTITIONS_MAX)?;
    // 0 and -1 ask for everything anew, whatever session there was; anything else continues one, and there is none.
    if !matches!(request.session_epoch, 0 | -1) {
        let terms =
            FetchResponseTerms { error_code: ErrorCode::FetchSessionIdNotFound, ..Default::default() };
        FetchResponseWriter::begin(&mut writer.frame, header.correlation_id, header.version, &terms, 0)?
            .finish(&[])?;
        return writer.send_frame().await;
    }
    wait_for_enough(writer, header.version, &request).await;

    let mut left = i64::from(request.max_bytes).min(ANSWER_BYTES_MAX);
    let (egress, mut found_any) = (writer.broker.shard.config().egress, false);
    let terms = FetchResponseTerms::default();
    let (frame, pieces) = (&mut writer.frame, &mut writer.pieces);
    let mut response = FetchResponseWriter::begin(
        frame,
        header.correlation_id,
        header.version,
        &terms,
        request.topics.len(),
    )?;
    for topic in request.topics.iter() {
        let known = find(writer.broker, header.version, &topic);
        response.topic(topic.name, &topic.topic_id, topic.partitions.len());
        for wanted in topic.partitions.iter() {
            let partition = match check(header.version, known.as_ref(), &wanted) {
                Ok(partition) => partition,
                Err(outcome) => {
                    response.partition(&outcome);
                    continue;
                }
            };
            if found_any && left <= 0 {
                response.partition(&full(&partition, &wanted));
                continue;
            }
            let bytes_max = i64::from(wanted.partition_max_bytes).min(left).max(0);
            let first = pieces.len();
            let fetched =
                partition.fetch(Offset(wanted.fetch_offset), bytes_max as u64, egress, pieces).await;
            let outcome = match fetched {
                Ok(fetched) => {
                    let mut bytes = fetched.bytes;
                    // Only the first batch of an answer may be larger than the limit.
                    if found_any && bytes as i64 > left {
                        pieces.truncate(first);
                        bytes = 0;
                    }
                    found_any |= bytes > 0;
                    left -= bytes as i64;
                    FetchOutcome::read(wanted.index, fetched.high_watermark.0, fetched.log_start.0, bytes)
                }
                Err(error) => {
                    pieces.truncate(first);
                    failed(&partition, wanted.index, errors::of_fetch(&error))
                }
            };
            response.partition(&outcome);
        }
    }
    response.finish(&[])?;
    writer.send_frame().await
}

/// Waits until `min_bytes` can be read, something is wrong, or the time is up.
async fn wait_for_enough(writer: &Writer<'_>, version: i16, request: &FetchRequest<'_>) {
    let ring = writer.broker.shard.ring();
    let min_bytes = i64::from(request.min_bytes.min(request.max_bytes)).min(ANSWER_BYTES_MAX);
    if min_bytes <= 0 || request.max_wait_ms <= 0 || has_enough(writer, version, request, min_bytes as u64) {
        return;
    }
    let timer = &writer.timer;
    timer.arm(ring.now().plus(Duration::from_millis(request.max_wait_ms as u64)));
    let mut stop = pin!(writer.broker.shard.stopping());
    poll_fn(|cx| {
        // A poll may be told to last for weeks: a peer that left, and a stop, end it.
        if writer.connection.has_input_ended(cx.waker()) || stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Registered before the look, so that nothing can move in between unseen.
        for topic in request.topics.iter() {
            if let Some(known) = find(writer.broker, version, &topic) {
                for wanted in topic.partitions.iter() {
                    if let Some(partition) = partition_of(&known, wanted.index) {
                        partition.watch(cx.waker());
                    }
                }
            }
        }
        if has_enough(writer, version, request, min_bytes as u64) {
            return Poll::Ready(());
        }
        timer.poll_expired(cx)
    })
    .await;
    timer.disarm();
}

fn has_enough(writer: &Writer<'_>, version: i16, request: &FetchRequest<'_>, min_bytes: u64) -> bool {
    let mut bytes = 0u64;
    for topic in request.topics.iter() {
        let known = find(writer.broker, version, &topic);
        for wanted in topic.partitions.iter() {
            let Ok(partition) = check(version, known.as_ref(), &wanted) else { return true };
            let Ok(readable) = partition.readable_bytes(Offset(wanted.fetch_offset)) else { return true };
            bytes += readable;
            if bytes >= min_bytes {
                return true;
            }
        }
    }
    false
}

fn find(broker: &crate::connection::Broker, version: i16, topic: &FetchTopic<'_>) -> Option<Rc<Topic>> {
    match version >= TOPIC_IDS_FROM {
        true => broker.shard.topic_by_id(TopicId(topic.topic_id)),
        false => broker.shard.topic(topic.name),
    }
}

fn partition_of(topic: &Topic, index: i32) -> Option<&Partition> {
    topic.partitions.get(usize::try_from(index).ok()?)
}

/// The partition, or what is to be answered instead.
fn check(
    version: i16,
    topic: Option<&Rc<Topic>>,
    wanted: &FetchPartition,
) -> Result<Partition, FetchOutcome<'static>> {
    let unknown = match version >= TOPIC_IDS_FROM {
        true => ErrorCode::UnknownTopicId,
        false => ErrorCode::UnknownTopicOrPartition,
    };
    let topic = topic.ok_or(FetchOutcome::failed(wanted.index, unknown))?;
    let partition = partition_of(topic, wanted.index)
        .ok_or(FetchOutcome::failed(wanted.index, ErrorCode::UnknownTopicOrPartition))?;
    check_epoch(partition, wanted.current_leader_epoch)
        .map_err(|code| FetchOutcome::failed(wanted.index, code))?;
    if wanted.last_fetched_epoch >= 0 {
        let (epoch, end) = partition.end_offset_for(Epoch(wanted.last_fetched_epoch));
        // Nothing is known that old: an end of -1 would read as "not diverged", and the client would ask for ever.
        if epoch == Epoch::NONE || end == OFFSET_UNKNOWN {
            return Err(failed(partition, wanted.index, ErrorCode::OffsetOutOfRange));
        }
        if epoch.0 < wanted.last_fetched_epoch || end < Offset(wanted.fetch_offset) {
            let marks = partition.marks();
            let read = FetchOutcome::read(wanted.index, marks.high_watermark.offset.0, marks.log_start.0, 0);
            let diverging_epoch = EpochEndOffset { epoch: epoch.0, end_offset: end.0 };
            return Err(FetchOutcome { diverging_epoch, ..read });
        }
    }
    Ok(partition.clone())
}

/// Whether a client knows the same reign as we do. -1 says that it does not care.
pub(crate) fn check_epoch(partition: &Partition, known: i32) -> Result<(), ErrorCode> {
    match known {
        epoch if epoch < 0 || epoch == partition.epoch().0 => Ok(()),
        epoch if epoch < partition.epoch().0 => Err(ErrorCode::FencedLeaderEpoch),
        _ => Err(ErrorCode::UnknownLeaderEpoch),
    }
}

/// A partition for which the answer has no room left. What is wrong with it is said all the same.
fn full(partition: &Partition, wanted: &FetchPartition) -> FetchOutcome<'static> {
    let marks = partition.marks();
    match partition.readable_bytes(Offset(wanted.fetch_offset)) {
        Ok(_) => FetchOutcome::read(wanted.index, marks.high_watermark.offset.0, marks.log_start.0, 0),
        Err(error) => failed(partition, wanted.index, errors::of_fetch(&error)),
    }
}

fn failed(partition: &Partition, index: i32, code: ErrorCode) -> FetchOutcome<'static> {
    let marks = partition.marks();
    FetchOutcome {
        high_watermark: marks.high_watermark.offset.0,
        last_stable_offset: marks.high_watermark.offset.0,
        log_start_offset: marks.log_start.0,
        ..FetchOutcome::failed(index, code)
    }
}
