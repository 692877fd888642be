//! Receiving into a mapped segment that another process cuts: no crash, a clear refusal, nobody else is hurt.

mod common;

use common::{Client, batch, batches_in, content};
use ringlog::sys::topology;
use ringlog::{Ack, Engine, EngineConfig, Ingress, TopicConfig, block_on};
use ringlog_broker::{BrokerConfig, start};

const TOPIC: &str = "mapped";

fn large(number: u8, bytes: usize) -> Vec<u8> {
    let value: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ number).collect();
    batch(&[&value])
}

#[test]
fn a_segment_that_is_cut_while_it_is_received_into_latches_its_partition_and_no_other() {
    let mut noticed = 0;
    // Cut to nothing, within what is written, and within what is mapped ahead.
    for (cut, bytes) in [(0, 200_000), (0, 500), (150_000, 200_000), (150_000, 500), (230_000, 3_000_000)] {
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut config = EngineConfig::new(home.path());
        config.cores = Some(topology::usable_cores().unwrap()[..1].to_vec());
        config.shard.ingress = Ingress::Mapped;
        let engine = Engine::open(config).unwrap();
        let mut topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
        topic.log.batch_bytes_max = 4 << 20;
        block_on(engine.create_topic(TOPIC, 2, topic)).unwrap();
        let serving = start(&engine, BrokerConfig::new("127.0.0.1:0".parse().unwrap())).unwrap();
        let mut client = Client::connect(serving.address());
        for number in 0..2 {
            assert_eq!(client.produce(TOPIC, 0, &large(number, 100_000)), Ok(i64::from(number)));
        }
        let path = home.path().join(format!("{TOPIC}-0/00000000000000000000.log"));
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        // Refused, or, where what came of it is nowhere, cut off.
        let mut hurt = Client::connect(serving.address());
        hurt.send_produce(-1, TOPIC, &[(0, &large(3, bytes))]);
        let taken = hurt.try_receive_produce().is_ok_and(|(_, outcomes)| outcomes[0].1.is_ok());
        if taken {
            // Room was prepared after the cut and the file is as long as before: then the batch really is in it.
            println!("cut to {cut}: the file had grown again before it was noticed");
            let blob = Client::connect(serving.address()).fetch(TOPIC, 0, 2).records;
            assert!(content(batches_in(&blob)[0].1) == content(&large(3, bytes)), "cut to {cut}");
            engine.close().unwrap();
            continue;
        }
        noticed += 1;
        let words = block_on(engine.partition(TOPIC, 0)).unwrap();
        let words = block_on(words.append(&large(4, 500), None)).unwrap_err().to_string();
        for named in ["cut by somebody else", "mapped-0", "position", &format!("{cut} bytes are there")] {
            assert!(words.contains(named), "\"{named}\" is missing in: {words}");
        }
        let sent = large(5, 300_000);
        let mut other = Client::connect(serving.address());
        assert_eq!(other.produce(TOPIC, 1, &sent), Ok(0));
        let blob = other.fetch_all(TOPIC, 1);
        assert!(content(batches_in(&blob)[0].1) == content(&sent));
        assert!(engine.close().is_err(), "a stop that lost something is not a clean one");
    }
    assert!(noticed > 0, "no cut was noticed");
}
