//! `ring_splice`: from the file into a pipe by the ring (`IORING_OP_SPLICE`), from the pipe into the socket by `splice(2)`.
//!
//! The path of a byte: disk -(DMA)-> page cache =(ring splice)= pipe =(splice)= socket -(DMA)-> card. No CPU
//! copy where the card gathers. The difference to `splice` is who waits: the kernel gives every splice of a ring to
//! one of its workers, which may wait for the disk as long as it likes. So nothing is asked about residency and
//! nothing is brought in beforehand, and the shard goes on with others. The next pipe is filled while one is sent.
//!
//! The price is a worker's turn for each fill: right where pieces are large and often cold; small hot ones are better served
//! by `splice` or `sendfile`. Workers run on any core that the process may use, and are bounded in number
//! ([`crate::sys::SPLICE_WORKERS_MAX`]): more fills wait their turn.
//!
//! The way out is not the ring's: a worker would gain nothing there, since a socket that is full answers `EAGAIN` instead of
//! waiting, and what a socket takes it takes at once. With both ways through the ring the same bytes cost 1.3 times the CPU
//! in pieces of 1 MiB, 1.5 times in 64 KiB and 1.6 times in 16 KiB, and were never faster.
//!
//! As with `splice` only blocks that will never be written again may go this way, and where no pipe is to be had it is
//! `sendfile`, counted.
//!
//! In the kernel: references to pages pass as in `splice`. A splice that is submitted to a ring is never tried at
//! once (`REQ_F_FORCE_ASYNC`): it is handed to a worker thread, and its completion handed back.

use std::io;

use super::{Declaration, Egress, Outgoing, sendfile};
use crate::sys::Pipe;
use crate::transfer::join::join;
use crate::transfer::path::{BytePath, Place, dma, share};
use crate::transfer::plan::{CopyProfile, FreeSignal, Piece, PieceKinds, SegmentFile};

pub(super) const DECLARATION: Declaration = Declaration {
    name: "ring_splice",
    profile: CopyProfile { cpu_copies: 0.0, user_copies: 0.0, shares_pages: true },
    path: Some(BytePath {
        from: Place::Disk,
        steps: &[
            dma("", Place::PageCache),
            share("ring splice", Place::Pipe),
            share("splice", Place::Socket),
            dma("", Place::Card),
        ],
    }),
    free_signal: FreeSignal::None,
    carries: PieceKinds { memory: false, file: true },
    needs: "segments written through the page cache, or no longer written at all; two pipes",
    delivers: true,
};

pub(super) async fn send_piece(out: &mut Outgoing<'_>, piece: Piece) -> io::Result<()> {
    let Piece::File { file, at, bytes } = piece else { unreachable!("ring_splice carries file pieces") };
    out.flush(true).await?;
    let (mut at, end) = (at.0, at.0 + bytes);
    let Some(pipe) = out.take_pipe()? else { return by_sendfile(out, &file, at, end).await };
    let mut full = fill(out, pipe, &file, &mut at, end).await?;
    if at < end {
        let Some(mut empty) = out.take_pipe()? else {
            out.drain(&mut full, true).await?;
            out.ring.give_pipe(full);
            return by_sendfile(out, &file, at, end).await;
        };
        while at < end {
            let (sent, filled) =
                join(out.drain(&mut full, true), fill(out, empty, &file, &mut at, end)).await;
            sent?;
            empty = std::mem::replace(&mut full, filled?);
        }
        out.ring.give_pipe(empty);
    }
    out.drain(&mut full, false).await?;
    // After an error they are closed instead: what they hold belongs to an answer that will never be whole.
    out.ring.give_pipe(full);
    Ok(())
}

/// Fills an empty pipe from `at` on, as far as the kernel does in one go, and moves `at` there.
async fn fill(
    out: &Outgoing<'_>,
    mut pipe: Pipe,
    file: &SegmentFile,
    at: &mut u64,
    end: u64,
) -> io::Result<Pipe> {
    loop {
        let bytes = (end - *at).min(pipe.capacity() as u64) as usize;
        let (taken, back) = out.ring.splice_in_waiting(&file.file, *at, bytes, pipe).await;
        pipe = back;
        match taken {
            Ok(0) => return Err(file.ends_early(*at, end)),
            Ok(taken) => {
                *at += taken as u64;
                return Ok(pipe);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(file.explain("reading", *at, &error)),
        }
    }
}

async fn by_sendfile(out: &mut Outgoing<'_>, file: &SegmentFile, at: u64, end: u64) -> io::Result<()> {
    out.hand_over(Egress::Sendfile, end - at);
    sendfile::send_range(out, file, at, end).await
}
