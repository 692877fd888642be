//! The mutation oracle: bytes are sent, their source is overwritten, and only then does the peer look.
//!
//! New bytes mean that source and socket shared pages, old bytes that somebody copied. On the loopback all that is sent
//! lies with the receiver by then; over a card the receiver's window is made so small that most of it still waits with
//! the sender. Memory of the tail cache is overwritten through `/proc/self/mem`, files through the page cache.
//! Whatever reads into memory of its own first has no source outside.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringlog::sys::Lease;
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
    let stored = Stored::make(engine, "overwritten", BYTES, BATCH_BYTES)?;
    let receive_buffer_bytes = (ground.link != Link::Loopback).then_some(RECEIVE_BUFFER_BYTES);
    let stream = ground.peer.connection(&Order::Hold { receive_buffer_bytes })?;
    let sending = stored.clone();
    let sources = block_on(engine.on_shard(move |shard| async move {
        let pieces = sending.pieces(&shard, 0, BYTES, egress).await?;
        let socket = shard.ring().adopt_stream(stream)?;
        let sources = pieces.iter().map(Source::of).collect();
        let ring = shard.ring().clone();
        let sent =
            start(&ring, async move { send_pieces(&shard, egress, &socket, pieces, extra_copy).await });
        if let Some(sent) = within(&ring, QUEUED_AFTER, sent.result()).await {
            sent?;
        }
        anyhow::Ok::<Vec<Source>>(sources)
    }))?
    .with_context(|| format!("sending by {egress} what will be overwritten"))?;
    // Not on the shard's thread: who holds a lease on the file must be able to give it up.
    for source in &sources {
        source.overwrite().with_context(|| format!("overwriting what {egress} sent"))?;
    }
    ground.peer.look()?;
    let found = ground.peer.found()?;
    ensure!(found.bytes >= stored.bytes(), "{egress}: {} of {} bytes came", found.bytes, stored.bytes());
    Ok(if found.new_bytes >= NEW_BYTES_MIN { Oracle::Shared } else { Oracle::Copied })
}

/// Where sent bytes lie.
enum Source {
    /// Held, so that nobody else is given it.
    Memory(Lease),
    File {
        path: Arc<Path>,
        at: u64,
        bytes: u64,
    },
}

impl Source {
    fn of(piece: &Piece) -> Source {
        match piece {
            Piece::Memory(lease) => Source::Memory(lease.clone()),
            Piece::File { file, at, bytes } => {
                Source::File { path: file.path.clone(), at: at.0, bytes: *bytes }
            }
        }
    }

    fn overwrite(&self) -> std::io::Result<()> {
        let (path, at, bytes) = match self {
            Source::Memory(lease) => (Path::new("/proc/self/mem"), lease.as_ptr() as u64, lease.len() as u64),
            Source::File { path, at, bytes } => (&**path, *at, *bytes),
        };
        OpenOptions::new().write(true).open(path)?.write_all_at(&vec![NEW_BYTE; bytes as usize], at)
    }
}
