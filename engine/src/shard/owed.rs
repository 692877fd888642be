//! What a partition owes the disk before its next append, and had no room for when it was opened: what lies behind a torn
//! end is to be kept aside and cut, a new epoch is to be stored. Reading needs neither. Until both are there, appends are
//! refused as on any full disk; they ask again, four times a second at most.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use super::errors::AppendError;
use super::partition::Partition;
use super::recovery::{TornTail, cut};
use super::reserve_file::is_full;
use crate::sys::{Moment, is_passing};

#[derive(Default)]
pub(super) struct Owed {
    pub torn: RefCell<Option<TornTail>>,
    pub epochs: Cell<bool>,
    under_way: Cell<bool>,
    /// What was said last, and until when that is the answer.
    refusal: RefCell<Option<(Moment, AppendError)>>,
}

/// How often the disk is asked again, however many appends come.
const RETRY: Duration = Duration::from_millis(250);

impl Partition {
    pub(super) fn owes(&self) -> bool {
        self.0.owed.epochs.get() || self.0.owed.torn.borrow().is_some()
    }

    pub(super) fn is_settling(&self) -> bool {
        self.0.owed.under_way.get()
    }

    /// Settles what is owed, by whoever has the turn to append.
    pub(super) async fn settle(&self) -> Result<(), AppendError> {
        let now = self.0.common.ring.now();
        if let Some((until, refusal)) = &*self.0.owed.refusal.borrow()
            && now < *until
        {
            return Err(refusal.clone());
        }
        self.0.owed.under_way.set(true);
        let _under_way = UnderWay(self);
        let settled = self.settle_both().await;
        if let Err(error) = settled {
            let words = format!("nothing can be appended before this is stored: {error}");
            let refusal = match (is_full(&error), is_passing(&error)) {
                (true, _) => AppendError::DiskFull(words),
                (false, true) => AppendError::Exhausted(words),
                (false, false) => self.fail(words),
            };
            self.0.owed.refusal.replace(Some((now.plus(RETRY), refusal.clone())));
            return Err(refusal);
        }
        // Before appends take what came free.
        self.0.common.make_reserve().await;
        tracing::info!("{self}: what was found at the start is stored; appends are taken");
        Ok(())
    }

    async fn settle_both(&self) -> std::io::Result<()> {
        let torn = self.0.owed.torn.borrow().clone();
        if let Some(torn) = torn {
            cut(&self.0.common, &torn).await?;
            self.0.owed.torn.replace(None);
        }
        self.store_epochs().await
    }
}

/// Who drains waits for its end.
struct UnderWay<'a>(&'a Partition);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.owed.under_way.set(false);
        self.0.0.ack_waiters.wake_all();
    }
}
