//! What is to be moved: pieces of record bytes, where each lies, and the protocol bytes around them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::egress::Egress;
use super::readers::Readers;
use crate::sys::{File, FileMap, FileStamp, Gather, Lease, MapState, Ring, SharedFile};
use crate::types::{Offset, Position};

/// A segment's file, open for reading. Plans hold it, so the descriptor lives as long as the last plan that uses it.
pub struct SegmentFile {
    /// The segment.
    pub base: Offset,
    /// Through the page cache.
    pub file: File,
    /// Past it, where somebody reads that way and the file system can.
    pub direct: Option<File>,
    /// For messages.
    pub path: Arc<Path>,
    /// What it showed when nobody had any business to change it any more: sealed, trimmed, flushed.
    sealed: Cell<Option<FileStamp>>,
    map: RefCell<Option<FileMap>>,
    readers: Readers,
}

impl SegmentFile {
    /// A segment's file, not yet known to be sealed.
    #[must_use]
    pub fn new(base: Offset, file: File, direct: Option<File>, path: Arc<Path>) -> SegmentFile {
        SegmentFile {
            base,
            file,
            direct,
            path,
            sealed: Cell::new(None),
            map: RefCell::new(None),
            readers: Readers::default(),
        }
    }

    /// Notes that nobody writes to it any more: from now on it must stay as it is.
    ///
    /// # Errors
    /// What the kernel said; or it is shorter than `end`.
    pub(crate) fn seal(&self, ring: &Ring, end: Position) -> io::Result<()> {
        let stamp = ring.stamp(&self.file).map_err(|e| self.explain("asking about", end.0, &e))?;
        if stamp.bytes < end.0 {
            return Err(self.ends_early(stamp.bytes, end.0));
        }
        self.sealed.set(Some(stamp));
        Ok(())
    }

    /// Its size, once nobody has any business to change it.
    #[must_use]
    pub(crate) fn sealed_bytes(&self) -> Option<u64> {
        self.sealed.get().map(|stamp| stamp.bytes)
    }

    /// Whether it is known to be sealed, and must stay as it is.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.get().is_some()
    }

    /// Whether what was read of it up to now, between `from` and `end`, is what was written to it: another process may have
    /// changed it since it was sealed. Of the active segment only its size can be told.
    ///
    /// # Errors
    /// It was changed, or the kernel does not say.
    pub(crate) fn check_unchanged(&self, ring: &Ring, from: u64, end: u64) -> io::Result<()> {
        let now = ring.stamp(&self.file).map_err(|e| self.explain("asking about", from, &e))?;
        match self.sealed.get() {
            Some(sealed) if sealed == now => Ok(()),
            None if end <= now.bytes => Ok(()),
            None => Err(self.ends_early(now.bytes, end)),
            Some(sealed) => {
                let path = self.path.display();
                let what = match now.bytes == sealed.bytes {
                    true => "modified".to_owned(),
                    false => format!("changed from {} to {} bytes", sealed.bytes, now.bytes),
                };
                let message = format!(
                    "{path} was {what} by somebody else: nothing between position {from} and {end} is believed"
                );
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
        }
    }

    /// Notes that somebody reads `[at, end)`; how many there are near it.
    pub(super) fn note_reader(&self, at: u64, end: u64) -> usize {
        self.readers.note(at, end)
    }

    /// Its map, where it has one that shows the file.
    #[must_use]
    pub fn map(&self) -> Option<FileMap> {
        self.map.borrow().as_ref().filter(|map| map.state() == MapState::Whole).cloned()
    }

    /// Whether it has a map that shows the file.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.map.borrow().as_ref().is_some_and(|map| map.state() == MapState::Whole)
    }

    /// Gives it a map, or takes it away: who sends from it now goes on doing so.
    pub(crate) fn set_map(&self, map: Option<FileMap>) -> Option<FileMap> {
        self.map.replace(map)
    }

    /// What went wrong with it, and where: its path names partition and base offset.
    pub(crate) fn explain(&self, doing: &str, position: u64, error: &io::Error) -> io::Error {
        io::Error::new(
            error.kind(),
            format!("{doing} {} at position {position}: {error}", self.path.display()),
        )
    }

    /// It is shorter than it was when this position was looked up.
    pub(crate) fn ends_early(&self, position: u64, end: u64) -> io::Error {
        let message = format!("{} ends at position {position}, expected up to {end}", self.path.display());
        io::Error::new(io::ErrorKind::UnexpectedEof, message)
    }
}

/// A run of whole record batches, or a part of one, and where it lies. Never changes while a plan holds it.
#[derive(Clone)]
pub enum Piece {
    /// In the tail cache.
    Memory(Lease),
    /// In a segment file, in blocks that will never be written again.
    File {
        /// The file.
        file: Rc<SegmentFile>,
        /// Where it begins.
        at: Position,
        /// How long it is.
        bytes: u64,
    },
}

impl Piece {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Piece::Memory(lease) => lease.len() as u64,
            Piece::File { bytes, .. } => *bytes,
        }
    }
}

/// A piece on its way to another shard: the lease moves, the file's descriptor is shared.
pub enum SharedPiece {
    /// In the owner's tail cache.
    Memory(Lease),
    /// In one of its segment files.
    File {
        /// The segment.
        base: Offset,
        /// Its file.
        file: SharedFile,
        /// The same past the page cache, if it is open.
        direct: Option<SharedFile>,
        /// For messages.
        path: Arc<Path>,
        /// What it must still show, if it is sealed.
        sealed: Option<FileStamp>,
        /// Its map, if it has one.
        map: Option<FileMap>,
        /// Where it begins.
        at: Position,
        /// How long it is.
        bytes: u64,
    },
}

impl Piece {
    /// For another shard.
    #[must_use]
    pub fn share(self) -> SharedPiece {
        match self {
            Piece::Memory(lease) => SharedPiece::Memory(lease),
            Piece::File { file, at, bytes } => SharedPiece::File {
                base: file.base,
                file: file.file.share(),
                direct: file.direct.as_ref().map(File::share),
                path: file.path.clone(),
                sealed: file.sealed.get(),
                map: file.map(),
                at,
                bytes,
            },
        }
    }
}

impl SharedPiece {
    /// A piece of this thread's. Allocates a handle for a file.
    #[must_use]
    pub fn adopt(self, ring: &Ring) -> Piece {
        match self {
            SharedPiece::Memory(lease) => Piece::Memory(lease),
            SharedPiece::File { base, file, direct, path, sealed, map, at, bytes } => {
                let file = ring.adopt_shared(&file);
                let direct = direct.map(|direct| ring.adopt_shared(&direct));
                let (sealed, map) = (Cell::new(sealed), RefCell::new(map));
                Piece::File {
                    file: Rc::new(SegmentFile {
                        base,
                        file,
                        direct,
                        path,
                        sealed,
                        map,
                        readers: Readers::default(),
                    }),
                    at,
                    bytes,
                }
            }
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Piece::Memory(lease) => write!(f, "Memory({} bytes)", lease.len()),
            Piece::File { file, at, bytes } => {
                write!(f, "File({} at {at}, {bytes} bytes)", file.path.display())
            }
        }
    }
}

/// Which kinds of piece a strategy moves by its own means; others take a fallback that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceKinds {
    /// Leases of the tail cache.
    pub memory: bool,
    /// File ranges.
    pub file: bool,
}

/// What a strategy says it does to each byte, on its own side of the socket. Measured, not believed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopyProfile {
    /// Copies made by the CPU per payload byte.
    pub cpu_copies: f64,
    /// Of these, copies made in user space.
    pub user_copies: f64,
    /// Whether pages are shared with the file or the peer's queue instead of copied.
    pub shares_pages: bool,
}

/// When the source bytes may change again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreeSignal {
    /// When the operation completes: the kernel has its own copy.
    Completion,
    /// When the kernel says so, after the peer has acknowledged them: told for each send.
    Release,
    /// Never told: the bytes must be immutable, as sealed blocks are.
    None,
}

/// One stretch of an answer.
#[derive(Debug)]
pub enum Chunk {
    /// Bytes of the protocol.
    Protocol(Protocol),
    /// Record bytes, and who carries them if not whom the answer is sent by.
    Records(Piece, Option<Egress>),
}

/// Protocol bytes; a lease that prints as its length.
pub struct Protocol(pub Lease);

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Everything that one connection is about to send, in order. Reused: it allocates only to grow.
pub struct Response {
    pub(crate) chunks: VecDeque<Chunk>,
    /// The memory list of the send under way; absent only while an operation holds it.
    pub(crate) gather: Option<Gather>,
}

impl Default for Response {
    fn default() -> Response {
        Response { chunks: VecDeque::with_capacity(16), gather: Some(Gather::new()) }
    }
}

impl Response {
    /// Adds protocol bytes.
    pub fn push_protocol(&mut self, bytes: Lease) {
        if !bytes.is_empty() {
            self.chunks.push_back(Chunk::Protocol(Protocol(bytes)));
        }
    }

    /// Adds record bytes.
    pub fn push_records(&mut self, piece: Piece) {
        if piece.bytes() > 0 {
            self.chunks.push_back(Chunk::Records(piece, None));
        }
    }

    /// Adds record bytes that go by `egress`, whatever the answer is sent by.
    pub fn push_pinned(&mut self, piece: Piece, egress: Egress) {
        if piece.bytes() > 0 {
            self.chunks.push_back(Chunk::Records(piece, Some(egress)));
        }
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes to send.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let of = |chunk: &Chunk| match chunk {
            Chunk::Protocol(protocol) => protocol.0.len() as u64,
            Chunk::Records(piece, _) => piece.bytes(),
        };
        self.chunks.iter().map(of).sum()
    }

    /// Bytes to send that are held in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let of = |chunk: &Chunk| match chunk {
            Chunk::Protocol(protocol) => protocol.0.len() as u64,
            Chunk::Records(Piece::Memory(lease), _) => lease.len() as u64,
            Chunk::Records(Piece::File { .. }, _) => 0,
        };
        self.chunks.iter().map(of).sum()
    }

    /// Forgets everything, after a failed send.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.gather.get_or_insert_default().clear();
    }
}
