//! Consumers: one connection for each partition and reader, that asks, verifies every record, and asks again.
//!
//! A consumer at the tail waits in the broker for the next bytes (a long poll); one that catches up is never kept
//! waiting. Both are the same loop, from an offset until somebody raises the stop signal.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ringlog::sys::Ring;
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms};
use ringlog_broker::wire::{ApiKey, Encoder, ErrorCode, RequestHeader, Uuid, decode_response};

use crate::client::{CLIENT_ID, Connection};
use crate::payload::Payload;
use crate::recorder::Latencies;
use crate::verify::{Account, Findings, Sent};
use crate::waiting::{Signal, unless};

/// The last version in which topics go by name.
pub(crate) const VERSION: i16 = 12;
/// How long the broker may wait for bytes.
const WAIT_MS: i32 = 500;
/// Bytes asked for at once: with the rest of the answer they fill a lease of 1 MiB.
const FETCH_BYTES: usize = (1 << 20) - ANSWER_HEAD_BYTES;
/// Room for what an answer has beside records.
const ANSWER_HEAD_BYTES: usize = 4 << 10;
const REQUEST_BYTES_MAX: usize = 4 << 10;
/// Errors in a row after which a consumer gives up.
const ERRORS_MAX: u32 = 100;

/// What all consumers of a cell share.
pub struct ConsumerTerms {
    /// Where the broker is.
    pub address: SocketAddr,
    /// The topic.
    pub topic: String,
    /// Largest batch: the broker sends at least one.
    pub batch_bytes: usize,
    /// The values.
    pub payload: Rc<Payload>,
    /// What is counted: what arrives within, on the load's clock.
    pub measured: std::ops::Range<u64>,
    /// Whether latencies from the intended time are of interest.
    pub end_to_end: bool,
    /// Bytes received so far, by all consumers.
    pub received: Cell<u64>,
    /// Consumers end when it is raised.
    pub stop: Signal,
}

/// One reader of one partition, and what it found.
pub struct Consumer {
    partition: u32,
    /// What was received.
    pub account: RefCell<Account>,
    /// What was measured.
    pub consumed: RefCell<Consumed>,
}

/// What one consumer did.
#[derive(Default)]
pub struct Consumed {
    /// Bytes of batches received while measured.
    pub bytes: u64,
    /// Their records.
    pub records: u64,
    /// From intended time to arrival, one value a batch.
    pub end_to_end: Latencies,
    /// Answers with an error, by its name.
    pub errors: BTreeMap<String, u64>,
}

impl Consumer {
    /// A reader from offset 0.
    #[must_use]
    pub fn new(partition: u32, run: u32, producers: u32) -> Consumer {
        let account = Account::new(partition, run, producers, 0);
        Consumer { partition, account: RefCell::new(account), consumed: RefCell::default() }
    }

    /// What it reads.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Closes its account against what each producer sent to this partition and got acknowledged.
    #[must_use]
    pub fn close_account(&self, sent: &[Sent]) -> Findings {
        let empty = Account::new(self.partition, 0, 0, 0);
        self.account.replace(empty).reconcile(sent)
    }

    /// The offset it asks for next.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        self.account.borrow().next_offset()
    }

    /// Reads until the stop signal is raised.
    ///
    /// # Errors
    /// When the connection breaks, an answer is not one, or the broker answers with errors only.
    pub async fn consume(self: Rc<Self>, ring: Ring, terms: Rc<ConsumerTerms>) -> Result<()> {
        let reading = self.read(&ring, &terms);
        unless(&terms.stop, reading).await.unwrap_or(Ok(()))
    }

    async fn read(&self, ring: &Ring, terms: &ConsumerTerms) -> Result<()> {
        let connection = Connection::open(ring, terms.address).await?;
        let fetch_bytes = FETCH_BYTES.max(terms.batch_bytes);
        let mut incoming = connection.incoming(fetch_bytes + ANSWER_HEAD_BYTES).await?;
        let mut memory = ring.lease(REQUEST_BYTES_MAX).await.context("memory for a request")?;
        let mut errors = 0;
        for correlation_id in (0..=i32::MAX).cycle() {
            let bytes = self.encode(&mut memory, correlation_id, terms, fetch_bytes)?;
            let whole = memory.freeze();
            connection.send(whole.slice(0..bytes)).await?;
            let frame = connection.receive(&mut incoming).await?;
            let error = self.take_answer(frame, correlation_id, ring.now().0, terms)?;
            errors = if error == ErrorCode::None { 0 } else { errors + 1 };
            ensure!(errors < ERRORS_MAX, "partition {}: {} to every fetch", self.partition, error.name());
            memory =
                whole.try_into_mut().ok().context("the memory of an answered request is still being sent")?;
        }
        Ok(())
    }

    fn encode(
        &self,
        memory: &mut [u8],
        correlation_id: i32,
        terms: &ConsumerTerms,
        bytes: usize,
    ) -> Result<usize> {
        let header = RequestHeader {
            api: ApiKey::Fetch,
            version: VERSION,
            correlation_id,
            client_id: Some(CLIENT_ID),
        };
        let bytes_max = i32::try_from(bytes)?;
        let fetch =
            FetchTerms { max_wait_ms: WAIT_MS, min_bytes: 1, max_bytes: bytes_max, ..FetchTerms::default() };
        let mut writer = FetchRequestWriter::begin(Encoder::fixed(memory), &header, &fetch, 1)?;
        writer.topic(&terms.topic, &Uuid::default(), 1);
        writer.partition(&FetchPartition {
            index: self.partition as i32,
            fetch_offset: self.next_offset(),
            partition_max_bytes: bytes_max,
            ..FetchPartition::default()
        });
        Ok(writer.finish(&[])? as usize)
    }

    fn take_answer(
        &self,
        frame: &[u8],
        correlation_id: i32,
        now_ns: u64,
        terms: &ConsumerTerms,
    ) -> Result<ErrorCode> {
        let (answered, answer): (_, FetchResponse<'_>) =
            decode_response(frame, VERSION).context("the answer to Fetch")?;
        ensure!(answered == correlation_id, "answer {answered} to request {correlation_id}");
        let mut consumed = self.consumed.borrow_mut();
        let consumed = &mut *consumed;
        let mut note = |error: ErrorCode| {
            *consumed.errors.entry(error.name().to_owned()).or_default() += 1;
            Ok(error)
        };
        if answer.error_code != ErrorCode::None {
            return note(answer.error_code);
        }
        let partition = answer.topics.iter().flat_map(|topic| topic.partitions.iter()).next();
        let partition = partition.context("an answer to Fetch without a partition")?;
        ensure!(partition.index == self.partition as i32, "an answer for partition {}", partition.index);
        if partition.error_code != ErrorCode::None {
            return note(partition.error_code);
        }
        let Some(records) = partition.records.and_then(|range| frame.get(range)) else {
            return Ok(ErrorCode::None);
        };
        let measured = &terms.measured;
        let mut last_intended_ns = 0;
        let latencies = &mut consumed.end_to_end;
        let number = self.account.borrow_mut().take(&terms.payload, records, |head, _| {
            // All records of a batch share their intended time.
            if head.intended_ns != last_intended_ns {
                last_intended_ns = head.intended_ns;
                if terms.end_to_end && measured.contains(&head.intended_ns) {
                    latencies.record(now_ns.saturating_sub(head.intended_ns));
                }
            }
        });
        terms.received.set(terms.received.get() + records.len() as u64);
        if measured.contains(&now_ns) {
            consumed.bytes += records.len() as u64;
            consumed.records += number;
        }
        Ok(ErrorCode::None)
    }
}
