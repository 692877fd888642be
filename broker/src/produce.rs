//! Produce: each batch is checked where it lies, stamped and appended at once; the answer waits for the promises.
//!
//! Batches of idempotent producers (those with a producer id) are stored like any other: sequence numbers are kept,
//! not checked, since the API that hands out producer ids is not offered. Batches of a transaction are refused: nobody
//! here could end it, and readers of committed records would wait behind it for ever.

use std::ops::Range;
use std::rc::Rc;

use ringlog::log::{BatchError, BatchHeader, check_produced};
use ringlog::shard::{Acked, AppendError, Promise, Route, Stage, Ticket, Topic};
use ringlog::sys::{LeaseMut, Moment};
use ringlog::types::TopicId;

use crate::config::REQUEST_PARTITIONS_MAX;
use crate::connection::{Broker, Connection};
use crate::errors::{self, Fault, check_count};
use crate::wire::produce::{ProduceOutcome, ProduceRequest, ProduceResponseWriter};
use crate::wire::{ApiKey, Decoder, Encoder, ErrorCode, Message, RequestHeader, Uuid, WireError};

/// The codec's number in a batch.
const ZSTD: u8 = 4;
/// The version from which on it may be used: before that, readers would not know it.
const ZSTD_FROM: i16 = 7;
/// An entry with room for more topics or partitions is not kept for the next request.
const POOLED_PARTITIONS_MAX: usize = 1024;

/// A Produce request whose batches are appended. Used again and again: it allocates only to grow.
pub(crate) struct Produced {
    pub correlation_id: i32,
    pub version: i16,
    pub acks: i16,
    pub received: Moment,
    topics: Vec<ProducedTopic>,
    outcomes: Vec<Outcome>,
    ranges: Vec<Option<Range<usize>>>,
}

struct ProducedTopic {
    name: TopicName,
    partitions: usize,
}

enum TopicName {
    Known(Rc<Topic>),
    Unknown(String, Uuid),
}

struct Outcome {
    index: i32,
    fate: Fate,
    log_start: i64,
}

/// What becomes of one batch.
enum Fate {
    /// Looks good so far; every one of these is decided before the request is queued.
    Undecided,
    Promised(Promise),
    Appended(Acked),
    /// Why not, and where more is known than the code says, in words.
    Refused(ErrorCode, Option<String>),
}

impl Produced {
    fn empty() -> Produced {
        Produced {
            correlation_id: 0,
            version: 0,
            acks: 0,
            received: Moment(0),
            topics: Vec::with_capacity(4),
            outcomes: Vec::with_capacity(16),
            ranges: Vec::with_capacity(16),
        }
    }

    pub(crate) fn first_error(&self) -> Option<ErrorCode> {
        self.outcomes.iter().find_map(|outcome| match &outcome.fate {
            Fate::Refused(code, _) => Some(*code),
            Fate::Promised(_) | Fate::Appended(_) | Fate::Undecided => None,
        })
    }

    /// What became of the batch of [`single`].
    pub(crate) fn decide_single(
        &mut self,
        broker: &Broker,
        connection: &Connection,
        appended: Result<Result<Ticket, AppendError>, BatchError>,
    ) {
        let TopicName::Known(topic) = &self.topics[0].name else { unreachable!("its topic is known") };
        let outcome = &mut self.outcomes[0];
        let route = broker.shard.route(topic, outcome.index).expect("its partition is there");
        let refused = |code, words: String| Fate::Refused(code, Some(words));
        outcome.log_start = route.board().log_start().0;
        outcome.fate = match appended {
            Ok(Ok(ticket)) => Fate::Promised(Promise::Here(ticket)),
            Ok(Err(error)) => refused(errors::of_append(&error), error.to_string()),
            Err(error) => refused(errors::of_batch(&error), error.to_string()),
        };
        if let Fate::Refused(code, words) = &outcome.fate {
            connection.note_refused_batch(&route, *code, words.as_deref());
        }
    }

    /// Whether the answer can be given without waiting.
    pub(crate) fn is_ready(&self) -> bool {
        self.outcomes.iter().all(|outcome| match &outcome.fate {
            Fate::Promised(promise) => promise.look().is_some(),
            Fate::Appended(_) | Fate::Refused(..) | Fate::Undecided => true,
        })
    }

    /// Waits until every promise holds or is broken.
    pub(crate) async fn settle(&mut self) {
        for outcome in &mut self.outcomes {
            let Fate::Promised(promise) = &outcome.fate else { continue };
            outcome.fate = match promise.kept().await {
                Ok(acked) => Fate::Appended(acked),
                Err(error) => Fate::Refused(errors::of_append(&error), Some(error.to_string())),
            };
        }
    }

    pub(crate) fn encode(&self, into: &mut Vec<u8>) -> Result<(), WireError> {
        let encoder = Encoder::growing(into);
        let mut writer =
            ProduceResponseWriter::begin(encoder, self.correlation_id, self.version, self.topics.len())?;
        let mut outcomes = self.outcomes.iter();
        for topic in &self.topics {
            let (name, id) = match &topic.name {
                TopicName::Known(topic) => (&*topic.name, topic.id.0),
                TopicName::Unknown(name, id) => (name.as_str(), *id),
            };
            writer.topic(name, &id, topic.partitions);
            for outcome in outcomes.by_ref().take(topic.partitions) {
                writer.partition(&match &outcome.fate {
                    Fate::Appended(acked) => ProduceOutcome::appended(
                        outcome.index,
                        acked.offset.0,
                        acked.append_time.0,
                        outcome.log_start,
                    ),
                    Fate::Refused(code, words) => ProduceOutcome {
                        error_message: words.as_deref(),
                        ..ProduceOutcome::refused(outcome.index, *code)
                    },
                    Fate::Undecided | Fate::Promised(_) => {
                        unreachable!("every batch was appended or refused")
                    }
                });
            }
        }
        writer.finish(0, &[]).map(drop)
    }
}

/// Takes a Produce frame: everything in it is checked, and what is good has its offset when this returns.
pub(crate) async fn take(
    broker: &Rc<Broker>,
    connection: &Rc<Connection>,
    mut frame: LeaseMut,
    received: Moment,
) -> Result<Box<Produced>, Fault> {
    let mut produced = connection.pool.borrow_mut().pop().unwrap_or_else(|| Box::new(Produced::empty()));
    produced.topics.clear();
    produced.outcomes.clear();
    produced.ranges.clear();
    let mut decoder = Decoder::new(&frame);
    let header = RequestHeader::decode(&mut decoder)?;
    look(broker, &header, decoder, &mut produced).map_err(|fault| fault.in_request(&header))?;
    produced.received = received;

    // Cut the batches out of the frame, front to back.
    let mut cut = 0;
    let (mut topic, mut left) = (0, produced.topics.first().map_or(0, |t| t.partitions));
    for number in 0..produced.ranges.len() {
        while left == 0 {
            topic += 1;
            left = produced.topics[topic].partitions;
        }
        left -= 1;
        let Some(range) = produced.ranges[number].clone() else { continue };
        drop(frame.split_to(range.start - cut));
        let batch = frame.split_to(range.len());
        cut = range.end;
        let Fate::Undecided = produced.outcomes[number].fate else { continue };
        let TopicName::Known(known) = &produced.topics[topic].name else { continue };
        let route = broker.shard.route(known, produced.outcomes[number].index);
        let route = route.expect("there is such a partition: looked up above");
        let fate = append(&route, batch, produced.version, received).await;
        if let Fate::Refused(code, words) = &fate {
            connection.note_refused_batch(&route, *code, words.as_deref());
        }
        produced.outcomes[number].log_start = route.board().log_start().0;
        produced.outcomes[number].fate = fate;
    }
    Ok(produced)
}

/// Reads the request: which topics and partitions, and where the batches lie. What cannot be appended whatever its
/// bytes are is refused here.
fn look(
    broker: &Broker,
    header: &RequestHeader<'_>,
    mut decoder: Decoder<'_>,
    produced: &mut Produced,
) -> Result<(), Fault> {
    ApiKey::Produce.version(header.version)?;
    let request = ProduceRequest::decode_from(&mut decoder, header.version)?;
    let count = request.topics.len() + request.partition_count();
    check_count("topics and partitions in a Produce request", count, REQUEST_PARTITIONS_MAX)?;
    produced.correlation_id = header.correlation_id;
    produced.version = header.version;
    produced.acks = request.acks;
    let refused = |code| Fate::Refused(code, None);
    let by_id = header.version >= crate::wire::produce::TOPIC_IDS_FROM;
    for topic in request.topics.iter() {
        let known = match by_id {
            true => broker.shard.topic_by_id(TopicId(topic.topic_id)),
            false => broker.shard.topic(topic.name),
        };
        let partitions = topic.partitions.len();
        for partition in topic.partitions.iter() {
            let there = known.as_ref().and_then(|topic| topic.board(partition.index));
            let fate = match (&known, there, &partition.records) {
                _ if !matches!(request.acks, -1..=1) => refused(ErrorCode::InvalidRequiredAcks),
                (None, ..) if by_id => refused(ErrorCode::UnknownTopicId),
                (None, ..) | (_, None, _) => refused(ErrorCode::UnknownTopicOrPartition),
                (_, _, None) => {
                    Fate::Refused(ErrorCode::InvalidRecord, Some("exactly one batch is expected".to_owned()))
                }
                _ => Fate::Undecided,
            };
            produced.outcomes.push(Outcome { index: partition.index, fate, log_start: -1 });
            produced.ranges.push(partition.records.clone());
        }
        let name = match known {
            Some(topic) => TopicName::Known(topic),
            None => TopicName::Unknown(topic.name.to_owned(), topic.topic_id),
        };
        produced.topics.push(ProducedTopic { name, partitions });
    }
    Ok(())
}

/// Every append asks for what its topic asks for, acks=0 too: consumers of a durable topic see what is flushed, so a
/// batch that nobody wants flushed would stay out of sight until another one comes.
async fn append(route: &Route, batch: LeaseMut, version: i16, received: Moment) -> Fate {
    let refused = |code, words: String| Fate::Refused(code, Some(words));
    let header = match check_produced(&batch) {
        Ok(header) => header,
        Err(error) => return refused(errors::of_batch(&error), error.to_string()),
    };
    if let Some((code, words)) = why_not(&header, version) {
        return refused(code, words);
    }
    match route.append(batch, header, None, received).await {
        Ok(promise) => Fate::Promised(promise),
        Err(error) => refused(errors::of_append(&error), error.to_string()),
    }
}

/// Why a sound batch is not taken all the same.
pub(crate) fn why_not(header: &BatchHeader, version: i16) -> Option<(ErrorCode, String)> {
    if header.is_transactional() {
        let words = "a batch of a transaction: transactions are not offered".to_owned();
        return Some((ErrorCode::InvalidTxnState, words));
    }
    if header.compression() == ZSTD && version < ZSTD_FROM {
        let words = format!("zstd in version {version}: it is known from version {ZSTD_FROM} on");
        return Some((ErrorCode::UnsupportedCompressionType, words));
    }
    None
}

/// An entry for a request of one batch.
pub(crate) fn single(
    connection: &Connection,
    topic: &Rc<Topic>,
    index: i32,
    received: Moment,
) -> Box<Produced> {
    let mut produced = connection.pool.borrow_mut().pop().unwrap_or_else(|| Box::new(Produced::empty()));
    produced.topics.clear();
    produced.outcomes.clear();
    produced.ranges.clear();
    produced.received = received;
    produced.topics.push(ProducedTopic { name: TopicName::Known(topic.clone()), partitions: 1 });
    produced.outcomes.push(Outcome { index, fate: Fate::Undecided, log_start: -1 });
    produced
}

/// Notes how long the answer took, and gives the entry back.
pub(crate) fn answered(broker: &Broker, connection: &Connection, produced: Box<Produced>) {
    let took = broker.shard.ring().now().nanos_since(produced.received);
    broker.shard.stages().note(Stage::Answer, took);
    recycle(connection, produced);
}

/// Keeps the entry for the next request, unless it has grown beyond the usual.
pub(crate) fn recycle(connection: &Connection, mut produced: Box<Produced>) {
    produced.topics.clear();
    produced.outcomes.clear();
    if produced.outcomes.capacity().max(produced.topics.capacity()) <= POOLED_PARTITIONS_MAX {
        connection.pool.borrow_mut().push(produced);
    }
}
