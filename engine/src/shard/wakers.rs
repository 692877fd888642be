//! Who waits for something: a list of wakers that keeps its room.

use std::cell::RefCell;
use std::task::Waker;

/// Tasks to be woken once.
#[derive(Default)]
pub(super) struct Wakers(RefCell<Vec<Waker>>);

impl Wakers {
    /// Adds a task, unless it waits already.
    pub(super) fn add(&self, waker: &Waker) {
        let wakers = &mut *self.0.borrow_mut();
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    /// Wakes all of them.
    pub(super) fn wake_all(&self) {
        // A waker only sets a bit, so nothing can come back here while the list is borrowed.
        for waker in self.0.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}
