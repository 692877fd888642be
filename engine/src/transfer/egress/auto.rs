//! `auto`: chooses for each piece, among the others of the list.
//!
//! | where the bytes are | and | who carries them | reason |
//! |---|---|---|---|
//! | tail cache | | `tail` | `memory` |
//! | tail cache | the card was seen to gather | `tail_zc` | `gathers` |
//! | page cache | not shorter than it pays for | `sendfile` | `resident` |
//! | page cache | shorter | `copy` | `short` |
//! | disk | others read the same stretch | `sendfile`, which brings them in once for all | `shared` |
//! | disk | nobody else does | `direct`, past the page cache; `direct_zc` where the card gathers | `cold` |
//! | disk | no O_DIRECT here | `sendfile` | `shared` |
//!
//! The path of a byte: as chosen. Right for logs that have readers of several kinds, at the end and behind, one and
//! many. From which length on `sendfile` pays is measured when a shard opens ([`Calibration`]). Whether the card
//! gathers, each connection shows: one piece is lent to it, and as long as no release says that the kernel copied
//! after all, others follow. Choices are counted with their reasons ([`crate::transfer::Transfers::choices`]).
//!
//! In the kernel: what the chosen one does. That a page is in the cache is asked without waiting for it.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::{Declaration, Egress, Outgoing, send};
use crate::sys::{OpenOptions, Ring, Socket};
use crate::transfer::counters::Transfers;
use crate::transfer::join::join;
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, Response, SegmentFile};
use crate::types::{Offset, Position, ShardId};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "auto",
    // What it chooses declares its own.
    profile: CopyProfile { cpu_copies: f64::NAN, user_copies: 0.0, shares_pages: true },
    path: None,
    free_signal: FreeSignal::None,
    carries: PieceKinds { memory: true, file: true },
    needs: "nothing: it chooses what there is",
    delivers: true,
};

/// Shorter ones are never lent: a release for each costs more than the copy.
const LENT_BYTES_MIN: usize = 64 << 10;
/// Asked about: what lies at the beginning of a piece, lies there to its end, mostly.
const ASKED_BYTES: u64 = 256 << 10;

/// Why a strategy was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// In the tail cache.
    Memory,
    /// In the tail cache, and this connection's card gathers.
    Gathers,
    /// In the page cache.
    Resident,
    /// In the page cache, and too short for sharing pages to pay.
    Short,
    /// On disk, and wanted by others too, or there is no way past the page cache.
    Shared,
    /// On disk, and wanted by nobody else.
    Cold,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Reason; 6] =
        [Reason::Memory, Reason::Gathers, Reason::Resident, Reason::Short, Reason::Shared, Reason::Cold];

    /// Its name in counters and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Memory => "memory",
            Reason::Gathers => "gathers",
            Reason::Resident => "resident",
            Reason::Short => "short",
            Reason::Shared => "shared",
            Reason::Cold => "cold",
        }
    }
}

/// What was measured of this host when a shard opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// From which length on a resident piece goes by `sendfile` faster than by `copy`.
    pub sendfile_bytes_min: u64,
}

impl Default for Calibration {
    /// What holds on most machines, for where nothing could be measured.
    fn default() -> Calibration {
        Calibration { sendfile_bytes_min: 32 << 10 }
    }
}

/// Lengths that are tried, ascending.
const TRIED_BYTES: [u64; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
/// Sends of each length and way: the fastest counts, the others met somebody else.
const TRIES: usize = 12;
/// Beyond, something is wrong with this host.
const PATIENCE: Duration = Duration::from_secs(2);

impl Calibration {
    /// Sends a resident file of its own over loopback by both ways, in turn. Takes some 20 ms. The file, `.calibrate-0` for shard 0,
    /// is removed.
    ///
    /// # Errors
    /// What file system or network said.
    pub(crate) async fn measure(ring: &Ring, directory: &Path, id: ShardId) -> io::Result<Calibration> {
        let path = directory.join(format!(".calibrate-{id}"));
        let longest = TRIED_BYTES[TRIED_BYTES.len() - 1];
        ring.replace(&path, vec![7; longest as usize]).await?;
        let measured = Calibration::measure_with(ring, &path).await;
        ring.remove(&path).await?;
        measured
    }

    async fn measure_with(ring: &Ring, path: &Path) -> io::Result<Calibration> {
        let file = ring.open(path, OpenOptions::default()).await?;
        let file = Rc::new(SegmentFile::new(Offset(0), file, None, path.into()));
        let listener = ring.listen(([127, 0, 0, 1], 0).into(), false)?;
        let (to, from) = join(ring.connect(listener.address()), ring.accept(&listener)).await;
        let (to, from) = (to?, from?);
        let (transfers, mut response) = (Transfers::default(), Response::default());
        let begun = ring.now();
        for bytes in TRIED_BYTES {
            let mut best = [u64::MAX; 2];
            for _ in 0..TRIES {
                for (best, egress) in best.iter_mut().zip([Egress::Copy, Egress::Sendfile]) {
                    response.push_records(Piece::File { file: file.clone(), at: Position(0), bytes });
                    let sent_at = ring.now();
                    let sending = send(ring, &to, egress, &mut response, &transfers);
                    let (sent, received) = join(sending, receive(ring, &from, bytes)).await;
                    sent.and(received)?;
                    *best = (*best).min(ring.now().nanos_since(sent_at));
                }
            }
            if best[1] < best[0] {
                return Ok(Calibration { sendfile_bytes_min: bytes });
            }
            if ring.now().nanos_since(begun) > PATIENCE.as_nanos() as u64 {
                break;
            }
        }
        Ok(Calibration { sendfile_bytes_min: u64::MAX })
    }
}

async fn receive(ring: &Ring, socket: &Socket, bytes: u64) -> io::Result<()> {
    let mut into = ring.lease(bytes as usize).await?;
    drop(into.split_off(bytes as usize));
    let (received, _) = ring.recv_all(socket, into).await;
    match received? as u64 {
        received if received == bytes => Ok(()),
        received => Err(io::Error::other(format!("{received} of {bytes} bytes came over loopback"))),
    }
}

impl Outgoing<'_> {
    /// Who carries `piece`, and why.
    pub(super) fn choose(&self, piece: &Piece) -> (Egress, Reason) {
        let gathers =
            |bytes: usize| bytes >= LENT_BYTES_MIN && self.ring.sends_zero_copy() && self.socket.may_gather();
        match piece {
            Piece::Memory(lease) if gathers(lease.len()) => (Egress::TailZc, Reason::Gathers),
            Piece::Memory(_) => (Egress::Tail, Reason::Memory),
            Piece::File { file, at, bytes } => {
                let readers = file.note_reader(at.0, at.0 + bytes);
                if self.ring.is_resident(&file.file, at.0, (*bytes).min(ASKED_BYTES)) {
                    return match *bytes >= self.transfers.calibration.get().sendfile_bytes_min {
                        true => (Egress::Sendfile, Reason::Resident),
                        false => (Egress::Copy, Reason::Short),
                    };
                }
                match &file.direct {
                    Some(_) if readers == 1 && gathers(*bytes as usize) => (Egress::DirectZc, Reason::Cold),
                    Some(_) if readers == 1 => (Egress::Direct, Reason::Cold),
                    _ => (Egress::Sendfile, Reason::Shared),
                }
            }
        }
    }
}

pub(super) async fn send_piece(_: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    unreachable!("{piece:?} was given to nobody")
}
