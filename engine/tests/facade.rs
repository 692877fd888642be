//! The engine as another program sees it: from any thread, over its own handles.

use ringlog::log::{BatchBuilder, BatchHeader, LogConfig};
use ringlog::types::{Offset, Timestamp};
use ringlog::{Ack, Egress, Engine, EngineConfig, EngineError, Ingress, TopicConfig, block_on};

fn engine(directory: &tempfile::TempDir, ingress: Ingress) -> Engine {
    let mut config = EngineConfig::new(directory.path().join("data"));
    config.shard.ingress = ingress;
    Engine::open(config).unwrap()
}

async fn tail_cache_bytes(engine: &Engine) -> usize {
    engine.counters().await.unwrap().iter().map(|counters| counters.shard.tail_cache_bytes).sum()
}

fn batch(number: u8) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(1000 + i64::from(number)));
    builder.push(Timestamp(1000 + i64::from(number)), None, Some(&[number; 20_000]), &[]);
    builder.finish().to_vec()
}

#[test]
fn a_deleted_topic_gives_its_memory_and_its_name_back() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let engine = engine(&directory, Ingress::Copy);
    block_on(async {
        for _ in 0..3 {
            engine.create_topic("t", 2, TopicConfig::default()).await.unwrap();
            let partition = engine.partition("t", 1).await.unwrap();
            for number in 0..20 {
                partition.append(&batch(number), Some(Ack::Written)).await.unwrap();
            }
            assert!(tail_cache_bytes(&engine).await > 0);
            engine.delete_topic("t").await.unwrap();
            assert_eq!(tail_cache_bytes(&engine).await, 0);
            let gone = partition.append(&batch(0), None).await;
            assert!(matches!(gone, Err(EngineError::Unknown(..))), "{gone:?}");
        }
        assert!(engine.topics().await.unwrap().is_empty());
    });
    engine.close().unwrap();
}

#[test]
fn every_egress_sends_the_same_bytes_from_memory_and_from_disk() {
    use std::io::Read;
    for ingress in Ingress::ALL {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut expected = Vec::new();
        for reopened in [false, true] {
            let engine = engine(&directory, *ingress);
            block_on(async {
                if !reopened {
                    // The last few batches go to a second segment: what is read lies in one that is sealed.
                    let log = LogConfig { segment_bytes_max: 520_000, ..LogConfig::default() };
                    let topic = TopicConfig { log, ..TopicConfig::default() };
                    engine.create_topic("t", 1, topic).await.unwrap();
                    let partition = engine.partition("t", 0).await.unwrap();
                    for number in 0..30 {
                        partition.append(&batch(number), None).await.unwrap();
                    }
                }
                let partition = engine.partition("t", 0).await.unwrap();
                let (bytes, fetched) = partition.fetch(Offset(3), 1 << 20).await.unwrap();
                assert_eq!(fetched.high_watermark, Offset(30));
                assert_eq!(BatchHeader::parse(&bytes).unwrap().base_offset, Offset(3));
                if reopened {
                    assert_eq!(bytes, expected, "{ingress}: after a restart");
                }
                expected = bytes;
                for egress in Egress::ALL.iter().filter(|egress| egress.delivers()) {
                    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    let (mut peer, _) = listener.accept().unwrap();
                    let wanted = expected.len();
                    // A slow reader: the sender meets a full socket.
                    let reader = std::thread::spawn(move || {
                        std::thread::sleep(std::time::Duration::from_millis(30));
                        let mut received = vec![0; wanted];
                        peer.read_exact(&mut received).unwrap();
                        received
                    });
                    partition.fetch_to(Offset(3), 1 << 20, *egress, &stream).await.unwrap();
                    assert_eq!(reader.join().unwrap(), expected, "{ingress}+{egress}, reopened: {reopened}");
                    // One that vanishes: an error or nothing, and the engine goes on.
                    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    drop(listener.accept().unwrap());
                    let _ = partition.fetch_to(Offset(0), 1 << 20, *egress, &stream).await;
                }
                assert_eq!(partition.fetch(Offset(3), 1 << 20).await.unwrap().0, expected);
                if reopened {
                    // What lies in files was carried by those who can, not by a fallback in their name.
                    let counters = engine.counters().await.unwrap();
                    let files =
                        Egress::ALL.iter().filter(|e| e.delivers() && e.carries().file && !e.chooses());
                    for egress in files {
                        let own: u64 = counters.iter().map(|c| c.egress[*egress as usize].1.bytes).sum();
                        assert!(own >= expected.len() as u64, "{egress} carried {own} bytes");
                    }
                }
            });
            engine.close().unwrap();
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_names_and_numbers() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let engine = engine(&directory, Ingress::Buffered);
    let second = Engine::open(EngineConfig::new(directory.path().join("data"))).err().unwrap().to_string();
    assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
    block_on(async {
        engine.create_topic("t", 1, TopicConfig::default()).await.unwrap();
        let again = engine.create_topic("t", 1, TopicConfig::default()).await.unwrap_err().to_string();
        assert!(again.contains("topic t exists"), "{again}");
        assert!(engine.create_topic("a/b", 1, TopicConfig::default()).await.is_err());
        let partition = engine.partition("t", 0).await.unwrap();
        let mut flipped = batch(1);
        flipped[100] ^= 1;
        let refused = partition.append(&flipped, None).await.unwrap_err();
        assert!(matches!(refused, EngineError::Batch(_)), "{refused}");
        let beyond = partition.fetch(Offset(9), 100).await.unwrap_err().to_string();
        assert!(beyond.contains("offset 9"), "{beyond}");
        let unknown = engine.partition("t", 7).await.err().unwrap().to_string();
        assert!(unknown.contains("t-7"), "{unknown}");
    });
    engine.close().unwrap();
}

#[test]
fn offsets_are_found_by_time() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let engine = engine(&directory, Ingress::Copy);
    block_on(async {
        engine.create_topic("t", 1, TopicConfig::default()).await.unwrap();
        let partition = engine.partition("t", 0).await.unwrap();
        for number in 0..10 {
            partition.append(&batch(number * 10), None).await.unwrap();
        }
        let found = partition.offset_for_timestamp(Timestamp(1045)).await.unwrap();
        assert_eq!(found, Some((Offset(5), Timestamp(1050))));
        assert_eq!(partition.offset_for_timestamp(Timestamp(2000)).await.unwrap(), None);
    });
    engine.close().unwrap();
}
