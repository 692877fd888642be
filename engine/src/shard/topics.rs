//! Topics: making and removing them, and the registry that says which there are.
//!
//! The registry is the truth; shard 0 keeps it. A topic is made by making its directories first, then its partitions on
//! the shards that own them, then naming it in the registry, and is shown by every shard before whoever asked is told.
//! It is removed by marking it there first and then removing its directories. A crash in between leaves no half of a
//! topic.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::acks::Ack;
use super::board::Board;
use super::config::TopicConfig;
use super::errors::TopicError;
use super::files::Files;
use super::partition::{Partition, partition_dir};
use super::placement::{VIRTUAL_SHARDS, owner, virtual_shard};
use super::route::Route;
use super::shard::Shard;
use super::wakers::Wakers;
use crate::log::{
    EpochOwner, Log, TopicEntry, TopicRegistry, TopicState, check_topic_name, parse_partition_dir_name,
};
use crate::sys::Flushes;
use crate::types::{Offset, ShardId, TopicId};

/// The most partitions of one topic.
pub const PARTITIONS_MAX: i32 = 100_000;
/// For more partitions than this the data directory is listed, instead of asking for each.
const LOOKED_UP_ONE_BY_ONE: i32 = 64;
/// Our registry's file in the data directory.
pub(super) const REGISTRY_FILE: &str = "ringlog-topics";
pub(super) const METADATA_FILE: &str = "partition.metadata";

/// What every shard must know of a topic.
#[derive(Clone)]
pub(super) struct TopicPlan {
    pub name: Arc<str>,
    pub id: TopicId,
    pub config: TopicConfig,
    pub first_virtual: u8,
    pub boards: Arc<[Board]>,
}

/// A topic as one shard sees it.
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// Its id, for life.
    pub id: TopicId,
    /// What it was told.
    pub config: TopicConfig,
    first_virtual: u8,
    shards: u16,
    boards: Arc<[Board]>,
    /// The partitions that are this shard's own, by number.
    here: Vec<Option<Partition>>,
}

impl Topic {
    /// How many partitions it has.
    #[must_use]
    pub fn partition_count(&self) -> i32 {
        self.boards.len() as i32
    }

    /// What the owner of partition `index` shows, if there is such a partition.
    #[must_use]
    pub fn board(&self, index: i32) -> Option<&Board> {
        self.boards.get(usize::try_from(index).ok()?)
    }

    /// The shard that owns partition `index`.
    #[must_use]
    pub fn owner(&self, index: i32) -> ShardId {
        owner(virtual_shard(self.first_virtual, index), self.shards)
    }

    /// Partition `index`, if it is this shard's own.
    #[must_use]
    pub fn here(&self, index: i32) -> Option<&Partition> {
        self.here.get(usize::try_from(index).ok()?)?.as_ref()
    }

    /// The partitions that are this shard's own.
    pub fn all_here(&self) -> impl Iterator<Item = &Partition> {
        self.here.iter().flatten()
    }
}

/// The registry, on shard 0.
pub(super) struct Coordinator {
    pub registry: RefCell<TopicRegistry>,
    /// One change at a time.
    busy: Cell<bool>,
    waiters: Wakers,
}

impl Coordinator {
    pub(super) fn new(registry: TopicRegistry) -> Coordinator {
        Coordinator { registry: RefCell::new(registry), busy: Cell::new(false), waiters: Wakers::default() }
    }

    async fn claim(&self) -> Claim<'_> {
        poll_fn(|cx| {
            if !self.busy.replace(true) {
                return Poll::Ready(());
            }
            self.waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
        Claim(self)
    }

    fn mark(&self, id: TopicId, state: TopicState) {
        if let Some(entry) = self.registry.borrow_mut().topics.iter_mut().find(|t| t.id == id) {
            entry.state = state;
        }
    }

    /// Where the next topic begins, so that all partitions together go round evenly.
    fn next_virtual(&self) -> u8 {
        let registry = self.registry.borrow();
        let partitions: i64 = registry.topics.iter().map(|t| i64::from(t.partitions)).sum();
        (partitions % i64::from(VIRTUAL_SHARDS)) as u8
    }
}

/// The right to change the registry; given back on drop.
struct Claim<'a>(&'a Coordinator);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        self.0.waiters.wake_all();
    }
}

impl Shard {
    /// Makes a topic. It survives power loss, and every shard serves it, when this returns.
    ///
    /// # Errors
    /// See [`TopicError`]; then there is no such topic.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        config: TopicConfig,
    ) -> Result<Rc<Topic>, TopicError> {
        check_topic_name(name)?;
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err(TopicError::Partitions(partitions, PARTITIONS_MAX));
        }
        if let (Ack::Durable, Flushes::DoNotReach(why)) = (config.ack, &self.0.common.node.flushes) {
            return Err(TopicError::Config(format!("ringlog.ack=durable cannot be kept: {why}")));
        }
        if let Some(egress) = config.egress.filter(|egress| !egress.delivers()) {
            return Err(TopicError::Config(format!(
                "ringlog.egress={egress} discards what consumers wait for"
            )));
        }
        let told: Arc<str> = name.into();
        let make = move |shard: Shard| async move { shard.make_topic(told, partitions, config).await };
        let id = self.on(ShardId(0), make).await?;
        // It may have been deleted again already.
        self.topic_by_id(id).ok_or_else(|| TopicError::Unknown(name.to_owned()))
    }

    /// Removes a topic and its data. It stays removed after power loss when this returns.
    ///
    /// # Errors
    /// See [`TopicError`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let name: Arc<str> = name.into();
        self.on(ShardId(0), |shard| async move { shard.remove_topic(&name).await }).await
    }

    /// On shard 0.
    async fn make_topic(
        &self,
        name: Arc<str>,
        partitions: i32,
        config: TopicConfig,
    ) -> Result<TopicId, TopicError> {
        let coordinator = self.coordinator();
        let _claim = coordinator.claim().await;
        if self.is_stopping() {
            return Err(TopicError::Stopping);
        }
        if self.topic(&name).is_some() {
            return Err(TopicError::Exists(name.to_string()));
        }
        if !self.0.common.make_reserve().await {
            let words = "the disk is full: a topic is made when there is room for what it will hold";
            return Err(TopicError::Io(std::io::Error::new(std::io::ErrorKind::StorageFull, words)));
        }
        if let Some(why) = self.0.common.device_failure() {
            return Err(TopicError::Io(std::io::Error::other(format!("the device has failed: {why}"))));
        }
        // A topic on its way out keeps its name until what is left of its files is gone.
        self.finish_deletions(|entry| entry.name == *name).await?;
        let taken = coordinator.registry.borrow().topics.iter().any(|topic| *topic.name == *name);
        assert!(!taken, "topic {name} is in the registry and nowhere else");
        let ring = self.ring();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&ring.random_u64().to_be_bytes());
        id[8..].copy_from_slice(&ring.random_u64().to_be_bytes());
        let id = TopicId(id);
        let plan = TopicPlan {
            name: name.clone(),
            id,
            config,
            first_virtual: coordinator.next_virtual(),
            boards: (0..partitions).map(|_| Board::default()).collect(),
        };
        // What a crash left half made, or an operator put there, is not ours to continue. A partition's own directory is made
        // when it gets its first bytes.
        for dir in self.dirs_of(&name, partitions).await? {
            match ring.list(&dir).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
                Ok(entries) if entries.is_empty() => ring.remove_dir(&dir).await?,
                Ok(_) => self.set_aside(&dir).await?,
            }
        }
        let begun = self.begin_everywhere(&plan).await;
        let entry = TopicEntry {
            name: name.to_string(),
            id,
            partitions,
            first_virtual: plan.first_virtual,
            state: TopicState::Live,
            config: plan.config.to_pairs(),
        };
        coordinator.registry.borrow_mut().topics.push(entry);
        let stored = match begun {
            // Not worth the reserve, which is for what makes room.
            Ok(()) => self.ring().replace(&self.registry_path(), self.registry_text()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            coordinator.registry.borrow_mut().topics.retain(|t| t.id != id);
            self.on_each(|| move |shard: Shard| async move { shard.forget_topic(id) }).await;
            return Err(error.into());
        }
        self.on_each(|| move |shard: Shard| async move { shard.show_topic(id) }).await;
        self.0.common.request_checkpoint();
        Ok(id)
    }

    /// Directories that may lie where those of a topic's partitions will.
    async fn dirs_of(&self, name: &str, partitions: i32) -> std::io::Result<Vec<PathBuf>> {
        let data_dir = &self.config().data_dir;
        if partitions <= LOOKED_UP_ONE_BY_ONE {
            return Ok((0..partitions).map(|index| partition_dir(data_dir, name, index)).collect());
        }
        let entries = self.ring().list(data_dir).await?;
        let is_one = |found: &str| {
            parse_partition_dir_name(found).is_some_and(|(topic, index)| topic == name && index < partitions)
        };
        let found = entries.into_iter().filter(|entry| entry.is_dir && is_one(&entry.name.to_string_lossy()));
        Ok(found.map(|entry| data_dir.join(entry.name)).collect())
    }

    async fn begin_everywhere(&self, plan: &TopicPlan) -> std::io::Result<()> {
        let begin = || {
            let plan = plan.clone();
            move |shard: Shard| async move { shard.begin_topic(plan).await }
        };
        self.on_each(begin).await.into_iter().collect()
    }

    /// Makes this shard's partitions of a new topic; not shown yet.
    async fn begin_topic(&self, plan: TopicPlan) -> std::io::Result<()> {
        let mut here = Vec::new();
        for index in self.own_indexes(&plan) {
            let dir = partition_dir(&self.config().data_dir, &plan.name, index);
            let log = Log::new(plan.config.log.clone(), EpochOwner::Local, Offset(0));
            let mut files = Files::new(dir);
            files.push(Offset(0), false);
            let partition = Partition::new(&self.0.common, &plan, index, log, files);
            partition.0.lean.set(true);
            partition.note_asleep();
            here.push(partition);
        }
        let topic = self.topic_of(&plan, here);
        self.0.begun.borrow_mut().push(topic);
        Ok(())
    }

    fn show_topic(&self, id: TopicId) {
        let mut begun = self.0.begun.borrow_mut();
        let index = begun.iter().position(|topic| topic.id == id).expect("a topic is begun, then shown");
        self.enter_topic(&begun.swap_remove(index));
    }

    fn forget_topic(&self, id: TopicId) {
        self.0.begun.borrow_mut().retain(|topic| {
            if topic.id == id {
                topic.all_here().for_each(Partition::close);
            }
            topic.id != id
        });
    }

    /// On shard 0.
    async fn remove_topic(&self, name: &str) -> Result<(), TopicError> {
        let coordinator = self.coordinator();
        let _claim = coordinator.claim().await;
        let topic = self.topic(name).ok_or_else(|| TopicError::Unknown(name.to_owned()))?;
        let id = topic.id;
        coordinator.mark(id, TopicState::Deleting);
        if let Err(error) = self.store_registry().await {
            coordinator.mark(id, TopicState::Live);
            return Err(error.into());
        }
        self.on_each(|| move |shard: Shard| async move { shard.leave_topic(id) }).await;
        self.finish_deletions(|entry| entry.id == id).await?;
        self.0.common.make_reserve().await;
        self.0.common.request_checkpoint();
        Ok(())
    }

    /// Removes what is left of topics that are marked so; on shard 0, by whoever holds the claim. A deletion that failed
    /// half-way must be over before its directories' names are given to another topic.
    async fn finish_deletions(&self, which: impl Fn(&TopicEntry) -> bool) -> std::io::Result<()> {
        let coordinator = self.coordinator();
        let deleting = |entry: &&TopicEntry| entry.state == TopicState::Deleting && which(entry);
        let left: Vec<TopicEntry> =
            coordinator.registry.borrow().topics.iter().filter(deleting).cloned().collect();
        for entry in left {
            for index in 0..entry.partitions {
                let dir = partition_dir(&self.config().data_dir, &entry.name, index);
                self.ring().remove_dir(&dir).await?;
            }
            coordinator.registry.borrow_mut().topics.retain(|t| t.id != entry.id);
            self.store_registry().await?;
        }
        Ok(())
    }

    /// Goes on with deletions that failed, on shard 0.
    pub(super) async fn retry_deletions(&self) {
        let _claim = self.coordinator().claim().await;
        if let Err(error) = self.finish_deletions(|_| true).await {
            tracing::warn!("a deleted topic still takes room: {error}; tried again");
        }
    }

    fn leave_topic(&self, id: TopicId) {
        let Some(topic) = self.0.by_id.borrow_mut().remove(&id) else { return };
        self.0.topics.borrow_mut().remove(&*topic.name);
        topic.all_here().for_each(Partition::close);
    }

    /// The numbers of the partitions that are this shard's own.
    pub(super) fn own_indexes(&self, plan: &TopicPlan) -> Vec<i32> {
        let shards = self.0.common.node.shards();
        let mine = |index: &i32| owner(virtual_shard(plan.first_virtual, *index), shards) == self.id();
        (0..plan.boards.len() as i32).filter(mine).collect()
    }

    /// A topic with this shard's own partitions of it.
    pub(super) fn topic_of(&self, plan: &TopicPlan, partitions: Vec<Partition>) -> Rc<Topic> {
        let mut here: Vec<Option<Partition>> = vec![None; plan.boards.len()];
        for partition in partitions {
            self.0.common.register(&partition);
            let index = partition.index() as usize;
            here[index] = Some(partition);
        }
        Rc::new(Topic {
            name: plan.name.clone(),
            id: plan.id,
            config: plan.config.clone(),
            first_virtual: plan.first_virtual,
            shards: self.0.common.node.shards(),
            boards: plan.boards.clone(),
            here,
        })
    }

    pub(super) fn enter_topic(&self, topic: &Rc<Topic>) {
        self.0.topics.borrow_mut().insert(topic.name.clone(), topic.clone());
        self.0.by_id.borrow_mut().insert(topic.id, topic.clone());
    }

    /// The way to partition `index` of `topic`, wherever it is.
    #[must_use]
    pub fn route(&self, topic: &Rc<Topic>, index: i32) -> Option<Route> {
        topic.board(index)?;
        Some(Route::new(self, topic, index))
    }

    async fn store_registry(&self) -> std::io::Result<()> {
        self.0.common.replace_at_need(&self.registry_path(), self.registry_text()).await
    }

    fn registry_path(&self) -> PathBuf {
        self.config().data_dir.join(REGISTRY_FILE)
    }

    fn registry_text(&self) -> Vec<u8> {
        self.coordinator().registry.borrow().format().into_bytes()
    }

    async fn set_aside(&self, dir: &Path) -> std::io::Result<()> {
        let stamp = self.ring().wall_clock();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside: PathBuf = dir.with_file_name(format!("{name}.{stamp}-aside"));
        tracing::warn!("{} holds files of no topic: kept as {}", dir.display(), aside.display());
        self.ring().rename(dir, &aside).await
    }
}
