//! What all shards of one data directory share, and the opening of that directory.
//!
//! One shard, number 0, opens the directory: it takes the lock, reads identity, registry and checkpoints, and finishes
//! what a crash left half done. What it found is the [`Node`], plain data for every shard, each of which then recovers
//! the partitions that are its own ([`super::Shard::join`]).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::acks::Ack;
use super::board::Board;
use super::checkpoints::{
    CLEAN_MARK, CLEAN_MARK_FILE, LOG_STARTS_FILE, RECOVERY_POINTS_FILE, REPLICATION_POINTS_FILE,
};
use super::config::{ShardConfig, TopicConfig};
use super::errors::OpenError;
use super::lanes::{Letter, mailbox_capacity};
use super::manifest::FoundManifests;
use super::partition::partition_dir;
use super::placement::VIRTUAL_SHARDS;
use super::replay::FoundJournals;
use super::reserve_file::{Reserve, is_full};
use super::topics::{METADATA_FILE, PARTITIONS_MAX, REGISTRY_FILE, TopicPlan};
use crate::log::{
    CheckpointError, MetaProperties, OffsetCheckpoint, PartitionMetadata, TopicEntry, TopicRegistry,
    TopicState, parse_partition_dir_name,
};
use crate::sys::{DirLock, Flushes, Mailbox, OpenOptions, Ring, is_passing};
use crate::types::{Offset, ShardId, TopicId};

const META_FILE: &str = "meta.properties";
pub(super) const LOCK_FILE: &str = ".lock";
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

/// See the module's words.
pub struct Node {
    pub(super) identity: Identity,
    pub(super) clean: bool,
    /// What a flush is worth here.
    pub(super) flushes: Flushes,
    /// Whether the file system takes writes past the page cache.
    pub(super) direct_offered: bool,
    /// Whether it takes writes that leave the page cache at once; asked only where the ingress strategy wants them.
    pub(super) uncached_offered: bool,
    /// As it was found, less what was being deleted.
    pub(super) registry: TopicRegistry,
    /// Its topics.
    pub(super) topics: Vec<TopicPlan>,
    mailboxes: Box<[Mailbox<Letter>]>,
    checkpoint_noticed: AtomicBool,
    /// What the journals of an earlier start hold.
    pub(super) journals: FoundJournals,
    pub(super) manifests: FoundManifests,
    pub(super) reserve: Reserve,
    /// Given up when the last shard is gone: until then no other process touches the directory.
    _lock: DirLock,
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

impl Node {
    /// Opens the data directory of `config` on `ring`'s thread, making it if it is not there, for `shards` shards.
    ///
    /// # Errors
    /// See [`OpenError`].
    ///
    /// # Panics
    /// When `shards` is not 1 to [`VIRTUAL_SHARDS`].
    pub async fn open(ring: &Ring, config: &ShardConfig, shards: u16) -> Result<Arc<Node>, OpenError> {
        assert!((1..=VIRTUAL_SHARDS).contains(&shards), "{shards} shards");
        config.check()?;
        let dir = config.data_dir.clone();
        ring.make_dir(&dir).await?;
        let lock = ring.lock(&dir.join(LOCK_FILE)).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => OpenError::Locked(error.to_string()),
            _ => OpenError::Io(error),
        })?;
        let identity = identity(ring, &dir, config.node_id).await?;
        let direct_offered = offers_direct(ring, &dir.join(LOCK_FILE)).await?;
        if !direct_offered && (config.ingress.is_direct() || config.egress.reads_direct()) {
            let (dir, ingress, egress) = (dir.display(), config.ingress, config.egress);
            tracing::warn!(
                "{dir}: this file system has no O_DIRECT; what ingress {ingress} and egress {egress} would move past \
                 the page cache goes through it"
            );
        }
        if config.egress.is_zero_copy() && !ring.sends_zero_copy() {
            let egress = config.egress;
            tracing::warn!(
                "this kernel has no zero-copy sends (they came with Linux 6.0): egress {egress} copies"
            );
        }
        let uncached_offered =
            config.ingress.is_uncached() && offers_uncached(ring, &dir.join(LOCK_FILE)).await?;
        if config.ingress.is_uncached() && !uncached_offered {
            tracing::warn!(
                "{}: kernel or file system know no RWF_DONTCACHE; what ingress {} writes stays in the page cache",
                dir.display(),
                config.ingress
            );
        }
        let flushes = ring.flushes(&dir).await?;
        if let Flushes::ReachBut(words) = &flushes {
            tracing::warn!("{words}");
        }
        may_promise(&flushes, &config.topic_defaults, "topics that are not told otherwise")?;
        let mark = ring.read_file(&dir.join(CLEAN_MARK_FILE), 4096).await?;
        let clean = mark.is_some();
        // What a Kafka leaves that ran on this directory; it knows nothing of manifests.
        let visited =
            ring.read_file(&dir.join(REPLICATION_POINTS_FILE), SMALL_FILE_BYTES_MAX).await?.is_some()
                || mark.is_some_and(|mark| mark != CLEAN_MARK);
        let points = checkpoint(ring, &dir, RECOVERY_POINTS_FILE).await?;
        let starts = checkpoint(ring, &dir, LOG_STARTS_FILE).await?;
        let (stored, mut registry) = registry(ring, &dir, &config.topic_defaults).await?;
        let journals = FoundJournals::read(ring, &dir, identity.directory_id, config.mutant).await?;
        let mut manifests = FoundManifests::read(ring, &dir, identity.directory_id).await?;
        // From here on the directory counts as in use: what comes next is recovered unless it stops cleanly.
        ring.remove(&dir.join(CLEAN_MARK_FILE)).await?;
        if visited {
            tracing::warn!("{}: another program used it: every partition is walked", dir.display());
            manifests.forget();
            manifests.remove(ring).await?;
            ring.remove(&dir.join(REPLICATION_POINTS_FILE)).await?;
        }
        for entry in registry.topics.iter().filter(|t| t.state == TopicState::Deleting) {
            // A name that has been given away is not ours to remove.
            let is_taken = |t: &TopicEntry| t.state == TopicState::Live && t.name == entry.name;
            if registry.topics.iter().any(is_taken) {
                continue;
            }
            for index in 0..entry.partitions {
                ring.remove_dir(&partition_dir(&dir, &entry.name, index)).await?;
            }
        }
        registry.topics.retain(|t| t.state == TopicState::Live);
        let reserve = Reserve::default();
        let text = registry.format().into_bytes();
        if stored.as_ref() != Some(&text)
            && let Err(error) = reserve.replace(ring, &dir, &dir.join(REGISTRY_FILE), text).await
        {
            if !is_full(&error) {
                return Err(error.into());
            }
            // The old one leads to the same again: its deletions are finished, its directories are found.
            tracing::warn!("{error}; the next start has to find it out again");
        }
        // What was read may be in the page cache only.
        ring.sync_dir(&dir).await?;
        let (points, starts) = (by_partition(&points), by_partition(&starts));
        let plans = registry.topics.iter().map(|entry| plan(entry, config, &points, &starts));
        let topics = plans.collect::<Result<Vec<_>, _>>()?;
        for topic in &topics {
            may_promise(&flushes, &topic.config, &format!("topic {}", topic.name))?;
        }
        manifests.share(&topics, shards, config.verify);
        let mailboxes = (0..shards).map(|_| Mailbox::new(mailbox_capacity(shards))).collect();
        let checkpoint_noticed = AtomicBool::new(false);
        reserve.make(ring, &dir).await;
        Ok(Arc::new(Node {
            identity,
            clean,
            direct_offered,
            uncached_offered,
            flushes,
            registry,
            topics,
            mailboxes,
            checkpoint_noticed,
            journals,
            manifests,
            reserve,
            _lock: lock,
        }))
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.mailboxes.len() as u16
    }

    /// What a flush of this data directory is worth.
    #[must_use]
    pub fn flushes(&self) -> &Flushes {
        &self.flushes
    }

    pub(super) fn mailbox(&self, shard: ShardId) -> &Mailbox<Letter> {
        &self.mailboxes[usize::from(shard.0)]
    }

    /// True when no notice lies in shard 0's mailbox yet: then the caller puts it there.
    pub(super) fn claim_checkpoint_notice(&self) -> bool {
        !self.checkpoint_noticed.swap(true, Ordering::AcqRel)
    }

    pub(super) fn take_checkpoint_notice(&self) {
        self.checkpoint_noticed.store(false, Ordering::Release);
    }
}

/// Refuses to promise what is known not to hold.
fn may_promise(flushes: &Flushes, config: &TopicConfig, whose: &str) -> Result<(), OpenError> {
    match flushes {
        Flushes::DoNotReach(why) if config.ack == Ack::Durable => Err(OpenError::Refused(format!(
            "{why}. So the acknowledgement `durable`, which {whose} ask for, cannot be kept: ask for `written`, or \
             put the data directory elsewhere"
        ))),
        _ => Ok(()),
    }
}

type Offsets<'a> = BTreeMap<(&'a str, i32), Offset>;

fn by_partition(checkpoint: &OffsetCheckpoint) -> Offsets<'_> {
    checkpoint.entries.iter().map(|entry| ((entry.topic.as_str(), entry.partition), entry.offset)).collect()
}

fn plan(
    entry: &TopicEntry,
    config: &ShardConfig,
    points: &Offsets<'_>,
    starts: &Offsets<'_>,
) -> Result<TopicPlan, OpenError> {
    let pairs = entry.config.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let told = TopicConfig::from_pairs(&config.topic_defaults, pairs)
        .map_err(|why| OpenError::Refused(format!("topic {}: {why}", entry.name)))?;
    let recorded = |index| {
        let of = |offsets: &Offsets<'_>| offsets.get(&(entry.name.as_str(), index)).copied();
        Board::recorded(of(points).unwrap_or(Offset(0)), of(starts).unwrap_or(Offset(0)))
    };
    Ok(TopicPlan {
        name: entry.name.as_str().into(),
        id: entry.id,
        config: told,
        first_virtual: entry.first_virtual,
        boards: (0..entry.partitions).map(recorded).collect(),
    })
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

/// Asked of a file that is there already: on a full disk none can be made. What is short at the moment is no answer.
async fn offers_direct(ring: &Ring, lock: &Path) -> io::Result<bool> {
    match ring.open(lock, OpenOptions { write: true, direct: true, ..OpenOptions::default() }).await {
        Err(error) if is_passing(&error) => Err(error),
        opened => Ok(opened.is_ok()),
    }
}

async fn offers_uncached(ring: &Ring, lock: &Path) -> io::Result<bool> {
    let file = ring.open(lock, OpenOptions { write: true, ..OpenOptions::default() }).await?;
    ring.takes_uncached(&file).await
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

/// The registry, with its bytes; where there is none, one made of the partition directories that Kafka left.
async fn registry(
    ring: &Ring,
    dir: &Path,
    defaults: &TopicConfig,
) -> Result<(Option<Vec<u8>>, TopicRegistry), OpenError> {
    let path = dir.join(REGISTRY_FILE);
    if let Some(bytes) = ring.read_file(&path, SMALL_FILE_BYTES_MAX).await? {
        let registry = TopicRegistry::parse(&text_of(&bytes)).map_err(bad(&path))?;
        return check_counts(&registry, &path).map(|()| (Some(bytes), registry));
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
            first_virtual: 0,
            state: TopicState::Live,
            config: defaults.to_pairs(),
        });
        known.partitions = known.partitions.max(index.saturating_add(1));
    }
    let registry = TopicRegistry { topics: topics.into_values().collect() };
    check_counts(&registry, dir).map(|()| (None, registry))
}

/// Refuses counts that only a rotten digit, or a directory that is no partition, can have made: partitions are made as
/// they are counted.
fn check_counts(registry: &TopicRegistry, path: &Path) -> Result<(), OpenError> {
    match registry.topics.iter().find(|topic| topic.partitions > PARTITIONS_MAX) {
        None => Ok(()),
        Some(TopicEntry { name, partitions, .. }) => Err(OpenError::Refused(format!(
            "{}: topic {name} would have {partitions} partitions, at most {PARTITIONS_MAX} are possible",
            path.display()
        ))),
    }
}
