//! Every egress strategy, from a log to a peer that drops what comes.
//!
//! An engine for each, told to send that way. The first segment of its topic is sealed, so that every strategy may send it,
//! and lies in the tail cache too; a fetch gives the strategy the pieces that it carries. Each answer is what a broker sends: control bytes, then
//! record bytes, by the engine's own `send`. A first round, not counted, brings the page cache and the arena to
//! where they stay.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringlog::sys::{OpenOptions, Ring, Socket};
use ringlog::transfer::{Piece, Response, send};
use ringlog::{Egress, Engine, Ingress, Shard, block_on};

use super::account::{Declared, Direction, Observed, Row, ZeroCopyReport};
use super::ground::{Ground, Tried, is_lacking, lacking};
use super::link::{Link, is_told_later};
use super::oracle;
use super::peer::Order;
use super::stored::Stored;

/// The control bytes before each answer's records: about as many as a broker's.
const CONTROL_BYTES: usize = 64;
/// Of the log that is sent.
const BATCH_BYTES: usize = 64 << 10;
/// How often it is looked whether all is released.
const RELEASE_INTERVAL: Duration = Duration::from_millis(1);
/// Asked for at a time.
const FETCH_BYTES: u64 = 1 << 20;

/// The row of one strategy, or what it lacks here. `extra_copy` puts in a copy that nobody declared.
pub(super) fn row(ground: &mut Ground<'_>, egress: Egress, extra_copy: bool) -> Result<Tried> {
    let engine =
        ground.engine(&format!("egress-{egress}"), Ingress::Copy, |config| config.shard.egress = egress)?;
    let tried = row_of(ground, &engine, egress, extra_copy);
    engine.close()?;
    match tried {
        Ok(row) => Ok(Ok(row)),
        Err(error) if is_lacking(&error) => {
            Ok(Err(lacking(Direction::Egress, egress.name(), ground.link, &error)))
        }
        Err(error) => Err(error),
    }
}

fn row_of(ground: &mut Ground<'_>, engine: &Engine, egress: Egress, extra_copy: bool) -> Result<Row> {
    let stored = Stored::make(engine, "copies", ground.bytes, BATCH_BYTES)?;
    round(ground, engine, &stored, egress, extra_copy)?;
    let measured = ground.measure(|ground| {
        let (sent, dropped) = round(ground, engine, &stored, egress, extra_copy)?;
        Ok(((sent, dropped), sent.system_calls))
    })?;
    let (sent, dropped) = measured.done;
    let expected = sent.control_bytes + if egress.delivers() { sent.payload_bytes } else { 0 };
    ensure!(dropped == expected, "{egress}: {expected} bytes were sent, and {dropped} came");
    let oracle = match egress.delivers() {
        true => Some(oracle::ask(ground, engine, egress, extra_copy)?),
        false => None,
    };
    let profile = egress.profile();
    let copied_on_delivery = is_told_later(egress) && ground.link == Link::Loopback;
    Ok(Row {
        direction: Direction::Egress,
        strategy: egress.name().to_owned(),
        link: ground.link,
        payload_bytes: sent.payload_bytes,
        control_in_bytes: 0,
        control_out_bytes: sent.control_bytes,
        declared: Declared {
            copies: ground.link.sender_copies(egress),
            user_copies: profile.user_copies,
            shares_pages: profile.shares_pages && !copied_on_delivery,
        },
        observed: Observed {
            carried_bytes: sent.carried_bytes,
            stated_bytes: sent.plain_bytes(egress, ground.link),
            oracle,
            zero_copy_report: is_told_later(egress).then_some(sent.report),
            ..Observed::default()
        },
        counted: measured.counted,
        costs: measured.costs,
        disturbances: measured.disturbances,
    })
}

/// What one round sent.
#[derive(Clone, Copy, Default)]
struct Sent {
    payload_bytes: u64,
    control_bytes: u64,
    carried_bytes: u64,
    system_calls: u64,
    /// Bytes of zero-copy sends.
    lent_bytes: u64,
    report: ZeroCopyReport,
}

impl Sent {
    /// What a zero-copy strategy sent by copying, small pieces: a copy more than it declares, where the link makes none of
    /// all of them.
    fn plain_bytes(&self, egress: Egress, link: Link) -> u64 {
        match is_told_later(egress) && link != Link::Loopback {
            true => self.payload_bytes - self.lent_bytes,
            false => 0,
        }
    }
}

/// Sends what is stored once; what was sent, and how much came.
fn round(
    ground: &mut Ground<'_>,
    engine: &Engine,
    stored: &Stored,
    egress: Egress,
    extra_copy: bool,
) -> Result<(Sent, u64)> {
    let stream = ground.peer.connection(&Order::Drop)?;
    let stored = stored.clone();
    let before = block_on(engine.on_shard(|shard| async move { shard.ring().zero_copy() }))?;
    let sending = engine.on_shard(move |shard| async move {
        let counters = || (shard.transfers().egress(egress).bytes, shard.ring().counters().system_calls);
        let (bytes_before, calls_before) = counters();
        let mut sent = send_stored(&shard, &stored, egress, stream, extra_copy).await?;
        let (bytes, calls) = counters();
        (sent.carried_bytes, sent.system_calls) = (bytes - bytes_before, calls - calls_before);
        anyhow::Ok(sent)
    });
    let mut sent = block_on(sending)?.with_context(|| format!("sending by {egress}"))?;
    let dropped = ground.peer.dropped()?;
    // What became of a send is told with its release.
    let released = |shard: Shard| async move {
        while shard.ring().zero_copy().unreleased_bytes > 0 {
            shard.ring().sleep(RELEASE_INTERVAL).await;
        }
        shard.ring().zero_copy()
    };
    let after = block_on(engine.on_shard(released))?;
    sent.lent_bytes = after.sent_bytes - before.sent_bytes;
    sent.report = ZeroCopyReport {
        sends: after.sends - before.sends,
        copied: after.copied_sends - before.copied_sends,
    };
    Ok((sent, dropped))
}

async fn send_stored(
    shard: &Shard,
    stored: &Stored,
    egress: Egress,
    stream: TcpStream,
    extra_copy: bool,
) -> Result<Sent> {
    let socket = shard.ring().adopt_stream(stream)?;
    let mut sent = Sent::default();
    while sent.payload_bytes < stored.bytes() {
        let pieces = stored.pieces(shard, sent.payload_bytes, FETCH_BYTES, egress).await?;
        sent.control_bytes += CONTROL_BYTES as u64;
        sent.payload_bytes += pieces.iter().map(Piece::bytes).sum::<u64>();
        send_pieces(shard, egress, &socket, pieces, extra_copy).await?;
    }
    Ok(sent)
}

/// One answer: control bytes, then pieces.
pub(super) async fn send_pieces(
    shard: &Shard,
    egress: Egress,
    socket: &Socket,
    pieces: Vec<Piece>,
    extra_copy: bool,
) -> Result<()> {
    let ring = shard.ring();
    let mut control = ring.lease(CONTROL_BYTES).await?;
    control[..CONTROL_BYTES].fill(1);
    let mut response = Response::default();
    response.push_protocol(control.freeze().slice(0..CONTROL_BYTES));
    for piece in pieces {
        let piece = if extra_copy { copied(shard, piece).await? } else { piece };
        response.push_records(piece);
    }
    Ok(send(ring, socket, egress, &mut response, shard.transfers()).await?)
}

/// The same bytes in memory of their own: a copy made on purpose, through the page cache, where all accounts see it.
async fn copied(shard: &Shard, piece: Piece) -> Result<Piece> {
    let ring = shard.ring();
    let bytes = piece.bytes() as usize;
    match piece {
        Piece::File { file, at, .. } => read(ring, &file.file, at.0, bytes).await,
        Piece::Memory(lease) => {
            let path = shard.config().data_dir.join("extra-copy");
            let options = OpenOptions { create: true, write: true, direct: false };
            let file = ring.open(&path, options).await?;
            let (written, _lease) = ring.write(&file, 0, lease).await;
            ensure!(written? == bytes, "writing {} whole", path.display());
            read(ring, &file, 0, bytes).await
        }
    }
}

async fn read(ring: &Ring, file: &ringlog::sys::File, at: u64, bytes: usize) -> Result<Piece> {
    let mut into = ring.lease(bytes).await?;
    drop(into.split_off(bytes));
    let (read, into) = ring.read(file, at, into).await;
    ensure!(read? == bytes, "reading {bytes} bytes at {at} at once");
    Ok(Piece::Memory(into.freeze()))
}
