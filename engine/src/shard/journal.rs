//! The shard's journal: where small durable appends of all its partitions go, in one write and one flush a round.
//!
//! One round at a time: what partitions have for it is put together in one unit, written and flushed, and everybody who
//! waited for it is told; what arrives meanwhile is the next round. A partition that has more for a round than
//! [`JournalConfig::round_bytes_max`] does not take part: its batches go to its segment directly, which costs less than
//! writing them twice. The files are made as they are needed, filled with zeros, so that writes meet extents already
//! written, and used again and again: one that is full asks its partitions to be destaged, and is free when their segments
//! hold, flushed, all that it does. When none is free, what comes goes to the segments directly, and that is counted.
//! A journal is read at a start, never otherwise: what it holds is in the memory that it will be destaged from.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::acks::Ack;
use super::config::Mutant;
use super::partition::{Inner as PartitionInner, Partition};
use super::reach::Journaled;
use super::shard::{Common, Shard};
use super::stages::Stage;
use crate::log::{
    Frame, FrameKind, JOURNAL_BLOCK, JournalFile, LogPoint, UNIT_BYTES_MAX, UnitBuilder, UnitStamp,
};
use crate::sys::{File, Lease, LeaseMut, Moment, OpenOptions};
use crate::transfer::join;
use crate::types::Offset;

/// Where the journals of all shards lie, in the data directory; gone after a clean stop.
pub(super) const JOURNAL_DIR: &str = "journal";
/// Files beyond the usual ones that a shard keeps for partitions whose segments cannot be written any more.
const PINNED_FILES_MAX: usize = 8;

/// Below this a file would hold too few rounds.
const FILE_BYTES_MIN: u64 = 64 << 10;
/// Partitions that are moved from a full file to their segments at a time.
const DESTAGES_MAX: usize = 16;
/// How long it takes until a file is made again after that went wrong.
const RETRY: Duration = Duration::from_secs(1);

/// How large a journal is, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files of a shard: with all of them full, appends go to their segments directly.
    pub files_max: usize,
    /// What one partition may give to one round; with more it goes to its segment directly.
    pub round_bytes_max: u64,
    /// Bytes of one partition that wait to be moved to their segment before that begins by itself.
    pub destage_bytes: u64,
}

impl Default for JournalConfig {
    fn default() -> JournalConfig {
        JournalConfig {
            file_bytes: 16 << 20,
            files_max: 8,
            round_bytes_max: 128 << 10,
            destage_bytes: 1 << 20,
        }
    }
}

impl JournalConfig {
    /// What is wrong with it, if anything is.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.file_bytes < FILE_BYTES_MIN || !self.file_bytes.is_multiple_of(JOURNAL_BLOCK as u64) {
            return Err(format!(
                "a journal file of {} bytes: at least {FILE_BYTES_MIN} are possible, in blocks of {JOURNAL_BLOCK}",
                self.file_bytes
            ));
        }
        if self.files_max < 2 {
            return Err(format!("{} journal files: at least 2 are needed", self.files_max));
        }
        let most = self.unit_bytes() as u64 / 2;
        if self.round_bytes_max > most {
            return Err(format!(
                "{} bytes of a partition in a round of the journal: at most {most} are possible",
                self.round_bytes_max
            ));
        }
        Ok(())
    }

    /// The most that is written in one round.
    fn unit_bytes(&self) -> usize {
        (self.file_bytes as usize / 4 / JOURNAL_BLOCK * JOURNAL_BLOCK).min(UNIT_BYTES_MAX)
    }
}

/// What a journal counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalCounters {
    /// Units written and flushed.
    pub rounds: u64,
    /// Frames in them: partitions that took part.
    pub frames: u64,
    /// Bytes of batches in them.
    pub bytes: u64,
    /// Bytes written for them.
    pub written_bytes: u64,
    /// How often a partition went to its segment directly because it had much.
    pub direct_rounds: u64,
    /// The same because no file was free, or none could be made.
    pub full_rounds: u64,
    /// How often a file was used again.
    pub recycled_files: u64,
}

/// One shard's.
pub(super) struct Journal {
    enabled: bool,
    /// Why it takes nothing any more, if so.
    broken: Cell<bool>,
    /// Who has something for the next round.
    pending: RefCell<VecDeque<Partition>>,
    /// Whose earlier frames are to count no more.
    voids: RefCell<VecDeque<Partition>>,
    task: RefCell<Option<Waker>>,
    destager: RefCell<Option<Waker>>,
    maker: RefCell<Option<Waker>>,
    files: RefCell<Files>,
    /// When a file may be made again after that went wrong.
    retry_at: Cell<Moment>,
    counters: Cell<JournalCounters>,
    stopping: Cell<bool>,
    running: Cell<bool>,
}

#[derive(Default)]
struct Files {
    current: Option<Used>,
    /// Full, oldest first, until what they hold is in segments.
    full: VecDeque<Used>,
    /// Full, with something of a partition in them that takes nothing any more: kept for the next start.
    pinned: Vec<Used>,
    /// Ready to be begun.
    spare: VecDeque<(File, PathBuf)>,
    /// Numbers given to uses of files.
    number: u64,
    /// Units begun.
    sequence: u64,
    /// Files made.
    made: u64,
}

/// A file in use.
struct Used {
    file: File,
    path: PathBuf,
    number: u64,
    /// Where the next unit goes.
    at: u64,
    /// The last that each partition has in it.
    entries: Vec<Entry>,
    /// Of these, how many from the first on need not be looked at again.
    settled: usize,
}

struct Entry {
    partition: Weak<PartitionInner>,
    end: Offset,
    generation: u64,
}

impl Entry {
    /// Whether its partition's segments hold, flushed, what the file does.
    fn is_settled(&self) -> bool {
        let Some(inner) = self.partition.upgrade() else { return true };
        let partition = Partition(inner);
        partition.is_closed()
            || partition.generation() != self.generation
            || partition.0.reach.borrow().stored_durable().offset >= self.end
    }

    fn is_lost(&self) -> bool {
        self.partition.upgrade().is_some_and(|inner| Partition(inner).failure().is_some())
    }
}

/// Where a partition's last frame is: which use of a file, and which of its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LastFrame {
    number: u64,
    entry: usize,
}

/// One partition's part in a round.
struct Part {
    partition: Partition,
    generation: u64,
    /// What of it is in the journal when the round is over; nothing new where it only makes earlier frames void.
    journaled: Option<Journaled>,
}

impl Part {
    fn is_current(&self) -> bool {
        self.partition.generation() == self.generation
    }

    fn note_written(&self) {
        if let (Some(journaled), true) = (self.journaled, self.is_current()) {
            self.partition.0.reach.borrow_mut().note_journal_written(journaled);
            self.partition.follow_reach();
        }
    }

    fn note_durable(self) {
        match self.journaled {
            Some(journaled) if self.is_current() => {
                self.partition.0.reach.borrow_mut().note_journal_durable(journaled);
                self.partition.follow_reach();
            }
            Some(_) => {}
            None => {
                self.partition.0.void_wanted.set(false);
                self.partition.wake_everybody();
            }
        }
    }
}

impl Journal {
    pub(super) fn new(common_enabled: bool) -> Journal {
        Journal {
            enabled: common_enabled,
            broken: Cell::new(false),
            pending: RefCell::new(VecDeque::with_capacity(64)),
            voids: RefCell::default(),
            task: RefCell::new(None),
            destager: RefCell::new(None),
            maker: RefCell::new(None),
            files: RefCell::default(),
            retry_at: Cell::default(),
            counters: Cell::default(),
            stopping: Cell::new(false),
            running: Cell::new(false),
        }
    }

    pub(super) fn counters(&self) -> JournalCounters {
        self.counters.get()
    }

    fn count(&self, change: impl FnOnce(&mut JournalCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Whether a batch of so many bytes with that promise goes through it.
    pub(super) fn takes(&self, bytes: u64, ack: Ack, config: &JournalConfig) -> bool {
        self.enabled
            && ack == Ack::Durable
            && bytes <= config.round_bytes_max
            && !self.broken.get()
            && !self.stopping.get()
    }

    /// The partition has something for the next round.
    pub(super) fn enlist(&self, partition: &Partition) {
        if !partition.0.enlisted.replace(true) {
            self.pending.borrow_mut().push_back(partition.clone());
            self.wake();
        }
    }

    fn wake(&self) {
        for task in [&self.task, &self.destager, &self.maker] {
            if let Some(waker) = &*task.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// Whether a start would find frames of the partition.
    fn holds(&self, partition: &Partition) -> bool {
        let last = partition.0.last_frame.get().number;
        let files = self.files.borrow();
        last > 0
            && files.full.iter().chain(&files.pinned).chain(&files.current).any(|used| used.number <= last)
    }

    fn has_work(&self) -> bool {
        !self.pending.borrow().is_empty() || !self.voids.borrow().is_empty()
    }
}

impl Partition {
    /// Makes what the journal holds of this partition void, durably: all of it is in segments, which are about to be cut.
    pub(super) async fn void_journaled(&self) -> io::Result<()> {
        let journal = &self.0.common.journal;
        if !journal.holds(self) {
            return Ok(());
        }
        self.0.void_wanted.set(true);
        journal.voids.borrow_mut().push_back(self.clone());
        journal.wake();
        poll_fn(|cx| {
            if !self.0.void_wanted.get() || journal.broken.get() || self.failure().is_some() {
                return Poll::Ready(());
            }
            self.wait_for_ack(cx.waker());
            Poll::Pending
        })
        .await;
        match self.0.void_wanted.get() {
            false => Ok(()),
            true => Err(io::Error::other(format!("{self}: the journal cannot be told that the log is cut"))),
        }
    }

    /// What the journal is to be given next: within one segment, or nothing.
    fn next_frame(&self) -> Option<(LogPoint, LogPoint)> {
        let log = self.0.log.borrow();
        let mut from = self.0.reach.borrow().unframed();
        loop {
            let segment = log.segment(from.segment);
            let next = log.segments().iter().find(|s| s.base > from.segment);
            match (segment, next) {
                // Behind the end of a sealed segment, or of one that retention took, the next one begins.
                (Some(segment), Some(next)) if from.position < segment.end => {
                    let end = LogPoint { offset: next.base, segment: segment.base, position: segment.end };
                    return Some((from, end));
                }
                (_, Some(next)) => {
                    from = LogPoint { offset: next.base, segment: next.base, position: Default::default() };
                }
                (Some(_), None) => {
                    let end = log.log_end();
                    return (from.position < end.position).then_some((from, end));
                }
                (None, None) => return None,
            }
        }
    }
}

/// Serves the journal until the shard has drained.
pub(super) async fn run(shard: Shard) {
    let common = shard.0.common.clone();
    let journal = &common.journal;
    journal.running.set(true);
    join(serve(&common), join(destage(&common), make_ahead(&common))).await;
    // What came last.
    send_all_direct(journal);
    for task in [&journal.task, &journal.destager, &journal.maker] {
        *task.borrow_mut() = None;
    }
    journal.running.set(false);
    common.stop_waiters.wake_all();
}

async fn serve(common: &Common) {
    let journal = &common.journal;
    let mut round = Round::default();
    loop {
        poll_fn(|cx| {
            if journal.stopping.get() || journal.has_work() {
                return Poll::Ready(());
            }
            *journal.task.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        if journal.stopping.get() {
            return;
        }
        if let Err(error) = round.make(common).await {
            let id = common.id;
            tracing::error!("journal of shard {id}: {error}; small appends go to their segments directly");
            journal.broken.set(true);
        }
        if journal.broken.get() {
            round.parts.drain(..).for_each(|part| part.partition.go_direct());
            send_all_direct(journal);
        }
    }
}

/// What waits for the journal does so no longer.
fn send_all_direct(journal: &Journal) {
    while let Some(partition) = { journal.pending.borrow_mut().pop_front() } {
        partition.0.enlisted.set(false);
        partition.go_direct();
    }
    journal.voids.borrow_mut().drain(..).for_each(|partition| partition.wake_everybody());
}

/// What is used again from round to round.
#[derive(Default)]
struct Round {
    buffer: Option<LeaseMut>,
    parts: Vec<Part>,
}

impl Round {
    async fn make(&mut self, common: &Common) -> Result<(), String> {
        let journal = &common.journal;
        let Some((file, at)) = find_file(common).await? else {
            journal.count(|c| c.full_rounds += 1);
            let only_voids = journal.pending.borrow().is_empty();
            while let Some(partition) = { journal.pending.borrow_mut().pop_front() } {
                partition.0.enlisted.set(false);
                partition.go_direct();
            }
            if only_voids {
                // What they wait for is what frees a file.
                common.ring.sleep(Duration::from_millis(1)).await;
            }
            return Ok(());
        };
        let mut memory = match self.buffer.take() {
            Some(memory) => memory,
            None => lease(common, common.config.journal.unit_bytes()).await.map_err(|e| e.to_string())?,
        };
        let (unit, bytes) = self.gather(common, &mut memory);
        if unit.frames() == 0 {
            self.buffer = Some(memory);
            return Ok(());
        }
        let frames = u64::from(unit.frames());
        let whole = unit.seal(&mut memory);
        let submitted = common.ring.now();
        if common.config.mutant == Mutant::EarlyWatermark {
            self.parts.iter().for_each(Part::note_written);
        }
        let unit = memory.freeze();
        let written = write(common, &file, at, unit.slice(0..whole)).await;
        self.buffer = unit.try_into_mut().ok();
        assert!(self.buffer.is_some(), "a unit's memory is the journal's alone once it is written");
        written.map_err(|e| format!("writing {whole} bytes at position {at}: {e}"))?;
        let half = common.config.journal.file_bytes / 2;
        if let Some(used) = &mut journal.files.borrow_mut().current {
            used.at = at + whole as u64;
            if (at..used.at).contains(&half)
                && let Some(maker) = &*journal.maker.borrow()
            {
                maker.wake_by_ref();
            }
        }
        let written = common.ring.now();
        common.stages.note(Stage::Write, written.nanos_since(submitted));
        self.parts.iter().for_each(Part::note_written);
        if common.config.mutant != Mutant::SkipFlush
            && let Err(error) = common.ring.sync(&file).await
        {
            let why = format!("journal of shard {}: flush: {error}", common.id);
            common.fail_all(&why);
            return Err(why);
        }
        common.stages.note(Stage::Flush, common.ring.now().nanos_since(written));
        journal.count(|c| {
            c.rounds += 1;
            c.frames += frames;
            c.bytes += bytes;
            c.written_bytes += whole as u64;
        });
        self.parts.drain(..).for_each(Part::note_durable);
        Ok(())
    }

    /// Puts together what partitions have, until the unit is full. How many bytes of batches that is.
    fn gather(&mut self, common: &Common, memory: &mut LeaseMut) -> (UnitBuilder, u64) {
        let (journal, limits) = (&common.journal, &common.config.journal);
        let files = &mut *journal.files.borrow_mut();
        let used = files.current.as_mut().expect("a file was found");
        files.sequence += 1;
        let stamp =
            UnitStamp { start: common.node.journals.start, number: used.number, sequence: files.sequence };
        let (mut unit, mut bytes) = (UnitBuilder::new(stamp), 0);
        let capacity = memory.len();
        while unit.fits(0, capacity)
            && let Some(partition) = { journal.voids.borrow_mut().pop_front() }
        {
            let at = partition.marks().log_end;
            unit.begin(partition.frame(FrameKind::Void, at, at, at.offset));
            unit.end(memory);
            let generation = partition.generation();
            self.parts.push(Part { partition, generation, journaled: None });
        }
        while let Some(partition) = { journal.pending.borrow_mut().pop_front() } {
            partition.0.enlisted.set(false);
            if partition.check_open().is_err() && partition.failure().is_some() {
                continue;
            }
            let mut journaled = None;
            while let Some((from, end)) = partition.next_frame() {
                let length = end.position.since(from.position);
                if length > limits.round_bytes_max {
                    partition.go_direct();
                    journal.count(|c| c.direct_rounds += 1);
                    break;
                }
                if !unit.fits(length, capacity) {
                    partition.0.enlisted.set(true);
                    journal.pending.borrow_mut().push_front(partition.clone());
                    break;
                }
                let after = partition.0.reach.borrow().direct().offset;
                unit.begin(partition.frame(FrameKind::Batches, from, end, after));
                let staged = partition.0.staged.borrow();
                let began = staged.memory(from.segment, from.position, end.position, &mut |lease| {
                    unit.push(memory, &lease);
                });
                assert_eq!(began, from.position, "{partition}: what no segment holds is in memory");
                unit.end(memory);
                bytes += length;
                journaled = Some(partition.0.reach.borrow_mut().frame(end));
            }
            if let Some(journaled) = journaled {
                used.note(&partition, journaled.end.offset);
                let generation = partition.generation();
                self.parts.push(Part {
                    partition: partition.clone(),
                    generation,
                    journaled: Some(journaled),
                });
            }
            if partition.0.enlisted.get() {
                break; // The rest is for the next round.
            }
        }
        (unit, bytes)
    }
}

impl Partition {
    fn frame(&self, kind: FrameKind, from: LogPoint, end: LogPoint, after: Offset) -> Frame {
        let bytes = end.position.since(from.position) as u32;
        Frame { kind, partition: self.0.id, epoch: self.epoch(), from, next_offset: end.offset, after, bytes }
    }

    /// All that was appended goes to its segment, and is acknowledged from there.
    pub(super) fn go_direct(&self) {
        let end = self.marks().log_end;
        self.0.reach.borrow_mut().go_direct(end);
        self.wake_task();
    }
}

impl Used {
    fn note(&mut self, partition: &Partition, end: Offset) {
        let generation = partition.generation();
        let entry = Entry { partition: Rc::downgrade(&partition.0), end, generation };
        let last = partition.0.last_frame.get();
        if last.number == self.number {
            self.entries[last.entry] = entry;
            return;
        }
        partition.0.last_frame.set(LastFrame { number: self.number, entry: self.entries.len() });
        self.entries.push(entry);
    }

    /// Whether nothing is lost when it is written over.
    fn is_free(&mut self) -> bool {
        let settled = self.entries[self.settled..].iter().take_while(|entry| entry.is_settled()).count();
        self.settled += settled;
        self.settled == self.entries.len()
    }
}

/// A file with room for a unit, and where: the one in use, or the next. `None` when there is none.
async fn find_file(common: &Common) -> Result<Option<(File, u64)>, String> {
    let (journal, limits) = (&common.journal, &common.config.journal);
    let next = {
        let files = &mut *journal.files.borrow_mut();
        if let Some(used) = &files.current {
            if used.at + limits.unit_bytes() as u64 <= limits.file_bytes {
                return Ok(Some((used.file.clone(), used.at)));
            }
            files.full.extend(files.current.take());
            journal.wake();
        }
        let reuse = common.config.mutant == Mutant::EarlyReuse;
        match files.full.front_mut().is_some_and(|oldest| reuse || oldest.is_free()) {
            true => {
                journal.count(|c| c.recycled_files += 1);
                files.full.pop_front().map(|used| (used.file, used.path))
            }
            false => files.spare.pop_front(),
        }
    };
    let next = match next {
        Some(next) => next,
        None => match make_file(common).await {
            Some(made) => made,
            None => return Ok(None),
        },
    };
    begin(common, next).await.map(Some)
}

/// Begins to use a file: everything that it holds from before no longer counts.
async fn begin(common: &Common, (file, path): (File, PathBuf)) -> Result<(File, u64), String> {
    let journal = &common.journal;
    let number = journal.files.borrow().number + 1;
    let head = JournalFile {
        directory: common.node.identity.directory_id,
        start: common.node.journals.start,
        shard: common.id,
        number,
    };
    let mut block = lease(common, JOURNAL_BLOCK).await.map_err(|e| e.to_string())?;
    block.copy_from_slice(&head.encode());
    write(common, &file, 0, block.freeze()).await.map_err(|e| format!("{}: {e}", path.display()))?;
    let at = JOURNAL_BLOCK as u64;
    let files = &mut *journal.files.borrow_mut();
    files.number = number;
    let entries = Vec::with_capacity(64);
    files.current = Some(Used { file: file.clone(), path, number, at, entries, settled: 0 });
    Ok((file, at))
}

/// Another file, as long as there may be more. `None` when that did not work: it is tried again later.
async fn make_file(common: &Common) -> Option<(File, PathBuf)> {
    let (journal, limits) = (&common.journal, &common.config.journal);
    let now = common.ring.now();
    let path = {
        let files = &mut *journal.files.borrow_mut();
        let allowed = limits.files_max + files.pinned.len().min(PINNED_FILES_MAX);
        if now < journal.retry_at.get() || files.made as usize >= allowed {
            return None;
        }
        files.made += 1;
        let name = format!("{}-{}-{}", common.node.journals.start, common.id, files.made);
        common.config.data_dir.join(JOURNAL_DIR).join(name)
    };
    let made = fill(common, &path).await;
    match made {
        Ok(file) => Some((file, path)),
        Err(error) => {
            tracing::warn!("{}: {error}; small appends go to their segments directly", path.display());
            journal.retry_at.set(common.ring.now().plus(RETRY));
            // Half made it is of no use.
            let _ = common.ring.remove(&path).await;
            journal.files.borrow_mut().made -= 1;
            None
        }
    }
}

async fn fill(common: &Common, path: &Path) -> io::Result<File> {
    let (ring, bytes) = (&common.ring, common.config.journal.file_bytes);
    ring.make_dir(&common.config.data_dir.join(JOURNAL_DIR)).await?;
    let direct = common.node.direct_offered;
    let file = ring.open(path, OpenOptions { create: true, write: true, direct }).await?;
    ring.prepare(&file, 0, bytes).await?;
    let unit_bytes = common.config.journal.unit_bytes();
    let mut zeros = lease(common, unit_bytes).await?;
    zeros.fill(0);
    let zeros = zeros.freeze();
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(unit_bytes as u64) as usize;
        write(common, &file, at, zeros.slice(0..length)).await?;
        at += length as u64;
    }
    ring.sync(&file).await?;
    ring.sync_dir(&common.config.data_dir.join(JOURNAL_DIR)).await?;
    Ok(file)
}

/// Exactly so many bytes of memory.
async fn lease(common: &Common, bytes: usize) -> io::Result<LeaseMut> {
    let mut lease = common.ring.lease(bytes).await?;
    drop(lease.split_off(bytes));
    Ok(lease)
}

async fn write(common: &Common, file: &File, at: u64, lease: Lease) -> io::Result<()> {
    let mut written = 0;
    while written < lease.len() {
        let from = written / JOURNAL_BLOCK * JOURNAL_BLOCK;
        let (result, _) = common.ring.write(file, at + from as u64, lease.slice(from..lease.len())).await;
        match result? {
            0 => return Err(io::Error::new(io::ErrorKind::WriteZero, "nothing was written")),
            n => written = from + n,
        }
    }
    Ok(())
}

/// Makes the next file before the one in use is full, unless one will be free.
async fn make_ahead(common: &Common) {
    let journal = &common.journal;
    loop {
        poll_fn(|cx| {
            *journal.maker.borrow_mut() = Some(cx.waker().clone());
            let files = &mut *journal.files.borrow_mut();
            let half = common.config.journal.file_bytes / 2;
            let wanted = files.current.as_ref().is_some_and(|used| used.at > half)
                && files.spare.is_empty()
                && files.full.front_mut().is_none_or(|oldest| !oldest.is_free())
                && (files.made as usize) < common.config.journal.files_max;
            if journal.stopping.get() || wanted { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if journal.stopping.get() {
            return;
        }
        match make_file(common).await {
            Some(made) => journal.files.borrow_mut().spare.push_back(made),
            None => common.ring.sleep(RETRY).await,
        }
    }
}

/// Moves what full files hold to its segments, some partitions at a time, oldest file first.
async fn destage(common: &Common) {
    let journal = &common.journal;
    poll_fn(|cx| {
        if journal.stopping.get() {
            return Poll::Ready(());
        }
        *journal.destager.borrow_mut() = Some(cx.waker().clone());
        let files = &mut *journal.files.borrow_mut();
        let mut under_way = 0;
        let mut index = 0;
        while index < files.full.len() && under_way < DESTAGES_MAX {
            let used = &mut files.full[index];
            let (mut live, mut lost) = (false, false);
            if !used.is_free() {
                for entry in &used.entries[used.settled..] {
                    if under_way == DESTAGES_MAX {
                        live = true;
                        break;
                    }
                    if entry.is_settled() {
                        continue;
                    }
                    if entry.is_lost() {
                        lost = true;
                        continue;
                    }
                    live = true;
                    let Some(inner) = entry.partition.upgrade() else { continue };
                    let partition = Partition(inner);
                    under_way += 1;
                    partition.wait_for_ack(cx.waker());
                    partition.0.reach.borrow_mut().want_stored(entry.end, true);
                    partition.wake_task();
                }
            }
            if lost && !live {
                let used = files.full.remove(index).expect("it is there");
                files.pinned.push(used);
            } else {
                index += 1;
            }
        }
        Poll::Pending
    })
    .await;
}

impl Common {
    /// Ends the journal, when all that it held is in segments: its files are removed. Nothing is appended any more.
    pub(super) async fn end_journal(&self, drained: bool) -> io::Result<()> {
        let journal = &self.journal;
        journal.stopping.set(true);
        journal.wake();
        poll_fn(|cx| {
            if !journal.running.get() {
                return Poll::Ready(());
            }
            self.stop_waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
        let files = std::mem::take(&mut *journal.files.borrow_mut());
        if !drained {
            return Ok(());
        }
        let used = files.full.into_iter().chain(files.pinned).chain(files.current).map(|used| used.path);
        for path in used.chain(files.spare.into_iter().map(|(_, path)| path)) {
            self.ring.remove(&path).await?;
        }
        Ok(())
    }
}
