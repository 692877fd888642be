//! The files of a shard's journal.
//!
//! They are made as they are needed, filled with zeros, so that writes meet extents already written, and used again and
//! again. One that is full is free when the segments of its partitions hold, flushed, all that it does. That is seen to, some
//! partitions at a time, when half of the files that there may be are full; each is brought up to where it is by then, so
//! that one flush serves all the files it is in. When none is free, and no more may be made, what comes goes to the segments
//! directly.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use super::super::config::Mutant;
use super::super::partition::{Inner as PartitionInner, Partition};
use super::super::shard::Common;
use crate::log::{JOURNAL_BLOCK, JournalFile};
use crate::sys::{File, Lease, LeaseMut, OpenOptions, Ring};
use crate::types::Offset;

/// Where the journals of all shards lie, in the data directory; gone after a clean stop.
pub(in crate::shard) const JOURNAL_DIR: &str = "journal";
/// Files beyond the usual ones that a shard keeps for partitions whose segments cannot be written any more.
const PINNED_FILES_MAX: usize = 8;
/// Partitions that are moved from full files to their segments at a time, when half of the files are full; twice as many
/// for each further one. More at once would only have the rounds wait for the device.
const DESTAGES: usize = 2;
/// Where a file holds more than [`CROWD`] of them each has little: so many at a time, which share a flush.
const CROWDED_DESTAGES: usize = 8;
const CROWD: usize = 64;
/// How long the filling of a file ahead of need leaves the device to others after each step.
const FILL_PAUSE: Duration = Duration::from_millis(2);
/// How long it takes until a file is made again after that went wrong.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Files {
    current: Option<Used>,
    /// Full, oldest first, until what they hold is in segments.
    full: VecDeque<Used>,
    /// Full, with something of a partition in them that takes nothing any more: kept for the next start.
    pinned: Vec<Used>,
    /// Ready to be begun.
    spare: VecDeque<(File, PathBuf)>,
    /// Numbers given to uses of files.
    number: u64,
    /// Files there are.
    made: u64,
    /// Names given to files: none twice, whatever became of the first.
    names: u64,
}

/// A file in use.
struct Used {
    file: File,
    path: PathBuf,
    number: u64,
    /// Where the next unit goes.
    at: u64,
    /// Units that are being written.
    under_way: u32,
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
pub(in crate::shard) struct LastFrame {
    number: u64,
    entry: usize,
}

impl Files {
    fn used(&mut self) -> impl Iterator<Item = &mut Used> {
        self.full.iter_mut().chain(&mut self.pinned).chain(&mut self.current)
    }

    pub(super) fn current_number(&self) -> u64 {
        self.current.as_ref().map_or(0, |used| used.number)
    }

    /// Whether a start would find frames of the partition.
    pub(super) fn hold(&self, partition: &Partition) -> bool {
        let last = partition.0.last_frame.get().number;
        let all = self.full.iter().chain(&self.pinned).chain(&self.current);
        last > 0 && all.into_iter().any(|used| used.number <= last)
    }

    /// A unit of so many bytes goes to the end of the current file. Whether that is half full now.
    pub(super) fn begin_write(&mut self, bytes: usize, file_bytes: u64) -> bool {
        let used = self.current.as_mut().expect("a file was found");
        let from = used.at;
        used.at += bytes as u64;
        used.under_way += 1;
        (from..used.at).contains(&(file_bytes / 2))
    }

    pub(super) fn end_write(&mut self, number: u64) {
        let used = self.used().find(|used| used.number == number);
        used.expect("a file that is written to is not used again").under_way -= 1;
    }

    /// The current file has batches of the partition up to `end`.
    pub(super) fn note(&mut self, partition: &Partition, end: Offset) {
        let used = self.current.as_mut().expect("a file was found");
        let generation = partition.generation();
        let entry = Entry { partition: Rc::downgrade(&partition.0), end, generation };
        let last = partition.0.last_frame.get();
        if last.number == used.number {
            used.entries[last.entry] = entry;
            return;
        }
        partition.0.last_frame.set(LastFrame { number: used.number, entry: used.entries.len() });
        used.entries.push(entry);
    }

    pub(super) async fn remove(self, ring: &Ring) -> io::Result<()> {
        let used = self.full.into_iter().chain(self.pinned).chain(self.current).map(|used| used.path);
        for path in used.chain(self.spare.into_iter().map(|(_, path)| path)) {
            ring.remove(&path).await?;
        }
        Ok(())
    }
}

/// Removes the directory of journals after a clean stop, unless files lie there that are not ours.
pub(in crate::shard) async fn remove_dir(ring: &Ring, data_dir: &Path) -> io::Result<()> {
    let dir = data_dir.join(JOURNAL_DIR);
    match ring.list(&dir).await {
        Ok(entries) if entries.is_empty() => ring.remove_dir(&dir).await,
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Used {
    /// Whether nothing is lost when it is written over.
    fn is_free(&mut self) -> bool {
        let settled = self.entries[self.settled..].iter().take_while(|entry| entry.is_settled()).count();
        self.settled += settled;
        self.settled == self.entries.len() && self.under_way == 0
    }
}

/// A file with room for a unit, and where: the one in use, or the next. `None` when there is none.
pub(super) async fn find_file(common: &Common) -> Result<Option<(File, u64)>, String> {
    let (journal, limits) = (&common.journal, &common.config.journal);
    {
        let files = &mut *journal.files.borrow_mut();
        if let Some(used) = &files.current {
            if used.at + limits.unit_bytes() as u64 <= limits.file_bytes {
                return Ok(Some((used.file.clone(), used.at)));
            }
            files.full.extend(files.current.take());
            journal.destager.wake_all();
        }
    }
    // Before anything is taken: without it the next file cannot be begun.
    let Ok(block) = lease(common, JOURNAL_BLOCK).await else { return Ok(None) };
    let next = {
        let files = &mut *journal.files.borrow_mut();
        let early = common.config.mutant == Mutant::EarlyReuse;
        let may_go = |oldest: &mut Used| oldest.is_free() || early && oldest.under_way == 0;
        match files.full.front_mut().is_some_and(may_go) {
            true => {
                journal.count(|c| c.recycled_files += 1);
                files.full.pop_front().map(|used| (used.file, used.path))
            }
            false => files.spare.pop_front(),
        }
    };
    let next = match next {
        Some(next) => next,
        None => match make_file(common, false).await {
            Some(made) => made,
            None => return Ok(None),
        },
    };
    begin(common, next, block).await.map(Some)
}

/// Begins to use a file: everything that it holds from before no longer counts.
async fn begin(
    common: &Common,
    (file, path): (File, PathBuf),
    mut block: LeaseMut,
) -> Result<(File, u64), String> {
    let journal = &common.journal;
    let number = journal.files.borrow().number + 1;
    let head = JournalFile {
        directory: common.node.identity.directory_id,
        start: common.node.journals.start,
        shard: common.id,
        number,
    };
    block.copy_from_slice(&head.encode());
    write(common, &file, 0, block.freeze()).await.map_err(|e| format!("{}: {e}", path.display()))?;
    let at = JOURNAL_BLOCK as u64;
    let files = &mut *journal.files.borrow_mut();
    files.number = number;
    let entries = Vec::with_capacity(64);
    files.current = Some(Used { file: file.clone(), path, number, at, under_way: 0, entries, settled: 0 });
    Ok((file, at))
}

/// Another file, as long as there may be more. `None` when that did not work: it is tried again later.
async fn make_file(common: &Common, ahead: bool) -> Option<(File, PathBuf)> {
    let (journal, limits) = (&common.journal, &common.config.journal);
    let now = common.ring.now();
    let path = {
        let files = &mut *journal.files.borrow_mut();
        let allowed = limits.files_max + files.pinned.len().min(PINNED_FILES_MAX);
        if now < journal.retry_at.get() || files.made as usize >= allowed {
            return None;
        }
        files.made += 1;
        files.names += 1;
        let name = format!("{}-{}-{}", common.node.journals.start, common.id, files.names);
        common.config.data_dir.join(JOURNAL_DIR).join(name)
    };
    let made = fill(common, &path, ahead).await;
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

/// Makes a file and fills it with zeros; `ahead` of need so that rounds meanwhile do not wait for that.
async fn fill(common: &Common, path: &Path, ahead: bool) -> io::Result<File> {
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
        if ahead {
            // A flush takes what was written before it along.
            ring.sync(&file).await?;
            ring.sleep(FILL_PAUSE).await;
        }
    }
    ring.sync(&file).await?;
    ring.sync_dir(&common.config.data_dir.join(JOURNAL_DIR)).await?;
    Ok(file)
}

/// Exactly so many bytes of memory.
pub(super) async fn lease(common: &Common, bytes: usize) -> io::Result<LeaseMut> {
    let mut lease = common.ring.lease(bytes).await?;
    drop(lease.split_off(bytes));
    Ok(lease)
}

pub(super) async fn write(common: &Common, file: &File, at: u64, lease: Lease) -> io::Result<()> {
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
pub(super) async fn make_ahead(common: &Common) {
    let journal = &common.journal;
    loop {
        poll_fn(|cx| {
            journal.maker.add(cx.waker());
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
        match make_file(common, true).await {
            Some(made) => journal.files.borrow_mut().spare.push_back(made),
            None => common.ring.sleep(RETRY).await,
        }
    }
}

/// Moves what full files hold to its segments, some partitions at a time, oldest file first.
pub(super) async fn destage(common: &Common) {
    let journal = &common.journal;
    poll_fn(|cx| {
        if journal.stopping.get() {
            return Poll::Ready(());
        }
        journal.destager.add(cx.waker());
        let files = &mut *journal.files.borrow_mut();
        let Some(pressed) = files.full.len().checked_sub(common.config.journal.files_max / 2) else {
            return Poll::Pending;
        };
        let crowded = files.full.front().is_some_and(|used| used.entries.len() - used.settled > CROWD);
        let most = if crowded { CROWDED_DESTAGES << pressed.min(4) } else { DESTAGES << pressed.min(4) };
        let (mut under_way, mut index) = (0, 0);
        while index < files.full.len() && under_way < most {
            let used = &mut files.full[index];
            let (mut live, mut lost) = (false, false);
            if !used.is_free() {
                for entry in &used.entries[used.settled..] {
                    if under_way == most {
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
                    partition.0.reach.borrow_mut().destage_all();
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
        journal.destages.set(under_way);
        Poll::Pending
    })
    .await;
}
