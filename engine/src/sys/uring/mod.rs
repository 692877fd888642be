//! The kernel's driver: io_uring set up for one issuer that runs its own completions.
//!
//! Flags are asked for from the best set-up down and given up one by one on older kernels ([`setup`]); what was
//! given up is told in [`super::Capabilities`]. System calls on this thread are counted here, at the only places
//! that make them.

mod handle;
mod helpers;
mod provided;
mod setup;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use io_uring::{IoUring, opcode, squeue, types as uring_types};

pub use handle::{AddressClaim, OsHandle, SockAddr};
pub(crate) use helpers::Sender as HelperSender;
pub(super) use setup::set_up;
pub use setup::{SPLICE_WORKERS_MAX, Setup, SqPoll, UringError, UringOptions};

use self::handle::FixedTable;
use self::helpers::{Help, HelperPool};
use self::provided::{Provided, Step};
use super::arena::{Chunk, LeaseMut};
use super::clock::Moment;
use super::map::{FileMap, Mapping};
use super::op::{
    Completion, File, FileKind, Job, Listener, ListenerKind, Reply, Request, Socket, SocketKind, Token,
};
use super::pages::FreshPages;
use super::pipe::Pipe;
use super::ring::RingCounters;
use super::stamp::FileStamp;
use super::task::Bell;
use super::write_map::WriteMap;
use crate::types::Timestamp;

/// User data with this bit is the driver's own; a token never has it.
const OWN: u64 = 1 << 63;
const OWN_BELL: u64 = OWN;
const OWN_CANCEL: u64 = OWN | 1;
const OWN_ACCEPT: u64 = OWN | 1 << 32;
const OWN_RECEIVE: u64 = OWN | 1 << 33;

/// `IORING_SEND_ZC_REPORT_USAGE`, and what a release notice then says of a send that was copied after all
/// (`IORING_NOTIF_USAGE_ZC_COPIED`).
const REPORT_USAGE: u16 = 1 << 3;
const USAGE_COPIED: i32 = 1 << 31;

/// Chunks of memory that can be registered at once.
pub(super) const FIXED_BUFFERS: u32 = 1024;

/// Linux 6.14; the C library does not have it yet.
const RWF_DONTCACHE: i32 = 0x80;

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
    sends_zero_copy: bool,
    /// Release notices that are to come.
    releases: u32,
    /// Where what nobody wants goes; opened when first wanted.
    nowhere: Option<OwnedFd>,
    acceptors: Vec<Acceptor>,
    provided: Option<Provided>,
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
        setup::bound_workers(&ring)
            .map_err(|source| UringError::Other { what: "a bound on io_uring's workers", source })?;
        let fixed_files = Rc::new(match options.registered_files {
            true => FixedTable::register(&ring),
            false => FixedTable::default(),
        });
        let table = || ring.submitter().register_buffers_sparse(FIXED_BUFFERS).is_ok();
        // A table that is full from the beginning takes nothing.
        let fixed_buffers = if options.registered_buffers && table() { 0 } else { FIXED_BUFFERS };
        let sends_zero_copy = setup::knows(&ring, opcode::SendZc::CODE);
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
            sends_zero_copy,
            releases: 0,
            nowhere: None,
            acceptors: Vec::new(),
            provided: None,
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

    pub(crate) fn sends_zero_copy(&self) -> bool {
        self.sends_zero_copy
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
        Socket(Rc::new(SocketKind::Os(self.adopt(fd, false, None))), Rc::default())
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

    /// All sockets here are non-blocking: the flag alone is about the pipe, and one without bytes would be waited for.
    pub(crate) fn splice_from_socket(
        &mut self,
        socket: &Socket,
        bytes: usize,
        pipe: &Pipe,
    ) -> io::Result<usize> {
        let (from, to, nowhere) = (socket_fd(socket), pipe.write_end(), std::ptr::null_mut());
        self.counters.system_calls += 1;
        // SAFETY: both descriptors are open (their handles are borrowed).
        let taken = unsafe { libc::splice(from, nowhere, to, nowhere, bytes, libc::SPLICE_F_NONBLOCK) };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as usize) }
    }

    pub(crate) fn tee(&mut self, from: &Pipe, to: &Pipe, bytes: usize) -> io::Result<usize> {
        self.counters.system_calls += 1;
        // SAFETY: both descriptors are open (their pipes are borrowed).
        let shared = unsafe { libc::tee(from.read_end(), to.write_end(), bytes, libc::SPLICE_F_NONBLOCK) };
        if shared < 0 { Err(io::Error::last_os_error()) } else { Ok(shared as usize) }
    }

    pub(crate) fn discard(&mut self, pipe: &Pipe, bytes: usize) -> io::Result<usize> {
        if self.nowhere.is_none() {
            self.counters.system_calls += 1;
            self.nowhere = Some(std::fs::OpenOptions::new().write(true).open("/dev/null")?.into());
        }
        let to = self.nowhere.as_ref().expect("opened above").as_raw_fd();
        let (from, nothing) = (pipe.read_end(), std::ptr::null_mut());
        self.counters.system_calls += 1;
        // SAFETY: both descriptors are open (the pipe is borrowed, the other is ours).
        let gone = unsafe { libc::splice(from, nothing, to, nothing, bytes, libc::SPLICE_F_NONBLOCK) };
        if gone < 0 { Err(io::Error::last_os_error()) } else { Ok(gone as usize) }
    }

    /// `bytes` must lie in pages that are never written again.
    pub(crate) fn vmsplice(&mut self, bytes: &[u8], pipe: &Pipe) -> io::Result<usize> {
        let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.counters.system_calls += 1;
        // SAFETY: the pipe is open (borrowed) and `vector` names borrowed memory; the kernel takes its own references to
        // the pages and only reads them. They belong to a `Pages`, which cannot be written: see there.
        let taken = unsafe { libc::vmsplice(pipe.write_end(), &vector, 1, libc::SPLICE_F_NONBLOCK) };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as usize) }
    }

    pub(crate) fn unmap(&self, memory: FreshPages) {
        self.helpers.sender().send_unanswered(Job::UnmapPages(memory));
    }

    pub(crate) fn is_resident(&mut self, file: &File, at: u64, bytes: u64) -> bool {
        self.counters.system_calls += 1;
        super::residency::residency_of(file_fd(file), at, bytes)
            .is_ok_and(|residency| residency.cached_pages >= residency.pages)
    }

    /// What `map` shows of `[at, at + bytes)`, copied into the socket's queue.
    pub(crate) fn send_mapped(
        &mut self,
        socket: &Socket,
        map: &FileMap,
        at: u64,
        bytes: u64,
        more: bool,
    ) -> io::Result<usize> {
        let from = map.os().pointer(at, bytes);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
        self.counters.system_calls += 1;
        // SAFETY: the socket is open (its handle is borrowed); the range lies within the mapping (`pointer` asserts it),
        // which stays for the whole call. Where nothing is behind it any more the kernel says EFAULT.
        let sent = unsafe { libc::send(socket_fd(socket), from, bytes as usize, flags) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    pub(crate) fn adopt_map(&self, mapping: std::sync::Arc<Mapping>) -> FileMap {
        FileMap::of_kernel(mapping, self.helpers.sender())
    }

    pub(crate) fn stamp(&mut self, file: &File) -> io::Result<FileStamp> {
        self.counters.system_calls += 1;
        super::stamp::stamp_of(file_fd(file))
    }

    /// Gives a mapping to a helper when it is not used any more.
    pub(crate) fn unmapper(&self) -> Box<dyn Fn(WriteMap) + Send + Sync> {
        let helpers = self.helpers.sender();
        Box::new(move |mapping| helpers.send_unanswered(Job::UnmapWindow(mapping)))
    }

    pub(crate) fn file_bytes(&mut self, file: &File) -> io::Result<u64> {
        self.counters.system_calls += 1;
        // SAFETY: the handle keeps its descriptor open for the whole call.
        let fd = unsafe { BorrowedFd::borrow_raw(file_fd(file)) };
        Ok(nix::sys::stat::fstat(fd)?.st_size as u64)
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
            Request::RecvProvided { socket, stream } => return self.receive(token, socket, *stream),
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
            Request::SendZeroCopy { socket, loan, fixed, more } => {
                let lease =
                    loan.as_ref().expect("a loan is with its request until the first completion").lease();
                let (pointer, bytes) = (lease.as_ptr(), lease.len() as u32);
                opcode::SendZc::new(on(socket_handle(socket), &mut flags), pointer, bytes)
                    .buf_index(*fixed)
                    .flags(send_flags(*more))
                    .zc_flags(REPORT_USAGE)
                    .build()
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
            Request::WriteGather { file, at, from, uncached } => {
                self.counters.writes += 1;
                self.counters.write_bytes += from.bytes() as u64;
                let (vectors, count) = from.vectors();
                let write_flags = if *uncached { RWF_DONTCACHE } else { 0 };
                opcode::Writev::new(on(file_handle(file), &mut flags), vectors, count)
                    .offset(*at)
                    .rw_flags(write_flags)
                    .build()
            }
            Request::ReadPages { file, at, into, filled } => {
                let (pointer, bytes) = into.rest(*filled);
                opcode::Read::new(on(file_handle(file), &mut flags), pointer, bytes as u32)
                    .offset(*at)
                    .build()
            }
            Request::SpliceIn { file, at, bytes, pipe } => {
                let (from, to) = (uring_types::Fd(file_fd(file)), uring_types::Fd(pipe.write_end()));
                opcode::Splice::new(from, *at as i64, to, -1, *bytes as u32).build()
            }
            Request::SpliceToFile { file, at, bytes, pipe } => {
                self.counters.writes += 1;
                self.counters.write_bytes += *bytes as u64;
                let (from, to) = (uring_types::Fd(pipe.read_end()), uring_types::Fd(file_fd(file)));
                opcode::Splice::new(from, -1, to, *at as i64, *bytes as u32).build()
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
            Request::Readable(socket) => {
                let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
                opcode::PollAdd::new(on(socket_handle(socket), &mut flags), events).build()
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
        if let Some(provided) = &mut self.provided
            && provided.forget(token)
        {
            let result = Err(io::Error::from_raw_os_error(libc::ECANCELED));
            self.done.push_back(Completion { token, result, reply: Reply::None });
            return;
        }
        self.push(opcode::AsyncCancel::new(token.to_bits()).build().user_data(OWN_CANCEL));
    }

    // ---- provided buffers --------------------------------------------------------------------------------------

    pub(crate) fn prepare_incoming(&mut self) -> io::Result<()> {
        if self.provided.is_none() {
            let missing = |words| io::Error::new(io::ErrorKind::Unsupported, words);
            // It came with the same kernel.
            if !self.setup.granted.contains(&"SINGLE_ISSUER") {
                return Err(missing("standing receives need Linux 6.0 or newer".to_owned()));
            }
            self.counters.system_calls += 1;
            let registered = Provided::register(&self.ring);
            self.provided =
                Some(registered.map_err(|error| missing(format!("no table of buffers: {error}")))?);
        }
        Ok(())
    }

    fn streams(&mut self) -> &mut Provided {
        self.provided.as_mut().expect("the ring was made ready for streams")
    }

    pub(crate) fn begin_stream(&mut self) -> u32 {
        self.streams().begin_stream()
    }

    pub(crate) fn end_stream(&mut self, stream: u32) {
        if self.streams().end_stream(stream) == Step::Cancel {
            self.cancel_stream(stream);
        }
    }

    pub(crate) fn streams_under_way(&self) -> usize {
        self.provided.as_ref().map_or(0, Provided::under_way)
    }

    pub(crate) fn provided(&self) -> usize {
        self.provided.as_ref().map_or(0, Provided::count)
    }

    pub(crate) fn provide(&mut self, buffer: LeaseMut) -> Option<LeaseMut> {
        self.streams().provide(buffer)
    }

    fn receive(&mut self, token: Token, socket: &Socket, stream: u32) {
        let provided = self.provided.as_mut().expect("the ring was made ready for streams");
        if provided.ask(stream, token, &mut self.done) == Step::Arm {
            let mut flags = squeue::Flags::empty();
            let entry =
                opcode::RecvMulti::new(on(socket_handle(socket), &mut flags), provided::GROUP).build();
            self.push(entry.flags(flags).user_data(OWN_RECEIVE | u64::from(stream)));
        }
    }

    fn note_received(&mut self, stream: u32, result: io::Result<u32>, flags: u32) {
        let (number, more) = (io_uring::cqueue::buffer_select(flags), io_uring::cqueue::more(flags));
        let provided = self.provided.as_mut().expect("the ring was made ready for streams");
        if provided.note(stream, result, number, more, &mut self.done) == Step::Cancel {
            self.cancel_stream(stream);
        }
    }

    fn cancel_stream(&mut self, stream: u32) {
        let standing = OWN_RECEIVE | u64::from(stream);
        self.push(opcode::AsyncCancel::new(standing).build().user_data(OWN_CANCEL));
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
            if io_uring::cqueue::notif(entry.flags()) {
                self.releases -= 1;
                let (token, copied) =
                    (Token::from_bits(entry.user_data()), entry.result() & USAGE_COPIED != 0);
                return Some(Completion { token, result: Ok(0), reply: Reply::Released { copied } });
            }
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
                own if own & OWN_RECEIVE == OWN_RECEIVE => {
                    let (stream, flags) = ((own & 0xffff_ffff) as u32, entry.flags());
                    self.note_received(stream, result, flags);
                }
                bits => {
                    // Of operations that have tokens only a zero-copy send answers twice.
                    let lent = io_uring::cqueue::more(entry.flags());
                    self.releases += u32::from(lent);
                    let reply = if lent { Reply::Lent } else { Reply::None };
                    return Some(Completion { token: Token::from_bits(bits), result, reply });
                }
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Buffers are unregistered with the ring; nothing of ours may still be in flight (the slots are gone). Older
        // kernels would wait for what is still lent: there the end of the ring does it.
        if self.releases == 0 {
            let _ = self.ring.submitter().unregister_buffers();
        }
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
