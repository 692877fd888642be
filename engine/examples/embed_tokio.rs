//! The engine beside a runtime that is not its own: many tasks append at once, others read, and only the cores that the
//! engine was given work on the log. Any runtime does; nothing here knows that it is tokio.
//!
//! `cargo run --release -p ringlog --example embed_tokio -- some-directory`

use std::sync::Arc;

use ringlog::log::{BatchBuilder, BatchHeader};
use ringlog::types::{Offset, Timestamp};
use ringlog::{Ack, Engine, EngineConfig, EngineError, PartitionHandle, TopicConfig};

const PARTITIONS: i32 = 4;
const BATCHES: i64 = 250;

#[tokio::main]
async fn main() -> Result<(), EngineError> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "embedded-log".to_owned());
    // Opening and closing recover and flush: they block, so they get a thread that may.
    let engine = tokio::task::spawn_blocking(move || Engine::open(EngineConfig::new(&directory)));
    let engine = Arc::new(engine.await.expect("opening does not panic")?);
    println!("{}, shards on cores {:?}", engine.capabilities(), engine.cores());
    if !engine.topics().await?.iter().any(|(name, _)| name == "events") {
        engine.create_topic("events", PARTITIONS, TopicConfig::default()).await?;
    }

    // One producer for each partition. A handle is cheap to clone and may go to any thread.
    let mut producers = Vec::new();
    let mut begun = Vec::new();
    for index in 0..PARTITIONS {
        let partition = engine.partition("events", index).await?;
        begun.push(partition.marks().await?.log_end.offset);
        producers.push(tokio::spawn(produce(partition)));
    }
    for producer in producers {
        let last = producer.await.expect("a producer does not panic")?;
        println!("a producer is done: its last batch is durable at offset {last}");
    }

    let mut readers = Vec::new();
    for (index, from) in (0..PARTITIONS).zip(begun) {
        let partition = engine.partition("events", index).await?;
        readers.push(tokio::spawn(count(partition, from)));
    }
    for (index, reader) in readers.into_iter().enumerate() {
        let found = reader.await.expect("a reader does not panic")?;
        assert_eq!(found, BATCHES, "partition {index}");
    }
    println!("{BATCHES} batches were read back from each of {PARTITIONS} partitions");

    let engine = Arc::into_inner(engine).expect("every task has ended");
    tokio::task::spawn_blocking(move || engine.close()).await.expect("closing does not panic")
}

async fn produce(partition: PartitionHandle) -> Result<Offset, EngineError> {
    let mut last = Offset(0);
    for number in 0..BATCHES {
        let time = Timestamp(1_700_000_000_000 + number);
        let mut batch = BatchBuilder::new(time);
        batch.push(time, None, Some(format!("event {number}").as_bytes()), &[]);
        // All but the last may be answered as soon as the kernel has them; the last one carries the others with it.
        let ack = if number + 1 == BATCHES { Ack::Durable } else { Ack::Written };
        last = partition.append(batch.finish(), Some(ack)).await?.offset;
    }
    Ok(last)
}

/// Counts the batches from `next` to the end.
async fn count(partition: PartitionHandle, mut next: Offset) -> Result<i64, EngineError> {
    let mut batches = 0;
    loop {
        let (bytes, fetched) = partition.fetch(next, 64 << 10).await?;
        if fetched.bytes == 0 {
            return Ok(batches);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let header = BatchHeader::parse(rest)?;
            next = header.next_offset();
            rest = &rest[header.bytes as usize..];
            batches += 1;
        }
    }
}
