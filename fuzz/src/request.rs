//! A message of the protocol, as a broker or a client reads it.
//!
//! An input is one byte for the API and the direction, one for the version, then the body; they choose from the broker's
//! own table. Other bytes are read as what comes before a body, too.

use std::fmt::{Debug, Write};

use ringlog_broker::wire::api_versions::*;
use ringlog_broker::wire::create_topics::*;
use ringlog_broker::wire::delete_records::*;
use ringlog_broker::wire::delete_topics::*;
use ringlog_broker::wire::describe_cluster::*;
use ringlog_broker::wire::describe_configs::*;
use ringlog_broker::wire::fetch::*;
use ringlog_broker::wire::list_offsets::*;
use ringlog_broker::wire::metadata::*;
use ringlog_broker::wire::offset_for_leader_epoch::*;
use ringlog_broker::wire::produce::*;
use ringlog_broker::wire::*;

/// Arrays within arrays, at most.
const ARRAY_LEVELS_MAX: usize = 4;
/// What an error may cost, and other small change.
const ALLOCATED_BASE: usize = 4096;

/// Reads a request or a response that is looked at where it lies.
macro_rules! read {
    ($choice:expr, $body:expr, $version:expr, $request:ident, $response:ident) => {
        match $choice & 1 {
            0 => read!($body, $version, $request),
            _ => read!($body, $version, $response),
        }
    };
    ($body:expr, $version:expr, $message:ident) => {
        if let Some((_, end)) = decoded::<$message>($body, $version) {
            // What was read does not need what follows it.
            let again = decoded::<$message>(&$body[..end], $version);
            assert!(again.is_some_and(|(_, again)| again == end));
        }
    };
}

/// Reads a request or a response, writes what was read, and reads that again.
macro_rules! written {
    ($choice:expr, $body:expr, $version:expr, $request:ident, $response:ident) => {
        match $choice & 1 {
            0 => written!($body, $version, $request),
            _ => written!($body, $version, $response),
        }
    };
    ($body:expr, $version:expr, $message:ident) => {
        if let Some((message, end)) = decoded::<$message>($body, $version) {
            let bytes = written(&message, $version);
            // Unknown tagged fields are dropped, and padded numbers written short.
            assert!(bytes.len() <= end, "{} bytes from {end}", bytes.len());
            let (again, read) = decoded::<$message>(&bytes, $version).expect("what was written is read");
            assert_eq!((&again, read), (&message, bytes.len()));
        }
    };
}

/// See the module's words.
pub fn check(bytes: &[u8]) {
    before_a_body(bytes);
    let [choice, version, body @ ..] = bytes else { return };
    let row = &APIS[usize::from(choice >> 1) % APIS.len()];
    let versions = row.version_first..=row.version_last;
    let version = row.version_first + i16::from(*version) % versions.count() as i16;
    // Without a wildcard: what is served is fuzzed.
    match row.key {
        ApiKey::Produce => {
            read!(choice, body, version, ProduceRequest, ProduceResponse);
            produce_head(body, version);
        }
        ApiKey::Fetch => read!(choice, body, version, FetchRequest, FetchResponse),
        ApiKey::ListOffsets => written!(choice, body, version, ListOffsetsRequest, ListOffsetsResponse),
        ApiKey::Metadata => written!(choice, body, version, MetadataRequest, MetadataResponse),
        ApiKey::ApiVersions => written!(choice, body, version, ApiVersionsRequest, ApiVersionsResponse),
        ApiKey::CreateTopics => written!(choice, body, version, CreateTopicsRequest, CreateTopicsResponse),
        ApiKey::DeleteTopics => written!(choice, body, version, DeleteTopicsRequest, DeleteTopicsResponse),
        ApiKey::DeleteRecords => {
            written!(choice, body, version, DeleteRecordsRequest, DeleteRecordsResponse);
        }
        ApiKey::OffsetForLeaderEpoch => {
            written!(choice, body, version, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse);
        }
        ApiKey::DescribeConfigs => {
            written!(choice, body, version, DescribeConfigsRequest, DescribeConfigsResponse);
        }
        ApiKey::DescribeCluster => {
            written!(choice, body, version, DescribeClusterRequest, DescribeClusterResponse);
        }
    }
}

fn before_a_body(bytes: &[u8]) {
    let limits = FrameLimits::default();
    if let Ok(Some(total)) = limits.peek_frame(bytes) {
        assert!((PREFIX_BYTES..=PREFIX_BYTES + FRAME_BYTES_MAX).contains(&total));
    }
    let mut decoder = Decoder::new(bytes);
    if let Ok(header) = RequestHeader::decode(&mut decoder) {
        let mut written = Vec::new();
        header.encode(&mut Encoder::growing(&mut written)).expect("a header that was read");
        assert!(written.len() <= decoder.position());
        assert_eq!(RequestHeader::decode(&mut Decoder::new(&written)), Ok(header));
    }
    // The head of a request is read before the rest has come: what it says may not change when more comes.
    if let Some(head) = ProduceHead::look(bytes) {
        assert!(head.records_at <= bytes.len());
        assert_eq!(ProduceHead::look(&bytes[..head.records_at]), Some(head));
    }
}

/// Decodes, in no more memory than the bytes bear out, and looks at all that was accepted.
fn decoded<'a, M: Message + Decode<'a> + Debug>(body: &'a [u8], version: i16) -> Option<(M, usize)> {
    let mut decoder = Decoder::new(body);
    let mut result = None;
    let memory = allocation_counter::measure(|| {
        result = Some(M::decode_from(&mut decoder, version));
    });
    let bytes_max = ARRAY_LEVELS_MAX * EXPANSION_MAX * body.len() + ALLOCATED_BASE;
    assert!(memory.bytes_max as usize <= bytes_max, "{} bytes for {}", memory.bytes_max, body.len());
    match result.expect("measured once") {
        Ok(message) => {
            assert!(decoder.position() <= body.len());
            // Debug walks every view to its end.
            write!(Nowhere, "{message:?}").expect("nowhere takes everything");
            Some((message, decoder.position()))
        }
        Err(error) => {
            write!(Nowhere, "{error}").expect("nowhere takes everything");
            None
        }
    }
}

fn written<M: Message + Encode>(message: &M, version: i16) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode_to(&mut Encoder::growing(&mut bytes), version).expect("a message that was read");
    assert_eq!(message.encoded_len(version), Ok(bytes.len()));
    bytes
}

/// The head that is read before the batch has come, and the whole request, agree.
fn produce_head(body: &[u8], version: i16) {
    let mut frame = Vec::new();
    let header = RequestHeader { api: ApiKey::Produce, version, correlation_id: 1, client_id: Some("fuzz") };
    header.encode(&mut Encoder::growing(&mut frame)).expect("a header of our own");
    let at = frame.len();
    frame.extend_from_slice(body);
    let Some(head) = ProduceHead::look(&frame) else { return };
    let mut decoder = Decoder::new(&frame);
    RequestHeader::decode(&mut decoder).expect("a header of our own");
    assert!(decoder.position() == at && head.header == header);
    let Ok(request) = ProduceRequest::decode_from(&mut decoder, version) else { return };
    let topic = request.topics.iter().next().expect("a head is of one topic");
    let partition = topic.partitions.iter().next().expect("a head is of one partition");
    assert_eq!((request.topics.len(), topic.partitions.len()), (1, 1));
    assert_eq!((head.acks, head.topic, head.topic_id), (request.acks, topic.name, topic.topic_id));
    assert_eq!(head.partition, partition.index);
    assert_eq!(Some(head.records_at..head.records_at + head.record_bytes), partition.records);
}

/// Takes words and keeps none.
struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> std::fmt::Result {
        Ok(())
    }
}
