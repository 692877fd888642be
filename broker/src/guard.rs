//! Who keeps a connection and does nothing with it: silence, answers that nobody takes, memory that is held for nothing.
//!
//! A peer may take its time; what it may not do is hold for ever what others need. Three rules, and what each costs it:
//!
//! - Silent for [`BrokerConfig::silence_max`](crate::BrokerConfig) and waiting for nothing: closed.
//! - Of an answer under way it takes less than [`PACE_BYTES`] in that time: closed, and what is queued is thrown away. So
//!   who reads a byte a second is gone after ten minutes and a quarter, whatever it asked for.
//! - Somebody waits for memory, and the peer holds some for an answer or a request in which nothing has moved for
//!   [`STALL_MIN`]: closed, those that hold most first, until there is enough ([`is_short`]). It loses nothing but time:
//!   it comes back and is served from the file.
//!
//! What zero-copy sends have not released counts as held for an answer under way, also when the answer has been sent: the
//! memory is the peer's until it acknowledges. A conversation that is over is reset when its peer has not taken the rest
//! within [`SETTLE_MAX`].
//!
//! Whether something moves is asked of the kernel (bytes acknowledged and received), since one send may be a long one.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringlog::sys::{ArenaUse, Moment, Ring};

use crate::connection::{Broker, Connection};

/// How often memory and those who hold it are looked at while it is short.
const TICK: Duration = Duration::from_millis(250);
/// Less than this of an answer in `silence_max` is as good as silence.
const PACE_BYTES: u64 = 64 << 10;
/// When memory is short: nothing moved for that long.
const STALL_MIN: Duration = Duration::from_secs(1);

/// How long a conversation that is over is kept for what zero-copy sends have not released; the kernel would go on for
/// minutes.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What a connection had moved, and when that was noted.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    bytes: u64,
    at: Moment,
}

/// What a peer makes us hold, in one direction.
#[derive(Clone, Copy)]
pub(crate) struct Hold {
    pub bytes: u64,
    pub since: Moment,
}

/// What the peer makes us hold of answers: of the one under way, and of those sent that it has not acknowledged. Of the one
/// under way what is sent already may count twice: then fewer are closed at a time, and more at the next look.
fn sending(connection: &Connection) -> Option<Hold> {
    let unreleased = connection.socket.unreleased().map(|(bytes, since)| Hold { bytes, since });
    match (connection.sending.get(), unreleased) {
        (Some(one), Some(other)) => {
            Some(Hold { bytes: one.bytes + other.bytes, since: one.since.min(other.since) })
        }
        (one, other) => one.or(other),
    }
}

/// Waits until the peer has taken what zero-copy sends hold, and resets it if it does not: for the end of a conversation.
pub(crate) async fn settle(ring: &Ring, connection: &Connection) {
    if connection.socket.unreleased().is_none() {
        return;
    }
    let timer = ring.timer();
    timer.arm(ring.now().plus(SETTLE_MAX));
    let late = poll_fn(|cx| match connection.socket.poll_settled(cx) {
        Poll::Ready(()) => Poll::Ready(false),
        Poll::Pending => timer.poll_expired(cx).map(|()| true),
    });
    if late.await {
        let (peer, held) = (connection.describe(), connection.socket.unreleased().map_or(0, |held| held.0));
        tracing::info!(
            "connection of {peer} is reset: {SETTLE_MAX:.0?} after its end it has not taken {held} bytes"
        );
        connection.socket.abort();
    }
}

/// Three quarters of the budget are lent: once somebody had to wait, what stalls goes until fewer are.
fn is_short(usage: &ArenaUse) -> bool {
    usage.leased_bytes > usage.bytes_max / 4 * 3
}

/// Watches over the connections of a shard until it stops.
pub(crate) async fn run(broker: Rc<Broker>) {
    let (ring, silence_max) = (broker.shard.ring(), broker.config.silence_max);
    let every = (silence_max / 4).max(Duration::from_millis(10));
    let (timer, mut stop) = (ring.timer(), pin!(broker.shard.stopping()));
    let mut look = ring.now().plus(every);
    let mut short = false;
    loop {
        // A shard with memory enough is not woken for it.
        timer.arm(if short { look.min(ring.now().plus(TICK)) } else { look });
        let stopped = poll_fn(|cx| match stop.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if !short && ring.poll_short_of_memory(cx).is_ready() => Poll::Ready(false),
            Poll::Pending => timer.poll_expired(cx).map(|()| false),
        });
        if stopped.await {
            return;
        }
        let now = ring.now();
        if now >= look {
            look = now.plus(every);
            for connection in broker.connections.borrow().iter() {
                close_silent(connection, now, silence_max);
                close_slow(connection, now, silence_max);
            }
        }
        let usage = ring.arena().usage();
        short = ring.is_short_of_memory() || is_short(&usage);
        if short {
            close_stalled(&broker, now, &usage);
        }
    }
}

fn close_silent(connection: &Connection, now: Moment, silence_max: Duration) {
    let silent = since(now, connection.heard.get());
    if silent > silence_max && connection.is_idle() {
        tracing::info!("connection of {} is closed: silent for {silent:.0?}", connection.describe());
        connection.socket.shutdown();
    }
}

fn close_slow(connection: &Connection, now: Moment, silence_max: Duration) {
    let Some(hold) = sending(connection) else { return connection.paced.set(None) };
    let Some(bytes) = connection.socket.moved_bytes() else { return };
    let mark = match connection.paced.get() {
        Some(mark) if mark.at >= hold.since && bytes < mark.bytes + PACE_BYTES => mark,
        _ => Mark { bytes, at: now },
    };
    connection.paced.set(Some(mark));
    let slow = since(now, mark.at);
    if slow > silence_max {
        tracing::warn!(
            "connection of {} is closed: of an answer under way it took {} bytes in {slow:.0?}, fewer than {PACE_BYTES}",
            connection.describe(),
            bytes - mark.bytes
        );
        connection.socket.abort();
    }
}

fn close_stalled(broker: &Broker, now: Moment, usage: &ArenaUse) {
    let mut wanted = usage.leased_bytes.saturating_sub(usage.bytes_max / 4 * 3);
    let mut stalled: Vec<(u64, Rc<Connection>)> = Vec::new();
    for connection in broker.connections.borrow().iter() {
        let (sending, receiving) = (sending(connection), connection.receiving.get());
        let Some(since) = sending.iter().chain(&receiving).map(|hold| hold.since).max() else { continue };
        let Some(bytes) = connection.socket.moved_bytes() else { continue };
        let mark = match connection.stalled.get() {
            Some(mark) if mark.bytes == bytes && mark.at >= since => mark,
            _ => Mark { bytes, at: now },
        };
        connection.stalled.set(Some(mark));
        if self::since(now, mark.at) >= STALL_MIN {
            let held = sending.iter().chain(&receiving).map(|hold| hold.bytes).sum();
            stalled.push((held, connection.clone()));
        }
    }
    stalled.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
    for (held, connection) in stalled {
        tracing::warn!(
            "connection of {} is closed: {} of {} bytes of memory are lent, and it holds {held} without taking or \
             sending anything",
            connection.describe(),
            usage.leased_bytes,
            usage.bytes_max
        );
        connection.socket.abort();
        if held >= wanted {
            return;
        }
        wanted -= held;
    }
}

fn since(now: Moment, then: Moment) -> Duration {
    Duration::from_nanos(now.nanos_since(then))
}
