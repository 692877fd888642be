//! One answer across threads, and a way to wait for it without a runtime.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

enum State<T> {
    Waiting(Option<Waker>),
    Here(T),
    /// The sender is gone without an answer, or the answer was taken.
    Gone,
}

/// Sends one answer. Dropped without one, the receiver learns that.
pub(super) struct Sender<T>(Arc<Mutex<State<T>>>);

/// Resolves to the answer, or to `None` when none will come.
pub(super) struct Receiver<T>(Arc<Mutex<State<T>>>);

pub(super) fn reply<T>() -> (Sender<T>, Receiver<T>) {
    let state = Arc::new(Mutex::new(State::Waiting(None)));
    (Sender(state.clone()), Receiver(state))
}

impl<T> Sender<T> {
    pub(super) fn send(self, value: T) {
        put(&self.0, State::Here(value));
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        put(&self.0, State::Gone);
    }
}

fn put<T>(shared: &Mutex<State<T>>, next: State<T>) {
    let waker = {
        let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Waiting(waker) => {
                let waker = waker.take();
                *state = next;
                waker
            }
            State::Here(_) | State::Gone => None,
        }
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(waker) = &mut *state {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, State::Gone) {
            State::Here(value) => Poll::Ready(Some(value)),
            State::Waiting(_) | State::Gone => Poll::Ready(None),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on the calling thread, which sleeps meanwhile. Not for a shard's own thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    thread_local! {
        /// Made once: it wakes this thread, whatever it waits for.
        static WAKER: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    }
    let mut future = pin!(future);
    let waker = WAKER.with(Waker::clone);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        std::thread::park();
    }
}
