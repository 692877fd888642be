//! Producers: connections that keep a window of requests in flight, as fast as answers allow or on a schedule.
//!
//! Each request carries one batch to one partition. It is built in the lease of its slot and leaves in one send; the
//! slot is free again when its answer came. Two tasks a connection, one sends and one receives: an answer is never
//! late because a batch is being built for somebody else.
//!
//! ```text
//! lease of a slot:  | .. | prefix, header, topic | batch          | tagged fields | .. |
//!                        BATCH_AT - prefix       BATCH_AT
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ringlog::sys::{Lease, Moment, Ring};
use ringlog_broker::wire::produce::{ProduceResponse, ProduceTerms, encode_produce_prefix};
use ringlog_broker::wire::{ApiKey, ErrorCode, GappedFrame, RequestHeader, Uuid, decode_response};

use crate::arrivals::{Arrivals, Lateness};
use crate::batch::BatchWriter;
use crate::client::{CLIENT_ID, Connection};
use crate::keys::Keys;
use crate::payload::{Head, Payload};
use crate::recorder::Recorder;
use crate::verify::Sent;
use crate::waiting::{Signal, start};

/// The last version in which topics go by name.
pub(crate) const VERSION: i16 = 12;
/// Where batches begin in a slot's lease: room for everything that comes before one.
const BATCH_AT: usize = 1024;
/// Room behind the batch for tagged fields.
const TAIL_BYTES: usize = 64;
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What all producers of a cell share.
pub struct ProducerTerms {
    /// Where the broker is.
    pub address: SocketAddr,
    /// The topic.
    pub topic: String,
    /// The cell's number, carried by every record.
    pub run: u32,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Requests in flight on a connection.
    pub window: u32,
    /// Largest batch.
    pub batch_bytes: usize,
    /// What is counted: requests that were meant to leave within, on the load's clock.
    pub measured: std::ops::Range<u64>,
    /// When producers end, on the same clock.
    pub until_ns: Cell<u64>,
    /// Bytes still to be sent, for loads that end by bytes; all producers take from it.
    pub budget: Option<Cell<u64>>,
    /// The values.
    pub payload: Rc<Payload>,
    /// Bytes acknowledged so far, by all producers.
    pub acknowledged: Cell<u64>,
}

/// What one producer did.
#[derive(Default)]
pub struct Produced {
    /// By partition, for the verifier's account.
    pub sent: Vec<Sent>,
    /// One above the highest offset acknowledged, by partition.
    pub end_offsets: Vec<i64>,
    /// Latencies of measured requests.
    pub latencies: Recorder,
    /// Of measured requests, where there was a schedule.
    pub lateness: Lateness,
    /// Bytes of batches acknowledged while measured.
    pub bytes: u64,
    /// Their records.
    pub records: u64,
    /// Answers with an error, by its name.
    pub errors: BTreeMap<String, u64>,
}

struct Producer {
    ring: Ring,
    terms: Rc<ProducerTerms>,
    connection: Connection,
    slots: RefCell<Vec<Slot>>,
    /// Requests sent, and answers received: their difference is what is in flight.
    requests: Cell<u64>,
    answers: Cell<u64>,
    /// An answer came, or receiving failed: the sender looks again.
    answered: Signal,
    /// A request left, or the last one has: the receiver looks again.
    sent: Signal,
    done_sending: Cell<bool>,
    produced: RefCell<Produced>,
}

/// One request of the window; the correlation id modulo the window says which.
struct Slot {
    /// The memory, whole. Absent only while a batch is built in it.
    memory: Option<Lease>,
    correlation_id: i32,
    partition: u32,
    first_sequence: u64,
    records: u32,
    batch_bytes: usize,
    intended_ns: u64,
    sent_ns: u64,
}

/// Runs one producer to its end: all requests sent and answered.
///
/// # Errors
/// When the connection breaks or an answer is not one.
pub async fn produce(
    ring: Ring,
    terms: Rc<ProducerTerms>,
    index: u32,
    keys: Keys,
    arrivals: Option<Arrivals>,
) -> Result<Produced> {
    let connection = Connection::open(&ring, terms.address).await?;
    let mut slots = Vec::with_capacity(terms.window as usize);
    for _ in 0..terms.window {
        let memory =
            ring.lease(BATCH_AT + terms.batch_bytes + TAIL_BYTES).await.context("memory for batches")?;
        slots.push(Slot { memory: Some(memory.freeze()), ..Slot::empty() });
    }
    let partitions = terms.partitions as usize;
    let produced = Produced {
        sent: vec![Sent::default(); partitions],
        end_offsets: vec![0; partitions],
        ..Produced::default()
    };
    let producer = Rc::new(Producer {
        ring: ring.clone(),
        terms,
        connection,
        slots: RefCell::new(slots),
        requests: Cell::new(0),
        answers: Cell::new(0),
        answered: Signal::default(),
        sent: Signal::default(),
        done_sending: Cell::new(false),
        produced: RefCell::new(produced),
    });
    let theirs = producer.clone();
    let receiving = start(&ring, async move {
        let received = theirs.receive_answers().await;
        theirs.done_sending.set(theirs.done_sending.get() || received.is_err());
        theirs.answered.raise();
        received
    });
    let sent = producer.send_requests(index, keys, arrivals).await;
    producer.done_sending.set(true);
    producer.sent.raise();
    sent?;
    receiving.result().await?;
    let produced = producer.produced.take();
    Ok(produced)
}

impl Slot {
    fn empty() -> Slot {
        Slot {
            memory: None,
            correlation_id: -1,
            partition: 0,
            first_sequence: 0,
            records: 0,
            batch_bytes: 0,
            intended_ns: 0,
            sent_ns: 0,
        }
    }
}

impl Producer {
    async fn send_requests(&self, index: u32, mut keys: Keys, mut arrivals: Option<Arrivals>) -> Result<()> {
        let mut frame = GappedFrame::with_capacity(BATCH_AT, 1);
        let end_ns = || self.terms.until_ns.get();
        loop {
            let scheduled_ns = arrivals.as_ref().map(Arrivals::peek);
            if let Some(intended_ns) = scheduled_ns.filter(|&at| at < end_ns() && at > self.ring.now().0) {
                self.ring.sleep_until(Moment(intended_ns)).await;
            }
            self.free_slot().await;
            let now = self.ring.now().0;
            if self.done_sending.get() || now >= end_ns() || scheduled_ns.is_some_and(|at| at >= end_ns()) {
                break;
            }
            if let Some(arrivals) = &mut arrivals {
                arrivals.next();
            }
            if !self.take_budget() {
                break;
            }
            let request = self.build(&mut frame, index, &mut keys, scheduled_ns.unwrap_or(now))?;
            self.connection.send(request).await?;
        }
        if let Some(arrivals) = arrivals {
            self.produced.borrow_mut().lateness.never_sent += arrivals.due(end_ns().saturating_sub(1));
        }
        Ok(())
    }

    async fn free_slot(&self) {
        while self.requests.get() - self.answers.get() >= u64::from(self.terms.window)
            && !self.done_sending.get()
        {
            self.answered.take().await;
        }
    }

    fn take_budget(&self) -> bool {
        let Some(budget) = &self.terms.budget else { return true };
        let left = budget.get();
        budget.set(left.saturating_sub(self.terms.batch_bytes as u64));
        left > 0
    }

    /// Builds the next request in its slot's lease and says what of it to send.
    fn build(&self, frame: &mut GappedFrame, index: u32, keys: &mut Keys, intended_ns: u64) -> Result<Lease> {
        let terms = &*self.terms;
        let number = self.requests.get();
        let slot = &mut self.slots.borrow_mut()[(number % u64::from(terms.window)) as usize];
        let memory = slot.memory.take().context("a slot without memory")?;
        let mut memory = memory
            .try_into_mut()
            .map_err(|_| anyhow::anyhow!("the memory of an answered request is still being sent"))?;

        let partition = keys.partition();
        let mut produced = self.produced.borrow_mut();
        let sent = &mut produced.sent[partition as usize];
        let first_sequence = sent.end;
        let timestamp_ms = self.ring.wall_clock().0;
        let mut batch = BatchWriter::begin(&mut memory[BATCH_AT..BATCH_AT + terms.batch_bytes], timestamp_ms);
        loop {
            let head = Head { producer: index, partition, sequence: sent.end, intended_ns, run: terms.run };
            let key = keys.key(partition);
            if terms.payload.push(&mut batch, &head, key.as_ref().map(|key| &key[..])).is_none() {
                break;
            }
            sent.end += 1;
        }
        let batch_bytes = batch.finish();

        frame.clear();
        let correlation_id = (number & 0x7fff_ffff) as i32;
        let header = RequestHeader {
            api: ApiKey::Produce,
            version: VERSION,
            correlation_id,
            client_id: Some(CLIENT_ID),
        };
        let produce = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 30_000 };
        let partitions = [(partition as i32, batch_bytes as u64)];
        encode_produce_prefix(frame, &header, &produce, (&terms.topic, &Uuid::default()), &partitions)?;
        let (prefix, tail) = frame.bytes.split_at(frame.gaps[0].position);
        ensure!(prefix.len() <= BATCH_AT && tail.len() <= TAIL_BYTES, "the topic's name is too long");
        let (from, batch_end) = (BATCH_AT - prefix.len(), BATCH_AT + batch_bytes);
        memory[from..BATCH_AT].copy_from_slice(prefix);
        memory[batch_end..batch_end + tail.len()].copy_from_slice(tail);

        let memory = memory.freeze();
        let request = memory.slice(from..batch_end + tail.len());
        let sent_ns = self.ring.now().0;
        let records = u32::try_from(sent.end - first_sequence)?;
        *slot = Slot {
            memory: Some(memory),
            correlation_id,
            partition,
            first_sequence,
            records,
            batch_bytes,
            intended_ns,
            sent_ns,
        };
        if terms.measured.contains(&intended_ns) {
            produced.lateness.count(intended_ns, sent_ns);
        }
        self.requests.set(number + 1);
        self.sent.raise();
        Ok(request)
    }

    async fn receive_answers(&self) -> Result<()> {
        let mut incoming = self.connection.incoming(ANSWER_BYTES_MAX).await?;
        loop {
            // With nothing in flight the sender may end: then no answer will come any more.
            while self.answers.get() == self.requests.get() {
                if self.done_sending.get() {
                    return Ok(());
                }
                self.sent.take().await;
            }
            let frame = self.connection.receive(&mut incoming).await?;
            let now_ns = self.ring.now().0;
            self.take_answer(frame, now_ns)?;
            self.answers.set(self.answers.get() + 1);
            self.answered.raise();
        }
    }

    fn take_answer(&self, frame: &[u8], now_ns: u64) -> Result<()> {
        let (correlation_id, answer): (_, ProduceResponse<'_>) =
            decode_response(frame, VERSION).context("the answer to Produce")?;
        let terms = &*self.terms;
        let slots = self.slots.borrow();
        let slot = &slots[(self.answers.get() % u64::from(terms.window)) as usize];
        ensure!(
            slot.correlation_id == correlation_id,
            "answer {correlation_id} came before answer {}: Kafka answers in order",
            slot.correlation_id
        );
        let outcome = answer.topics.iter().flat_map(|topic| topic.partitions.iter()).next();
        let outcome = outcome.context("an answer to Produce without a partition")?;
        ensure!(outcome.index == slot.partition as i32, "an answer for partition {}", outcome.index);
        let mut produced = self.produced.borrow_mut();
        if outcome.error_code != ErrorCode::None {
            *produced.errors.entry(outcome.error_code.name().to_owned()).or_default() += 1;
            return Ok(());
        }
        let partition = slot.partition as usize;
        let last_sequence = slot.first_sequence + u64::from(slot.records);
        produced.sent[partition].acked.extend(slot.first_sequence..last_sequence);
        let end_offset = outcome.base_offset + i64::from(slot.records);
        produced.end_offsets[partition] = produced.end_offsets[partition].max(end_offset);
        terms.acknowledged.set(terms.acknowledged.get() + slot.batch_bytes as u64);
        if terms.measured.contains(&now_ns) {
            produced.bytes += slot.batch_bytes as u64;
            produced.records += u64::from(slot.records);
        }
        if terms.measured.contains(&slot.intended_ns) {
            produced.latencies.record(slot.intended_ns, slot.sent_ns, now_ns);
        }
        Ok(())
    }
}
