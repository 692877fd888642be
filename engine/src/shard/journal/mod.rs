//! The shard's journal: where small durable appends of all its partitions go, in one write and one flush a round.
//!
//! What partitions have for a round is put together in one unit, written and flushed, and everybody who waited for it is told;
//! what arrives meanwhile is the next round. A partition that has more for a round than
//! [`JournalConfig::round_bytes_max`] does not take part: its batches go to its segment directly, which costs less than
//! writing them twice. A journal is read at a start ([`super::replay`]), never otherwise: what it holds is in the memory that it
//! will be destaged from.
//!
//! | file | holds |
//! |---|---|
//! | `round` | gathering, writing, flushing, telling |
//! | `files` | which file is written to; when one may be used again, and what moves its bytes to segments |

mod files;
mod round;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::Poll;

use self::files::Files;
pub(super) use self::files::{JOURNAL_DIR, LastFrame, remove_dir};
use super::acks::Ack;
use super::partition::Partition;
use super::shard::{Common, Shard};
use super::wakers::Wakers;
use crate::log::{JOURNAL_BLOCK, UNIT_BYTES_MAX};
use crate::sys::Moment;

/// Bytes that wait for a second round to be made beside one that is under way.
const OVERLAP_BYTES: u64 = 64 << 10;
/// Below this a file would hold too few rounds.
const FILE_BYTES_MIN: u64 = 64 << 10;

/// How large a journal is, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files of a shard: with all of them full, appends go to their segments directly.
    pub files_max: usize,
    /// The largest batch that goes through it; larger ones go to their segments directly.
    pub batch_bytes_max: u64,
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
            batch_bytes_max: 64 << 10,
            round_bytes_max: 512 << 10,
            destage_bytes: 4 << 20,
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
        if self.batch_bytes_max > self.round_bytes_max {
            return Err(format!(
                "batches of {} bytes in the journal, and {} bytes of a partition in a round of it",
                self.batch_bytes_max, self.round_bytes_max
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
    /// It takes nothing any more: a write or a flush of it failed.
    broken: Cell<bool>,
    /// Who has something for the next round.
    pending: RefCell<VecDeque<Partition>>,
    /// About how many bytes that is.
    pending_bytes: Cell<u64>,
    /// Whose earlier frames are to count no more.
    voids: RefCell<VecDeque<Partition>>,
    files: RefCell<Files>,
    /// Somebody puts a unit together, or looks for a file for it.
    gathering: Cell<bool>,
    /// Partitions that were being moved to their segments when that was last looked after.
    destages: Cell<usize>,
    /// Rounds under way.
    rounds: Cell<u32>,
    /// The last unit that was begun, the last that is written, and the last that is flushed: in order.
    begun: Cell<u64>,
    written: Cell<u64>,
    flushed: Cell<u64>,
    lanes: Wakers,
    destager: Wakers,
    maker: Wakers,
    /// When a file may be made again after that went wrong.
    retry_at: Cell<Moment>,
    counters: Cell<JournalCounters>,
    stopping: Cell<bool>,
    /// Tasks that serve it.
    tasks: Cell<u32>,
}

impl Journal {
    pub(super) fn new(enabled: bool) -> Journal {
        Journal {
            enabled,
            broken: Cell::new(false),
            pending: RefCell::new(VecDeque::with_capacity(64)),
            pending_bytes: Cell::new(0),
            voids: RefCell::default(),
            files: RefCell::default(),
            gathering: Cell::new(false),
            rounds: Cell::new(0),
            destages: Cell::new(0),
            begun: Cell::new(0),
            written: Cell::new(0),
            flushed: Cell::new(0),
            lanes: Wakers::default(),
            destager: Wakers::default(),
            maker: Wakers::default(),
            retry_at: Cell::default(),
            counters: Cell::default(),
            stopping: Cell::new(false),
            tasks: Cell::new(0),
        }
    }

    /// About how many partitions are being moved to their segments because files are to be free.
    pub(super) fn destages(&self) -> usize {
        self.destages.get()
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
            && bytes <= config.batch_bytes_max
            && !self.broken.get()
            && !self.stopping.get()
    }

    /// The partition has so many bytes more for the next round.
    pub(super) fn enlist(&self, partition: &Partition, bytes: u64) {
        self.pending_bytes.set(self.pending_bytes.get() + bytes);
        if !partition.0.enlisted.replace(true) {
            self.pending.borrow_mut().push_back(partition.clone());
        }
        if self.is_round_due() {
            self.lanes.wake_all();
        }
    }

    fn has_work(&self) -> bool {
        !self.pending.borrow().is_empty() || !self.voids.borrow().is_empty()
    }

    /// Whether a round is to begin: at once when none is under way, else when enough has come for a second one.
    fn is_round_due(&self) -> bool {
        let enough = match self.rounds.get() {
            0 => true,
            _ => self.pending_bytes.get() >= OVERLAP_BYTES,
        };
        enough && !self.gathering.get() && self.has_work()
    }

    /// What waits goes to its segments directly.
    fn send_all_direct(&self) {
        self.pending_bytes.set(0);
        while let Some(partition) = { self.pending.borrow_mut().pop_front() } {
            partition.0.enlisted.set(false);
            partition.go_direct();
        }
    }

    fn leave_out_voids(&self) {
        for partition in self.voids.borrow_mut().drain(..) {
            partition.0.void_wanted.set(false);
            partition.wake_everybody();
        }
    }

    /// It takes nothing any more, and says so to everybody who waits for it.
    fn give_up(&self, common: &Common, why: &str) {
        if !self.broken.replace(true) {
            let id = common.id;
            tracing::error!("journal of shard {id}: {why}; small appends go to their segments directly");
        }
        self.send_all_direct();
        self.leave_out_voids();
        self.wake_all();
    }

    /// Ends its tasks.
    pub(super) fn stop(&self) {
        self.stopping.set(true);
        self.wake_all();
    }

    fn wake_all(&self) {
        [&self.lanes, &self.destager, &self.maker].into_iter().for_each(Wakers::wake_all);
    }
}

impl Partition {
    /// Makes what the journal holds of this partition void: all of it is in segments, which are about to be cut. Where the
    /// journal takes nothing this is left out; the epoch that the cut begins says the same, once it is stored.
    pub(super) async fn void_journaled(&self) {
        let journal = &self.0.common.journal;
        if !journal.files.borrow().hold(self) {
            return;
        }
        self.0.void_wanted.set(true);
        journal.voids.borrow_mut().push_back(self.clone());
        journal.lanes.wake_all();
        poll_fn(|cx| {
            let over = journal.broken.get() || journal.stopping.get() || self.failure().is_some();
            if !self.0.void_wanted.get() || over {
                return Poll::Ready(());
            }
            self.wait_for_ack(cx.waker());
            Poll::Pending
        })
        .await;
    }

    /// What only the journal has goes to its segment.
    pub(super) fn destage(&self) {
        let end = self.0.reach.borrow().framed().offset;
        if self.0.reach.borrow().stored().offset < end {
            self.0.reach.borrow_mut().want_stored(end, false);
            self.wake_task();
        }
    }

    /// All that was appended goes to its segment, and is acknowledged from there.
    pub(super) fn go_direct(&self) {
        let end = self.marks().log_end;
        self.0.reach.borrow_mut().go_direct(end);
        self.wake_task();
    }
}

/// Begins to serve the journal, until [`Common::end_journal`].
pub(super) fn begin(shard: &Shard) {
    let journal = &shard.0.common.journal;
    journal.tasks.set(4);
    for _ in 0..2 {
        serve(shard, |common| async move { round::serve(&common).await });
    }
    serve(shard, |common| async move { files::destage(&common).await });
    serve(shard, |common| async move { files::make_ahead(&common).await });
}

fn serve<F: Future<Output = ()> + 'static>(shard: &Shard, task: impl FnOnce(Rc<Common>) -> F) {
    let common = shard.0.common.clone();
    let task = task(common.clone());
    shard.spawn(async move {
        task.await;
        common.journal.tasks.set(common.journal.tasks.get() - 1);
        common.stop_waiters.wake_all();
    });
}

impl Common {
    /// Ends the journal. If all that it held is in segments its files are removed. Nothing is appended any more.
    pub(super) async fn end_journal(&self, drained: bool) -> io::Result<()> {
        let journal = &self.journal;
        journal.stop();
        poll_fn(|cx| {
            if journal.tasks.get() == 0 {
                return Poll::Ready(());
            }
            self.stop_waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
        // What came last.
        journal.send_all_direct();
        journal.leave_out_voids();
        let files = std::mem::take(&mut *journal.files.borrow_mut());
        match drained {
            true => files.remove(&self.ring).await,
            false => Ok(()),
        }
    }
}
