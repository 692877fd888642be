//! The partition's own task: writes what is staged, flushes what must be durable, prepares room, finishes segments.
//!
//! Three straight loops in one task. *Write*: one unit at a time; while it is under way the next one gathers, which
//! is the group commit and needs no timer. *Flush*: one at a time; it makes durable what was written when it was
//! submitted. *Upkeep*: room ahead of the writes, and what is due once a sealed segment is durable.

use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::Poll;

use super::acks::Ack;
use super::config::{Commit, Mutant};
use super::errors::AppendError;
use super::partition::{Partition, State};
use super::reserve_file::is_full;
use super::sleep::Sleep;
use super::stages::Stage;
use crate::log::{EpochOwner, Ext, Log, LogPoint};
use crate::sys::{File, OpenOptions, is_passing};
use crate::transfer::{Need, WriteData, WriteUnit, join_all};
use crate::types::{Offset, Position};

/// The durable end is handed to the checkpoint each time it has moved this far (and at each roll).
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// What is destaged to a segment of up to this many bytes takes its room as it is written.
const SMALL_SEGMENT_BYTES: u64 = 4 << 20;
/// Where so many partitions are destaged side by side one flush is for all of them.
const DESTAGES_TOGETHER: usize = 4;
/// How often a full disk, or a process without descriptors, is asked again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(250);
/// How often descriptors are asked for while stopping: others stop as well, and give theirs back.
const STOP_RETRIES_MAX: u32 = 20;
/// Room beyond the written end that a write waits for is asked for at once when it is short of this.
const FIRST_ROOM: u64 = crate::log::PREPARATION_STEP_MIN;

pub(super) async fn run(partition: Partition) {
    let loops: [Pin<&mut dyn Future<Output = ()>>; 3] =
        [pin!(write_loop(&partition)), pin!(flush_loop(&partition)), pin!(upkeep_loop(&partition))];
    join_all(loops).await;
    *partition.0.task.borrow_mut() = None;
    partition.0.task_runs.set(false);
}

impl Partition {
    /// Waits until `ready` gives something; looked at again whenever the partition's task is woken.
    async fn wait_until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| {
            if let Some(value) = ready() {
                return Poll::Ready(value);
            }
            let mut task = self.0.task.borrow_mut();
            if !task.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Whether the task's loops have nothing more to do, ever.
    fn is_over(&self) -> bool {
        self.0.state.get() == State::Closed || self.0.failure.borrow().is_some() || self.is_at_rest()
    }

    /// The file to append to, made with its name if it is not there yet.
    pub(super) async fn writer(&self, base: Offset) -> io::Result<File> {
        if let Some(file) = self.0.files.borrow().get(base).and_then(|f| f.writer.clone()) {
            return Ok(file);
        }
        if self.0.sleep.get() != Sleep::Awake {
            // Rare, and large: nobody else has to have room for it.
            Box::pin(self.wake()).await?;
        }
        let ring = &self.0.common.ring;
        let path = self.0.files.borrow().path(base, Ext::Log);
        let direct = self.0.common.direct_writes();
        // Made where nothing of it is on disk yet. Elsewhere an empty file in the place of one that was removed by hand
        // would be believed to hold what that held.
        let stored = self.0.reach.borrow().stored();
        let create = base > stored.segment || (base == stored.segment && stored.position == Position(0));
        let writer = ring.open(&path, OpenOptions { create, write: true, direct }).await?;
        let reader = self.open_segment(base).await?;
        let mut files = self.0.files.borrow_mut();
        if let Some(entry) = files.get_mut(base) {
            // Two may have opened it at once: the first stays.
            let writer = entry.writer.get_or_insert(writer).clone();
            entry.reader.get_or_insert_with(|| reader.into());
            return Ok(writer);
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("segment {base} is gone")))
    }
}

// ---- write -----------------------------------------------------------------------------------------------------

async fn write_loop(partition: &Partition) {
    let destage_bytes = partition.0.common.config.journal.destage_bytes;
    loop {
        let unit = partition
            .wait_until(|| {
                if partition.is_over() {
                    return Some(None);
                }
                let end = partition.marks().log_end;
                let limit = partition.0.reach.borrow().store_limit(end, destage_bytes)?;
                partition.0.staged.borrow_mut().take_unit(limit).map(Some)
            })
            .await;
        let Some(unit) = unit else { return };
        partition.0.unit_under_way.set(true);
        let result = write_unit(partition, unit).await;
        partition.0.unit_under_way.set(false);
        if let Err(why) = result {
            partition.fail(why);
            return;
        }
        // Also who waits for no watermark, but for quiet.
        partition.0.ack_waiters.wake_all();
        partition.wake_task();
    }
}

async fn write_unit(partition: &Partition, mut unit: WriteUnit) -> Result<(), String> {
    let common = &partition.0.common;
    let explain = |what: &str, e: &io::Error| {
        let path = partition.0.files.borrow().path(unit.segment, Ext::Log);
        format!("{what} {}: {e}", path.display())
    };
    let first = unit.writes.iter().flatten().map(|(at, _)| *at).min().unwrap_or(Position(0));
    let file = loop {
        match partition.writer(unit.segment).await {
            Ok(file) => break file,
            Err(e) => {
                wait_unless_lost(
                    partition,
                    &e,
                    explain(&format!("no way to write at position {first} of"), &e),
                )
                .await?
            }
        }
    };
    unhinder(partition);
    let end = unit.writes.iter().flatten().map(|(at, data)| at.plus(data.bytes() as u64)).max();
    let end = end.expect("a unit has something to write");
    let direct = partition.0.reach.borrow().direct().offset;
    let destages = unit.end.is_some_and(|end| direct < end.offset);
    let grows = partition.0.log.borrow().segment(unit.segment).is_some_and(|s| s.prepared < end);
    // What is small and comes in one piece now and then finds its room by itself: nobody waits for it, and making it
    // beforehand costs more than the write.
    if grows && !(destages && end.0 <= SMALL_SEGMENT_BYTES) {
        // A step ahead, where the segment goes on.
        let ahead = {
            let log = partition.0.log.borrow();
            if log.active().base == unit.segment { log.next_preparation(end) } else { None }
        };
        find_room(partition, unit.segment, &file, ahead.unwrap_or(end)).await?;
    } else if grows {
        // The room that the reserve gave up is not for this.
        wait_for_reserve(partition).await;
    }
    let submitted = common.ring.now();
    common.stages.note(Stage::Gather, submitted.nanos_since(unit.accepted));
    common.transfers.note_last_block(unit.copied_bytes);
    if common.config.mutant == Mutant::EarlyWatermark {
        finish(partition, unit.end);
    }
    if common.config.mutant == Mutant::CarryNothing {
        leave_out_journaled(partition, unit.segment, &mut unit.writes);
    }
    let writes = std::mem::take(&mut unit.writes);
    let places = writes.each_ref().map(|write| write.as_ref().map_or(Position(0), |(at, _)| *at));
    let results = write_parts(partition, unit.segment, &file, writes).await;
    let mut failure = None;
    for ((slot, at), result) in unit.writes.iter_mut().zip(places).zip(results) {
        match result {
            Some(Ok(data)) => *slot = Some(data),
            Some(Err(e)) => {
                let what = format!(
                    "the log from offset {} on, at position {at} of",
                    partition.0.reach.borrow().stored().offset
                );
                failure = Some(explain(&format!("writing {what}"), &e));
            }
            None => {}
        }
    }
    common.stages.note(Stage::Write, common.ring.now().nanos_since(submitted));
    // Marked when it is complete, not before: a flush that was submitted in between does not cover it.
    if let Some(entry) = partition.0.files.borrow_mut().get_mut(unit.segment) {
        entry.dirty = true;
    }
    if let Some(why) = failure {
        return Err(why);
    }
    unhinder(partition);
    let end = unit.end;
    partition.0.staged.borrow_mut().finish_unit(unit);
    finish(partition, end);
    common.note_cached(partition);
    Ok(())
}

/// The mistake of [`Mutant::CarryNothing`]: whole blocks that the journal has are not written.
fn leave_out_journaled(partition: &Partition, segment: Offset, writes: &mut [Option<(Position, WriteData)>]) {
    let framed = partition.0.reach.borrow().framed();
    for slot in writes.iter_mut().filter(|_| framed.segment == segment) {
        if let Some((at, WriteData::One(lease))) = slot {
            let block = crate::log::JOURNAL_BLOCK as u64;
            let skipped = framed.position.0.saturating_sub(at.0).min(lease.len() as u64) / block * block;
            if skipped > 0 && skipped < lease.len() as u64 {
                *at = at.plus(skipped);
                *lease = lease.slice(skipped as usize..lease.len());
            }
        }
    }
}

/// Makes room for what was accepted already. When the disk is full this waits until it no longer is: nothing more is
/// accepted meanwhile, and what was keeps its place.
async fn find_room(partition: &Partition, segment: Offset, file: &File, to: Position) -> Result<(), String> {
    loop {
        match prepare(partition, segment, file, to).await {
            Err(e) => {
                let path = partition.0.files.borrow().path(segment, Ext::Log);
                let words = format!("no room up to position {to} of {}: {e}", path.display());
                wait_unless_lost(partition, &e, words).await?;
            }
            Ok(()) => {
                unhinder(partition);
                return Ok(());
            }
        }
    }
}

pub(super) fn unhinder(partition: &Partition) {
    if let Some(hindrance) = partition.0.hindrance.take() {
        tracing::info!("{partition}: appends are taken again; no longer so: {hindrance}");
    }
}

/// Refuses appends for the time it takes to look again, where that can help: the disk is full, or descriptors are
/// short. Gives `words` back where it cannot.
async fn wait_unless_lost(partition: &Partition, error: &io::Error, words: String) -> Result<(), String> {
    let hindrance = match (is_full(error), is_passing(error)) {
        (true, _) => AppendError::DiskFull(words.clone()),
        (false, true) => AppendError::Exhausted(words.clone()),
        (false, false) => return Err(words),
    };
    if partition.0.hindrance.borrow().is_none() {
        tracing::error!("{partition}: {hindrance}; appends are refused until that has passed");
        *partition.0.hindrance.borrow_mut() = Some(hindrance);
        partition.0.room_waiters.wake_all();
    }
    partition.0.common.ring.sleep(RETRY).await;
    match partition.0.state.get() {
        State::Open => Ok(()),
        State::Draining if !is_full(error) && partition.count_stop_retry() < STOP_RETRIES_MAX => Ok(()),
        // Stopping or deleted: what was accepted and has no room is given up, and said to be.
        State::Draining | State::Closed => Err(words),
    }
}

/// Writes the parts of a unit side by side.
async fn write_parts(
    partition: &Partition,
    segment: Offset,
    file: &File,
    writes: [Option<(Position, WriteData)>; 4],
) -> [Option<io::Result<(Position, WriteData)>>; 4] {
    let write = async |part: Option<(Position, WriteData)>| match part {
        Some((at, data)) => Some(write_all(partition, segment, file, at, data).await),
        None => None,
    };
    let [a, b, c, d] = writes;
    join_all([pin!(write(a)), pin!(write(b)), pin!(write(c)), pin!(write(d))]).await
}

/// Writes all of `data` at `at`, going on after short writes, and when there is room again.
pub(super) async fn write_all(
    partition: &Partition,
    segment: Offset,
    file: &File,
    at: Position,
    data: WriteData,
) -> io::Result<(Position, WriteData)> {
    let ring = &partition.0.common.ring;
    let none =
        |at: u64| io::Error::new(io::ErrorKind::WriteZero, format!("nothing was written at position {at}"));
    match data {
        WriteData::One(lease) => {
            let mut written = 0;
            while written < lease.len() {
                // A direct write goes on at a whole block; what it repeats is the same bytes.
                let from = if file.is_direct() { written / 512 * 512 } else { written };
                let (result, _) = ring.write(file, at.0 + from as u64, lease.slice(from..lease.len())).await;
                match result {
                    Ok(0) => return Err(none(at.0 + from as u64)),
                    Ok(n) => written = from + n,
                    Err(error) => wait_to_write(partition, segment, at.plus(from as u64), error).await?,
                }
            }
            Ok((at, WriteData::One(lease)))
        }
        WriteData::Stored(gather) => {
            let (mut position, mut gather) = (at, gather);
            while gather.bytes() > 0 {
                let (result, mut rest) = ring.store_gather(file, position.0, gather).await;
                match result {
                    Ok(0) => return Err(none(position.0)),
                    Ok(stored) => {
                        rest.advance(stored);
                        position = position.plus(stored as u64);
                    }
                    Err(error) => wait_to_write(partition, segment, position, error).await?,
                }
                gather = rest;
            }
            Ok((at, WriteData::Stored(gather)))
        }
        WriteData::Many(gather) => {
            let (mut position, mut gather) = (at, gather);
            while gather.bytes() > 0 {
                let (result, mut rest) = match partition.0.common.uncached_writes() {
                    true => ring.write_gather_uncached(file, position.0, gather).await,
                    false => ring.write_gather(file, position.0, gather).await,
                };
                match result {
                    Ok(0) => return Err(none(position.0)),
                    Ok(written) => {
                        rest.advance(written);
                        position = position.plus(written as u64);
                    }
                    Err(error) => wait_to_write(partition, segment, position, error).await?,
                }
                gather = rest;
            }
            Ok((at, WriteData::Many(gather)))
        }
    }
}

/// Where a file system takes its blocks only when they are written, or takes back what it had prepared, the write itself
/// may find the disk full. Nothing is lost by that: it waits like one for which no room could be prepared.
pub(super) async fn wait_to_write(
    partition: &Partition,
    segment: Offset,
    at: Position,
    error: io::Error,
) -> io::Result<()> {
    if !is_full(&error) {
        return Err(error);
    }
    let path = partition.0.files.borrow().path(segment, Ext::Log);
    let words = format!("no room to write at position {at} of {}: {error}", path.display());
    wait_unless_lost(partition, &error, words).await.map_err(io::Error::other)
}

/// The write is complete up to `end`.
fn finish(partition: &Partition, end: Option<LogPoint>) {
    if let Some(end) = end {
        partition.0.reach.borrow_mut().note_stored(end);
        partition.follow_reach();
    }
}

impl Partition {
    /// Moves the watermarks to where batches have come, in the journal or in segments, and tells who waits.
    pub(super) fn follow_reach(&self) {
        let (old, mut moved) = (self.marks(), false);
        let (written, durable) = {
            let reach = self.0.reach.borrow();
            (reach.written(), reach.durable())
        };
        {
            let mut log = self.0.log.borrow_mut();
            let visible = |log: &mut Log, end: LogPoint| {
                if log.owner() == EpochOwner::Local {
                    log.set_high_watermark(end);
                }
            };
            if written.offset > old.written.offset {
                moved = true;
                log.set_written(written);
                if self.0.config.ack != Ack::Durable {
                    visible(&mut log, written);
                }
            }
            if durable.offset > old.durable.offset {
                moved = true;
                log.set_durable(durable);
                if self.0.config.ack == Ack::Durable {
                    visible(&mut log, durable);
                }
            }
        }
        if !moved {
            return;
        }
        if written.offset > old.written.offset {
            self.note_written(old.written, written);
            self.0.room_waiters.wake_all();
        }
        self.marks_moved(old.high_watermark);
    }
}

// ---- flush -----------------------------------------------------------------------------------------------------

async fn flush_loop(partition: &Partition) {
    loop {
        let target = partition
            .wait_until(|| {
                if partition.is_over() {
                    return Some(None);
                }
                flush_due(partition).map(Some)
            })
            .await;
        let Some(target) = target else { return };
        partition.0.flush_under_way.set(true);
        let result = flush(partition, target).await;
        partition.0.flush_under_way.set(false);
        if let Err(why) = result {
            // What a failed flush lost cannot be known: nothing on this device may be called durable any more.
            partition.0.common.fail_all(&why);
            return;
        }
        partition.wake_task();
    }
}

/// Up to where a flush is to be made now, if one is due.
fn flush_due(partition: &Partition) -> Option<LogPoint> {
    let reach = partition.0.reach.borrow();
    let (stored, durable) = (reach.stored(), reach.stored_durable());
    if stored.offset <= durable.offset {
        return None;
    }
    let wanted = is_waited_for(partition) && stored.offset > partition.marks().durable.offset;
    // A segment that is sealed, and written to its end, is flushed for good.
    let log = partition.0.log.borrow();
    let ended = log.active().base != stored.segment
        && log.segment(stored.segment).is_some_and(|segment| stored.offset >= segment.next_offset);
    let rolled = stored.segment != durable.segment || ended;
    let far =
        stored.segment == durable.segment && stored.position.since(durable.position) >= CHECKPOINT_BYTES;
    let draining = partition.0.state.get() == State::Draining;
    (wanted || rolled || far || draining || reach.is_flush_wanted()).then_some(stored)
}

/// Whether somebody waits for a flush of the segment. What the journal has does not.
fn is_waited_for(partition: &Partition) -> bool {
    let promised = partition.marks().durable.offset;
    partition.0.sync_wanted.get() > promised && partition.0.reach.borrow().direct().offset > promised
}

async fn flush(partition: &Partition, target: LogPoint) -> Result<(), String> {
    let common = &partition.0.common;
    let submitted = common.ring.now();
    let together = match common.config.commit {
        Commit::Device => true,
        Commit::Journal => {
            let many = common.journal.destages() >= DESTAGES_TOGETHER;
            many && common.device_flush.is_quick(submitted) && !is_waited_for(partition)
        }
        Commit::Files => false,
    };
    let flushed = if together {
        match flush_with_others(partition, target).await {
            // It may be another program's failure that it told of; each file tells of its own.
            Err(why) if common.config.commit == Commit::Journal => {
                tracing::warn!("{why}; segments are flushed one by one from here on");
                partition.0.files.borrow_mut().give_up_flush();
                flush_one_by_one(partition, target).await?
            }
            flushed => flushed?,
        }
    } else {
        flush_one_by_one(partition, target).await?
    };
    if flushed == Flushed::Lost {
        return Ok(());
    }
    common.stages.note(Stage::Flush, common.ring.now().nanos_since(submitted));
    partition.0.reach.borrow_mut().note_stored_durable(target);
    let last = partition.0.checkpointed.get();
    if last.segment != target.segment || target.position.since(last.position) >= CHECKPOINT_BYTES {
        partition.0.checkpointed.set(target);
        partition.record();
        common.request_checkpoint();
    }
    partition.follow_reach();
    // Also where no watermark moves: who destages waits for it.
    partition.show();
    partition.0.ack_waiters.wake_all();
    Ok(())
}

/// What came of a flush.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flushed {
    /// All of it is on the disk.
    Good,
    /// A file was removed by somebody else: the partition is told.
    Lost,
}

async fn flush_one_by_one(partition: &Partition, target: LogPoint) -> Result<Flushed, String> {
    let common = &partition.0.common;
    while let Some((base, file, named)) = next_dirty(partition, target) {
        if !named {
            let dir = partition.dir();
            if let Err(e) = sync_dir(partition, &dir).await {
                if e.kind() == io::ErrorKind::NotFound {
                    partition.lose(&dir);
                    return Ok(Flushed::Lost);
                }
                return Err(format!("{partition}: flush of {}: {e}", dir.display()));
            }
            let kept = patiently(partition, async || partition.keep_dir().await).await;
            kept.map_err(|e| format!("{partition}: flush of {}: {e}", common.config.data_dir.display()))?;
        }
        // Only made where something went wrong: a name takes memory.
        let path = || partition.0.files.borrow().path(base, Ext::Log);
        if common.config.mutant != Mutant::SkipFlush {
            let durable = partition.marks().durable;
            common.ring.sync(&file).await.map_err(|e| {
                let (path, from, to) = (path(), durable.offset, target.offset);
                let position = target.position;
                format!(
                    "{partition}: flush of {} up to position {position} (offsets {from} to {to}): {e}",
                    path.display()
                )
            })?;
        }
        if let Some(entry) = partition.0.files.borrow_mut().get_mut(base) {
            entry.named = true;
        } else {
            continue; // Retention took it meanwhile.
        }
        if !common.ring.has_name(&file) {
            partition.lose(&path());
            return Ok(Flushed::Lost);
        }
    }
    Ok(Flushed::Good)
}

/// By a flush of the whole file system, which other partitions take part in: files and their names at once.
async fn flush_with_others(partition: &Partition, target: LogPoint) -> Result<Flushed, String> {
    let common = &partition.0.common;
    partition.0.files.borrow_mut().begin_flush(target.segment);
    let dir_is_new = partition.0.dir_is_new.get();
    if common.config.mutant != Mutant::SkipFlush {
        let durable = partition.marks().durable;
        common.device_flush.cover(&common.ring).await.map_err(|why| {
            let (from, to, position) = (durable.offset, target.offset, target.position);
            format!(
                "{partition}: {why} (offsets {from} to {to}, up to position {position} of segment {})",
                target.segment
            )
        })?;
    }
    // One that was made meanwhile is not covered.
    if dir_is_new {
        partition.0.dir_is_new.set(false);
    }
    loop {
        let Some((base, file)) = partition.0.files.borrow_mut().end_flush() else { return Ok(Flushed::Good) };
        if !common.ring.has_name(&file) {
            let path = partition.0.files.borrow().path(base, Ext::Log);
            partition.lose(&path);
            return Ok(Flushed::Lost);
        }
    }
}

/// Makes the names in `dir` durable.
async fn sync_dir(partition: &Partition, dir: &Path) -> io::Result<()> {
    patiently(partition, async || partition.0.common.ring.sync_dir(dir).await).await
}

/// Does it. Without descriptors it could not even be asked for: promises wait.
async fn patiently(partition: &Partition, sync: impl AsyncFn() -> io::Result<()>) -> io::Result<()> {
    loop {
        let synced = sync().await;
        let Err(error) = &synced else { return synced };
        let patient = match partition.0.state.get() {
            State::Open => true,
            State::Draining => partition.count_stop_retry() < STOP_RETRIES_MAX,
            State::Closed => false,
        };
        if !is_passing(error) || !patient {
            return synced;
        }
        tracing::warn!("{partition}: {error}; asked again until that has passed");
        partition.0.common.ring.sleep(RETRY).await;
    }
}

/// The oldest file with writes to flush, up to the segment of `target`. It counts as clean from here on: writes that
/// come later make it dirty again.
fn next_dirty(partition: &Partition, target: LogPoint) -> Option<(Offset, File, bool)> {
    let mut files = partition.0.files.borrow_mut();
    let base = files.iter().find(|f| f.dirty && f.base <= target.segment && f.writer.is_some())?.base;
    let entry = files.get_mut(base).expect("found above");
    entry.dirty = false;
    Some((base, entry.writer.clone().expect("found above"), entry.named))
}

// ---- upkeep ----------------------------------------------------------------------------------------------------

enum Chore {
    Prepare { segment: Offset, to: Position },
    Finish { segment: Offset },
    Map { segment: Offset, at: Position, bytes: usize },
}

async fn upkeep_loop(partition: &Partition) {
    let mut failures = 0;
    loop {
        let chore = partition
            .wait_until(|| if partition.is_over() { Some(None) } else { next_chore(partition).map(Some) })
            .await;
        partition.0.chore_under_way.set(chore.is_some());
        let result = match chore {
            None => return,
            Some(Chore::Prepare { segment, to }) => match partition.writer(segment).await {
                Ok(file) => prepare(partition, segment, &file, to).await,
                Err(e) => Err(e),
            },
            Some(Chore::Finish { segment }) => finish_segment(partition, segment).await,
            Some(Chore::Map { segment, at, bytes }) => map_window(partition, segment, at, bytes).await,
        };
        if let Err(e) = result {
            // Room ahead is a convenience: the write that needs it will say so if there really is none.
            failures += 1u64;
            if failures.is_power_of_two() {
                tracing::warn!("{partition}: upkeep: {e} ({failures} times in a row)");
            }
            partition.0.common.ring.sleep(RETRY).await;
        } else {
            failures = 0;
        }
        // Only here: nobody may take the partition for quiet, and end its other loops, while this one sleeps.
        partition.0.chore_under_way.set(false);
        // Who drains waits for this: two who finish one segment would share its temporary files.
        partition.0.ack_waiters.wake_all();
    }
}

fn next_chore(partition: &Partition) -> Option<Chore> {
    let apart = partition.owes() || partition.0.cutting.get() || partition.0.sleep.get() != Sleep::Awake;
    if partition.0.state.get() != State::Open || apart {
        return None;
    }
    let log = partition.0.log.borrow();
    let end = log.log_end();
    // What goes through the journal gets its room when it is destaged: nobody waits for it there. But a segment that was
    // begun has a file: its name says where the log goes on, whatever becomes of the checkpoints. A unit under way makes one.
    let named = partition.0.files.borrow().get(end.segment).is_some_and(|f| f.writer.is_some())
        || partition.0.unit_under_way.get();
    if (log_is_direct(partition, end) || !named)
        && let Some(to) = log.next_preparation(end.position)
    {
        return Some(Chore::Prepare { segment: end.segment, to });
    }
    if let Need::Window { segment, at, bytes } = partition.0.staged.borrow().need_ahead(end)
        && at < window_limit(partition)
    {
        return Some(Chore::Map { segment, at, bytes });
    }
    let durable = partition.0.reach.borrow().stored_durable();
    let files = partition.0.files.borrow();
    let mut pairs = files.iter().zip(files.iter().skip(1));
    let (due, _) = pairs.find(|(f, next)| !f.finished && next.base <= durable.offset)?;
    Some(Chore::Finish { segment: due.base })
}

/// Whether what is appended now is acknowledged from its segment.
fn log_is_direct(partition: &Partition, end: LogPoint) -> bool {
    partition.0.reach.borrow().direct().offset == end.offset
}

async fn wait_for_reserve(partition: &Partition) {
    while partition.0.common.node.reserve.is_given_up() {
        partition.0.common.ring.sleep(RETRY).await;
    }
}

/// Makes room up to `to` at least. The write loop and upkeep may both get here; the file's size only grows.
async fn prepare(partition: &Partition, segment: Offset, file: &File, to: Position) -> io::Result<()> {
    let Some(prepared) = partition.0.log.borrow().segment(segment).map(|s| s.prepared) else { return Ok(()) };
    let to = Position(to.0.max(FIRST_ROOM).next_multiple_of(crate::log::PREPARATION_BLOCK));
    if to <= prepared {
        return Ok(());
    }
    wait_for_reserve(partition).await;
    let made = partition.0.common.ring.prepare(file, prepared.0, to.0).await;
    partition.mind_flush(segment, to, made)?;
    let mut log = partition.0.log.borrow_mut();
    if log.active().base == segment && log.active().prepared < to {
        log.set_prepared(to);
    }
    Ok(())
}

/// Maps `bytes` of `segment` at `at`, or as much of that as the segment may become, for the stage.
async fn map_window(partition: &Partition, segment: Offset, at: Position, bytes: usize) -> io::Result<()> {
    let generation = partition.generation();
    let file = partition.writer(segment).await?;
    let (limit, end) = (window_limit(partition), at.plus(bytes as u64));
    // A batch that is larger than a segment may be is an exception there as well.
    let end = if at < limit { end.min(limit) } else { end };
    prepare(partition, segment, &file, end).await?;
    let ring = &partition.0.common.ring;
    let window = match ring.map_window(&file, at.0, end.since(at) as usize).await {
        Ok(window) => window,
        Err(error) => {
            // A file that somebody has cut is no bad address of ours.
            ring.check_window(&file, end.0, &[])?;
            return Err(error);
        }
    };
    let start = partition.0.log.borrow().log_end();
    if start.segment == segment && partition.generation() == generation {
        partition.0.staged.borrow_mut().supply_window(start, at, window);
    }
    Ok(())
}

/// Segments are not mapped beyond where they are sealed.
fn window_limit(partition: &Partition) -> Position {
    Position(partition.0.config.log.segment_bytes_max.next_multiple_of(crate::log::PREPARATION_BLOCK))
}

impl Partition {
    /// Maps the end of the active segment for an append that needs it now.
    pub(super) async fn open_window(
        &self,
        segment: Offset,
        at: Position,
        bytes: usize,
    ) -> Result<(), AppendError> {
        let mapped = map_window(self, segment, at, bytes).await;
        mapped.map_err(|error| self.no_end(&format!("mapping from position {at} on"), segment, &error))
    }

    /// The file of the active segment, with room up to `to`, for an append that goes into it now.
    pub(super) async fn open_end(&self, segment: Offset, to: Position) -> Result<File, AppendError> {
        let made = async {
            let file = self.writer(segment).await?;
            prepare(self, segment, &file, to).await?;
            Ok(file)
        };
        made.await.map_err(|error| self.no_end(&format!("no room up to position {to}"), segment, &error))
    }

    fn no_end(&self, what: &str, segment: Offset, error: &io::Error) -> AppendError {
        let path = self.0.files.borrow().path(segment, Ext::Log);
        let words = format!("{}: {what}: {error}", path.display());
        match (is_full(error), is_passing(error)) {
            (true, _) => AppendError::DiskFull(words),
            (false, true) => AppendError::Exhausted(words),
            (false, false) => self.fail(words),
        }
    }
}

/// A sealed segment is durable: its indexes are written and its room is given back. One with rot in it gets none: a
/// segment that has indexes is believed at the next start, one that has none is walked, and fenced again. Nor is it
/// trimmed: where rot ends is a guess, and the last bytes of a batch may be zeros.
pub(super) async fn finish_segment(partition: &Partition, base: Offset) -> io::Result<()> {
    let ring = &partition.0.common.ring;
    Box::pin(partition.load_indexes(base)).await?;
    let parts = {
        let log = partition.0.log.borrow();
        let fenced = log.fenced().iter().any(|range| range.segment == base);
        log.segment(base).map(|s| (s.index.encode(), s.time_index.encode(), s.end, fenced))
    };
    let Some((index, time_index, end, fenced)) = parts else { return Ok(()) };
    let (index_path, time_path) = {
        let files = partition.0.files.borrow();
        (files.path(base, Ext::Index), files.path(base, Ext::TimeIndex))
    };
    if !fenced {
        let file = partition.writer(base).await?;
        partition.mind_flush(base, end, ring.trim(&file, end.0).await)?;
        // This is what it is like from now on; one that cannot be asked now is asked by the first who reads it.
        if let Some(reader) = partition.0.files.borrow().get(base).and_then(|f| f.reader.as_ref()) {
            let _ = reader.seal(ring, end);
        }
    }
    let (active, few) = {
        let log = partition.0.log.borrow();
        (log.active().base == base, index.is_empty())
    };
    // The offset index last: where it is, the file has its exact size and the time index is there.
    if active && few {
        // Nothing that a short walk would not tell.
    } else if fenced {
        ring.remove(&index_path).await?;
        ring.remove(&time_path).await?;
    } else if partition.0.state.get() == State::Draining {
        partition.0.common.replace_at_need(&time_path, time_index).await?;
        partition.0.common.replace_at_need(&index_path, index).await?;
    } else {
        ring.replace(&time_path, time_index).await?;
        ring.replace(&index_path, index).await?;
    }
    if let Some(entry) = partition.0.files.borrow_mut().get_mut(base) {
        entry.writer = None;
        entry.finished = true;
        entry.indexed = !fenced;
    }
    Ok(())
}

impl Partition {
    /// Writes and flushes all that was accepted, trims, writes the indexes: as for a clean stop.
    pub(super) async fn drain(&self) -> Result<(), String> {
        let at_rest = self.is_at_rest();
        if self.0.state.get() == State::Open {
            self.0.state.set(State::Draining);
        }
        if at_rest {
            return Ok(()); // As it lies, and as the manifest has it.
        }
        self.wake_everybody();
        loop {
            if let Some(why) = &*self.0.failure.borrow() {
                return Err(why.clone());
            }
            if self.is_quiet() {
                break;
            }
            let marks = self.marks();
            self.0.reach.borrow_mut().want_stored(marks.log_end.offset, true);
            self.go_direct();
            let mut waited = false;
            poll_fn(|cx| {
                if std::mem::replace(&mut waited, true) {
                    return Poll::Ready(());
                }
                self.wait_for_ack(cx.waker());
                self.wake_task();
                Poll::Pending
            })
            .await;
        }
        if self.0.owed.torn.borrow().is_some() {
            // Closing its segment would cut what is not kept yet.
            return Err(format!("{self}: there was no room to keep what lies behind its torn end"));
        }
        let bases: Vec<Offset> =
            self.0.files.borrow().iter().filter(|f| !f.finished && !f.indexed).map(|f| f.base).collect();
        for base in bases {
            finish_segment(self, base).await.map_err(|e| format!("{self}: closing segment {base}: {e}"))?;
        }
        if self.0.sleep.get() != Sleep::Asleep {
            self.store_epochs().await.map_err(|e| format!("{self}: {e}"))?;
            self.note_asleep();
        }
        Ok(())
    }

    /// Ends its task and tells everybody who waits.
    pub(super) fn close(&self) {
        self.0.state.set(State::Closed);
        self.0.common.release_cache(self);
        self.wake_everybody();
    }
}
