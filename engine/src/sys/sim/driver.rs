//! The ring's driver in the simulated world: takes requests, and carries out those about files.
//!
//! An operation has two moments after its submission: its effect, when it touches memory and the disk, and its
//! completion. Memory is reached by raw pointers, as the kernel does it: the operation's slot keeps it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::disk::{DiskEvent, NameChange, Node};
use super::pipes::SimPipe;
use super::world::{Address, Due, Outcome, State, World};
use crate::sys::BLOCK_BYTES;
use crate::sys::arena::{Arena, Chunk, Lease, LeaseMut, PageKind};
use crate::sys::clock::Moment;
use crate::sys::flushes::Flushes;
use crate::sys::gather::Gather;
use crate::sys::incoming::PROVIDED_BUFFERS;
use crate::sys::map::{FileMap, MapKind};
use crate::sys::op::{
    Completion, DirEntry, DirLock, File, FileKind, Job, Listener, LockKind, OpenOptions, Reply, Request,
    Socket, SocketKind, Token,
};
use crate::sys::pages::FreshPages;
use crate::sys::refusal::{about, failed_flush};
use crate::sys::ring::RingCounters;
use crate::sys::stamp::FileStamp;
use crate::sys::write_map::WriteMap;
use crate::types::Timestamp;

/// What one visit without waiting takes of the thread's time.
const VISIT_NANOS: u64 = 300;

/// An open file of the simulated world.
#[derive(Clone)]
pub(crate) struct SimFile {
    pub(super) inode: u64,
    pub(super) path: PathBuf,
    options: OpenOptions,
    /// As long as somebody has it open.
    life: Arc<()>,
}

impl SimFile {
    pub(crate) fn is_direct(&self) -> bool {
        self.options.direct
    }

    pub(crate) fn identity(&self) -> Weak<()> {
        Arc::downgrade(&self.life)
    }
}

/// An exclusive claim in the simulated world.
pub(crate) struct SimLock {
    locks: Locks,
    path: PathBuf,
}

/// What is claimed in a world. Behind a lock since claims may be given up on any thread, as the kernel's are.
pub(super) type Locks = Arc<Mutex<BTreeSet<PathBuf>>>;

impl Drop for SimLock {
    fn drop(&mut self) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

/// Memory that an operation may use until it completes; a zero-copy send, until it is released.
pub(super) struct Memory(Vec<(*mut u8, usize)>);

impl Memory {
    pub fn of(bytes: &[u8]) -> Memory {
        Memory(vec![(bytes.as_ptr().cast_mut(), bytes.len())])
    }

    pub fn of_mut(bytes: &mut [u8]) -> Memory {
        Memory(vec![(bytes.as_mut_ptr(), bytes.len())])
    }

    /// Memory that an operation owns and writes.
    pub fn of_parts(start: *mut u8, bytes: usize) -> Memory {
        Memory(vec![(start, bytes)])
    }

    pub fn of_gather(gather: &Gather) -> Memory {
        Memory(gather.leases().iter().map(|lease| (lease.as_ptr().cast_mut(), lease.len())).collect())
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    fn is_aligned(&self) -> bool {
        self.0.iter().all(|(start, bytes)| {
            (*start as usize).is_multiple_of(BLOCK_BYTES) && bytes.is_multiple_of(BLOCK_BYTES)
        })
    }

    /// The bytes as they are now.
    pub fn take(&self) -> Vec<u8> {
        self.part(0, self.len())
    }

    /// A part of the bytes as they are now.
    pub fn part(&self, mut skip: usize, bytes: usize) -> Vec<u8> {
        let mut part = Vec::with_capacity(bytes);
        for &(start, length) in &self.0 {
            let skipped = skip.min(length);
            skip -= skipped;
            let now = (length - skipped).min(bytes - part.len());
            // SAFETY: the operation's slot holds the lease until the completion, or the ring leaks it; with the mutant
            // that reuses memory the arena still has it mapped, and all of this happens on one thread. The range
            // lies within the lease.
            part.extend_from_slice(unsafe { std::slice::from_raw_parts(start.add(skipped), now) });
        }
        part
    }

    /// Fills one piece of memory that was made by [`Memory::of_mut`], from `at` on.
    pub fn fill(&self, at: usize, bytes: &[u8]) {
        let (start, length) = self.0[0];
        assert!(at + bytes.len() <= length, "{} bytes at {at} of {length}", bytes.len());
        // SAFETY: the operation's slot holds the `LeaseMut` until the completion, or the ring leaks it, and nobody
        // reads or writes it meanwhile; the range lies within it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.add(at), bytes.len()) };
    }
}

/// What an operation on files will do.
pub(super) enum Effect {
    Read { file: File, at: u64, into: Memory },
    Write { file: File, at: u64, from: Memory },
    SpliceIn { file: File, at: u64, bytes: usize, room: usize, pipe: SimPipe },
    SpliceToFile { file: File, at: u64, bytes: usize, pipe: SimPipe },
    Sync { file: File, before: usize },
    Help { job: Job, file: Option<File> },
}

/// One ring's driver.
pub(crate) struct SimDriver {
    pub(super) world: World,
    pub(super) ring: usize,
}

impl SimDriver {
    pub(super) fn new(world: World, ring: usize) -> SimDriver {
        SimDriver { world, ring }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment(self.world.0.borrow().now)
    }

    pub(crate) fn wall_clock(&self) -> Timestamp {
        Timestamp(1_700_000_000_000 + (self.world.0.borrow().now / 1_000_000) as i64)
    }

    pub(crate) fn random_u64(&mut self) -> u64 {
        self.world.0.borrow_mut().random.u64(..)
    }

    pub(crate) fn counters(&self) -> RingCounters {
        self.world.0.borrow().rings[self.ring].counters
    }

    pub(crate) fn listen(&mut self, address: SocketAddr) -> io::Result<Listener> {
        super::network::listen(&self.world, self.ring, address)
    }

    pub(crate) fn stream_socket(&mut self, address: SocketAddr) -> io::Result<Socket> {
        Ok(super::network::stream_socket(&self.world, self.ring, address))
    }

    pub(crate) fn sends_zero_copy(&self) -> bool {
        !self.world.0.borrow().faults.zero_copy_is_unknown
    }

    pub(crate) fn sendfile(
        &mut self,
        socket: &Socket,
        file: &File,
        at: u64,
        bytes: u64,
    ) -> io::Result<usize> {
        let mut state = self.world.0.borrow_mut();
        state.rings[self.ring].counters.system_calls += 1;
        let file = sim_file(file);
        let room = state.room_to_send(socket)?;
        if state.faults.fails_read(&file.path) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut taken = vec![0; bytes.min(room as u64) as usize];
        let read = state.disk.state.inodes[&file.inode].current.read(at, &mut taken);
        taken.truncate(read);
        state.send_now(socket, &taken);
        Ok(read)
    }

    /// As the kernel does it: behind the end of a file that was cut there are zeros up to the end of the page, and nothing
    /// after that.
    pub(crate) fn send_mapped(
        &mut self,
        socket: &Socket,
        map: &FileMap,
        at: u64,
        bytes: u64,
    ) -> io::Result<usize> {
        let mut state = self.world.0.borrow_mut();
        state.rings[self.ring].counters.system_calls += 1;
        let MapKind::Sim { file, .. } = &map.0 else { unreachable!("maps do not cross between worlds") };
        let room = state.room_to_send(socket)?;
        if state.faults.fails_read(&file.path) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let content = &state.disk.state.inodes[&file.inode].current;
        let mapped_to = content.size.next_multiple_of(BLOCK_BYTES as u64);
        let there = mapped_to.saturating_sub(at).min(bytes).min(room as u64);
        if there == 0 {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let mut taken = vec![0; there as usize];
        content.read(at, &mut taken);
        state.send_now(socket, &taken);
        Ok(taken.len())
    }

    pub(crate) fn stamp(&mut self, file: &File) -> io::Result<FileStamp> {
        let mut state = self.world.0.borrow_mut();
        state.rings[self.ring].counters.system_calls += 1;
        let inode = &state.disk.state.inodes[&sim_file(file).inode];
        Ok(FileStamp { bytes: inode.current.size, modified_nanos: inode.changes as i64 })
    }

    pub(crate) fn has_name(&mut self, file: &File) -> bool {
        let mut state = self.world.0.borrow_mut();
        state.rings[self.ring].counters.system_calls += 1;
        let inode = sim_file(file).inode;
        state.disk.state.names.values().any(|node| matches!(node, Node::File(i) if *i == inode))
    }

    pub(crate) fn is_resident(&mut self, _file: &File, _at: u64, _bytes: u64) -> bool {
        self.world.0.borrow_mut().random.u8(..4) > 0
    }

    pub(crate) fn submit(&mut self, token: Token, request: &mut Request) {
        let mut state = self.world.0.borrow_mut();
        let state = &mut *state;
        let address = (self.ring, token);
        let counters = &mut state.rings[self.ring].counters;
        counters.submissions += 1;
        let effect = match request {
            Request::Read { file, at, into } => {
                Effect::Read { file: file.clone(), at: *at, into: Memory::of_mut(into) }
            }
            Request::Write { file, at, from } => {
                counters.writes += 1;
                counters.write_bytes += from.len() as u64;
                let memory = Memory::of(from);
                if state.faults.reuse_memory_in_flight {
                    *from = copy_of(&state.spare, from);
                }
                Effect::Write { file: file.clone(), at: *at, from: memory }
            }
            Request::WriteGather { uncached: true, .. } if state.faults.direct_is_refused => {
                return state.complete_later(address, Outcome::failed(libc::EOPNOTSUPP));
            }
            Request::WriteGather { file, at, from, .. } => {
                counters.writes += 1;
                counters.write_bytes += from.bytes() as u64;
                let memory = Memory::of_gather(from);
                if state.faults.reuse_memory_in_flight {
                    let copies: Vec<Lease> =
                        from.leases().iter().map(|lease| copy_of(&state.spare, lease)).collect();
                    from.clear();
                    for copy in copies {
                        assert!(from.push(copy).is_ok(), "a gather holds as many leases as before");
                    }
                }
                Effect::Write { file: file.clone(), at: *at, from: memory }
            }
            Request::ReadPages { file, at, into, filled } => {
                let (start, bytes) = into.rest(*filled);
                Effect::Read { file: file.clone(), at: *at, into: Memory::of_parts(start, bytes) }
            }
            Request::SpliceIn { file, at, bytes, pipe } => {
                let (room, into) = (pipe.capacity() - pipe.held(), pipe.simulated_bytes().clone());
                Effect::SpliceIn { file: file.clone(), at: *at, bytes: *bytes, room, pipe: into }
            }
            Request::SpliceToFile { file, at, bytes, pipe } => {
                counters.writes += 1;
                counters.write_bytes += *bytes as u64;
                let from = pipe.simulated_bytes().clone();
                Effect::SpliceToFile { file: file.clone(), at: *at, bytes: *bytes, pipe: from }
            }
            Request::Sync { file } => {
                counters.syncs += 1;
                Effect::Sync { file: file.clone(), before: state.disk.events() }
            }
            Request::Help { job, file } => {
                Effect::Help { job: job.take().expect("a job is submitted once"), file: file.clone() }
            }
            network => return state.submit_network(address, network),
        };
        state.rings[self.ring].under_way.insert(token.to_bits(), effect);
        let latency = state.latency();
        state.after(latency, Due::Effect(address));
    }

    /// A stream is its socket: bytes are received when somebody asks for them.
    pub(crate) fn begin_stream(&mut self, socket: &Socket) -> u32 {
        assert!(matches!(&*socket.0, SocketKind::Sim(_)), "sockets do not cross between worlds");
        0
    }

    pub(crate) fn provided(&self) -> usize {
        self.world.0.borrow().rings[self.ring].provided.len()
    }

    pub(crate) fn provide(&mut self, buffer: LeaseMut) -> Option<LeaseMut> {
        let mut state = self.world.0.borrow_mut();
        let provided = &mut state.rings[self.ring].provided;
        if provided.len() == PROVIDED_BUFFERS {
            return Some(buffer);
        }
        provided.push(buffer);
        None
    }

    /// Operations on files go on; those that wait for a peer end at once.
    pub(crate) fn cancel(&mut self, token: Token) {
        self.world.0.borrow_mut().cancel_network((self.ring, token));
    }

    pub(crate) fn enter(&mut self, wait: bool, deadline: Option<Moment>) {
        let mut state = self.world.0.borrow_mut();
        state.rings[self.ring].counters.enters += 1;
        state.rings[self.ring].counters.system_calls += 1;
        state.now += VISIT_NANOS;
        state.happen();
        while wait
            && state.rings[self.ring].done.is_empty()
            && deadline.is_none_or(|deadline| deadline.0 > state.now)
        {
            state.advance(deadline);
        }
    }

    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        self.world.0.borrow_mut().rings[self.ring].done.pop_front()
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        let mut state = self.world.0.borrow_mut();
        let ring = &mut state.rings[self.ring];
        ring.gone = true;
        let dropped = (
            std::mem::take(&mut ring.done),
            std::mem::take(&mut ring.under_way),
            std::mem::take(&mut ring.provided),
        );
        state.forget_ring(self.ring);
        drop(state);
        drop(dropped); // Handles find the world unborrowed.
    }
}

/// Another lease with the same bytes, from memory that nobody else uses.
fn copy_of(spare: &Arena, lease: &Lease) -> Lease {
    let mut copy = spare.try_lease(lease.len()).unwrap_or_else(|| {
        spare.adopt(
            Chunk::map(lease.len(), PageKind::Transparent).expect("memory for a copy"),
            lease.len(),
            None,
        );
        spare.try_lease(lease.len()).expect("a chunk was just added")
    });
    copy[..lease.len()].copy_from_slice(lease);
    drop(copy.split_off(lease.len()));
    copy.freeze()
}

pub(super) fn sim_file(file: &File) -> &SimFile {
    match &*file.0 {
        FileKind::Sim(file) => file,
        FileKind::Os(_) => unreachable!("a file of the kernel's in the simulated world"),
    }
}

impl State {
    pub(super) fn effect(&mut self, address: Address, effect: Effect) {
        let outcome = match effect {
            Effect::Read { file, at, into } => self.read(sim_file(&file), at, &into),
            Effect::Write { file, at, from } => self.write(sim_file(&file), at, &from),
            Effect::SpliceIn { file, at, bytes, room, pipe } => {
                Outcome::of(self.splice_in(&file, at, bytes.min(room), &pipe).map(|taken| taken as u32))
            }
            Effect::SpliceToFile { file, at, bytes, pipe } => self.splice_to_file(&file, at, bytes, &pipe),
            Effect::Sync { file, before } => self.sync(sim_file(&file), before),
            Effect::Help { job, file } => match self.help(job, file.as_ref()) {
                Ok(outcome) => outcome,
                Err(error) => Outcome::of(Err(error)),
            },
        };
        self.complete_later(address, outcome);
    }

    fn read(&mut self, file: &SimFile, at: u64, into: &Memory) -> Outcome {
        if file.options.direct && !(at.is_multiple_of(BLOCK_BYTES as u64) && into.is_aligned()) {
            return Outcome::failed(libc::EINVAL);
        }
        if self.faults.fails_read(&file.path) {
            return Outcome::failed(libc::EIO);
        }
        let mut bytes = vec![0; into.len()];
        let read = self.disk.state.inodes[&file.inode].current.read(at, &mut bytes);
        into.fill(0, &bytes[..read]);
        Outcome::of(Ok(read as u32))
    }

    fn write(&mut self, file: &SimFile, at: u64, from: &Memory) -> Outcome {
        if file.options.direct && !(at.is_multiple_of(BLOCK_BYTES as u64) && from.is_aligned()) {
            return Outcome::failed(libc::EINVAL);
        }
        self.write_bytes(file, at, from.take())
    }

    pub(super) fn write_bytes(&mut self, file: &SimFile, at: u64, mut data: Vec<u8>) -> Outcome {
        if !file.options.write {
            return Outcome::failed(libc::EBADF);
        }
        if self.faults.fails_write(&file.path) {
            return Outcome::failed(libc::EIO);
        }
        if self.faults.finds_no_room(&file.path) {
            return Outcome::failed(libc::ENOSPC);
        }
        let unit = if file.options.direct { BLOCK_BYTES } else { 1 };
        if self.faults.short_writes > 0.0 && data.len() > unit && self.random.f64() < self.faults.short_writes
        {
            let units = self.random.usize(1..data.len().div_ceil(unit));
            data.truncate(units * unit);
        }
        let bytes = data.len() as u32;
        if bytes == 0 {
            return Outcome::of(Ok(0));
        }
        let (inode, id) = (file.inode, self.disk.new_write());
        self.disk.record(DiskEvent::Wrote { inode, id, at, data: Arc::from(data) });
        let records = vec![DiskEvent::WriteCompleted { inode, id }];
        Outcome { result: Ok(bytes), reply: Reply::None, records }
    }

    fn sync(&mut self, file: &SimFile, before: usize) -> Outcome {
        let inode = file.inode;
        if self.faults.fails_sync(&file.path) {
            self.disk.record(DiskEvent::SyncFailed { inode, before });
            return Outcome::failed(libc::EIO);
        }
        let ignored = self.faults.ignore_syncs;
        let records = if ignored { Vec::new() } else { vec![DiskEvent::Synced { inode, before }] };
        Outcome { result: Ok(0), reply: Reply::None, records }
    }

    fn help(&mut self, job: Job, file: Option<&File>) -> io::Result<Outcome> {
        let file = || file.map(sim_file).ok_or_else(|| io::Error::other("this job is about a file"));
        self.check_space(&job)?;
        self.check_descriptors(&job)?;
        let mut records = Vec::new();
        let reply = match job {
            Job::Open { path, options } => self.open(&path, options).map_err(about("open", &path))?,
            Job::List { path } => Reply::Entries(self.list(&path).map_err(about("list", &path))?),
            Job::MakeDir { path, synced } => {
                self.make_dirs(&tidy(&path)).map_err(about("make", &path))?;
                records.extend(synced.then(|| sync_parent(&path)));
                Reply::None
            }
            Job::SyncDir { path } => {
                let dir = tidy(&path);
                self.node(&dir).ok_or_else(not_found).map_err(about("sync", &path))?;
                records.push(DiskEvent::SyncNames { dir });
                Reply::None
            }
            Job::SyncAll => {
                if self.faults.fails_sync(&file()?.path) {
                    let before = self.disk.events();
                    let files: Vec<u64> = self.disk.state.inodes.keys().copied().collect();
                    files
                        .into_iter()
                        .for_each(|inode| self.disk.record(DiskEvent::SyncFailed { inode, before }));
                    return Ok(Outcome::failed(libc::EIO));
                }
                if !self.faults.ignore_syncs {
                    records.push(DiskEvent::SyncedAll { before: self.disk.events() });
                }
                Reply::None
            }
            Job::Rename { from, to } => {
                self.rename(&tidy(&from), &tidy(&to)).map_err(about("rename", &from))?;
                records.push(sync_parent(&to));
                if from.parent() != to.parent() {
                    records.push(sync_parent(&from));
                }
                Reply::None
            }
            Job::Remove { path } => {
                self.remove(&tidy(&path), false).map_err(about("remove", &path))?;
                records.push(sync_parent(&path));
                Reply::None
            }
            Job::RemoveDir { path } => {
                self.remove(&tidy(&path), true).map_err(about("remove", &path))?;
                records.push(sync_parent(&path));
                Reply::None
            }
            Job::ReadFile { path, bytes_max } => {
                Reply::Bytes(self.read_file(&path, bytes_max).map_err(about("read", &path))?)
            }
            Job::Replace { path, bytes, synced: false } => {
                let path = tidy(&path);
                if self.faults.fails_write(&path) {
                    return Err(about("replace", &path)(io::Error::from_raw_os_error(libc::EIO)));
                }
                let (inode, id) =
                    (self.create(&path).map_err(about("replace", &path))?, self.disk.new_write());
                self.disk.record(DiskEvent::Wrote { inode, id, at: 0, data: Arc::from(bytes) });
                records.push(DiskEvent::WriteCompleted { inode, id });
                Reply::None
            }
            Job::Replace { path, bytes, synced: true } => {
                records.push(self.replace(&path, bytes).map_err(about("replace", &path))?);
                Reply::None
            }
            Job::Prepare { to, .. } => {
                let file = file()?;
                if !file.options.write {
                    return Err(io::Error::from_raw_os_error(libc::EBADF));
                }
                if self.faults.fails_sync(&file.path) {
                    let before = self.disk.events();
                    self.disk.record(DiskEvent::SyncFailed { inode: file.inode, before });
                    return Err(failed_flush(io::Error::from_raw_os_error(libc::EIO)));
                }
                records.push(DiskEvent::Prepared { inode: file.inode, to });
                Reply::None
            }
            Job::Trim { to } => {
                let file = file()?;
                if !file.options.write {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                if self.faults.fails_sync(&file.path) {
                    let before = self.disk.events();
                    self.disk.record(DiskEvent::SyncFailed { inode: file.inode, before });
                    return Err(failed_flush(io::Error::from_raw_os_error(libc::EIO)));
                }
                records.push(DiskEvent::Trimmed { inode: file.inode, to });
                Reply::None
            }
            Job::NextData { at } => {
                let content = &self.disk.state.inodes[&file()?.inode].current;
                Reply::Size(content.next_data(at))
            }
            Job::Size => Reply::Size(self.disk.state.inodes[&file()?.inode].current.size),
            Job::WarmCache { .. } => {
                if self.faults.fails_read(&file()?.path) {
                    return Err(io::Error::from_raw_os_error(libc::EIO));
                }
                Reply::None
            }
            Job::Map { bytes } => Reply::Map(FileMap(MapKind::Sim { file: file()?.clone(), bytes })),
            Job::Populate { from, map, .. } => {
                let file = file()?;
                if self.faults.fails_read(&file.path) {
                    return Err(io::Error::from_raw_os_error(libc::EIO));
                }
                if from >= self.disk.state.inodes[&file.inode].current.size {
                    return Err(io::Error::from_raw_os_error(libc::EFAULT));
                }
                drop(map);
                Reply::None
            }
            Job::Unmap(_) => unreachable!("a simulated map has nothing to unmap"),
            Job::CutAnew { path, to } => {
                let bytes = self.read_head(&path, to).map_err(about("cut", &path))?;
                records.push(self.replace(&path, bytes).map_err(about("cut", &path))?);
                Reply::None
            }
            Job::Flushes { .. } => Reply::Flushes(match self.faults.flushes_are_lost {
                false => Flushes::Reach,
                true => Flushes::DoNotReach("this world was told to lose them".to_owned()),
            }),
            Job::Lock { path } => self.lock(&path)?,
            Job::MapChunk { bytes, pages } => Reply::Chunk(Chunk::map(bytes, pages)?),
            Job::MapPages { bytes } => Reply::Pages(FreshPages::map(bytes)?),
            Job::UnmapPages(pages) => {
                drop(pages);
                Reply::None
            }
            Job::MapWindow { at, bytes } => {
                let there = self.disk.state.inodes[&file()?.inode].current.size;
                if there < at + bytes as u64 {
                    return Err(io::Error::from_raw_os_error(libc::EFAULT));
                }
                Reply::Window(WriteMap::of_nothing(bytes)?)
            }
            Job::UnmapWindow(mapping) => {
                drop(mapping);
                Reply::None
            }
            Job::Close(fd) => {
                drop(fd);
                Reply::None
            }
        };
        Ok(Outcome { result: Ok(0), reply, records })
    }

    /// On a full disk nothing grows; small files can be replaced once somebody has given up a reserve.
    fn check_space(&mut self, job: &Job) -> io::Result<()> {
        if let Job::Replace { path, .. } = job
            && self.faults.finds_no_room(path)
        {
            return Err(about("replace", path)(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        let reserve_is_there = || self.disk.state.names.keys().any(|path| path.ends_with(".reserve"));
        let grows = match job {
            Job::Prepare { .. } => true,
            Job::Open { path, options } => options.create && self.node(&tidy(path)).is_none(),
            Job::MakeDir { path, .. } => self.node(&tidy(path)).is_none(),
            Job::Replace { .. } => reserve_is_there(),
            Job::CutAnew { .. } => true,
            _ => false,
        };
        match self.faults.disk_full && grows {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        }
    }

    /// Whoever opens something needs a descriptor.
    fn check_descriptors(&self, job: &Job) -> io::Result<()> {
        let (verb, path) = match job {
            Job::Open { path, .. } => ("open", path),
            Job::List { path } => ("list", path),
            Job::SyncDir { path } => ("sync", path),
            Job::ReadFile { path, .. } => ("read", path),
            Job::Replace { path, .. } => ("replace", path),
            Job::CutAnew { path, .. } => ("cut", path),
            Job::Remove { path } => ("remove", path),
            _ => return Ok(()),
        };
        match self.faults.descriptors_are_out {
            true => Err(about(verb, path)(io::Error::from_raw_os_error(libc::EMFILE))),
            false => Ok(()),
        }
    }

    /// The root and the working directory are always there.
    fn node(&self, path: &Path) -> Option<Node> {
        if path == Path::new("/") || path == Path::new("") {
            return Some(Node::Dir);
        }
        self.disk.state.names.get(path).copied()
    }

    fn parent_is_dir(&self, path: &Path) -> io::Result<()> {
        match self.node(path.parent().unwrap_or(Path::new("/"))) {
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            None => Err(not_found()),
        }
    }

    fn open(&mut self, path: &Path, options: OpenOptions) -> io::Result<Reply> {
        let path = tidy(path);
        if options.direct && self.faults.direct_is_refused {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if options.create && !options.write {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let inode = match self.node(&path) {
            Some(Node::File(inode)) => inode,
            Some(Node::Dir) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            None if options.create => self.create(&path)?,
            None => return Err(not_found()),
        };
        Ok(Reply::File(File(Rc::new(FileKind::Sim(SimFile { inode, path, options, life: Arc::default() })))))
    }

    fn create(&mut self, path: &Path) -> io::Result<u64> {
        self.parent_is_dir(path)?;
        let inode = self.disk.new_inode();
        self.disk.record(DiskEvent::Names(NameChange::Link { path: path.to_owned(), inode }));
        Ok(inode)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let path = tidy(path);
        match self.node(&path) {
            Some(Node::Dir) => {}
            Some(Node::File(_)) => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            None => return Err(not_found()),
        }
        let state = &self.disk.state;
        let within = state.names.iter().filter(|(name, _)| name.parent() == Some(&path));
        let entry = |(name, node): (&PathBuf, &Node)| {
            let name = name.file_name()?.to_owned();
            Some(match node {
                Node::Dir => DirEntry { name, is_dir: true, bytes: 0 },
                Node::File(inode) => {
                    DirEntry { name, is_dir: false, bytes: state.inodes[inode].current.size }
                }
            })
        };
        Ok(within.filter_map(entry).collect())
    }

    fn make_dirs(&mut self, path: &Path) -> io::Result<()> {
        match self.node(path) {
            Some(Node::Dir) => return Ok(()),
            Some(Node::File(_)) => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
            None => {}
        }
        if let Some(parent) = path.parent() {
            match self.make_dirs(parent) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
                }
                made => made?,
            }
        }
        self.disk.record(DiskEvent::Names(NameChange::MakeDir { path: path.to_owned() }));
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.node(from).ok_or_else(not_found)?;
        self.parent_is_dir(to)?;
        let refused = match (node, self.node(to)) {
            (Node::File(_), Some(Node::Dir)) => libc::EISDIR,
            (Node::Dir, Some(Node::File(_))) => libc::ENOTDIR,
            (Node::Dir, _) if to != from && to.starts_with(from) => libc::EINVAL,
            (Node::Dir, Some(Node::Dir)) if to != from && !self.list(to)?.is_empty() => libc::ENOTEMPTY,
            _ => 0,
        };
        if refused != 0 {
            return Err(io::Error::from_raw_os_error(refused));
        }
        if from != to {
            let change = NameChange::Rename { from: from.to_owned(), to: to.to_owned() };
            self.disk.record(DiskEvent::Names(change));
        }
        Ok(())
    }

    /// Not being there is success, as long as the directory above is.
    fn remove(&mut self, path: &Path, dir: bool) -> io::Result<()> {
        if self.faults.fails_removal(path) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let change = match (self.node(path), dir) {
            (None, _) => return self.parent_is_dir(path),
            (Some(Node::File(_)), false) => NameChange::Remove { path: path.to_owned() },
            (Some(Node::Dir), true) => NameChange::RemoveDir { path: path.to_owned() },
            (Some(Node::Dir), false) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            (Some(Node::File(_)), true) => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        };
        self.disk.record(DiskEvent::Names(change));
        Ok(())
    }

    fn read_file(&mut self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let path = tidy(path);
        let content = match self.node(&path) {
            Some(Node::File(inode)) => &self.disk.state.inodes[&inode].current,
            Some(Node::Dir) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            None => return Err(not_found()),
        };
        if content.size > bytes_max {
            let message = format!("it holds {} bytes where at most {bytes_max} make sense", content.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if self.faults.fails_read(&path) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(content.read_all())
    }

    fn read_head(&mut self, path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
        let mut head = self.read_file(path, u64::MAX)?;
        if (head.len() as u64) < bytes {
            let message = format!("it ends at position {}, expected {bytes}", head.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        head.truncate(bytes as usize);
        Ok(head)
    }

    fn replace(&mut self, path: &Path, bytes: Vec<u8>) -> io::Result<DiskEvent> {
        let path = tidy(path);
        self.parent_is_dir(&path)?;
        if self.node(&path) == Some(Node::Dir) {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if self.faults.fails_write(&path) || self.faults.fails_sync(&path) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let inode = self.disk.new_inode();
        Ok(DiskEvent::Replaced { path, inode, data: Arc::from(bytes) })
    }

    fn lock(&mut self, path: &Path) -> io::Result<Reply> {
        let path = tidy(path);
        match self.node(&path) {
            Some(Node::File(_)) => {}
            Some(Node::Dir) => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            None => drop(self.create(&path)?),
        }
        if !self.locks.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone()) {
            let message = format!(
                "{} is locked by this process; one process at a time may use this directory",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
        }
        let lock = SimLock { locks: self.locks.clone(), path };
        Ok(Reply::Lock(DirLock(LockKind::Sim { _lock: lock })))
    }
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

/// One spelling for each path.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != std::path::Component::CurDir).collect()
}

fn sync_parent(path: &Path) -> DiskEvent {
    let dir = tidy(path).parent().unwrap_or(Path::new("/")).to_owned();
    DiskEvent::SyncNames { dir }
}
