//! The shard: one thread's partitions, and what they share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::{Rc, Weak};
use std::task::Poll;

use super::config::ShardConfig;
use super::partition::{Inner as PartitionInner, Partition};
use super::stages::Stages;
use super::topics::{self, Topic};
use super::wakers::Wakers;
use crate::log::LogPoint;
use crate::sys::{ArenaUse, DirLock, Ring, RingCounters};
use crate::transfer::{Staged, TransferCounters};
use crate::types::{ShardId, TopicId};

/// One core's worth of the engine. Cheap to clone; never leaves its thread.
#[derive(Clone)]
pub struct Shard(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub common: Rc<Common>,
    pub topics: RefCell<BTreeMap<String, Rc<Topic>>>,
    pub by_id: RefCell<BTreeMap<TopicId, Rc<Topic>>>,
    /// One change of the registry at a time.
    pub registry_busy: Cell<bool>,
    pub registry_waiters: Wakers,
    pub registry: RefCell<crate::log::TopicRegistry>,
    /// Given up last: until then no other process touches the directory.
    pub _lock: DirLock,
}

/// What all partitions of a shard share.
pub(super) struct Common {
    pub ring: Ring,
    pub id: ShardId,
    pub config: ShardConfig,
    pub identity: Identity,
    pub transfers: TransferCounters,
    pub stages: Stages,
    /// Whether the file system takes writes past the page cache.
    pub direct_offered: bool,
    pub partitions: RefCell<Vec<Weak<PartitionInner>>>,
    pub cached_bytes: Cell<usize>,
    pub checkpoint_due: Cell<bool>,
    pub checkpoint_busy: Cell<bool>,
    pub checkpoint_waiters: Wakers,
    pub stopping: Cell<bool>,
    pub stop_waiters: Wakers,
}

/// Who this node is, as its data directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster_id: String,
    /// Its number there.
    pub node_id: i32,
    /// Lives and dies with the data.
    pub directory_id: TopicId,
}

/// What a shard counted.
#[derive(Clone, Copy, Debug)]
pub struct ShardCounters {
    /// At its ring.
    pub ring: RingCounters,
    /// Its memory.
    pub arena: ArenaUse,
    /// Memory of the tail caches.
    pub tail_cache_bytes: usize,
    /// Bytes accepted.
    pub ingress_bytes: u64,
    /// Of these, bytes copied once more in user space.
    pub ingress_copied_bytes: u64,
}

impl Shard {
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
        &self.0.common.identity
    }

    /// How it was told to work.
    #[must_use]
    pub fn config(&self) -> &ShardConfig {
        &self.0.common.config
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

    /// What transfers counted.
    #[must_use]
    pub fn transfers(&self) -> &TransferCounters {
        &self.0.common.transfers
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
            arena: common.ring.arena().usage(),
            tail_cache_bytes: common.cached_bytes.get(),
            ingress_bytes: common.transfers.ingress_bytes.get(),
            ingress_copied_bytes: common.transfers.ingress_copied_bytes.get(),
        }
    }

    /// Whether batches really pass by the page cache, where the ingress strategy wants that.
    #[must_use]
    pub fn writes_direct(&self) -> bool {
        self.0.common.direct_writes()
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

    /// Asks everybody on this shard to come to an end.
    pub fn begin_stop(&self) {
        self.0.common.stopping.set(true);
        self.0.common.stop_waiters.wake_all();
        self.0.common.checkpoint_waiters.wake_all();
    }

    /// Drains every partition, writes indexes and checkpoints, leaves the clean-stop mark. Serving must have ended.
    ///
    /// # Errors
    /// What the disk said; then there is no mark, and the next open recovers.
    pub async fn close(&self) -> io::Result<()> {
        self.begin_stop();
        let mut failure = None;
        for topic in self.topics() {
            for partition in &topic.partitions {
                if let Err(why) = partition.drain().await {
                    failure.get_or_insert(why);
                }
            }
        }
        let closed = match failure {
            Some(why) => Err(io::Error::other(why)),
            None => match self.0.common.write_checkpoints(&self.topics()).await {
                Ok(()) => self.0.common.leave_clean_mark().await,
                Err(error) => Err(error),
            },
        };
        for topic in self.topics() {
            topic.partitions.iter().for_each(Partition::close);
        }
        closed
    }

    /// Holds the registry for one change at a time.
    pub(super) async fn claim_registry(&self) -> topics::RegistryClaim {
        poll_fn(|cx| {
            if !self.0.registry_busy.replace(true) {
                return Poll::Ready(());
            }
            self.0.registry_waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
        topics::RegistryClaim(self.clone())
    }
}

impl Common {
    pub(super) fn direct_writes(&self) -> bool {
        self.config.ingress.is_direct() && self.direct_offered
    }

    pub(super) fn register(&self, partition: &Partition) {
        let mut partitions = self.partitions.borrow_mut();
        partitions.retain(|known| known.strong_count() > 0);
        partitions.push(Rc::downgrade(&partition.0));
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

    /// A flush failed: nothing on this device may be called durable any more.
    pub(super) fn fail_all(&self, why: &str) {
        self.each_partition(|partition| drop(partition.fail(why.to_owned())));
    }

    /// Bytes up to `now` are written.
    #[allow(clippy::unused_self)]
    pub(super) fn note_written(&self, partition: &Partition, before: LogPoint, now: LogPoint) {
        let written = match before.segment == now.segment {
            true => now.position.since(before.position),
            false => now.position.0,
        };
        let left = partition.0.unwritten_bytes.get().saturating_sub(written);
        partition.0.unwritten_bytes.set(left);
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

    /// Lets every partition go of its oldest cached block, until the budget holds and `wanted` bytes came free.
    pub(super) fn shrink_tail_caches(&self, wanted: usize) {
        let before = self.cached_bytes.get();
        let goal = self.config.tail_cache_bytes_max.min(before.saturating_sub(wanted));
        self.each_partition(|partition| {
            while self.cached_bytes.get() > goal && partition.0.staged.borrow_mut().evict_oldest() {
                self.recount(partition);
            }
        });
    }

    /// A closed partition keeps nothing: what it cached no longer counts against the others.
    pub(super) fn release_cache(&self, partition: &Partition) {
        let end = partition.marks().log_end;
        *partition.0.staged.borrow_mut() = Staged::new(self.config.ingress, end);
        self.recount(partition);
    }

    fn recount(&self, partition: &Partition) {
        let now = partition.0.staged.borrow().memory_bytes();
        let before = partition.0.cached_bytes.replace(now);
        self.cached_bytes.set(self.cached_bytes.get() + now - before);
    }
}
