//! Writes the inputs that fuzzing begins with into `corpus/`: one valid thing of each kind, which the fuzzer would hardly
//! think of by itself. `cargo run --example seeds`, after a format or the shape of an input has changed.

use std::fs;
use std::path::Path;

use ringlog::log::{BatchBuilder, EpochCache, OffsetIndex, TimeIndex, stamp};
use ringlog::types::{Epoch, Offset, Position, Timestamp};
use ringlog_broker::wire::fetch::{FetchOutcome, FetchResponseTerms, FetchResponseWriter};
use ringlog_broker::wire::produce::{
    ProduceOutcome, ProduceResponseWriter, ProduceTerms, encode_produce_prefix,
};
use ringlog_broker::wire::{APIS, ApiKey, Encoder, GappedFrame, RequestHeader};

fn main() {
    requests();
    record_batches();
    own_files();
    // A few batches, where durable data ends, one damage of each kind.
    for what in 0..8u8 {
        let batches = [[0x10, 40], [0x2d, 90], [0x2e, 3], [0x31, 200], [0x3f, 10], [0x40, 120]].concat();
        let mut input = vec![30, 0x1c, 6];
        input.extend(batches);
        input.extend([0, 4, what | 6 << 3, 0, 200, 1, 2, 3, 4, 5, 6]);
        seed("recovery", &format!("damage-{what}"), &input);
    }
    seed("recovery", "intact", &[30, 0x0c, 3, 0x10, 40, 0x2d, 90, 0x2e, 3, 0, 2]);
    for number in 0..8u8 {
        seed("directory", &format!("intact-{number}"), &[number]);
    }
    for what in 0..16u8 {
        seed(
            "directory",
            &format!("damage-{what}"),
            &[what & 7, what | 0x30, 0, what * 3, 1, 44, 0, 9, 9, 9],
        );
    }
    conversations();
}

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory).expect("a place for the inputs");
    fs::write(directory.join(name), bytes).expect("a place for the inputs");
}

/// The choice of an API and a direction, as `request` reads it.
fn choice(api: ApiKey, response: bool) -> u8 {
    let row = APIS.iter().position(|row| row.key == api).expect("every API is in the table");
    (row as u8) << 1 | u8::from(response)
}

fn requests() {
    // Zeros are a message of most kinds.
    for row in APIS {
        for version in 0..=row.version_last - row.version_first {
            for response in [false, true] {
                let input = [&[choice(row.key, response), version as u8][..], &[0; 24]].concat();
                seed("request", &format!("{}-{version}-{response}", row.name), &input);
            }
        }
    }
    for version in [3i16, 9, 13] {
        let header = RequestHeader { api: ApiKey::Produce, version, correlation_id: 1, client_id: None };
        let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 1000 };
        let mut frame = GappedFrame::default();
        encode_produce_prefix(&mut frame, &header, &terms, ("t", &[1; 16]), &[(0, 3)]).expect("a request");
        let at = frame.gaps[0].position;
        frame.bytes.splice(at..at, [1, 2, 3]);
        seed("request", &format!("frame-{version}"), &frame.bytes[4..]);
        let body = frame.bytes.split_off(14 + usize::from(version >= 9));
        seed("request", &format!("produce-{version}"), &whole(ApiKey::Produce, version, false, &body));
        let mut bytes = Vec::new();
        let mut writer =
            ProduceResponseWriter::begin(Encoder::growing(&mut bytes), 1, version, 1).expect("served");
        writer.topic("t", &[1; 16], 1);
        writer.partition(&ProduceOutcome::appended(0, 5, -1, 0));
        writer.finish(0, &[]).expect("a response");
        let body = bytes.split_off(8 + usize::from(version >= 9));
        seed("request", &format!("produced-{version}"), &whole(ApiKey::Produce, version, true, &body));
    }
    for version in [4i16, 11, 12, 16] {
        let mut frame = GappedFrame::default();
        let terms = FetchResponseTerms::default();
        let mut writer = FetchResponseWriter::begin(&mut frame, 1, version, &terms, 1).expect("served");
        writer.topic("t", &[1; 16], 1);
        writer.partition(&FetchOutcome::read(0, 5, 0, 3));
        writer.finish(&[]).expect("a response");
        let at = frame.gaps[0].position;
        frame.bytes.splice(at..at, [1, 2, 3]);
        let body = frame.bytes.split_off(8 + usize::from(version >= 12));
        seed("request", &format!("fetched-{version}"), &whole(ApiKey::Fetch, version, true, &body));
    }
}

fn whole(api: ApiKey, version: i16, response: bool, body: &[u8]) -> Vec<u8> {
    let version = (version - api.facts().version_first) as u8;
    [&[choice(api, response), version][..], body].concat()
}

fn batch(records: i64, base: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(100));
    for record in 0..records {
        builder.push(Timestamp(100 + record), Some(b"key"), Some(b"value"), &[("name", b"content")]);
    }
    let mut batch = builder.finish().to_vec();
    stamp(&mut batch, Offset(base), Epoch(3));
    batch
}

fn record_batches() {
    for choices in [0, 2, 3] {
        seed("record_batch", &format!("one-{choices}"), &[&[choices, 7][..], &batch(1, 0)].concat());
    }
    seed("record_batch", "three", &[&[3, 70][..], &batch(3, 10)].concat());
    let segment = [batch(1, 10), batch(3, 11), batch(2, 14)].concat();
    seed("record_batch", "segment", &[&[6, 20][..], &segment].concat());
}

fn own_files() {
    let id = "AAAAAAAAAAAAAAAAAAAAAQ";
    let mut epochs = EpochCache::new();
    (0..3).for_each(|epoch| epochs.assign(Epoch(epoch), Offset(i64::from(epoch) * 10)));
    let texts = [
        format!("version=1\ncluster.id={id}\nnode.id=1\ndirectory.id={id}\nother=1\n"),
        format!("version: 0\ntopic_id: {id}\n"),
        "0\n2\nt 0 17\nt 1 5\n".to_owned(),
        format!("1\n2\nt {id} 2 17 live segment.bytes=4096\nold AAAAAAAAAAAAAAAAAAAAAg 1 0 deleting\n"),
        epochs.format(),
    ];
    for (kind, text) in texts.iter().enumerate() {
        seed("own_files", &format!("text-{kind}"), &[&[kind as u8][..], text.as_bytes()].concat());
    }
    let twice = format!("\x031\n2\nt {id} 2 17 live\nt AAAAAAAAAAAAAAAAAAAAAg 1 0 live\n");
    seed("own_files", "topic-of-a-name-that-comes-twice", twice.as_bytes());
    let (mut index, mut times) = (OffsetIndex::new(Offset(5), 10), TimeIndex::new(Offset(5)));
    for batch in 0..4 {
        index.note_batch(Offset(5 + batch * 2), Offset(6 + batch * 2), Position(batch as u64 * 100), 100);
        times.note(Timestamp(batch * 7), Offset(6 + batch * 2));
    }
    let base = 5i64.to_be_bytes();
    let file = [&[5][..], &base, &400i64.to_be_bytes(), &index.encode()].concat();
    seed("own_files", "offset-index", &file);
    seed("own_files", "time-index", &[&[6][..], &base, &8i64.to_be_bytes(), &times.encode()].concat());
    seed("own_files", "segment-name", b"\x0700000000000000000101.log");
    seed("own_files", "directory-name", b"\x07orders-3");
    let settings =
        b"\x08ringlog.ack=written segment.bytes=65536 segment.ms=5 message.timestamp.type=LogAppendTime";
    seed("own_files", "settings", settings);
}

/// Each kind of frame, whole and with bytes changed.
fn conversations() {
    let produce = |kind: u8, shape: u8, size: u8| vec![kind, 5, shape, 0, size];
    let fetch = vec![6, 7, 0, 50, 1, 0, 16, 0, 0, 4, 0];
    seed("conversation", "produce-and-fetch", &[vec![0, 0], produce(4, 0x02, 40), fetch.clone()].concat());
    for ingress in 0..4u8 {
        let large = vec![4, 5, 0x02, 0x40, 0];
        let input = [vec![ingress, 3], large.clone(), produce(4, 0x11, 9), large, fetch.clone()].concat();
        seed("conversation", &format!("ingress-{ingress}"), &input);
    }
    seed("conversation", "rotten", &[vec![0, 0], produce(0x0d, 0x02, 40), vec![0, 80, 7]].concat());
    seed("conversation", "put-right", &[vec![0, 0], produce(0x8d, 0x02, 40), vec![0, 90, 7]].concat());
    seed("conversation", "unframed", &[0, 0, 0, 0, 6, 0, 0, 0, 2, 9, 9]);
    seed("conversation", "unknown", &[0, 0, 7, 0, 18, 0, 99, 0, 2, 0xff, 0xff]);
    for row in 0..APIS.len() as u8 {
        seed("conversation", &format!("zeros-{row}"), &[&[0, 0, 1, row, 2, 0, 24][..], &[0; 24]].concat());
    }
}
