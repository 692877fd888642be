//! What every row is measured on: a link, a peer at its other end, a place for logs, the probes of this machine.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use ringlog::sys::topology::usable_cores;
use ringlog::{Engine, EngineConfig, Ingress};

use super::account::{Direction, Lacking, Row};
use super::costs::{Before, Costs};
use super::kernel::{Counted, KernelAccount, Watch};
use super::link::Link;
use super::peer::Peer;

/// A row, or what a strategy lacks.
pub(super) type Tried = std::result::Result<Row, Lacking>;

/// Memory of an engine that serves one peer.
const ARENA_BYTES_MAX: u64 = 96 << 20;
const TAIL_CACHE_BYTES_MAX: usize = 32 << 20;

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

/// A measurement under way.
pub(super) struct Begun<'a> {
    before: Before,
    watch: Option<Watch<'a>>,
}

impl<'a> Ground<'a> {
    /// Counts from now on.
    pub(super) fn begin(&self) -> Result<Begun<'a>> {
        let before = Before::take(&self.data)?;
        let watch = self.kernel.map(KernelAccount::watch).transpose()?;
        Ok(Begun { before, watch })
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
        config.shard.arena_bytes_max = ARENA_BYTES_MAX;
        config.shard.tail_cache_bytes_max = TAIL_CACHE_BYTES_MAX;
        config.shard.topic_defaults.log.batch_bytes_max = self.bytes as u32;
        set(&mut config);
        Ok(Engine::open(config)?)
    }
}

impl Begun<'_> {
    /// What was counted; `system_calls` is the server's own number.
    pub(super) fn end(self, ground: &Ground<'_>, system_calls: u64) -> Result<(Option<Counted>, Costs)> {
        let counted = self.watch.map(|watch| watch.read(ground.peer.process_id())).transpose()?;
        Ok((counted, self.before.until_now(system_calls)?))
    }
}

/// An operation or a flag that this kernel does not know.
pub(super) fn is_lacking(error: &anyhow::Error) -> bool {
    let unsupported = |error: &std::io::Error| error.kind() == std::io::ErrorKind::Unsupported;
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(unsupported))
}

pub(super) fn lacking(direction: Direction, strategy: &str, link: Link, error: &anyhow::Error) -> Lacking {
    Lacking { direction, strategy: strategy.to_owned(), link, why: format!("{error:#}") }
}
