//! A broker in a process of its own and a plain client: what the tests of the whole program share.

// Each test program uses its part of this.
#![allow(dead_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringlog::log::{BATCH_HEADER_BYTES, BatchBuilder, BatchHeader, check_stored};
use ringlog::types::Timestamp;
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms};
use ringlog_broker::wire::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use ringlog_broker::wire::produce::{ProduceRequestWriter, ProduceResponse, ProduceTerms};
use ringlog_broker::wire::{
    ApiKey, Decoder, Encoder, ErrorCode, GappedFrame, Message, RequestHeader, Uuid, decode_response_header,
    encode_request,
};

/// Flexible versions that still go by name.
pub const PRODUCE_VERSION: i16 = 9;
pub const FETCH_VERSION: i16 = 12;
pub const METADATA_VERSION: i16 = 9;

/// Longer than anything here takes on a busy machine; whoever waits that long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

const NO_ID: Uuid = [0; 16];

/// Partition, error and base offset.
pub type PartitionAnswer = (i32, ErrorCode, i64);

/// The built program, serving `home/data`. Dropped, it is killed.
pub struct Broker {
    child: Child,
    pub address: SocketAddr,
    /// What it said of itself before it listened.
    pub said: String,
    errors: PathBuf,
    // Kept open: whoever writes to a closed pipe dies of it.
    _output: BufReader<ChildStdout>,
}

impl Broker {
    pub fn start(home: &Path, options: &[&str]) -> Broker {
        match Broker::try_start(home, options) {
            Ok(broker) => broker,
            Err(words) => panic!("the broker did not start: {words}"),
        }
    }

    /// Starts by a shell that sets limits and ends in `exec`: `ulimit -n 64 && exec`.
    pub fn start_under(limits: &str, home: &Path, options: &[&str]) -> Broker {
        match Broker::try_start_under(limits, home, options) {
            Ok(broker) => broker,
            Err(words) => panic!("the broker did not start under {limits}: {words}"),
        }
    }

    pub fn try_start_under(limits: &str, home: &Path, options: &[&str]) -> Result<Broker, String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{limits} \"$0\" \"$@\""), env!("CARGO_BIN_EXE_ringlog-broker")]);
        Broker::start_by(shell, home, options)
    }

    /// Starts, or says what it said on its standard error.
    pub fn try_start(home: &Path, options: &[&str]) -> Result<Broker, String> {
        Broker::start_by(Command::new(env!("CARGO_BIN_EXE_ringlog-broker")), home, options)
    }

    fn start_by(mut command: Command, home: &Path, options: &[&str]) -> Result<Broker, String> {
        let errors = home.join("errors.txt");
        let from = std::fs::metadata(&errors).map_or(0, |m| m.len() as usize);
        let error_file: File = OpenOptions::new().create(true).append(true).open(&errors).unwrap();
        // Waited for when the `Broker` is dropped.
        #[allow(clippy::zombie_processes)]
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(home.join("data"))
            .args(options)
            .stdout(Stdio::piped())
            .stderr(error_file)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if output.read_line(&mut line).unwrap() == 0 {
                let status = child.wait().unwrap();
                assert!(!status.success(), "a broker that cannot serve must not end with success");
                return Err(std::fs::read_to_string(&errors).unwrap()[from..].to_owned());
            }
            if let Some(address) = line.strip_prefix("listening on ") {
                let address = address.trim().parse().unwrap();
                return Ok(Broker { child, address, said, errors, _output: output });
            }
            said.push_str(&line);
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Asks it to stop, and does not wait.
    pub fn ask_to_stop(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
    }

    /// What it wrote to its standard error so far, and what brokers before it wrote.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    /// Stops cleanly.
    pub fn stop(mut self) {
        self.ask_to_stop();
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "a clean stop ended with {status}: {}", self.errors());
                return;
            }
            assert!(asked.elapsed() < PATIENCE, "no clean stop: {}", self.errors());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops it where not all can be stored: it says so.
    pub fn stop_with_failure(mut self) {
        self.ask_to_stop();
        let asked = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(asked.elapsed() < PATIENCE, "no end: {}", self.errors());
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.wait().unwrap();
        // It gives up its reserve to store what it must: on a busy machine what waits for room may be quicker.
        if status.success() && self.errors().contains("appends are taken again") {
            return;
        }
        assert_eq!(status.code(), Some(1), "{}", self.errors());
        assert!(self.errors().contains("stopping cleanly"), "{}", self.errors());
    }

    /// Kills it where it stands.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    correlation_id: i32,
}

/// What a fetch of one partition gave.
#[derive(Debug)]
pub struct Fetched {
    pub error: ErrorCode,
    pub high_watermark: i64,
    pub log_start: i64,
    pub records: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, correlation_id: 0 }
    }

    pub fn header(&mut self, api: ApiKey, version: i16) -> RequestHeader<'static> {
        self.correlation_id += 1;
        RequestHeader { api, version, correlation_id: self.correlation_id, client_id: Some("a test") }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame without its prefix.
    pub fn try_receive(&mut self) -> io::Result<Vec<u8>> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let mut frame = vec![0; i32::from_be_bytes(prefix) as usize];
        self.stream.read_exact(&mut frame)?;
        Ok(frame)
    }

    pub fn receive(&mut self) -> Vec<u8> {
        self.try_receive().expect("an answer")
    }

    /// Waits for the broker to close the connection. A byte, or silence, is a failure.
    pub fn expect_closed(mut self, why: &str) {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => {}
            Ok(_) => panic!("{why}: answered, the connection was to be closed"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{why}"),
        }
    }

    /// Sends a Produce request and does not wait; returns its correlation id.
    pub fn send_produce(&mut self, acks: i16, topic: &str, batches: &[(i32, &[u8])]) -> i32 {
        let header = self.header(ApiKey::Produce, PRODUCE_VERSION);
        let bytes = produce_frame(&header, acks, topic, batches);
        self.send(&bytes);
        header.correlation_id
    }

    /// Waits for the answer to a Produce request: its correlation id, and what became of each partition.
    pub fn try_receive_produce(&mut self) -> io::Result<(i32, Vec<PartitionAnswer>)> {
        let frame = self.try_receive()?;
        let mut decoder = Decoder::new(&frame);
        let id = decode_response_header(&mut decoder, ApiKey::Produce, PRODUCE_VERSION).unwrap();
        let response = ProduceResponse::decode_from(&mut decoder, PRODUCE_VERSION).unwrap();
        decoder.finish().unwrap();
        let partitions = response.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|p| (p.index, p.error_code, p.base_offset)).collect::<Vec<_>>()
        });
        Ok((id, partitions.collect()))
    }

    /// Produces one batch with acks=-1.
    pub fn produce(&mut self, topic: &str, partition: i32, batch: &[u8]) -> Result<i64, ErrorCode> {
        let sent = self.send_produce(-1, topic, &[(partition, batch)]);
        let (id, outcomes) = self.try_receive_produce().expect("an answer to a Produce request");
        assert_eq!(id, sent, "the answer to this request");
        match outcomes[..] {
            [(index, ErrorCode::None, base)] if index == partition => Ok(base),
            [(index, error, -1)] if index == partition => Err(error),
            _ => panic!("an answer for one partition: {outcomes:?}"),
        }
    }

    /// Sends a Fetch request and does not wait; returns its correlation id.
    pub fn send_fetch(
        &mut self,
        topic: &str,
        partition: i32,
        fetch_offset: i64,
        terms: &FetchTerms<'_>,
    ) -> i32 {
        let header = self.header(ApiKey::Fetch, FETCH_VERSION);
        let mut bytes = Vec::new();
        let encoder = Encoder::growing(&mut bytes);
        let mut writer = FetchRequestWriter::begin(encoder, &header, terms, 1).unwrap();
        writer.topic(topic, &NO_ID, 1);
        let partition_max_bytes = terms.max_bytes;
        writer.partition(&FetchPartition {
            index: partition,
            fetch_offset,
            partition_max_bytes,
            ..Default::default()
        });
        writer.finish(&[]).unwrap();
        self.send(&bytes);
        header.correlation_id
    }

    pub fn fetch_with(
        &mut self,
        topic: &str,
        partition: i32,
        fetch_offset: i64,
        terms: &FetchTerms<'_>,
    ) -> Fetched {
        let sent = self.send_fetch(topic, partition, fetch_offset, terms);
        let frame = self.receive();
        let mut decoder = Decoder::new(&frame);
        let id = decode_response_header(&mut decoder, ApiKey::Fetch, FETCH_VERSION).unwrap();
        assert_eq!(id, sent, "the answer to this request");
        let response = FetchResponse::decode_from(&mut decoder, FETCH_VERSION).unwrap();
        decoder.finish().unwrap();
        assert_eq!(response.error_code, ErrorCode::None);
        let topic = response.topics.iter().next().expect("the topic");
        let answer = topic.partitions.iter().next().expect("the partition");
        assert_eq!(answer.index, partition);
        Fetched {
            error: answer.error_code,
            high_watermark: answer.high_watermark,
            log_start: answer.log_start_offset,
            records: answer.records.map_or_else(Vec::new, |range| frame[range].to_vec()),
        }
    }

    /// Fetches whatever there is.
    pub fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> Fetched {
        let terms = FetchTerms { max_bytes: 4 << 20, ..FetchTerms::default() };
        self.fetch_with(topic, partition, offset, &terms)
    }

    /// Fetches a partition from its beginning to its high watermark.
    pub fn fetch_all(&mut self, topic: &str, partition: i32) -> Vec<u8> {
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let fetched = self.fetch(topic, partition, offset);
            assert_eq!(fetched.error, ErrorCode::None, "fetching {topic}-{partition} from {offset}");
            if offset >= fetched.high_watermark {
                assert!(fetched.records.is_empty(), "nothing is shown beyond the high watermark");
                return all;
            }
            let batches = batches_in(&fetched.records);
            assert!(!batches.is_empty(), "{topic}-{partition}: nothing from {offset} on: {fetched:?}");
            offset = batches.last().unwrap().0.next_offset().0;
            all.extend_from_slice(&fetched.records);
        }
    }

    /// Asks for a topic, which creates it where it is not there: the leader epochs of its partitions.
    pub fn epochs(&mut self, topic: &str) -> Vec<i32> {
        let header = self.header(ApiKey::Metadata, METADATA_VERSION);
        let request = MetadataRequest {
            topics: Some(vec![MetadataRequestTopic { name: Some(topic), ..Default::default() }]),
            ..Default::default()
        };
        let mut bytes = Vec::new();
        encode_request(&mut Encoder::growing(&mut bytes), &header, &request).unwrap();
        self.send(&bytes);
        let frame = self.receive();
        let mut decoder = Decoder::new(&frame);
        let id = decode_response_header(&mut decoder, ApiKey::Metadata, METADATA_VERSION).unwrap();
        assert_eq!(id, header.correlation_id, "the answer to this request");
        let response = MetadataResponse::decode_from(&mut decoder, METADATA_VERSION).unwrap();
        let [topic] = &response.topics[..] else { panic!("one topic: {response:?}") };
        assert_eq!(topic.error_code, ErrorCode::None);
        let mut partitions = topic.partitions.iter().collect::<Vec<_>>();
        partitions.sort_by_key(|p| p.partition_index);
        partitions.iter().map(|p| p.leader_epoch).collect()
    }
}

/// A whole Produce frame, length prefix included.
pub fn produce_frame(
    header: &RequestHeader<'_>,
    acks: i16,
    topic: &str,
    batches: &[(i32, &[u8])],
) -> Vec<u8> {
    let mut frame = GappedFrame::default();
    let terms = ProduceTerms { transactional_id: None, acks, timeout_ms: 10_000 };
    let mut writer = ProduceRequestWriter::begin(&mut frame, header, &terms, 1).unwrap();
    writer.topic(topic, &NO_ID, batches.len());
    for (index, batch) in batches {
        writer.partition(*index, batch.len() as u64);
    }
    writer.finish().unwrap();
    let (mut bytes, mut written) = (Vec::with_capacity(frame.total_bytes() as usize), 0);
    for (gap, (_, batch)) in frame.gaps.iter().zip(batches) {
        bytes.extend_from_slice(&frame.bytes[written..gap.position]);
        bytes.extend_from_slice(batch);
        written = gap.position;
    }
    bytes.extend_from_slice(&frame.bytes[written..]);
    bytes
}

/// A batch of those values.
pub fn batch(values: &[&[u8]]) -> Vec<u8> {
    let now = Timestamp(1_700_000_000_000);
    let mut builder = BatchBuilder::new(now);
    for value in values {
        builder.push(now, Some(b"key"), Some(value), &[]);
    }
    builder.finish().to_vec()
}

/// The whole batches of a fetched blob, each checked, and each beginning where the one before ended.
pub fn batches_in(blob: &[u8]) -> Vec<(BatchHeader, &[u8])> {
    let (mut batches, mut rest) = (Vec::<(BatchHeader, &[u8])>::new(), blob);
    while rest.len() >= BATCH_HEADER_BYTES {
        let bytes = BatchHeader::parse(rest).unwrap().bytes as usize;
        if bytes > rest.len() {
            break;
        }
        let (batch, after) = rest.split_at(bytes);
        let header = check_stored(batch).unwrap();
        if let Some((before, _)) = batches.last() {
            assert_eq!(header.base_offset, before.next_offset(), "no gap and no offset twice");
        }
        batches.push((header, batch));
        rest = after;
    }
    batches
}

/// The part of a batch that a log never changes: what follows base offset, length and epoch.
pub fn content(batch: &[u8]) -> &[u8] {
    &batch[16..]
}
