//! Opening a data directory: the lock, the identity, the registry, every partition; and the clean-stop mark.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use super::checkpoints::{self, CLEAN_MARK_FILE, LOG_STARTS_FILE, RECOVERY_POINTS_FILE};
use super::config::{ShardConfig, TopicConfig};
use super::errors::OpenError;
use super::partition::partition_dir;
use super::recovery;
use super::shard::{Common, Identity, Inner, Shard};
use super::stages::Stages;
use super::topics::{METADATA_FILE, REGISTRY_FILE, Topic};
use super::wakers::Wakers;
use crate::log::{
    CheckpointError, MetaProperties, OffsetCheckpoint, PartitionMetadata, TopicEntry, TopicRegistry,
    TopicState, parse_partition_dir_name,
};
use crate::sys::{OpenOptions, Ring};
use crate::transfer::TransferCounters;
use crate::types::{Offset, PartitionId, ShardId, TopicId};

const META_FILE: &str = "meta.properties";
const LOCK_FILE: &str = ".lock";
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

impl Shard {
    /// Opens the data directory of `config` on `ring`'s thread, making it if it is not there, and recovers every
    /// partition. After anything but a clean stop every partition begins a new epoch, stored before this returns.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(ring: &Ring, id: ShardId, config: ShardConfig) -> Result<Shard, OpenError> {
        let dir = config.data_dir.clone();
        ring.make_dir(&dir).await?;
        let lock = ring.lock(&dir.join(LOCK_FILE)).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => OpenError::Locked(error.to_string()),
            _ => OpenError::Io(error),
        })?;
        let identity = identity(ring, &dir, config.node_id).await?;
        let direct_offered = !config.ingress.is_direct() || offers_direct(ring, &dir).await;
        if !direct_offered {
            let (dir, ingress) = (dir.display(), config.ingress);
            tracing::warn!(
                "{dir}: this file system has no O_DIRECT; ingress {ingress} goes through the page cache"
            );
        }
        let clean = ring.read_file(&dir.join(CLEAN_MARK_FILE), 4096).await?.is_some();
        let points = checkpoint(ring, &dir, RECOVERY_POINTS_FILE).await?;
        let starts = checkpoint(ring, &dir, LOG_STARTS_FILE).await?;
        let registry = registry(ring, &dir, &config.topic_defaults).await?;
        // From here on the directory counts as in use: what comes next is recovered unless it stops cleanly.
        ring.remove(&dir.join(CLEAN_MARK_FILE)).await?;
        let common = Rc::new(Common {
            ring: ring.clone(),
            id,
            config,
            identity,
            transfers: TransferCounters::default(),
            stages: Stages::default(),
            direct_offered,
            partitions: RefCell::new(Vec::new()),
            cached_bytes: Cell::new(0),
            checkpoint_due: Cell::new(true),
            checkpoint_busy: Cell::new(false),
            checkpoint_waiters: Wakers::default(),
            stopping: Cell::new(false),
            stop_waiters: Wakers::default(),
        });
        let shard = Shard(Rc::new(Inner {
            common,
            topics: RefCell::new(BTreeMap::new()),
            by_id: RefCell::new(BTreeMap::new()),
            registry_busy: Cell::new(false),
            registry_waiters: Wakers::default(),
            registry: RefCell::new(registry),
            _lock: lock,
        }));
        shard.open_topics(clean, &points, &starts).await?;
        shard.store_registry().await?;
        shard.spawn(checkpoints::run(shard.clone()));
        Ok(shard)
    }

    async fn open_topics(
        &self,
        clean: bool,
        points: &OffsetCheckpoint,
        starts: &OffsetCheckpoint,
    ) -> Result<(), OpenError> {
        let entries = self.0.registry.borrow().topics.clone();
        for entry in entries {
            if entry.state == TopicState::Deleting {
                self.remove_topic_data(&entry.name, entry.partitions).await?;
                self.0.registry.borrow_mut().topics.retain(|t| t.id != entry.id);
                continue;
            }
            let pairs = entry.config.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            let config = TopicConfig::from_pairs(&self.0.common.config.topic_defaults, pairs)
                .map_err(|why| OpenError::Refused(format!("topic {}: {why}", entry.name)))?;
            let mut partitions = Vec::new();
            for index in 0..entry.partitions {
                let start = recovery::Start {
                    id: PartitionId { topic: entry.id, index },
                    topic: &entry.name,
                    dir: partition_dir(&self.0.common.config.data_dir, &entry.name, index),
                    config: config.clone(),
                    recovery_point: points.find(&entry.name, index).unwrap_or(Offset(0)),
                    log_start: starts.find(&entry.name, index).unwrap_or(Offset(0)),
                    clean,
                };
                let partition = recovery::open_partition(&self.0.common, start).await?;
                self.0.common.register(&partition);
                partitions.push(partition);
            }
            let topic = Rc::new(Topic { name: entry.name.clone(), id: entry.id, partitions, config });
            self.enter_topic(&topic);
        }
        Ok(())
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bad(path: &Path) -> impl FnOnce(CheckpointError) -> OpenError + '_ {
    move |source| OpenError::Checkpoint { path: path.to_owned(), source }
}

async fn identity(ring: &Ring, dir: &Path, node_id: i32) -> Result<Identity, OpenError> {
    let path = dir.join(META_FILE);
    let known = match ring.read_file(&path, SMALL_FILE_BYTES_MAX).await? {
        Some(bytes) => Some(MetaProperties::parse(&text_of(&bytes)).map_err(bad(&path))?),
        None => None,
    };
    let random_id = || {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&ring.random_u64().to_be_bytes());
        id[8..].copy_from_slice(&ring.random_u64().to_be_bytes());
        TopicId(id)
    };
    let complete = known.as_ref().is_some_and(|meta| meta.directory_id.is_some());
    let mut meta = known.unwrap_or_else(|| MetaProperties {
        cluster_id: random_id().to_string(),
        node_id,
        directory_id: None,
        others: Vec::new(),
    });
    let directory_id = *meta.directory_id.get_or_insert_with(random_id);
    if !complete {
        ring.replace(&path, meta.format().into_bytes()).await?;
    }
    Ok(Identity { cluster_id: meta.cluster_id, node_id: meta.node_id, directory_id })
}

async fn offers_direct(ring: &Ring, dir: &Path) -> bool {
    let path = dir.join(".direct-probe");
    let options = OpenOptions { create: true, write: true, direct: true };
    let offered = ring.open(&path, options).await.is_ok();
    // A probe that cannot be removed does no harm.
    let _ = ring.remove(&path).await;
    offered
}

/// A checkpoint is a help, not evidence: one that cannot be read is as good as none, and said so.
async fn checkpoint(ring: &Ring, dir: &Path, name: &str) -> Result<OffsetCheckpoint, OpenError> {
    let path = dir.join(name);
    let Some(bytes) = ring.read_file(&path, SMALL_FILE_BYTES_MAX).await? else {
        return Ok(OffsetCheckpoint::default());
    };
    Ok(OffsetCheckpoint::parse(&text_of(&bytes)).unwrap_or_else(|error| {
        tracing::warn!("{}: {error}; going on without it", path.display());
        OffsetCheckpoint::default()
    }))
}

/// The registry; where there is none, one made of the partition directories that Kafka left.
async fn registry(ring: &Ring, dir: &Path, defaults: &TopicConfig) -> Result<TopicRegistry, OpenError> {
    let path = dir.join(REGISTRY_FILE);
    if let Some(bytes) = ring.read_file(&path, SMALL_FILE_BYTES_MAX).await? {
        return TopicRegistry::parse(&text_of(&bytes)).map_err(bad(&path));
    }
    let mut topics: BTreeMap<String, TopicEntry> = BTreeMap::new();
    for entry in ring.list(dir).await?.iter().filter(|e| e.is_dir) {
        let name = entry.name.to_string_lossy();
        let Some((topic, index)) = parse_partition_dir_name(&name) else { continue };
        let metadata = ring.read_file(&dir.join(&entry.name).join(METADATA_FILE), 4096).await?;
        let id = match metadata {
            Some(bytes) => PartitionMetadata::parse(&text_of(&bytes)).map_err(bad(&path))?.topic_id,
            None => TopicId(
                [ring.random_u64().to_be_bytes(), ring.random_u64().to_be_bytes()]
                    .concat()
                    .try_into()
                    .expect("twice eight bytes"),
            ),
        };
        let known = topics.entry(topic.to_owned()).or_insert_with(|| TopicEntry {
            name: topic.to_owned(),
            id,
            partitions: 0,
            state: TopicState::Live,
            config: defaults.to_pairs(),
        });
        known.partitions = known.partitions.max(index + 1);
    }
    Ok(TopicRegistry { topics: topics.into_values().collect() })
}
