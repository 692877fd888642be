//! The ring: everything a shard asks of the world goes through here, and comes back as a future.
//!
//! A `Ring` belongs to one thread. It holds a table of operation slots; a slot owns its [`Request`] (memory and
//! handles) from submission to completion, whatever becomes of the future that waits for it. Which world carries
//! the request out, the kernel or the simulated one, is one branch in `Driver`.

use std::cell::{Cell, RefCell, RefMut};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::BLOCK_BYTES;
use super::arena::{Arena, BLOCK_CLASSES, Chunk, Lease, LeaseMut, PageKind, Window, class_of};
use super::capabilities::Capabilities;
use super::clock::Moment;
use super::flushes::Flushes;
use super::gather::Gather;
use super::lending::{Lending, LendingBook, Loan, ZeroCopyUse};
use super::map::FileMap;
use super::op::{
    Completion, DirEntry, DirLock, File, FileKind, Job, Listener, OpenOptions, Reply, Request, SharedFile,
    SharedFileKind, Socket, Token,
};
use super::pages::{FreshPages, Pages};
use super::pipe::{PIPE_BYTES, Pipe, Pipes};
use super::sim::SimDriver;
use super::stamp::FileStamp;
use super::task::{Bell, Executor};
use super::uring::{Uring, UringError, UringOptions};
use crate::types::Timestamp;

/// Operations that one ring may have under way; more wait their turn.
pub const OPS_IN_FLIGHT_MAX: usize = 8192;
/// How long a lease waits for memory within the budget before it gives up.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);
/// How often, and after what time, memory is offered for registration again when the memlock limit is in the way.
const REGISTER_RETRIES: usize = 3;
const REGISTER_PATIENCE: Duration = Duration::from_millis(20);
const LEASE_RETRY: Duration = Duration::from_millis(1);
/// How long a ring that ends waits for peers to take what zero-copy sends still hold, before it resets them.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
/// Pages for one use that are mapped and unmapped here and now; more take a helper.
const MAPPED_INLINE_MAX: usize = 64 << 10;

/// One thread's way to the world. Clones share it.
#[derive(Clone)]
pub struct Ring(Rc<Inner>);

struct Inner {
    driver: RefCell<Driver>,
    slots: RefCell<Slots>,
    timers: RefCell<Timers>,
    executor: Executor,
    arena: Arena,
    /// Somebody makes the arena grow, from the asking until the memory is the arena's: two would each see the same room
    /// in the budget.
    growing: Cell<bool>,
    lease_queues: LeaseQueues,
    /// How many wait for memory that the budget has no room for.
    starving: Cell<u32>,
    /// Whoever makes room when somebody begins to.
    shortage: RefCell<Option<Waker>>,
    /// The kernel will not register any more memory.
    unregistered: Cell<bool>,
    /// The kernel knows zero-copy sends, but not as we ask for them.
    zero_copy_refused: Cell<bool>,
    lending: Rc<LendingBook>,
    pipes: Pipes,
}

// One per ring, and reached at every operation: a box would cost more than the room.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Driver {
    Uring(Uring),
    Sim(SimDriver),
}

impl Driver {
    pub(super) fn prepare_incoming(&mut self) -> io::Result<()> {
        match self {
            Driver::Uring(uring) => uring.prepare_incoming(),
            Driver::Sim(_) => Ok(()),
        }
    }

    pub(super) fn begin_stream(&mut self, socket: &Socket) -> u32 {
        match self {
            Driver::Uring(uring) => uring.begin_stream(),
            Driver::Sim(sim) => sim.begin_stream(socket),
        }
    }

    pub(super) fn end_stream(&mut self, stream: u32) {
        match self {
            Driver::Uring(uring) => uring.end_stream(stream),
            Driver::Sim(_) => {}
        }
    }

    fn streams_under_way(&self) -> usize {
        match self {
            Driver::Uring(uring) => uring.streams_under_way(),
            Driver::Sim(_) => 0,
        }
    }

    /// Buffers that wait for bytes.
    pub(super) fn provided(&self) -> usize {
        match self {
            Driver::Uring(uring) => uring.provided(),
            Driver::Sim(sim) => sim.provided(),
        }
    }

    /// Adds one, or gives it back when there are as many as there may be.
    pub(super) fn provide(&mut self, buffer: LeaseMut) -> Option<LeaseMut> {
        match self {
            Driver::Uring(uring) => uring.provide(buffer),
            Driver::Sim(sim) => sim.provide(buffer),
        }
    }
}

/// Somebody who waits for memory, counted while it lives.
struct Starving<'a>(&'a Cell<u32>);

impl<'a> Starving<'a> {
    fn new(count: &'a Cell<u32>) -> Starving<'a> {
        count.set(count.get() + 1);
        Starving(count)
    }
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The right to make the arena grow; given back on drop, also when whoever asked is gone.
struct Growing<'a>(&'a Cell<bool>);

impl<'a> Growing<'a> {
    fn new(growing: &'a Cell<bool>) -> Growing<'a> {
        growing.set(true);
        Growing(growing)
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Who waits for a lease, by class of blocks, in the order of their coming: without it one could come too late each time.
#[derive(Default)]
struct LeaseQueues {
    last: Cell<u64>,
    /// Numbers, ascending.
    waiting: [RefCell<VecDeque<u64>>; BLOCK_CLASSES.len()],
}

/// A place among those who wait for a lease; given up on drop.
struct LeasePlace<'a> {
    queue: &'a RefCell<VecDeque<u64>>,
    number: u64,
}

impl LeaseQueues {
    fn enter(&self, class: usize) -> LeasePlace<'_> {
        let number = self.last.get() + 1;
        self.last.set(number);
        self.waiting[class].borrow_mut().push_back(number);
        LeasePlace { queue: &self.waiting[class], number }
    }
}

impl LeasePlace<'_> {
    fn index(&self) -> usize {
        self.queue.borrow().binary_search(&self.number).expect("a place is kept until it is given up")
    }
}

impl Drop for LeasePlace<'_> {
    fn drop(&mut self) {
        let index = self.index();
        self.queue.borrow_mut().remove(index);
    }
}

struct Slots {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    /// Who waits for a vacant slot.
    queue: VecDeque<Waker>,
}

struct Slot {
    generation: u32,
    state: SlotState,
    request: Option<Request>,
    waker: Option<Waker>,
    done: Option<(io::Result<u32>, Reply)>,
    /// What the kernel still reads from after the operation has completed.
    loan: Option<Loan>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SlotState {
    Vacant,
    InFlight,
    /// In flight, and nobody waits any more: the slot keeps the memory until the completion.
    Orphan,
    Done,
    /// Done with, and whoever waited has the result or is gone: the slot keeps the loan until it is released.
    Lent,
}

struct Timers {
    heap: BinaryHeap<Reverse<(Moment, u32)>>,
    timers: Vec<TimerSlot>,
    vacant: Vec<u32>,
}

#[derive(Default)]
struct TimerSlot {
    deadline: Option<Moment>,
    /// The heap holds an entry for this timer; it is asked for at that time and put back if armed for later.
    queued: Option<Moment>,
    waker: Option<Waker>,
    vacant: bool,
}

/// Counts of what a ring did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// System calls of any kind made on the ring's thread.
    pub system_calls: u64,
    /// Of these, `io_uring_enter`.
    pub enters: u64,
    /// Operations submitted.
    pub submissions: u64,
    /// Bytes of file writes submitted.
    pub write_bytes: u64,
    /// File writes submitted.
    pub writes: u64,
    /// Syncs submitted.
    pub syncs: u64,
    /// The longest time between two visits to the kernel, in nanoseconds.
    pub longest_tick_nanos: u64,
}

/// The result of an operation that carries memory: what came of it, and the memory back.
pub type Done<T> = (io::Result<usize>, T);

impl Ring {
    /// A ring of the kernel's for the calling thread, with an arena that may grow to `arena_bytes_max`.
    ///
    /// # Errors
    /// When the kernel refuses io_uring: cause and cure.
    pub fn of_kernel(options: &UringOptions, arena_bytes_max: u64) -> Result<Ring, UringError> {
        let (uring, bell) = Uring::new(options)?;
        Ok(Ring::new(Driver::Uring(uring), Box::new(bell), arena_bytes_max))
    }

    /// What the host granted; `None` in the simulated world.
    #[must_use]
    pub fn capabilities(&self) -> Option<Capabilities> {
        match &*self.0.driver.borrow() {
            Driver::Uring(uring) => {
                let registered = self.0.arena.usage().registered_bytes > 0;
                Some(Capabilities::probe(uring.setup(), registered, uring.sends_zero_copy()))
            }
            Driver::Sim(_) => None,
        }
    }

    pub(crate) fn new(driver: Driver, bell: Box<dyn Bell>, arena_bytes_max: u64) -> Ring {
        let slots =
            Slots { slots: Vec::with_capacity(256), vacant: Vec::with_capacity(256), queue: VecDeque::new() };
        let timers = Timers { heap: BinaryHeap::with_capacity(256), timers: Vec::new(), vacant: Vec::new() };
        Ring(Rc::new(Inner {
            driver: RefCell::new(driver),
            slots: RefCell::new(slots),
            timers: RefCell::new(timers),
            executor: Executor::new(bell),
            arena: Arena::new(arena_bytes_max),
            growing: Cell::new(false),
            lease_queues: LeaseQueues::default(),
            starving: Cell::new(0),
            shortage: RefCell::new(None),
            unregistered: Cell::new(false),
            zero_copy_refused: Cell::new(false),
            lending: Rc::default(),
            pipes: Pipes::default(),
        }))
    }

    /// Runs tasks of this thread.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.0.executor
    }

    /// Starts a task on this thread.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(future);
    }

    /// The arena that leases come from.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// The monotonic clock.
    #[must_use]
    pub fn now(&self) -> Moment {
        match &*self.0.driver.borrow() {
            Driver::Uring(uring) => uring.now(),
            Driver::Sim(sim) => sim.now(),
        }
    }

    /// The wall clock, in milliseconds. It may jump, also backwards.
    #[must_use]
    pub fn wall_clock(&self) -> Timestamp {
        match &*self.0.driver.borrow() {
            Driver::Uring(uring) => uring.wall_clock(),
            Driver::Sim(sim) => sim.wall_clock(),
        }
    }

    /// A random number: the kernel's, or the simulated world's seeded one.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.random_u64(),
            Driver::Sim(sim) => sim.random_u64(),
        }
    }

    /// Whether this ring runs in the simulated world.
    #[must_use]
    pub fn is_simulated(&self) -> bool {
        matches!(&*self.0.driver.borrow(), Driver::Sim(_))
    }

    /// What the ring did so far.
    #[must_use]
    pub fn counters(&self) -> RingCounters {
        match &*self.0.driver.borrow() {
            Driver::Uring(uring) => uring.counters(),
            Driver::Sim(sim) => sim.counters(),
        }
    }

    // ---- memory ------------------------------------------------------------------------------------------------

    /// A lease of at least `bytes` from memory that is already there.
    #[must_use]
    pub fn try_lease(&self, bytes: usize) -> Option<LeaseMut> {
        self.0.arena.try_lease(bytes)
    }

    /// A lease of at least `bytes`; grows the arena within its budget, or waits for other leases to be released. Who
    /// waits for blocks of one class is served in the order of coming.
    ///
    /// # Errors
    /// `OutOfMemory` when the budget stayed exhausted for two seconds, `InvalidInput` above
    /// [`super::LEASE_BYTES_MAX`], or what the kernel said when it would not map more.
    pub async fn lease(&self, bytes: usize) -> io::Result<LeaseMut> {
        let Some(class) = class_of(bytes) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no lease is as large as {bytes} bytes"),
            ));
        };
        let queues = &self.0.lease_queues;
        if queues.waiting[class].borrow().is_empty()
            && let Some(lease) = self.try_lease(bytes)
        {
            return Ok(lease);
        }
        let place = queues.enter(class);
        let mut give_up_at = None;
        loop {
            // What is free is first for those who came before.
            if place.index() < self.0.arena.free_blocks(bytes)
                && let Some(lease) = self.try_lease(bytes)
            {
                return Ok(lease);
            }
            let room = self.0.arena.growth_for(bytes).is_some();
            if room && !self.0.growing.get() {
                self.grow(bytes).await?;
                continue;
            }
            if !room && self.0.arena.carve(bytes) {
                continue; // What was mapped for large leases, and is free, serves this one.
            }
            if room || self.0.growing.get() {
                // There will be memory, or it will be known that there is none: no reason to give up meanwhile.
                give_up_at = None;
                self.sleep(LEASE_RETRY).await;
                continue;
            }
            if self.now() > *give_up_at.get_or_insert_with(|| self.now().plus(LEASE_PATIENCE)) {
                let usage = self.0.arena.usage();
                let message = format!("no memory for {bytes} bytes within the arena's budget: {usage:?}");
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
            }
            let _starving = Starving::new(&self.0.starving);
            if let Some(waker) = self.0.shortage.borrow_mut().take() {
                waker.wake();
            }
            self.sleep(LEASE_RETRY).await;
        }
    }

    /// Whether somebody waits for a lease because the budget is exhausted.
    #[must_use]
    pub fn is_short_of_memory(&self) -> bool {
        self.0.starving.get() > 0
    }

    /// Ready while somebody waits for a lease; otherwise `cx` is woken when that begins, in place of who asked before.
    pub fn poll_short_of_memory(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_short_of_memory() {
            return Poll::Ready(());
        }
        *self.0.shortage.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Maps, touches and registers one more chunk for leases of `bytes`.
    ///
    /// # Errors
    /// `OutOfMemory` when the arena's budget has no room for it, or what the kernel said. A refused registration is no error:
    /// the chunk is used unregistered, and the arena's usage shows it.
    pub async fn grow(&self, bytes: usize) -> io::Result<()> {
        while self.0.growing.get() {
            self.sleep(LEASE_RETRY).await;
        }
        if self.0.arena.growth_for(bytes).is_none() {
            let message = format!("no room for more leases of {bytes} bytes: {:?}", self.0.arena.usage());
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
        }
        let _growing = Growing::new(&self.0.growing);
        let pages = match &*self.0.driver.borrow() {
            Driver::Uring(uring) => uring.options().pages,
            Driver::Sim(_) => PageKind::Transparent,
        };
        let reply = self.help(Job::MapChunk { bytes, pages }, None).await;
        let Reply::Chunk(chunk) = reply? else { unreachable!("mapping a chunk replies with it") };
        let mut fixed = self.register(&chunk);
        // The limit is charged per user and given back late by rings that are gone: worth a moment's patience.
        for _ in 0..REGISTER_RETRIES {
            if !matches!(&fixed, Err(error) if error.kind() == io::ErrorKind::OutOfMemory) {
                break;
            }
            self.sleep(REGISTER_PATIENCE).await;
            fixed = self.register(&chunk);
        }
        let fixed = fixed.unwrap_or_else(|_| {
            self.0.unregistered.set(true);
            None
        });
        self.0.arena.adopt(chunk, bytes, fixed);
        Ok(())
    }

    fn register(&self, chunk: &Chunk) -> io::Result<Option<u16>> {
        match &mut *self.0.driver.borrow_mut() {
            // Refused once for good, asking again would only cost time.
            Driver::Uring(uring) if !self.0.unregistered.get() => uring.register_chunk(chunk),
            Driver::Uring(_) | Driver::Sim(_) => Ok(None),
        }
    }

    // ---- sockets -----------------------------------------------------------------------------------------------

    /// Listens on `address`. With `shared` several rings may: the kernel spreads connections over them; hold an
    /// [`super::AddressClaim`] against other processes.
    ///
    /// # Errors
    /// What the kernel said, with the address.
    pub fn listen(&self, address: SocketAddr, shared: bool) -> io::Result<Listener> {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.listen(address, shared),
            Driver::Sim(sim) => sim.listen(address),
        }
    }

    /// The next connection that comes in. Underneath stands one operation for all of them.
    ///
    /// # Errors
    /// What the kernel said; after `EMFILE` and its like, wait a little before the next call.
    pub async fn accept(&self, listener: &Listener) -> io::Result<Socket> {
        let (result, _, reply) = self.submit(Request::Accept(listener.clone())).await;
        match (result?, reply) {
            (_, Reply::Socket(socket)) => Ok(socket),
            _ => unreachable!("accepting replies with a socket"),
        }
    }

    /// Connects to `address`.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.stream_socket(address)?,
            Driver::Sim(sim) => sim.stream_socket(address)?,
        };
        let address = Box::new(super::uring::SockAddr::from(address));
        let (result, _, _) = self.submit(Request::Connect { socket: socket.clone(), address }).await;
        result.map(|_| socket)
    }

    /// Takes over a connected stream that somebody else made.
    ///
    /// # Errors
    /// What the kernel said; `Unsupported` in the simulated world, which has no descriptors.
    pub fn adopt_stream(&self, stream: std::net::TcpStream) -> io::Result<Socket> {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.adopt_stream(stream),
            Driver::Sim(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Receives what there is, at least one byte; 0 means that the peer has finished.
    pub async fn recv(&self, socket: &Socket, into: LeaseMut) -> Done<LeaseMut> {
        self.recv_request(socket, into, false).await
    }

    /// Receives until `into` is full; fewer bytes only when the peer has finished or vanished.
    pub async fn recv_all(&self, socket: &Socket, into: LeaseMut) -> Done<LeaseMut> {
        self.recv_request(socket, into, true).await
    }

    /// [`Ring::recv_all`] that ends early when `give_up` is ready: with the bytes that have come until then, perhaps none
    /// (0 does not mean then that the peer has finished). The memory comes back in any case.
    pub async fn recv_all_unless(
        &self,
        socket: &Socket,
        into: LeaseMut,
        give_up: impl Future<Output = ()>,
    ) -> Done<LeaseMut> {
        let request = Request::Recv { socket: socket.clone(), into, all: true };
        let (result, request, given_up) = self.submit_unless(request, give_up).await;
        let Request::Recv { into, .. } = request else {
            unreachable!("an operation gives back its own request")
        };
        match result {
            Err(error) if given_up && error.raw_os_error() == Some(libc::ECANCELED) => (Ok(0), into),
            result => (result.map(|n| n as usize), into),
        }
    }

    async fn recv_request(&self, socket: &Socket, into: LeaseMut, all: bool) -> Done<LeaseMut> {
        match self.submit(Request::Recv { socket: socket.clone(), into, all }).await {
            (result, Request::Recv { into, .. }, _) => (result.map(|n| n as usize), into),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// Sends all of `from`. `more` says that further bytes follow at once.
    pub async fn send(&self, socket: &Socket, from: Lease, more: bool) -> Done<Lease> {
        match self.submit(Request::Send { socket: socket.clone(), from, more }).await {
            (result, Request::Send { from, .. }, _) => (result.map(|n| n as usize), from),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// Sends all leases of `from`, in order.
    pub async fn send_gather(&self, socket: &Socket, from: Gather, more: bool) -> Done<Gather> {
        match self.submit(Request::SendGather { socket: socket.clone(), from, more }).await {
            (result, Request::SendGather { from, .. }, _) => (result.map(|n| n as usize), from),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// Whether [`Ring::send_zero_copy`] may lend at all here.
    #[must_use]
    pub fn sends_zero_copy(&self) -> bool {
        !self.0.zero_copy_refused.get()
            && match &*self.0.driver.borrow() {
                Driver::Uring(uring) => uring.sends_zero_copy(),
                Driver::Sim(sim) => sim.sends_zero_copy(),
            }
    }

    /// Sends `from`, or the beginning of it, without copying it: its memory is lent to the kernel until the peer has
    /// acknowledged it, which may be long after this returns; nobody can use it again before. Where the device cannot
    /// gather, the kernel copies late, and [`Ring::zero_copy`] says so.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn send_zero_copy(&self, socket: &Socket, from: &Lease, more: bool) -> io::Result<Lending> {
        let book = &self.0.lending;
        if !self.sends_zero_copy() {
            book.note(|usage| usage.refused_sends += 1);
            return Ok(Lending::NotLent);
        }
        let Some(loan) = Loan::new(from, socket, book, self.now()) else {
            book.note(|usage| usage.full_sends += 1);
            return Ok(Lending::NotLent);
        };
        let fixed = from.fixed_in(&self.0.arena);
        let request = Request::SendZeroCopy { socket: socket.clone(), loan: Some(loan), fixed, more };
        match self.submit(request).await.0 {
            Ok(sent) => Ok(Lending::Sent(sent as usize)),
            Err(error) => match error.raw_os_error() {
                // Kernels before 6.2 know no report of use; sockets other than TCP lend nothing; pages that are not
                // registered are charged to the memlock limit.
                Some(errno @ (libc::EINVAL | libc::EOPNOTSUPP | libc::ENOMEM | libc::ENOBUFS)) => {
                    self.0.zero_copy_refused.set(self.0.zero_copy_refused.get() || errno == libc::EINVAL);
                    book.note(|usage| usage.refused_sends += 1);
                    Ok(Lending::NotLent)
                }
                _ => Err(error),
            },
        }
    }

    /// What zero-copy sends came to so far.
    #[must_use]
    pub fn zero_copy(&self) -> ZeroCopyUse {
        self.0.lending.usage()
    }

    /// Completes when `socket` takes more bytes, or has failed.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn writable(&self, socket: &Socket) -> io::Result<()> {
        self.submit(Request::Writable(socket.clone())).await.0.map(|_| ())
    }

    /// Waits until `socket` has bytes or its end to be received, or has failed: the next receive says what; or until `give_up`
    /// is ready. Whether the socket is.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn readable_unless(
        &self,
        socket: &Socket,
        give_up: impl Future<Output = ()>,
    ) -> io::Result<bool> {
        let (result, _, given_up) = self.submit_unless(Request::Readable(socket.clone()), give_up).await;
        match result {
            Err(error) if given_up && error.raw_os_error() == Some(libc::ECANCELED) => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// Carries `request` out, and cancels it when `give_up` is ready. Whether that was so.
    async fn submit_unless(
        &self,
        request: Request,
        give_up: impl Future<Output = ()>,
    ) -> (io::Result<u32>, Request, bool) {
        let mut operation = pin!(self.submit(request));
        let mut give_up = pin!(give_up);
        let mut given_up = false;
        poll_fn(|cx| {
            if let Poll::Ready((result, request, _)) = operation.as_mut().poll(cx) {
                return Poll::Ready((result, request, given_up));
            }
            if !given_up && give_up.as_mut().poll(cx).is_ready() {
                given_up = true;
                operation.cancel();
            }
            Poll::Pending
        })
        .await
    }

    /// `sendfile(2)`, now, without waiting: bytes taken by the socket, or `WouldBlock`. The range must be resident
    /// in the page cache ([`Ring::is_resident`]), or the whole thread waits for the disk.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full; otherwise what the kernel said.
    pub fn sendfile(&self, socket: &Socket, file: &File, at: u64, bytes: u64) -> io::Result<usize> {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.sendfile(socket, file, at, bytes),
            Driver::Sim(sim) => sim.sendfile(socket, file, at, bytes),
        }
    }

    /// An empty pipe: one that was given back, or a new one, of [`super::PIPE_BYTES`] if the user may have as much.
    ///
    /// # Errors
    /// What the kernel said: too many descriptors, most likely.
    pub fn pipe(&self) -> io::Result<Pipe> {
        match self.0.pipes.take() {
            Some(pipe) => Ok(pipe),
            None => self.new_pipe(PIPE_BYTES),
        }
    }

    /// A new pipe of `bytes`; a smaller one where the user has many already.
    ///
    /// # Errors
    /// As [`Ring::pipe`].
    pub fn new_pipe(&self, bytes: usize) -> io::Result<Pipe> {
        match &*self.0.driver.borrow() {
            Driver::Uring(_) => Pipe::of_kernel(bytes),
            Driver::Sim(sim) => sim.new_pipe(bytes),
        }
    }

    /// Gives a pipe back. What it still holds is lost.
    pub fn give_pipe(&self, pipe: Pipe) {
        self.0.pipes.give(pipe);
    }

    /// `splice(2)` from `file` into `pipe`, now: bytes that it took, 0 at the end of the file. The range must be
    /// resident in the page cache ([`Ring::is_resident`]), or the whole thread waits for the disk.
    ///
    /// # Errors
    /// `WouldBlock` when the pipe is full; otherwise what the kernel said.
    pub fn splice_in(&self, file: &File, at: u64, bytes: usize, pipe: &mut Pipe) -> io::Result<usize> {
        let taken = match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.splice_in(file, at, bytes, pipe),
            Driver::Sim(sim) => sim.splice_in(file, at, bytes, pipe),
        }?;
        pipe.note_in(taken);
        Ok(taken)
    }

    /// `splice(2)` of what `pipe` holds to `socket`, now, without waiting. `more` says that further bytes follow.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full; otherwise what the kernel said.
    pub fn splice_out(&self, pipe: &mut Pipe, socket: &Socket, more: bool) -> io::Result<usize> {
        let sent = match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.splice_out(pipe, socket, more),
            Driver::Sim(sim) => sim.splice_out(pipe, socket),
        }?;
        pipe.note_out(sent);
        Ok(sent)
    }

    /// `splice(2)` of up to `bytes` that `socket` has received into `pipe`, now, without waiting; 0 when the peer has finished.
    /// Nothing else may receive from the socket meanwhile.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has come, or the pipe is full; otherwise what the kernel said.
    pub fn splice_from_socket(&self, socket: &Socket, bytes: usize, pipe: &mut Pipe) -> io::Result<usize> {
        let taken = match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.splice_from_socket(socket, bytes, pipe),
            Driver::Sim(sim) => sim.splice_from_socket(socket, bytes, pipe),
        }?;
        pipe.note_in(taken);
        Ok(taken)
    }

    /// Writes what `pipe` holds, or the beginning of it, to `file` at `at`, through the page cache, on a worker of the
    /// kernel's. What was written is no longer in the pipe.
    pub async fn splice_to_file(&self, file: &File, at: u64, pipe: Pipe) -> Done<Pipe> {
        let bytes = pipe.held();
        match self.submit(Request::SpliceToFile { file: file.clone(), at, bytes, pipe }).await {
            (Ok(written), Request::SpliceToFile { mut pipe, .. }, _) => {
                pipe.note_out(written as usize);
                (Ok(written as usize), pipe)
            }
            (Err(error), Request::SpliceToFile { pipe, .. }, _) => (Err(error), pipe),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// `send(2)` from a map, now, without waiting: bytes taken by the socket. The range must be resident in the page cache
    /// ([`Ring::is_resident`]), or the whole thread waits for the disk. `more` says that further bytes follow.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full, `EFAULT` when the file no longer has these bytes or the map was given
    /// up; otherwise what the kernel said.
    pub fn send_mapped(
        &self,
        socket: &Socket,
        map: &FileMap,
        at: u64,
        bytes: u64,
        more: bool,
    ) -> io::Result<usize> {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.send_mapped(socket, map, at, bytes, more),
            Driver::Sim(sim) => sim.send_mapped(socket, map, at, bytes),
        }
    }

    /// What `file` shows when it is changed, now.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn stamp(&self, file: &File) -> io::Result<FileStamp> {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.stamp(file),
            Driver::Sim(sim) => sim.stamp(file),
        }
    }

    /// `tee(2)`: lets `to` have the first `bytes` of what `from` holds, as far as it has room, and leaves them in `from`. Now,
    /// without copying: both refer to the same pages.
    ///
    /// # Errors
    /// `WouldBlock` when `to` is full; otherwise what the kernel said.
    pub fn tee(&self, from: &Pipe, to: &mut Pipe, bytes: usize) -> io::Result<usize> {
        let shared = match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.tee(from, to, bytes),
            Driver::Sim(sim) => sim.tee(from, to, bytes),
        }?;
        to.note_in(shared);
        Ok(shared)
    }

    /// Takes the first `bytes` out of `pipe`, now, to nowhere.
    ///
    /// # Errors
    /// What the kernel said; `UnexpectedEof` when the pipe does not hold as many.
    pub fn discard(&self, pipe: &mut Pipe, bytes: usize) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let gone = match &mut *self.0.driver.borrow_mut() {
                Driver::Uring(uring) => uring.discard(pipe, left),
                Driver::Sim(sim) => sim.discard(pipe, left),
            }?;
            if gone == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            pipe.note_out(gone);
            left -= gone;
        }
        Ok(())
    }

    /// `vmsplice(2)`: lets `pipe` have a `range` of the bytes of `pages`, as far as it has room. Now, without copying. `pages`
    /// may be given back at once ([`Ring::unmap`]).
    ///
    /// # Errors
    /// `WouldBlock` when the pipe is full; otherwise what the kernel said.
    pub fn vmsplice(&self, pages: &Pages, range: Range<usize>, pipe: &mut Pipe) -> io::Result<usize> {
        let bytes = &pages.as_slice()[range];
        let taken = match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.vmsplice(bytes, pipe),
            Driver::Sim(sim) => sim.vmsplice(bytes, pipe),
        }?;
        pipe.note_in(taken);
        Ok(taken)
    }

    /// Takes up to `bytes` from `file` at `at` into `pipe`, on a worker of the kernel's, which may wait for the disk. 0 at
    /// the end of the file. At most [`super::SPLICE_WORKERS_MAX`] workers do that at a time; more wait their turn.
    pub async fn splice_in_waiting(&self, file: &File, at: u64, bytes: usize, pipe: Pipe) -> Done<Pipe> {
        match self.submit(Request::SpliceIn { file: file.clone(), at, bytes, pipe }).await {
            (Ok(taken), Request::SpliceIn { mut pipe, .. }, _) => {
                pipe.note_in(taken as usize);
                (Ok(taken as usize), pipe)
            }
            (Err(error), Request::SpliceIn { pipe, .. }, _) => (Err(error), pipe),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// Whether all of `[at, at + bytes)` lies in the page cache now. `false` when the kernel cannot tell.
    #[must_use]
    pub fn is_resident(&self, file: &File, at: u64, bytes: u64) -> bool {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.is_resident(file, at, bytes),
            Driver::Sim(sim) => sim.is_resident(file, at, bytes),
        }
    }

    // ---- files -------------------------------------------------------------------------------------------------

    /// Reads at `at`; fewer bytes than asked for only at the end of the file.
    pub async fn read(&self, file: &File, at: u64, into: LeaseMut) -> Done<LeaseMut> {
        match self.submit(Request::Read { file: file.clone(), at, into }).await {
            (result, Request::Read { into, .. }, _) => (result.map(|n| n as usize), into),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// Reads `bytes` at `at` into pages mapped for this once; fewer at the end of the file. A helper maps larger ones: the
    /// kernel has to zero them first.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn read_pages(&self, file: &File, at: u64, bytes: usize) -> io::Result<Pages> {
        let mut into = match bytes <= MAPPED_INLINE_MAX {
            true => FreshPages::map(bytes)?,
            false => match self.help(Job::MapPages { bytes }, None).await? {
                Reply::Pages(pages) => pages,
                _ => unreachable!("mapping pages replies with them"),
            },
        };
        let mut filled = 0;
        while filled < bytes {
            // After a short read it goes on at a whole block, as direct reads must.
            let again = filled / BLOCK_BYTES * BLOCK_BYTES;
            let at = at + again as u64;
            let read = Request::ReadPages { file: file.clone(), at, into, filled: again };
            let (result, Request::ReadPages { into: back, .. }, _) = self.submit(read).await else {
                unreachable!("an operation gives back its own request")
            };
            into = back;
            let read = result? as usize;
            if again + read <= filled {
                break; // The end of the file.
            }
            filled = again + read;
        }
        Ok(into.fill(filled))
    }

    /// Takes `pages` out of this process, on a helper where that takes a while. Pipes and sockets that have some of them go
    /// on.
    pub fn unmap(&self, pages: Pages) {
        let memory = pages.into_memory();
        if let Driver::Uring(uring) = &*self.0.driver.borrow()
            && memory.len() > MAPPED_INLINE_MAX
        {
            uring.unmap(memory);
        }
    }

    /// Writes at `at`: *written* when it completes with all bytes, not yet durable. May write fewer bytes.
    pub async fn write(&self, file: &File, at: u64, from: Lease) -> Done<Lease> {
        match self.submit(Request::Write { file: file.clone(), at, from }).await {
            (result, Request::Write { from, .. }, _) => (result.map(|n| n as usize), from),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// Writes all leases of `from` at `at`, in order. May write fewer bytes.
    pub async fn write_gather(&self, file: &File, at: u64, from: Gather) -> Done<Gather> {
        self.write_gather_request(file, at, from, false).await
    }

    /// The same, and what is written leaves the page cache as soon as it is on the disk. Where kernel or
    /// file system cannot, an error: ask [`Ring::takes_uncached`] before.
    pub async fn write_gather_uncached(&self, file: &File, at: u64, from: Gather) -> Done<Gather> {
        self.write_gather_request(file, at, from, true).await
    }

    /// Whether `file` takes writes that leave the page cache. Asked by writing nothing: the flag is looked at first.
    ///
    /// # Errors
    /// What the kernel said, if it was anything else.
    pub async fn takes_uncached(&self, file: &File) -> io::Result<bool> {
        match self.write_gather_uncached(file, 0, Gather::new()).await.0 {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn write_gather_request(&self, file: &File, at: u64, from: Gather, uncached: bool) -> Done<Gather> {
        match self.submit(Request::WriteGather { file: file.clone(), at, from, uncached }).await {
            (result, Request::WriteGather { from, .. }, _) => (result.map(|n| n as usize), from),
            _ => unreachable!("an operation gives back its own request"),
        }
    }

    /// Memory that is `[at, at + bytes)` of `file`, in whole pages, all of them there: what is put into it is in the page
    /// cache. Mapped and touched on a helper. Nobody may cut the file meanwhile; when somebody does all the same,
    /// [`Ring::store_gather`] says so.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn map_window(&self, file: &File, at: u64, bytes: usize) -> io::Result<LeaseMut> {
        match self.help(Job::MapWindow { at, bytes }, Some(file.clone())).await? {
            Reply::Window(mapping) => {
                let unmap = match &*self.driver() {
                    Driver::Uring(uring) => uring.unmapper(),
                    Driver::Sim(_) => Box::new(drop),
                };
                Ok(Window::lease(mapping, unmap))
            }
            _ => unreachable!("mapping a window replies with it"),
        }
    }

    /// What was put into windows of `file` at `at`, in order, counts as written from here on. As
    /// [`Ring::write_gather`] in the simulated world, whose files cannot be mapped.
    pub async fn store_gather(&self, file: &File, at: u64, from: Gather) -> Done<Gather> {
        if self.is_simulated() {
            return self.write_gather(file, at, from).await;
        }
        let bytes = from.bytes();
        let checked = self.check_window(file, at + bytes as u64, from.leases());
        (checked.map(|()| bytes), from)
    }

    /// Whether `file` still has all of what lies in `leases` of windows on it, which end at `end`.
    ///
    /// # Errors
    /// That it has not, with numbers.
    pub fn check_window(&self, file: &File, end: u64, leases: &[Lease]) -> io::Result<()> {
        let Driver::Uring(uring) = &mut *self.driver() else { return Ok(()) };
        let there = uring.file_bytes(file)?;
        if there < end || leases.iter().any(Lease::is_lost) {
            let message = format!(
                "it was cut by somebody else while it was mapped: {there} bytes are there, it was in use up to {end}"
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        Ok(())
    }

    /// Makes every write of `file` that completed before this call survive power loss.
    ///
    /// # Errors
    /// What the kernel said. After an error nothing unsynced may be believed, and a later success proves nothing.
    pub async fn sync(&self, file: &File) -> io::Result<()> {
        self.submit(Request::Sync { file: file.clone() }).await.0.map(|_| ())
    }

    /// Whether `file` still has a name, now: one that was removed while open takes writes and flushes as before, and
    /// nobody will ever find them. Of a file that cannot be asked about it is believed.
    #[must_use]
    pub fn has_name(&self, file: &File) -> bool {
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.has_name(file),
            Driver::Sim(sim) => sim.has_name(file),
        }
    }

    /// Opens a file, on a helper.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<File> {
        match self.help(Job::Open { path: path.to_owned(), options }, None).await? {
            Reply::File(file) => Ok(file),
            Reply::Opened { fd, direct } => match &mut *self.0.driver.borrow_mut() {
                Driver::Uring(uring) => Ok(uring.adopt_file(fd, direct)),
                Driver::Sim(_) => unreachable!("the simulated world has no descriptors"),
            },
            _ => unreachable!("opening a file replies with it"),
        }
    }

    /// Takes a file that another ring opened.
    #[must_use]
    pub fn adopt_shared(&self, shared: &SharedFile) -> File {
        match (&shared.0, &*self.0.driver.borrow()) {
            (SharedFileKind::Os { fd, direct }, Driver::Uring(uring)) => {
                uring.adopt_shared(fd.clone(), *direct)
            }
            (SharedFileKind::Sim(file), Driver::Sim(_)) => File(Rc::new(FileKind::Sim(file.clone()))),
            _ => unreachable!("files do not cross between worlds"),
        }
    }

    /// The entries of a directory, in no order, on a helper.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        match self.help(Job::List { path: path.to_owned() }, None).await? {
            Reply::Entries(entries) => Ok(entries),
            _ => unreachable!("listing replies with entries"),
        }
    }

    /// Makes a directory and what is missing above it, and syncs its parent, on a helper.
    ///
    /// # Errors
    /// What the kernel said, with the path. That it exists already is success.
    pub async fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.help(Job::MakeDir { path: path.to_owned(), synced: true }, None).await.map(drop)
    }

    /// The same, but that its name survives power loss is somebody else's business.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn make_dir_unsynced(&self, path: &Path) -> io::Result<()> {
        self.help(Job::MakeDir { path: path.to_owned(), synced: false }, None).await.map(drop)
    }

    /// Makes the names in a directory survive power loss, on a helper.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.help(Job::SyncDir { path: path.to_owned() }, None).await.map(drop)
    }

    /// Makes all that is written, and all names, of the file system that holds `file` survive power loss, on a helper: for
    /// many files at once. It waits for what others have written there, too.
    ///
    /// # Errors
    /// What the kernel said, also that a write failed since `file` was opened.
    pub async fn sync_all(&self, file: &File) -> io::Result<()> {
        self.help(Job::SyncAll, Some(file.clone())).await.map(drop)
    }

    /// Renames durably, on a helper.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.help(Job::Rename { from: from.to_owned(), to: to.to_owned() }, None).await.map(drop)
    }

    /// Removes a file durably, on a helper; that it is not there is success.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn remove(&self, path: &Path) -> io::Result<()> {
        self.help(Job::Remove { path: path.to_owned() }, None).await.map(drop)
    }

    /// Removes a directory with all it holds, durably, on a helper; that it is not there is success.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.help(Job::RemoveDir { path: path.to_owned() }, None).await.map(drop)
    }

    /// Reads a small file whole, on a helper; `None` when it is not there.
    ///
    /// # Errors
    /// What the kernel said, with the path; `InvalidData` when it is larger than `bytes_max`.
    pub async fn read_file(&self, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        match self.help(Job::ReadFile { path: path.to_owned(), bytes_max }, None).await {
            Ok(Reply::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(_) => unreachable!("reading a file replies with its bytes"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts `bytes` under `path` so that a crash leaves the old content or the new; durable when it returns.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn replace(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        self.help(Job::Replace { path: path.to_owned(), bytes, synced: true }, None).await.map(drop)
    }

    /// The same, but that it survives power loss is somebody else's business: until then nothing may be there, or an empty file.
    ///
    /// # Errors
    /// What the kernel said, with the path.
    pub async fn replace_unsynced(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        self.help(Job::Replace { path: path.to_owned(), bytes, synced: false }, None).await.map(drop)
    }

    /// Allocates `[from, to)` of `file` as zeros and makes its size at least `to`, durably, on a helper.
    ///
    /// # Errors
    /// What the kernel said; `StorageFull` when there is no space.
    pub async fn prepare(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        self.help(Job::Prepare { from, to }, Some(file.clone())).await.map(drop)
    }

    /// Cuts `file` to `to` bytes, durably, on a helper. Never while a socket may still send its pages.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn trim(&self, file: &File, to: u64) -> io::Result<()> {
        self.help(Job::Trim { to }, Some(file.clone())).await.map(drop)
    }

    /// The size of `file`, on a helper.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn size(&self, file: &File) -> io::Result<u64> {
        match self.help(Job::Size, Some(file.clone())).await? {
            Reply::Size(bytes) => Ok(bytes),
            _ => unreachable!("asking for a size replies with it"),
        }
    }

    /// Where data begins in `file` at or behind `at`: what lies between reads as zeros. The size where none follows; on a
    /// helper.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn next_data(&self, file: &File, at: u64) -> io::Result<u64> {
        match self.help(Job::NextData { at }, Some(file.clone())).await? {
            Reply::Size(at) => Ok(at),
            _ => unreachable!("asking for a place replies with it"),
        }
    }

    /// Whether flushes of files in the directory `path` reach the disk, on a helper.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn flushes(&self, path: &Path) -> io::Result<Flushes> {
        match self.help(Job::Flushes { path: path.to_owned() }, None).await? {
            Reply::Flushes(flushes) => Ok(flushes),
            _ => unreachable!("asking about flushes replies with what is known"),
        }
    }

    /// Brings `[from, to)` of `file` into the page cache, on a helper.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn warm_cache(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        self.help(Job::WarmCache { from, to }, Some(file.clone())).await.map(drop)
    }

    /// Maps the first `bytes` of `file`, guarded against others who change it, on a helper.
    ///
    /// # Errors
    /// What the kernel said; `QuotaExceeded` when [`super::GUARDED_MAPS_MAX`] files are mapped already.
    pub async fn map(&self, file: &File, bytes: u64) -> io::Result<FileMap> {
        match self.help(Job::Map { bytes }, Some(file.clone())).await? {
            Reply::Map(map) => Ok(map),
            Reply::Mapped(mapping) => match &*self.0.driver.borrow() {
                Driver::Uring(uring) => Ok(uring.adopt_map(mapping)),
                Driver::Sim(_) => unreachable!("the simulated world has no mappings"),
            },
            _ => unreachable!("mapping replies with a map"),
        }
    }

    /// Brings `[from, to)` of `file` into the page cache and into `map`, on a helper.
    ///
    /// # Errors
    /// `EFAULT` when the file no longer has these bytes or the map was given up; or what the kernel said.
    pub async fn populate(&self, file: &File, map: &FileMap, from: u64, to: u64) -> io::Result<()> {
        let job = Job::Populate { map: map.clone(), from, to };
        self.help(job, Some(file.clone())).await.map(drop)
    }

    /// Puts a new file with the first `to` bytes in the place of the one under `path`, durably, on a helper. Whoever has
    /// the old one open, or its pages in a socket, keeps all of it.
    ///
    /// # Errors
    /// What the kernel said, with the path; then the old one is still there.
    pub async fn cut_anew(&self, path: &Path, to: u64) -> io::Result<()> {
        self.help(Job::CutAnew { path: path.to_owned(), to }, None).await.map(drop)
    }

    /// Claims a directory for this process by a lock on `path` in it.
    ///
    /// # Errors
    /// `WouldBlock` with a message that names the holder, or what the kernel said.
    pub async fn lock(&self, path: &Path) -> io::Result<DirLock> {
        match self.help(Job::Lock { path: path.to_owned() }, None).await? {
            Reply::Lock(lock) => Ok(lock),
            _ => unreachable!("locking replies with the lock"),
        }
    }

    async fn help(&self, job: Job, file: Option<File>) -> io::Result<Reply> {
        let (result, _, reply) = self.submit(Request::Help { job: Some(job), file }).await;
        result.map(|_| reply)
    }

    // ---- time --------------------------------------------------------------------------------------------------

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().plus(duration)).await;
    }

    /// Waits until `deadline`.
    pub async fn sleep_until(&self, deadline: Moment) {
        let timer = self.timer();
        timer.arm(deadline);
        std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
    }

    /// A timer to arm again and again without allocating.
    #[must_use]
    pub fn timer(&self) -> Timer {
        let timers = &mut *self.0.timers.borrow_mut();
        let index = timers.vacant.pop().unwrap_or_else(|| {
            timers.timers.push(TimerSlot::default());
            timers.timers.len() as u32 - 1
        });
        let slot = &mut timers.timers[index as usize];
        slot.deadline = None;
        slot.waker = None;
        slot.vacant = false;
        Timer { ring: self.clone(), index }
    }

    /// When the next armed timer is due.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.0.timers.borrow().heap.peek().map(|Reverse((deadline, _))| *deadline)
    }

    fn fire_timers(&self) {
        let now = self.now();
        loop {
            let waker = {
                let timers = &mut *self.0.timers.borrow_mut();
                let Some(&Reverse((due, index))) = timers.heap.peek() else { return };
                if due > now {
                    return;
                }
                timers.heap.pop();
                let slot = &mut timers.timers[index as usize];
                if slot.queued != Some(due) {
                    continue; // Armed for an earlier time since; that entry came up before this one.
                }
                slot.queued = None;
                match slot.deadline {
                    Some(deadline) if deadline > now => {
                        slot.queued = Some(deadline);
                        timers.heap.push(Reverse((deadline, index)));
                        None
                    }
                    Some(_) => slot.waker.take(),
                    None if slot.vacant => {
                        timers.vacant.push(index);
                        None
                    }
                    None => None,
                }
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    // ---- running -----------------------------------------------------------------------------------------------

    /// Runs this thread's tasks until `main` is done, then returns what it gave.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            let ready = self.run_tasks();
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            self.visit(!ready);
        }
    }

    /// Runs tasks until none is ready, or for a few passes: what tasks hand to each other is submitted together.
    /// True when some task is still ready.
    pub(crate) fn run_tasks(&self) -> bool {
        const PASSES_MAX: usize = 8;
        (0..PASSES_MAX).all(|_| self.0.executor.run_ready())
    }

    /// Visits the world, waiting there only if `wait` and nothing became ready; then tells tasks what happened.
    pub(crate) fn visit(&self, wait: bool) {
        let sleep = wait && self.0.executor.prepare_to_sleep();
        self.enter(sleep);
        self.0.executor.woke();
        self.fire_timers();
        self.reap();
    }

    fn enter(&self, wait: bool) {
        let deadline = self.next_deadline();
        match &mut *self.0.driver.borrow_mut() {
            Driver::Uring(uring) => uring.enter(wait, deadline),
            Driver::Sim(sim) => sim.enter(wait, deadline),
        }
    }

    fn reap(&self) {
        loop {
            let completion = match &mut *self.0.driver.borrow_mut() {
                Driver::Uring(uring) => uring.next_completion(),
                Driver::Sim(sim) => sim.next_completion(),
            };
            let Some(completion) = completion else { return };
            self.complete(completion);
        }
    }

    fn complete(&self, completion: Completion) {
        let Completion { token, result, reply } = completion;
        if let Reply::Released { copied } = reply {
            return self.released(token, copied);
        }
        let (waker, dropped) = {
            let slots = &mut *self.0.slots.borrow_mut();
            let slot = &mut slots.slots[token.slot as usize];
            assert_eq!(slot.generation, token.generation, "a completion came for a slot that was given away");
            if let Some(Request::SendZeroCopy { loan, .. }) = &mut slot.request {
                if let (Some(loan), Ok(sent)) = (loan.as_mut(), &result) {
                    loan.note_sent(u64::from(*sent));
                }
                if matches!(reply, Reply::Lent) {
                    slot.loan = loan.take();
                }
            }
            match slot.state {
                SlotState::InFlight => {
                    slot.state = SlotState::Done;
                    slot.done = Some((result, reply));
                    (slot.waker.take(), None)
                }
                SlotState::Orphan => {
                    let request = slot.request.take();
                    (slots.finish(token.slot), Some((request, reply)))
                }
                state => unreachable!("a completion for a slot that is {state:?}"),
            }
        };
        drop(dropped);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The second completion of a zero-copy send.
    fn released(&self, token: Token, copied: bool) {
        let (loan, waker) = {
            let slots = &mut *self.0.slots.borrow_mut();
            let slot = &mut slots.slots[token.slot as usize];
            assert_eq!(slot.generation, token.generation, "a release came for a slot that was given away");
            let loan =
                slot.loan.take().expect("memory is released after the send that lent it has completed");
            let waker = if slot.state == SlotState::Lent { slots.vacate(token.slot) } else { None };
            (loan, waker)
        };
        loan.release(copied);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn driver(&self) -> RefMut<'_, Driver> {
        self.0.driver.borrow_mut()
    }

    pub(super) fn submit(&self, request: Request) -> Op<'_> {
        Op { ring: self, stage: Stage::New(Some(request)) }
    }

    /// Drops all tasks and waits until the world has let go of every operation. Peers that do not take what zero-copy
    /// sends hold are reset after a second. Memory of connections that somebody closed before that is waited for only as
    /// long again, and leaked then: the kernel may go on for minutes.
    pub fn shut_down(&self) {
        let lenders = |slots: &Slots| slots.slots.iter().filter_map(|s| s.loan.as_ref()?.socket()).collect();
        let mut lenders: Vec<Socket> = lenders(&self.0.slots.borrow());
        self.0.executor.abandon_all();
        let timer = self.timer();
        let mut patience = self.now().plus(RELEASE_PATIENCE);
        timer.arm(patience);
        while self.operations_in_flight() > 0 {
            if self.now() >= patience {
                if lenders.is_empty() && self.count_slots(|state| state != SlotState::Lent) == 0 {
                    return;
                }
                lenders
                    .drain(..)
                    .filter(|socket| socket.unreleased().is_some())
                    .for_each(|socket| socket.abort());
                patience = self.now().plus(RELEASE_PATIENCE);
                timer.arm(patience);
            }
            self.0.executor.forget_wakes();
            self.visit(true);
        }
    }

    /// Operations that the world has not answered yet.
    #[must_use]
    pub fn operations_in_flight(&self) -> usize {
        self.count_slots(|_| true) + self.driver().streams_under_way()
    }

    /// Slots in such states, of those that the world still uses.
    fn count_slots(&self, counts: impl Fn(SlotState) -> bool) -> usize {
        let used = |slot: &&Slot| {
            matches!(slot.state, SlotState::InFlight | SlotState::Orphan | SlotState::Lent)
                && counts(slot.state)
        };
        self.0.slots.borrow().slots.iter().filter(used).count()
    }
}

impl Drop for Inner {
    /// A ring that is dropped with operations in flight leaks what they hold: the kernel may still use it.
    fn drop(&mut self) {
        for slot in &mut self.slots.get_mut().slots {
            if matches!(slot.state, SlotState::InFlight | SlotState::Orphan) {
                std::mem::forget(slot.request.take());
            }
            std::mem::forget(slot.loan.take());
        }
    }
}

impl Slots {
    fn occupy(&mut self) -> Option<u32> {
        if let Some(index) = self.vacant.pop() {
            return Some(index);
        }
        if self.slots.len() == OPS_IN_FLIGHT_MAX {
            return None;
        }
        self.slots.push(Slot {
            generation: 0,
            state: SlotState::Vacant,
            request: None,
            waker: None,
            done: None,
            loan: None,
        });
        Some(self.slots.len() as u32 - 1)
    }

    /// Frees a slot whose operation is done with, or keeps it for its loan; returns who is to be told.
    fn finish(&mut self, index: u32) -> Option<Waker> {
        let slot = &mut self.slots[index as usize];
        if slot.loan.is_none() {
            return self.vacate(index);
        }
        slot.state = SlotState::Lent;
        slot.waker = None;
        None
    }

    /// Frees a slot; returns who is to be told.
    fn vacate(&mut self, index: u32) -> Option<Waker> {
        let slot = &mut self.slots[index as usize];
        slot.state = SlotState::Vacant;
        slot.generation = slot.generation.wrapping_add(1) & Token::GENERATION_MASK;
        slot.waker = None;
        slot.done = None;
        self.vacant.push(index);
        self.queue.pop_front()
    }
}

/// An operation under way. Dropping it asks the world to cancel; the memory stays with the slot until it answers.
pub(super) struct Op<'a> {
    ring: &'a Ring,
    stage: Stage,
}

enum Stage {
    New(Option<Request>),
    InFlight(Token),
    Finished,
}

impl Future for Op<'_> {
    type Output = (io::Result<u32>, Request, Reply);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ring = self.ring;
        match &mut self.stage {
            Stage::New(request) => {
                let slots = &mut *ring.0.slots.borrow_mut();
                let Some(index) = slots.occupy() else {
                    slots.queue.push_back(cx.waker().clone());
                    return Poll::Pending;
                };
                let slot = &mut slots.slots[index as usize];
                let token = Token { slot: index, generation: slot.generation };
                slot.state = SlotState::InFlight;
                slot.waker = Some(cx.waker().clone());
                let request = slot.request.insert(request.take().expect("an operation is submitted once"));
                match &mut *ring.0.driver.borrow_mut() {
                    Driver::Uring(uring) => uring.submit(token, request),
                    Driver::Sim(sim) => sim.submit(token, request),
                }
                self.stage = Stage::InFlight(token);
                Poll::Pending
            }
            Stage::InFlight(token) => {
                let index = token.slot;
                let (result, reply, request, next) = {
                    let slots = &mut *ring.0.slots.borrow_mut();
                    let slot = &mut slots.slots[index as usize];
                    if slot.state != SlotState::Done {
                        if !slot.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                            slot.waker = Some(cx.waker().clone());
                        }
                        return Poll::Pending;
                    }
                    let (result, reply) = slot.done.take().expect("a slot that is done has a result");
                    let request = slot.request.take().expect("a slot that is done has its request");
                    (result, reply, request, slots.finish(index))
                };
                self.stage = Stage::Finished;
                if let Some(waker) = next {
                    waker.wake();
                }
                Poll::Ready((result, request, reply))
            }
            Stage::Finished => panic!("an operation was polled after its end"),
        }
    }
}

impl Op<'_> {
    /// Asks the world to end it now; it completes all the same, and is to be waited for.
    fn cancel(&self) {
        if let Stage::InFlight(token) = self.stage {
            match &mut *self.ring.0.driver.borrow_mut() {
                Driver::Uring(uring) => uring.cancel(token),
                Driver::Sim(sim) => sim.cancel(token),
            }
        }
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        let Stage::InFlight(token) = self.stage else { return };
        let (waker, _request, _done) = {
            let slots = &mut *self.ring.0.slots.borrow_mut();
            let slot = &mut slots.slots[token.slot as usize];
            if slot.state == SlotState::Done {
                let (request, done) = (slot.request.take(), slot.done.take());
                (slots.finish(token.slot), request, done)
            } else {
                slot.state = SlotState::Orphan;
                slot.waker = None;
                (None, None, None)
            }
        };
        if self.ring.0.slots.borrow().slots[token.slot as usize].state == SlotState::Orphan {
            match &mut *self.ring.0.driver.borrow_mut() {
                Driver::Uring(uring) => uring.cancel(token),
                Driver::Sim(sim) => sim.cancel(token),
            }
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A timer that can be armed again and again. Dropped, it is disarmed.
pub struct Timer {
    ring: Ring,
    index: u32,
}

impl Timer {
    /// Expires at `deadline`, instead of whenever it was armed for before.
    pub fn arm(&self, deadline: Moment) {
        let timers = &mut *self.ring.0.timers.borrow_mut();
        let slot = &mut timers.timers[self.index as usize];
        slot.deadline = Some(deadline);
        // An entry that is due no later than this one serves: when it comes up it is put back for later.
        if slot.queued.is_none_or(|queued| queued > deadline) {
            slot.queued = Some(deadline);
            timers.heap.push(Reverse((deadline, self.index)));
        }
    }

    /// Does not expire.
    pub fn disarm(&self) {
        self.ring.0.timers.borrow_mut().timers[self.index as usize].deadline = None;
    }

    /// Ready once the deadline has passed.
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.ring.now();
        let slot = &mut self.ring.0.timers.borrow_mut().timers[self.index as usize];
        if slot.deadline.is_some_and(|deadline| deadline <= now) {
            return Poll::Ready(());
        }
        if !slot.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let timers = &mut *self.ring.0.timers.borrow_mut();
        let slot = &mut timers.timers[self.index as usize];
        slot.deadline = None;
        slot.waker = None;
        slot.vacant = true;
        // While the heap still names this slot it is not given away; the entry's turn does that.
        if slot.queued.is_none() {
            timers.vacant.push(self.index);
        }
    }
}
