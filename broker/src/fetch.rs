//! Fetch: what lies beyond an offset, now or as soon as enough is there.
//!
//! A long poll is registered on the partitions it asks about and looked at again when one of them moves; nothing is
//! scanned by time. Sessions are not kept: every request is a full one and is answered with session id 0.
//!
//! Partitions of other cores are asked for before the first answer is written, so that their owners work at the same
//! time; what they found is put into the answer in the order of the request.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ringlog::log::OFFSET_UNKNOWN;
use ringlog::shard::{Board, Fetching, Route, Topic};
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
/// Partitions of other cores that are asked for ahead of the answer; each may hold a plan's worth of leases.
const AHEAD_MAX: usize = 64;

/// What becomes of one partition of a request.
pub(crate) enum Wanted {
    Found(Route),
    UnderWay(Fetching, Route),
    Refused(FetchOutcome<'static>),
}

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let version = header.version;
    let request = FetchRequest::decode_from(decoder, version)?;
    check_count("partitions in a Fetch request", request.partition_count(), REQUEST_PARTITIONS_MAX)?;
    // 0 and -1 ask for everything anew, whatever session there was; anything else continues one, and there is none.
    if !matches!(request.session_epoch, 0 | -1) {
        let terms =
            FetchResponseTerms { error_code: ErrorCode::FetchSessionIdNotFound, ..Default::default() };
        FetchResponseWriter::begin(&mut writer.frame, header.correlation_id, version, &terms, 0)?
            .finish(&[])?;
        return writer.send_frame().await;
    }
    find_all(writer, version, &request).await;
    if wait_for_enough(writer, &request).await {
        // Something has moved: epochs, too, perhaps.
        find_all(writer, version, &request).await;
    }

    let mut left = i64::from(request.max_bytes).min(ANSWER_BYTES_MAX);
    let (default, mut found_any) = (writer.broker.shard.config().egress, false);
    let egress_of = |route: &Route| route.topic().config.egress.unwrap_or(default);
    let mut under_way = 0;
    let asked = request.topics.iter().flat_map(|topic| topic.partitions.iter());
    for (wanted, asked) in writer.wanted.iter_mut().zip(asked) {
        let Wanted::Found(route) = &*wanted else { continue };
        if route.here().is_none() && under_way < AHEAD_MAX {
            under_way += 1;
            let (route, bytes_max) = (route.clone(), i64::from(asked.partition_max_bytes).min(left).max(0));
            let egress = egress_of(&route);
            let fetching = route.begin_fetch(Offset(asked.fetch_offset), bytes_max as u64, egress).await;
            *wanted = Wanted::UnderWay(fetching, route);
        }
    }

    let terms = FetchResponseTerms::default();
    let (frame, pieces, carriers) = (&mut writer.frame, &mut writer.pieces, &mut writer.carriers);
    let mut found = writer.wanted.drain(..);
    let mut response =
        FetchResponseWriter::begin(frame, header.correlation_id, version, &terms, request.topics.len())?;
    for topic in request.topics.iter() {
        response.topic(topic.name, &topic.topic_id, topic.partitions.len());
        for asked in topic.partitions.iter() {
            let offset = Offset(asked.fetch_offset);
            let (fetching, route) = match found.next().expect("one for each that was asked for") {
                Wanted::Refused(outcome) => {
                    response.partition(&outcome);
                    continue;
                }
                Wanted::UnderWay(fetching, route) => (Some(fetching), route),
                Wanted::Found(route) => (None, route),
            };
            if found_any && left <= 0 {
                drop(fetching);
                response.partition(&full(&route, &asked));
                continue;
            }
            let bytes_max = i64::from(asked.partition_max_bytes).min(left).max(0) as u64;
            let egress = egress_of(&route);
            let first = pieces.len();
            let fetching = match fetching {
                Some(fetching) => fetching,
                None => route.begin_fetch(offset, bytes_max, egress).await,
            };
            let mut fetched = fetching.into(bytes_max, pieces).await;
            // Asked for when there was more room than there is now: once more, with what is left.
            if found_any && fetched.as_ref().is_ok_and(|fetched| fetched.bytes as i64 > left) {
                pieces.truncate(first);
                fetched = route.begin_fetch(offset, bytes_max, egress).await.into(bytes_max, pieces).await;
            }
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
                    FetchOutcome::read(asked.index, fetched.high_watermark.0, fetched.log_start.0, bytes)
                }
                Err(error) => {
                    pieces.truncate(first);
                    writer.connection.note_failed_fetch(&route, asked.fetch_offset, &error);
                    failed(route.board(), asked.index, errors::of_fetch(&error))
                }
            };
            carriers.resize(pieces.len(), egress);
            response.partition(&outcome);
        }
    }
    drop(found);
    response.finish(&[])?;
    writer.send_frame().await
}

/// Looks up every partition of the request, in its order.
async fn find_all(writer: &mut Writer<'_>, version: i16, request: &FetchRequest<'_>) {
    writer.wanted.clear();
    for topic in request.topics.iter() {
        let known = find(writer.broker, version, &topic);
        for asked in topic.partitions.iter() {
            let wanted = match check(writer, version, known.as_ref(), &asked).await {
                Ok(route) => Wanted::Found(route),
                Err(outcome) => Wanted::Refused(outcome),
            };
            writer.wanted.push(wanted);
        }
    }
}

/// Waits until `min_bytes` can be read, something is wrong, or the time is up. False when there was nothing to wait for.
async fn wait_for_enough(writer: &Writer<'_>, request: &FetchRequest<'_>) -> bool {
    let ring = writer.broker.shard.ring();
    let min_bytes = i64::from(request.min_bytes.min(request.max_bytes)).min(ANSWER_BYTES_MAX);
    if min_bytes <= 0 || request.max_wait_ms <= 0 || is_enough_at_a_glance(writer, request, min_bytes as u64)
    {
        return false;
    }
    let timer = &writer.timer;
    timer.arm(ring.now().plus(Duration::from_millis(request.max_wait_ms as u64)));
    let mut stop = pin!(writer.broker.shard.stopping());
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    loop {
        // Noted and registered before the look, so that nothing can move in between unseen.
        let noted = moves(writer);
        if is_enough(writer, request, min_bytes as u64, &waker).await {
            break;
        }
        let moved = poll_fn(|cx| {
            // A poll may be told to last for weeks: a peer that left, and a stop, end it.
            if writer.connection.has_input_ended(cx.waker()) || stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(false);
            }
            if moves(writer) != noted {
                return Poll::Ready(true);
            }
            timer.poll_expired(cx).map(|()| false)
        })
        .await;
        if !moved {
            break;
        }
    }
    timer.disarm();
    true
}

fn moves(writer: &Writer<'_>) -> u64 {
    let of = |wanted: &Wanted| match wanted {
        Wanted::Found(route) | Wanted::UnderWay(_, route) => route.board().moves(),
        Wanted::Refused(_) => 0,
    };
    writer.wanted.iter().map(of).fold(0, u64::wrapping_add)
}

/// What can be told without asking other cores: of theirs, that there is something.
fn is_enough_at_a_glance(writer: &Writer<'_>, request: &FetchRequest<'_>, min_bytes: u64) -> bool {
    let asked = request.topics.iter().flat_map(|topic| topic.partitions.iter());
    let mut bytes = 0u64;
    for (wanted, asked) in writer.wanted.iter().zip(asked) {
        let Wanted::Found(route) = wanted else { return true };
        let offset = Offset(asked.fetch_offset);
        bytes += match route.here().map(|partition| partition.readable_bytes(offset)) {
            Some(Ok(readable)) => readable,
            Some(Err(_)) => return true,
            None if offset < route.board().log_start() || offset > route.board().log_end() => return true,
            None => u64::from(route.board().high_watermark() > offset),
        };
        if bytes >= min_bytes {
            return true;
        }
    }
    false
}

async fn is_enough(writer: &Writer<'_>, request: &FetchRequest<'_>, min_bytes: u64, watch: &Waker) -> bool {
    let asked = request.topics.iter().flat_map(|topic| topic.partitions.iter());
    let mut bytes = 0u64;
    for (wanted, asked) in writer.wanted.iter().zip(asked) {
        let Wanted::Found(route) = wanted else { return true };
        let Ok(readable) = route.readable_bytes(Offset(asked.fetch_offset), watch).await else {
            return true;
        };
        bytes += readable;
        if bytes >= min_bytes {
            return true;
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

/// The way to the partition, or what is to be answered instead.
async fn check(
    writer: &Writer<'_>,
    version: i16,
    topic: Option<&Rc<Topic>>,
    wanted: &FetchPartition,
) -> Result<Route, FetchOutcome<'static>> {
    let unknown = match version >= TOPIC_IDS_FROM {
        true => ErrorCode::UnknownTopicId,
        false => ErrorCode::UnknownTopicOrPartition,
    };
    let refused = |code| FetchOutcome::failed(wanted.index, code);
    let topic = topic.ok_or(refused(unknown))?;
    let route = writer.broker.shard.route(topic, wanted.index);
    let route = route.ok_or(refused(ErrorCode::UnknownTopicOrPartition))?;
    let board = route.board();
    check_epoch(board.epoch(), wanted.current_leader_epoch).map_err(refused)?;
    // Who read the last record in the reign that still goes on has not diverged.
    let fetched = Epoch(wanted.last_fetched_epoch);
    let same_reign = fetched == board.epoch() && Offset(wanted.fetch_offset) <= board.log_end();
    if fetched.0 >= 0 && !same_reign {
        let end = route.with(move |partition| async move { partition.end_offset_for(fetched) }).await;
        let (epoch, end) = end.ok_or(refused(ErrorCode::NotLeaderOrFollower))?;
        // Nothing is known that old: an end of -1 would read as "not diverged", and the client would ask for ever.
        if epoch == Epoch::NONE || end == OFFSET_UNKNOWN {
            return Err(failed(route.board(), wanted.index, ErrorCode::OffsetOutOfRange));
        }
        if epoch < fetched || end < Offset(wanted.fetch_offset) {
            let read = read_nothing(route.board(), wanted.index);
            let diverging_epoch = EpochEndOffset { epoch: epoch.0, end_offset: end.0 };
            return Err(FetchOutcome { diverging_epoch, ..read });
        }
    }
    Ok(route)
}

/// Whether a client knows the same reign as we do. -1 says that it does not care.
pub(crate) fn check_epoch(current: Epoch, known: i32) -> Result<(), ErrorCode> {
    match known {
        epoch if epoch < 0 || epoch == current.0 => Ok(()),
        epoch if epoch < current.0 => Err(ErrorCode::FencedLeaderEpoch),
        _ => Err(ErrorCode::UnknownLeaderEpoch),
    }
}

fn read_nothing(board: &Board, index: i32) -> FetchOutcome<'static> {
    FetchOutcome::read(index, board.high_watermark().0, board.log_start().0, 0)
}

/// A partition for which the answer has no room left. What is wrong with it is said all the same.
fn full(route: &Route, wanted: &FetchPartition) -> FetchOutcome<'static> {
    let (board, offset) = (route.board(), Offset(wanted.fetch_offset));
    if let Some(Err(error)) = route.here().map(|partition| partition.readable_bytes(offset)) {
        return failed(board, wanted.index, errors::of_fetch(&error));
    }
    if offset < board.log_start() || offset > board.log_end() {
        return failed(board, wanted.index, ErrorCode::OffsetOutOfRange);
    }
    read_nothing(board, wanted.index)
}

fn failed(board: &Board, index: i32, code: ErrorCode) -> FetchOutcome<'static> {
    let high_watermark = board.high_watermark().0;
    FetchOutcome {
        high_watermark,
        last_stable_offset: high_watermark,
        log_start_offset: board.log_start().0,
        ..FetchOutcome::failed(index, code)
    }
}
