//! A client of the broker that blocks: for loads that may be cut off at any moment.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringlog_broker::wire::create_topics::{CreatableTopic, CreateTopicsRequest, CreateTopicsResponse};
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms};
use ringlog_broker::wire::produce::{ProduceResponse, ProduceTerms, encode_produce_prefix};
use ringlog_broker::wire::{
    ApiKey, Encoder, ErrorCode, GappedFrame, RequestHeader, Uuid, decode_response, encode_request,
};

const CLIENT_ID: &str = "ringlog-powercut";
/// The last versions in which topics go by name.
const PRODUCE_VERSION: i16 = 12;
const FETCH_VERSION: i16 = 12;
const CREATE_TOPICS_VERSION: i16 = 7;
const FETCH_BYTES: i32 = 1 << 20;
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// One connection.
pub struct Client {
    stream: TcpStream,
    topic: String,
    answer: Vec<u8>,
    correlation_id: i32,
}

/// One answer to a fetch.
pub struct Fetched<'a> {
    /// Its error.
    pub error: ErrorCode,
    /// What may be read ends there.
    pub high_watermark: i64,
    /// Batches.
    pub records: &'a [u8],
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open(address: SocketAddr, topic: &str, patience: Duration) -> Result<Client> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Client { stream, topic: topic.to_owned(), answer: Vec::new(), correlation_id: 0 })
    }

    /// The socket, for whoever shall end all this.
    ///
    /// # Errors
    /// What the system said.
    pub fn socket(&self) -> Result<TcpStream> {
        Ok(self.stream.try_clone()?)
    }

    /// Creates the topic.
    ///
    /// # Errors
    /// What the broker said.
    pub fn create_topic(&mut self, partitions: u32) -> Result<()> {
        let topic = CreatableTopic {
            name: &self.topic,
            num_partitions: partitions.try_into()?,
            replication_factor: 1,
            ..CreatableTopic::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 30_000, validate_only: false };
        let mut frame = Vec::new();
        let header = self.header(ApiKey::CreateTopics, CREATE_TOPICS_VERSION);
        encode_request(&mut Encoder::growing(&mut frame), &header, &request)?;
        self.stream.write_all(&frame)?;
        self.receive()?;
        let (_, answer): (_, CreateTopicsResponse<'_>) =
            decode_response(&self.answer, CREATE_TOPICS_VERSION)?;
        for topic in &answer.topics {
            ensure!(topic.error_code.is_ok(), "creating {}: {}", self.topic, topic.error_code.name());
        }
        Ok(())
    }

    /// Sends a batch.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn send_batch(&mut self, partition: u32, batch: &[u8]) -> Result<()> {
        self.correlation_id += 1;
        let mut frame = GappedFrame::with_capacity(256, 1);
        let header = self.header(ApiKey::Produce, PRODUCE_VERSION);
        let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 30_000 };
        let partitions = [(partition as i32, batch.len() as u64)];
        encode_produce_prefix(&mut frame, &header, &terms, (&self.topic, &Uuid::default()), &partitions)?;
        let (prefix, tail) = frame.bytes.split_at(frame.gaps[0].position);
        Ok(self.stream.write_all(&[prefix, batch, tail].concat())?)
    }

    /// The next answer to a batch: the base offset, or an error of the broker.
    ///
    /// # Errors
    /// When the connection broke: the batch may be stored or not.
    pub fn receive_offset(&mut self) -> Result<Result<i64, ErrorCode>> {
        self.receive()?;
        let (_, answer): (_, ProduceResponse<'_>) = decode_response(&self.answer, PRODUCE_VERSION)?;
        let outcome = answer.topics.iter().flat_map(|topic| topic.partitions.iter()).next();
        let outcome = outcome.context("an answer to Produce without a partition")?;
        Ok(match outcome.error_code {
            ErrorCode::None => Ok(outcome.base_offset),
            error => Err(error),
        })
    }

    /// Reads from an offset on.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn fetch(&mut self, partition: u32, offset: i64) -> Result<Fetched<'_>> {
        self.correlation_id += 1;
        let terms =
            FetchTerms { max_wait_ms: 0, min_bytes: 1, max_bytes: FETCH_BYTES, ..FetchTerms::default() };
        let mut frame = Vec::new();
        let header = self.header(ApiKey::Fetch, FETCH_VERSION);
        let mut writer = FetchRequestWriter::begin(Encoder::growing(&mut frame), &header, &terms, 1)?;
        writer.topic(&self.topic, &Uuid::default(), 1);
        writer.partition(&FetchPartition {
            index: partition as i32,
            fetch_offset: offset,
            partition_max_bytes: FETCH_BYTES,
            ..FetchPartition::default()
        });
        writer.finish(&[])?;
        self.stream.write_all(&frame)?;
        self.receive()?;
        let (_, answer): (_, FetchResponse<'_>) = decode_response(&self.answer, FETCH_VERSION)?;
        if answer.error_code != ErrorCode::None {
            return Ok(Fetched { error: answer.error_code, high_watermark: -1, records: &[] });
        }
        let found = answer.topics.iter().flat_map(|topic| topic.partitions.iter()).next();
        let found = found.context("an answer to Fetch without a partition")?;
        let records = found.records.and_then(|range| self.answer.get(range)).unwrap_or_default();
        Ok(Fetched { error: found.error_code, high_watermark: found.high_watermark, records })
    }

    fn header(&self, api: ApiKey, version: i16) -> RequestHeader<'static> {
        RequestHeader { api, version, correlation_id: self.correlation_id, client_id: Some(CLIENT_ID) }
    }

    /// The next frame, without its length.
    fn receive(&mut self) -> Result<()> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let length =
            usize::try_from(i32::from_be_bytes(prefix)).ok().filter(|length| *length <= ANSWER_BYTES_MAX);
        self.answer.resize(length.with_context(|| format!("an answer of {prefix:?} bytes"))?, 0);
        Ok(self.stream.read_exact(&mut self.answer)?)
    }
}
