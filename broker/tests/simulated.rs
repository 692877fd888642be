//! The whole broker in the simulated world: the same code, another kernel, one seed.

use std::net::SocketAddr;

use ringlog::log::{BatchBuilder, Records};
use ringlog::shard::{Node, Shard, ShardConfig, TopicConfig};
use ringlog::sys::sim::World;
use ringlog::sys::{Ring, Socket};
use ringlog::types::{ShardId, Timestamp};
use ringlog::{Egress, Ingress};
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms};
use ringlog_broker::wire::produce::{ProduceResponse, ProduceTerms, encode_produce_prefix};
use ringlog_broker::wire::{
    ApiKey, Decode, Decoder, Encoder, ErrorCode, GappedFrame, Message, RequestHeader, decode_response_header,
};
use ringlog_broker::{BrokerConfig, bind, serve};

const ARENA: u64 = 128 << 20;
const PRODUCE: i16 = 8;
const FETCH: i16 = 11;

fn header(api: ApiKey, version: i16, correlation_id: i32) -> RequestHeader<'static> {
    RequestHeader { api, version, correlation_id, client_id: Some("simulated") }
}

async fn send(ring: &Ring, socket: &Socket, bytes: &[u8]) {
    let mut lease = ring.lease(bytes.len()).await.unwrap();
    lease[..bytes.len()].copy_from_slice(bytes);
    let (result, _) = ring.send(socket, lease.freeze().slice(0..bytes.len()), false).await;
    result.unwrap();
}

async fn receive(ring: &Ring, socket: &Socket) -> Vec<u8> {
    let mut prefix = ring.lease(4).await.unwrap();
    drop(prefix.split_off(4));
    let (read, prefix) = ring.recv_all(socket, prefix).await;
    assert_eq!(read.unwrap(), 4);
    let length = i32::from_be_bytes(prefix[..4].try_into().unwrap()) as usize;
    let mut body = ring.lease(length).await.unwrap();
    drop(body.split_off(length));
    let (read, body) = ring.recv_all(socket, body).await;
    assert_eq!(read.unwrap(), length);
    body.to_vec()
}

fn decode<'a, M: Message + Decode<'a>>(frame: &'a [u8], api: ApiKey, version: i16) -> (i32, M) {
    let mut decoder = Decoder::new(frame);
    let id = decode_response_header(&mut decoder, api, version).unwrap();
    (id, M::decode_from(&mut decoder, version).unwrap())
}

/// One client and a broker on so many shards.
fn conversation(seed: u64, shards: u16) -> (usize, Vec<String>) {
    let world = World::new(seed);
    let client = world.ring(ARENA);
    let servers: Vec<Ring> = (0..shards).map(|_| world.ring(ARENA)).collect();
    let address: SocketAddr = "10.0.0.1:9092".parse().unwrap();
    let rings = servers.clone();
    servers[0].spawn(async move {
        let mut config = ShardConfig::new("/data");
        config.ingress = Ingress::ALL[seed as usize % Ingress::ALL.len()];
        config.trusted_producers = true;
        let delivering: Vec<Egress> =
            Egress::ALL.iter().copied().filter(|egress| egress.delivers()).collect();
        config.egress = delivering[seed as usize / Ingress::ALL.len() % delivering.len()];
        let node = Node::open(&rings[0], &config, shards).await.unwrap();
        let mut joined = Vec::new();
        for (ring, number) in rings.iter().zip(0..) {
            joined.push(Shard::join(ring, ShardId(number), config.clone(), node.clone()).await.unwrap());
        }
        joined[0].create_topic("t", 2, TopicConfig::default()).await.unwrap();
        for shard in joined {
            let bound = bind(&shard, BrokerConfig { shared: true, ..BrokerConfig::new(address) }).unwrap();
            shard.clone().spawn(async move {
                serve(bound).await;
            });
        }
    });
    let ring = client.clone();
    let all: Vec<&Ring> = std::iter::once(&client).chain(&servers).collect();
    let values = world.run(&all, async move {
        let socket = loop {
            match ring.connect(address).await {
                Ok(socket) => break socket,
                Err(_) => ring.sleep(std::time::Duration::from_millis(1)).await,
            }
        };
        // Five Produce requests at once, over both partitions.
        let mut frame = GappedFrame::default();
        for number in 0..5 {
            let mut batch = BatchBuilder::new(Timestamp(1));
            // Some large enough to be received in place.
            let room = "x".repeat(if seed.is_multiple_of(2) { 0 } else { 40_000 * number as usize });
            batch.push(Timestamp(1), Some(room.as_bytes()), Some(format!("value {number}").as_bytes()), &[]);
            let batch = batch.finish();
            frame.clear();
            let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 1000 };
            let parts = [(number % 2, batch.len() as u64)];
            encode_produce_prefix(
                &mut frame,
                &header(ApiKey::Produce, PRODUCE, number),
                &terms,
                ("t", &[0; 16]),
                &parts,
            )
            .unwrap();
            send(&ring, &socket, &[&frame.bytes[..], batch].concat()).await;
        }
        for number in 0..5 {
            let answer = receive(&ring, &socket).await;
            let (id, response) = decode::<ProduceResponse<'_>>(&answer, ApiKey::Produce, PRODUCE);
            assert_eq!(id, number, "answers come in the order of the requests");
            let partition = response.topics.iter().next().unwrap().partitions.iter().next().unwrap();
            assert_eq!(
                (partition.error_code, partition.base_offset),
                (ErrorCode::None, i64::from(number / 2))
            );
        }
        let mut bytes = Vec::new();
        let terms = FetchTerms { max_wait_ms: 100, min_bytes: 1, ..FetchTerms::default() };
        let asked = header(ApiKey::Fetch, FETCH, 9);
        let mut writer = FetchRequestWriter::begin(Encoder::growing(&mut bytes), &asked, &terms, 1).unwrap();
        writer.topic("t", &[0; 16], 2);
        for index in 0..2 {
            writer.partition(&FetchPartition {
                index,
                partition_max_bytes: 1 << 20,
                ..FetchPartition::default()
            });
        }
        writer.finish(&[]).unwrap();
        send(&ring, &socket, &bytes).await;
        let answer = receive(&ring, &socket).await;
        let (_, response) = decode::<FetchResponse<'_>>(&answer, ApiKey::Fetch, FETCH);
        let mut values = Vec::new();
        for partition in response.topics.iter().next().unwrap().partitions.iter() {
            let mut rest = &answer[partition.records.clone().unwrap()];
            while !rest.is_empty() {
                let whole = ringlog::log::BatchHeader::parse(rest).unwrap().bytes as usize;
                for record in Records::new(&rest[..whole]).unwrap() {
                    values.push(String::from_utf8_lossy(record.unwrap().value.unwrap()).into_owned());
                }
                rest = &rest[whole..];
            }
        }
        values.sort();
        values
    });
    (world.disk_events(), values)
}

#[test]
fn a_client_produces_and_consumes_in_the_simulated_world() {
    for seed in 0..60 {
        let shards = 1 + seed as u16 % 3;
        let (_, values) = conversation(seed, shards);
        let expected = ["value 0", "value 1", "value 2", "value 3", "value 4"];
        assert_eq!(values, expected, "seed {seed}, {shards} shards");
    }
}

#[test]
fn the_same_seed_makes_the_same_conversation() {
    assert_eq!(conversation(7, 3), conversation(7, 3));
}
