//! One partition: its log, what is staged, its files, and who waits for what.
//!
//! The rules are [`Log`]'s; this is where they meet memory, files and tasks. Appends are placed here; `commit` makes
//! them written and durable; `fetch` turns positions into pieces.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use super::acks::{Ack, Ticket};
use super::board::Board;
use super::config::{Timestamps, TopicConfig};
use super::errors::{AppendError, TruncateError};
use super::files::Files;
use super::journal::LastFrame;
use super::owed::Owed;
use super::reach::Reach;
use super::shard::Common;
use super::sleep::Sleep;
use super::splicing::Splicing;
use super::stages::Stage;
use super::topics::TopicPlan;
use super::turns::{Turn, Turns};
use super::wakers::Wakers;
use crate::log::{self, BatchHeader, Ext, Log, LogPoint, Marks, Placement};
use crate::sys::{
    BLOCK_BYTES, Flushes, Lease, LeaseMut, Moment, OpenOptions, Ring, is_failed_flush, is_passing,
};
use crate::transfer::{Need, Receives, Staged};
use crate::types::{Epoch, Offset, PartitionId, Position, Timestamp};

/// Bytes that one partition accepts ahead of its disk; beyond that appends wait.
pub(super) const UNWRITTEN_BYTES_MAX: u64 = 32 << 20;

/// One partition of a topic, owned by this shard. Cheap to clone.
#[derive(Clone)]
pub struct Partition(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub common: Rc<Common>,
    pub id: PartitionId,
    pub topic: Arc<str>,
    /// What other shards see.
    boards: Arc<[Board]>,
    /// Appends are placed in the order of their coming.
    append_turns: Turns,
    pub config: TopicConfig,
    pub log: RefCell<Log>,
    pub staged: RefCell<Staged>,
    pub files: RefCell<Files>,
    /// Closing: no more appends; closed: nothing at all.
    pub state: Cell<State>,
    pub failure: RefCell<Option<String>>,
    /// What was accepted finds no room on the disk, or no descriptor: nothing more is, until it does.
    pub hindrance: RefCell<Option<AppendError>>,
    pub owed: Owed,
    pub splicing: Splicing,
    pub reach: RefCell<Reach>,
    pub sleep: Cell<Sleep>,
    pub waking: Turns,
    /// The name of its directory does not survive power loss yet.
    pub dir_is_new: Cell<bool>,
    /// The manifest must not say anything of it now.
    pub unrecorded: Cell<bool>,
    /// Somebody had to do with it since that was last asked.
    pub touched: Cell<bool>,
    /// Nothing is open or in memory that it can be served without.
    pub lean: Cell<bool>,
    /// Its epochs are not in their own file.
    pub epochs_unstored: Cell<bool>,
    /// It waits for the journal's next round.
    pub enlisted: Cell<bool>,
    pub last_frame: Cell<LastFrame>,
    /// What the journal holds of it shall count no more.
    pub void_wanted: Cell<bool>,
    /// The last time that was stamped on a batch.
    append_time: Cell<Timestamp>,
    /// Counts truncations: a ticket of an older generation is void.
    pub generation: Cell<u64>,
    /// Durability was asked for up to here.
    pub sync_wanted: Cell<Offset>,
    /// Bytes accepted and not yet written.
    pub unwritten_bytes: Cell<u64>,
    /// The partition's own task.
    pub task: RefCell<Option<Waker>>,
    pub task_runs: Cell<bool>,
    pub unit_under_way: Cell<bool>,
    pub flush_under_way: Cell<bool>,
    pub chore_under_way: Cell<bool>,
    /// The log is being cut: no chores until that is done.
    pub cutting: Cell<bool>,
    /// It is about to be cut here: no recovery point may lie beyond.
    recovery_limit: Cell<Offset>,
    /// How often a drain was hindered.
    stop_retries: Cell<u32>,
    /// Base offsets of segments whose files are still to be removed.
    unremoved: RefCell<Vec<Offset>>,
    /// The durable end that was last handed to the checkpoint.
    pub checkpointed: Cell<LogPoint>,
    /// What of the tail cache is ours, as last counted.
    pub cached_bytes: Cell<usize>,
    pub ack_waiters: Wakers,
    pub watchers: Wakers,
    pub room_waiters: Wakers,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Open,
    /// No appends; what was accepted is still being written.
    Draining,
    Closed,
}

impl Partition {
    pub(super) fn new(
        common: &Rc<Common>,
        plan: &TopicPlan,
        index: i32,
        log: Log,
        files: Files,
    ) -> Partition {
        let end = log.log_end();
        let largest = log.segments().iter().map(|segment| segment.largest_timestamp).max();
        let largest = largest.unwrap_or(Timestamp::NONE);
        let partition = Partition(Rc::new(Inner {
            common: common.clone(),
            id: PartitionId { topic: plan.id, index },
            topic: plan.name.clone(),
            boards: plan.boards.clone(),
            append_turns: Turns::default(),
            config: plan.config.clone(),
            staged: RefCell::new(Staged::new(common.config.ingress, end)),
            log: RefCell::new(log),
            files: RefCell::new(files),
            state: Cell::new(State::Open),
            failure: RefCell::new(None),
            hindrance: RefCell::new(None),
            owed: Owed::default(),
            splicing: Splicing::default(),
            reach: RefCell::new(Reach::new(end)),
            sleep: Cell::new(Sleep::Awake),
            waking: Turns::default(),
            dir_is_new: Cell::new(false),
            unrecorded: Cell::new(false),
            touched: Cell::new(true),
            lean: Cell::new(false),
            epochs_unstored: Cell::new(false),
            enlisted: Cell::new(false),
            last_frame: Cell::default(),
            void_wanted: Cell::new(false),
            append_time: Cell::new(largest),
            generation: Cell::new(0),
            sync_wanted: Cell::new(Offset(0)),
            unwritten_bytes: Cell::new(0),
            task: RefCell::new(None),
            task_runs: Cell::new(false),
            unit_under_way: Cell::new(false),
            flush_under_way: Cell::new(false),
            chore_under_way: Cell::new(false),
            cutting: Cell::new(false),
            recovery_limit: Cell::new(Offset(i64::MAX)),
            stop_retries: Cell::new(0),
            unremoved: RefCell::new(Vec::new()),
            checkpointed: Cell::new(end),
            cached_bytes: Cell::new(0),
            ack_waiters: Wakers::default(),
            watchers: Wakers::default(),
            room_waiters: Wakers::default(),
        }));
        partition.show();
        partition
    }

    /// Shows other shards where it stands.
    pub(super) fn show(&self) {
        let log = self.0.log.borrow();
        let stored = self.0.reach.borrow().stored_durable().offset;
        let recovery_point = stored.min(self.0.recovery_limit.get());
        self.board().show(log.epoch(), &log.watermarks().marks(), recovery_point);
    }

    fn board(&self) -> &Board {
        &self.0.boards[self.0.id.index as usize]
    }

    /// A place in the order of appends.
    pub(super) fn take_turn(&self) -> Turn {
        self.0.append_turns.take()
    }

    /// Whether nobody appends, or waits for that.
    pub(super) fn has_no_turns(&self) -> bool {
        self.0.append_turns.is_empty()
    }

    /// The ring of the shard that owns it.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.0.common.ring
    }

    /// Its number within the topic.
    #[must_use]
    pub fn index(&self) -> i32 {
        self.0.id.index
    }

    /// Its topic and number.
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.0.id
    }

    /// Its watermarks, as of now.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.0.log.borrow().watermarks().marks()
    }

    /// The current epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.log.borrow().epoch()
    }

    /// The epoch at or before `epoch` that this log knows, and where it ended: Kafka's OffsetForLeaderEpoch.
    #[must_use]
    pub fn end_offset_for(&self, epoch: Epoch) -> (Epoch, Offset) {
        let log = self.0.log.borrow();
        log.epochs().end_offset_for(epoch, log.log_end().offset)
    }

    /// Registers a task to be woken once, when more becomes visible or the partition closes.
    pub fn watch(&self, waker: &Waker) {
        self.0.watchers.add(waker);
    }

    /// Appends one batch that [`log::check_produced`] accepted (`header` is its answer). Its offset and epoch are
    /// assigned and stamped in place; `ack` overrides the topic's promise. Waits for room while the partition is too
    /// far ahead of its disk. `received` is when its last byte arrived.
    ///
    /// Returns as soon as the offset is assigned: nothing is promised yet, see [`Ticket::reached`].
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended.
    pub async fn append(
        &self,
        batch: LeaseMut,
        header: BatchHeader,
        ack: Option<Ack>,
        received: Moment,
    ) -> Result<Ticket, AppendError> {
        self.append_in_turn(self.take_turn(), batch, header, ack, received).await
    }

    /// The same for somebody who took a place in the order of appends before.
    pub(super) async fn append_in_turn(
        &self,
        turn: Turn,
        batch: LeaseMut,
        header: BatchHeader,
        ack: Option<Ack>,
        received: Moment,
    ) -> Result<Ticket, AppendError> {
        self.check_promise(ack)?;
        turn.comes().await;
        self.make_room(&header).await?;
        let (mut batch, mut header) = (batch, header);
        let (wall, mut append_time) = (self.0.common.ring.wall_clock(), Timestamp::NONE);
        if self.0.config.timestamps == Timestamps::Append {
            // The wall clock may jump back; the log's time does not.
            append_time = wall.max(self.0.append_time.get());
            self.0.append_time.set(append_time);
            log::stamp_append_time(&mut batch, append_time);
            header = BatchHeader::parse(&batch).expect("a checked batch stays one when it is stamped");
        }
        let placement = self.0.log.borrow_mut().append_local(&header, wall);
        log::stamp(&mut batch, placement.start.offset, placement.epoch);
        let ticket = self.stage(batch.freeze(), placement, ack, received);
        Ok(Ticket { append_time, ..ticket })
    }

    /// Appends one batch that keeps its offset and epoch: for a partition whose epochs are somebody else's.
    ///
    /// # Errors
    /// [`AppendError::Refused`] when it does not continue the log; else as [`Partition::append`].
    pub async fn append_at(
        &self,
        batch: Lease,
        header: BatchHeader,
        ack: Option<Ack>,
        received: Moment,
    ) -> Result<Ticket, AppendError> {
        self.check_promise(ack)?;
        let turn = self.take_turn();
        turn.comes().await;
        self.make_room(&header).await?;
        let placed = self.0.log.borrow_mut().append_at(&header, self.0.common.ring.wall_clock());
        let placement = placed.map_err(|e| AppendError::Refused(e.to_string()))?;
        Ok(self.stage(batch, placement, ack, received))
    }

    /// A promise that is known not to hold is not made.
    fn check_promise(&self, ack: Option<Ack>) -> Result<(), AppendError> {
        match (ack, &self.0.common.node.flushes) {
            (Some(Ack::Durable), Flushes::DoNotReach(why)) => {
                Err(AppendError::Refused(format!("{self}: durable cannot be promised: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Waits until a batch like this can be placed and staged at once; rolls if it has to.
    pub(super) async fn make_room(&self, header: &BatchHeader) -> Result<(), AppendError> {
        let bytes_max = self.0.config.log.batch_bytes_max;
        if header.bytes > bytes_max {
            return Err(AppendError::TooLarge { bytes: header.bytes, bytes_max });
        }
        let records = header.last_offset_delta.saturating_add(1);
        loop {
            self.check_open()?;
            if !self.0.log.borrow().has_offsets_for(records) {
                let end = self.marks().log_end.offset;
                return Err(AppendError::Refused(format!(
                    "{self}: the offsets end, {records} do not fit after {end}"
                )));
            }
            if let Some(hindrance) = &*self.0.hindrance.borrow() {
                return Err(hindrance.clone());
            }
            if self.owes() {
                self.settle().await?;
                continue;
            }
            if self.0.epochs_unstored.get() {
                // Before anything bears an epoch its own file tells of it: a start without a manifest would take what does
                // for rot, or begin the same once more. What cannot be stored is owed from here on.
                let _ = self.store_epochs().await;
                continue;
            }
            if self.0.splicing.has_debris() {
                self.clear_debris().await?;
                continue;
            }
            if self.0.unwritten_bytes.get() > UNWRITTEN_BYTES_MAX {
                self.wait_for_room().await;
                continue;
            }
            let wall = self.0.common.ring.wall_clock();
            let rolls = self.0.log.borrow().needs_roll(header.bytes, records, wall);
            if rolls {
                self.roll();
            }
            let start = self.0.log.borrow().log_end();
            let need = self.0.staged.borrow().need(start, header.bytes as usize);
            match need {
                Need::Nothing => return Ok(()),
                Need::Memory(bytes) => {
                    let bytes = bytes.min(self.0.common.stage_bytes_max(header.bytes as usize));
                    let memory = match self.0.common.ring.try_lease(bytes) {
                        Some(memory) => memory,
                        None => {
                            self.0.common.shrink_tail_caches(bytes);
                            let lease = self.0.common.ring.lease(bytes).await;
                            lease.map_err(|e| AppendError::NoMemory(e.to_string()))?
                        }
                    };
                    self.0.staged.borrow_mut().supply(memory);
                }
                Need::Block(position) => self.prime(position).await?,
                Need::Window { segment, at, bytes } => self.open_window(segment, at, bytes).await?,
            }
        }
    }

    /// Reads back the block that the log end lies in.
    async fn prime(&self, position: Position) -> Result<(), AppendError> {
        let end = self.0.log.borrow().log_end();
        let ring = &self.0.common.ring;
        let fail = |e: std::io::Error| AppendError::NoMemory(e.to_string());
        let memory = ring.lease(16 << 10).await.map_err(fail)?;
        let path = self.0.files.borrow().path(end.segment, Ext::Log);
        let file = ring.open(&path, OpenOptions::default()).await;
        let file = file.map_err(|e| match is_passing(&e) {
            true => AppendError::Exhausted(format!("{self}: reading back the log end: {e}")),
            false => self.fail(format!("reading back the log end: {e}")),
        })?;
        let mut memory = memory;
        let rest = memory.split_off(BLOCK_BYTES);
        let (read, block) = ring.read(&file, position.0, memory).await;
        let mut memory = block;
        let wanted = end.position.since(position);
        match read {
            Ok(n) if n as u64 >= wanted => {}
            Ok(n) => {
                let path = path.display();
                return Err(self.fail(format!(
                    "{path} ends at {}, expected {}",
                    position.0 + n as u64,
                    end.position
                )));
            }
            Err(e) => {
                return Err(
                    self.fail(format!("{}: reading back the log end at {position}: {e}", path.display()))
                );
            }
        }
        memory.unsplit(rest);
        // Another append may have done the same meanwhile.
        let still = self.0.log.borrow().log_end() == end;
        if still && self.0.staged.borrow().need(end, 1) == Need::Block(position) {
            self.0.staged.borrow_mut().prime(end, memory);
        }
        Ok(())
    }

    fn stage(&self, batch: Lease, placement: Placement, ack: Option<Ack>, received: Moment) -> Ticket {
        let bytes = batch.len() as u64;
        let now = self.0.common.ring.now();
        let copied = self.0.staged.borrow_mut().accept(batch, placement.start, placement.end, now);
        if self.0.common.config.ingress.receives() == Receives::Spliced {
            self.0.common.transfers.note_ingress_fallback(bytes);
        }
        self.0.common.transfers.note_ingress(bytes, copied);
        self.accepted(bytes, &placement, ack, received, now)
    }

    /// A batch has its place in the log and in the stage.
    pub(super) fn accepted(
        &self,
        bytes: u64,
        placement: &Placement,
        ack: Option<Ack>,
        received: Moment,
        now: Moment,
    ) -> Ticket {
        if self.0.common.ingress_lacks().is_some() {
            self.0.common.transfers.note_ingress_fallback(bytes);
        }
        self.0.common.stages.note(Stage::Accept, now.nanos_since(received));
        self.0.unwritten_bytes.set(self.0.unwritten_bytes.get() + bytes);
        self.touch();
        let ack = ack.unwrap_or(self.0.config.ack);
        if ack == Ack::Durable {
            self.0.sync_wanted.set(self.0.sync_wanted.get().max(placement.end.offset));
        }
        // What may be seen before it is safe, and lost, must leave a trace: the next start begins an epoch where it woke.
        let leaves_trace = self.0.config.ack == Ack::Durable || self.0.sleep.get() == Sleep::Awake;
        match leaves_trace && self.0.common.takes_to_journal(bytes, ack) {
            true => self.0.common.journal.enlist(self, bytes),
            false => self.0.reach.borrow_mut().go_direct(placement.end),
        }
        self.show();
        self.wake_task();
        Ticket {
            partition: self.clone(),
            base_offset: placement.start.offset,
            epoch: placement.epoch,
            append_time: Timestamp::NONE,
            end: placement.end,
            ack,
            generation: self.0.generation.get(),
        }
    }

    fn roll(&self) {
        let base = self.0.log.borrow_mut().roll();
        self.0.files.borrow_mut().push(base, false);
        self.wake_task();
    }

    async fn wait_for_room(&self) {
        let mut waited = false;
        std::future::poll_fn(|cx| {
            let hindered = self.0.hindrance.borrow().is_some();
            if waited || hindered || self.0.unwritten_bytes.get() <= UNWRITTEN_BYTES_MAX {
                return std::task::Poll::Ready(());
            }
            waited = true;
            self.0.room_waiters.add(cx.waker());
            std::task::Poll::Pending
        })
        .await;
    }

    /// Cuts the log at the batch boundary at or below `to`, for good; appends that were beyond it get
    /// [`AppendError::Moved`]. A local log begins a new epoch, stored before this returns.
    ///
    /// # Errors
    /// See [`TruncateError`].
    pub async fn truncate_to(&self, to: Offset) -> Result<Offset, TruncateError> {
        // Nobody is given a place in the log meanwhile, and nobody prepares room in a file that is about to be replaced.
        let turn = self.take_turn();
        turn.comes().await;
        let _cutting = Cutting::new(self);
        self.quiesce().await?;
        let marks = self.marks();
        if to < marks.log_start || to > marks.log_end.offset {
            let (log_start, log_end) = (marks.log_start, marks.log_end.offset);
            return Err(TruncateError::OutOfRange { to, log_start, log_end });
        }
        let at = self.boundary_at(to, marks.log_end).await?;
        self.prepare_cut(at.offset).await?;
        self.cut_file(at).await?;
        let cut = self.0.log.borrow_mut().truncate_to(at);
        self.moved(&cut.removed_segments);
        self.0.log.borrow_mut().set_prepared(at.position);
        self.remove_files(&cut.removed_segments).await?;
        self.store_epochs().await?;
        self.0.unrecorded.set(false);
        self.record();
        self.wake_task();
        Ok(at.offset)
    }

    /// Makes sure that a start in the middle of a cut, or after it, takes nothing for lost or there that is cut: what the journal
    /// has of it is void, and no recovery point on the disk lies beyond.
    async fn prepare_cut(&self, to: Offset) -> std::io::Result<()> {
        self.void_journaled().await;
        self.wake().await?;
        self.0.unrecorded.set(true);
        self.0.common.manifest.mark(&self.entry()).await;
        self.0.recovery_limit.set(to);
        self.show();
        let written = self.0.common.shard().checkpoint().await;
        if written.is_err() {
            self.0.recovery_limit.set(Offset(i64::MAX));
        }
        written
    }

    /// Cuts a segment's file by a new one in its place. Sockets may hold pages of the old one, and plans may still read it:
    /// cut in place, what they have under way would turn into zeros, and then into what is appended there next.
    async fn cut_file(&self, at: LogPoint) -> std::io::Result<()> {
        let ring = &self.0.common.ring;
        let (path, index, time_index) = {
            let files = self.0.files.borrow();
            let path = |ext| files.path(at.segment, ext);
            (path(Ext::Log), path(Ext::Index), path(Ext::TimeIndex))
        };
        // One that has them is believed to end where it ends, and to be sealed.
        ring.remove(&index).await?;
        ring.remove(&time_index).await?;
        match ring.cut_anew(&path, at.position.0).await {
            // A segment that nothing was written to yet may have no file.
            Err(error) if at.position == Position(0) && error.kind() == std::io::ErrorKind::NotFound => {}
            cut => self.mind_flush(at.segment, at.position, cut)?,
        }
        if let Some(entry) = self.0.files.borrow_mut().get_mut(at.segment) {
            (entry.writer, entry.reader) = (None, None);
            (entry.dirty, entry.finished, entry.indexed) = (false, false, false);
        }
        Ok(())
    }

    /// Drops everything; the log starts empty at `offset`.
    ///
    /// # Errors
    /// See [`TruncateError`].
    pub async fn reset_to(&self, offset: Offset) -> Result<(), TruncateError> {
        // As for a cut: what is received meanwhile would else lie in the log that begins here.
        let turn = self.take_turn();
        turn.comes().await;
        let _cutting = Cutting::new(self);
        self.quiesce().await?;
        self.prepare_cut(offset).await?;
        let removed = self.0.log.borrow_mut().reset_to(offset);
        self.moved(&removed);
        // Kept aside under their names until gone: the new segment may bear the name of an old one.
        self.remove_files(&removed).await?;
        self.remove_owed().await?;
        self.0.files.borrow_mut().push(offset, false);
        self.store_epochs().await?;
        self.0.unrecorded.set(false);
        self.record();
        self.0.common.request_checkpoint();
        self.wake_task();
        Ok(())
    }

    /// Moves the log start forward; segments wholly below it are removed. What it moved past may be back after a crash
    /// until the checkpoints are written: [`super::Shard::checkpoint`].
    ///
    /// # Errors
    /// Beyond the high watermark, or what the disk said.
    pub async fn advance_log_start(&self, to: Offset) -> Result<(), TruncateError> {
        let removed = self.move_log_start(to)?;
        self.owe_removal(&removed);
        self.record_log_start();
        self.0.common.request_checkpoint();
        if self.owes_removal() {
            self.0.common.manifest.sync().await;
        }
        Ok(self.remove_owed().await?)
    }

    /// Moves the log start in memory; says which segments are below it. Their files are still there.
    pub(super) fn move_log_start(&self, to: Offset) -> Result<Vec<Offset>, TruncateError> {
        let stored = self.0.reach.borrow().stored_durable().offset;
        let moved = self.0.log.borrow_mut().advance_log_start(to, stored);
        let removed = moved.map_err(|_| {
            let marks = self.marks();
            TruncateError::OutOfRange { to, log_start: marks.log_start, log_end: marks.high_watermark.offset }
        })?;
        self.show();
        for &base in &removed {
            self.0.files.borrow_mut().remove(base);
        }
        if stored < to {
            // The rest goes when it is where it is to be removed from.
            self.0.reach.borrow_mut().destage_all();
            self.wake_task();
        }
        Ok(removed)
    }

    /// Wakes it where retention is about to seal its last segment.
    pub(super) async fn wake_if_old(&self) -> std::io::Result<()> {
        let now = self.0.common.ring.wall_clock();
        let old = self.check_open().is_ok() && self.0.log.borrow().active_is_old(now);
        if old { self.wake().await } else { Ok(()) }
    }

    /// Where retention wants the log start to be, if it is further on. Seals the active segment when that is due, so
    /// that old records go from a partition that nobody appends to as well.
    pub(super) fn retention_due(&self) -> Option<Offset> {
        if self.check_open().is_err() {
            return None;
        }
        let now = self.0.common.ring.wall_clock();
        // Not while somebody receives into the tail: the next look comes.
        if self.has_no_turns()
            && !self.owes()
            && !self.0.splicing.has_debris()
            && self.0.log.borrow().active_is_old(now)
        {
            self.roll();
        }
        let due = self.0.log.borrow().retention(now);
        due.or_else(|| self.has_leftovers().then(|| self.marks().log_start))
    }

    /// Whether segments wholly below the log start are there that were not in their files for good when it moved.
    fn has_leftovers(&self) -> bool {
        let stored = self.0.reach.borrow().stored_durable().offset;
        let log = self.0.log.borrow();
        log.segments().get(1).is_some_and(|next| next.base <= stored.min(log.log_start()))
    }

    /// Sets the high watermark from outside, for a partition whose epochs are somebody else's.
    pub fn set_high_watermark(&self, offset: Offset) {
        self.0.log.borrow_mut().set_high_watermark_offset(offset);
        self.show();
        self.wake_watchers();
    }

    fn moved(&self, removed: &[Offset]) {
        let end = self.0.log.borrow().log_end();
        self.0.generation.set(self.0.generation.get() + 1);
        *self.0.staged.borrow_mut() = Staged::new(self.0.common.config.ingress, end);
        self.0.owed.torn.replace(None); // It goes with what is cut.
        self.0.splicing.forget();
        self.0.reach.replace(Reach::new(end));
        self.0.recovery_limit.set(Offset(i64::MAX));
        self.0.unwritten_bytes.set(0);
        self.0.sync_wanted.set(self.0.sync_wanted.get().min(end.offset));
        self.0.checkpointed.set(end);
        for &base in removed {
            self.0.files.borrow_mut().remove(base);
        }
        self.show();
        self.0.ack_waiters.wake_all();
        self.wake_watchers();
        self.0.room_waiters.wake_all();
    }

    /// Waits until everything accepted is written and flushed.
    async fn quiesce(&self) -> Result<(), AppendError> {
        loop {
            self.check_open()?;
            let marks = self.marks();
            let busy =
                self.0.unit_under_way.get() || self.0.flush_under_way.get() || self.0.chore_under_way.get();
            if self.0.reach.borrow().is_settled(marks.log_end) && !busy {
                return Ok(());
            }
            self.0.sync_wanted.set(marks.log_end.offset);
            self.0.reach.borrow_mut().want_stored(marks.log_end.offset, true);
            self.go_direct();
            let mut waited = false;
            std::future::poll_fn(|cx| {
                if std::mem::replace(&mut waited, true) {
                    return std::task::Poll::Ready(());
                }
                self.0.ack_waiters.add(cx.waker());
                std::task::Poll::Pending
            })
            .await;
        }
    }

    async fn remove_files(&self, bases: &[Offset]) -> std::io::Result<()> {
        for &base in bases {
            self.0.files.borrow_mut().remove(base);
        }
        self.remove_paths(bases).await
    }

    /// Segments that the log has let go of and whose files are still there.
    pub(super) fn owe_removal(&self, bases: &[Offset]) {
        self.0.unremoved.borrow_mut().extend_from_slice(bases);
    }

    pub(super) fn owes_removal(&self) -> bool {
        !self.0.unremoved.borrow().is_empty()
    }

    /// Removes the files that are owed; what cannot be removed stays owed.
    pub(super) async fn remove_owed(&self) -> std::io::Result<()> {
        let owed = self.0.unremoved.take();
        for (index, base) in owed.iter().enumerate() {
            if self.0.state.get() == State::Closed {
                break; // Its directory goes, or has gone.
            }
            if let Err(error) = self.remove_paths(&[*base]).await {
                self.owe_removal(&owed[index..]);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn remove_paths(&self, bases: &[Offset]) -> std::io::Result<()> {
        self.0.common.transfers.drop_closed();
        for &base in bases {
            for ext in [Ext::Index, Ext::TimeIndex, Ext::Log] {
                let path = self.0.files.borrow().path(base, ext);
                self.0.common.ring.remove(&path).await?;
            }
        }
        Ok(())
    }

    /// Stores where each epoch begins. What could not be stored is owed before the next append.
    pub(super) async fn store_epochs(&self) -> std::io::Result<()> {
        let path = self.0.files.borrow().dir().join(EPOCHS_FILE);
        let text = self.0.log.borrow().epochs().format();
        let stored = match self.0.common.replace_at_need(&path, text.into_bytes()).await {
            Ok(()) => self.keep_dir().await,
            failed => failed,
        };
        self.0.owed.epochs.set(stored.is_err());
        self.0.epochs_unstored.set(stored.is_err());
        stored
    }

    pub(super) fn check_open(&self) -> Result<(), AppendError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        match self.0.state.get() {
            State::Open => Ok(()),
            State::Draining | State::Closed => Err(AppendError::Closed),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.state.get() == State::Closed
    }

    pub(super) fn failure(&self) -> Option<AppendError> {
        if let Some(why) = &*self.0.failure.borrow() {
            return Some(AppendError::Failed(why.clone()));
        }
        self.is_closed().then_some(AppendError::Closed)
    }

    /// Takes no more appends, for good: what happened is said to everybody who waits.
    pub(super) fn fail(&self, why: String) -> AppendError {
        let why = format!("{self}: {why}");
        if self.0.failure.borrow().is_none() {
            tracing::error!("{why}; the partition serves what it has and takes no more appends");
            *self.0.failure.borrow_mut() = Some(why.clone());
        }
        self.wake_everybody();
        AppendError::Failed(why)
    }

    /// Bytes up to `now` are written.
    pub(super) fn note_written(&self, before: LogPoint, now: LogPoint) {
        let written = match before.segment == now.segment {
            true => now.position.since(before.position),
            false => now.position.0,
        };
        self.0.unwritten_bytes.set(self.0.unwritten_bytes.get().saturating_sub(written));
    }

    pub(super) fn count_stop_retry(&self) -> u32 {
        self.0.stop_retries.replace(self.0.stop_retries.get() + 1)
    }

    /// A file or directory of ours was removed by somebody, and with it what we were about to promise. So it must be when
    /// the topic was deleted; else no append may go where nobody will find it.
    pub(super) fn lose(&self, path: &Path) {
        if self.0.state.get() == State::Closed {
            return;
        }
        let marks = self.marks();
        let (durable, end) = (marks.durable.offset, marks.log_end.offset);
        self.fail(format!(
            "{} was removed by somebody else while in use, with what was written up to position {}; offsets {durable} \
             to {end} are promised to nobody",
            path.display(),
            self.0.reach.borrow().stored().position
        ));
    }

    /// A flush that failed within a larger job is as bad as any other: the kernel says it once, and asking again would
    /// be told that all is well.
    pub(super) fn mind_flush(
        &self,
        segment: Offset,
        to: Position,
        result: std::io::Result<()>,
    ) -> std::io::Result<()> {
        if let Err(error) = &result
            && is_failed_flush(error)
        {
            let path = self.0.files.borrow().path(segment, Ext::Log);
            self.0
                .common
                .fail_all(&format!("{self}: making {} end at position {to}: {error}", path.display()));
        }
        result
    }

    /// Tells those who wait for more, here and elsewhere.
    fn wake_watchers(&self) {
        self.board().note_move();
        self.0.watchers.wake_all();
    }

    pub(super) fn wake_everybody(&self) {
        self.0.ack_waiters.wake_all();
        self.wake_watchers();
        self.0.room_waiters.wake_all();
        self.wake_task();
    }

    pub(super) fn wait_for_ack(&self, waker: &Waker) {
        self.0.ack_waiters.add(waker);
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.generation.get()
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.0.files.borrow().dir().to_owned()
    }

    pub(super) fn wake_task(&self) {
        if !self.0.task_runs.get() && self.0.state.get() != State::Closed {
            self.0.task_runs.set(true);
            let partition = self.clone();
            self.0.common.ring.spawn(super::commit::run(partition));
        }
        if let Some(waker) = &*self.0.task.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Sends what the high watermark follows to where it belongs, and tells who waits.
    pub(super) fn marks_moved(&self, old: LogPoint) {
        self.show();
        let marks = self.marks();
        if marks.high_watermark != old {
            self.wake_watchers();
        }
        self.0.ack_waiters.wake_all();
    }
}

/// Keeps chores away while it lives.
pub(super) struct Cutting<'a>(&'a Partition);

impl<'a> Cutting<'a> {
    pub(super) fn new(partition: &'a Partition) -> Cutting<'a> {
        partition.0.cutting.set(true);
        Cutting(partition)
    }
}

impl Drop for Cutting<'_> {
    fn drop(&mut self) {
        self.0.0.cutting.set(false);
        self.0.wake_task();
    }
}

/// Kafka's name for the file of epoch starts.
pub(super) const EPOCHS_FILE: &str = "leader-epoch-checkpoint";

/// `topic-index`, as its directory is called.
impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.topic, self.0.id.index)
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition({self}, {:?})", self.marks())
    }
}

pub(super) fn partition_dir(data_dir: &Path, topic: &str, index: i32) -> PathBuf {
    data_dir.join(log::partition_dir_name(topic, index))
}
