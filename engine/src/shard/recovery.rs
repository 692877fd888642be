//! Opening one partition: which segments are believed, which are walked, what is cut and kept aside.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::errors::OpenError;
use super::files::Files;
use super::partition::{EPOCHS_FILE, Partition};
use super::replay::{self, Sources};
use super::reserve_file::is_full;
use super::shard::Common;
use super::sleep::Sleep;
use super::topics::{METADATA_FILE, TopicPlan};
use crate::log::{
    EpochCache, EpochOwner, Ext, Log, OffsetIndex, PartitionMetadata, PartitionState, RecoveryStart,
    RecoveryWalk, Segment, SegmentState, Tail, TimeIndex, WalkOutcome, parse_segment_file_name,
    segment_file_name,
};
use crate::sys::{OpenOptions, Ring, is_passing};
use crate::types::{Offset, PartitionId, Position};

/// Bytes behind a torn tail that are kept aside.
const CUT_BYTES_MAX: u64 = 64 << 20;
const INDEX_BYTES_MAX: u64 = 1 << 30;

/// What is known of a partition before it is opened.
pub(super) struct Start<'a> {
    pub plan: &'a TopicPlan,
    pub index: i32,
    pub dir: PathBuf,
    pub recovery_point: Offset,
    pub log_start: Offset,
    pub clean: bool,
    /// What the manifest knows of it.
    pub known: Option<PartitionState>,
}

impl Start<'_> {
    pub(super) fn id(&self) -> PartitionId {
        PartitionId { topic: self.plan.id, index: self.index }
    }

    /// Whether its segments are just as the manifest has them.
    pub(super) fn slept(&self) -> bool {
        self.known.as_ref().is_some_and(|known| !known.awake)
    }

    /// What of a segment the manifest knows; up to there it needs not be read.
    fn known(&self, base: Offset) -> Option<&SegmentState> {
        self.known.as_ref()?.segments.iter().find(|segment| segment.base == base)
    }

    /// Whether index files may lie beside a segment: what slept is known to the last file.
    pub(super) fn may_have_indexes(&self, base: Offset) -> bool {
        self.known(base).map_or(!self.slept(), |known| known.indexed)
    }

    /// Whether the manifest saw another segment behind that one: then it is as it says.
    pub(super) fn is_known_sealed(&self, base: Offset) -> bool {
        let Some(known) = &self.known else { return false };
        known
            .segments
            .split_last()
            .is_some_and(|(_, sealed)| sealed.iter().any(|segment| segment.base == base))
    }
}

/// A partition whose segments nobody touched since the manifest had them, if it is one: nothing is read.
pub(super) fn open_asleep(common: &Rc<Common>, start: &Start<'_>) -> Option<Partition> {
    let state = start.known.as_ref().filter(|state| !state.awake)?;
    if replay::go_beyond(&common.node, start.id(), state) {
        return None;
    }
    let log_start =
        start.log_start.max(state.log_start).min(state.segments.last().expect("one at least").next_offset);
    let log = Log::recorded(start.plan.config.log.clone(), state, log_start);
    let mut files = Files::new(start.dir.clone());
    let (active, sealed) = state.segments.split_last().expect("a known partition has a segment");
    sealed.iter().for_each(|segment| files.push(segment.base, segment.indexed));
    files.push(active.base, false);
    if let Some(file) = files.get_mut(active.base) {
        (file.indexed, file.named) = (active.indexed, active.end > Position(0));
    }
    files.note_recorded();
    let partition = Partition::new(common, start.plan, start.index, log, files);
    partition.0.sleep.set(Sleep::Asleep);
    partition.0.lean.set(true);
    Some(partition)
}

pub(super) async fn open_partition(
    common: &Rc<Common>,
    mut start: Start<'_>,
    sources: &Sources,
) -> Result<Opened, OpenError> {
    let ring = &common.ring;
    if start.known.is_none() {
        ring.make_dir(&start.dir).await?;
        let metadata = start.dir.join(METADATA_FILE);
        if !is_whole(ring, &metadata).await? {
            let text = PartitionMetadata { topic_id: start.plan.id }.format();
            // A copy of what the registry says.
            unless_full(common.replace_at_need(&metadata, text.into_bytes()).await)?;
        }
    }
    let found = believe_what_fits(ring, &mut start).await?;
    let mut epochs = read_epochs(common, &start).await?;
    let listed = epochs.clone();
    let replayed = replay::replay(ring, &common.node, sources, &start, &epochs, &found).await?;
    start.recovery_point = replayed.recovery_point;
    // What was there is known, and what came.
    let mut bases: BTreeMap<Offset, u64> = found.into_iter().collect();
    for (base, end) in replayed.wrote {
        let bytes = bases.entry(base).or_insert(0);
        *bytes = end.0.max(*bytes);
    }
    let bases: Vec<(Offset, u64)> = bases.into_iter().collect();
    let mut segments: Vec<Segment> = Vec::new();
    let (mut fenced, mut believed, mut uncut) = (Vec::new(), Vec::new(), None);
    let mut walked = Vec::new();
    for (position, &(base, bytes)) in bases.iter().enumerate() {
        let next_base = bases.get(position + 1).map(|next| next.0);
        if let Some(known) = start.known(base).filter(|_| start.is_known_sealed(base)) {
            segments.push(Segment::recorded(known, &start.plan.config.log));
            if known.indexed {
                believed.push(base);
            }
            continue;
        }
        if let Some(next_base) = next_base
            && (start.clean || next_base <= start.recovery_point)
            && let Some(segment) = trusted(common, &start, base, next_base, bytes).await?
        {
            segments.push(segment);
            believed.push(base);
            continue;
        }
        walked.push(base);
        let outcome = walk(ring, &start, base, next_base, bytes, &epochs, &listed).await?;
        for &(epoch, offset) in &outcome.epochs {
            if epochs.latest().is_none_or(|latest| epoch > latest) {
                epochs.assign(epoch, offset);
            }
        }
        fenced.extend(outcome.fenced.iter().copied());
        for range in &outcome.fenced {
            let (name, segment) = (start.dir.display(), range.segment);
            tracing::error!(
                "{name}: offsets {} to {} of segment {segment} (positions {} to {}) are corrupt: fenced, the rest is served",
                range.from,
                range.to,
                range.from_position,
                range.to_position
            );
        }
        let mut segment = outcome.segment;
        let torn = matches!(outcome.tail, Tail::Torn { .. });
        if let Tail::Torn { at, bytes, why } = outcome.tail {
            let tail = TornTail { dir: start.dir.clone(), base, at, bytes };
            tracing::warn!(
                "{}: the log ends at position {at} ({why}); {bytes} bytes behind it were never durable, kept as {}",
                start.dir.join(segment_file_name(base, Ext::Log)).display(),
                tail.aside().display()
            );
            if !unless_full(cut(common, &tail).await)? {
                uncut = Some(tail);
            }
            segment.set_prepared(segment.end.max(at));
        } else if next_base.is_none() {
            segment.set_prepared(Position(bytes.max(segment.end.0)));
        }
        let ends_here =
            next_base.is_some_and(|next| torn || segment.next_offset < next && next > start.recovery_point);
        segments.push(segment);
        if ends_here {
            for &(later, _) in &bases[position + 1..] {
                set_aside(common, &start, later).await?;
            }
            break;
        }
    }
    let mut files = Files::new(start.dir.clone());
    let end = segments.last().map_or(start.log_start, |s| s.next_offset);
    let log = if segments.is_empty() || start.log_start > end {
        for segment in segments {
            set_aside(common, &start, segment.base).await?;
        }
        uncut = None; // It went with its segment.
        Log::new(start.plan.config.log.clone(), EpochOwner::Local, start.log_start)
    } else {
        let config = start.plan.config.log.clone();
        Log::restore(config, EpochOwner::Local, segments, epochs, start.log_start, fenced)
    };
    let active = log.active().base;
    let journaled = replay::is_in_journals(&common.node, &start);
    walked.retain(|base| *base < active && log.segment(*base).is_some());
    for segment in log.segments() {
        files.push(segment.base, believed.contains(&segment.base));
    }
    // Indexes of the segment that appends go to would grow stale; they are written again when it is sealed.
    if start.may_have_indexes(active) {
        for ext in [Ext::Index, Ext::TimeIndex] {
            let path = files.path(active, ext);
            if ring.read_file(&path, INDEX_BYTES_MAX).await?.is_some() {
                ring.remove(&path).await?;
            }
        }
    }
    let unclean = !start.clean && log.log_end().offset > log.log_start();
    let partition = Partition::new(common, start.plan, start.index, log, files);
    partition.0.owed.torn.replace(uncut);
    if bases.is_empty() {
        // Its directory may not have survived: who wakes it makes one.
        partition.0.sleep.set(Sleep::Asleep);
    }
    if *partition.0.log.borrow().epochs() != listed {
        partition.0.epochs_unstored.set(true);
    }
    if unclean {
        // What was lost may have been seen: from here on the same offsets bear another epoch.
        partition.0.log.borrow_mut().bump_epoch();
        partition.0.epochs_unstored.set(true);
        partition.show();
    }
    let found = unclean || journaled;
    if found && partition.marks().log_end.position > Position(0) {
        walked.push(active);
    }
    let unsynced = if found { walked } else { Vec::new() };
    Ok(Opened { partition, unsynced, renamed: journaled && !bases.is_empty() })
}

/// A partition, and what of it must not be lost by the next crash: it was read from the page cache, perhaps, and what holds it
/// otherwise, a journal, is about to go.
pub(super) struct Opened {
    pub partition: Partition,
    unsynced: Vec<Offset>,
    renamed: bool,
}

impl Opened {
    pub(super) fn is_unsynced(&self) -> bool {
        !self.unsynced.is_empty() || self.renamed
    }

    /// Flushes what was found.
    pub(super) async fn sync(&self, ring: &Ring) -> io::Result<()> {
        let dir = self.partition.dir();
        for base in &self.unsynced {
            let path = dir.join(segment_file_name(*base, Ext::Log));
            ring.sync(&ring.open(&path, OpenOptions::default()).await?).await?;
        }
        if self.renamed {
            ring.sync_dir(&dir).await?;
            ring.sync_dir(dir.parent().unwrap_or(&dir)).await?;
        }
        Ok(())
    }
}

/// What the manifest knows is left aside where the files contradict it: then all of them are walked. Files that it knows to
/// be gone are removed.
async fn believe_what_fits(ring: &Ring, start: &mut Start<'_>) -> Result<Vec<(Offset, u64)>, OpenError> {
    let nothing = |known: &PartitionState| matches!(&known.segments[..], [only] if only.end == Position(0));
    if start.slept() && start.known.as_ref().is_some_and(nothing) {
        return Ok(Vec::new()); // It has no directory, perhaps.
    }
    let mut bases = match segment_bases(ring, &start.dir).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        bases => bases?,
    };
    let Some(known) = &start.known else { return Ok(bases) };
    let (first, end) = (known.segments[0].base, known.segments.last().expect("one at least").next_offset);
    let log_start = start.log_start.max(known.log_start);
    let missing = known.segments.iter().find(|segment| {
        let next = known.segments.iter().find(|next| next.base > segment.base);
        let wanted = segment.end > Position(0) && next.is_none_or(|next| next.base > log_start);
        wanted && !bases.iter().any(|(base, bytes)| *base == segment.base && *bytes >= segment.end.0)
    });
    if let Some(SegmentState { base, end, .. }) = missing {
        tracing::error!(
            "{}: it is not there, or ends before position {end}; all of the partition is walked",
            start.dir.join(segment_file_name(*base, Ext::Log)).display()
        );
        start.known = None;
        return Ok(bases);
    }
    for (base, _) in bases.iter().filter(|(base, _)| *base < first) {
        for ext in [Ext::Index, Ext::TimeIndex, Ext::Log] {
            ring.remove(&start.dir.join(segment_file_name(*base, ext))).await?;
        }
    }
    bases.retain(|(base, _)| *base >= first);
    start.log_start = log_start;
    start.recovery_point = start.recovery_point.max(end);
    Ok(bases)
}

/// The segments in a partition's directory: their bases, ascending, and the sizes of their files.
pub(super) async fn segment_bases(ring: &Ring, dir: &Path) -> io::Result<Vec<(Offset, u64)>> {
    let mut bases = Vec::new();
    for entry in ring.list(dir).await? {
        if let Some((base, Ext::Log)) = parse_segment_file_name(&entry.name.to_string_lossy()) {
            bases.push((base, entry.bytes));
        }
    }
    bases.sort_unstable();
    Ok(bases)
}

/// Whether it was done: without room on the disk it is left for later, and everything is served that is there.
pub(super) fn unless_full(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Err(error) if is_full(&error) => {
            tracing::error!("{error}; what is there is served, appends are refused until there is room");
            Ok(false)
        }
        done => done.map(|()| true),
    }
}

/// Whether the file that says whose a partition's directory is can be read: power loss may have left half of it.
pub(super) async fn is_whole(ring: &Ring, metadata: &Path) -> io::Result<bool> {
    let found = ring.read_file(metadata, 4096).await?.unwrap_or_default();
    Ok(PartitionMetadata::parse(&String::from_utf8_lossy(&found)).is_ok())
}

/// The manifest tells of epochs whenever it tells of the partition; its own file may be of before.
async fn read_epochs(common: &Rc<Common>, start: &Start<'_>) -> Result<EpochCache, OpenError> {
    if let Some(known) = &start.known {
        let mut epochs = EpochCache::new();
        known.epochs.iter().for_each(|(epoch, begin)| epochs.assign(*epoch, *begin));
        return Ok(epochs);
    }
    let path = start.dir.join(EPOCHS_FILE);
    let Some(bytes) = common.ring.read_file(&path, INDEX_BYTES_MAX).await? else {
        return Ok(EpochCache::new());
    };
    Ok(EpochCache::parse(&String::from_utf8_lossy(&bytes)).unwrap_or_else(|error| {
        tracing::warn!("{}: {error}; epochs are taken from the batches", path.display());
        EpochCache::new()
    }))
}

/// A sealed segment whose indexes can be believed: they are written after its file was cut to size.
async fn trusted(
    common: &Rc<Common>,
    start: &Start<'_>,
    base: Offset,
    next_base: Offset,
    bytes: u64,
) -> Result<Option<Segment>, OpenError> {
    let path = |ext| start.dir.join(segment_file_name(base, ext));
    let mut found = [None, None];
    for (slot, ext) in found.iter_mut().zip([Ext::Index, Ext::TimeIndex]) {
        match common.ring.read_file(&path(ext), INDEX_BYTES_MAX).await {
            Ok(bytes) => *slot = bytes,
            Err(error) if is_passing(&error) => return Err(error.into()),
            // Derived: what cannot be read is made again.
            Err(error) => tracing::warn!("{error}; made again from the log"),
        }
    }
    let [Some(index), Some(time_index)] = found else { return Ok(None) };
    let interval = start.plan.config.log.index_interval_bytes;
    let decoded = OffsetIndex::decode(base, interval, &index, bytes)
        .and_then(|index| Ok((index, TimeIndex::decode(base, &time_index, next_base)?)));
    match decoded {
        Ok((index, time_index)) => {
            Ok(Some(Segment::found(base, next_base, Position(bytes), index, time_index)))
        }
        Err(error) => {
            tracing::warn!("{}: {error}; made again from the log", path(Ext::Index).display());
            Ok(None)
        }
    }
}

/// Walks a segment from where it is known. `listed` are the epochs that were told of beforehand, and bound those that batches
/// may bear; `epochs` has those of earlier segments' batches, too.
pub(super) async fn walk(
    ring: &Ring,
    start: &Start<'_>,
    base: Offset,
    next_base: Option<Offset>,
    bytes: u64,
    epochs: &EpochCache,
    listed: &EpochCache,
) -> Result<WalkOutcome, OpenError> {
    let path = start.dir.join(segment_file_name(base, Ext::Log));
    let file = ring.open(&path, OpenOptions::default()).await?;
    let config = &start.plan.config.log;
    let segment = match start.known(base).filter(|known| known.end.0 <= bytes) {
        Some(known) => Segment::recorded(known, config),
        None => Segment::new(base, config),
    };
    let last = if segment.is_empty() { base } else { Offset(segment.next_offset.0 - 1) };
    let mut walk = RecoveryWalk::new(RecoveryStart {
        segment,
        next_base,
        recovery_point: start.recovery_point,
        last_epoch: epochs.epoch_at(last),
        epochs: listed.clone(),
        gaps: false,
        file_bytes: bytes,
    });
    // What is known ends where room begins that was prepared, more often than not.
    let mut look = start.known(base).is_some();
    while let Some((position, length)) = walk.wants() {
        if std::mem::take(&mut look) && walk.may_skip_zeros() {
            let data = ring.next_data(&file, position.0).await?;
            if data > position.0 {
                walk.skip_zeros(Position(data.min(bytes)));
                continue;
            }
        }
        look = walk.may_skip_zeros() && walk.is_behind_end();
        let mut into = ring.lease(length).await?;
        drop(into.split_off(length));
        let (read, into) = ring.read(&file, position.0, into).await;
        walk.feed(&into[..read.map_err(|e| unreadable(&path, position, &e))?]);
    }
    Ok(walk.finish())
}

fn unreadable(path: &Path, position: Position, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("reading {} at position {position}: {error}", path.display()))
}

/// What lies behind the end of a segment, and never was durable.
#[derive(Clone)]
pub(super) struct TornTail {
    dir: PathBuf,
    base: Offset,
    at: Position,
    bytes: u64,
}

impl TornTail {
    fn aside(&self) -> PathBuf {
        self.dir.join(format!("{}.torn-{}", segment_file_name(self.base, Ext::Log), self.at))
    }
}

/// Keeps what lies behind the torn end aside, and cuts it off.
pub(super) async fn cut(common: &Rc<Common>, tail: &TornTail) -> io::Result<()> {
    let &TornTail { ref dir, base, at, bytes } = tail;
    let (path, aside) = (dir.join(segment_file_name(base, Ext::Log)), tail.aside());
    let file = common.ring.open(&path, OpenOptions { write: true, ..OpenOptions::default() }).await?;
    let mut kept = Vec::new();
    while (kept.len() as u64) < bytes.min(CUT_BYTES_MAX) {
        let length = (bytes - kept.len() as u64).min(1 << 20) as usize;
        let mut into = common.ring.lease(length).await?;
        drop(into.split_off(length));
        let from = at.plus(kept.len() as u64);
        let (read, into) = common.ring.read(&file, from.0, into).await;
        match read.map_err(|e| unreadable(&path, from, &e))? {
            0 => break,
            n => kept.extend_from_slice(&into[..n]),
        }
    }
    // Zeros follow: room that was prepared, and may be all there is on a full disk.
    common.ring.trim(&file, at.0 + bytes).await?;
    // Not worth the reserve, which is for what makes room.
    common.ring.replace(&aside, kept).await?;
    common.ring.trim(&file, at.0).await
}

/// A segment that does not continue the log: kept under another name.
async fn set_aside(common: &Rc<Common>, start: &Start<'_>, base: Offset) -> Result<(), OpenError> {
    let path = start.dir.join(segment_file_name(base, Ext::Log));
    let stamp = common.ring.wall_clock();
    let aside = start.dir.join(format!("{}.{stamp}-aside", segment_file_name(base, Ext::Log)));
    tracing::warn!("{}: does not continue the log; kept as {}", path.display(), aside.display());
    common.ring.rename(&path, &aside).await?;
    for ext in [Ext::Index, Ext::TimeIndex] {
        common.ring.remove(&start.dir.join(segment_file_name(base, ext))).await?;
    }
    Ok(())
}
