//! A producer: one connection with a window of requests in flight, answers matched by correlation id.
//!
//! At saturation the window is kept full. With a rate, requests leave when the schedule wants them, or late when the
//! window is full, and are measured from the intended time in any case. One request is one batch, encoded where
//! it is sent from.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use ringlog::sys::{Lease, Moment, Ring, Socket};
use ringlog_broker::wire::produce::{ProduceResponse, ProduceTerms, encode_produce_prefix};
use ringlog_broker::wire::{ApiKey, ErrorCode, GappedFrame};

use crate::arrivals::Arrivals;
use crate::batch::BatchWriter;
use crate::client::{Connection, PRODUCE_VERSION, header, read};
use crate::keys::Keys;
use crate::load::{Load, add};
use crate::payload::Head;

/// How often a producer that has nothing to do looks again.
const IDLE: Duration = Duration::from_micros(200);

struct InFlight {
    correlation_id: i32,
    partition: u32,
    first_sequence: u64,
    records: u64,
    batch_bytes: u64,
    intended: Moment,
    sent: Moment,
}

struct Window {
    in_flight: RefCell<VecDeque<InFlight>>,
    /// No more will be sent.
    closed: Cell<bool>,
}

/// Runs producer `number` until the load stops it and its last answer has come.
pub async fn run(load: Rc<Load>, number: u32) {
    if let Err(error) = produce(&load, number).await {
        load.fail(&format!("producer {number}"), &error);
    }
    load.producers_running.set(load.producers_running.get() - 1);
}

async fn produce(load: &Rc<Load>, number: u32) -> Result<()> {
    let connection = Connection::open(&load.ring, load.address, 64 << 10).await?;
    let (ring, socket) = (load.ring.clone(), connection.socket.clone());
    let window = Rc::new(Window {
        in_flight: RefCell::new(VecDeque::with_capacity(load.spec.window as usize)),
        closed: Cell::new(false),
    });
    let done = Rc::new(Cell::new(false));
    let failed = Rc::new(RefCell::new(None));
    {
        let (load, window, done, failed) = (load.clone(), window.clone(), done.clone(), failed.clone());
        ring.clone().spawn(async move {
            if let Err(error) = take_answers(&load, connection, &window, number).await {
                *failed.borrow_mut() = Some(error);
            }
            done.set(true);
        });
    }
    let mut sender = Sender::new(load, number)?;
    let sent = sender.run(&ring, &socket, &window, &done).await;
    window.closed.set(true);
    // The answers to what is in flight; a server that owes them for long has failed.
    let patience = ring.now().plus(Duration::from_secs(20));
    while !window.in_flight.borrow().is_empty() && !done.get() && ring.now() < patience {
        ring.sleep(IDLE).await;
    }
    let owed = window.in_flight.borrow().len();
    socket.shutdown();
    while !done.get() {
        ring.sleep(IDLE).await;
    }
    sent?;
    if owed > 0 {
        let why = failed.borrow_mut().take().unwrap_or_else(|| anyhow!("the server is silent"));
        return Err(why.context(format!("{owed} requests were not answered")));
    }
    Ok(())
}

struct Sender<'a> {
    load: &'a Load,
    number: u32,
    keys: Keys,
    arrivals: Option<Arrivals>,
    sequences: Vec<u64>,
    prefix: GappedFrame,
    prefix_bytes: usize,
    correlation_id: i32,
}

impl<'a> Sender<'a> {
    fn new(load: &'a Load, number: u32) -> Result<Sender<'a>> {
        let mut sender = Sender {
            load,
            number,
            keys: Keys::new(load.spec.keys, load.spec.partitions, load.seed, number),
            arrivals: load.schedule.map(|schedule| schedule.arrivals(number)),
            sequences: vec![0; load.spec.partitions as usize],
            prefix: GappedFrame::default(),
            prefix_bytes: 0,
            correlation_id: 0,
        };
        sender.encode_prefix(0, 1)?;
        sender.prefix_bytes = sender.prefix.bytes.len();
        Ok(sender)
    }

    async fn run(&mut self, ring: &Ring, socket: &Socket, window: &Window, ended: &Cell<bool>) -> Result<()> {
        while !self.load.stop_producing.get() && !ended.get() {
            let intended = match self.arrivals.as_ref().map(Arrivals::peek) {
                Some(intended) if Moment(intended) > ring.now() => {
                    let soon = ring.now().plus(Duration::from_millis(20));
                    ring.sleep_until(Moment(intended).min(soon)).await;
                    continue;
                }
                intended => intended,
            };
            if window.in_flight.borrow().len() >= self.load.spec.window as usize {
                std::future::poll_fn(|cx| {
                    WAITERS.with(|waiters| waiters.borrow_mut().push(cx.waker().clone()));
                    std::task::Poll::Ready(())
                })
                .await;
                yield_once().await;
                continue;
            }
            if let Some(left) = self.load.fill_bytes_left.get() {
                if left <= 0 {
                    break;
                }
                self.load.fill_bytes_left.set(Some(left - self.load.cell.batch_bytes as i64));
            }
            if let Some(arrivals) = &mut self.arrivals {
                arrivals.next();
            }
            self.send(ring, socket, window, intended).await?;
        }
        if let Some(arrivals) = &self.arrivals {
            self.load.lateness.borrow_mut().never_sent += arrivals.due(ring.now().0);
        }
        Ok(())
    }

    async fn send(
        &mut self,
        ring: &Ring,
        socket: &Socket,
        window: &Window,
        intended: Option<u64>,
    ) -> Result<()> {
        let load = self.load;
        let mut lease = ring.lease(self.prefix_bytes + load.cell.batch_bytes).await?;
        let now = ring.now();
        let intended = intended.unwrap_or(now.0);
        let partition = self.keys.partition();
        let first_sequence = self.sequences[partition as usize];
        let timestamp = ring.wall_clock().0;
        let (records, batch_bytes) = {
            let buffer = &mut lease[self.prefix_bytes..self.prefix_bytes + load.cell.batch_bytes];
            let mut batch = BatchWriter::begin(buffer, timestamp);
            let mut head = Head {
                producer: self.number,
                partition,
                sequence: first_sequence,
                intended_ns: intended,
                run: load.cell.index,
            };
            loop {
                let key = self.keys.key(partition);
                if load.payload.push(&mut batch, &head, key.as_ref().map(|k| &k[..])).is_none() {
                    break;
                }
                head.sequence += 1;
            }
            (batch.records() as u64, batch.finish())
        };
        self.sequences[partition as usize] += records;
        load.sent.borrow_mut()[partition as usize][self.number as usize].end = first_sequence + records;
        self.correlation_id = self.correlation_id.wrapping_add(1);
        self.encode_prefix(partition as i32, batch_bytes as u64)?;
        lease[..self.prefix_bytes].copy_from_slice(&self.prefix.bytes);
        let frame: Lease = lease.freeze();
        let sent = ring.now();
        window.in_flight.borrow_mut().push_back(InFlight {
            correlation_id: self.correlation_id,
            partition,
            first_sequence,
            records,
            batch_bytes: batch_bytes as u64,
            intended: Moment(intended),
            sent,
        });
        let (result, _) = ring.send(socket, frame.slice(0..self.prefix_bytes + batch_bytes), false).await;
        result?;
        Ok(())
    }

    fn encode_prefix(&mut self, partition: i32, record_bytes: u64) -> Result<()> {
        self.prefix.clear();
        let header = header(ApiKey::Produce, PRODUCE_VERSION, self.correlation_id);
        let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 30_000 };
        let topic = (self.load.topic.as_str(), &[0; 16]);
        encode_produce_prefix(&mut self.prefix, &header, &terms, topic, &[(partition, record_bytes)])?;
        Ok(())
    }
}

thread_local! {
    /// Producers whose window is full; woken by every answer.
    static WAITERS: RefCell<Vec<std::task::Waker>> = const { RefCell::new(Vec::new()) };
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|_| {
        if std::mem::replace(&mut yielded, true) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

async fn take_answers(load: &Load, mut connection: Connection, window: &Window, number: u32) -> Result<()> {
    loop {
        if window.closed.get() && window.in_flight.borrow().is_empty() {
            return Ok(());
        }
        let frame = connection.next_frame().await?;
        let now = load.ring.now();
        let (id, response) = read::<ProduceResponse<'_>>(&frame, ApiKey::Produce, PRODUCE_VERSION)?;
        let place = window.in_flight.borrow().iter().position(|r| r.correlation_id == id);
        let place = place.ok_or_else(|| anyhow!("an answer to request {id}, which was not asked"))?;
        let request = window.in_flight.borrow_mut().remove(place).expect("found above");
        WAITERS.with(|waiters| waiters.borrow_mut().drain(..).for_each(std::task::Waker::wake));
        let outcome = response.topics.iter().next().and_then(|t| t.partitions.iter().next());
        let outcome = outcome.ok_or_else(|| anyhow!("an answer without a partition"))?;
        if outcome.error_code != ErrorCode::None {
            load.note_error(outcome.error_code.name().to_owned());
            continue;
        }
        let partition = request.partition as usize;
        let range = request.first_sequence..request.first_sequence + request.records;
        load.sent.borrow_mut()[partition][number as usize].acked.extend(range);
        let end = outcome.base_offset + request.records as i64;
        let ends = &mut load.acked_ends.borrow_mut()[partition];
        *ends = (*ends).max(end);
        add(&load.counts.total_produced_bytes, request.batch_bytes);
        if load.measuring.get() {
            add(&load.counts.produced_bytes, request.batch_bytes);
            add(&load.counts.produced_records, request.records);
            load.produce.borrow_mut().record(request.intended.0, request.sent.0, now.0);
            load.lateness.borrow_mut().count(request.intended.0, request.sent.0);
        }
    }
}
