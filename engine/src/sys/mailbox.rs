//! A mailbox: a bounded queue that any thread may put into and one task takes out of.
//!
//! Putting wakes that task, which costs a system call only when its thread sleeps in its ring's wait. Neither side
//! locks or allocates.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use crossbeam::queue::ArrayQueue;

/// See the module's words.
pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    reader: OnceLock<Waker>,
    longest: AtomicUsize,
}

impl<T> Mailbox<T> {
    /// An empty one with room for `capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Mailbox<T> {
        Mailbox { queue: ArrayQueue::new(capacity), reader: OnceLock::new(), longest: AtomicUsize::new(0) }
    }

    /// Puts `value` in and wakes the reader.
    ///
    /// # Errors
    /// `value` itself, when the mailbox is full.
    pub fn put(&self, value: T) -> Result<(), T> {
        self.queue.push(value)?;
        self.longest.fetch_max(self.queue.len(), Ordering::Relaxed);
        self.wake();
        Ok(())
    }

    /// Wakes the reader, who looks again.
    pub fn wake(&self) {
        if let Some(reader) = self.reader.get() {
            reader.wake_by_ref();
        }
    }

    /// What was put in first; pending while there is nothing.
    ///
    /// # Panics
    /// When another task has asked before: the first one that asks is woken, for the mailbox's life.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<T> {
        let reader = self.reader.get_or_init(|| cx.waker().clone());
        assert!(reader.will_wake(cx.waker()), "a mailbox is read by one task");
        // Registered before the look: what is put in after it wakes us.
        self.queue.pop().map_or(Poll::Pending, Poll::Ready)
    }

    /// Takes what is there without waiting: for whoever empties it at the end.
    #[must_use]
    pub fn try_take(&self) -> Option<T> {
        self.queue.pop()
    }

    /// How many there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// The most that ever lay in it.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out_in_order_and_no_more_than_fits() {
        let mailbox = Mailbox::new(2);
        assert_eq!((mailbox.put(1), mailbox.put(2), mailbox.put(3)), (Ok(()), Ok(()), Err(3)));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(mailbox.poll_take(&mut cx), Poll::Ready(1));
        assert_eq!(mailbox.poll_take(&mut cx), Poll::Ready(2));
        assert_eq!(mailbox.poll_take(&mut cx), Poll::Pending);
        assert_eq!((mailbox.capacity(), mailbox.longest()), (2, 2));
    }
}
