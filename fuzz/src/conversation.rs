//! What clients send to a broker, in the simulated world.
//!
//! An input describes up to eight frames on one connection: whole requests, requests with bytes changed, bodies of the
//! fuzzer's own under a good header, and bytes without any frame. Whatever they are: answers come in the order of the
//! requests and can be read; or the connection is closed; and the next client is served.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringlog::Ingress;
use ringlog::log::BatchBuilder;
use ringlog::shard::{Shard, ShardConfig, TopicConfig};
use ringlog::sys::sim::World;
use ringlog::sys::{Ring, Socket};
use ringlog::types::Timestamp;
use ringlog_broker::wire::api_versions::{ApiVersionsRequest, ApiVersionsResponse};
use ringlog_broker::wire::create_topics::{CreateTopicsRequest, CreateTopicsResponse};
use ringlog_broker::wire::delete_records::DeleteRecordsResponse;
use ringlog_broker::wire::delete_topics::DeleteTopicsResponse;
use ringlog_broker::wire::describe_cluster::DescribeClusterResponse;
use ringlog_broker::wire::describe_configs::DescribeConfigsResponse;
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms};
use ringlog_broker::wire::list_offsets::ListOffsetsResponse;
use ringlog_broker::wire::metadata::MetadataResponse;
use ringlog_broker::wire::offset_for_leader_epoch::OffsetForLeaderEpochResponse;
use ringlog_broker::wire::produce::{ProduceRequest, ProduceResponse, ProduceTerms, encode_produce_prefix};
use ringlog_broker::wire::{
    APIS, Api, ApiKey, Decoder, Encoder, ErrorCode, GappedFrame, Message, PREFIX_BYTES, RequestHeader,
    decode_response, encode_request,
};
use ringlog_broker::{BrokerConfig, bind, serve};

use crate::input::Input;
use crate::record_batch::put_right;

const ARENA: u64 = 64 << 20;
const FRAMES_MAX: usize = 8;
/// The partitions that one request may ask to be made: more only takes time.
const CREATIONS_MAX: i32 = 64;
const TOPIC: &str = "t";
const PARTITIONS: i32 = 2;
/// The question at the end, to know when all answers have come.
const LAST: i32 = 1000;

/// What is sent, and what is known of it.
#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
    /// The requests in it, by their correlation ids, from 0.
    requests: Vec<Asked>,
    /// Bytes without a frame are among it: what comes after them is anybody's guess.
    unframed: bool,
    /// Topics or records may be deleted by it.
    deletes: bool,
}

struct Asked {
    api: ApiKey,
    version: i16,
    answered: bool,
}

/// See the module's words.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (seed, piece) = (input.byte(), usize::from(input.byte()));
    let Some(script) = write(&mut input) else { return };
    let world = World::new(u64::from(seed));
    let (client, server) = (world.ring(ARENA), world.ring(ARENA));
    let address: SocketAddr = "10.0.0.1:9092".parse().expect("an address");
    let ring = server.clone();
    server.spawn(async move {
        let mut config = ShardConfig::new("/data");
        config.ingress = Ingress::ALL[usize::from(seed) % Ingress::ALL.len()];
        config.trusted_producers = true;
        config.arena_bytes_max = ARENA;
        let shard = Shard::open(&ring, config).await.expect("an empty directory");
        shard.create_topic(TOPIC, PARTITIONS, TopicConfig::default()).await.expect("a topic");
        let bound = bind(&shard, BrokerConfig::new(address)).expect("an address of its own");
        serve(bound).await;
    });
    let ring = client.clone();
    world.run(&[&client, &server], async move {
        let script = Rc::new(script);
        let socket = connect(&ring, address).await;
        let (sender, sent, said) = (ring.clone(), socket.clone(), script.clone());
        ring.spawn(async move {
            // Sent beside what is read: neither side may wait for the other.
            for bytes in said.bytes.chunks(if piece == 0 { usize::MAX } else { piece * 8 }) {
                if !send(&sender, &sent, bytes).await {
                    return;
                }
            }
        });
        answers(&ring, &socket, &script).await;
        socket.shutdown();
        next_client(&ring, address, &script).await;
    });
    client.shut_down();
    server.shut_down();
}

/// The frames that the input describes; `None` where they would only take time.
fn write(input: &mut Input<'_>) -> Option<Script> {
    let mut script = Script::default();
    for _ in 0..FRAMES_MAX {
        if input.is_empty() {
            break;
        }
        let kind = input.byte();
        match kind & 7 {
            0 => {
                let length = input.below(300);
                script.bytes.extend_from_slice(input.piece(length));
                (script.unframed, script.deletes) = (true, true);
            }
            1..=3 => {
                let row = &APIS[usize::from(input.byte()) % APIS.len()];
                let header = header(&script, row, version(row, input));
                let length = input.below(600);
                let body = input.piece(length);
                if row.key == ApiKey::CreateTopics && creations(body, header.version) > CREATIONS_MAX {
                    return None;
                }
                // Its answer comes or not as it says itself.
                let answered = row.key != ApiKey::Produce
                    || ProduceRequest::decode_from(&mut Decoder::new(body), header.version)
                        .map_or(true, |request| request.acks != 0);
                let mut frame = vec![0; PREFIX_BYTES];
                header.encode(&mut Encoder::growing(&mut frame)).expect("a header");
                frame.extend_from_slice(body);
                script.push(frame, &header, answered);
            }
            4 | 5 => produce(&mut script, input, kind),
            6 => fetch(&mut script, input, kind),
            _ => {
                // Another API or version than any that is served.
                let (key, version) = (input.short() as i16, input.short() as i16);
                let api = ApiKey::from_number(key).unwrap_or(ApiKey::ApiVersions);
                let header = RequestHeader { version, ..header(&script, api.facts(), 0) };
                let mut frame = vec![0; PREFIX_BYTES];
                frame.extend(key.to_be_bytes());
                frame.extend(version.to_be_bytes());
                frame.extend(header.correlation_id.to_be_bytes());
                let length = input.below(100);
                frame.extend_from_slice(input.piece(length));
                script.deletes = true;
                // What is read of it is too much to foretell.
                script.push(frame, &header, false);
            }
        }
    }
    let row = ApiKey::ApiVersions.facts();
    let header = RequestHeader { correlation_id: LAST, ..header(&script, row, 0) };
    let body = ApiVersionsRequest::default();
    encode_request(&mut Encoder::growing(&mut script.bytes), &header, &body).expect("a question");
    Some(script)
}

impl Script {
    /// Adds a frame, whose prefix it writes.
    fn push(&mut self, mut frame: Vec<u8>, header: &RequestHeader<'_>, answered: bool) {
        let length = (frame.len() - PREFIX_BYTES) as u32;
        frame[..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
        self.bytes.extend(frame);
        self.deletes |= matches!(header.api, ApiKey::DeleteTopics | ApiKey::DeleteRecords);
        self.requests.push(Asked { api: header.api, version: header.version, answered });
    }
}

fn header(script: &Script, row: &Api, version: i16) -> RequestHeader<'static> {
    let correlation_id = script.requests.len() as i32;
    RequestHeader { api: row.key, version, correlation_id, client_id: Some("fuzz") }
}

fn version(row: &Api, input: &mut Input<'_>) -> i16 {
    row.version_first + i16::from(input.byte()) % (row.version_last - row.version_first + 1)
}

fn creations(body: &[u8], version: i16) -> i32 {
    let request = CreateTopicsRequest::decode_from(&mut Decoder::new(body), version).unwrap_or_default();
    let partitions = request.topics.iter().map(|topic| topic.num_partitions.max(1));
    partitions.fold(0, i32::saturating_add)
}

/// A batch for one partition, with up to three bytes changed.
fn produce(script: &mut Script, input: &mut Input<'_>, kind: u8) {
    let row = ApiKey::Produce.facts();
    // Topics by name: their ids are not known here.
    let version = version(row, input).min(12);
    let (shape, size) = (input.byte(), input.short());
    let mut batch = BatchBuilder::new(Timestamp(1));
    for _ in 0..=shape & 3 {
        // Some large enough to be received in place.
        batch.push(Timestamp(1), None, Some(&vec![shape; size]), &[]);
    }
    let batch = batch.finish();
    let header = header(script, row, version);
    let acks = [-1, 1, 0, -1][usize::from(shape >> 2 & 3)];
    let terms = ProduceTerms { transactional_id: None, acks, timeout_ms: 1000 };
    let parts = [(i32::from(shape >> 4 & 1), batch.len() as u64)];
    let mut head = GappedFrame::default();
    encode_produce_prefix(&mut head, &header, &terms, (TOPIC, &[0; 16]), &parts).expect("a request");
    // The batch goes in the gap; in flexible versions tagged fields follow it.
    let at = head.gaps[0].position;
    let mut frame = head.bytes;
    frame.splice(at..at, batch.iter().copied());
    let changed = change(&mut frame, input, kind, at);
    if kind & 0x80 != 0 {
        put_right(&mut frame[at..at + batch.len()], 3);
    }
    script.push(frame, &header, !changed && acks != 0);
}

/// A question for both partitions, with up to three bytes changed.
fn fetch(script: &mut Script, input: &mut Input<'_>, kind: u8) {
    let row = ApiKey::Fetch.facts();
    let version = version(row, input).min(12);
    let header = header(script, row, version);
    let (max_wait_ms, min_bytes) = (input.short() as i32, i32::from(input.byte()));
    let terms = FetchTerms { max_wait_ms, min_bytes, ..FetchTerms::default() };
    let mut frame = Vec::new();
    let mut writer =
        FetchRequestWriter::begin(Encoder::growing(&mut frame), &header, &terms, 1).expect("served");
    writer.topic(TOPIC, &[0; 16], PARTITIONS as usize);
    for index in 0..PARTITIONS {
        let (fetch_offset, partition_max_bytes) = (i64::from(input.byte()), input.short() as i32);
        writer.partition(&FetchPartition {
            index,
            fetch_offset,
            partition_max_bytes,
            ..FetchPartition::default()
        });
    }
    writer.finish(&[]).expect("a request");
    let changed = change(&mut frame, input, kind, 14);
    script.push(frame, &header, !changed);
}

/// Changes bytes behind the header; whether any.
fn change(frame: &mut [u8], input: &mut Input<'_>, kind: u8, from: usize) -> bool {
    let times = kind >> 3 & 3;
    for _ in 0..times {
        // Near the beginning of what there is, mostly: there the numbers are.
        let at = (from + input.below(100)).min(frame.len() - 1);
        frame[at] = input.byte();
    }
    times > 0
}

async fn connect(ring: &Ring, address: SocketAddr) -> Rc<Socket> {
    loop {
        match ring.connect(address).await {
            Ok(socket) => return Rc::new(socket),
            Err(_) => ring.sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn send(ring: &Ring, socket: &Socket, bytes: &[u8]) -> bool {
    let mut lease = ring.lease(bytes.len()).await.expect("memory for a request");
    lease[..bytes.len()].copy_from_slice(bytes);
    ring.send(socket, lease.freeze().slice(0..bytes.len()), false).await.0.is_ok()
}

/// One frame without its prefix, or nothing when the connection is over.
async fn receive(ring: &Ring, socket: &Socket) -> Option<Vec<u8>> {
    let mut prefix = ring.lease(PREFIX_BYTES).await.expect("memory for a prefix");
    drop(prefix.split_off(PREFIX_BYTES));
    let (read, prefix) = ring.recv_all(socket, prefix).await;
    if read.ok()? < PREFIX_BYTES {
        return None;
    }
    let length = u32::from_be_bytes(prefix[..PREFIX_BYTES].try_into().expect("four bytes")) as usize;
    assert!(length <= ARENA as usize / 2, "an answer of {length} bytes");
    let mut body = ring.lease(length).await.expect("memory for an answer");
    drop(body.split_off(length));
    let (read, body) = ring.recv_all(socket, body).await;
    (read.ok()? == length).then(|| body.to_vec())
}

/// Reads answers up to the last, or until the connection is closed.
async fn answers(ring: &Ring, socket: &Socket, script: &Script) {
    let mut next = 0usize;
    while let Some(answer) = receive(ring, socket).await {
        if script.unframed {
            continue;
        }
        let id = i32::from_be_bytes(*answer.first_chunk().expect("a correlation id"));
        let number = if id == LAST { script.requests.len() } else { id as usize };
        assert!(number >= next && number <= script.requests.len(), "an answer to {id} after {next}");
        let passed = &script.requests[next..number];
        assert!(passed.iter().all(|asked| !asked.answered), "{next} to {number} are left without an answer");
        if id == LAST {
            decode_response::<ApiVersionsResponse<'_>>(&answer, 0).expect("the last answer");
            return;
        }
        let Asked { api, version, .. } = script.requests[number];
        readable(&answer, api, version);
        next = number + 1;
    }
}

fn readable(answer: &[u8], api: ApiKey, version: i16) {
    macro_rules! read {
        ($response:ident) => {
            drop(decode_response::<$response<'_>>(answer, version).expect("an answer that can be read"))
        };
    }
    match api {
        ApiKey::Produce => read!(ProduceResponse),
        ApiKey::Fetch => read!(FetchResponse),
        ApiKey::ListOffsets => read!(ListOffsetsResponse),
        ApiKey::Metadata => read!(MetadataResponse),
        ApiKey::ApiVersions => {
            // A version from the future is answered in the first one.
            let version = ApiKey::ApiVersions.version(version).map_or(0, |version| version.number());
            drop(
                decode_response::<ApiVersionsResponse<'_>>(answer, version)
                    .expect("an answer that can be read"),
            );
        }
        ApiKey::CreateTopics => read!(CreateTopicsResponse),
        ApiKey::DeleteTopics => read!(DeleteTopicsResponse),
        ApiKey::DeleteRecords => read!(DeleteRecordsResponse),
        ApiKey::OffsetForLeaderEpoch => read!(OffsetForLeaderEpochResponse),
        ApiKey::DescribeConfigs => read!(DescribeConfigsResponse),
        ApiKey::DescribeCluster => read!(DescribeClusterResponse),
    }
}

/// Somebody else appends a batch and reads it back.
async fn next_client(ring: &Ring, address: SocketAddr, script: &Script) {
    let socket = connect(ring, address).await;
    let mut batch = BatchBuilder::new(Timestamp(5));
    batch.push(Timestamp(5), Some(b"next"), Some(b"client"), &[]);
    let batch = batch.finish();
    let asked = |api: ApiKey, version| RequestHeader { api, version, correlation_id: 7, client_id: None };
    let mut frame = GappedFrame::default();
    let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 1000 };
    let parts = [(1, batch.len() as u64)];
    encode_produce_prefix(&mut frame, &asked(ApiKey::Produce, 8), &terms, (TOPIC, &[0; 16]), &parts)
        .expect("a request");
    assert!(send(ring, &socket, &[&frame.bytes[..], batch].concat()).await);
    let answer = receive(ring, &socket).await.expect("the next client is served");
    let (_, response) = decode_response::<ProduceResponse<'_>>(&answer, 8).expect("an answer");
    let topic = response.topics.iter().next().expect("one topic");
    let outcome = topic.partitions.iter().next().expect("one partition");
    if outcome.error_code != ErrorCode::None {
        assert!(script.deletes, "{outcome:?} for the next client");
        return;
    }
    let mut frame = Vec::new();
    let terms = FetchTerms { max_wait_ms: 100, min_bytes: 1, ..FetchTerms::default() };
    let fetch = asked(ApiKey::Fetch, 11);
    let mut writer =
        FetchRequestWriter::begin(Encoder::growing(&mut frame), &fetch, &terms, 1).expect("served");
    writer.topic(TOPIC, &[0; 16], 1);
    let fetch_offset = outcome.base_offset;
    let wanted =
        FetchPartition { index: 1, fetch_offset, partition_max_bytes: 1 << 20, ..FetchPartition::default() };
    writer.partition(&wanted);
    writer.finish(&[]).expect("a request");
    assert!(send(ring, &socket, &frame).await);
    let answer = receive(ring, &socket).await.expect("the next client is served");
    let (_, response) = decode_response::<FetchResponse<'_>>(&answer, 11).expect("an answer");
    let topic = response.topics.iter().next().expect("one topic");
    let records = topic.partitions.iter().next().expect("one partition").records.unwrap_or_default();
    // What the first client left under way may come behind it.
    let back = answer[records].get(17..).is_some_and(|back| back.starts_with(&batch[17..]));
    assert!(back, "the batch does not come back");
}
