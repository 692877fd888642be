//! The lane from other threads to a shard: bounded, and woken only when the shard sleeps.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::calls::{Asked, Servers, Slots};
use super::reply::{Sender, reply};
use super::{DRAIN_TIME_MAX, EngineError};
use crate::shard::Shard;
use crate::sys::Mailbox;

/// Calls of one shard that may be unanswered.
pub(super) const LANE_CALLS_MAX: usize = 4096;

type Work = Box<dyn FnOnce(Shard) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

pub(super) enum Call {
    /// An append or a fetch.
    Ask(Asked),
    /// Any other request of the facade.
    Work(Work),
    /// Protocol code; draining waits for its end.
    Serve(Work),
    /// Serving ends, then everything accepted becomes durable.
    Drain(Sender<Result<(), EngineError>>),
    /// The thread comes to its end.
    Leave,
}

pub(super) struct Lane {
    calls: Mailbox<Call>,
    /// For appends and fetches.
    pub slots: Arc<Slots>,
    ended: AtomicBool,
}

impl Default for Lane {
    fn default() -> Lane {
        let calls = Mailbox::new(LANE_CALLS_MAX);
        Lane { calls, slots: Arc::default(), ended: AtomicBool::new(false) }
    }
}

impl Lane {
    pub(super) fn send(&self, call: Call) -> Result<(), EngineError> {
        if self.ended.load(Ordering::Acquire) {
            return Err(EngineError::Stopped);
        }
        self.calls.put(call).map_err(|_| EngineError::Busy(LANE_CALLS_MAX))?;
        // The shard may have ended between the look and the push: then nobody will take what lies there.
        if self.ended.load(Ordering::Acquire) {
            self.end();
        }
        Ok(())
    }

    pub(super) async fn call<T, W, F>(&self, work: W) -> Result<T, EngineError>
    where
        T: Send + 'static,
        W: FnOnce(Shard) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let under_way = self.slots.begin()?;
        let (done, answer) = reply();
        let work: Work = Box::new(move |shard| {
            Box::pin(async move {
                let _under_way = under_way;
                done.send(work(shard).await);
            })
        });
        self.send(Call::Work(work))?;
        answer.await.ok_or(EngineError::Stopped)
    }

    /// No more calls; those that wait learn it.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        while self.calls.try_take().is_some() {}
    }
}

/// Takes calls until the shard is told to leave.
pub(super) async fn serve(lane: &Lane, shard: Shard) {
    let serving = Rc::new(Cell::new(0usize));
    let servers = Servers::new(shard.clone());
    loop {
        match poll_fn(|cx| lane.calls.poll_take(cx)).await {
            Call::Ask(asked) => servers.serve(asked),
            Call::Work(work) => shard.spawn(work(shard.clone())),
            Call::Serve(work) => {
                serving.set(serving.get() + 1);
                let (count, work) = (serving.clone(), work(shard.clone()));
                shard.spawn(async move {
                    work.await;
                    count.set(count.get() - 1);
                });
            }
            Call::Drain(done) => {
                shard.begin_stop();
                let (count, shard) = (serving.clone(), shard.clone());
                shard.clone().spawn(async move {
                    let patience = shard.ring().now().plus(DRAIN_TIME_MAX);
                    while count.get() > 0 && shard.ring().now() < patience {
                        shard.ring().sleep(Duration::from_millis(2)).await;
                    }
                    done.send(shard.drain().await.map_err(EngineError::Io));
                });
            }
            Call::Leave => return shard.leave(),
        }
    }
}
