//! What every row is measured on: a link, a peer at its other end, a place for logs, the probes of this machine.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use ringlog::sys::topology::usable_cores;
use ringlog::{Engine, EngineConfig, Ingress, block_on};

use super::account::{Direction, Lacking, Row};
use super::costs::{Before, Costs};
use super::disturbance::disturbances;
use super::kernel::{Counted, KernelAccount};
use super::link::Link;
use super::peer::Peer;

/// A row, or what a strategy lacks.
pub(super) type Tried = std::result::Result<Row, Lacking>;

/// What batches are staged in.
const BLOCK_BYTES: usize = 1 << 20;
/// Memory of an engine that serves one peer.
const ARENA_BYTES_MAX: u64 = 96 << 20;
const TAIL_CACHE_BYTES_MAX: usize = 32 << 20;
/// Counts of one row, where TCP disturbs them.
pub(super) const TRIES_MAX: u32 = 5;

pub(super) struct Ground<'a> {
    pub kernel: Option<&'a KernelAccount>,
    pub peer: Peer,
    pub link: Link,
    /// Where a server listens on this link.
    pub address: IpAddr,
    /// Where logs go.
    pub data: PathBuf,
    /// About how much to move.
    pub bytes: u64,
}

/// What was counted while something was done.
pub(super) struct Measured<T> {
    pub done: T,
    pub counted: Option<Counted>,
    pub costs: Costs,
    /// Times that TCP copied for reasons of its own, at the last try.
    pub disturbances: u64,
}

impl<'a> Ground<'a> {
    /// Counts what `work` moves; it says what it did, and how many system calls the server made for that. Taken again when
    /// TCP copied for reasons of its own.
    pub(super) fn measure<T>(
        &mut self,
        mut work: impl FnMut(&mut Ground<'a>) -> Result<(T, u64)>,
    ) -> Result<Measured<T>> {
        let mut tries = 0;
        loop {
            let before_disturbances = disturbances()?;
            let before = Before::take(&self.data)?;
            let watch = self.kernel.map(KernelAccount::watch).transpose()?;
            let (done, system_calls) = work(self)?;
            let counted = watch.map(|watch| watch.read(self.peer.process_id())).transpose()?;
            let costs = before.until_now(system_calls)?;
            let disturbances = disturbances()? - before_disturbances;
            tries += 1;
            if disturbances == 0 || tries == TRIES_MAX {
                return Ok(Measured { done, counted, costs, disturbances });
            }
        }
    }

    /// An engine of one shard on a directory of its own.
    pub(super) fn engine(
        &self,
        name: &str,
        ingress: Ingress,
        set: impl FnOnce(&mut EngineConfig),
    ) -> Result<Engine> {
        let mut config = EngineConfig::new(self.data.join(name));
        config.cores = Some(usable_cores()?.into_iter().take(1).collect());
        config.shard.ingress = ingress;
        config.shard.trusted_producers = !ingress.checks_payload();
        config.shard.arena_bytes_max = ARENA_BYTES_MAX;
        config.shard.tail_cache_bytes_max = TAIL_CACHE_BYTES_MAX;
        config.shard.topic_defaults.log.batch_bytes_max = self.bytes as u32;
        set(&mut config);
        Ok(Engine::open(config)?)
    }
}

/// An operation or a flag that this kernel does not know.
/// Has memory made for `bytes` that are staged, as far as the arena may grow.
pub(super) fn make_memory(engine: &Engine, bytes: u64) -> Result<()> {
    let made = engine.on_shard(move |shard| async move {
        let (ring, arena) = (shard.ring(), shard.ring().arena());
        while ((arena.free_blocks(BLOCK_BYTES) * BLOCK_BYTES) as u64) < bytes
            && arena.growth_for(BLOCK_BYTES).is_some()
        {
            ring.grow(BLOCK_BYTES).await?;
        }
        std::io::Result::Ok(())
    });
    Ok(block_on(made)??)
}

pub(super) fn is_lacking(error: &anyhow::Error) -> bool {
    let unsupported = |error: &std::io::Error| error.kind() == std::io::ErrorKind::Unsupported;
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(unsupported))
}

pub(super) fn lacking(direction: Direction, strategy: &str, link: Link, error: &anyhow::Error) -> Lacking {
    Lacking { direction, strategy: strategy.to_owned(), link, why: format!("{error:#}") }
}
