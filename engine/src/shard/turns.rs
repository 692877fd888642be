//! Turns: who came first goes first, without allocating once the queue has found its length.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A queue of turns. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Turns(Rc<Inner>);

#[derive(Default)]
struct Inner {
    /// The number of the turn at the front.
    first: Cell<u64>,
    queue: RefCell<VecDeque<Waiting>>,
    /// Who wants to know that somebody waits behind him.
    contested: RefCell<Option<Waker>>,
}

struct Waiting {
    over: bool,
    waker: Option<Waker>,
}

/// A place in the queue; given up on drop, wherever it stands.
pub(super) struct Turn {
    turns: Turns,
    number: u64,
}

impl Turns {
    /// The next place, at the end.
    pub(super) fn take(&self) -> Turn {
        let mut queue = self.0.queue.borrow_mut();
        let number = self.0.first.get() + queue.len() as u64;
        queue.push_back(Waiting { over: false, waker: None });
        if let Some(waker) = self.0.contested.borrow_mut().take() {
            waker.wake();
        }
        Turn { turns: self.clone(), number }
    }

    /// Whether nobody has a turn or waits for one.
    pub(super) fn is_empty(&self) -> bool {
        self.0.queue.borrow().is_empty()
    }
}

impl Turn {
    /// Waits until everybody who came before is done.
    pub(super) async fn comes(&self) {
        poll_fn(|cx| {
            let inner = &*self.turns.0;
            if inner.first.get() == self.number {
                return Poll::Ready(());
            }
            let place = (self.number - inner.first.get()) as usize;
            let waiting = &mut inner.queue.borrow_mut()[place];
            if !waiting.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                waiting.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Turn {
    /// Whether somebody waits behind this turn. If not, `waker` is woken when that changes.
    pub(super) fn is_contested(&self, waker: &Waker) -> bool {
        let inner = &*self.turns.0;
        let contested = inner.queue.borrow().len() > 1;
        if !contested {
            *inner.contested.borrow_mut() = Some(waker.clone());
        }
        contested
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let inner = &*self.turns.0;
        let next = {
            let mut queue = inner.queue.borrow_mut();
            queue[(self.number - inner.first.get()) as usize].over = true;
            while queue.front().is_some_and(|front| front.over) {
                queue.pop_front();
                inner.first.set(inner.first.get() + 1);
            }
            queue.front_mut().and_then(|front| front.waker.take())
        };
        if let Some(next) = next {
            next.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    fn has_come(turn: &Turn) -> bool {
        pin!(turn.comes()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn turns_come_in_order_whoever_gives_up_in_between() {
        let turns = Turns::default();
        let (first, second, third, fourth) = (turns.take(), turns.take(), turns.take(), turns.take());
        assert!(has_come(&first) && !has_come(&second) && !has_come(&third));
        drop(third);
        assert!(!has_come(&fourth));
        drop(first);
        assert!(has_come(&second) && !has_come(&fourth));
        drop(second);
        assert!(has_come(&fourth) && !turns.is_empty());
        drop(fourth);
        assert!(turns.is_empty() && has_come(&turns.take()));
    }
}
