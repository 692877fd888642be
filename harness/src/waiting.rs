//! Waiting within the load's one thread: a signal, the result of a task, one of two futures, a deadline.
//!
//! Everything here is for tasks of one ring. Nothing crosses a thread, so cells are enough.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ringlog::sys::Ring;

/// Something happened; those who wait look again. Stays raised until it is taken back.
#[derive(Clone, Default)]
pub struct Signal(Rc<Inner>);

#[derive(Default)]
struct Inner {
    raised: Cell<bool>,
    /// As many as tasks wait for it: bounded by the connections of the load.
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Wakes everybody who waits, and everybody who will.
    pub fn raise(&self) {
        self.0.raised.set(true);
        self.0.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }

    /// Whether it is raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.raised.get()
    }

    /// Ready once it is raised.
    pub async fn raised(&self) {
        poll_fn(|context| {
            if self.0.raised.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.0.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits for it and takes it back: for one waiter that looks at what changed.
    pub async fn take(&self) {
        self.raised().await;
        self.0.raised.set(false);
    }
}

/// A task under way. Dropping this does not stop it.
pub struct Started<T> {
    value: Rc<RefCell<Option<T>>>,
    done: Signal,
}

/// Starts a task on the ring.
pub fn start<T: 'static>(ring: &Ring, task: impl Future<Output = T> + 'static) -> Started<T> {
    let started = Started { value: Rc::default(), done: Signal::default() };
    let (value, done) = (started.value.clone(), started.done.clone());
    ring.spawn(async move {
        let result = task.await;
        *value.borrow_mut() = Some(result);
        done.raise();
    });
    started
}

impl<T> Started<T> {
    /// What the task gave, once it is done.
    pub async fn result(self) -> T {
        self.done.raised().await;
        self.value.borrow_mut().take().expect("a task that is done has left its result")
    }
}

/// `work`, unless `stop` is raised first: then `None`, and what the kernel had of it comes back by itself.
pub async fn unless<T>(stop: &Signal, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut stopped) = (pin!(work), pin!(stop.raised()));
    poll_fn(|context| {
        if let Poll::Ready(value) = work.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        stopped.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// `work`, if it is done within `patience`.
pub async fn within<T>(ring: &Ring, patience: Duration, work: impl Future<Output = T>) -> Option<T> {
    let timer = ring.timer();
    timer.arm(ring.now().plus(patience));
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(value) = work.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        timer.poll_expired(context).map(|()| None)
    })
    .await
}
