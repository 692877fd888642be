//! The shard's manifest: one file, written front to back, that says of each of its partitions what a start must know.
//!
//! Every start writes a snapshot before anything is served, and what changes is appended. Where nobody touches a partition's
//! segments for a while it falls asleep: its entry says how they are, and a start opens none of them. Before they are
//! touched again an entry that says so is durable. When the file has grown far beyond a snapshot another one takes its
//! place. What it says is a help that nobody may doubt, so a shard that cannot write it removes it: then the next start
//! walks everything.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::Poll;
use std::time::Duration;

use crossbeam::queue::SegQueue;

use super::errors::OpenError;
use super::node::Node;
use super::partition::Partition;
use super::placement::{owner, virtual_shard};
use super::shard::{Common, Shard};
use super::sleep::Sleep;
use super::topics::TopicPlan;
use super::wakers::Wakers;
use crate::log::{FoundManifest, ManifestHead, PartitionEntry, PartitionState, encode_snapshot_end};
use crate::sys::{File, OpenOptions, Ring, is_passing};
use crate::types::{PartitionId, ShardId, TopicId};

/// Where the manifests of all shards lie, in the data directory.
pub(super) const MANIFEST_DIR: &str = "manifest";
const MANIFEST_BYTES_MAX: u64 = 4 << 30;
/// Written at a time.
const WRITE_BYTES: usize = 256 << 10;
/// A manifest that is larger than this, and than four snapshots, is replaced.
const GROWN_BYTES: u64 = 16 << 20;
/// How long until what ran short is asked for again.
const RETRY: Duration = Duration::from_millis(250);

/// Partitions of which something is known.
pub(super) type KnownStates = BTreeMap<PartitionId, PartitionState>;

/// What the manifests of the last start say, until every shard has taken its own.
#[derive(Default)]
pub(super) struct FoundManifests {
    states: KnownStates,
    /// The same, parted among the shards; each takes its own.
    shares: Box<[SegQueue<KnownStates>]>,
    /// The number of the last start.
    pub start: u64,
    files: Vec<PathBuf>,
    /// Shards that have written theirs.
    through: AtomicU16,
}

impl FoundManifests {
    /// Reads the manifests of the data directory `dir`.
    pub(super) async fn read(
        ring: &Ring,
        dir: &Path,
        directory: TopicId,
    ) -> Result<FoundManifests, OpenError> {
        let dir = dir.join(MANIFEST_DIR);
        let mut found = FoundManifests::default();
        let entries = match ring.list(&dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed?,
        };
        let (mut manifests, mut damaged) = (Vec::new(), false);
        for entry in entries {
            let path = dir.join(&entry.name);
            // New files get other names than any that is there.
            found.start = found.start.max(start_of(&entry.name.to_string_lossy()));
            let bytes = ring.read_file(&path, MANIFEST_BYTES_MAX).await?.unwrap_or_default();
            match FoundManifest::decode(&bytes) {
                Ok(manifest) if manifest.head.directory == directory => {
                    found.start = found.start.max(manifest.head.start);
                    manifests.push(manifest);
                }
                Ok(_) => {
                    tracing::error!("{}: a manifest of another data directory: not used", path.display());
                    damaged = true;
                }
                Err(error) => {
                    tracing::warn!("{}: {error}: the partitions are walked instead", path.display());
                    damaged = true;
                }
            }
            found.files.push(path);
        }
        // Where one cannot be read nobody knows what it said last.
        if !damaged {
            found.states = believed(manifests);
        }
        Ok(found)
    }

    /// Believes nothing of what was found.
    pub(super) fn forget(&mut self) {
        self.states.clear();
    }

    /// Removes the files.
    pub(super) async fn remove(&self, ring: &Ring) -> io::Result<()> {
        for path in &self.files {
            ring.remove(path).await?;
        }
        Ok(())
    }

    /// Parts what is known among so many shards; or forgets it, where everything is to be verified.
    pub(super) fn share(&mut self, topics: &[TopicPlan], shards: u16, verify: bool) {
        let mut shares: Vec<KnownStates> = vec![KnownStates::new(); usize::from(shards)];
        let mut states = std::mem::take(&mut self.states);
        for plan in topics.iter().filter(|_| !verify) {
            for index in 0..plan.boards.len() as i32 {
                let partition = PartitionId { topic: plan.id, index };
                if let Some(state) = states.remove(&partition) {
                    let owner = owner(virtual_shard(plan.first_virtual, index), shards);
                    shares[usize::from(owner.0)].insert(partition, state);
                }
            }
        }
        let queue = |share| {
            let queue = SegQueue::new();
            queue.push(share);
            queue
        };
        self.shares = shares.into_iter().map(queue).collect();
    }

    /// What is known of a shard's own partitions.
    pub(super) fn take(&self, shard: ShardId) -> KnownStates {
        self.shares[usize::from(shard.0)].pop().unwrap_or_default()
    }
}

/// Start of a manifest by its name.
fn start_of(name: &str) -> u64 {
    let start = name.split('-').next().and_then(|start| start.parse().ok());
    start.filter(|start| *start < 1 << 48).unwrap_or(0)
}

/// What the manifests of the last start say that came so far as to serve anything: all its shards had written theirs.
fn believed(manifests: Vec<FoundManifest>) -> KnownStates {
    // Of each shard the last that is whole: where another was to take its place, and did not, it is still the one.
    let mut whole: BTreeMap<u64, BTreeMap<ShardId, FoundManifest>> = BTreeMap::new();
    for manifest in manifests.into_iter().filter(|manifest| manifest.complete) {
        let ManifestHead { start, shard, number, .. } = manifest.head;
        let shards = whole.entry(start).or_default();
        if shards.get(&shard).is_none_or(|known| known.head.number < number) {
            shards.insert(shard, manifest);
        }
    }
    let all = |shards: &&BTreeMap<ShardId, FoundManifest>| {
        shards.values().all(|manifest| usize::from(manifest.head.shards) == shards.len())
    };
    let Some(start) = whole.iter().rev().find(|(_, shards)| all(shards)).map(|(start, _)| *start) else {
        return KnownStates::new();
    };
    let mut states = KnownStates::new();
    for entry in whole.remove(&start).into_iter().flatten().flat_map(|(_, manifest)| manifest.entries) {
        match entry.state {
            Some(state) => states.insert(entry.partition, state),
            None => states.remove(&entry.partition),
        };
    }
    states
}

/// See the module's words.
#[derive(Default)]
pub(super) struct Manifest {
    /// There is none, and nothing needs to be said.
    without: Cell<bool>,
    /// Where entries go; none until the first snapshot is written.
    file: RefCell<Option<(File, PathBuf)>>,
    /// Where the next entry goes.
    at: Cell<u64>,
    /// How long its snapshot is.
    snapshot_bytes: Cell<u64>,
    number: Cell<u64>,
    /// Every file that this start made and has not removed.
    made: RefCell<Vec<PathBuf>>,
    /// Entries to be written.
    pending: RefCell<Vec<u8>>,
    /// Entries so far; of these, how many are wanted durable, and how many are.
    pushed: Cell<u64>,
    wanted: Cell<u64>,
    durable: Cell<u64>,
    ending: Cell<bool>,
    writer: Wakers,
    waiters: Wakers,
}

impl Manifest {
    pub(super) fn is_kept(&self) -> bool {
        !self.without.get()
    }

    /// Adds what is known of a partition; some time later it is in the file.
    pub(super) fn push(&self, entry: &PartitionEntry) {
        if self.is_kept() {
            entry.encode(&mut self.pending.borrow_mut());
            self.pushed.set(self.pushed.get() + 1);
            self.writer.wake_all();
        }
    }

    /// The same, and waits until it is durable.
    pub(super) async fn mark(&self, entry: &PartitionEntry) {
        self.push(entry);
        self.sync().await;
    }

    /// Waits until what was added is durable, or needs not be.
    pub(super) async fn sync(&self) {
        let wanted = self.pushed.get();
        self.wanted.set(wanted);
        self.writer.wake_all();
        poll_fn(|cx| {
            if !self.is_kept() || self.ending.get() || self.durable.get() >= wanted {
                return Poll::Ready(());
            }
            self.waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
    }

    /// Ends it: what was added is durable.
    pub(super) async fn end(&self) {
        if self.is_kept() {
            self.sync().await;
        }
        self.stop();
    }

    pub(super) fn stop(&self) {
        self.ending.set(true);
        self.writer.wake_all();
    }
}

/// Writes the shard's snapshot, when its partitions are open, and starts what appends to it. Without room for it the shard
/// goes without.
pub(super) async fn begin(shard: &Shard) -> io::Result<()> {
    let common = &shard.0.common;
    match write_snapshot(shard).await {
        Ok(()) => {
            let shard = shard.clone();
            common.ring.spawn(async move { run(&shard).await });
        }
        Err(error) => {
            tracing::warn!("{error}: without a manifest the next start walks every partition");
            give_up(common).await?;
        }
    }
    Ok(())
}

/// The manifests of the last start are needed no more. They are removed by the last shard of which that is so.
pub(super) async fn leave(common: &Common, node: &Node) -> io::Result<()> {
    let found = &node.manifests;
    let through = found.through.fetch_add(1, Ordering::AcqRel) + 1;
    if through < node.shards() || found.files.is_empty() {
        return Ok(());
    }
    found.remove(&common.ring).await
}

async fn write_snapshot(shard: &Shard) -> io::Result<()> {
    let (common, manifest) = (&shard.0.common, &shard.0.common.manifest);
    let dir = common.config.data_dir.join(MANIFEST_DIR);
    common.ring.make_dir(&dir).await?;
    let number = manifest.number.get() + 1;
    let (start, id) = (common.node.manifests.start + 1, common.id);
    let head = ManifestHead {
        directory: common.node.identity.directory_id,
        start,
        shard: id,
        shards: common.node.shards(),
        number,
    };
    let path = dir.join(format!("{start}-{id}-{number}"));
    let options = OpenOptions { create: true, write: true, direct: false };
    manifest.made.borrow_mut().push(path.clone());
    let file = common.ring.open(&path, options).await?;
    // From here on in one go: what is to be added is in it, or comes behind it.
    let mut bytes = head.encode();
    for partition in shard.own_partitions() {
        partition.entry().encode(&mut bytes);
    }
    encode_snapshot_end(&mut bytes);
    manifest.pending.borrow_mut().clear();
    let covered = manifest.pushed.get();
    let written = async {
        write(common, &file, 0, &bytes).await?;
        common.ring.sync(&file).await?;
        common.ring.sync_dir(&dir).await
    };
    written.await?;
    let old = manifest.file.borrow_mut().replace((file, path.clone()));
    manifest.number.set(number);
    manifest.at.set(bytes.len() as u64);
    manifest.snapshot_bytes.set(bytes.len() as u64);
    if let Some((_, old)) = old {
        common.ring.remove(&old).await?;
        manifest.made.borrow_mut().retain(|made| *made == path);
    }
    manifest.durable.set(covered);
    manifest.waiters.wake_all();
    Ok(())
}

/// Appends what is added, until the shard ends.
async fn run(shard: &Shard) {
    let (common, manifest) = (&shard.0.common, &shard.0.common.manifest);
    loop {
        poll_fn(|cx| {
            let due = !manifest.pending.borrow().is_empty() || manifest.wanted.get() > manifest.durable.get();
            if due || manifest.ending.get() {
                return Poll::Ready(());
            }
            manifest.writer.add(cx.waker());
            Poll::Pending
        })
        .await;
        let idle = manifest.pending.borrow().is_empty() && manifest.wanted.get() <= manifest.durable.get();
        if idle {
            return;
        }
        if let Err(error) = append(shard).await {
            if is_passing(&error) {
                common.ring.sleep(RETRY).await;
                continue;
            }
            let words = format!("manifest of shard {}: {error}", common.id);
            tracing::warn!("{words}: without it the next start walks every partition");
            if let Err(error) = give_up(common).await {
                // It says of partitions that they are asleep, and nobody can say otherwise.
                common.fail_all(&format!("{words}; and it cannot be removed: {error}"));
                manifest.without.set(true);
                manifest.waiters.wake_all();
            }
            return;
        }
    }
}

async fn append(shard: &Shard) -> io::Result<()> {
    let (common, manifest) = (&shard.0.common, &shard.0.common.manifest);
    if manifest.at.get() > GROWN_BYTES.max(4 * manifest.snapshot_bytes.get()) {
        return write_snapshot(shard).await;
    }
    let (bytes, pushed) = (std::mem::take(&mut *manifest.pending.borrow_mut()), manifest.pushed.get());
    let file = manifest.file.borrow().as_ref().map(|(file, _)| file.clone());
    let Some(file) = file else { return Ok(()) };
    if let Err(error) = write(common, &file, manifest.at.get(), &bytes).await {
        // Perhaps there is a way later.
        let pending = &mut *manifest.pending.borrow_mut();
        pending.splice(..0, bytes);
        return Err(error);
    }
    manifest.at.set(manifest.at.get() + bytes.len() as u64);
    if manifest.wanted.get() > manifest.durable.get() {
        common.ring.sync(&file).await?;
        manifest.durable.set(pushed);
        manifest.waiters.wake_all();
    }
    Ok(())
}

async fn write(common: &Common, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = at;
    for chunk in bytes.chunks(WRITE_BYTES) {
        let mut lease = common.ring.lease(chunk.len()).await?;
        drop(lease.split_off(chunk.len()));
        lease.copy_from_slice(chunk);
        let mut lease = lease.freeze();
        while !lease.is_empty() {
            let length = lease.len();
            let (written, rest) = common.ring.write(file, at, lease).await;
            match written? {
                0 => return Err(io::Error::new(io::ErrorKind::WriteZero, "nothing was written")),
                n => {
                    at += n as u64;
                    lease = rest.slice(n..length);
                }
            }
        }
    }
    Ok(())
}

/// Goes without from here on: what it says must not be believed any more.
async fn give_up(common: &Common) -> io::Result<()> {
    let manifest = &common.manifest;
    let made = manifest.made.borrow().clone();
    for path in made {
        common.ring.remove(&path).await?;
    }
    manifest.without.set(true);
    manifest.file.take();
    manifest.pending.borrow_mut().clear();
    manifest.waiters.wake_all();
    Ok(())
}

impl Partition {
    /// What a start must know of it.
    pub(super) fn entry(&self) -> PartitionEntry {
        let end = self.0.reach.borrow().stored_durable();
        let files = self.0.files.borrow();
        let indexed = |base| files.get(base).is_some_and(|file| file.indexed);
        let told = !self.owes() && self.failure().is_none() && !self.0.unrecorded.get();
        let state = told
            .then(|| self.0.log.borrow().state(self.0.sleep.get() != Sleep::Asleep, end, indexed))
            .flatten();
        PartitionEntry { partition: self.id(), state }
    }
}
