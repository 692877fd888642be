//! The ways through a pipe whose next stretch is begun while one is sent: by a worker of the kernel's, or past the page
//! cache into pages for one use.

use std::io;

use anyhow::{Result, ensure};
use ringlog::sys::{BLOCK_BYTES, Pages, Pipe, Ring, Socket};

use super::egress::{Ahead, Way};
use super::stored::{Partition, Stretch};
use crate::waiting::start;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// The beginning of a stretch, on its way.
pub(super) enum Begun {
    /// In a pipe.
    Filled(Pipe),
    /// All of it, in pages that begin at a block.
    Read(Pages),
}

/// Sends a stretch, and begins the next.
pub(super) async fn send(
    ring: &Ring,
    partition: &Partition,
    way: Way,
    socket: &Socket,
    (stretch, next): (Stretch, Option<Stretch>),
    ahead: &mut Option<Ahead>,
) -> Result<()> {
    let begun = match ahead.take() {
        Some(Ahead::Begun(of, beginning)) if of == stretch => beginning.result().await?,
        _ => begin(ring.clone(), partition.clone(), way, stretch).await?,
    };
    *ahead = next.map(|next| {
        let beginning = begin(ring.clone(), partition.clone(), way, next);
        Ahead::Begun(next, start(ring, beginning))
    });
    let pipe = match begun {
        Begun::Filled(pipe) => send_filled(ring, partition, socket, stretch, pipe).await?,
        Begun::Read(pages) => send_pages(ring, socket, stretch, pages).await?,
    };
    ring.give_pipe(pipe);
    Ok(())
}

async fn begin(ring: Ring, partition: Partition, way: Way, stretch: Stretch) -> io::Result<Begun> {
    let Stretch { at, bytes, .. } = stretch;
    if way == Way::Vmsplice {
        let first = at / BLOCK * BLOCK;
        let bytes = (at + bytes).next_multiple_of(BLOCK) - first;
        return Ok(Begun::Read(ring.read_pages(&partition.direct, first, bytes as usize).await?));
    }
    let (taken, pipe) = ring.splice_in_waiting(&partition.file, at, bytes as usize, ring.pipe()?).await;
    taken.map(|_| Begun::Filled(pipe))
}

async fn send_filled(
    ring: &Ring,
    partition: &Partition,
    socket: &Socket,
    stretch: Stretch,
    mut pipe: Pipe,
) -> Result<Pipe> {
    let (mut at, end) = (stretch.at + pipe.held() as u64, stretch.at + stretch.bytes);
    loop {
        drain(ring, &mut pipe, socket).await?;
        if at == end {
            return Ok(pipe);
        }
        let (taken, back) = ring.splice_in_waiting(&partition.file, at, (end - at) as usize, pipe).await;
        let taken = taken? as u64;
        ensure!(taken > 0, "the file ends at {at}");
        (at, pipe) = (at + taken, back);
    }
}

async fn send_pages(ring: &Ring, socket: &Socket, stretch: Stretch, pages: Pages) -> Result<Pipe> {
    let mut from = (stretch.at % BLOCK) as usize;
    let to = from + stretch.bytes as usize;
    ensure!(pages.len() >= to, "{} bytes of {to} from {}", pages.len(), stretch.at);
    let mut pipe = ring.pipe()?;
    while from < to {
        from += ring.vmsplice(&pages, from..to, &mut pipe)?;
        if from < to {
            drain(ring, &mut pipe, socket).await?;
        }
    }
    ring.unmap(pages);
    drain(ring, &mut pipe, socket).await?;
    Ok(pipe)
}

/// Sends what the pipe holds; more follows, be it the end of the answer.
async fn drain(ring: &Ring, pipe: &mut Pipe, socket: &Socket) -> io::Result<()> {
    while pipe.held() > 0 {
        match ring.splice_out(pipe, socket, true) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ring.writable(socket).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
