//! The mutation oracle: bytes are sent, their source is overwritten, and only then does the peer look.
//!
//! New bytes mean that source and socket shared pages, old bytes that somebody copied. On the loopback all that is sent
//! lies with the receiver by then; over a card the receiver's window is made so small that most of it still waits with
//! the sender. Memory of the tail cache is overwritten through `/proc/self/mem`, files through the page cache.
//! Whatever reads into memory of its own first has no source outside.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringlog::transfer::Piece;
use ringlog::{Egress, Engine, block_on};

use super::account::Oracle;
use super::egress::send_pieces;
use super::ground::Ground;
use super::link::Link;
use super::peer::{NEW_BYTE, Order};
use super::stored::Stored;
use crate::waiting::{start, within};

/// Little enough for the queues of any socket.
const BYTES: u64 = 32 << 10;
const BATCH_BYTES: usize = 16 << 10;
/// Window of a peer that holds back what came over a card.
const RECEIVE_BUFFER_BYTES: usize = 4 << 10;
/// A send that waits for its release has queued everything long before that.
const QUEUED_AFTER: Duration = Duration::from_millis(500);
/// Fewer new bytes than that are chance: of batches' heads, which hold anything.
const NEW_BYTES_MIN: u64 = 1 << 10;

/// What overwriting shows of `egress`.
pub(super) fn ask(
    ground: &mut Ground<'_>,
    engine: &Engine,
    egress: Egress,
    extra_copy: bool,
) -> Result<Oracle> {
    if egress.reads_direct() && egress.carries().file {
        return Ok(Oracle::Silent("it reads into memory of its own".to_owned()));
    }
    let topic = format!("oracle-{}-{}", egress.name(), ground.link.name().replace(' ', "-"));
    let stored = Stored::make(engine, &topic, BYTES, BATCH_BYTES)?;
    let receive_buffer_bytes = (ground.link != Link::Loopback).then_some(RECEIVE_BUFFER_BYTES);
    let stream = ground.peer.connection(&Order::Hold { receive_buffer_bytes })?;
    let sending = stored.clone();
    block_on(engine.on_shard(move |shard| async move {
        let pieces = sending.pieces(&shard, 0, BYTES, egress).await?;
        let socket = shard.ring().adopt_stream(stream)?;
        let sources = pieces.clone();
        let ring = shard.ring().clone();
        let sent =
            start(&ring, async move { send_pieces(&shard, egress, &socket, pieces, extra_copy).await });
        if let Some(sent) = within(&ring, QUEUED_AFTER, sent.result()).await {
            sent?;
        }
        sources.iter().try_for_each(overwrite)
    }))?
    .with_context(|| format!("overwriting what {egress} sent"))?;
    ground.peer.look()?;
    let found = ground.peer.found()?;
    ensure!(found.bytes >= stored.bytes(), "{egress}: {} of {} bytes came", found.bytes, stored.bytes());
    Ok(if found.new_bytes >= NEW_BYTES_MIN { Oracle::Shared } else { Oracle::Copied })
}

fn overwrite(piece: &Piece) -> Result<()> {
    let new = vec![NEW_BYTE; piece.bytes() as usize];
    match piece {
        Piece::File { file, at, .. } => {
            let segment = OpenOptions::new().write(true).open(&file.path)?;
            segment.write_all_at(&new, at.0)?;
        }
        Piece::Memory(lease) => {
            let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
            write_at(&memory, &new, lease.as_ptr() as u64)?;
        }
    }
    Ok(())
}

fn write_at(memory: &File, new: &[u8], address: u64) -> Result<()> {
    memory.write_all_at(new, address).with_context(|| format!("overwriting {} bytes of memory", new.len()))
}
