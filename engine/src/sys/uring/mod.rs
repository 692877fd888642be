//! The kernel's driver: io_uring set up for one issuer that runs its own completions.
//!
//! Flags are asked for from the best set-up down and given up one by one on older kernels ([`setup`]); what was
//! given up is told in [`super::Capabilities`]. System calls on this thread are counted here, at the only places
//! that make them.

mod handle;
mod helpers;
mod setup;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use io_uring::{IoUring, opcode, squeue, types as uring_types};

pub use handle::{AddressClaim, OsHandle, SockAddr};
pub use setup::{Setup, SqPoll, UringError, UringOptions};

use self::handle::FixedTable;
use self::helpers::{Help, HelperPool};
use super::arena::Chunk;
use super::clock::Moment;
use super::op::{
    Completion, File, FileKind, Listener, ListenerKind, Reply, Request, Socket, SocketKind, Token,
};
use super::pipe::Pipe;
use super::ring::RingCounters;
use super::task::Bell;
use crate::types::Timestamp;

/// User data with this bit is the driver's own; a token never has it.
const OWN: u64 = 1 << 63;
const OWN_BELL: u64 = OWN;
const OWN_CANCEL: u64 = OWN | 1;
const OWN_ACCEPT: u64 = OWN | 1 << 32;

/// Chunks of memory that can be registered at once.
const FIXED_BUFFERS: u32 = 1024;

/// One thread's io_uring.
pub struct Uring {
    // Field order is drop order: the ring goes first, so that the kernel lets go of memory before it is freed.
    ring: IoUring,
    /// The index under which this ring's descriptor is registered with the thread, if the kernel could.
    enter_fd: i32,
    enter_flags: u32,
    setup: Setup,
    options: UringOptions,
    helpers: HelperPool,
    bell: Rc<BellFd>,
    bell_value: Box<u64>,
    bell_armed: bool,
    fixed_files: Rc<FixedTable>,
    fixed_buffers: u32,
    acceptors: Vec<Acceptor>,
    done: VecDeque<Completion>,
    counters: RingCounters,
    last_visit: Moment,
}

/// A listener with its standing multishot accept.
struct Acceptor {
    fd: RawFd,
    armed: bool,
    backlog: VecDeque<io::Result<OwnedFd>>,
    waiting: Option<Token>,
}

/// The eventfd that wakes this ring's wait.
pub(crate) struct BellFd(OwnedFd);

pub(crate) struct EventBell(OwnedFd);

impl Bell for EventBell {
    fn ring(&self) {
        ring_bell(self.0.as_raw_fd());
    }
}

fn ring_bell(fd: RawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes are read from `one`, which lives through the call. A full counter (EAGAIN) is a bell
    // that rings already.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}

impl Uring {
    /// Sets up a ring for the calling thread, with the bell that wakes its wait.
    pub(crate) fn new(options: &UringOptions) -> Result<(Uring, EventBell), UringError> {
        let (ring, setup) = setup::set_up(options)?;
        let bell = nix::sys::eventfd::EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| UringError::Other { what: "eventfd", source: errno.into() })?;
        let bell = OwnedFd::from(bell);
        let outside = bell.try_clone().map_err(|source| UringError::Other { what: "eventfd", source })?;
        let for_helpers = bell.try_clone().map_err(|source| UringError::Other { what: "eventfd", source })?;
        let helpers = HelperPool::start(options.helpers, for_helpers)
            .map_err(|source| UringError::Other { what: "helper thread", source })?;
        let fixed_files = Rc::new(match options.registered_files {
            true => FixedTable::register(&ring),
            false => FixedTable::default(),
        });
        let table = || ring.submitter().register_buffers_sparse(FIXED_BUFFERS).is_ok();
        // A table that is full from the beginning takes nothing.
        let fixed_buffers = if options.registered_buffers && table() { 0 } else { FIXED_BUFFERS };
        let (enter_fd, enter_flags) = match setup::register_ring_fd(ring.as_raw_fd()) {
            Ok(index) => (index, setup::ENTER_REGISTERED_RING),
            Err(_) => (ring.as_raw_fd(), 0),
        };
        let mut uring = Uring {
            ring,
            enter_fd,
            enter_flags,
            setup,
            options: *options,
            helpers,
            bell: Rc::new(BellFd(bell)),
            bell_value: Box::new(0),
            bell_armed: false,
            fixed_files,
            fixed_buffers,
            acceptors: Vec::new(),
            done: VecDeque::with_capacity(256),
            counters: RingCounters::default(),
            last_visit: Moment(0),
        };
        uring.arm_bell();
        uring.last_visit = uring.now();
        Ok((uring, EventBell(outside)))
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(crate) fn options(&self) -> &UringOptions {
        &self.options
    }

    pub(crate) fn now(&self) -> Moment {
        let now = clock(libc::CLOCK_MONOTONIC);
        Moment(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    pub(crate) fn wall_clock(&self) -> Timestamp {
        let now = clock(libc::CLOCK_REALTIME);
        Timestamp(now.tv_sec * 1000 + now.tv_nsec / 1_000_000)
    }

    pub(crate) fn random_u64(&mut self) -> u64 {
        let mut bytes = [0u8; 8];
        self.counters.system_calls += 1;
        // SAFETY: eight bytes are written into `bytes`. Up to 256 bytes are never interrupted or cut short.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        assert_eq!(got, 8, "getrandom gave {got} of 8 bytes");
        u64::from_ne_bytes(bytes)
    }

    pub(crate) fn counters(&self) -> RingCounters {
        self.counters
    }

    // ---- handles -----------------------------------------------------------------------------------------------

    pub(crate) fn adopt_file(&mut self, fd: OwnedFd, direct: bool) -> File {
        let closer = Some(self.helpers.sender());
        File(Rc::new(FileKind::Os(self.adopt(fd, direct, closer))))
    }

    pub(crate) fn adopt_shared(&self, fd: std::sync::Arc<OwnedFd>, direct: bool) -> File {
        let handle = OsHandle::of_another_ring(fd, direct, &self.fixed_files, self.helpers.sender());
        File(Rc::new(FileKind::Os(handle)))
    }

    fn adopt_socket(&mut self, fd: OwnedFd) -> Socket {
        Socket(Rc::new(SocketKind::Os(self.adopt(fd, false, None))))
    }

    fn adopt(&mut self, fd: OwnedFd, direct: bool, closer: Option<helpers::Sender>) -> OsHandle {
        self.counters.system_calls += 1;
        OsHandle::new(fd, direct, &self.fixed_files, &self.ring, closer)
    }

    pub(crate) fn listen(&mut self, address: SocketAddr, shared: bool) -> io::Result<Listener> {
        let (fd, address) = handle::listening_socket(address, shared)?;
        self.acceptors.push(Acceptor {
            fd: fd.as_raw_fd(),
            armed: false,
            backlog: VecDeque::new(),
            waiting: None,
        });
        let handle = self.adopt(fd, false, None);
        Ok(Listener(Rc::new(ListenerKind::Os { handle, address })))
    }

    pub(crate) fn stream_socket(&mut self, address: SocketAddr) -> io::Result<Socket> {
        let fd = handle::stream_socket(address)?;
        Ok(self.adopt_socket(fd))
    }

    pub(crate) fn adopt_stream(&mut self, stream: std::net::TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(self.adopt_socket(stream.into()))
    }

    /// The index of the chunk among the registered buffers; `None` when the table is full.
    pub(crate) fn register_chunk(&mut self, chunk: &Chunk) -> io::Result<Option<u16>> {
        if self.fixed_buffers == FIXED_BUFFERS {
            return Ok(None);
        }
        let index = self.fixed_buffers;
        self.counters.system_calls += 1;
        // SAFETY: the chunk is adopted by the arena right after this, and unmapped only when the arena and all
        // leases are gone; `Uring` is dropped before its arena (see `Ring`), which unregisters all buffers.
        let registered =
            unsafe { self.ring.submitter().register_buffers_update(index, &[chunk.as_iovec()], None) };
        registered.map(|_| {
            self.fixed_buffers += 1;
            Some(index as u16)
        })
    }

    // ---- inline ------------------------------------------------------------------------------------------------

    pub(crate) fn sendfile(
        &mut self,
        socket: &Socket,
        file: &File,
        at: u64,
        bytes: u64,
    ) -> io::Result<usize> {
        let mut at = at as libc::off_t;
        self.counters.system_calls += 1;
        // SAFETY: both descriptors are open (their handles are borrowed) and `at` lives through the call.
        let sent = unsafe { libc::sendfile(socket_fd(socket), file_fd(file), &mut at, bytes as usize) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    pub(crate) fn splice_in(&mut self, file: &File, at: u64, bytes: usize, pipe: &Pipe) -> io::Result<usize> {
        let mut at = at as libc::loff_t;
        let (from, to, nowhere) = (file_fd(file), pipe.write_end(), std::ptr::null_mut());
        self.counters.system_calls += 1;
        // SAFETY: both descriptors are open (their handles are borrowed) and `at` lives through the call.
        let taken = unsafe { libc::splice(from, &mut at, to, nowhere, bytes, libc::SPLICE_F_NONBLOCK) };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as usize) }
    }

    pub(crate) fn splice_out(&mut self, pipe: &Pipe, socket: &Socket, more: bool) -> io::Result<usize> {
        let flags = libc::SPLICE_F_NONBLOCK | if more { libc::SPLICE_F_MORE } else { 0 };
        let (from, to, nowhere) = (pipe.read_end(), socket_fd(socket), std::ptr::null_mut());
        self.counters.system_calls += 1;
        // SAFETY: both descriptors are open (their handles are borrowed).
        let sent = unsafe { libc::splice(from, nowhere, to, nowhere, pipe.held(), flags) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    pub(crate) fn is_resident(&mut self, file: &File, at: u64, bytes: u64) -> bool {
        self.counters.system_calls += 1;
        super::residency::residency_of(file_fd(file), at, bytes)
            .is_ok_and(|residency| residency.cached_pages >= residency.pages)
    }

    pub(crate) fn has_name(&mut self, file: &File) -> bool {
        self.counters.system_calls += 1;
        // SAFETY: the handle keeps its descriptor open for the whole call.
        let fd = unsafe { BorrowedFd::borrow_raw(file_fd(file)) };
        nix::sys::stat::fstat(fd).map_or(true, |stat| stat.st_nlink > 0)
    }

    // ---- submitting --------------------------------------------------------------------------------------------

    pub(crate) fn submit(&mut self, token: Token, request: &mut Request) {
        self.counters.submissions += 1;
        let mut flags = squeue::Flags::empty();
        let entry = match request {
            Request::Accept(listener) => return self.accept(token, listener),
            Request::Help { job, file } => {
                let job = job.take().expect("a job is submitted once");
                let fd = file.as_ref().map(file_fd);
                return self.helpers.submit(Help { token, job, fd });
            }
            Request::Connect { socket, address } => {
                let (pointer, bytes) = address.as_parts();
                opcode::Connect::new(on(socket_handle(socket), &mut flags), pointer, bytes).build()
            }
            Request::Recv { socket, into, all } => {
                let wait_all = if *all { libc::MSG_WAITALL } else { 0 };
                let (pointer, bytes) = (into.as_mut_ptr(), into.len() as u32);
                opcode::Recv::new(on(socket_handle(socket), &mut flags), pointer, bytes)
                    .flags(wait_all)
                    .build()
            }
            Request::Send { socket, from, more } => {
                let (pointer, bytes) = (from.as_ptr(), from.len() as u32);
                opcode::Send::new(on(socket_handle(socket), &mut flags), pointer, bytes)
                    .flags(send_flags(*more))
                    .build()
            }
            Request::SendGather { socket, from, more } => {
                let message = from.message();
                let send_flags = send_flags(*more) as u32;
                opcode::SendMsg::new(on(socket_handle(socket), &mut flags), message).flags(send_flags).build()
            }
            Request::Read { file, at, into } => {
                let (pointer, bytes) = (into.as_mut_ptr(), into.len() as u32);
                let to = on(file_handle(file), &mut flags);
                match into.fixed() {
                    Some(index) => opcode::ReadFixed::new(to, pointer, bytes, index).offset(*at).build(),
                    None => opcode::Read::new(to, pointer, bytes).offset(*at).build(),
                }
            }
            Request::Write { file, at, from } => {
                let (pointer, bytes) = (from.as_ptr(), from.len() as u32);
                let to = on(file_handle(file), &mut flags);
                self.counters.writes += 1;
                self.counters.write_bytes += u64::from(bytes);
                match from.fixed() {
                    Some(index) => opcode::WriteFixed::new(to, pointer, bytes, index).offset(*at).build(),
                    None => opcode::Write::new(to, pointer, bytes).offset(*at).build(),
                }
            }
            Request::WriteGather { file, at, from } => {
                self.counters.writes += 1;
                self.counters.write_bytes += from.bytes() as u64;
                let (vectors, count) = from.vectors();
                opcode::Writev::new(on(file_handle(file), &mut flags), vectors, count).offset(*at).build()
            }
            Request::Sync { file } => {
                self.counters.syncs += 1;
                opcode::Fsync::new(on(file_handle(file), &mut flags))
                    .flags(uring_types::FsyncFlags::DATASYNC)
                    .build()
            }
            Request::Writable(socket) => {
                opcode::PollAdd::new(on(socket_handle(socket), &mut flags), libc::POLLOUT as u32).build()
            }
        };
        self.push(entry.flags(flags).user_data(token.to_bits()));
    }

    pub(crate) fn cancel(&mut self, token: Token) {
        for acceptor in &mut self.acceptors {
            if acceptor.waiting == Some(token) {
                acceptor.waiting = None;
                let result = Err(io::Error::from_raw_os_error(libc::ECANCELED));
                self.done.push_back(Completion { token, result, reply: Reply::None });
                return;
            }
        }
        self.push(opcode::AsyncCancel::new(token.to_bits()).build().user_data(OWN_CANCEL));
    }

    fn accept(&mut self, token: Token, listener: &Listener) {
        let ListenerKind::Os { handle, .. } = &*listener.0 else { unreachable!("a simulated listener") };
        let fd = handle.fd();
        let index = self.acceptors.iter().rposition(|a| a.fd == fd).expect("a listener has its acceptor");
        let acceptor = &mut self.acceptors[index];
        assert!(acceptor.waiting.is_none(), "one task accepts from a listener");
        acceptor.waiting = Some(token);
        if acceptor.backlog.is_empty() && !acceptor.armed {
            acceptor.armed = true;
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let entry = opcode::AcceptMulti::new(uring_types::Fd(fd)).flags(flags).build();
            self.push(entry.user_data(OWN_ACCEPT | index as u64));
        }
        self.hand_out_connection(index);
    }

    fn hand_out_connection(&mut self, index: usize) {
        let acceptor = &mut self.acceptors[index];
        if acceptor.backlog.is_empty() {
            return;
        }
        let Some(token) = acceptor.waiting.take() else { return };
        let completion = match acceptor.backlog.pop_front().expect("checked above") {
            Ok(fd) => {
                handle::set_no_delay(fd.as_raw_fd());
                self.counters.system_calls += 1;
                Completion { token, result: Ok(0), reply: Reply::Socket(self.adopt_socket(fd)) }
            }
            Err(error) => Completion { token, result: Err(error), reply: Reply::None },
        };
        self.done.push_back(completion);
    }

    fn arm_bell(&mut self) {
        self.bell_armed = true;
        let into: *mut u64 = &mut *self.bell_value;
        let entry = opcode::Read::new(uring_types::Fd(self.bell.0.as_raw_fd()), into.cast(), 8).build();
        self.push(entry.user_data(OWN_BELL));
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: whatever the entry points to is owned by the operation's slot (a `Request`) or by this
            // driver (the bell's value) until the completion arrives, and does not move: lease memory and boxes.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.visit(0, None);
        }
    }

    // ---- the visit to the kernel -------------------------------------------------------------------------------

    pub(crate) fn enter(&mut self, wait: bool, deadline: Option<Moment>) {
        self.fixed_files.retire(&self.ring, &mut self.counters.system_calls);
        if !self.bell_armed {
            self.arm_bell();
        }
        let wait = wait
            && self.done.is_empty()
            && self.ring.completion().is_empty()
            && self.helpers.idle_or_waiting();
        let now = self.now();
        self.counters.longest_tick_nanos =
            self.counters.longest_tick_nanos.max(now.nanos_since(self.last_visit));
        let submission = self.ring.submission();
        let pending = match self.options.sqpoll {
            None => !submission.is_empty(),
            // What is queued is taken by itself while the kernel's thread is awake.
            Some(_) => !submission.is_empty() && submission.need_wakeup(),
        };
        let deferred = submission.taskrun();
        drop(submission);
        if wait || pending || deferred {
            let timeout = deadline.map(|deadline| deadline.nanos_since(now));
            self.visit(u32::from(wait && timeout != Some(0)), timeout);
        }
        self.last_visit = self.now();
    }

    /// Submits what is queued, runs completions, waits for `at_least` of them.
    fn visit(&mut self, at_least: u32, timeout_nanos: Option<u64>) {
        let submission = self.ring.submission();
        let queued = submission.len() as u32;
        let mut flags = self.enter_flags;
        if self.options.sqpoll.is_some() {
            flags |= if submission.need_wakeup() { setup::ENTER_SQ_WAKEUP } else { 0 };
            flags |= if submission.is_full() { setup::ENTER_SQ_WAIT } else { 0 };
        }
        drop(submission);
        self.counters.system_calls += 1;
        self.counters.enters += 1;
        let timeout = if at_least > 0 { timeout_nanos } else { None };
        match setup::enter(self.enter_fd, queued, at_least, flags, timeout) {
            Ok(_) => {}
            // A signal, the time-out, or a full completion queue that the caller is about to empty.
            Err(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => {}
            Err(errno) => panic!("io_uring_enter failed: {}", io::Error::from_raw_os_error(errno)),
        }
    }

    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.done.pop_front() {
                return Some(completion);
            }
            if let Some((token, result, reply)) = self.helpers.next_reply() {
                return Some(Completion { token, result, reply });
            }
            let entry = self.ring.completion().next()?;
            let result = match entry.result() {
                n if n >= 0 => Ok(n as u32),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            };
            match entry.user_data() {
                OWN_BELL => self.bell_armed = false,
                OWN_CANCEL => {}
                own if own & OWN_ACCEPT == OWN_ACCEPT => {
                    let index = (own & 0xffff_ffff) as usize;
                    let more = io_uring::cqueue::more(entry.flags());
                    // SAFETY: a non-negative result of an accept is a new descriptor that nobody else owns.
                    let connection = result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
                    self.acceptors[index].armed &= more;
                    self.acceptors[index].backlog.push_back(connection);
                    self.hand_out_connection(index);
                }
                bits => {
                    return Some(Completion { token: Token::from_bits(bits), result, reply: Reply::None });
                }
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Buffers are unregistered with the ring; nothing of ours may still be in flight (the slots are gone).
        let _ = self.ring.submitter().unregister_buffers();
    }
}

fn clock(id: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(id, &mut now) };
    now
}

fn send_flags(more: bool) -> i32 {
    // MSG_WAITALL lets the kernel go on after a short send, so that a completion means all or an error.
    libc::MSG_NOSIGNAL | libc::MSG_WAITALL | if more { libc::MSG_MORE } else { 0 }
}

/// How an entry names a handle: by its place in the registered table where it has one, which `flags` then says.
fn on(handle: &OsHandle, flags: &mut squeue::Flags) -> uring_types::Fd {
    match handle.fixed() {
        Some(index) => {
            *flags |= squeue::Flags::FIXED_FILE;
            uring_types::Fd(index as i32)
        }
        None => uring_types::Fd(handle.fd()),
    }
}

fn socket_handle(socket: &Socket) -> &OsHandle {
    match &*socket.0 {
        SocketKind::Os(handle) => handle,
        SocketKind::Sim(_) => unreachable!("a simulated socket on the kernel's ring"),
    }
}

fn file_handle(file: &File) -> &OsHandle {
    match &*file.0 {
        FileKind::Os(handle) => handle,
        FileKind::Sim(_) => unreachable!("a simulated file on the kernel's ring"),
    }
}

fn socket_fd(socket: &Socket) -> RawFd {
    socket_handle(socket).fd()
}

fn file_fd(file: &File) -> RawFd {
    file_handle(file).fd()
}
