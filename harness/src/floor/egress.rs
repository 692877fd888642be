//! From a file to a socket by each of the ways that rows have, with nothing around it.
//!
//! The next stretch is asked for while one is sent: a reader that catches up goes on where it was.

use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, bail, ensure};
use ringlog::sys::{BLOCK_BYTES, Lease, Lending, Ring, Socket};

use super::pipes::{self, Begun};
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
    /// O_DIRECT into registered memory, lent to the send.
    DirectZc,
    /// sendfile(2).
    Sendfile,
    /// splice(2) by a pipe.
    Splice,
    /// send(2) from a map of the file.
    Mmap,
    /// The same, and tee(2) from one pipe to another between.
    Tee,
    /// IORING_OP_SPLICE into a pipe, splice(2) out of it.
    RingSplice,
    /// O_DIRECT into pages for one use, vmsplice(2) into a pipe, splice(2) out of it.
    Vmsplice,
}

/// What was begun for the next answer.
pub(super) enum Ahead {
    /// Bytes of a stretch.
    Read(Stretch, Started<std::io::Result<Lease>>),
    /// The page cache, up to a position.
    Warmed(u64, Started<std::io::Result<()>>),
    /// The way of a stretch through a pipe.
    Begun(Stretch, Started<std::io::Result<Begun>>),
}

impl FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Way> {
        Ok(match name {
            "copy" => Way::Copy,
            // What sends memory reads what is cold the way that keeps it out of the page cache.
            "direct" | "tail" => Way::Direct,
            "direct_zc" | "tail_zc" => Way::DirectZc,
            "sendfile" => Way::Sendfile,
            "splice" => Way::Splice,
            "mmap" => Way::Mmap,
            "tee" => Way::Tee,
            "ring_splice" => Way::RingSplice,
            "vmsplice" => Way::Vmsplice,
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
            Way::Copy | Way::Direct | Way::DirectZc => {
                let bytes = match ahead.take() {
                    Some(Ahead::Read(begun, reading)) if begun == stretch => reading.result().await?,
                    _ => read(ring.clone(), partition.clone(), way, stretch).await?,
                };
                *ahead = partition.stretch(stretch.end, asked.bytes_max as u64)?.map(|next| {
                    Ahead::Read(next, start(ring, read(ring.clone(), partition.clone(), way, next)))
                });
                let bytes = match way {
                    Way::DirectZc => lend(ring, socket, answer, bytes).await?,
                    _ => Some(bytes),
                };
                if let Some(bytes) = bytes {
                    answer.push(bytes)?;
                }
            }
            Way::RingSplice | Way::Vmsplice => {
                answer.send(ring, socket, true).await?;
                let next = partition.stretch(stretch.end, asked.bytes_max as u64)?;
                pipes::send(ring, partition, way, socket, (stretch, next), ahead).await?;
            }
            Way::Sendfile | Way::Splice | Way::Tee | Way::Mmap => {
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
        Way::Direct | Way::DirectZc => (&partition.direct, at / BLOCK * BLOCK, end.next_multiple_of(BLOCK)),
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

/// Sends what has gathered, then `bytes` without a copy; gives back what could not be lent.
async fn lend(ring: &Ring, socket: &Socket, answer: &mut Answer, mut bytes: Lease) -> Result<Option<Lease>> {
    answer.send(ring, socket, true).await?;
    while !bytes.is_empty() {
        match ring.send_zero_copy(socket, &bytes, true).await? {
            Lending::Sent(0) => bail!("the socket takes nothing"),
            Lending::Sent(sent) => bytes = bytes.slice(sent..bytes.len()),
            Lending::NotLent => return Ok(Some(bytes)),
        }
    }
    Ok(None)
}

/// Puts pages of the file, or what a map shows of them, into the socket's queue.
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
    let map = match way {
        Way::Mmap => Some(partition.map(ring).await?),
        _ => None,
    };
    // One step is brought in while the one before it is sent.
    let next = if warm_to - end <= WARM_BYTES / 2 { warm_to + WARM_BYTES } else { warm_to };
    let (warm, cold) = (ring.clone(), file.clone());
    let warming = start(ring, async move {
        if next > warm_to { warm.warm_cache(&cold, warm_to, next).await } else { Ok(()) }
    });
    *ahead = Some(Ahead::Warmed(next, warming));
    let a_pipe = || ring.pipe().context("a pipe");
    let mut pipe = if matches!(way, Way::Sendfile | Way::Mmap) { None } else { Some(a_pipe()?) };
    let mut master = if way == Way::Tee { Some(a_pipe()?) } else { None };
    while at < end || pipe.as_ref().is_some_and(|pipe| pipe.held() > 0) {
        let moved = match &mut pipe {
            None if map.is_some() => {
                let map = map.as_ref().expect("checked above");
                ring.send_mapped(socket, map, at, end - at, true)
            }
            None => ring.sendfile(socket, file, at, end - at),
            Some(pipe) if pipe.held() == 0 => {
                let taken = match &mut master {
                    Some(master) => {
                        ring.splice_in(file, at, (end - at) as usize, master)?;
                        let taken = ring.tee(master, pipe, master.held())?;
                        ring.discard(master, master.held())?;
                        taken
                    }
                    None => ring.splice_in(file, at, (end - at) as usize, pipe)?,
                };
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
    [pipe, master].into_iter().flatten().for_each(|pipe| ring.give_pipe(pipe));
    Ok(())
}
