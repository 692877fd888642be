//! Topics: making and removing them, and the registry that says which there are.
//!
//! The registry is the truth. A topic is made by making its directories first and then naming it there; it is removed
//! by marking it there first and then removing its directories. A crash in between leaves no half of a topic.

use std::path::PathBuf;
use std::rc::Rc;

use super::config::TopicConfig;
use super::errors::TopicError;
use super::files::Files;
use super::partition::{Partition, partition_dir};
use super::shard::Shard;
use crate::log::{EpochOwner, Log, PartitionMetadata, TopicEntry, TopicState, check_topic_name};
use crate::types::{Offset, PartitionId, TopicId};

/// The most partitions of one topic.
pub const PARTITIONS_MAX: i32 = 100_000;
/// Our registry's file in the data directory.
pub(super) const REGISTRY_FILE: &str = "ringlog-topics";
pub(super) const METADATA_FILE: &str = "partition.metadata";

/// A topic and its partitions.
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id, for life.
    pub id: TopicId,
    /// Its partitions, by number.
    pub partitions: Vec<Partition>,
    /// What it was told.
    pub config: TopicConfig,
}

/// The right to change the registry; given back on drop.
pub(super) struct RegistryClaim(pub(super) Shard);

impl Drop for RegistryClaim {
    fn drop(&mut self) {
        self.0.0.registry_busy.set(false);
        self.0.0.registry_waiters.wake_all();
    }
}

impl Shard {
    /// Makes a topic. It survives power loss when this returns.
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
        let _claim = self.claim_registry().await;
        if self.is_stopping() {
            return Err(TopicError::Stopping);
        }
        if self.topic(name).is_some() {
            return Err(TopicError::Exists(name.to_owned()));
        }
        let common = &self.0.common;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&common.ring.random_u64().to_be_bytes());
        id[8..].copy_from_slice(&common.ring.random_u64().to_be_bytes());
        let id = TopicId(id);
        let mut made = Vec::new();
        for index in 0..partitions {
            let dir = partition_dir(&common.config.data_dir, name, index);
            // What a crash left half made, or an operator put there, is not ours to continue.
            if !common.ring.list(&dir).await.unwrap_or_default().is_empty() {
                self.set_aside(&dir).await?;
            }
            common.ring.make_dir(&dir).await?;
            let metadata = PartitionMetadata { topic_id: id }.format();
            common.ring.replace(&dir.join(METADATA_FILE), metadata.into_bytes()).await?;
            let log = Log::new(config.log.clone(), EpochOwner::Local, Offset(0));
            let mut files = Files::new(dir);
            files.push(Offset(0), false);
            let id = PartitionId { topic: id, index };
            let partition = Partition::new(common, id, name, config.clone(), log, files);
            partition.writer(Offset(0)).await?;
            common.register(&partition);
            made.push(partition);
        }
        let entry = TopicEntry {
            name: name.to_owned(),
            id,
            partitions,
            state: TopicState::Live,
            config: config.to_pairs(),
        };
        self.0.registry.borrow_mut().topics.push(entry);
        if let Err(error) = self.store_registry().await {
            self.0.registry.borrow_mut().topics.retain(|t| t.id != id);
            made.iter().for_each(Partition::close);
            return Err(error.into());
        }
        let topic = Rc::new(Topic { name: name.to_owned(), id, partitions: made, config });
        self.enter_topic(&topic);
        common.request_checkpoint();
        Ok(topic)
    }

    /// Removes a topic and its data. It stays removed after power loss when this returns.
    ///
    /// # Errors
    /// See [`TopicError`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let _claim = self.claim_registry().await;
        let topic = self.topic(name).ok_or_else(|| TopicError::Unknown(name.to_owned()))?;
        self.mark(topic.id, TopicState::Deleting);
        if let Err(error) = self.store_registry().await {
            self.mark(topic.id, TopicState::Live);
            return Err(error.into());
        }
        self.0.topics.borrow_mut().remove(name);
        self.0.by_id.borrow_mut().remove(&topic.id);
        topic.partitions.iter().for_each(Partition::close);
        self.remove_topic_data(name, topic.partitions.len() as i32).await?;
        self.0.registry.borrow_mut().topics.retain(|t| t.id != topic.id);
        self.store_registry().await?;
        self.0.common.request_checkpoint();
        Ok(())
    }

    fn mark(&self, id: TopicId, state: TopicState) {
        if let Some(entry) = self.0.registry.borrow_mut().topics.iter_mut().find(|t| t.id == id) {
            entry.state = state;
        }
    }

    pub(super) async fn remove_topic_data(&self, name: &str, partitions: i32) -> std::io::Result<()> {
        for index in 0..partitions {
            let dir = partition_dir(&self.0.common.config.data_dir, name, index);
            self.0.common.ring.remove_dir(&dir).await?;
        }
        Ok(())
    }

    pub(super) fn enter_topic(&self, topic: &Rc<Topic>) {
        self.0.topics.borrow_mut().insert(topic.name.clone(), topic.clone());
        self.0.by_id.borrow_mut().insert(topic.id, topic.clone());
    }

    pub(super) async fn store_registry(&self) -> std::io::Result<()> {
        let text = self.0.registry.borrow().format();
        let path = self.0.common.config.data_dir.join(REGISTRY_FILE);
        self.0.common.ring.replace(&path, text.into_bytes()).await
    }

    async fn set_aside(&self, dir: &std::path::Path) -> std::io::Result<()> {
        let ring = &self.0.common.ring;
        let stamp = ring.wall_clock();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside: PathBuf = dir.with_file_name(format!("{name}.{stamp}-aside"));
        tracing::warn!("{} holds files of no topic: kept as {}", dir.display(), aside.display());
        ring.rename(dir, &aside).await
    }
}
