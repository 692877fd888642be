//! Produce (key 0). Requests and responses are read in place; a request is written with gaps for its records, a
//! response straight into a buffer. Nothing here allocates, and no record byte is looked at.

use std::ops::Range;

use super::codec::encode_elements;
use super::frame::FrameStart;
use super::gapped::{Gap, GappedFrame};
use super::leader::{LeaderIdAndEpoch, NodeEndpoint};
use super::nesting::Nesting;
use super::table::{encode_tagged, messages};
use super::{ApiKey, Encoder, ErrorCode, RequestHeader, Uuid, Version, View, WireError};

/// From this version on topics go by id.
pub const TOPIC_IDS_FROM: i16 = 13;

messages! {
    /// Batches to be appended.
    pub view ProduceRequest<'a> of Produce {
        transactional_id: Option<&'a str> = 3..;
        /// 0: no response at all, 1: the leader has it, -1: all in-sync replicas have it.
        acks: i16 = 0..;
        timeout_ms: i32 = 0..;
        topics: View<'a, ProduceTopic<'a>> = 0..;
    }

    /// One topic of the request: its name, or from version 13 on its id.
    pub view ProduceTopic<'a> {
        name: &'a str = 0..=12;
        topic_id: Uuid = 13..;
        partitions: View<'a, ProducePartition> = 0..;
    }

    /// One partition of the request.
    pub view ProducePartition {
        index: i32 = 0..;
        /// Where the batch lies in the slice that was decoded, so that it can be stamped in place.
        records: Option<Range<usize>> = 0..;
    }

    /// What became of the batches.
    pub view ProduceResponse<'a> of Produce {
        topics: View<'a, ProduceTopicResponse<'a>> = 0..;
        throttle_time_ms: i32 = 1..;
        node_endpoints: View<'a, NodeEndpoint<'a>> = 10.., tag 0;
    }

    /// One topic of the response.
    pub view ProduceTopicResponse<'a> {
        name: &'a str = 0..=12;
        topic_id: Uuid = 13..;
        partitions: View<'a, ProducePartitionResponse<'a>> = 0..;
    }

    /// What became of one batch.
    pub view ProducePartitionResponse<'a> {
        index: i32 = 0..;
        error_code: ErrorCode = 0..;
        base_offset: i64 = 0..;
        log_append_time_ms: i64 = 2.., default -1;
        log_start_offset: i64 = 5.., default -1;
        record_errors: View<'a, RecordError<'a>> = 8..;
        error_message: Option<&'a str> = 8..;
        current_leader: LeaderIdAndEpoch = 10.., tag 0;
    }

    /// A record that made the broker refuse its whole batch.
    pub struct RecordError<'a> {
        batch_index: i32 = 8..;
        message: Option<&'a str> = 8..;
    }
}

impl ProduceRequest<'_> {
    /// How many partitions over all topics.
    pub fn partition_count(&self) -> usize {
        self.topics.iter().map(|topic| topic.partitions.len()).sum()
    }
}

/// What became of one batch, to be written.
#[derive(Clone, Copy, Debug)]
pub struct ProduceOutcome<'a> {
    /// The partition.
    pub index: i32,
    /// `ErrorCode::None` if the batch was appended.
    pub error_code: ErrorCode,
    /// The offset of its first record, -1 with an error.
    pub base_offset: i64,
    /// -1 unless the topic's timestamps are the broker's.
    pub log_append_time_ms: i64,
    /// The earliest offset that can be read.
    pub log_start_offset: i64,
    /// The records at fault.
    pub record_errors: &'a [RecordError<'a>],
    /// What is wrong, in words.
    pub error_message: Option<&'a str>,
    /// Whom to ask instead.
    pub current_leader: LeaderIdAndEpoch,
}

impl ProduceOutcome<'_> {
    /// A batch that was appended at that offset.
    pub fn appended(index: i32, base_offset: i64, log_append_time_ms: i64, log_start_offset: i64) -> Self {
        let appended = Self::refused(index, ErrorCode::None);
        Self { base_offset, log_append_time_ms, log_start_offset, ..appended }
    }

    /// A batch that was not appended.
    pub fn refused(index: i32, error_code: ErrorCode) -> Self {
        Self {
            index,
            error_code,
            base_offset: -1,
            log_append_time_ms: -1,
            log_start_offset: -1,
            record_errors: &[],
            error_message: None,
            current_leader: LeaderIdAndEpoch::default(),
        }
    }
}

/// Writes a whole Produce response frame, in the order of the wire: `begin`, then for each topic `topic` and as many
/// `partition`s as it announced, then `finish`. What goes wrong on the way is told by `finish`.
#[derive(Debug)]
pub struct ProduceResponseWriter<'a> {
    encoder: Encoder<'a>,
    version: Version,
    frame: FrameStart,
    nesting: Nesting,
}

impl<'a> ProduceResponseWriter<'a> {
    /// Writes length prefix, header and the number of topics.
    ///
    /// # Errors
    /// `UnsupportedVersion`.
    pub fn begin(
        mut encoder: Encoder<'a>,
        correlation_id: i32,
        version: i16,
        topic_count: usize,
    ) -> Result<Self, WireError> {
        let version = ApiKey::Produce.version(version)?;
        let frame = FrameStart::begin(&mut encoder);
        encoder.i32(correlation_id);
        encoder.no_tagged_fields(version.flexible);
        let nesting = Nesting::begin(&mut encoder, version, TOPIC_IDS_FROM, topic_count);
        Ok(Self { encoder, version, frame, nesting })
    }

    /// Begins a topic; the version decides whether its name or its id is written.
    ///
    /// # Panics
    /// If partitions of the last topic are missing, or it is one topic too many.
    pub fn topic(&mut self, name: &str, topic_id: &Uuid, partition_count: usize) {
        self.nesting.topic(&mut self.encoder, name, topic_id, partition_count);
    }

    /// Writes one partition of the topic.
    ///
    /// # Panics
    /// If it is one too many.
    pub fn partition(&mut self, outcome: &ProduceOutcome<'_>) {
        let (encoder, version) = (&mut self.encoder, self.version);
        encoder.field = "ProducePartitionResponse";
        encoder.i32(outcome.index);
        encoder.i16(outcome.error_code.code());
        encoder.i64(outcome.base_offset);
        encoder.i64(outcome.log_append_time_ms);
        if version.number >= 5 {
            encoder.i64(outcome.log_start_offset);
        }
        if version.number >= 8 {
            encode_elements(outcome.record_errors, encoder, version);
            encoder.nullable_string(version.flexible, outcome.error_message);
        }
        if version.flexible {
            let tagged = version.number >= 10 && outcome.current_leader != LeaderIdAndEpoch::default();
            encoder.uvarint(u32::from(tagged));
            if tagged {
                encode_tagged(encoder, 0, &outcome.current_leader, version);
            }
        }
        self.nesting.partition_done(encoder);
    }

    /// Writes the rest and fills in the length prefix. Returns the frame's length, prefix included.
    ///
    /// # Errors
    /// The first thing that could not be written.
    ///
    /// # Panics
    /// If topics or partitions are missing.
    pub fn finish(
        mut self,
        throttle_time_ms: i32,
        node_endpoints: &[NodeEndpoint<'_>],
    ) -> Result<u64, WireError> {
        self.nesting.end();
        self.encoder.i32(throttle_time_ms);
        finish_with_endpoints(&mut self.encoder, self.version, 10, node_endpoints);
        self.frame.end(&mut self.encoder, 0)
    }
}

/// The tagged fields at the end of a Produce or Fetch response.
pub(super) fn finish_with_endpoints(
    encoder: &mut Encoder<'_>,
    version: Version,
    endpoints_from: i16,
    endpoints: &[NodeEndpoint<'_>],
) {
    if !version.flexible {
        return;
    }
    let tagged = version.number >= endpoints_from && !endpoints.is_empty();
    encoder.uvarint(u32::from(tagged));
    if tagged {
        let mut counter = Encoder::counting();
        encode_elements(endpoints, &mut counter, version);
        encoder.uvarint(0);
        encoder.uvarint(u32::try_from(counter.position()).unwrap_or(u32::MAX));
        encode_elements(endpoints, encoder, version);
    }
}

/// Writes a Produce request frame with gaps for the records: `begin`, for each topic `topic` and its `partition`s,
/// `finish`.
#[derive(Debug)]
pub struct ProduceRequestWriter<'a> {
    encoder: Encoder<'a>,
    gaps: &'a mut Vec<Gap>,
    gap_bytes: u64,
    version: Version,
    frame: FrameStart,
    nesting: Nesting,
}

/// What stands before the topics of a Produce request.
#[derive(Clone, Copy, Debug)]
pub struct ProduceTerms<'a> {
    /// Null but for transactions.
    pub transactional_id: Option<&'a str>,
    /// 0, 1 or -1.
    pub acks: i16,
    /// How long the broker may wait for replicas.
    pub timeout_ms: i32,
}

impl<'a> ProduceRequestWriter<'a> {
    /// Appends length prefix, header, terms and the number of topics.
    ///
    /// # Errors
    /// `UnsupportedVersion`, or a header that cannot be written.
    ///
    /// # Panics
    /// If the header is of another API.
    pub fn begin(
        frame: &'a mut GappedFrame,
        header: &RequestHeader<'_>,
        terms: &ProduceTerms<'_>,
        topic_count: usize,
    ) -> Result<Self, WireError> {
        assert_eq!(header.api, ApiKey::Produce, "the header names the API");
        let version = ApiKey::Produce.version(header.version)?;
        let mut encoder = Encoder::growing(&mut frame.bytes);
        let start = FrameStart::begin(&mut encoder);
        header.encode(&mut encoder)?;
        encoder.nullable_string(version.flexible, terms.transactional_id);
        encoder.i16(terms.acks);
        encoder.i32(terms.timeout_ms);
        let nesting = Nesting::begin(&mut encoder, version, TOPIC_IDS_FROM, topic_count);
        Ok(Self { encoder, gaps: &mut frame.gaps, gap_bytes: 0, version, frame: start, nesting })
    }

    /// Begins a topic; the version decides whether its name or its id is written.
    ///
    /// # Panics
    /// If partitions of the last topic are missing, or it is one topic too many.
    pub fn topic(&mut self, name: &str, topic_id: &Uuid, partition_count: usize) {
        self.nesting.topic(&mut self.encoder, name, topic_id, partition_count);
    }

    /// Writes one partition and leaves a gap for its records.
    ///
    /// # Panics
    /// If it is one too many.
    pub fn partition(&mut self, index: i32, record_bytes: u64) {
        self.encoder.field = "ProducePartition.records";
        self.encoder.i32(index);
        self.encoder.length(self.version.flexible, record_bytes);
        note_gap(&self.encoder, self.gaps, &mut self.gap_bytes, record_bytes);
        self.encoder.no_tagged_fields(self.version.flexible);
        self.nesting.partition_done(&mut self.encoder);
    }

    /// Fills in the length prefix. Returns the frame's length, prefix and records included.
    ///
    /// # Errors
    /// The first thing that could not be written.
    ///
    /// # Panics
    /// If topics or partitions are missing.
    pub fn finish(mut self) -> Result<u64, WireError> {
        self.nesting.end();
        self.encoder.no_tagged_fields(self.version.flexible);
        self.frame.end(&mut self.encoder, self.gap_bytes)
    }
}

/// Leaves a gap at the encoder's place, unless there is nothing to put there.
pub(super) fn note_gap(encoder: &Encoder<'_>, gaps: &mut Vec<Gap>, gap_bytes: &mut u64, record_bytes: u64) {
    if record_bytes > 0 {
        gaps.push(Gap { position: encoder.position(), record_bytes });
        // Saturating: a sum that large fails at the frame's length prefix.
        *gap_bytes = gap_bytes.saturating_add(record_bytes);
    }
}

/// A Produce request of one topic, each partition with the length of its records. The records of the first go after
/// `bytes[..gaps[0].position]`, and so on; in flexible versions a few bytes follow the last.
///
/// # Errors
/// As [`ProduceRequestWriter`].
pub fn encode_produce_prefix(
    frame: &mut GappedFrame,
    header: &RequestHeader<'_>,
    terms: &ProduceTerms<'_>,
    (name, topic_id): (&str, &Uuid),
    partitions: &[(i32, u64)],
) -> Result<u64, WireError> {
    let mut writer = ProduceRequestWriter::begin(frame, header, terms, 1)?;
    writer.topic(name, topic_id, partitions.len());
    for (index, record_bytes) in partitions {
        writer.partition(*index, *record_bytes);
    }
    writer.finish()
}
