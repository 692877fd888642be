//! What a run of the arms relies on: all of them answer the same bytes to the same requests, outlive nonsense, and are
//! compared on records that are verified.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use clap::Parser;
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchTerms};
use ringlog_broker::wire::produce::{ProduceTerms, encode_produce_prefix};
use ringlog_broker::wire::{ApiKey, Encoder, GappedFrame, RequestHeader, Uuid};
use ringlog_harness::arms::Arm;
use ringlog_harness::batch::{BatchWriter, Batches, Shape};
use ringlog_harness::floor::stored::{MADE_TOPIC, make};
use ringlog_harness::payload::Payload;
use ringlog_harness::record::RunRecord;
use ringlog_harness::spec::RunSpec;

const PARTITIONS: u32 = 2;

/// A server that ends with this.
struct Server {
    process: Child,
    commands: ChildStdin,
    address: SocketAddr,
    stderr: PathBuf,
}

impl Server {
    fn start(words: &[&str], directory: &Path, stored: &Path) -> Server {
        let name = words.join("-");
        let stderr = directory.join(format!("{name}.log"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_ringlog-harness"))
            .args(words)
            .args(["--core", "0", "--partitions", &PARTITIONS.to_string(), "--egress", "copy"])
            .arg("--stored")
            .arg(stored)
            .arg("--data-dir")
            .arg(directory.join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        let said = || format!("{words:?} said `{line}`: {}", fs::read_to_string(&stderr).unwrap());
        let address = address.unwrap_or_else(|| panic!("{}", said()));
        Server { process, commands, address, stderr }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Ends it cleanly; gives what it said of connections.
    fn end(mut self) -> String {
        drop(self.commands);
        assert!(self.process.wait().unwrap().success());
        fs::read_to_string(&self.stderr).unwrap()
    }
}

/// All that this build has, our ring set up otherwise among them; the floor first.
fn servers() -> Vec<Vec<&'static str>> {
    let mut words = vec![vec!["serve-floor"]];
    words.extend(Arm::built().into_iter().map(|arm| vec!["serve-arm", "--arm", arm.name()]));
    for option in ["unregistered", "small-pages", "depth=1"] {
        words.push(vec!["serve-arm", "--arm", "ring", "--ring-option", option]);
    }
    words
}

fn produce(correlation_id: i32, partition: i32, value_bytes: usize) -> Vec<u8> {
    let mut batch = vec![0; value_bytes + 200];
    let mut writer = BatchWriter::begin(&mut batch, 5);
    assert!(writer.push(&Shape { key: None, value_bytes, header: None }, |value| value.fill(7)));
    let length = writer.finish();
    batch.truncate(length);
    let mut frame = GappedFrame::default();
    let header = RequestHeader { api: ApiKey::Produce, version: 9, correlation_id, client_id: Some("me") };
    let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 1 };
    let topic = ("cell-00001", &Uuid::default());
    encode_produce_prefix(&mut frame, &header, &terms, topic, &[(partition, length as u64)]).unwrap();
    let (before, behind) = frame.bytes.split_at(frame.gaps[0].position);
    [before, &batch, behind].concat()
}

fn fetch(correlation_id: i32, partition: i32, fetch_offset: i64) -> Vec<u8> {
    let header = RequestHeader { api: ApiKey::Fetch, version: 12, correlation_id, client_id: Some("me") };
    let terms = FetchTerms { max_wait_ms: 10, min_bytes: 1, max_bytes: 100_000, ..FetchTerms::default() };
    let mut bytes = Vec::new();
    let mut writer = FetchRequestWriter::begin(Encoder::growing(&mut bytes), &header, &terms, 1).unwrap();
    writer.topic(MADE_TOPIC, &Uuid::default(), 1);
    let partition =
        FetchPartition { index: partition, fetch_offset, partition_max_bytes: 100_000, ..Default::default() };
    writer.partition(&partition);
    writer.finish(&[]).unwrap();
    bytes
}

fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).unwrap();
    let mut rest = vec![0; i32::from_be_bytes(prefix) as usize];
    stream.read_exact(&mut rest).unwrap();
    rest
}

/// Everything that a server answers to the same conversation, and the bytes of its file that count.
fn converse(server: &Server, sent_bytes: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    let mut stream = server.connect();
    // More than a unit of memory, requests cut where no frame ends, several in flight.
    let requests: Vec<Vec<u8>> =
        (0..90).map(|number| produce(number, number % 2, 20_000 + 97 * number as usize)).collect();
    *sent_bytes = requests.concat();
    for part in sent_bytes.chunks(170_001) {
        stream.write_all(part).unwrap();
    }
    answers.extend((0..requests.len()).map(|_| answer(&mut stream)));
    let mut reader = server.connect();
    let mut correlation_id = 0;
    for partition in 0..PARTITIONS as i32 {
        let mut offset = 0;
        loop {
            correlation_id += 1;
            // The first one comes in two pieces.
            let request = fetch(correlation_id, partition, offset);
            let middle = if correlation_id == 1 { 5 } else { request.len() };
            reader.write_all(&request[..middle]).unwrap();
            if middle < request.len() {
                std::thread::sleep(Duration::from_millis(20));
                reader.write_all(&request[middle..]).unwrap();
            }
            let bytes = answer(&mut reader);
            let batches = |at: usize| Batches::new(&bytes[at..]).map_while(Result::ok);
            let begins = |at: &usize| {
                let first = batches(*at).next();
                first.is_some_and(|batch| batch.base_offset() == offset && batch.crc_is_good())
            };
            let at = (0..bytes.len()).find(begins);
            // On to what is behind the last batch of the answer.
            let last = at.and_then(|at| batches(at).last());
            let end = last.map(|batch| batch.base_offset() + i64::from(batch.last_offset_delta()) + 1);
            answers.push(bytes.clone());
            let Some(end) = end else { break };
            offset = end;
        }
    }
    assert!(correlation_id > 10, "{correlation_id} answers to readers");
    answers
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    spec: RunSpec,
}

fn stored(directory: &Path) -> PathBuf {
    let words = "compare --partitions 2 --producers 2 --catch-up-bytes 1MB --batch-bytes 16KiB".split(' ');
    let spec = Flags::try_parse_from(words).unwrap().spec;
    make(directory, &spec, &Payload::seeded(1000, 1), 16384, (7, 1)).unwrap().directory
}

#[test]
fn arms_answer_the_same_bytes_as_the_floor_and_write_what_came() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let made = stored(&directory.path().join("made"));
    let mut wanted: Option<Vec<Vec<u8>>> = None;
    for words in servers() {
        let server = Server::start(&words, directory.path(), &made);
        let mut sent = Vec::new();
        let answers = converse(&server, &mut sent);
        match &wanted {
            None => wanted = Some(answers),
            Some(wanted) => {
                assert_eq!(answers.len(), wanted.len(), "{words:?}");
                let differing = answers.iter().zip(wanted).position(|(one, other)| one != other);
                assert_eq!(differing, None, "{words:?}");
            }
        }
        // Whole units are in the file, in the order they came on the one connection.
        let units = sent.len() / (1 << 20) * (1 << 20);
        let path = directory.path().join(words.join("-")).join("floor");
        let written =
            |bytes: usize| fs::read(&path).unwrap().get(..bytes).is_some_and(|file| file == &sent[..bytes]);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !written(units) {
            assert!(std::time::Instant::now() < deadline, "{words:?} wrote something else");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(units > 1 << 20);
        let said = server.end();
        assert!(!said.contains("closed"), "{words:?}: {said}");
    }
}

#[test]
fn nonsense_at_arms_closes_its_own_connection_with_a_reason_and_nothing_else() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let made = stored(&directory.path().join("made"));
    let mut bad_crc = produce(1, 0, 5000);
    let at = bad_crc.len() - 50;
    bad_crc[at] ^= 1;
    let mut long_reader = fetch(1, 0, 0);
    long_reader[..4].copy_from_slice(&5000i32.to_be_bytes());
    let mut cut_fetch = fetch(1, 0, 0)[..24].to_vec();
    cut_fetch[..4].copy_from_slice(&20i32.to_be_bytes());
    let nonsense: [(&[u8], &str); 8] = [
        (b"GET / HTTP/1.1\r\n\r\n", "API"),
        (&[0, 0, 0, 9, 0, 3, 0, 12, 0, 0, 0, 1, 0], "API 3"),
        (&bad_crc, "a batch with CRC"),
        (&[0, 0, 0, 60, 0, 0, 0, 9].repeat(8), "not a Produce request"),
        (&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9], "negative length"),
        (&long_reader, "5000 bytes"),
        (&cut_fetch, "closed"),
        (&fetch(1, 99, 0), "partition 99"),
    ];
    for words in servers().into_iter().skip(1) {
        let server = Server::start(&words, directory.path(), &made);
        let mut bystander = server.connect();
        bystander.write_all(&produce(1, 0, 3000)).unwrap();
        let first = answer(&mut bystander);
        for (bytes, _) in &nonsense {
            let mut stream = server.connect();
            stream.write_all(bytes).unwrap();
            // A closed connection gives an end, or an error where bytes of ours were not read.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            assert!(rest.is_empty(), "{words:?} answered {rest:02x?}");
        }
        bystander.write_all(&produce(1, 0, 3000)).unwrap();
        let second = answer(&mut bystander);
        assert_eq!(first.len(), second.len(), "{words:?}");
        let said = server.end();
        for (bytes, reason) in &nonsense {
            assert!(said.contains(reason), "{words:?}: `{reason}` of {bytes:02x?} is missing in:\n{said}");
        }
        assert_eq!(said.matches("a connection is closed").count(), nonsense.len(), "{words:?}: {said}");
    }
}

#[test]
fn a_small_run_of_arms_verifies_every_record_and_names_what_the_host_refuses() {
    let out = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let words = "arms --ring-options unregistered,huge-pages --blocks 1 --seconds 0.5 --catch-up-bytes 8MiB \
                 --partitions 3 --producers 2 --fixed-rate 20MB/s --seed 7";
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog-harness"));
    let ran = command.args(words.split_whitespace()).arg("--out").arg(out.path()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    let record = RunRecord::load(out.path()).unwrap_or_else(|error| panic!("{error:#}\n{said}"));
    let rows = record.spec.rows.len();
    assert!(record.complete && rows > Arm::built().len(), "{said}");
    assert_eq!(record.cells.len(), 3 * (rows + 1), "produce, its latency and catch-up, and the ring again");
    for cell in &record.cells {
        assert!(cell.payload_bytes() > 0 && cell.errors.is_empty(), "{}: {said}", cell.cell);
    }
    let refused = rows == Arm::built().len() + 1;
    assert_eq!(refused, said.contains("ring:huge-pages: refused here: "), "{said}");
    for words in
        ["verified: ", "against ring, paired over 1 blocks", "ring again (noise)", "threads", "epoll"]
    {
        assert!(said.contains(words), "`{words}` is missing in:\n{said}");
    }
    assert!(said.contains("calls/MiB") && !out.path().join("data").exists(), "{said}");
}
