//! The lane from other threads to a shard: bounded, and woken only when the shard sleeps.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use crossbeam::queue::ArrayQueue;

use super::reply::{Sender, reply};
use super::{DRAIN_TIME_MAX, EngineError};
use crate::shard::Shard;

/// Calls that may wait for one shard.
pub(super) const LANE_CALLS_MAX: usize = 4096;

type Work = Box<dyn FnOnce(Shard) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

pub(super) enum Call {
    /// One request of the facade.
    Work(Work),
    /// Protocol code; closing waits for its end.
    Serve(Work),
    Close(Sender<Result<(), EngineError>>),
}

pub(super) struct Lane {
    calls: ArrayQueue<Call>,
    shard: OnceLock<Waker>,
    ended: AtomicBool,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane { calls: ArrayQueue::new(LANE_CALLS_MAX), shard: OnceLock::new(), ended: AtomicBool::new(false) }
    }
}

impl Lane {
    pub(super) fn send(&self, call: Call) -> Result<(), EngineError> {
        if self.ended.load(Ordering::Acquire) {
            return Err(EngineError::Stopped);
        }
        self.calls.push(call).map_err(|_| EngineError::Busy(LANE_CALLS_MAX))?;
        if let Some(shard) = self.shard.get() {
            shard.wake_by_ref();
        }
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
        let (done, answer) = reply();
        let work: Work = Box::new(move |shard| Box::pin(async move { done.send(work(shard).await) }));
        self.send(Call::Work(work))?;
        answer.await.ok_or(EngineError::Stopped)
    }

    /// No more calls; those that wait learn it.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        while self.calls.pop().is_some() {}
    }
}

/// Takes calls until one closes the shard.
pub(super) async fn serve(lane: &Lane, shard: Shard) {
    let serving = std::rc::Rc::new(std::cell::Cell::new(0usize));
    loop {
        let call = poll_fn(|cx| {
            lane.shard.get_or_init(|| cx.waker().clone());
            lane.calls.pop().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        match call {
            Call::Work(work) => shard.spawn(work(shard.clone())),
            Call::Serve(work) => {
                serving.set(serving.get() + 1);
                let (count, work) = (serving.clone(), work(shard.clone()));
                shard.spawn(async move {
                    work.await;
                    count.set(count.get() - 1);
                });
            }
            Call::Close(done) => {
                shard.begin_stop();
                let patience = shard.ring().now().plus(DRAIN_TIME_MAX);
                while serving.get() > 0 && shard.ring().now() < patience {
                    shard.ring().sleep(std::time::Duration::from_millis(2)).await;
                }
                done.send(shard.close().await.map_err(EngineError::Io));
                return;
            }
        }
    }
}
