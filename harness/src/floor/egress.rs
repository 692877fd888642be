//! From a file to a socket by each of the ways that rows have, with nothing around it.
//!
//! The next stretch is asked for while one is sent: a reader that catches up goes on where it was.

use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, bail, ensure};
use ringlog::sys::{BLOCK_BYTES, Lease, Ring, Socket};

use super::stored::{Partition, Stored, Stretch};
use super::{Answer, Asked, Floor};
use crate::waiting::{Started, start};

/// Brought into the page cache at a time, ahead of who shares its pages.
const WARM_BYTES: u64 = 4 << 20;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A way from file to socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// read(2) through the page cache, send.
    Copy,
    /// O_DIRECT into registered memory, send.
    Direct,
    /// sendfile(2).
    Sendfile,
    /// splice(2) by a pipe.
    Splice,
}

/// What was begun for the next answer.
pub(super) enum Ahead {
    /// Bytes of a stretch.
    Read(Stretch, Started<std::io::Result<Lease>>),
    /// The page cache, up to a position.
    Warmed(u64, Started<std::io::Result<()>>),
}

impl FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Way> {
        Ok(match name {
            "copy" => Way::Copy,
            // What sends memory reads what is cold the way that keeps it out of the page cache.
            "direct" | "tail" => Way::Direct,
            "sendfile" => Way::Sendfile,
            "splice" => Way::Splice,
            _ => bail!("there is no floor for egress `{name}`"),
        })
    }
}

/// Answers one request.
pub(super) async fn answer(
    floor: &Floor,
    stored: &Stored,
    way: Way,
    socket: &Socket,
    asked: &Asked,
    answer: &mut Answer,
    ahead: &mut Option<Ahead>,
) -> Result<()> {
    let ring = &floor.ring;
    let partition = stored.partition(asked.partition)?;
    let stretch = partition.stretch(asked.offset, asked.bytes_max as u64)?;
    let record_bytes = stretch.map_or(0, |stretch| stretch.bytes);
    floor.moved.fetch_add(record_bytes, Relaxed);
    let (before, behind) = answer.encode(asked, partition.end(), record_bytes)?;
    let mut side = ring.lease(before.len() + behind.len()).await?;
    side[..before.len()].copy_from_slice(before);
    side[before.len()..before.len() + behind.len()].copy_from_slice(behind);
    let (middle, whole) = (before.len(), before.len() + behind.len());
    let side = side.freeze();
    answer.push(side.slice(0..middle))?;
    if let Some(stretch) = stretch {
        match way {
            Way::Copy | Way::Direct => {
                let bytes = match ahead.take() {
                    Some(Ahead::Read(begun, reading)) if begun == stretch => reading.result().await?,
                    _ => read(ring.clone(), partition.clone(), way, stretch).await?,
                };
                *ahead = partition.stretch(stretch.end, asked.bytes_max as u64)?.map(|next| {
                    Ahead::Read(next, start(ring, read(ring.clone(), partition.clone(), way, next)))
                });
                answer.push(bytes)?;
            }
            Way::Sendfile | Way::Splice => {
                answer.send(ring, socket, true).await?;
                share(ring, partition, way, socket, stretch, ahead).await?;
            }
        }
    }
    answer.push(side.slice(middle..whole))?;
    answer.send(ring, socket, false).await
}

/// Reads a stretch whole; past the page cache, by whole blocks.
async fn read(ring: Ring, partition: Partition, way: Way, stretch: Stretch) -> std::io::Result<Lease> {
    let Stretch { at, bytes, .. } = stretch;
    let end = at + bytes;
    let (file, first, last) = match way {
        Way::Direct => (&partition.direct, at / BLOCK * BLOCK, end.next_multiple_of(BLOCK)),
        _ => (&partition.file, at, end),
    };
    let mut into = ring.lease((last - first) as usize).await?;
    drop(into.split_off((last - first) as usize));
    let (read, into) = ring.read(file, first, into).await;
    let wanted = end - first;
    match read? as u64 {
        read if read >= wanted => Ok(into.freeze().slice((at - first) as usize..wanted as usize)),
        read => {
            let words = format!("{read} of {wanted} bytes at {first}");
            Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, words))
        }
    }
}

/// Puts pages of the file into the socket's queue.
async fn share(
    ring: &Ring,
    partition: &Partition,
    way: Way,
    socket: &Socket,
    stretch: Stretch,
    ahead: &mut Option<Ahead>,
) -> Result<()> {
    let (mut at, end) = (stretch.at, stretch.at + stretch.bytes);
    let file = &partition.file;
    let mut warm_to = match ahead.take() {
        Some(Ahead::Warmed(to, warming)) => {
            warming.result().await?;
            to.max(at)
        }
        _ => at,
    };
    if warm_to < end {
        warm_to = at + WARM_BYTES.max(stretch.bytes);
        ring.warm_cache(file, at, warm_to).await?;
    }
    // One step is brought in while the one before it is sent.
    let next = if warm_to - end <= WARM_BYTES / 2 { warm_to + WARM_BYTES } else { warm_to };
    let (warm, cold) = (ring.clone(), file.clone());
    let warming = start(ring, async move {
        if next > warm_to { warm.warm_cache(&cold, warm_to, next).await } else { Ok(()) }
    });
    *ahead = Some(Ahead::Warmed(next, warming));
    let mut pipe = match way {
        Way::Splice => Some(ring.pipe().context("a pipe")?),
        _ => None,
    };
    while at < end || pipe.as_ref().is_some_and(|pipe| pipe.held() > 0) {
        let moved = match &mut pipe {
            None => ring.sendfile(socket, file, at, end - at),
            Some(pipe) if pipe.held() == 0 => {
                let taken = ring.splice_in(file, at, (end - at) as usize, pipe)?;
                ensure!(taken > 0, "the file ends at {at}");
                at += taken as u64;
                continue;
            }
            Some(pipe) => ring.splice_out(pipe, socket, true),
        };
        match moved {
            Ok(0) => bail!("the file ends at {at}"),
            Ok(bytes) if pipe.is_none() => at += bytes as u64,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => ring.writable(socket).await?,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(pipe) = pipe {
        ring.give_pipe(pipe);
    }
    Ok(())
}
