//! One connection: what its reader hands to its writer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use ringlog::Shard;
use ringlog::shard::{FetchError, Route};
use ringlog::sys::{Lease, Moment, Socket};

use crate::config::{BYTES_IN_FLIGHT_MAX, BrokerConfig, REQUESTS_IN_FLIGHT_MAX};
use crate::errors::Fault;
use crate::guard::{Hold, Mark};
use crate::produce::Produced;
use crate::reader;
use crate::wire::ErrorCode;

/// What all connections of a shard share.
pub(crate) struct Broker {
    pub shard: Shard,
    pub config: BrokerConfig,
    /// Where clients are told to come.
    pub advertised: (String, u16),
    /// Connections that were closed because too many were open.
    pub refused_connections: Cell<u64>,
    /// Connections open now.
    pub connections: RefCell<Vec<Rc<Connection>>>,
    /// Connections that ended by a fault of the peer's.
    pub faults: Cell<u64>,
}

/// So many faults of peers are said one by one; after that the 16th, 32nd, 64th: strangers can make them by the thousand.
const FAULTS_SAID: u64 = 8;

impl Broker {
    /// Says why a connection is closed, if its peer did something wrong.
    pub(crate) fn note_fault(&self, connection: &Connection, fault: &Fault) {
        if matches!(fault, Fault::Io(error) if reader::is_farewell(error)) {
            return;
        }
        let faults = self.faults.get() + 1;
        self.faults.set(faults);
        if faults <= FAULTS_SAID || faults.is_power_of_two() {
            tracing::warn!("connection of {} is closed: {fault} ({faults} so far)", connection.describe());
        }
    }

    /// One of the two tasks of a connection has ended; with the second it is no longer open. Before, it would not count
    /// against the limit while its reader waits for a place in a log.
    pub(crate) fn forget(&self, connection: &Rc<Connection>) {
        connection.tasks.set(connection.tasks.get() - 1);
        if connection.tasks.get() == 0 {
            self.connections.borrow_mut().retain(|known| !Rc::ptr_eq(known, connection));
        }
    }
}

pub(crate) struct Connection {
    pub socket: Socket,
    pub peer: Option<SocketAddr>,
    queue: RefCell<VecDeque<Entry>>,
    /// Bytes of the frames in the queue.
    queued_bytes: Cell<usize>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
    /// The reader has ended: what is queued is all there will be.
    input_ended: Cell<bool>,
    /// The writer has ended: nothing will be answered any more.
    output_ended: Cell<bool>,
    /// The writer works on a request that it took out of the queue.
    pub answering: Cell<bool>,
    /// The reader works on a request that is not in the queue yet.
    pub taking: Cell<bool>,
    /// When the last bytes came from the peer.
    pub heard: Cell<Moment>,
    /// The answer that is being sent, and the request that is being received, for as long as they take.
    pub sending: Cell<Option<Hold>>,
    pub receiving: Cell<Option<Hold>>,
    /// The guard's notes.
    pub paced: Cell<Option<Mark>>,
    pub stalled: Cell<Option<Mark>>,
    /// Tasks that still work on it: its reader and its writer.
    tasks: Cell<u8>,
    /// Batches of this peer that were refused.
    pub refused_batches: Cell<u64>,
    /// Fetches of this peer that the disk failed.
    failed_fetches: Cell<u64>,
    /// Produce entries to be used again.
    // Boxed as they travel through the queue: taking one must not move it, nor giving it back allocate.
    #[allow(clippy::vec_box)]
    pub pool: RefCell<Vec<Box<Produced>>>,
}

/// One request on its way to its answer.
pub(crate) enum Entry {
    /// Appended already; the answer waits for promises.
    Produced(Box<Produced>),
    /// To be executed when it comes to the head: the frame without its length prefix.
    Request(Lease),
}

impl Entry {
    /// Bytes that it keeps in memory; those of a Produce request are its partitions' business already.
    fn bytes(&self) -> usize {
        match self {
            Entry::Produced(_) => 0,
            Entry::Request(frame) => frame.len(),
        }
    }
}

impl Connection {
    pub(crate) fn new(socket: Socket, now: Moment) -> Connection {
        Connection {
            peer: socket.peer(),
            socket,
            queue: RefCell::new(VecDeque::with_capacity(REQUESTS_IN_FLIGHT_MAX)),
            queued_bytes: Cell::new(0),
            reader: RefCell::new(None),
            writer: RefCell::new(None),
            input_ended: Cell::new(false),
            output_ended: Cell::new(false),
            answering: Cell::new(false),
            taking: Cell::new(false),
            heard: Cell::new(now),
            sending: Cell::new(None),
            receiving: Cell::new(None),
            paced: Cell::new(None),
            stalled: Cell::new(None),
            tasks: Cell::new(2),
            refused_batches: Cell::new(0),
            failed_fetches: Cell::new(0),
            pool: RefCell::new(Vec::new()),
        }
    }

    /// Adds a request; waits while the queue is full. False when nobody will answer.
    pub(crate) async fn push(&self, entry: Entry) -> bool {
        poll_fn(|cx| {
            if self.output_ended.get() || self.has_room() {
                return Poll::Ready(());
            }
            keep(&self.reader, cx.waker());
            Poll::Pending
        })
        .await;
        if self.output_ended.get() {
            return false;
        }
        self.queued_bytes.set(self.queued_bytes.get() + entry.bytes());
        self.queue.borrow_mut().push_back(entry);
        wake(&self.writer);
        true
    }

    fn has_room(&self) -> bool {
        self.queue.borrow().len() < REQUESTS_IN_FLIGHT_MAX && self.queued_bytes.get() < BYTES_IN_FLIGHT_MAX
    }

    /// The next request, or `None` when the input has ended and everything is answered.
    pub(crate) async fn next(&self) -> Option<Entry> {
        poll_fn(|cx| {
            if let Some(entry) = self.try_next() {
                return Poll::Ready(Some(entry));
            }
            if self.input_ended.get() {
                return Poll::Ready(None);
            }
            keep(&self.writer, cx.waker());
            Poll::Pending
        })
        .await
    }

    pub(crate) fn try_next(&self) -> Option<Entry> {
        let entry = self.queue.borrow_mut().pop_front()?;
        self.queued_bytes.set(self.queued_bytes.get() - entry.bytes());
        wake(&self.reader);
        Some(entry)
    }

    pub(crate) fn end_input(&self) {
        self.input_ended.set(true);
        wake(&self.writer);
    }

    pub(crate) fn end_output(&self) {
        self.output_ended.set(true);
        self.queue.borrow_mut().clear();
        self.queued_bytes.set(0);
        self.socket.shutdown();
        wake(&self.reader);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.borrow().is_empty() && !self.answering.get() && !self.taking.get()
    }

    /// Whether the peer has finished: nobody may be left to wait for an answer. Else `waker`, the writer's, is woken
    /// when it does.
    pub(crate) fn has_input_ended(&self, waker: &Waker) -> bool {
        keep(&self.writer, waker);
        self.input_ended.get()
    }

    /// Says what is wrong with a batch, the 1st, 2nd, 4th, 8th time: who sends one sends many.
    pub(crate) fn note_refused_batch(&self, route: &Route, code: ErrorCode, words: Option<&str>) {
        let refused = self.refused_batches.get() + 1;
        self.refused_batches.set(refused);
        if refused.is_power_of_two() {
            let (peer, words) = (self.describe(), words.unwrap_or_default());
            tracing::warn!("{route}: a batch of {peer} is refused with {code}: {words} ({refused} so far)");
        }
    }

    /// Says what is wrong with the disk under a fetch, the 1st, 2nd, 4th, 8th time: who is told an error asks again.
    pub(crate) fn note_failed_fetch(&self, route: &Route, offset: i64, error: &FetchError) {
        if !matches!(error, FetchError::Io(_) | FetchError::Corrupt { .. }) {
            return;
        }
        let failed = self.failed_fetches.get() + 1;
        self.failed_fetches.set(failed);
        if failed.is_power_of_two() {
            let peer = self.describe();
            tracing::warn!("{route}: a fetch of {peer} at offset {offset} fails: {error} ({failed} so far)");
        }
    }

    pub(crate) fn describe(&self) -> String {
        self.peer.map_or_else(|| "a peer that is gone".to_owned(), |peer| peer.to_string())
    }
}

fn keep(slot: &RefCell<Option<Waker>>, waker: &Waker) {
    let mut slot = slot.borrow_mut();
    if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
        *slot = Some(waker.clone());
    }
}

fn wake(slot: &RefCell<Option<Waker>>) {
    if let Some(waker) = &*slot.borrow() {
        waker.wake_by_ref();
    }
}
