//! Conversations with the built program over real sockets: what it answers to the wrong, the hostile and the hasty,
//! and that whoever behaves is served all the while.

mod common;

use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::*;
use ringlog_broker::wire::api_versions::ApiVersionsResponse;
use ringlog_broker::wire::fetch::FetchTerms;
use ringlog_broker::wire::{APIS, ApiKey, Decoder, ErrorCode, Message, decode_response_header};

const TOPIC: &str = "conversation";
const PARTITIONS: i32 = 4;

/// Where the fields lie that the tests spoil.
const LAST_OFFSET_DELTA_AT: usize = 23;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const COUNT_AT: usize = 57;

/// A broker with the topic in place, and its home.
fn served(options: &[&str]) -> (tempfile::TempDir, Broker) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let broker = Broker::start(home.path(), &[&["--partitions", "4"], options].concat());
    assert_eq!(broker.client().epochs(TOPIC).len() as i32, PARTITIONS);
    (home, broker)
}

/// A new client appends a batch and reads it back.
#[track_caller]
fn assert_serves(broker: &Broker) {
    let mut client = broker.client();
    let sent = batch(&[b"are you", b"still there?"]);
    let base = client.produce(TOPIC, 3, &sent).expect("an append of a client that does everything right");
    let fetched = client.fetch(TOPIC, 3, base);
    assert_eq!((fetched.error, fetched.high_watermark), (ErrorCode::None, base + 2));
    assert_eq!(content(&fetched.records), content(&sent));
}

/// Waits for batches that were promised less than being visible: those in memory, and those without any promise.
fn wait_until_visible(client: &mut Client, partition: i32, end: i64) {
    let began = Instant::now();
    while client.fetch(TOPIC, partition, 0).high_watermark < end {
        assert!(began.elapsed() < PATIENCE, "{TOPIC}-{partition} does not become visible up to {end}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A frame of hand-written bytes: header in version 1, then the body.
fn raw_frame(api: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&(10 + body.len() as i32).to_be_bytes());
    frame.extend_from_slice(&api.to_be_bytes());
    frame.extend_from_slice(&version.to_be_bytes());
    frame.extend_from_slice(&77i32.to_be_bytes());
    frame.extend_from_slice(&(-1i16).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Makes the checksum right again after a change that is to be found for its own sake.
fn with_crc(mut batch: Vec<u8>) -> Vec<u8> {
    let crc = ringlog::log::crc32c(&batch[ATTRIBUTES_AT..]);
    batch[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
    batch
}

#[test]
fn batches_that_are_none_are_refused_one_by_one_and_leave_no_trace() {
    let (_home, broker) = served(&[]);
    let mut client = broker.client();
    let good = batch(&[b"one", b"two", b"three"]);
    let with = |at: usize, bytes: &[u8]| {
        let mut batch = good.clone();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        batch
    };
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cases = [
        ("magic 1", with(MAGIC_AT, &[1]), ErrorCode::UnsupportedForMessageFormat),
        ("magic 9", with(MAGIC_AT, &[9]), ErrorCode::InvalidRecord),
        ("a flipped bit", flipped, ErrorCode::CorruptMessage),
        ("a wrong checksum", with(CRC_AT, &[1, 2, 3, 4]), ErrorCode::CorruptMessage),
        ("two batches where one belongs", [&good[..], &good].concat(), ErrorCode::InvalidRecord),
        ("half a batch", good[..good.len() / 2 + 20].to_vec(), ErrorCode::CorruptMessage),
        ("less than a header", good[..30].to_vec(), ErrorCode::CorruptMessage),
        ("a count too large", with_crc(with(COUNT_AT, &4i32.to_be_bytes())), ErrorCode::InvalidRecord),
        ("a count of zero", with_crc(with(COUNT_AT, &0i32.to_be_bytes())), ErrorCode::InvalidRecord),
        ("a negative count", with_crc(with(COUNT_AT, &(-3i32).to_be_bytes())), ErrorCode::InvalidRecord),
        (
            "an impossible last offset",
            with_crc(with(LAST_OFFSET_DELTA_AT, &i32::MAX.to_be_bytes())),
            ErrorCode::InvalidRecord,
        ),
        ("a control batch", with_crc(with(ATTRIBUTES_AT, &[0, 0x20])), ErrorCode::InvalidRecord),
        ("an unknown codec", with_crc(with(ATTRIBUTES_AT, &[0, 7])), ErrorCode::InvalidRecord),
    ];
    for (what, spoiled, wanted) in cases {
        assert_eq!(client.produce(TOPIC, 0, &spoiled), Err(wanted), "{what}");
        assert_serves(&broker);
    }
    assert_eq!(client.fetch(TOPIC, 0, 0).high_watermark, 0, "nothing of all that was appended");
    assert_eq!(client.produce(TOPIC, 0, &good), Ok(0), "and the connection is as good as before");
}

#[test]
fn a_bad_batch_does_not_spoil_its_neighbours_in_the_same_request() {
    let (_home, broker) = served(&[]);
    let mut client = broker.client();
    let good = batch(&[b"good"]);
    let mut bad = good.clone();
    bad[CRC_AT] ^= 0xff;
    let sent = client.send_produce(-1, TOPIC, &[(0, &good), (1, &bad), (9, &good), (2, &good)]);
    let outcomes = vec![
        (0, ErrorCode::None, 0),
        (1, ErrorCode::CorruptMessage, -1),
        (9, ErrorCode::UnknownTopicOrPartition, -1),
        (2, ErrorCode::None, 0),
    ];
    assert_eq!(client.try_receive_produce().unwrap(), (sent, outcomes));
    assert_eq!(content(&client.fetch(TOPIC, 2, 0).records), content(&good));
}

#[test]
fn unknown_topics_partitions_and_offsets_are_named_as_such() {
    let (_home, broker) = served(&[]);
    let mut client = broker.client();
    let good = batch(&[b"good"]);
    assert_eq!(client.produce("nobody", 0, &good), Err(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(client.fetch("nobody", 0, 0).error, ErrorCode::UnknownTopicOrPartition);
    for partition in [PARTITIONS, i32::MAX, -1, i32::MIN] {
        let refused = client.produce(TOPIC, partition, &good);
        assert_eq!(refused, Err(ErrorCode::UnknownTopicOrPartition), "{partition}");
        let fetched = client.fetch(TOPIC, partition, 0);
        assert_eq!(fetched.error, ErrorCode::UnknownTopicOrPartition, "{partition}");
    }
    assert_eq!(client.produce(TOPIC, 0, &good), Ok(0));
    for offset in [2, i64::MAX, -1, i64::MIN] {
        let fetched = client.fetch(TOPIC, 0, offset);
        assert_eq!((fetched.error, fetched.records.len()), (ErrorCode::OffsetOutOfRange, 0), "{offset}");
    }
    assert_eq!(client.fetch(TOPIC, 0, 1).error, ErrorCode::None, "the end itself is in range");
    assert_serves(&broker);
}

#[test]
fn frames_that_cannot_be_end_their_connection_and_no_other() {
    let (_home, broker) = served(&[]);
    let absurd = i32::MAX.to_be_bytes();
    let cases = [
        ("a negative length", (-1i32).to_be_bytes().to_vec()),
        ("the most negative length", i32::MIN.to_be_bytes().to_vec()),
        ("a length of 2 GiB", absurd.to_vec()),
        ("an empty frame", vec![0; 4]),
        ("an API that nobody has", raw_frame(777, 0, &[])),
        ("an API with a negative number", raw_frame(-1, 0, &[])),
        ("a Produce version too old", raw_frame(0, 2, &[0; 20])),
        ("a Produce version from the future", raw_frame(0, 99, &[0; 20])),
        ("a Metadata version from the future", raw_frame(3, 99, &[0; 20])),
        ("Metadata for two thousand million topics", raw_frame(3, 1, &absurd)),
        ("Metadata for minus two topics", raw_frame(3, 1, &(-2i32).to_be_bytes())),
        ("Produce with absurdly many topics", {
            let body = [&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1][..], &absurd].concat();
            raw_frame(0, 3, &body)
        }),
        ("Fetch with absurdly many topics", {
            let body = [&[0xff; 4][..], &[0; 12], &[0], &absurd].concat();
            raw_frame(1, 4, &body)
        }),
        ("CreateTopics with absurdly many topics", raw_frame(19, 2, &absurd)),
        ("a topic name longer than its frame", raw_frame(3, 1, &[0, 0, 0, 1, 0x7f, 0xff, b'a'])),
    ];
    let mut bystander = broker.client();
    for (what, bytes) in cases {
        let mut client = broker.client();
        client.send(&bytes);
        client.expect_closed(what);
        assert_eq!(bystander.epochs(TOPIC).len() as i32, PARTITIONS, "after {what}");
        assert_serves(&broker);
    }
}

#[test]
fn clients_that_leave_in_the_middle_of_a_frame_take_nothing_with_them() {
    let (_home, broker) = served(&[]);
    let sent = batch(&[&[7; 100_000]]);
    let header = broker.client().header(ApiKey::Produce, PRODUCE_VERSION);
    let frame = produce_frame(&header, -1, TOPIC, &[(0, &sent)]);
    for end in [1, 3, 4, 5, 20, 100, frame.len() / 2, frame.len() - 1] {
        // Politely: no more will come, but an answer would be read.
        let mut client = broker.client();
        client.send(&frame[..end]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.expect_closed("half a frame");

        // Rudely: an answer is left unread, so the connection is reset.
        let mut client = broker.client();
        client.send(&raw_frame(3, 1, &(-1i32).to_be_bytes()));
        client.stream.peek(&mut [0]).unwrap();
        client.send(&frame[..end]);
        drop(client);
        assert_serves(&broker);
    }
    // And one whose promise is still open when it goes.
    let mut client = broker.client();
    client.send(&frame);
    drop(client);
    assert_serves(&broker);
}

#[test]
fn a_version_of_api_versions_from_the_future_is_answered_in_the_form_of_version_0() {
    let (_home, broker) = served(&[]);
    let mut client = broker.client();
    client.send(&raw_frame(18, 99, &[0, 2, b'a', 2, b'b', 0]));
    let frame = client.receive();
    let mut decoder = Decoder::new(&frame);
    assert_eq!(decode_response_header(&mut decoder, ApiKey::ApiVersions, 0), Ok(77));
    let response = ApiVersionsResponse::decode_from(&mut decoder, 0).unwrap();
    decoder.finish().unwrap();
    assert_eq!(response.error_code, ErrorCode::UnsupportedVersion);
    assert!(response.api_keys.iter().any(|range| range.api_key == 18 && range.max_version >= 3));
    // Which is what the client then asks in, on the same connection.
    client.send(&raw_frame(18, 0, &[]));
    let frame = client.receive();
    let mut decoder = Decoder::new(&frame);
    assert_eq!(decode_response_header(&mut decoder, ApiKey::ApiVersions, 0), Ok(77));
    let response = ApiVersionsResponse::decode_from(&mut decoder, 0).unwrap();
    assert_eq!((response.error_code, response.api_keys.len()), (ErrorCode::None, APIS.len()));
    assert_serves(&broker);
}

#[test]
fn acknowledgements_are_those_that_were_asked_for() {
    let (_home, broker) = served(&[]);
    let mut client = broker.client();
    let sent = batch(&[b"silence is golden"]);
    for acks in [2, 5, -2, i16::MAX, i16::MIN] {
        let id = client.send_produce(acks, TOPIC, &[(0, &sent)]);
        let refused = vec![(0, ErrorCode::InvalidRequiredAcks, -1)];
        assert_eq!(client.try_receive_produce().unwrap(), (id, refused), "acks={acks}");
    }
    assert_eq!(client.fetch(TOPIC, 0, 0).high_watermark, 0, "nothing of that was appended");

    // acks=0: the next thing to come is the answer to the next question, and the data arrives.
    for _ in 0..10 {
        client.send_produce(0, TOPIC, &[(0, &sent)]);
    }
    assert_eq!(client.epochs(TOPIC).len() as i32, PARTITIONS);
    wait_until_visible(&mut client, 0, 10);
    assert_eq!(batches_in(&client.fetch_all(TOPIC, 0)).len(), 10);

    // acks=1 waits like -1 does.
    let id = client.send_produce(1, TOPIC, &[(0, &sent)]);
    assert_eq!(client.try_receive_produce().unwrap(), (id, vec![(0, ErrorCode::None, 10)]));

    // An acks=0 request that fails has no answer to be told in: the connection ends.
    client.send_produce(0, "nobody", &[(0, &sent)]);
    client.expect_closed("acks=0 to a topic that is not there");
    assert_serves(&broker);
}

#[test]
fn twenty_requests_in_flight_are_answered_in_their_order() {
    for ack in ["memory", "written", "durable"] {
        let (_home, broker) = served(&["--ack", ack]);
        let mut client = broker.client();
        let (mut sent, mut next) = (Vec::new(), [0i64; PARTITIONS as usize]);
        for number in 0..20 {
            let partition = number * 7 % PARTITIONS;
            let value = vec![number as u8; 1 + number as usize * 4000];
            let id = client.send_produce(-1, TOPIC, &[(partition, &batch(&[&value, b"and another"]))]);
            sent.push((id, vec![(partition, ErrorCode::None, next[partition as usize])]));
            next[partition as usize] += 2;
        }
        for expected in sent {
            assert_eq!(client.try_receive_produce().unwrap(), expected, "{ack}");
        }
        for partition in 0..PARTITIONS {
            let end = next[partition as usize];
            wait_until_visible(&mut client, partition, end);
            let all = client.fetch_all(TOPIC, partition);
            assert_eq!(batches_in(&all).last().unwrap().0.next_offset().0, end, "{ack}");
        }
    }
}

#[test]
fn a_long_poll_wakes_when_another_connection_appends() {
    let (_home, broker) = served(&[]);
    let (mut reader, mut writer) = (broker.client(), broker.client());
    let sent = batch(&[b"good morning"]);
    let terms = FetchTerms { max_wait_ms: 15_000, min_bytes: 1, max_bytes: 1 << 20, ..Default::default() };
    for round in 0..5 {
        let poll = std::thread::spawn(move || {
            let began = Instant::now();
            let fetched = reader.fetch_with(TOPIC, 1, round, &terms);
            (reader, fetched, began.elapsed())
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!poll.is_finished(), "there was nothing to answer yet");
        assert_eq!(writer.produce(TOPIC, 1, &sent), Ok(round));
        let (back, fetched, took) = poll.join().unwrap();
        assert_eq!(content(&fetched.records), content(&sent));
        assert!(took < Duration::from_secs(5), "woken by the append, not by the time: {took:?}");
        reader = back;
    }
    // Without an append it is the time that ends it, and a poller that leaves disturbs nobody.
    let terms = FetchTerms { max_wait_ms: 150, ..terms };
    let began = Instant::now();
    let fetched = reader.fetch_with(TOPIC, 1, 5, &terms);
    assert!(fetched.records.is_empty() && began.elapsed() >= Duration::from_millis(150));
    assert_serves(&broker);
}

#[test]
fn large_batches_pass_up_to_the_limit_and_not_beyond() {
    let (_home, broker) = served(&[]);
    let mut client = broker.client();
    let over = batch(&[&vec![1; 1_200_000]]);
    assert_eq!(client.produce(TOPIC, 0, &over), Err(ErrorCode::MessageTooLarge));
    assert_serves(&broker);
    assert_eq!(client.produce(TOPIC, 0, &batch(&[b"small"])), Ok(0), "the connection goes on");
    broker.stop();

    for egress in ["copy", "sendfile", "tail"] {
        let (_home, broker) = served(&["--message-bytes-max", "12582912", "--egress", egress]);
        let mut client = broker.client();
        let value: Vec<u8> =
            (0..10 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let large = batch(&[&value]);
        assert_eq!(client.produce(TOPIC, 0, &large), Ok(0), "{egress}");
        // The first batch of an answer comes whole, however little was asked for.
        let fetched = client.fetch(TOPIC, 0, 0);
        assert_eq!(fetched.error, ErrorCode::None);
        assert!(content(&fetched.records) == content(&large), "{egress}: 10 MiB come back as they went");
        assert_eq!(client.produce(TOPIC, 0, &batch(&[&vec![2; 13 << 20]])), Err(ErrorCode::MessageTooLarge));
        assert_serves(&broker);
    }
}

#[test]
fn a_second_broker_on_the_same_directory_is_told_who_holds_it() {
    let (home, broker) = served(&[]);
    let Err(words) = Broker::try_start(home.path(), &[]) else { panic!("two brokers share a directory") };
    assert!(
        words.contains(&broker.pid().to_string()),
        "the holder, process {}, is named: {words}",
        broker.pid()
    );
    assert!(words.contains("data"), "and the directory: {words}");
    assert_serves(&broker);
    broker.stop();
    assert_serves(&Broker::start(home.path(), &[]));
}

#[test]
fn a_clean_stop_does_not_wait_for_clients_that_ask_nothing() {
    let (_home, broker) = served(&[]);
    let mut idle: Vec<_> = (0..5).map(|_| broker.client()).collect();
    idle.iter_mut().skip(1).for_each(|client| assert_eq!(client.epochs(TOPIC).len() as i32, PARTITIONS));
    assert_eq!(idle[2].produce(TOPIC, 0, &batch(&[b"and now silence"])), Ok(0));
    let asked = Instant::now();
    broker.stop();
    assert!(asked.elapsed() < Duration::from_secs(3), "the stop took {:?}", asked.elapsed());
    idle.into_iter().for_each(|client| client.expect_closed("the broker has stopped"));
}

/// Batches of many sizes, the same every time.
fn assorted() -> Vec<(i32, Vec<u8>)> {
    let sizes = [1, 100, 5_000, 300_000, 64, 4_096, 70_000, 900_000, 10];
    let of = |number: usize| {
        let size = sizes[number % sizes.len()];
        let value: Vec<u8> = (0..size).map(|at: usize| (at * 31 + number * 7) as u8).collect();
        (number as i32 % PARTITIONS, batch(&[&value, format!("batch {number}").as_bytes()]))
    };
    (0..36).map(of).collect()
}

#[test]
fn a_restart_keeps_everything_and_no_strategy_changes_a_byte() {
    let mut seen: Option<Vec<Vec<u8>>> = None;
    let mut compare = |found: Vec<Vec<u8>>, who: &str| match &seen {
        None => seen = Some(found),
        Some(first) => assert!(*first == found, "{who} gives other bytes than the first strategies"),
    };
    let read = |broker: &Broker| {
        let mut client = broker.client();
        (0..PARTITIONS).map(|partition| client.fetch_all(TOPIC, partition)).collect::<Vec<_>>()
    };
    for ingress in ["buffered", "copy"] {
        for egress in ["copy", "sendfile", "tail"] {
            let options = ["--ingress", ingress, "--egress", egress];
            let (home, broker) = served(&options);
            let mut client = broker.client();
            for (partition, batch) in assorted() {
                client.produce(TOPIC, partition, &batch).unwrap();
            }
            compare(read(&broker), &format!("{ingress}, {egress}, just written"));
            broker.stop();
            for egress_after in ["copy", "sendfile", "tail"] {
                let options = ["--ingress", ingress, "--egress", egress_after];
                let broker = Broker::start(home.path(), &options);
                compare(read(&broker), &format!("{ingress}, {egress}, restarted with {egress_after}"));
                broker.stop();
            }
        }
    }
    let sent = assorted();
    for (partition, bytes) in (0..).zip(seen.unwrap()) {
        let stored = batches_in(&bytes);
        let wanted: Vec<_> = sent.iter().filter(|(to, _)| *to == partition).collect();
        assert_eq!(stored.len(), wanted.len());
        assert!(stored.iter().zip(wanted).all(|((_, stored), (_, sent))| content(stored) == content(sent)));
    }
}
