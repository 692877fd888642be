//! The simulated disk: a state moved forward by events, and what of it a crash leaves.
//!
//! The running world and a cut through its recording apply the same events to the same kind of state, so a crash
//! image is never a second opinion on what was durable. A write becomes visible when its bytes are taken, completes
//! later, and is durable once a sync that was submitted after its completion has completed.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::image::{Content, DiskImage, ImageNode, SECTOR_BYTES};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Node {
    Dir,
    File(u64),
}

pub(super) type Names = BTreeMap<PathBuf, Node>;

/// A change to the names on the disk: volatile until a sync of a directory it touches, or of a later change.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Link { path: PathBuf, inode: u64 },
    MakeDir { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    RemoveDir { path: PathBuf },
}

#[derive(Clone)]
pub(super) enum DiskEvent {
    Names(NameChange),
    SyncNames {
        dir: PathBuf,
    },
    /// A write's bytes were taken from memory and can be read.
    Wrote {
        inode: u64,
        id: u64,
        at: u64,
        data: Arc<[u8]>,
    },
    WriteCompleted {
        inode: u64,
        id: u64,
    },
    /// Covers the writes that completed before event `before`, which was next when the sync was submitted.
    Synced {
        inode: u64,
        before: usize,
    },
    /// Of all files, and all names.
    SyncedAll {
        before: usize,
    },
    /// As the kernel does it: what a failed sync covered is forgotten by later ones.
    SyncFailed {
        inode: u64,
        before: usize,
    },
    Replaced {
        path: PathBuf,
        inode: u64,
        data: Arc<[u8]>,
    },
    Prepared {
        inode: u64,
        to: u64,
    },
    Trimmed {
        inode: u64,
        to: u64,
    },
}

#[derive(Clone)]
struct PendingWrite {
    id: u64,
    at: u64,
    data: Arc<[u8]>,
    /// The event of its completion.
    completed: Option<usize>,
    /// A failed sync covered it: no later one makes it durable.
    forgotten: bool,
}

impl PendingWrite {
    fn end(&self) -> u64 {
        self.at + self.data.len() as u64
    }

    fn overlaps(&self, other: &PendingWrite) -> bool {
        self.at < other.end() && other.at < self.end()
    }

    /// Puts those sectors of this write that `pick` says.
    fn put_sectors(&self, content: &mut Content, mut pick: impl FnMut(u64) -> bool) {
        let mut run: Option<u64> = None;
        let mut position = self.at;
        while position < self.end() {
            let next = ((position / SECTOR_BYTES + 1) * SECTOR_BYTES).min(self.end());
            match (pick(position / SECTOR_BYTES), run) {
                (true, None) => run = Some(position),
                (false, Some(start)) => {
                    self.put(content, start, position);
                    run = None;
                }
                _ => {}
            }
            position = next;
        }
        if let Some(start) = run {
            self.put(content, start, self.end());
        }
    }

    fn put(&self, content: &mut Content, from: u64, to: u64) {
        content.put(from, &self.data[(from - self.at) as usize..(to - self.at) as usize]);
    }
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub current: Content,
    /// How often its bytes or its size were changed.
    pub changes: u64,
    durable: Content,
    /// In the order in which their bytes became visible.
    pending: Vec<PendingWrite>,
}

impl Inode {
    fn sync(&mut self, before: usize) {
        let covered: Vec<bool> = self
            .pending
            .iter()
            .map(|write| !write.forgotten && write.completed.is_some_and(|at| at < before))
            .collect();
        if !covered.contains(&true) {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        for (index, write) in pending.iter().enumerate() {
            // Bytes that a covered write has overwritten since cannot come back.
            let superseded =
                || (index + 1..pending.len()).any(|later| covered[later] && pending[later].overlaps(write));
            if covered[index] || superseded() {
                self.durable.write(write.at, &write.data);
            } else {
                self.pending.push(write.clone());
            }
        }
    }

    fn set_durable_size(&mut self, size: u64, cut: bool) {
        if cut {
            self.pending.retain_mut(|write| {
                let keep = size.saturating_sub(write.at).min(write.data.len() as u64) as usize;
                if keep < write.data.len() {
                    write.data = Arc::from(&write.data[..keep]);
                }
                keep > 0 || write.completed.is_none()
            });
        }
        for content in [&mut self.current, &mut self.durable] {
            if cut || content.size < size {
                content.set_size(size);
            }
        }
    }

    fn after_power_loss(&self, number: u64, seed: u64) -> Content {
        let mut content = self.durable.clone();
        let count = self.pending.len() as u64;
        if count == 0 {
            return content;
        }
        let draw = mix(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // A sector holds what it held after some number of the pending writes: one that made it to the disk brings
        // the earlier ones to the same sector with it.
        let threshold = |sector: u64| match draw % 8 {
            0 => 0,
            1 => count,
            2 | 3 => (mix(draw ^ sector) & 1) * count,
            _ => mix(draw ^ sector) % (count + 1),
        };
        for (index, write) in self.pending.iter().enumerate() {
            write.put_sectors(&mut content, |sector| (index as u64) < threshold(sector));
        }
        let (least, most) = (self.durable.size, self.current.size.max(self.durable.size));
        let size = match (draw % 8, draw >> 8 & 3) {
            (0, _) => least,
            (1, _) | (_, 0 | 1) => most,
            (_, 2) => least,
            _ => least + mix(draw) % (most - least + 1),
        };
        content.set_size(size);
        content
    }

    fn after_process_death(&self, number: u64, seed: u64) -> Content {
        if self.pending.iter().all(|write| write.completed.is_some()) {
            return self.current.clone();
        }
        let mut content = self.durable.clone();
        for write in &self.pending {
            if write.completed.is_some() {
                content.write(write.at, &write.data);
                continue;
            }
            let draw = mix(seed ^ number ^ write.id << 20);
            let mut end = 0;
            write.put_sectors(&mut content, |sector| {
                let picked = match draw % 4 {
                    0 => false,
                    1 => true,
                    _ => mix(draw ^ sector) & 1 == 1,
                };
                if picked {
                    end = ((sector + 1) * SECTOR_BYTES).min(write.end());
                }
                picked
            });
            content.size = content.size.max(end);
        }
        content.set_size(content.size);
        content
    }
}

/// The state of the disk after some number of events.
#[derive(Clone, Default)]
pub(super) struct DiskState {
    pub inodes: BTreeMap<u64, Inode>,
    pub names: Names,
    durable_names: Names,
    /// What `names` has and `durable_names` has not, in order.
    volatile: VecDeque<NameChange>,
    applied: usize,
}

impl DiskState {
    pub fn of_image(image: &DiskImage) -> DiskState {
        let mut state = DiskState::default();
        for (path, node) in &image.nodes {
            let node = match node {
                ImageNode::Dir => Node::Dir,
                ImageNode::File(content) => {
                    let inode = state.inodes.len() as u64 + 1;
                    let file = Inode {
                        current: content.clone(),
                        changes: 0,
                        durable: content.clone(),
                        pending: Vec::new(),
                    };
                    state.inodes.insert(inode, file);
                    Node::File(inode)
                }
            };
            state.names.insert(path.clone(), node);
        }
        state.durable_names = state.names.clone();
        state
    }

    /// Applies the next event.
    pub fn apply(&mut self, event: &DiskEvent) {
        match event {
            DiskEvent::Names(change) => self.change_names(change.clone()),
            DiskEvent::SyncNames { dir } => {
                let last = self.volatile.iter().rposition(|change| touches(change, dir));
                self.keep_names(last.map_or(0, |last| last + 1));
            }
            DiskEvent::Wrote { inode, id, at, data } => {
                let file = self.inode(*inode);
                file.current.write(*at, data);
                file.changes += 1;
                let data = data.clone();
                file.pending.push(PendingWrite { id: *id, at: *at, data, completed: None, forgotten: false });
            }
            DiskEvent::WriteCompleted { inode, id } => {
                let completed = Some(self.applied);
                let write = self.inode(*inode).pending.iter_mut().find(|write| write.id == *id);
                if let Some(write) = write {
                    write.completed = completed;
                }
            }
            DiskEvent::Synced { inode, before } => self.inode(*inode).sync(*before),
            DiskEvent::SyncedAll { before } => {
                self.inodes.values_mut().for_each(|inode| inode.sync(*before));
                self.keep_names(self.volatile.len());
            }
            DiskEvent::SyncFailed { inode, before } => {
                for write in &mut self.inode(*inode).pending {
                    write.forgotten |= write.completed.is_some_and(|at| at < *before);
                }
            }
            DiskEvent::Replaced { path, inode, data } => {
                let file = self.inodes.entry(*inode).or_default();
                file.current.write(0, data);
                file.durable = file.current.clone();
                self.change_names(NameChange::Link { path: path.clone(), inode: *inode });
                self.keep_names(self.volatile.len());
            }
            DiskEvent::Prepared { inode, to } => {
                let now = self.applied;
                let file = self.inode(*inode);
                file.changes += 1;
                file.sync(now);
                file.set_durable_size(*to, false);
            }
            DiskEvent::Trimmed { inode, to } => {
                let now = self.applied;
                let file = self.inode(*inode);
                file.changes += 1;
                file.sync(now);
                file.set_durable_size(*to, true);
            }
        }
        self.applied += 1;
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("events are about files that were made")
    }

    fn change_names(&mut self, change: NameChange) {
        if let NameChange::Link { inode, .. } = &change {
            self.inodes.entry(*inode).or_default();
        }
        apply_names(&mut self.names, &change);
        self.volatile.push_back(change);
    }

    fn keep_names(&mut self, count: usize) {
        for change in self.volatile.drain(..count) {
            apply_names(&mut self.durable_names, &change);
        }
    }

    fn image(&self, kind: CutKind, seed: u64) -> DiskImage {
        let kept = match kind {
            CutKind::ProcessDeath => None,
            CutKind::PowerLoss => {
                let mut names = self.durable_names.clone();
                let draw = mix(seed);
                let count = self.volatile.len() as u64;
                let kept = match draw % 4 {
                    0 => 0,
                    1 => count,
                    _ => (draw >> 8) % (count + 1),
                };
                for change in self.volatile.iter().take(kept as usize) {
                    apply_names(&mut names, change);
                }
                Some(names)
            }
        };
        let content = |number: u64| match kind {
            CutKind::PowerLoss => self.inodes[&number].after_power_loss(number, seed),
            CutKind::ProcessDeath => self.inodes[&number].after_process_death(number, seed),
        };
        let names = kept.as_ref().unwrap_or(&self.names);
        let nodes = names.iter().map(|(path, node)| match node {
            Node::Dir => (path.clone(), ImageNode::Dir),
            Node::File(inode) => (path.clone(), ImageNode::File(content(*inode))),
        });
        DiskImage { nodes: nodes.collect() }
    }
}

fn touches(change: &NameChange, dir: &Path) -> bool {
    let within = |path: &Path| path.parent().unwrap_or(Path::new("/")) == dir;
    match change {
        NameChange::Link { path, .. }
        | NameChange::MakeDir { path }
        | NameChange::Remove { path }
        | NameChange::RemoveDir { path } => within(path),
        NameChange::Rename { from, to } => within(from) || within(to),
    }
}

fn apply_names(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Link { path, inode } => drop(names.insert(path.clone(), Node::File(*inode))),
        NameChange::MakeDir { path } => drop(names.insert(path.clone(), Node::Dir)),
        NameChange::Remove { path } => drop(names.remove(path)),
        NameChange::RemoveDir { path } => names.retain(|name, _| !name.starts_with(path)),
        NameChange::Rename { from, to } => {
            let moved: Vec<PathBuf> = names.keys().filter(|name| name.starts_with(from)).cloned().collect();
            for name in moved {
                let node = names.remove(&name).expect("the name was just seen");
                let rest = name.strip_prefix(from).expect("it starts with the old name");
                let name = if rest == Path::new("") { to.clone() } else { to.join(rest) };
                names.insert(name, node);
            }
        }
    }
}

/// A good mix of the bits of `value` (splitmix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// The running world's disk: its state and everything that ever happened to it.
pub(super) struct Disk {
    base: DiskState,
    pub state: DiskState,
    events: Vec<DiskEvent>,
    inode_next: u64,
    write_next: u64,
}

impl Disk {
    pub fn of_image(image: &DiskImage) -> Disk {
        let state = DiskState::of_image(image);
        let inode_next = state.inodes.len() as u64 + 1;
        Disk { base: state.clone(), state, events: Vec::new(), inode_next, write_next: 0 }
    }

    pub fn record(&mut self, event: DiskEvent) {
        self.state.apply(&event);
        self.events.push(event);
    }

    pub fn events(&self) -> usize {
        self.events.len()
    }

    pub fn new_inode(&mut self) -> u64 {
        self.inode_next += 1;
        self.inode_next - 1
    }

    pub fn new_write(&mut self) -> u64 {
        self.write_next += 1;
        self.write_next
    }

    pub fn recording(&self) -> Recording {
        Recording(Arc::new(Recorded { base: self.base.clone(), events: self.events.clone() }))
    }
}

/// How a run is cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CutKind {
    /// What is durable survives; of the rest, some sectors of some writes and a prefix of the changes to names.
    PowerLoss,
    /// Every completed operation survives; of writes under way, some sectors. A world that boots from such an
    /// image takes all of it as durable.
    ProcessDeath,
}

/// Everything that happened to a world's disk. May be cut on any thread; clones share it.
#[derive(Clone)]
pub struct Recording(Arc<Recorded>);

struct Recorded {
    base: DiskState,
    events: Vec<DiskEvent>,
}

impl Recording {
    /// How many events there are: cuts are at `0..=events()`.
    #[must_use]
    pub fn events(&self) -> usize {
        self.0.events.len()
    }

    /// A cursor before the first event.
    #[must_use]
    pub fn cursor(&self) -> CutCursor {
        CutCursor { recorded: self.0.clone(), state: self.0.base.clone() }
    }
}

/// Goes forward through a recording and gives the disks that crashes on the way would leave.
pub struct CutCursor {
    recorded: Arc<Recorded>,
    state: DiskState,
}

impl CutCursor {
    /// The disk after a crash when exactly the first `event_index` events had happened. The same seed gives the
    /// same disk.
    ///
    /// # Panics
    /// When `event_index` is less than at the last call, or beyond the recording.
    pub fn image_at(&mut self, event_index: usize, kind: CutKind, seed: u64) -> DiskImage {
        assert!(event_index >= self.state.applied, "cuts are asked for in ascending order");
        for event in &self.recorded.events[self.state.applied..event_index] {
            self.state.apply(event);
        }
        self.state.image(kind, seed)
    }
}
