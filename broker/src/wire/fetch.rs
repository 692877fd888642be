//! Fetch (key 1). Requests and responses are read in place; a response is written with gaps for its records, which
//! travel to the socket by another way. Nothing here allocates, and no record byte is looked at.

use std::ops::Range;

use super::codec::encode_elements;
use super::frame::FrameStart;
use super::gapped::{Gap, GappedFrame};
use super::leader::{LeaderIdAndEpoch, NodeEndpoint};
use super::nesting::Nesting;
use super::produce::{finish_with_endpoints, note_gap};
use super::table::{encode_tagged, messages};
use super::{ApiKey, Encode, Encoder, ErrorCode, RequestHeader, Uuid, Version, View, WireError};

/// From this version on topics go by id.
pub const TOPIC_IDS_FROM: i16 = 13;

messages! {
    /// What a consumer or follower wants to read.
    pub view FetchRequest<'a> of Fetch {
        cluster_id: Option<&'a str> = 12.., tag 0;
        /// See [`FetchRequest::replica`].
        replica_id: i32 = 0..=14, default -1;
        /// See [`FetchRequest::replica`].
        replica_state: ReplicaState = 15.., tag 1;
        max_wait_ms: i32 = 0..;
        min_bytes: i32 = 0..;
        max_bytes: i32 = 3.., default i32::MAX;
        isolation_level: i8 = 4..;
        session_id: i32 = 7..;
        session_epoch: i32 = 7.., default -1;
        topics: View<'a, FetchTopic<'a>> = 0..;
        forgotten_topics: View<'a, ForgottenTopic<'a>> = 7..;
        rack_id: &'a str = 11..;
    }

    /// The follower that asks; -1 for a consumer.
    #[derive(Copy)]
    pub struct ReplicaState {
        replica_id: i32 = 0.., default -1;
        replica_epoch: i64 = 0.., default -1;
    }

    /// One topic of the request: its name, or from version 13 on its id.
    pub view FetchTopic<'a> {
        name: &'a str = 0..=12;
        topic_id: Uuid = 13..;
        partitions: View<'a, FetchPartition> = 0..;
    }

    /// One partition of the request.
    #[derive(Copy)]
    pub struct FetchPartition {
        index: i32 = 0..;
        current_leader_epoch: i32 = 9.., default -1, ignorable true;
        fetch_offset: i64 = 0..;
        last_fetched_epoch: i32 = 12.., default -1;
        log_start_offset: i64 = 5.., default -1, ignorable true;
        partition_max_bytes: i32 = 0..;
        replica_directory_id: Uuid = 17.., tag 0, ignorable true;
        /// -1 when the follower does not know it.
        high_watermark: i64 = 18.., default i64::MAX, tag 1, ignorable true;
    }

    /// Partitions to be taken out of a fetch session.
    pub view ForgottenTopic<'a> {
        name: &'a str = 7..=12;
        topic_id: Uuid = 13..;
        partitions: View<'a, i32> = 7..;
    }

    /// What was read.
    pub view FetchResponse<'a> of Fetch {
        throttle_time_ms: i32 = 1..;
        error_code: ErrorCode = 7..;
        session_id: i32 = 7..;
        topics: View<'a, FetchTopicResponse<'a>> = 0..;
        node_endpoints: View<'a, NodeEndpoint<'a>> = 16.., tag 0;
    }

    /// One topic of the response.
    pub view FetchTopicResponse<'a> {
        name: &'a str = 0..=12;
        topic_id: Uuid = 13..;
        partitions: View<'a, FetchPartitionResponse<'a>> = 0..;
    }

    /// One partition of the response.
    pub view FetchPartitionResponse<'a> {
        index: i32 = 0..;
        error_code: ErrorCode = 0..;
        high_watermark: i64 = 0..;
        last_stable_offset: i64 = 4.., default -1;
        log_start_offset: i64 = 5.., default -1;
        diverging_epoch: EpochEndOffset = 12.., tag 0;
        current_leader: LeaderIdAndEpoch = 12.., tag 1;
        snapshot_id: SnapshotId = 12.., tag 2;
        aborted_transactions: Option<View<'a, AbortedTransaction>> = 4..;
        preferred_read_replica: i32 = 11.., default -1;
        /// Where the batches lie in the slice that was decoded.
        records: Option<Range<usize>> = 0..;
    }

    /// The largest epoch that reader and leader may have in common, and its end.
    #[derive(Copy)]
    pub struct EpochEndOffset {
        epoch: i32 = 0.., default -1;
        end_offset: i64 = 0.., default -1;
    }

    /// The snapshot to fetch instead (of the metadata log).
    #[derive(Copy)]
    pub struct SnapshotId {
        end_offset: i64 = 0.., default -1;
        epoch: i32 = 0.., default -1;
    }

    /// A transaction whose records a committed reader skips.
    #[derive(Copy)]
    pub struct AbortedTransaction {
        producer_id: i64 = 4..;
        first_offset: i64 = 4..;
    }
}

impl FetchRequest<'_> {
    /// Who asks, wherever this version says it.
    pub fn replica(&self) -> ReplicaState {
        if self.replica_id >= 0 {
            return ReplicaState { replica_id: self.replica_id, ..ReplicaState::default() };
        }
        self.replica_state
    }

    /// How many partitions over all topics.
    pub fn partition_count(&self) -> usize {
        self.topics.iter().map(|topic| topic.partitions.len()).sum()
    }
}

/// What stands before the topics of a Fetch response.
#[derive(Clone, Copy, Debug, Default)]
pub struct FetchResponseTerms {
    /// How long the client is held back.
    pub throttle_time_ms: i32,
    /// An error of the whole request: of its session, say.
    pub error_code: ErrorCode,
    /// 0 without a session.
    pub session_id: i32,
}

/// One partition of a Fetch response, to be written.
#[derive(Clone, Copy, Debug)]
pub struct FetchOutcome<'a> {
    /// The partition.
    pub index: i32,
    /// `ErrorCode::None` if it could be read.
    pub error_code: ErrorCode,
    /// The end that consumers may see; -1 with an error.
    pub high_watermark: i64,
    /// The end that committed readers may see.
    pub last_stable_offset: i64,
    /// The earliest offset that can be read.
    pub log_start_offset: i64,
    /// Says that the reader has diverged.
    pub diverging_epoch: EpochEndOffset,
    /// Whom to ask instead.
    pub current_leader: LeaderIdAndEpoch,
    /// The snapshot to fetch instead.
    pub snapshot_id: SnapshotId,
    /// Null for a reader that sees uncommitted records.
    pub aborted_transactions: Option<&'a [AbortedTransaction]>,
    /// Where to read next time, -1 for here.
    pub preferred_read_replica: i32,
    /// How many bytes of records will go into the gap.
    pub record_bytes: u64,
}

impl FetchOutcome<'_> {
    /// A partition that was read, all of it visible.
    pub fn read(index: i32, high_watermark: i64, log_start_offset: i64, record_bytes: u64) -> Self {
        let last_stable_offset = high_watermark;
        let read = Self::failed(index, ErrorCode::None);
        Self { high_watermark, last_stable_offset, log_start_offset, record_bytes, ..read }
    }

    /// A partition that could not be read.
    pub fn failed(index: i32, error_code: ErrorCode) -> Self {
        Self {
            index,
            error_code,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            diverging_epoch: EpochEndOffset::default(),
            current_leader: LeaderIdAndEpoch::default(),
            snapshot_id: SnapshotId::default(),
            aborted_transactions: None,
            preferred_read_replica: -1,
            record_bytes: 0,
        }
    }
}

/// Writes a Fetch response frame with gaps for the records: `begin`, for each topic `topic` and its `partition`s,
/// `finish`.
#[derive(Debug)]
pub struct FetchResponseWriter<'a> {
    encoder: Encoder<'a>,
    gaps: &'a mut Vec<Gap>,
    gap_bytes: u64,
    version: Version,
    frame: FrameStart,
    nesting: Nesting,
}

impl<'a> FetchResponseWriter<'a> {
    /// Appends length prefix, header, terms and the number of topics.
    ///
    /// # Errors
    /// `UnsupportedVersion`.
    pub fn begin(
        frame: &'a mut GappedFrame,
        correlation_id: i32,
        version: i16,
        terms: &FetchResponseTerms,
        topic_count: usize,
    ) -> Result<Self, WireError> {
        let version = ApiKey::Fetch.version(version)?;
        let mut encoder = Encoder::growing(&mut frame.bytes);
        let start = FrameStart::begin(&mut encoder);
        encoder.i32(correlation_id);
        encoder.no_tagged_fields(version.flexible);
        encoder.i32(terms.throttle_time_ms);
        if version.number >= 7 {
            encoder.i16(terms.error_code.code());
            encoder.i32(terms.session_id);
        }
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
    pub fn partition(&mut self, outcome: &FetchOutcome<'_>) {
        let (encoder, version) = (&mut self.encoder, self.version);
        encoder.field = "FetchPartitionResponse";
        encoder.i32(outcome.index);
        encoder.i16(outcome.error_code.code());
        encoder.i64(outcome.high_watermark);
        encoder.i64(outcome.last_stable_offset);
        if version.number >= 5 {
            encoder.i64(outcome.log_start_offset);
        }
        match outcome.aborted_transactions {
            Some(aborted) => encode_elements(aborted, encoder, version),
            None => encoder.null_length(version.flexible),
        }
        if version.number >= 11 {
            encoder.i32(outcome.preferred_read_replica);
        }
        encoder.length(version.flexible, outcome.record_bytes);
        note_gap(encoder, self.gaps, &mut self.gap_bytes, outcome.record_bytes);
        if version.flexible {
            let diverging = outcome.diverging_epoch != EpochEndOffset::default();
            let leader = outcome.current_leader != LeaderIdAndEpoch::default();
            let snapshot = outcome.snapshot_id != SnapshotId::default();
            encoder.uvarint(u32::from(diverging) + u32::from(leader) + u32::from(snapshot));
            if diverging {
                encode_tagged(encoder, 0, &outcome.diverging_epoch, version);
            }
            if leader {
                encode_tagged(encoder, 1, &outcome.current_leader, version);
            }
            if snapshot {
                encode_tagged(encoder, 2, &outcome.snapshot_id, version);
            }
        }
        self.nesting.partition_done(encoder);
    }

    /// Writes the rest and fills in the length prefix. Returns the frame's length, prefix and records included.
    ///
    /// # Errors
    /// The first thing that could not be written.
    ///
    /// # Panics
    /// If topics or partitions are missing.
    pub fn finish(mut self, node_endpoints: &[NodeEndpoint<'_>]) -> Result<u64, WireError> {
        self.nesting.end();
        finish_with_endpoints(&mut self.encoder, self.version, 16, node_endpoints);
        self.frame.end(&mut self.encoder, self.gap_bytes)
    }
}

/// What a Fetch request says beside its topics.
#[derive(Clone, Copy, Debug)]
pub struct FetchTerms<'a> {
    /// Only followers of the metadata log say it.
    pub cluster_id: Option<&'a str>,
    /// Who asks; the default for a consumer.
    pub replica: ReplicaState,
    /// How long the broker may wait for `min_bytes`.
    pub max_wait_ms: i32,
    /// How many bytes are worth an answer.
    pub min_bytes: i32,
    /// How many bytes the answer may have.
    pub max_bytes: i32,
    /// 0: all records, 1: committed ones.
    pub isolation_level: i8,
    /// 0 without a session.
    pub session_id: i32,
    /// -1 without a session.
    pub session_epoch: i32,
    /// Where the client is.
    pub rack_id: &'a str,
}

impl Default for FetchTerms<'_> {
    /// A consumer without a session that takes whatever there is.
    fn default() -> Self {
        Self {
            cluster_id: None,
            replica: ReplicaState::default(),
            max_wait_ms: 0,
            min_bytes: 0,
            max_bytes: i32::MAX,
            isolation_level: 0,
            session_id: 0,
            session_epoch: -1,
            rack_id: "",
        }
    }
}

/// Partitions to be taken out of a session, to be written.
#[derive(Clone, Copy, Debug)]
pub struct Forgotten<'a> {
    /// The topic's name.
    pub name: &'a str,
    /// The topic's id.
    pub topic_id: Uuid,
    /// Its partitions.
    pub partitions: &'a [i32],
}

/// Writes a Fetch request frame: `begin`, for each topic `topic` and its `partition`s, `finish`.
#[derive(Debug)]
pub struct FetchRequestWriter<'a> {
    encoder: Encoder<'a>,
    version: Version,
    frame: FrameStart,
    nesting: Nesting,
    terms: FetchTerms<'a>,
}

impl<'a> FetchRequestWriter<'a> {
    /// Writes length prefix, header, terms and the number of topics.
    ///
    /// # Errors
    /// `UnsupportedVersion`, or a header that cannot be written.
    ///
    /// # Panics
    /// If the header is of another API.
    pub fn begin(
        mut encoder: Encoder<'a>,
        header: &RequestHeader<'_>,
        terms: &FetchTerms<'a>,
        topic_count: usize,
    ) -> Result<Self, WireError> {
        assert_eq!(header.api, ApiKey::Fetch, "the header names the API");
        let version = ApiKey::Fetch.version(header.version)?;
        let frame = FrameStart::begin(&mut encoder);
        header.encode(&mut encoder)?;
        encoder.field = "FetchRequest";
        if version.number <= 14 {
            encoder.i32(terms.replica.replica_id);
        }
        encoder.i32(terms.max_wait_ms);
        encoder.i32(terms.min_bytes);
        encoder.i32(terms.max_bytes);
        terms.isolation_level.encode(&mut encoder, version);
        if version.number >= 7 {
            encoder.i32(terms.session_id);
            encoder.i32(terms.session_epoch);
        }
        let nesting = Nesting::begin(&mut encoder, version, TOPIC_IDS_FROM, topic_count);
        Ok(Self { encoder, version, frame, nesting, terms: *terms })
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
    pub fn partition(&mut self, partition: &FetchPartition) {
        partition.encode(&mut self.encoder, self.version);
        self.nesting.partition_done(&mut self.encoder);
    }

    /// Writes the rest and fills in the length prefix. Returns the frame's length, prefix included.
    ///
    /// # Errors
    /// The first thing that could not be written: partitions to forget before version 7, say.
    ///
    /// # Panics
    /// If topics or partitions are missing.
    pub fn finish(mut self, forgotten: &[Forgotten<'_>]) -> Result<u64, WireError> {
        self.nesting.end();
        let (encoder, version, terms) = (&mut self.encoder, self.version, &self.terms);
        encoder.field = "FetchRequest.forgotten_topics";
        if version.number >= 7 {
            let mut nesting = Nesting::begin(encoder, version, TOPIC_IDS_FROM, forgotten.len());
            for topic in forgotten {
                nesting.topic(encoder, topic.name, &topic.topic_id, topic.partitions.len());
                for partition in topic.partitions {
                    encoder.i32(*partition);
                    nesting.partition_done(encoder);
                }
            }
            nesting.end();
        } else if !forgotten.is_empty() {
            encoder.not_in_version(version.number);
        }
        if version.number >= 11 {
            encoder.string(version.flexible, terms.rack_id);
        }
        if version.flexible {
            let replica = version.number >= 15 && terms.replica != ReplicaState::default();
            encoder.uvarint(u32::from(terms.cluster_id.is_some()) + u32::from(replica));
            if terms.cluster_id.is_some() {
                encode_tagged(encoder, 0, &terms.cluster_id, version);
            }
            if replica {
                encode_tagged(encoder, 1, &terms.replica, version);
            }
        }
        self.frame.end(encoder, 0)
    }
}
