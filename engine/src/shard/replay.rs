//! What a crash left in the journals, and bringing it to the segments it is for.
//!
//! Shard 0 reads the journals of all shards, as many as there were; every shard then replays what is its own partitions',
//! before it looks at their segments. Only what continues the log is written, at the very place where it would have gone:
//! so it does not matter how often that is done, or where a crash in the middle of it left off. The old journals are removed
//! when every shard is through, and nothing is served before.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use super::config::Mutant;
use super::errors::OpenError;
use super::journal::JOURNAL_DIR;
use super::node::Node;
use super::recovery::{Start, segment_bases, walk};
use crate::log::{
    BatchHeader, EpochCache, Ext, FoundFrame, FrameKind, JOURNAL_BLOCK, JournalFile, JournalScan, LogPoint,
    PartitionState, ScannedFile, Tail, UNIT_BYTES_MAX, UnitStamp, segment_file_name, stamp,
};
use crate::sys::{File, OpenOptions, Ring};
use crate::types::{Epoch, Offset, PartitionId, Position, ShardId, TopicId};

/// What the journals of earlier starts hold that is not known to be in segments.
#[derive(Default)]
pub(super) struct FoundJournals {
    /// The number of this start.
    pub start: u64,
    files: Vec<PathBuf>,
    /// In which they are removed.
    order: Vec<usize>,
    /// Of each partition, oldest first.
    frames: BTreeMap<PartitionId, Vec<Found>>,
    mutant: Mutant,
    /// Shards that have brought their partitions' to segments.
    through: AtomicU16,
}

/// A frame that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub frame: FoundFrame,
    /// Which of the files it is in.
    file: usize,
    /// Whether it is of the units that may have been under way when all ended: what of these cannot be read was promised to
    /// nobody, perhaps, nor was what comes behind it.
    unsure: bool,
}

/// The units of one shard since one start.
#[derive(Default)]
struct Units {
    last: u64,
    /// Those that can be read as a whole.
    whole: BTreeSet<u64>,
}

impl Units {
    fn add(&mut self, file: &ScannedFile) {
        self.last = self.last.max(file.units.iter().copied().max().unwrap_or(0));
        let unsound = file.frames.iter().filter(|frame| !frame.sound).map(|frame| frame.sequence);
        let torn: BTreeSet<u64> = unsound.chain(file.nameless.iter().copied()).collect();
        self.whole.extend(file.units.iter().filter(|unit| !torn.contains(unit)));
    }

    /// Two are under way at a time, and nobody is told of the later before the earlier is safe.
    fn is_unsure(&self, unit: u64) -> bool {
        let before = self.last.saturating_sub(1);
        match unit == self.last {
            true => !self.whole.contains(&unit) || !self.whole.contains(&before),
            false => unit == before && !self.whole.contains(&unit),
        }
    }

    fn report_missing(&self, dir: &Path, start: u64, shard: ShardId) {
        let whole: Vec<u64> = self.whole.iter().copied().collect();
        for pair in whole.windows(2).filter(|pair| pair[0] + 1 < pair[1]) {
            if pair[1] == self.last && pair[0] + 2 == pair[1] {
                continue; // Under way together with the last.
            }
            let (dir, first, last) = (dir.display(), pair[0] + 1, pair[1] - 1);
            tracing::error!(
                "{dir}: units {first} to {last} of shard {shard} since start {start} cannot be read; the partitions that \
                 need them say so"
            );
        }
    }
}

impl FoundJournals {
    /// Reads the journals of the data directory `dir`.
    pub(super) async fn read(
        ring: &Ring,
        dir: &Path,
        directory: TopicId,
        mutant: Mutant,
    ) -> Result<FoundJournals, OpenError> {
        let dir = dir.join(JOURNAL_DIR);
        let mut found = FoundJournals { start: 1, mutant, ..FoundJournals::default() };
        let mut scanned = Vec::new();
        let entries = match ring.list(&dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed?,
        };
        for entry in entries {
            let path = dir.join(&entry.name);
            let named = name_of(&entry.name.to_string_lossy());
            // New files get other names than any that is there.
            found.start = found.start.max(named.map_or(0, |(start, _)| start) + 1);
            match scan(ring, &path, entry.bytes, named.map(|(_, shard)| (directory, shard))).await? {
                Some(file) if file.file.directory == directory => {
                    found.start = found.start.max(file.file.start + 1);
                    scanned.push((found.files.len(), file));
                }
                Some(_) => {
                    tracing::error!(
                        "{}: a journal of another data directory: not used, and left",
                        path.display()
                    );
                    continue;
                }
                // One that was made and not begun.
                None => {}
            }
            found.files.push(path);
        }
        // The order in which they were used: numbers go up within a start, and a unit's number with them.
        scanned.sort_by_key(|(_, file)| (file.file.start, file.file.shard, file.file.number));
        let mut units: BTreeMap<(u64, ShardId), Units> = BTreeMap::new();
        for (_, file) in &scanned {
            units.entry((file.file.start, file.file.shard)).or_default().add(file);
        }
        units.iter().for_each(|((start, shard), units)| units.report_missing(&dir, *start, *shard));
        for (place, file) in &scanned {
            let units = &units[&(file.file.start, file.file.shard)];
            for &frame in &file.frames {
                let list = found.frames.entry(frame.frame.partition).or_default();
                if frame.frame.kind == FrameKind::Void && frame.sound {
                    if mutant != Mutant::ReplayVoid {
                        list.clear();
                    }
                    continue;
                }
                list.push(Found { frame, file: *place, unsure: units.is_unsure(frame.sequence) });
            }
        }
        // Removed in the order of their use: what makes earlier frames void goes after them.
        let begun: BTreeSet<usize> = scanned.iter().map(|(place, _)| *place).collect();
        found.order = (0..found.files.len()).filter(|place| !begun.contains(place)).collect();
        found.order.extend(scanned.iter().map(|(place, _)| *place));
        if !found.frames.is_empty() {
            let (partitions, files) = (found.frames.len(), found.files.len());
            tracing::info!("journals of an unclean stop: {files} files, frames of {partitions} partitions");
        }
        Ok(found)
    }

    /// What is left of a partition, oldest first.
    pub(super) fn of(&self, partition: PartitionId) -> &[Found] {
        self.frames.get(&partition).map_or(&[], Vec::as_slice)
    }
}

/// Start and shard of a journal file by its name.
fn name_of(name: &str) -> Option<(u64, ShardId)> {
    let mut parts = name.split('-');
    let (start, shard) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((start, ShardId(shard)))
}

/// What a file holds; nothing if it was never begun. Where its first block cannot be read its units say which use of it they
/// are, and its name whose it is.
async fn scan(
    ring: &Ring,
    path: &Path,
    bytes: u64,
    named: Option<(TopicId, ShardId)>,
) -> Result<Option<ScannedFile>, OpenError> {
    let file = ring.open(path, OpenOptions::default()).await?;
    let head = read(ring, &file, path, 0, JOURNAL_BLOCK).await?;
    let mut head = JournalFile::decode(&head);
    if let (None, Some((directory, shard))) = (&head, named) {
        let mut at = JOURNAL_BLOCK as u64;
        while head.is_none() && at < bytes {
            let length = (bytes - at).min(UNIT_BYTES_MAX as u64) as usize;
            let blocks = read(ring, &file, path, at, length).await?;
            let uses = blocks.chunks(JOURNAL_BLOCK).filter_map(UnitStamp::of_unit);
            // The last use overwrites from the first block on, so it is the newest of those that begin the file.
            head = uses
                .map(|stamp| JournalFile { directory, shard, start: stamp.start, number: stamp.number })
                .next();
            at += length as u64;
        }
        if head.is_some() {
            tracing::error!(
                "{}: its first block cannot be read; the units behind it are used",
                path.display()
            );
        }
    }
    let Some(head) = head else { return Ok(None) };
    let mut scan = JournalScan::new(head, bytes);
    while let Some((at, length)) = scan.wants() {
        scan.feed(&read(ring, &file, path, at, length).await?);
    }
    Ok(Some(scan.finish()))
}

/// Reads so many bytes, or up to the end of the file.
async fn read(ring: &Ring, file: &File, path: &Path, at: u64, bytes: usize) -> io::Result<crate::sys::Lease> {
    let mut left = ring.lease(bytes).await?;
    drop(left.split_off(bytes));
    let mut filled = left.split_to(0);
    while !left.is_empty() {
        let from = at + filled.len() as u64;
        let (read, rest) = ring.read(file, from, left).await;
        left = rest;
        let explain = |e: io::Error| {
            io::Error::new(e.kind(), format!("reading {} at position {from}: {e}", path.display()))
        };
        match read.map_err(explain)? {
            0 => break,
            n => filled.unsplit(left.split_to(n)),
        }
    }
    Ok(filled.freeze())
}

/// This shard's partitions need the old journals no more. They are removed by the last shard of which that is so.
pub(super) async fn leave(ring: &Ring, node: &Node) -> io::Result<()> {
    let through = node.journals.through.fetch_add(1, Ordering::AcqRel) + 1;
    if through < node.shards() {
        return Ok(());
    }
    for &place in &node.journals.order {
        ring.remove(&node.journals.files[place]).await?;
    }
    Ok(())
}

/// Whether the journals hold anything of a partition.
pub(super) fn is_in_journals(node: &Node, start: &Start<'_>) -> bool {
    !node.journals.of(start.id()).is_empty()
}

/// Whether the journals hold what a partition that slept got since: what lies below its end, or was cut away before, its
/// segments do not want.
pub(super) fn go_beyond(node: &Node, partition: PartitionId, state: &PartitionState) -> bool {
    let end = state.segments.last().map_or(state.log_start, |segment| segment.next_offset);
    let epoch = state.epochs.last().map_or(Epoch::NONE, |last| last.0);
    node.journals
        .of(partition)
        .iter()
        .map(|found| &found.frame.frame)
        .any(|frame| frame.next_offset > end && frame.epoch >= epoch)
}

/// What a replay came to.
pub(super) struct Replayed {
    /// Up to where everything must be there: where frames are missing between others, the segments have a hole that is to
    /// be fenced.
    pub recovery_point: Offset,
    /// Segments that were written to, and up to where: their files are other than they were.
    pub wrote: BTreeMap<Offset, Position>,
}

/// The journals' files, as far as they are open: many partitions read from each.
#[derive(Default)]
pub(super) struct Sources(RefCell<BTreeMap<usize, File>>);

impl Sources {
    async fn open(&self, ring: &Ring, node: &Node, file: usize) -> io::Result<File> {
        if let Some(file) = self.0.borrow().get(&file) {
            return Ok(file.clone());
        }
        let opened = ring.open(&node.journals.files[file], OpenOptions::default()).await?;
        Ok(self.0.borrow_mut().entry(file).or_insert(opened).clone())
    }
}

/// Writes to a partition's segments, of these bases and sizes, what the journals hold of it beyond their end.
pub(super) async fn replay(
    ring: &Ring,
    node: &Node,
    sources: &Sources,
    start: &Start<'_>,
    epochs: &EpochCache,
    bases: &[(Offset, u64)],
) -> Result<Replayed, OpenError> {
    let found = node.journals.of(start.id());
    let mut replayed = Replayed { recovery_point: start.recovery_point, wrote: BTreeMap::new() };
    if found.is_empty() {
        return Ok(replayed);
    }
    // Segments may go on behind what a frame brings, and frames behind that: as long as there is something new, which each
    // frame is once.
    let mut last = None;
    for _ in 0..=found.len() {
        let again_found;
        let bases = match last {
            None => bases,
            Some(_) => {
                again_found = segment_bases(ring, &start.dir).await?;
                &again_found
            }
        };
        let reach = match end_of_segments(ring, start, epochs, bases).await? {
            Some(reach) => reach,
            None => beginning(start, epochs, found),
        };
        if last == Some(reach) {
            break;
        }
        let again = last.replace(reach).is_none() && node.journals.mutant == Mutant::ReplayTwice;
        let (files, ends) = (BTreeMap::new(), BTreeMap::new());
        let has_dir = !bases.is_empty();
        let mut replay = Replay { ring, node, sources, start, epochs, reach, has_dir, again, files, ends };
        for one in found {
            replay.apply(one, &mut replayed.recovery_point).await?;
        }
        // What is written here is flushed with all that was found, before the journals go.
        if replay.files.is_empty() {
            break;
        }
        replayed.wrote.extend(replay.ends);
        if start.slept() {
            break; // Nothing can be behind it.
        }
    }
    Ok(replayed)
}

struct Replay<'a> {
    ring: &'a Ring,
    node: &'a Node,
    sources: &'a Sources,
    start: &'a Start<'a>,
    epochs: &'a EpochCache,
    /// Up to where the segments hold everything.
    reach: LogPoint,
    /// There is a segment, and so a directory.
    has_dir: bool,
    /// The mistake is made in this pass.
    again: bool,
    /// Segments that were written to, and up to where.
    files: BTreeMap<Offset, File>,
    ends: BTreeMap<Offset, Position>,
}

impl Replay<'_> {
    async fn apply(&mut self, found: &Found, recovery_point: &mut Offset) -> Result<(), OpenError> {
        let FoundFrame { frame, sound, at, .. } = found.frame;
        let (dir, path) = (self.start.dir.display(), &self.node.journals.files[found.file]);
        let mutant = self.node.journals.mutant;
        if self.again && sound && frame.next_offset <= self.reach.offset {
            return self.append_again(found).await;
        }
        // Cutting a log begins an epoch there: no frame reaches beyond that.
        let last = Offset(frame.next_offset.0 - 1);
        let is_cut = self.epochs.epoch_at(last) > frame.epoch && mutant != Mutant::ReplayVoid;
        if frame.next_offset <= self.reach.offset || is_cut {
            return Ok(()); // The segments have it, or it was cut from the log since.
        }
        let (from, to) = (self.reach.offset.max(frame.from.offset), frame.next_offset);
        if !sound {
            if !found.unsure {
                tracing::error!("{dir}: offsets {from} to {to} cannot be read in {} at {at}", path.display());
            }
            return Ok(());
        }
        if frame.from.offset > self.reach.offset {
            if frame.after > self.reach.offset || found.unsure {
                return Ok(()); // What lies between was never promised, so nor was this.
            }
            let (lost, next) = (self.reach.offset, frame.from.offset);
            tracing::error!(
                "{dir}: offsets {lost} to {next} are in no segment, and in no part of the journal that can be read"
            );
            *recovery_point = (*recovery_point).max(frame.next_offset);
        } else if frame.from.offset == self.reach.offset && !continues(self.reach, frame.from) {
            let reach = self.reach;
            tracing::error!(
                "{dir}: the journal has offset {from} at {:?}, the log ends at {reach:?}",
                frame.from
            );
            return Ok(());
        }
        let journal = self.sources.open(self.ring, self.node, found.file).await?;
        let bytes = read(self.ring, &journal, path, at, frame.bytes as usize).await?;
        if bytes.len() < frame.bytes as usize {
            return Err(io::Error::other(format!("{} became shorter", path.display())).into());
        }
        self.write(frame.from, bytes).await?;
        self.reach = frame.end();
        Ok(())
    }

    /// The mistake of [`Mutant::ReplayTwice`]: the first batch of a frame is appended behind what is there.
    async fn append_again(&mut self, found: &Found) -> Result<(), OpenError> {
        let path = &self.node.journals.files[found.file];
        let journal = self.sources.open(self.ring, self.node, found.file).await?;
        let bytes = read(self.ring, &journal, path, found.frame.at, found.frame.frame.bytes as usize).await?;
        let Ok(header) = BatchHeader::parse(&bytes) else { return Ok(()) };
        let mut again = self.ring.lease(header.bytes as usize).await?;
        drop(again.split_off(header.bytes as usize));
        again.copy_from_slice(&bytes[..header.bytes as usize]);
        stamp(&mut again, self.reach.offset, header.leader_epoch);
        self.write(self.reach, again.freeze()).await?;
        self.reach.offset = self.reach.offset.plus(i64::from(header.last_offset_delta) + 1);
        self.reach.position = self.reach.position.plus(u64::from(header.bytes));
        Ok(())
    }

    async fn write(&mut self, at: LogPoint, bytes: crate::sys::Lease) -> io::Result<()> {
        let path = self.start.dir.join(segment_file_name(at.segment, Ext::Log));
        if !self.files.contains_key(&at.segment) {
            if self.files.is_empty() && !self.has_dir {
                // One that nothing was destaged to has none. Its name is flushed with all that is found.
                self.ring.make_dir_unsynced(&self.start.dir).await?;
            }
            // One that has indexes would be believed to end where it ended.
            if self.start.may_have_indexes(at.segment) {
                for ext in [Ext::Index, Ext::TimeIndex] {
                    self.ring.remove(&self.start.dir.join(segment_file_name(at.segment, ext))).await?;
                }
            }
            let options = OpenOptions { create: true, write: true, direct: false };
            self.files.insert(at.segment, self.ring.open(&path, options).await?);
        }
        let end = at.position.plus(bytes.len() as u64);
        let known = self.ends.entry(at.segment).or_insert(end);
        *known = end.max(*known);
        let (file, mut position, mut bytes) = (&self.files[&at.segment], at.position.0, bytes);
        while !bytes.is_empty() {
            let length = bytes.len();
            let (written, lease) = self.ring.write(file, position, bytes).await;
            match written? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::WriteZero,
                        format!("{}: nothing was written at position {position}", path.display()),
                    ));
                }
                n => {
                    position += n as u64;
                    bytes = lease.slice(n..length);
                }
            }
        }
        Ok(())
    }
}

/// Whether `next` is where a log that ends at `end` goes on.
fn continues(end: LogPoint, next: LogPoint) -> bool {
    next == end || (next.segment == next.offset && next.position == Position(0))
}

/// Where a log begins of which there is no segment: where the segment begins that the first frame which is still wanted is
/// for. Nothing of it was ever flushed, so the journal has all of it.
fn beginning(start: &Start<'_>, epochs: &EpochCache, found: &[Found]) -> LogPoint {
    let wanted = |found: &&Found| {
        let frame = &found.frame.frame;
        let last = Offset(frame.next_offset.0 - 1);
        frame.next_offset > start.log_start && epochs.epoch_at(last) <= frame.epoch
    };
    let base = found.iter().find(wanted).map_or(start.log_start, |found| found.frame.frame.from.segment);
    LogPoint { offset: base, segment: base, position: Position(0) }
}

/// Up to where the segments hold whole batches one behind the other; nothing where there is none.
async fn end_of_segments(
    ring: &Ring,
    start: &Start<'_>,
    epochs: &EpochCache,
    bases: &[(Offset, u64)],
) -> Result<Option<LogPoint>, OpenError> {
    if start.slept()
        && let Some(last) = start.known.as_ref().and_then(|known| known.segments.last())
    {
        return Ok(Some(LogPoint { offset: last.next_offset, segment: last.base, position: last.end }));
    }
    let mut end = None;
    for (position, &(base, bytes)) in bases.iter().enumerate() {
        let next_base = bases.get(position + 1).map(|next| next.0);
        if next_base.is_some_and(|next| next <= start.recovery_point) || start.is_known_sealed(base) {
            continue;
        }
        let outcome = walk(ring, start, base, next_base, bytes, epochs, epochs).await?;
        let here = LogPoint { offset: outcome.next_offset, segment: base, position: outcome.segment.end };
        end = Some(here);
        let torn = matches!(outcome.tail, Tail::Torn { .. });
        if torn || next_base.is_some_and(|next| here.offset < next) {
            break;
        }
    }
    Ok(end)
}
