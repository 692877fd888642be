//! Egress: the pieces of a plan to a socket, by one strategy of the list.

mod auto;
mod copy;
mod direct;
mod direct_zc;
mod masters;
mod mmap;
mod null;
mod piped;
mod resident;
mod ring_splice;
mod sendfile;
mod splice;
mod tail;
mod tail_zc;
mod tee;
mod vmsplice;
mod zero_copy;

use std::fmt;
use std::io;
use std::str::FromStr;

pub use self::auto::{Calibration, Reason};
pub(super) use self::masters::Masters;
use super::counters::{EgressCounters, Transfers};
use super::path::BytePath;
use super::plan::{Chunk, CopyProfile, FreeSignal, Piece, PieceKinds, Response};
use crate::sys::{Lease, Ring, Socket};

/// What a strategy declares about itself.
pub(super) struct Declaration {
    name: &'static str,
    profile: CopyProfile,
    /// Its steps: as many copies as the profile says. None where it has no way of its own.
    path: Option<BytePath>,
    free_signal: FreeSignal,
    carries: PieceKinds,
    /// What it needs of kernel and file, in words.
    needs: &'static str,
    /// Whether the record bytes reach the peer.
    delivers: bool,
}

/// The one list. A strategy is a file with `DECLARATION` and `send_piece`, and a line here.
macro_rules! strategies {
    ($($(#[$doc:meta])* $variant:ident => $module:ident,)*) => {
        /// A way of moving record bytes from the log to a socket.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Egress {
            $($(#[$doc])* $variant,)*
        }

        impl Egress {
            /// Every strategy there is.
            pub const ALL: &'static [Egress] = &[$(Egress::$variant,)*];

            fn declaration(self) -> &'static Declaration {
                match self {
                    $(Egress::$variant => &$module::DECLARATION,)*
                }
            }
        }

        async fn send_piece(egress: Egress, out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
            match egress {
                $(Egress::$variant => $module::send_piece(out, piece).await,)*
            }
        }
    };
}

strategies! {
    /// Read into memory, send from there: the four-step path.
    Copy => copy,
    /// `sendfile(2)`: pages go from the cache to the socket without passing through us.
    Sendfile => sendfile,
    /// `splice(2)`: pages go from the cache through a pipe to the socket.
    Splice => splice,
    /// Send from a map of a sealed segment.
    Mmap => mmap,
    /// The same, filled by a worker of the kernel's through the ring: it may wait for the disk.
    RingSplice => ring_splice,
    /// `tee(2)`: a range that many read is taken from the cache into a pipe once, and shared with each.
    Tee => tee,
    /// `vmsplice(2)`: read past the page cache into memory for one use, which goes through a pipe to the socket.
    Vmsplice => vmsplice,
    /// Read past the page cache into registered memory, send from there.
    Direct => direct,
    /// The same, sent without a copy of the kernel's own.
    DirectZc => direct_zc,
    /// Send from the tail cache: the memory that the batch was written from.
    Tail => tail,
    /// The same, sent without a copy of the kernel's own.
    TailZc => tail_zc,
    /// Chooses among the others, for each piece.
    Auto => auto,
    /// Discard: for benchmarks, never for clients.
    Null => null,
}

/// Bytes that are held back at the end of what is sent from a file: an answer without them is not complete.
const HELD_BYTES: u64 = 64;

/// A send under way.
pub(super) struct Outgoing<'a> {
    ring: &'a Ring,
    socket: &'a Socket,
    response: &'a mut Response,
    transfers: &'a Transfers,
    /// The strategy whose turn it is, for its counters.
    egress: Egress,
}

/// Sends all of `response`, record pieces by `egress`, and leaves it empty.
///
/// # Errors
/// What the kernel said. Part of the answer may have gone out: the connection must be closed, never padded.
pub async fn send(
    ring: &Ring,
    socket: &Socket,
    egress: Egress,
    response: &mut Response,
    transfers: &Transfers,
) -> io::Result<()> {
    let mut out = Outgoing { ring, socket, response, transfers, egress };
    let sent = out.run(egress).await;
    if sent.is_err() {
        out.response.clear();
    }
    sent
}

impl Outgoing<'_> {
    async fn run(&mut self, default: Egress) -> io::Result<()> {
        while let Some(chunk) = self.response.chunks.pop_front() {
            match chunk {
                Chunk::Protocol(protocol) => self.add_memory(protocol.0).await?,
                Chunk::Records(piece, pinned) => {
                    let (bytes, mut wanted) = (piece.bytes(), pinned.unwrap_or(default));
                    if wanted == Egress::Auto {
                        let (chosen, reason) = self.choose(&piece);
                        self.transfers.note_choice(reason, bytes);
                        wanted = chosen;
                    }
                    self.egress = wanted.carrier_of(&piece);
                    if !self.ring.sends_zero_copy() {
                        self.egress = self.egress.by_copying();
                    }
                    if self.egress != wanted {
                        self.transfers.note(wanted, |c| c.fallback_bytes += bytes);
                    }
                    self.note(|c| c.bytes += bytes);
                    self.send_checked(piece).await?;
                }
            }
        }
        self.flush(false).await
    }

    fn note(&self, change: impl FnOnce(&mut EgressCounters)) {
        self.transfers.note(self.egress, change);
    }

    /// The strategy whose turn it is cannot carry `bytes` of its piece: from here on it is the turn of `to`.
    fn hand_over(&mut self, to: Egress, bytes: u64) {
        self.note(|c| (c.bytes, c.fallback_bytes) = (c.bytes - bytes, c.fallback_bytes + bytes));
        self.egress = to;
        self.note(|c| c.bytes += bytes);
    }

    /// Sends record bytes that lie in memory, the way of the strategy whose turn it is. `more` says that others follow.
    async fn add_records(&mut self, lease: Lease, more: bool) -> io::Result<()> {
        match self.egress.is_zero_copy() {
            true => zero_copy::send_lease(self, lease, more).await,
            false => self.add_memory(lease).await,
        }
    }

    /// Sends a piece so that the answer is never complete with bytes that somebody else changed: its last bytes go out
    /// when it is known that the file was still what it was after all others had been taken from it.
    ///
    /// What reads into our own memory still has its last unit there when it comes back. What sends from the file itself
    /// gets the piece without its last bytes, and those are read here. A piece of [0, 5000): `sendfile` sends [0, 4936),
    /// [4936, 5000) is read, the file is looked at, and then that follows.
    async fn send_checked(&mut self, piece: Piece) -> io::Result<()> {
        let Piece::File { file, at, bytes } = &piece else {
            return send_piece(self.egress, self, piece).await;
        };
        let (file, at, bytes) = (file.clone(), *at, *bytes);
        if !self.egress.sends_from_file() {
            send_piece(self.egress, self, piece).await?;
            return file.check_unchanged(self.ring, at.0, at.0 + bytes);
        }
        let held = bytes.min(HELD_BYTES);
        if held < bytes {
            let rest = Piece::File { file: file.clone(), at, bytes: bytes - held };
            send_piece(self.egress, self, rest).await?;
        }
        let end = at.0 + bytes;
        let last = copy::read_unit(self.ring, &file, end - held, end).await?;
        file.check_unchanged(self.ring, at.0, end)?;
        self.add_memory(last).await
    }

    /// Appends memory to what the next send takes along.
    async fn add_memory(&mut self, lease: Lease) -> io::Result<()> {
        let gather = self.response.gather.as_mut().expect("no send is under way");
        if let Err(lease) = gather.push(lease) {
            self.flush(true).await?;
            let gather = self.response.gather.as_mut().expect("no send is under way");
            gather.push(lease).map_err(|_| io::Error::other("an empty gather takes a lease"))?;
        }
        Ok(())
    }

    /// Sends what memory has gathered. `more` says that further bytes follow at once.
    async fn flush(&mut self, more: bool) -> io::Result<()> {
        loop {
            let gather = self.response.gather.take().expect("no send is under way");
            if gather.is_empty() {
                self.response.gather = Some(gather);
                return Ok(());
            }
            let plain = u64::from(self.egress.is_zero_copy());
            self.note(|c| (c.sends, c.plain_sends) = (c.sends + 1, c.plain_sends + plain));
            let (result, mut gather) = self.ring.send_gather(self.socket, gather, more).await;
            match result {
                Ok(sent) => gather.advance(sent),
                Err(error) => {
                    gather.clear();
                    self.response.gather = Some(gather);
                    return Err(error);
                }
            }
            self.response.gather = Some(gather);
        }
    }
}

impl Egress {
    /// Its name on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.declaration().name
    }

    /// The copies it declares.
    #[must_use]
    pub fn profile(self) -> CopyProfile {
        self.declaration().profile
    }

    /// The path of a byte; none where it takes another's (`auto`), or none (`null`).
    #[must_use]
    pub fn path(self) -> Option<BytePath> {
        self.declaration().path
    }

    /// When the source bytes may change.
    #[must_use]
    pub fn free_signal(self) -> FreeSignal {
        self.declaration().free_signal
    }

    /// The pieces it moves by its own means.
    #[must_use]
    pub fn carries(self) -> PieceKinds {
        self.declaration().carries
    }

    /// What it needs, in words.
    #[must_use]
    pub fn needs(self) -> &'static str {
        self.declaration().needs
    }

    /// Whether record bytes reach the peer; only benchmarks want a strategy where they do not.
    #[must_use]
    pub fn delivers(self) -> bool {
        self.declaration().delivers
    }

    /// Whether it reads files past the page cache, for itself or for what it does not carry.
    #[must_use]
    pub fn reads_direct(self) -> bool {
        matches!(self, Egress::Direct | Egress::DirectZc | Egress::Vmsplice | Egress::Auto)
            || !self.carries().file
    }

    /// Whether it has no way of its own, and takes one of the others for each piece.
    #[must_use]
    pub fn chooses(self) -> bool {
        self == Egress::Auto
    }

    /// Whether memory stays with the kernel after a send has completed.
    #[must_use]
    pub fn is_zero_copy(self) -> bool {
        self.free_signal() == FreeSignal::Release
    }

    /// The strategy that takes the same way with a copy, for kernels without zero-copy sends.
    fn by_copying(self) -> Egress {
        match self {
            Egress::DirectZc => Egress::Direct,
            Egress::TailZc => Egress::Tail,
            other => other,
        }
    }

    /// Whether bytes go to the socket without having been in memory of our own.
    fn sends_from_file(self) -> bool {
        self == Egress::Mmap || self.free_signal() == FreeSignal::None
    }

    /// Who moves `piece` when this strategy was asked to: itself, or the named fallback. Memory is sent from where it
    /// is; a file that is to be read past the cache and has no descriptor for that is read by `copy`. Zero-copy strategies stand in for each
    /// other.
    #[must_use]
    pub fn carrier_of(self, piece: &Piece) -> Egress {
        match piece {
            Piece::Memory(_) => self.carrier_of_memory(),
            Piece::File { file, .. } => self.carrier_of_file(file.direct.is_some(), file.is_mapped()),
        }
    }

    /// Who moves memory of the tail cache.
    #[must_use]
    pub fn carrier_of_memory(self) -> Egress {
        match self {
            _ if self.carries().memory => self,
            Egress::DirectZc => Egress::TailZc,
            _ => Egress::Tail,
        }
    }

    /// Who moves a range of a file that can be read past the page cache (`direct`) and has a map (`mapped`), or not.
    #[must_use]
    pub fn carrier_of_file(self, direct: bool, mapped: bool) -> Egress {
        match self {
            Egress::Mmap if !mapped => Egress::Copy,
            _ if !self.reads_direct() => self,
            _ if !direct => Egress::Copy,
            _ if self.carries().file => self,
            _ if self.is_zero_copy() => Egress::DirectZc,
            _ => Egress::Direct,
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Egress {
    type Err = String;

    fn from_str(name: &str) -> Result<Egress, String> {
        let known = || Egress::ALL.iter().map(|e| e.name()).collect::<Vec<_>>().join(", ");
        let found = Egress::ALL.iter().copied().find(|e| e.name() == name);
        found.ok_or_else(|| format!("there is no egress strategy \"{name}\"; there are {}", known()))
    }
}
