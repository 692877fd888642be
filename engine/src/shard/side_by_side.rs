//! The same work on many things, so many at a time: where each waits for the disk more than anything else.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use super::wakers::Wakers;
use crate::sys::Ring;

/// Does `work` on each of `things`, in order, `width` at a time; returns when all is done.
pub(super) async fn side_by_side<T: 'static, F: Future<Output = ()>>(
    ring: &Ring,
    width: usize,
    things: VecDeque<T>,
    work: impl Fn(T) -> F + 'static,
) {
    let workers = Rc::new((Cell::new(things.len().min(width)), Wakers::default()));
    let (things, work) = (Rc::new(RefCell::new(things)), Rc::new(work));
    for _ in 0..workers.0.get() {
        let (things, work, workers) = (things.clone(), work.clone(), workers.clone());
        ring.spawn(async move {
            loop {
                let next = things.borrow_mut().pop_front();
                let Some(next) = next else { break };
                work(next).await;
            }
            workers.0.set(workers.0.get() - 1);
            workers.1.wake_all();
        });
    }
    poll_fn(|cx| {
        if workers.0.get() == 0 {
            return Poll::Ready(());
        }
        workers.1.add(cx.waker());
        Poll::Pending
    })
    .await;
}
