//! The closed set of operations that the engine asks of the world, and the handles they are about.
//!
//! A [`Request`] owns every byte and handle it needs until its completion, so that dropping the future that waits
//! for it can never free memory the kernel still uses. Both drivers (the kernel's and the simulated world's) carry
//! out exactly this set; keep it small.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use super::arena::{Chunk, Lease, LeaseMut, PageKind};
use super::clock::Moment;
use super::flushes::Flushes;
use super::gather::Gather;
use super::incoming::Arrived;
use super::lending::{Loan, Unreleased};
use super::map::{FileMap, Mapping};
use super::pages::FreshPages;
use super::pipe::Pipe;
use super::sim::{SimFile, SimListener, SimLock, SimSocket};
use super::uring::OsHandle;
use super::write_map::WriteMap;

/// A file, open on one shard's ring. Clones share it; it is closed when the last clone and operation are gone.
#[derive(Clone)]
pub struct File(pub(crate) Rc<FileKind>);

pub(crate) enum FileKind {
    Os(OsHandle),
    Sim(SimFile),
}

/// A file that one ring opened, on its way to another: the descriptor is shared, not opened again.
#[derive(Clone)]
pub struct SharedFile(pub(crate) SharedFileKind);

#[derive(Clone)]
pub(crate) enum SharedFileKind {
    Os { fd: Arc<std::os::fd::OwnedFd>, direct: bool },
    Sim(SimFile),
}

/// Which open file a [`File`] is, on whichever ring: handles that were shared name the same one, handles that were opened
/// apart do not. Keeps nothing open, and is never the name of another file, however long it is kept.
#[derive(Clone)]
pub struct FileId(FileIdKind);

#[derive(Clone)]
enum FileIdKind {
    Os(Weak<std::os::fd::OwnedFd>),
    Sim(Weak<()>),
}

/// A connected stream socket on one shard's ring. Closed when the last clone and operation are gone.
#[derive(Clone)]
pub struct Socket(pub(crate) Rc<SocketKind>, pub(crate) Rc<Unreleased>);

pub(crate) enum SocketKind {
    Os(OsHandle),
    Sim(SimSocket),
}

/// A listening socket on one shard's ring.
#[derive(Clone)]
pub struct Listener(pub(crate) Rc<ListenerKind>);

pub(crate) enum ListenerKind {
    Os { handle: OsHandle, address: SocketAddr },
    Sim(SimListener),
}

/// An exclusive claim on a directory, given up on drop (and by the death of the process).
pub struct DirLock(#[allow(dead_code, reason = "held for its drop")] pub(crate) LockKind);

pub(crate) enum LockKind {
    Os { _fd: std::os::fd::OwnedFd },
    Sim { _lock: SimLock },
}

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Create it when it is not there.
    pub create: bool,
    /// Open for writing too.
    pub write: bool,
    /// Past the page cache (`O_DIRECT`): positions, lengths and memory aligned to [`super::BLOCK_BYTES`].
    pub direct: bool,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name within the directory.
    pub name: OsString,
    /// Whether it is itself a directory.
    pub is_dir: bool,
    /// Its size; 0 for a directory.
    pub bytes: u64,
}

/// What a shard may have under way at its ring.
pub(crate) enum Request {
    /// Completes with one connection; the driver keeps a standing operation underneath.
    Accept(Listener),
    Connect {
        socket: Socket,
        address: Box<super::uring::SockAddr>,
    },
    /// `all`: complete when `into` is full or the stream ends.
    Recv {
        socket: Socket,
        into: LeaseMut,
        all: bool,
    },
    /// Completes with the next bytes of a stream, in a buffer that was provided; with `ENOBUFS` when there is none.
    RecvProvided {
        socket: Socket,
        stream: u32,
    },
    /// Completes when everything is queued, or with an error.
    Send {
        socket: Socket,
        from: Lease,
        more: bool,
    },
    SendGather {
        socket: Socket,
        from: Gather,
        more: bool,
    },
    /// Completes when the bytes are queued (fewer are possible), with the memory still lent: [`Reply::Lent`]; a second
    /// completion, [`Reply::Released`], ends the loan.
    SendZeroCopy {
        socket: Socket,
        /// Here until the first completion, then with the operation's slot.
        loan: Option<Loan>,
        /// The registered buffer that the memory lies in.
        fixed: Option<u16>,
        more: bool,
    },
    Read {
        file: File,
        at: u64,
        into: LeaseMut,
    },
    Write {
        file: File,
        at: u64,
        from: Lease,
    },
    /// `uncached`: what is written leaves the page cache once it is on the disk.
    WriteGather {
        file: File,
        at: u64,
        from: Gather,
        uncached: bool,
    },
    /// Reads into memory that is used for this once.
    ReadPages {
        file: File,
        at: u64,
        into: FreshPages,
        /// Of `into`, what is there already.
        filled: usize,
    },
    /// Takes up to `bytes` of the file into the pipe. May wait for the disk: a worker of the kernel's does.
    SpliceIn {
        file: File,
        at: u64,
        bytes: usize,
        pipe: Pipe,
    },
    /// Writes up to `bytes` of what the pipe holds into the file, through the page cache. A worker of the kernel's does.
    SpliceToFile {
        file: File,
        at: u64,
        bytes: usize,
        pipe: Pipe,
    },
    /// Makes completed writes of this file survive power loss, with the metadata needed to find them.
    Sync {
        file: File,
    },
    /// Completes when the socket takes more bytes (or has failed).
    Writable(Socket),
    /// Completes when the socket has bytes or its end to be received (or has failed).
    Readable(Socket),
    /// A job for the helper pool: may block, for as long as it likes.
    Help {
        job: Option<Job>,
        file: Option<File>,
    },
}

/// What helpers do: everything about files that can block. File jobs get their file from [`Request::Help`].
#[derive(Debug)]
pub(crate) enum Job {
    Open {
        path: PathBuf,
        options: OpenOptions,
    },
    List {
        path: PathBuf,
    },
    /// Makes the directory and what is missing above it, and syncs the parent if so told.
    MakeDir {
        path: PathBuf,
        synced: bool,
    },
    SyncDir {
        path: PathBuf,
    },
    /// All files and names of the file system that holds the file.
    SyncAll,
    /// Renames and syncs the directories of both names.
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// Removes a file; not being there is success. Syncs the directory.
    Remove {
        path: PathBuf,
    },
    /// Removes a directory with all it holds; not being there is success. Syncs the parent.
    RemoveDir {
        path: PathBuf,
    },
    ReadFile {
        path: PathBuf,
        bytes_max: u64,
    },
    /// Puts `bytes` under `path` so that a crash leaves the old content or the new, and syncs all of it; or, unsynced, so
    /// that the end of the process does.
    Replace {
        path: PathBuf,
        bytes: Vec<u8>,
        synced: bool,
    },
    /// Allocates `[from, to)` as zeros, sets the size to at least `to`, syncs.
    Prepare {
        from: u64,
        to: u64,
    },
    /// Cuts the file to `to` bytes and syncs.
    Trim {
        to: u64,
    },
    Size,
    /// Where data begins at or behind `at`, as far as the file system tells holes from it; the size where there is none.
    NextData {
        at: u64,
    },
    /// Tells whether flushes of files in this directory reach the disk.
    Flushes {
        path: PathBuf,
    },
    /// Brings `[from, to)` into the page cache.
    WarmCache {
        from: u64,
        to: u64,
    },
    /// Maps the first `bytes` of the file.
    Map {
        bytes: u64,
    },
    /// Brings `[from, to)` of the file into the page cache and into its map.
    Populate {
        map: FileMap,
        from: u64,
        to: u64,
    },
    Unmap(Arc<Mapping>),
    /// Puts a new file with the first `to` bytes in the place of the one under `path`, which lives on for those who have
    /// it open; syncs all of it.
    CutAnew {
        path: PathBuf,
        to: u64,
    },
    Lock {
        path: PathBuf,
    },
    MapChunk {
        bytes: usize,
        /// What it is made of.
        pages: PageKind,
    },
    MapPages {
        bytes: usize,
    },
    /// Unmaps pages that an operation has used.
    UnmapPages(FreshPages),
    /// Maps `[at, at + bytes)`, shared, and touches it for writing.
    MapWindow {
        at: u64,
        bytes: usize,
    },
    UnmapWindow(WriteMap),
    /// Closes a descriptor whose last close may take long (an unlinked segment).
    Close(std::os::fd::OwnedFd),
}

/// What a completed operation gives back beside its result.
pub(crate) enum Reply {
    None,
    /// The memory stays lent until [`Reply::Released`] comes.
    Lent,
    /// Not an answer to whoever asked, who has his: the kernel has let go of the memory.
    Released {
        /// It had to copy, at least in part.
        copied: bool,
    },
    Socket(Socket),
    Arrived(Arrived),
    /// A descriptor that a helper opened; the ring that asked turns it into a [`File`].
    Opened {
        fd: std::os::fd::OwnedFd,
        direct: bool,
    },
    File(File),
    Entries(Vec<DirEntry>),
    Bytes(Vec<u8>),
    Size(u64),
    Flushes(Flushes),
    Lock(DirLock),
    Chunk(Chunk),
    /// What a helper mapped; the ring that asked turns it into a [`FileMap`].
    Mapped(Arc<Mapping>),
    Map(FileMap),
    Pages(FreshPages),
    Window(WriteMap),
}

/// One answer of the world.
pub(crate) struct Completion {
    pub token: Token,
    pub result: io::Result<u32>,
    pub reply: Reply,
}

/// Ties a completion to its operation: the slot it occupies and the slot's generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Token {
    pub slot: u32,
    pub generation: u32,
}

impl Token {
    /// The top bit of a ring entry's user data is the driver's own.
    pub(crate) const GENERATION_MASK: u32 = u32::MAX >> 1;

    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub(crate) fn from_bits(bits: u64) -> Token {
        Token { slot: bits as u32, generation: (bits >> 32) as u32 }
    }
}

impl Listener {
    /// The address it really listens on (with the port the kernel chose, when 0 was asked for).
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match &*self.0 {
            ListenerKind::Os { address, .. } => *address,
            ListenerKind::Sim(listener) => listener.address(),
        }
    }
}

impl Listener {
    /// Takes no more connections, at once: the standing operation underneath would keep the address busy beyond the end
    /// of this process.
    pub fn stop(&self) {
        match &*self.0 {
            ListenerKind::Os { handle, .. } => handle.shutdown(),
            // It stops when it is dropped.
            ListenerKind::Sim(_) => {}
        }
    }
}

impl Socket {
    /// Ends the conversation in both directions: pending and later receives see the end of the stream.
    pub fn shutdown(&self) {
        match &*self.0 {
            SocketKind::Os(handle) => handle.shutdown(),
            SocketKind::Sim(socket) => socket.shutdown(),
        }
    }

    /// The same, and what was sent and not yet taken by the peer is thrown away when the last handle is dropped: the peer
    /// sees a reset, and the kernel keeps nothing for it.
    pub fn abort(&self) {
        match &*self.0 {
            SocketKind::Os(handle) => handle.abort(),
            SocketKind::Sim(socket) => socket.abort(),
        }
        self.1.abort();
    }

    /// Bytes that zero-copy sends to this peer have unreleased, and since when there are any.
    #[must_use]
    pub fn unreleased(&self) -> Option<(u64, Moment)> {
        self.1.held()
    }

    /// Ready when nothing is unreleased, or the socket was aborted; otherwise `cx` is woken then, in place of who asked
    /// before. Whoever drops the last handle before that leaves the memory with the kernel for as long as that keeps trying
    /// to deliver it: minutes, when the peer takes nothing.
    pub fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.1.poll_settled(cx)
    }

    /// Whether memory that is lent to this connection may go without a copy, as far as the releases of what was lent have
    /// told: once one says that the kernel copied after all, no more.
    #[must_use]
    pub fn may_gather(&self) -> bool {
        self.1.may_gather()
    }

    /// Bytes that the peer's kernel has acknowledged and that ours has received from it, ever; `None` where nobody
    /// counts them.
    #[must_use]
    pub fn moved_bytes(&self) -> Option<u64> {
        match &*self.0 {
            SocketKind::Os(handle) => handle.moved_bytes(),
            SocketKind::Sim(_) => None,
        }
    }

    /// The peer's address, for messages.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        match &*self.0 {
            SocketKind::Os(handle) => handle.peer(),
            SocketKind::Sim(socket) => socket.peer(),
        }
    }
}

impl File {
    /// For another ring, which takes it with [`super::Ring::adopt_shared`].
    #[must_use]
    pub fn share(&self) -> SharedFile {
        SharedFile(match &*self.0 {
            FileKind::Os(handle) => SharedFileKind::Os { fd: handle.share(), direct: handle.direct },
            FileKind::Sim(file) => SharedFileKind::Sim(file.clone()),
        })
    }

    /// Which open file it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        FileId(match &*self.0 {
            FileKind::Os(handle) => FileIdKind::Os(handle.identity()),
            FileKind::Sim(file) => FileIdKind::Sim(file.identity()),
        })
    }

    /// Whether reads and writes pass by the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        match &*self.0 {
            FileKind::Os(handle) => handle.direct,
            FileKind::Sim(file) => file.is_direct(),
        }
    }
}

impl FileId {
    /// Whether anybody still has it open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match &self.0 {
            FileIdKind::Os(fd) => fd.strong_count() > 0,
            FileIdKind::Sim(life) => life.strong_count() > 0,
        }
    }
}

impl PartialEq for FileId {
    fn eq(&self, other: &FileId) -> bool {
        match (&self.0, &other.0) {
            (FileIdKind::Os(a), FileIdKind::Os(b)) => a.ptr_eq(b),
            (FileIdKind::Sim(a), FileIdKind::Sim(b)) => a.ptr_eq(b),
            _ => false,
        }
    }
}
