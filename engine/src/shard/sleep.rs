//! Sleep: a partition that nobody has to do with for a while keeps no open file, no memory for appends and no task.
//!
//! Its segments are flushed, cut to size and indexed then, and the manifest says how they are, so that a start need not look
//! at them. Reading does not wake it: what a reader opened is closed again when it next falls asleep. Who is about to write
//! to its segments wakes it first.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use super::commit::finish_segment;
use super::partition::{Cutting, Inner, Partition, State};
use super::recovery::is_whole;
use super::shard::Shard;
use super::side_by_side::side_by_side;
use super::topics::METADATA_FILE;
use crate::log::{Ext, PartitionMetadata};
use crate::sys::{OpenOptions, is_passing};
use crate::transfer::Staged;
use crate::types::Position;

/// Partitions that fall asleep side by side.
const AT_A_TIME: usize = 16;
/// How long one may take to bring what it has to its segments, until the next gets its turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where more than this many of a shard's partitions have files open or memory, those that nobody had to do with for
/// [`SHORT`] let go of that.
const RESTLESS_MAX: usize = 2048;
const SHORT: Duration = Duration::from_millis(100);

/// How a partition's segments stand to what the manifest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sleep {
    /// They are as it says, and nobody changes them.
    Asleep,
    /// So they still are, but it is about to say that they may change.
    Waking,
    /// They may have changed.
    Awake,
}

/// Puts partitions to sleep that were not touched since the last look, until the shard stops.
pub(super) async fn run(shard: Shard) {
    loop {
        let many = shard.0.common.restless.borrow().len() > RESTLESS_MAX;
        let pause = if many { SHORT } else { shard.config().sleep_after };
        if shard.stops_within(pause).await {
            return;
        }
        shard.put_to_sleep().await;
    }
}

impl Shard {
    /// Puts this shard's partitions to sleep that nobody had to do with since this was last called.
    pub async fn put_to_sleep(&self) {
        let common = &self.0.common;
        let tired: VecDeque<_> = {
            let restless = common.restless.borrow();
            let there = restless.iter().filter_map(Weak::upgrade).map(Partition);
            there.filter(|partition| !partition.0.touched.replace(false)).collect()
        };
        let slept = tired.len();
        side_by_side(self.ring(), AT_A_TIME, tired, async |partition: Partition| {
            if let Err(error) = partition.fall_asleep().await {
                tracing::warn!("{partition}: {error}; it stays awake");
            }
        })
        .await;
        let is_restless = |known: &Weak<Inner>| known.upgrade().is_some_and(|inner| !inner.lean.get());
        common.restless.borrow_mut().retain(is_restless);
        if slept > 0 {
            self.0.common.manifest.sync().await;
        }
    }
}

impl Partition {
    /// Whether nothing is under way, or wanted, and all lies in segments for good.
    pub(super) fn is_quiet(&self) -> bool {
        let busy = self.0.unit_under_way.get()
            || self.0.flush_under_way.get()
            || self.0.chore_under_way.get()
            || self.0.splicing.is_under_way()
            || self.is_settling();
        !busy && self.0.reach.borrow().is_settled(self.marks().log_end)
    }

    /// Whether it sleeps, and nothing was appended since.
    pub(super) fn is_at_rest(&self) -> bool {
        self.0.sleep.get() == Sleep::Asleep && self.0.reach.borrow().is_settled(self.0.log.borrow().log_end())
    }

    /// Lets go of everything that it can be served without.
    async fn fall_asleep(&self) -> io::Result<()> {
        if !self.has_no_turns() {
            return Ok(()); // Somebody appends, or receives into what would be let go of.
        }
        if self.is_at_rest() {
            // Only readers had to do with it.
            self.let_go();
            return Ok(());
        }
        let apart = self.owes() || self.0.splicing.has_debris() || !self.0.log.borrow().fenced().is_empty();
        if self.check_open().is_err() || apart || self.0.sleep.get() == Sleep::Waking {
            return Ok(());
        }
        if !self.is_quiet() {
            // What only the journal has goes to segments, flushed.
            self.0.reach.borrow_mut().destage_all();
            self.wake_task();
            self.wait_until_quiet().await;
        }
        if !self.has_no_turns() {
            return Ok(());
        }
        // Nobody appends meanwhile.
        let turn = self.take_turn();
        turn.comes().await;
        let _cutting = Cutting::new(self);
        if self.check_open().is_err() || !self.is_quiet() || self.0.touched.get() || self.owes_removal() {
            return Ok(());
        }
        // Who drains waits for the end of this.
        self.0.chore_under_way.set(true);
        let finished = self.finish_all().await;
        self.0.chore_under_way.set(false);
        if finished.is_ok() && self.0.state.get() == State::Open {
            self.note_asleep();
            self.let_go();
        }
        self.0.ack_waiters.wake_all();
        finished
    }

    /// Makes all of its files as they are to lie while it sleeps.
    async fn finish_all(&self) -> io::Result<()> {
        if self.0.epochs_unstored.get() {
            self.store_epochs().await?;
        }
        let bases: Vec<_> = {
            let files = self.0.files.borrow();
            files.iter().filter(|file| !file.finished && !file.indexed).map(|file| file.base).collect()
        };
        for base in bases {
            let finished = finish_segment(self, base).await;
            let active = self.0.log.borrow().active().base == base;
            if finished.is_err() && active {
                // It goes on being appended to: its file may have been cut to size, and indexes of it would grow stale.
                let end = self.marks().log_end;
                self.0.log.borrow_mut().set_prepared(end.position);
                *self.0.staged.borrow_mut() = Staged::new(self.0.common.config.ingress, end);
                self.0.common.recount(self);
                for ext in [Ext::Index, Ext::TimeIndex] {
                    let path = self.0.files.borrow().path(base, ext);
                    self.0.common.ring.remove(&path).await?;
                }
            }
            finished?;
        }
        Ok(())
    }

    /// Waits until it is quiet, or for a while.
    async fn wait_until_quiet(&self) {
        let mut enough = pin!(self.0.common.ring.sleep(PATIENCE));
        poll_fn(|cx| {
            if self.is_quiet() || self.0.touched.get() || self.check_open().is_err() {
                return Poll::Ready(());
            }
            self.wait_for_ack(cx.waker());
            enough.as_mut().poll(cx)
        })
        .await;
    }

    /// All of it lies in segments that are finished, the last one, too.
    pub(super) fn note_asleep(&self) {
        let mut log = self.0.log.borrow_mut();
        let end = log.log_end();
        log.set_prepared(end.position);
        if let Some(active) = self.0.files.borrow_mut().get_mut(end.segment) {
            active.finished = false;
        }
        drop(log);
        self.0.sleep.set(Sleep::Asleep);
        self.0.common.manifest.push(&self.entry());
    }

    fn let_go(&self) {
        self.0.lean.set(true);
        {
            let mut files = self.0.files.borrow_mut();
            files.close();
            files.note_recorded();
        }
        self.0.log.borrow_mut().let_go_of_indexes();
        *self.0.staged.borrow_mut() = Staged::new(self.0.common.config.ingress, self.marks().log_end);
        self.0.common.recount(self);
        self.wake_task();
    }

    /// Its segments may change from here on: that is in the manifest, for good, when this returns.
    ///
    /// # Errors
    /// What the disk said when indexes were to be removed that are about to be wrong.
    pub(super) async fn wake(&self) -> io::Result<()> {
        if self.0.sleep.get() == Sleep::Awake {
            return Ok(());
        }
        let turn = self.0.waking.take();
        turn.comes().await;
        if self.0.sleep.get() == Sleep::Awake {
            return Ok(());
        }
        self.touch();
        self.make_dir().await?;
        // They may grow stale, and a start without a manifest would believe them.
        let indexed: Vec<_> = {
            let files = self.0.files.borrow();
            files.iter().filter(|file| file.indexed && !file.finished).map(|file| file.base).collect()
        };
        for base in indexed {
            if let Err(error) = self.load_indexes(base).await {
                if is_passing(&error) {
                    return Err(error);
                }
                tracing::warn!("{self}: {error}; its index begins where appends go on");
            }
            let paths = {
                let files = self.0.files.borrow();
                [files.path(base, Ext::Index), files.path(base, Ext::TimeIndex)]
            };
            for path in paths {
                self.0.common.ring.remove(&path).await?;
            }
            if let Some(file) = self.0.files.borrow_mut().get_mut(base) {
                file.indexed = false;
            }
        }
        self.0.sleep.set(Sleep::Waking);
        self.0.common.manifest.mark(&self.entry()).await;
        if let Some(failure) = self.failure() {
            return Err(io::Error::other(failure.to_string()));
        }
        self.0.sleep.set(Sleep::Awake);
        Ok(())
    }

    /// Makes its directory, if it is about to hold the first of its bytes: one that never had any has none.
    async fn make_dir(&self) -> io::Result<()> {
        // Where the log begins tells nothing: it may have been moved while only the journal had any of it.
        if self.0.reach.borrow().stored().position > Position(0) {
            return Ok(());
        }
        let (ring, dir) = (&self.0.common.ring, self.dir());
        // Names survive power loss once there is something to lose: with the first flush.
        self.0.dir_is_new.set(true);
        ring.make_dir_unsynced(&dir).await?;
        let metadata = dir.join(METADATA_FILE);
        // Half of one, left by power loss before the first flush, is made again here, and by a start that walks.
        if !is_whole(ring, &metadata).await? {
            let text = PartitionMetadata { topic_id: self.id().topic }.format();
            if let Err(error) = ring.replace_unsynced(&metadata, text.into_bytes()).await {
                tracing::warn!("{error}; the registry says the same");
            }
        }
        Ok(())
    }

    /// Has the name of its directory, and what says whose it is, survive power loss.
    pub(super) async fn keep_dir(&self) -> io::Result<()> {
        if self.0.dir_is_new.get() {
            let ring = &self.0.common.ring;
            ring.sync_dir(&self.0.common.config.data_dir).await?;
            self.0.dir_is_new.set(false);
            match ring.open(&self.dir().join(METADATA_FILE), OpenOptions::default()).await {
                Ok(file) => ring.sync(&file).await?,
                Err(error) => tracing::warn!("{error}; the registry says the same"),
            }
        }
        Ok(())
    }

    /// Somebody has to do with it: it is not put to sleep for a while, or lets go of what that takes.
    pub(super) fn touch(&self) {
        self.0.touched.set(true);
        if self.0.lean.replace(false) {
            let restless = &mut *self.0.common.restless.borrow_mut();
            // It may have gone to sleep a moment ago.
            let this = Rc::downgrade(&self.0);
            if !restless.iter().rev().take(AT_A_TIME).any(|known| known.ptr_eq(&this)) {
                restless.push(this);
            }
        }
    }

    /// Has the manifest say where the log begins, before files go that lie below.
    pub(super) fn record_log_start(&self) {
        if !self.0.unrecorded.get() {
            self.0.common.manifest.push(&self.entry());
        }
    }

    /// Has the manifest say how far it can be trusted by now.
    pub(super) fn record(&self) {
        if self.0.sleep.get() == Sleep::Awake && !self.0.unrecorded.get() {
            self.0.common.manifest.push(&self.entry());
        }
    }
}
