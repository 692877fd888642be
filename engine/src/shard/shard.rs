//! The shard: one thread's partitions, and what they share.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::acks::Ack;
use super::checkpoints;
use super::config::{Commit, ShardConfig};
use super::device_flush::DeviceFlush;
use super::errors::OpenError;
use super::journal::{self, Journal, JournalCounters};
use super::lanes::{self, Answer, Call, LaneCounters, Lanes, Work};
use super::manifest::{self, Manifest};
use super::maps::Maps;
use super::node::{Identity, LOCK_FILE, Node};
use super::opening;
use super::partition::{Inner as PartitionInner, Partition};
use super::replay;
use super::retention;
use super::sleep;
use super::stages::Stages;
use super::topics::{Coordinator, Topic};
use super::wakers::Wakers;
use crate::sys::{ArenaUse, BLOCK_BYTES, Flushes, OpenOptions, Ring, RingCounters, ZeroCopyUse};
use crate::transfer::{Calibration, Egress, Piece, Receives, SharedPiece, Staged, Transfers};
use crate::types::{PartitionId, ShardId, TopicId};

/// One core's worth of the engine. Cheap to clone; never leaves its thread.
#[derive(Clone)]
pub struct Shard(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub common: Rc<Common>,
    pub topics: RefCell<BTreeMap<Arc<str>, Rc<Topic>>>,
    pub by_id: RefCell<BTreeMap<TopicId, Rc<Topic>>>,
    /// Topics that are being made.
    pub begun: RefCell<Vec<Rc<Topic>>>,
    /// The registry; on shard 0 alone.
    coordinator: Option<Coordinator>,
    /// Lists to be used again.
    pub pieces: Spares<Piece>,
    pub shared_pieces: Spares<SharedPiece>,
}

/// Empty lists that keep their room.
pub(super) struct Spares<T>(RefCell<Vec<Vec<T>>>);

impl<T> Spares<T> {
    /// Lists kept; more are given back to the allocator.
    const KEPT_MAX: usize = 256;

    fn new() -> Spares<T> {
        Spares(RefCell::new(Vec::with_capacity(16)))
    }

    pub(super) fn take(&self) -> Vec<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    pub(super) fn give(&self, list: Vec<T>) {
        debug_assert!(list.is_empty());
        let mut spares = self.0.borrow_mut();
        if spares.len() < Self::KEPT_MAX {
            spares.push(list);
        }
    }
}

/// What all partitions of a shard share.
pub(super) struct Common {
    pub ring: Ring,
    pub id: ShardId,
    pub config: ShardConfig,
    pub node: Arc<Node>,
    pub lanes: Rc<Lanes>,
    pub transfers: Transfers,
    pub stages: Stages,
    pub maps: Maps,
    pub journal: Journal,
    pub device_flush: DeviceFlush,
    pub manifest: Manifest,
    pub partitions: RefCell<Vec<Weak<PartitionInner>>>,
    /// Those of them that have files open, memory, or a task.
    pub restless: RefCell<Vec<Weak<PartitionInner>>>,
    pub cached_bytes: Cell<usize>,
    pub checkpoint_due: Cell<bool>,
    pub checkpoint_busy: Cell<bool>,
    pub checkpoint_waiters: Wakers,
    /// As they lie on the disk; empty when that is not known.
    pub log_starts_written: RefCell<Vec<u8>>,
    /// Why nothing on this device may be called durable any more, if so.
    device_failure: RefCell<Option<Arc<str>>>,
    pub stopping: Cell<bool>,
    pub stop_waiters: Wakers,
    /// The shard that all this is of.
    shard: RefCell<Weak<Inner>>,
}

/// However many partitions share the memory to stage in, a piece of it is no smaller than this.
const SHARE_BYTES_MIN: usize = 16 << 10;

/// What a shard counted.
#[derive(Clone, Copy, Debug)]
pub struct ShardCounters {
    /// At its ring.
    pub ring: RingCounters,
    /// What zero-copy sends came to.
    pub zero_copy: ZeroCopyUse,
    /// Its memory.
    pub arena: ArenaUse,
    /// Memory of the tail caches.
    pub tail_cache_bytes: usize,
    /// Bytes accepted.
    pub ingress_bytes: u64,
    /// Of these, bytes copied once more in user space.
    pub ingress_copied_bytes: u64,
    /// Of these, bytes received straight into the memory they were written from.
    pub ingress_in_place_bytes: u64,
    /// Bytes of shared last blocks, copied to be written.
    pub last_block_copied_bytes: u64,
    /// Of all that were accepted, bytes that did not go the way of the ingress strategy.
    pub ingress_fallback_bytes: u64,
    /// Between this shard and others.
    pub lanes: LaneCounters,
    /// By its journal.
    pub journal: JournalCounters,
    /// Flushes of the whole file system, for all partitions that waited.
    pub device_flushes: u64,
}

impl Shard {
    /// Opens the data directory of `config` on `ring`'s thread, making it if it is not there, and recovers every
    /// partition: a node of one shard.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(ring: &Ring, config: ShardConfig) -> Result<Shard, OpenError> {
        let node = Node::open(ring, &config, 1).await?;
        Shard::join(ring, ShardId(0), config, node).await
    }

    /// Shard `id` of an opened directory, on `ring`'s thread: recovers the partitions that are its own. After anything
    /// but a clean stop every partition begins a new epoch, stored before this returns. Nothing may be served
    /// before every shard has joined.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn join(
        ring: &Ring,
        id: ShardId,
        config: ShardConfig,
        node: Arc<Node>,
    ) -> Result<Shard, OpenError> {
        config.check()?;
        if config.ingress.receives() == Receives::Provided
            && let Err(error) = ring.prepare_incoming()
        {
            return Err(OpenError::Refused(format!(
                "ingress {} is not offered here: {error}",
                config.ingress
            )));
        }
        // What is not staged in memory of ours is in no memory that a segment could be written from later.
        let journals = config.commit == Commit::Journal && config.ingress.is_direct();
        let lock = ring.open(&config.data_dir.join(LOCK_FILE), OpenOptions::default()).await?;
        let common = Rc::new(Common {
            ring: ring.clone(),
            id,
            config,
            lanes: Rc::new(Lanes::new(node.clone(), id)),
            node: node.clone(),
            transfers: Transfers::default(),
            stages: Stages::default(),
            maps: Maps::default(),
            journal: Journal::new(journals),
            device_flush: DeviceFlush::new(lock),
            manifest: Manifest::default(),
            partitions: RefCell::new(Vec::new()),
            restless: RefCell::default(),
            cached_bytes: Cell::new(0),
            checkpoint_due: Cell::new(id == ShardId(0)),
            checkpoint_busy: Cell::new(false),
            checkpoint_waiters: Wakers::default(),
            log_starts_written: RefCell::new(Vec::new()),
            device_failure: RefCell::new(None),
            stopping: Cell::new(false),
            stop_waiters: Wakers::default(),
            shard: RefCell::default(),
        });
        if common.config.egress.chooses() {
            let measured = Calibration::measure(ring, &common.config.data_dir, id).await;
            match &measured {
                Ok(Calibration { sendfile_bytes_min: u64::MAX }) => {
                    tracing::info!(
                        "shard {id}: egress auto sends what is resident by copy, whatever its length"
                    );
                }
                Ok(Calibration { sendfile_bytes_min }) => {
                    tracing::info!(
                        "shard {id}: egress auto sends what is resident by sendfile from {sendfile_bytes_min} bytes on"
                    );
                }
                Err(error) => tracing::warn!("shard {id}: egress auto knows nothing of this host: {error}"),
            }
            common.transfers.calibration.set(measured.unwrap_or_default());
        }
        let coordinator = (id == ShardId(0)).then(|| Coordinator::new(node.registry.clone()));
        let shard = Shard(Rc::new(Inner {
            common,
            topics: RefCell::default(),
            by_id: RefCell::default(),
            begun: RefCell::default(),
            coordinator,
            pieces: Spares::new(),
            shared_pieces: Spares::new(),
        }));
        *shard.0.common.shard.borrow_mut() = Rc::downgrade(&shard.0);
        shard.spawn(lanes::serve(shard.clone()));
        if let Err(error) = opening::open_partitions(&shard, &node).await {
            // Or its tasks would keep the directory locked for as long as the thread lives.
            shard.leave();
            return Err(error);
        }
        // Every partition that was in a journal is in its segments now. The old manifests first: they know nothing of that.
        manifest::leave(&shard.0.common, &node).await?;
        replay::leave(ring, &node).await?;
        if journals {
            journal::begin(&shard);
        }
        if id == ShardId(0) {
            shard.spawn(checkpoints::run(shard.clone()));
        }
        shard.spawn(retention::run(shard.clone()));
        shard.spawn(sleep::run(shard.clone()));
        Ok(shard)
    }

    /// Writes the checkpoints now: log starts that have moved stay moved when this returns.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn checkpoint(&self) -> io::Result<()> {
        let write = |shard: Shard| async move { shard.0.common.write_checkpoints(&shard.topics()).await };
        self.on(ShardId(0), write).await
    }

    pub(super) fn lanes(&self) -> &Rc<Lanes> {
        &self.0.common.lanes
    }

    /// How many shards this node has.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.0.common.node.shards()
    }

    pub(super) fn coordinator(&self) -> &Coordinator {
        self.0.coordinator.as_ref().expect("the registry is changed on shard 0")
    }

    /// A partition that is this shard's own.
    #[must_use]
    pub fn find(&self, id: PartitionId) -> Option<Partition> {
        self.0.by_id.borrow().get(&id.topic)?.here(id.index).cloned()
    }

    /// Runs `work` on shard `to`, this one or another, and gives back what it gave. Off the hot path: it allocates.
    pub async fn on<T, W, F>(&self, to: ShardId, work: W) -> T
    where
        T: Send + 'static,
        W: FnOnce(Shard) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        if to == self.id() {
            return work(self.clone()).await;
        }
        let boxed: Work = Box::new(move |shard| {
            Box::pin(async move { Box::new(work(shard).await) as Box<dyn Any + Send> })
        });
        let ring = self.ring();
        match self.lanes().post(|| ring.now(), to, Call::Work(boxed)).await.answer().await {
            Answer::Worked(value) => *value.downcast().expect("work gives back what it was asked for"),
            _ => unreachable!("a call gets its own kind of answer"),
        }
    }

    /// Runs what `make` makes on every shard, one after the other, from shard 0 on.
    pub async fn on_each<T, W, F>(&self, make: impl Fn() -> W) -> Vec<T>
    where
        T: Send + 'static,
        W: FnOnce(Shard) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let mut all = Vec::new();
        for to in 0..self.shards() {
            all.push(self.on(ShardId(to), make()).await);
        }
        all
    }

    /// Its ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.0.common.ring
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.0.common.id
    }

    /// Starts a task on its thread.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.0.common.ring.spawn(future);
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.common.node.identity
    }

    /// How it was told to work.
    #[must_use]
    pub fn config(&self) -> &ShardConfig {
        &self.0.common.config
    }

    /// This shard's own partitions, of topics that are shown.
    pub(super) fn own_partitions(&self) -> Vec<Partition> {
        self.0.topics.borrow().values().flat_map(|topic| topic.all_here().cloned()).collect()
    }

    /// All topics, by name.
    #[must_use]
    pub fn topics(&self) -> Vec<Rc<Topic>> {
        self.0.topics.borrow().values().cloned().collect()
    }

    /// A topic by its name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<Rc<Topic>> {
        self.0.topics.borrow().get(name).cloned()
    }

    /// A topic by its id.
    #[must_use]
    pub fn topic_by_id(&self, id: TopicId) -> Option<Rc<Topic>> {
        self.0.by_id.borrow().get(&id).cloned()
    }

    /// What transfers share, and what they counted.
    #[must_use]
    pub fn transfers(&self) -> &Transfers {
        &self.0.common.transfers
    }

    /// Lets go of what tail caches hold and files hold too, for a measurement that shall begin with the disk.
    pub fn drop_tail_caches(&self) {
        self.0.common.drop_tail_caches();
    }

    /// Where the time of appends went.
    #[must_use]
    pub fn stages(&self) -> &Stages {
        &self.0.common.stages
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> ShardCounters {
        let common = &self.0.common;
        ShardCounters {
            ring: common.ring.counters(),
            zero_copy: common.ring.zero_copy(),
            arena: common.ring.arena().usage(),
            tail_cache_bytes: common.cached_bytes.get(),
            ingress_bytes: common.transfers.ingress_bytes.get(),
            ingress_copied_bytes: common.transfers.ingress_copied_bytes.get(),
            ingress_in_place_bytes: common.transfers.ingress_in_place_bytes.get(),
            last_block_copied_bytes: common.transfers.last_block_copied_bytes.get(),
            ingress_fallback_bytes: common.transfers.ingress_fallback_bytes.get(),
            lanes: common.lanes.counters(),
            journal: common.journal.counters(),
            device_flushes: common.device_flush.count(),
        }
    }

    /// What a flush of the data directory is worth.
    #[must_use]
    pub fn flushes(&self) -> &Flushes {
        self.0.common.node.flushes()
    }

    /// What the ingress strategy wants and does not get here, if anything.
    #[must_use]
    pub fn ingress_lacks(&self) -> Option<&'static str> {
        self.0.common.ingress_lacks()
    }

    /// Whether a graceful stop was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.common.stopping.get()
    }

    /// Resolves when a graceful stop is asked for.
    pub async fn stopping(&self) {
        poll_fn(|cx| {
            if self.is_stopping() {
                return Poll::Ready(());
            }
            self.0.common.stop_waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
    }

    /// Waits for a while; true when a graceful stop is asked for meanwhile, at once.
    pub(super) async fn stops_within(&self, duration: Duration) -> bool {
        let mut sleep = pin!(self.ring().sleep(duration));
        let mut stop = pin!(self.stopping());
        poll_fn(|cx| match stop.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => sleep.as_mut().poll(cx).map(|()| false),
        })
        .await
    }

    /// Asks everybody on this shard to come to an end.
    pub fn begin_stop(&self) {
        self.0.common.stopping.set(true);
        self.0.common.stop_waiters.wake_all();
        self.0.common.checkpoint_waiters.wake_all();
    }

    /// Stops a node of one shard cleanly: [`Shard::drain`], then [`Shard::seal`]. Serving must have ended.
    ///
    /// # Errors
    /// What the disk said; then there is no mark, and the next open recovers.
    pub async fn close(&self) -> io::Result<()> {
        let mut closed = self.drain().await;
        if closed.is_ok() {
            closed = self.seal().await;
        }
        self.leave();
        closed
    }

    /// Makes everything accepted by this shard durable, trims its segments and writes their indexes.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn drain(&self) -> io::Result<()> {
        self.begin_stop();
        let mut failure = None;
        for topic in self.topics() {
            for partition in topic.all_here() {
                if let Err(why) = partition.drain().await {
                    failure.get_or_insert(why);
                }
            }
        }
        self.0.common.manifest.end().await;
        self.0.common.end_journal(failure.is_none()).await?;
        failure.map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    /// Writes the checkpoints and the mark of a clean stop: on shard 0, once every shard has drained.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn seal(&self) -> io::Result<()> {
        self.0.common.write_checkpoints(&self.topics()).await?;
        journal::remove_dir(self.ring(), &self.config().data_dir).await?;
        self.0.common.leave_clean_mark().await
    }

    /// Closes this shard's partitions, so that whoever waits learns it, and ends its part in the lanes.
    pub fn leave(&self) {
        for topic in self.topics() {
            topic.all_here().for_each(Partition::close);
        }
        self.lanes().end();
        self.0.common.journal.stop();
        self.0.common.manifest.stop();
    }
}

impl Common {
    /// The shard.
    ///
    /// # Panics
    /// When it is gone: tasks of its own keep it for as long as anything is asked of its partitions.
    pub(super) fn shard(&self) -> Shard {
        Shard(self.shard.borrow().upgrade().expect("a shard outlives what is asked of it"))
    }

    /// Whether readers get a descriptor past the page cache as well, of a topic that may have an egress of its own.
    pub(super) fn direct_reads(&self, pinned: Option<Egress>) -> bool {
        pinned.unwrap_or(self.config.egress).reads_direct() && self.node.direct_offered
    }

    /// [`Ring::replace`] that gives the reserve up when the disk is full: for what must be stored before anything goes on.
    pub(super) async fn replace_at_need(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        self.node.reserve.replace(&self.ring, &self.config.data_dir, path, bytes).await
    }

    /// Takes the reserve again, if it was given up; false where there is no room for it.
    pub(super) async fn make_reserve(&self) -> bool {
        self.node.reserve.make(&self.ring, &self.config.data_dir).await
    }

    /// Whether a batch of so many bytes with that promise goes through the journal.
    pub(super) fn takes_to_journal(&self, bytes: u64, ack: Ack) -> bool {
        self.journal.takes(bytes, ack, &self.config.journal)
    }

    pub(super) fn direct_writes(&self) -> bool {
        self.config.ingress.is_direct() && self.node.direct_offered
    }

    pub(super) fn uncached_writes(&self) -> bool {
        self.config.ingress.is_uncached() && self.node.uncached_offered
    }

    pub(super) fn ingress_lacks(&self) -> Option<&'static str> {
        let ingress = self.config.ingress;
        match (
            ingress.is_direct() && !self.node.direct_offered,
            ingress.is_uncached() && !self.node.uncached_offered,
        ) {
            (true, _) => Some("O_DIRECT"),
            (_, true) => Some("RWF_DONTCACHE"),
            (false, false) => None,
        }
    }

    pub(super) fn register(&self, partition: &Partition) {
        let mut partitions = self.partitions.borrow_mut();
        if partitions.len() == partitions.capacity() {
            partitions.retain(|known| known.strong_count() > 0);
        }
        partitions.push(Rc::downgrade(&partition.0));
        drop(partitions);
        if !partition.0.lean.get() {
            self.restless.borrow_mut().push(Rc::downgrade(&partition.0));
        }
        if let Some(why) = self.device_failure() {
            partition.fail(why.to_string());
        }
    }

    fn each_partition(&self, mut visit: impl FnMut(&Partition)) {
        let mut index = 0;
        while let Some(known) = self.partitions.borrow().get(index).map(Weak::upgrade) {
            index += 1;
            if let Some(inner) = known {
                visit(&Partition(inner));
            }
        }
    }

    /// Those that may have memory; none comes or goes meanwhile.
    fn each_restless(&self, mut visit: impl FnMut(&Partition)) {
        let restless = self.restless.borrow();
        let there = restless.iter().filter_map(Weak::upgrade).map(Partition);
        there.for_each(|partition| visit(&partition));
    }

    /// A flush failed: nothing on this device may be called durable any more, on any shard.
    pub(super) fn fail_all(&self, why: &str) {
        let known = self.device_failure.borrow().is_some();
        self.latch_all(why);
        if !known {
            self.lanes.announce_failure(why);
        }
    }

    pub(super) fn device_failure(&self) -> Option<Arc<str>> {
        self.device_failure.borrow().clone()
    }

    /// Latches the partitions of this shard, and those that it will ever have.
    pub(super) fn latch_all(&self, why: &str) {
        self.device_failure.borrow_mut().get_or_insert_with(|| why.into());
        self.each_partition(|partition| drop(partition.fail(why.to_owned())));
    }

    /// Counts what the partition caches, and lets go of what is beyond the budget.
    pub(super) fn note_cached(&self, partition: &Partition) {
        self.recount(partition);
        while self.cached_bytes.get() > self.config.tail_cache_bytes_max {
            let evicted = partition.0.staged.borrow_mut().evict_oldest();
            self.recount(partition);
            if !evicted {
                self.shrink_tail_caches(0);
                return;
            }
        }
    }

    /// Lets go of all that is cached and already in files, but for the block that each partition writes next: what is read
    /// then comes from files.
    pub(super) fn drop_tail_caches(&self) {
        self.each_restless(|partition| {
            while partition.0.staged.borrow_mut().evict_oldest() {}
            self.recount(partition);
        });
    }

    /// Lets every partition go of its oldest cached block, until the budget holds and `wanted` bytes came free.
    pub(super) fn shrink_tail_caches(&self, wanted: usize) {
        let before = self.cached_bytes.get();
        let goal = self.config.tail_cache_bytes_max.min(before.saturating_sub(wanted));
        self.each_restless(|partition| {
            while self.cached_bytes.get() > goal && partition.0.staged.borrow_mut().evict_oldest() {
                self.recount(partition);
            }
        });
        // What only the journal has goes to segments, and then from memory.
        if wanted > 0 && self.cached_bytes.get() > goal {
            self.each_restless(Partition::destage);
        }
    }

    /// The largest piece of memory that a partition stages in, given that a batch of `bytes` is to go there: where many
    /// partitions are in use, and hold much, each takes little at a time, since all keep what they have begun.
    pub(super) fn stage_bytes_max(&self, bytes: usize) -> usize {
        let most = self.config.tail_cache_bytes_max;
        if self.cached_bytes.get() < most / 2 {
            return usize::MAX;
        }
        let share = most / self.restless.borrow().len().max(1);
        share.max(SHARE_BYTES_MIN).max(bytes).next_multiple_of(BLOCK_BYTES)
    }

    /// A closed partition keeps nothing: what it cached no longer counts against the others.
    pub(super) fn release_cache(&self, partition: &Partition) {
        let end = partition.marks().log_end;
        *partition.0.staged.borrow_mut() = Staged::new(self.config.ingress, end);
        self.recount(partition);
    }

    pub(super) fn recount(&self, partition: &Partition) {
        let now = partition.0.staged.borrow().memory_bytes();
        let before = partition.0.cached_bytes.replace(now);
        self.cached_bytes.set(self.cached_bytes.get() + now - before);
    }
}
