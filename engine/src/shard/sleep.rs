//! Sleep: a partition that nobody has to do with for a while keeps no open file, no memory for appends and no task.
//!
//! Its segments are flushed, cut to size and indexed then, and the manifest says how they are, so that a start need not look
//! at them. Reading does not wake it: what a reader opened is closed again when it next falls asleep. Who is about to write
//! to its segments wakes it first.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::commit::finish_segment;
use super::partition::{Cutting, Partition, State};
use super::shard::Shard;
use crate::log::Ext;
use crate::transfer::Staged;

/// Partitions that fall asleep one after the other before others get their turn.
const AT_A_TIME: usize = 16;
/// Where more than this many of a shard's partitions are awake, those that nobody had to do with for [`SHORT`] fall asleep:
/// each has descriptors.
const AWAKE_MAX: usize = 2048;
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
        let many =
            shard.own_partitions().iter().filter(|partition| !partition.0.lean.get()).count() > AWAKE_MAX;
        let pause = if many { SHORT } else { shard.config().sleep_after };
        let mut sleep = pin!(shard.ring().sleep(pause));
        let mut stop = pin!(shard.stopping());
        let stopped = poll_fn(|cx| match stop.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => sleep.as_mut().poll(cx).map(|()| false),
        });
        if stopped.await {
            return;
        }
        shard.put_to_sleep().await;
    }
}

impl Shard {
    /// Puts this shard's partitions to sleep that nobody had to do with since this was last called.
    pub async fn put_to_sleep(&self) {
        let mut slept = 0;
        for partition in self.own_partitions() {
            if partition.0.touched.replace(false) || partition.0.lean.get() || self.is_stopping() {
                continue;
            }
            if let Err(error) = partition.fall_asleep().await {
                tracing::warn!("{partition}: {error}; it stays awake");
            }
            slept += 1;
            if slept % AT_A_TIME == 0 {
                self.ring().sleep(Duration::ZERO).await;
            }
        }
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
            // What only the journal has goes to segments, flushed; perhaps it is there when this is next asked.
            self.0.reach.borrow_mut().destage_all();
            self.wake_task();
            return Ok(());
        }
        // Nobody appends meanwhile.
        let turn = self.take_turn();
        turn.comes().await;
        let _cutting = Cutting::new(self);
        if self.check_open().is_err() || !self.is_quiet() || self.0.touched.get() || self.owes_removal() {
            return Ok(());
        }
        let bases: Vec<_> = {
            let files = self.0.files.borrow();
            files.iter().filter(|file| !file.finished && !file.indexed).map(|file| file.base).collect()
        };
        for base in bases {
            finish_segment(self, base).await?;
        }
        if self.0.epochs_unstored.get() {
            self.store_epochs().await?;
        }
        if self.0.state.get() == State::Open {
            self.note_asleep();
            self.let_go();
        }
        Ok(())
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
        let base = self.0.reach.borrow().stored_durable().segment;
        let indexed = self.0.files.borrow().get(base).is_some_and(|file| file.indexed);
        if indexed {
            self.load_indexes(base).await?;
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
        self.0.sleep.set(Sleep::Awake);
        Ok(())
    }

    /// Somebody has to do with it: it is not put to sleep for a while, or lets go of what that takes.
    pub(super) fn touch(&self) {
        self.0.touched.set(true);
        self.0.lean.set(false);
    }

    /// Has the manifest say how far it can be trusted by now.
    pub(super) fn record(&self) {
        if self.0.sleep.get() == Sleep::Awake && !self.0.unrecorded.get() {
            self.0.common.manifest.push(&self.entry());
        }
    }
}
