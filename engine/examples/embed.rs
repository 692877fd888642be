//! The engine inside a program of your own: append, wait for durability, read back, close.
//!
//! `cargo run --release -p ringlog --example embed -- /tmp/embedded-log`

use ringlog::log::{BatchBuilder, Records};
use ringlog::types::{Offset, Timestamp};
use ringlog::{Ack, Engine, EngineConfig, EngineError, TopicConfig, block_on};

fn main() -> Result<(), EngineError> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "embedded-log".to_owned());
    let engine = Engine::open(EngineConfig::new(&directory))?;
    println!("{}", engine.capabilities());

    block_on(async {
        if !engine.topics().await?.iter().any(|(name, _)| name == "greetings") {
            engine.create_topic("greetings", 1, TopicConfig::default()).await?;
        }
        let partition = engine.partition("greetings", 0).await?;

        // Ten batches of three records. `Durable` answers when they survive power loss.
        let mut batch = BatchBuilder::new(Timestamp(1_700_000_000_000));
        for number in 0..10 {
            batch.clear(Timestamp(1_700_000_000_000 + number));
            for word in ["hello", "log", "world"] {
                let value = format!("{word} {number}");
                batch.push(Timestamp(1_700_000_000_000 + number), None, Some(value.as_bytes()), &[]);
            }
            let appended = partition.append(batch.finish(), Some(Ack::Durable)).await?;
            println!("offset {} of epoch {}: {}", appended.offset, appended.epoch, appended.reached);
        }

        // What comes back is the bytes on disk: whole batches, one behind the other.
        let mut next = Offset(0);
        loop {
            let (bytes, fetched) = partition.fetch(next, 1 << 20).await?;
            if fetched.bytes == 0 {
                break;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let header = ringlog::log::BatchHeader::parse(rest)?;
                let (batch, behind) = rest.split_at(header.bytes as usize);
                for record in Records::new(batch)? {
                    let record = record?;
                    let value = String::from_utf8_lossy(record.value.unwrap_or_default()).into_owned();
                    println!("{}: {value}", record.offset);
                }
                next = header.next_offset();
                rest = behind;
            }
        }
        Ok::<(), EngineError>(())
    })?;
    engine.close()
}
