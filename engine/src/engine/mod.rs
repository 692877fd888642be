//! The facade: an engine that any thread may use.
//!
//! An [`Engine`] owns one thread per core. Calls cross to the owning shard through a bounded lane and come back as a
//! future, so any runtime can await them and [`block_on`] needs none. Protocol code that wants to live on the
//! shards, without crossing, uses [`Engine::serve_on_each_shard`].

mod handle;
mod lane;
mod reply;

use std::future::Future;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use handle::{Appended, PartitionHandle};
pub use reply::block_on;

use self::lane::Lane;
use self::reply::reply;
use crate::shard::{
    AppendError, FetchError, OpenError, Shard, ShardConfig, ShardCounters, Stage, TopicConfig, TopicError,
};
use crate::sys::{Capabilities, Ring, UringOptions, topology};
use crate::transfer::{Egress, EgressCounters};
use crate::types::ShardId;

/// How long serving may go on after a stop was asked for, before it is dropped.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// Memory touched for receiving and small answers before the first request.
const FIRST_BLOCKS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How each shard works.
    pub shard: ShardConfig,
    /// The core that the shard is pinned to; `None` takes the first allowed one.
    pub core: Option<usize>,
    /// The ring and its helpers.
    pub ring: UringOptions,
}

impl EngineConfig {
    /// The usual settings for a data directory.
    #[must_use]
    pub fn new(data_dir: impl Into<std::path::PathBuf>) -> EngineConfig {
        EngineConfig { shard: ShardConfig::new(data_dir), core: None, ring: UringOptions::default() }
    }
}

/// A running engine. Dropping it without [`Engine::close`] stops it as a crash would: nothing durable is lost, and the
/// next open recovers.
pub struct Engine {
    lane: Arc<Lane>,
    thread: Option<JoinHandle<()>>,
    capabilities: Capabilities,
}

/// What went wrong in a call of the facade.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The data directory could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An append was refused or its promise broken.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A fetch has no answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A topic was not made or removed.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// What was to be appended is no record batch.
    #[error(transparent)]
    Batch(#[from] crate::log::BatchError),
    /// There is no such topic or partition.
    #[error("there is no partition {0}-{1}")]
    Unknown(String, i32),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Too many calls wait for the shard: back off.
    #[error("{0} calls wait for the shard already")]
    Busy(usize),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// What an engine counted, as plain data.
#[derive(Clone, Debug)]
pub struct EngineCounters {
    /// By the shard.
    pub shard: ShardCounters,
    /// By each egress strategy.
    pub egress: Vec<(Egress, EgressCounters)>,
    /// Where the time of appends went.
    pub stages: Vec<StageSummary>,
}

/// One stage of the life of appends, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct StageSummary {
    /// Its name.
    pub name: &'static str,
    /// How often it was passed.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl EngineCounters {
    /// What `shard` counted so far.
    #[must_use]
    pub fn of(shard: &Shard) -> EngineCounters {
        let summary = |stage: Stage| {
            let histogram = shard.stages().histogram(stage);
            StageSummary {
                name: stage.name(),
                count: histogram.len(),
                p50: histogram.value_at_quantile(0.5),
                p99: histogram.value_at_quantile(0.99),
                max: histogram.max(),
            }
        };
        EngineCounters {
            shard: shard.counters(),
            egress: Egress::ALL.iter().map(|&egress| (egress, shard.transfers().egress(egress))).collect(),
            stages: Stage::ALL.iter().map(|&stage| summary(stage)).collect(),
        }
    }
}

impl Engine {
    /// Opens the data directory and recovers it; returns when appends are taken.
    ///
    /// # Errors
    /// Cause and cure: io_uring refused, the directory in use, files that say something impossible.
    pub fn open(config: EngineConfig) -> Result<Engine, EngineError> {
        let lane = Arc::new(Lane::default());
        let (opened, answer) = reply();
        let theirs = lane.clone();
        let thread = std::thread::Builder::new()
            .name("rl-shard-0".to_owned())
            .spawn(move || {
                let _ended = EndOfLane(&theirs);
                match start(&config) {
                    Ok((ring, shard)) => {
                        let capabilities =
                            ring.capabilities().expect("a kernel's ring knows what it was granted");
                        opened.send(Ok(capabilities));
                        let lane = theirs.clone();
                        ring.run(async move { lane::serve(&lane, shard).await });
                        ring.shut_down();
                    }
                    Err(error) => opened.send(Err(error)),
                }
            })
            .map_err(EngineError::Io)?;
        match block_on(answer) {
            Some(Ok(capabilities)) => Ok(Engine { lane, thread: Some(thread), capabilities }),
            Some(Err(error)) => {
                let _ = thread.join();
                Err(error.into())
            }
            None => {
                let _ = thread.join();
                Err(EngineError::Stopped)
            }
        }
    }

    /// What the host granted.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Runs `work` on every shard, where it may use [`Shard`] without crossing threads. It should end when
    /// [`Shard::stopping`] does.
    ///
    /// # Errors
    /// [`EngineError::Busy`] or [`EngineError::Stopped`].
    pub fn serve_on_each_shard<W, F>(&self, work: W) -> Result<(), EngineError>
    where
        W: FnOnce(Shard) -> F + Send + Clone + 'static,
        F: Future<Output = ()> + 'static,
    {
        self.lane.send(lane::Call::Serve(Box::new(move |shard| Box::pin(work(shard)))))
    }

    /// Runs `work` on the shard and gives back what it gave.
    ///
    /// # Errors
    /// [`EngineError::Busy`] or [`EngineError::Stopped`].
    pub async fn on_shard<T, W, F>(&self, work: W) -> Result<T, EngineError>
    where
        T: Send + 'static,
        W: FnOnce(Shard) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.lane.call(work).await
    }

    /// Makes a topic; it survives power loss when this returns.
    ///
    /// # Errors
    /// See [`TopicError`].
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        config: TopicConfig,
    ) -> Result<(), EngineError> {
        let name = name.to_owned();
        let made = self.on_shard(move |shard| async move {
            shard.create_topic(&name, partitions, config).await.map(drop)
        });
        Ok(made.await??)
    }

    /// Removes a topic and its data.
    ///
    /// # Errors
    /// See [`TopicError`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), EngineError> {
        let name = name.to_owned();
        Ok(self.on_shard(move |shard| async move { shard.delete_topic(&name).await }).await??)
    }

    /// The names of all topics and how many partitions each has.
    ///
    /// # Errors
    /// [`EngineError::Busy`] or [`EngineError::Stopped`].
    pub async fn topics(&self) -> Result<Vec<(String, i32)>, EngineError> {
        let list = |shard: Shard| async move {
            shard.topics().iter().map(|t| (t.name.clone(), t.partitions.len() as i32)).collect()
        };
        self.on_shard(list).await
    }

    /// A handle on one partition, for any thread.
    ///
    /// # Errors
    /// [`EngineError::Unknown`] when it is not there.
    pub async fn partition(&self, topic: &str, index: i32) -> Result<PartitionHandle, EngineError> {
        let name = topic.to_owned();
        let there = self.on_shard(move |shard| async move {
            shard.topic(&name).and_then(|t| t.partitions.get(index as usize).map(|_| t.id))
        });
        match there.await? {
            Some(id) => Ok(PartitionHandle::new(self.lane.clone(), topic, id, index)),
            None => Err(EngineError::Unknown(topic.to_owned(), index)),
        }
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// [`EngineError::Busy`] or [`EngineError::Stopped`].
    pub async fn counters(&self) -> Result<EngineCounters, EngineError> {
        self.on_shard(|shard| async move { EngineCounters::of(&shard) }).await
    }

    /// Stops cleanly: serving ends within [`DRAIN_TIME_MAX`], everything accepted becomes durable, segments are trimmed,
    /// indexes and the clean-stop mark are written.
    ///
    /// # Errors
    /// What the disk said; the next open then recovers.
    pub fn close(mut self) -> Result<(), EngineError> {
        let (done, answer) = reply();
        self.lane.send(lane::Call::Close(done))?;
        let closed = block_on(answer).unwrap_or(Err(EngineError::Stopped));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        closed
    }
}

/// A panic on a shard ends the process: a log with a broken invariant must not go on writing.
struct EndOfLane<'a>(&'a Lane);

impl Drop for EndOfLane<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "ringlog: an invariant of this shard does not hold (see the panic above); the process ends"
            );
            std::process::abort();
        }
        self.0.end();
    }
}

fn start(config: &EngineConfig) -> Result<(Ring, Shard), OpenError> {
    let core = match config.core {
        Some(core) => Some(core),
        None => topology::allowed_cores()?.first().copied(),
    };
    if let Some(core) = core {
        topology::pin_to(core)?;
    }
    let ring = Ring::of_kernel(&config.ring, config.shard.arena_bytes_max)?;
    let (inner, shard_config) = (ring.clone(), config.shard.clone());
    let shard = ring.run(async move {
        for bytes in FIRST_BLOCKS {
            inner.grow(bytes).await?;
        }
        Shard::open(&inner, ShardId(0), shard_config).await
    })?;
    Ok((ring, shard))
}
