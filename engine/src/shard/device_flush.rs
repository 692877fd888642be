//! One flush for all partitions of a shard that wait for one: the form to commit between a journal and a flush for each
//! segment, and what many partitions share that are destaged from a journal.
//!
//! It is `syncfs`, and then an `fdatasync` of a file that nobody writes. The first takes what every file got, names and
//! sizes, too, wherever the file system has put them, so nothing has to be known of extents: a first write into room that
//! was only set aside changes metadata, which a bare flush of the device would not cover. It need not be the last thing
//! that reaches the device: ext4 without a journal writes directories behind its flush (`sync_filesystem`), XFS sends
//! none where its log has nothing new (`xfs_fs_sync_fs`). The second always ends in a flush. `syncfs` also waits for what
//! other programs have written to the same file system: a data directory on one of its own does not.
//!
//! The data directory has to be one file system: a partition's directory that is a link or a mount point to another one is
//! not covered.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::wakers::Wakers;
use crate::sys::{File, Moment, Ring};

/// One that takes longer than this waits for others' bytes, most likely,
const SLOW: Duration = Duration::from_secs(1);
/// and for so long nobody who has a choice asks for one.
const AVOIDED: Duration = Duration::from_secs(30);

/// One shard's. Flushes are numbered; one at a time is under way.
pub(super) struct DeviceFlush {
    /// On the file system that is flushed. Kept open: what went wrong since is said to whoever asks through it, also when
    /// another program was told before.
    file: File,
    begun: Cell<u64>,
    done: Cell<u64>,
    under_way: Cell<bool>,
    failed: RefCell<Option<Arc<str>>>,
    /// Until then others write so much to this file system that it is better not asked.
    avoided_until: Cell<Moment>,
    waiters: Wakers,
}

impl DeviceFlush {
    pub(super) fn new(file: File) -> DeviceFlush {
        DeviceFlush {
            file,
            begun: Cell::new(0),
            done: Cell::new(0),
            under_way: Cell::new(false),
            failed: RefCell::default(),
            avoided_until: Cell::new(Moment(0)),
            waiters: Wakers::default(),
        }
    }

    /// How many were begun.
    pub(super) fn count(&self) -> u64 {
        self.begun.get()
    }

    /// Whether it is worth while for who has a choice.
    pub(super) fn is_quick(&self, now: Moment) -> bool {
        self.failed.borrow().is_none() && now >= self.avoided_until.get()
    }

    /// Returns when a flush is done that began after this was called: all that had completed before survives power loss.
    ///
    /// # Errors
    /// What the kernel said, now or at any flush before: what a failed one lost cannot be known.
    pub(super) async fn cover(&self, ring: &Ring) -> Result<(), Arc<str>> {
        let wanted = self.begun.get() + 1;
        loop {
            if let Some(why) = &*self.failed.borrow() {
                return Err(why.clone());
            }
            if self.done.get() >= wanted {
                return Ok(());
            }
            if self.under_way.get() {
                self.ends().await;
            } else {
                self.lead(ring).await;
            }
        }
    }

    /// Makes one, and tells nobody.
    pub(super) async fn now(&self, ring: &Ring) -> io::Result<()> {
        ring.sync_all(&self.file).await?;
        ring.sync(&self.file).await
    }

    /// Makes one, for everybody who waits.
    async fn lead(&self, ring: &Ring) {
        let leading = Leading::begin(self);
        let number = self.begun.get();
        let began = ring.now();
        let made = self.now(ring).await;
        if ring.now().nanos_since(began) > SLOW.as_nanos() as u64 {
            self.avoided_until.set(ring.now().plus(AVOIDED));
        }
        match made {
            Ok(()) => self.done.set(number),
            Err(error) => {
                *self.failed.borrow_mut() = Some(format!("flush of the file system: {error}").into())
            }
        }
        drop(leading);
    }

    async fn ends(&self) {
        let number = self.begun.get();
        poll_fn(|cx| {
            if !self.under_way.get() || self.begun.get() != number {
                return Poll::Ready(());
            }
            self.waiters.add(cx.waker());
            Poll::Pending
        })
        .await;
    }
}

/// Who makes it may be given up meanwhile: somebody else begins another one then.
struct Leading<'a>(&'a DeviceFlush);

impl<'a> Leading<'a> {
    fn begin(flush: &'a DeviceFlush) -> Leading<'a> {
        flush.begun.set(flush.begun.get() + 1);
        flush.under_way.set(true);
        Leading(flush)
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.under_way.set(false);
        self.0.waiters.wake_all();
    }
}
