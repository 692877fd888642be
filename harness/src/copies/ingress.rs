//! Every ingress strategy, and whole paths: a broker on an engine, and a peer that produces to it and fetches from it.
//!
//! The peer waits for each answer before the next request, so that nobody contends for a partition's tail. One batch
//! goes ahead, not counted, for memory that is touched once.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use ringlog::{Ack, Egress, Engine, EngineCounters, Ingress, TopicConfig, block_on};
use ringlog_broker::BrokerConfig;

use super::account::{Declared, Direction, Observed, Row};
use super::costs::Costs;
use super::ground::{Ground, TRIES_MAX, Tried, is_lacking, lacking, make_memory};
use super::kernel::Counted;
use super::link::{Link, is_told_later};
use super::load::Exchange;
use super::peer::Order;

/// The smallest that ways for large batches are for: what is stated is the most then.
const BATCH_BYTES: usize = 64 << 10;
const FETCH_BYTES: usize = 1 << 20;
/// Memory beside what the counted conversations are staged in.
const SPARE_BYTES: u64 = 8 << 20;
const TOPIC: &str = "copies";

/// The row of one ingress strategy.
pub(super) fn row(ground: &mut Ground<'_>, ingress: Ingress) -> Result<Tried> {
    let tried = conversation(ground, ingress, Egress::Copy, 0);
    let moved = match tried {
        Ok(moved) => moved,
        Err(error) if is_lacking(&error) => {
            return Ok(Err(lacking(Direction::Ingress, ingress.name(), ground.link, &error)));
        }
        Err(error) => return Err(error),
    };
    let profile = ingress.profile();
    let declared = Declared {
        copies: profile.cpu_copies,
        user_copies: profile.user_copies,
        shares_pages: profile.shares_pages,
    };
    Ok(Ok(moved.row(Direction::Ingress, ingress.name().to_owned(), declared)))
}

/// The row of a whole path: all that is produced is fetched once, from memory.
pub(super) fn path(ground: &mut Ground<'_>, ingress: Ingress, egress: Egress) -> Result<Tried> {
    let name = format!("{ingress} + {egress}");
    let mut moved = match conversation(ground, ingress, egress, 1) {
        Ok(moved) => moved,
        Err(error) if is_lacking(&error) => {
            return Ok(Err(lacking(Direction::Path, &name, ground.link, &error)));
        }
        Err(error) => return Err(error),
    };
    let (way_in, way_out) = (ingress.profile(), egress.profile());
    let declared = Declared {
        copies: way_in.cpu_copies + ground.link.sender_copies(egress),
        user_copies: way_in.user_copies + way_out.user_copies,
        shares_pages: false,
    };
    // What did not go by both ways went by another.
    moved.carried_bytes = moved.carried_bytes.min(moved.sent_bytes);
    Ok(Ok(moved.row(Direction::Path, name, declared)))
}

/// What went through a server.
struct Moved {
    exchange: Exchange,
    carried_bytes: u64,
    /// Sent by the egress strategy's own means.
    sent_bytes: u64,
    user_copied_bytes: u64,
    /// Of the ways for large batches: bytes of shared last blocks, and of batches what did not come in place.
    remainder_bytes: Option<u64>,
    link: Link,
    counted: Option<Counted>,
    costs: Costs,
    disturbances: u64,
}

impl Moved {
    fn row(self, direction: Direction, strategy: String, declared: Declared) -> Row {
        let payload_bytes = self.exchange.produced_bytes;
        // Else what a reader took too much of and had to move, and no counter tells apart: what is above the strategy's own.
        let own_bytes = (declared.user_copies * payload_bytes as f64) as u64;
        let stated_bytes = self.remainder_bytes.unwrap_or(self.user_copied_bytes.saturating_sub(own_bytes));
        let observed = Observed {
            carried_bytes: self.carried_bytes,
            user_copied_bytes: self.user_copied_bytes,
            stated_bytes,
            ..Observed::default()
        };
        Row {
            direction,
            strategy,
            link: self.link,
            payload_bytes,
            control_in_bytes: self.exchange.sent_bytes - self.exchange.produced_bytes,
            control_out_bytes: self.exchange.received_bytes - self.exchange.fetched_bytes,
            declared,
            observed,
            counted: self.counted,
            costs: self.costs,
            disturbances: self.disturbances,
        }
    }
}

fn conversation(ground: &mut Ground<'_>, ingress: Ingress, egress: Egress, fetches: u32) -> Result<Moved> {
    let name = format!("{ingress}-{egress}-{fetches}");
    let engine = ground.engine(&name, ingress, |config| config.shard.egress = egress)?;
    if let Some(what) = block_on(engine.on_shard(|shard| async move { shard.ingress_lacks() }))? {
        engine.close()?;
        let words = format!("{ingress} goes another way here: there is no {what}");
        return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, words).into());
    }
    // Memory that is there already: what has to be made first costs the tail cache as much, and what is lent to the kernel is
    // not free for a while.
    let bytes = u64::from(TRIES_MAX) * ground.bytes + SPARE_BYTES;
    make_memory(&engine, bytes)?;
    let config = TopicConfig { ack: Ack::Durable, ..TopicConfig::default() };
    for topic in ["warm", TOPIC] {
        let mut config = config.clone();
        config.log.batch_bytes_max = 2 * BATCH_BYTES as u32;
        block_on(engine.create_topic(topic, 1, config))?;
    }
    let serving = ringlog_broker::start(&engine, BrokerConfig::new(SocketAddr::new(ground.address, 0)))?;
    let converse = |topic: &str, batches| Order::Converse {
        server: serving.address(),
        topic: topic.to_owned(),
        batches,
        batch_bytes: BATCH_BYTES,
        fetch_bytes: FETCH_BYTES,
        fetches,
    };
    let words = || format!("{ingress} and {egress}");
    ground.peer.converse(&converse("warm", 1)).with_context(words)?;
    let batches = (ground.bytes / BATCH_BYTES as u64).max(1);
    let measured = ground.measure(|ground| {
        let before = counters(&engine)?;
        let exchange = ground.peer.converse(&converse(TOPIC, batches)).with_context(words)?;
        let after = counters(&engine)?;
        let system_calls = after.shard.ring.system_calls - before.shard.ring.system_calls;
        Ok(((before, exchange, after), system_calls))
    })?;
    let (before, exchange, after) = measured.done;
    ensure!(
        exchange.fetched_bytes == exchange.produced_bytes * u64::from(fetches),
        "{} bytes were produced, and {} fetched",
        exchange.produced_bytes,
        exchange.fetched_bytes
    );
    engine.close()?;
    let sent = |counters: &EngineCounters| {
        counters.egress.iter().find(|(of, _)| *of == egress).map_or(0, |(_, counted)| counted.bytes)
    };
    let ingress_bytes = after.shard.ingress_bytes - before.shard.ingress_bytes;
    let in_place_bytes = after.shard.ingress_in_place_bytes - before.shard.ingress_in_place_bytes;
    // What a zero-copy strategy sent by copying, as in `egress`.
    let lends = fetches > 0 && is_told_later(egress) && ground.link != Link::Loopback;
    let lent_bytes = after.shard.zero_copy.sent_bytes - before.shard.zero_copy.sent_bytes;
    let plain_bytes = if lends { exchange.fetched_bytes.saturating_sub(lent_bytes) } else { 0 };
    let last_block_bytes = after.shard.last_block_copied_bytes - before.shard.last_block_copied_bytes;
    Ok(Moved {
        exchange,
        carried_bytes: ingress_bytes,
        remainder_bytes: (in_place_bytes > 0)
            .then_some(ingress_bytes - in_place_bytes + last_block_bytes + plain_bytes),
        sent_bytes: sent(&after) - sent(&before),
        user_copied_bytes: user_copied(&after) - user_copied(&before),
        link: ground.link,
        counted: measured.counted,
        costs: measured.costs,
        disturbances: measured.disturbances,
    })
}

fn user_copied(counters: &EngineCounters) -> u64 {
    counters.shard.ingress_copied_bytes + counters.shard.last_block_copied_bytes
}

fn counters(engine: &Engine) -> Result<EngineCounters> {
    block_on(engine.counters())?.into_iter().next().context("an engine has a shard")
}
