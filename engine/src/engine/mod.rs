//! The facade: an engine that any thread may use.
//!
//! An [`Engine`] owns one thread per core. Calls cross to the owning shard through a bounded lane and come back as a
//! future, so any runtime can await them and [`block_on`] needs none. Protocol code that wants to live on the
//! shards, without crossing, uses [`Engine::serve_on_each_shard`].

mod calls;
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
    AppendError, FetchError, Node, OpenError, Shard, ShardConfig, ShardCounters, Stage, TopicConfig,
    TopicError, VIRTUAL_SHARDS,
};
use crate::sys::{Capabilities, Ring, UringOptions, topology};
use crate::transfer::{ChoiceCounters, Egress, EgressCounters, Reason};
use crate::types::{PartitionId, ShardId};

/// How long serving may go on after a stop was asked for, before it is dropped.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// Memory touched for receiving and small answers before the first request.
const FIRST_BLOCKS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// How to open an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How each shard works.
    pub shard: ShardConfig,
    /// The cores to run on, a shard on each; `None` takes all that this process may use.
    pub cores: Option<Vec<usize>>,
    /// The ring and its helpers.
    pub ring: UringOptions,
}

impl EngineConfig {
    /// The usual settings for a data directory.
    #[must_use]
    pub fn new(data_dir: impl Into<std::path::PathBuf>) -> EngineConfig {
        EngineConfig { shard: ShardConfig::new(data_dir), cores: None, ring: UringOptions::default() }
    }
}

/// A running engine. Dropping it without [`Engine::close`] stops it as a crash would: nothing durable is lost, and the
/// next open recovers.
pub struct Engine {
    shards: Vec<Running>,
    cores: Vec<usize>,
    capabilities: Capabilities,
}

/// One shard's thread, and the way to it.
struct Running {
    lane: Arc<Lane>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.lane.send(lane::Call::Leave);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
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

/// What one shard of an engine counted, as plain data.
#[derive(Clone, Debug)]
pub struct EngineCounters {
    /// By the shard itself.
    pub shard: ShardCounters,
    /// By each egress strategy.
    pub egress: Vec<(Egress, EgressCounters)>,
    /// What `auto` chose, by its reasons.
    pub choices: Vec<(Reason, ChoiceCounters)>,
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
            choices: Reason::ALL.iter().map(|&reason| (reason, shard.transfers().choices(reason))).collect(),
            stages: Stage::ALL.iter().map(|&stage| summary(stage)).collect(),
        }
    }
}

impl Engine {
    /// Opens the data directory and recovers it, every shard its own partitions; returns when appends are taken.
    ///
    /// # Errors
    /// Cause and cure: io_uring refused, the directory in use, files that say something impossible.
    pub fn open(config: EngineConfig) -> Result<Engine, EngineError> {
        let cores = match &config.cores {
            Some(cores) => cores.clone(),
            None => topology::usable_cores()?,
        };
        let shards = u16::try_from(cores.len()).unwrap_or(u16::MAX);
        if !(1..=VIRTUAL_SHARDS).contains(&shards) {
            let why = format!("{} cores: 1 to {VIRTUAL_SHARDS} are possible", cores.len());
            return Err(OpenError::Refused(why).into());
        }
        let mut running = Vec::new();
        let mut openings = Vec::new();
        // Shard 0 opens the directory; what it found is handed to the others, and all recover at once.
        let (found, node) = reply();
        let (first, opened) = Running::start(0, cores[0], &config, Directory::Open { shards, found })?;
        running.push(first);
        openings.push(opened);
        if let Some(node) = block_on(node) {
            for (number, &core) in cores.iter().enumerate().skip(1) {
                let directory = Directory::Opened(node.clone());
                let (next, opened) = Running::start(number as u16, core, &config, directory)?;
                running.push(next);
                openings.push(opened);
            }
        }
        let mut capabilities = Vec::new();
        for opened in openings {
            capabilities.push(block_on(opened).ok_or(EngineError::Stopped)??);
        }
        Ok(Engine { shards: running, cores, capabilities: capabilities.swap_remove(0) })
    }

    /// What the host granted.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The cores that the shards run on, by shard.
    #[must_use]
    pub fn cores(&self) -> &[usize] {
        &self.cores
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
        for running in &self.shards {
            let work = work.clone();
            running.lane.send(lane::Call::Serve(Box::new(move |shard| Box::pin(work(shard)))))?;
        }
        Ok(())
    }

    /// Runs `work` on a shard, the first one, and gives back what it gave.
    ///
    /// # Errors
    /// [`EngineError::Busy`] or [`EngineError::Stopped`].
    pub async fn on_shard<T, W, F>(&self, work: W) -> Result<T, EngineError>
    where
        T: Send + 'static,
        W: FnOnce(Shard) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.shards[0].lane.call(work).await
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
            shard.topics().iter().map(|t| (t.name.to_string(), t.partition_count())).collect()
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
            shard.topic(&name).and_then(|t| t.board(index).map(|_| (t.id, t.owner(index))))
        });
        match there.await? {
            Some((topic_id, owner)) => {
                let lane = self.shards[usize::from(owner.0)].lane.clone();
                Ok(PartitionHandle::new(lane, topic, PartitionId { topic: topic_id, index }))
            }
            None => Err(EngineError::Unknown(topic.to_owned(), index)),
        }
    }

    /// What was counted so far, by shard.
    ///
    /// # Errors
    /// [`EngineError::Busy`] or [`EngineError::Stopped`].
    pub async fn counters(&self) -> Result<Vec<EngineCounters>, EngineError> {
        let mut all = Vec::new();
        for running in &self.shards {
            all.push(running.lane.call(|shard| async move { EngineCounters::of(&shard) }).await?);
        }
        Ok(all)
    }

    /// Stops cleanly: serving ends within [`DRAIN_TIME_MAX`], everything accepted becomes durable, segments are trimmed,
    /// indexes and the clean-stop mark are written.
    ///
    /// # Errors
    /// What the disk said; the next open then recovers.
    pub fn close(self) -> Result<(), EngineError> {
        let mut drained = Vec::new();
        for running in &self.shards {
            let (done, answer) = reply();
            running.lane.send(lane::Call::Drain(done))?;
            drained.push(answer);
        }
        for answer in drained {
            block_on(answer).unwrap_or(Err(EngineError::Stopped))?;
        }
        // Every shard has drained: only now may the mark say so.
        block_on(self.on_shard(|shard| async move { shard.seal().await }))??;
        Ok(())
    }
}

/// Where a shard gets its data directory from.
enum Directory {
    /// It opens it, for so many shards, and hands on what it found.
    Open { shards: u16, found: reply::Sender<Arc<Node>> },
    /// Shard 0 has opened it.
    Opened(Arc<Node>),
}

type Opened = reply::Receiver<Result<Capabilities, OpenError>>;

impl Running {
    fn start(
        number: u16,
        core: usize,
        config: &EngineConfig,
        directory: Directory,
    ) -> Result<(Running, Opened), EngineError> {
        let lane = Arc::new(Lane::default());
        let (opened, answer) = reply();
        let (theirs, config) = (lane.clone(), config.clone());
        let life = move || {
            let _ended = EndOfLane { lane: &theirs, number };
            match begin(ShardId(number), core, &config, directory) {
                Ok((ring, shard)) => {
                    let granted = ring.capabilities().expect("a kernel's ring knows what it was granted");
                    opened.send(Ok(granted));
                    let lane = theirs.clone();
                    ring.run(async move { lane::serve(&lane, shard).await });
                    ring.shut_down();
                }
                Err(error) => opened.send(Err(error)),
            }
        };
        let thread = std::thread::Builder::new().name(format!("rl-shard-{number}")).spawn(life)?;
        Ok((Running { lane, thread: Some(thread) }, answer))
    }
}

/// A panic on a shard ends the process: a log with a broken invariant must not go on writing.
struct EndOfLane<'a> {
    lane: &'a Lane,
    number: u16,
}

impl Drop for EndOfLane<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "ringlog: an invariant of shard {} does not hold (see the panic above); the process ends",
                self.number
            );
            std::process::abort();
        }
        self.lane.end();
    }
}

fn begin(
    id: ShardId,
    core: usize,
    config: &EngineConfig,
    directory: Directory,
) -> Result<(Ring, Shard), OpenError> {
    topology::pin_to(core)?;
    let ring = Ring::of_kernel(&config.ring, config.shard.arena_bytes_max)?;
    let (inner, shard_config) = (ring.clone(), config.shard.clone());
    let shard = ring.run(async move {
        for bytes in FIRST_BLOCKS {
            inner.grow(bytes).await?;
        }
        let node = match directory {
            Directory::Opened(node) => node,
            Directory::Open { shards, found } => {
                let node = Node::open(&inner, &shard_config, shards).await?;
                found.send(node.clone());
                node
            }
        };
        Shard::join(&inner, id, shard_config, node).await
    })?;
    Ok((ring, shard))
}
