//! A small single-threaded executor: tasks in a slab, readiness in a bitmap of atomics.
//!
//! Waking a task sets one bit: no lock, no allocation, from any thread. A thread that is asleep in its ring's wait
//! is woken through its [`Bell`]. Spawning allocates (once per connection or background job); running does not.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};

/// The most tasks of one executor: two per connection, one for each partition that is written to.
pub const TASKS_MAX: usize = 64 * 64 * 64;

/// Wakes the thread that sleeps in its ring's wait. The kernel's is an eventfd; the simulated world needs none.
pub(crate) trait Bell: Send + Sync {
    fn ring(&self);
}

/// Which tasks are ready, and whether their thread is asleep.
pub(crate) struct ReadySet {
    words: Box<[AtomicU64]>,
    /// One bit for each word that may be non-zero.
    summary: Box<[AtomicU64]>,
    sleeping: AtomicBool,
    bell: Box<dyn Bell>,
}

impl ReadySet {
    fn new(bell: Box<dyn Bell>) -> ReadySet {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        ReadySet {
            words: zeros(TASKS_MAX / 64),
            summary: zeros(TASKS_MAX / 64 / 64),
            sleeping: AtomicBool::new(false),
            bell,
        }
    }

    fn set(&self, slot: usize) {
        let word = slot / 64;
        self.words[word].fetch_or(1 << (slot % 64), Ordering::Release);
        self.summary[word / 64].fetch_or(1 << (word % 64), Ordering::Release);
        // Pairs with the fence in `prepare_to_sleep`: either that sees our bit, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.bell.ring();
        }
    }

    fn any(&self) -> bool {
        self.summary.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }
}

struct TaskWaker {
    slot: usize,
    ready: Arc<ReadySet>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.set(self.slot);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.set(self.slot);
    }
}

struct Task {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Waker,
}

/// Runs the tasks of one thread. Clone it to spawn from within a task.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

struct Inner {
    ready: Arc<ReadySet>,
    tasks: RefCell<Vec<Option<Task>>>,
    vacant: RefCell<Vec<usize>>,
    live: Cell<usize>,
}

impl Executor {
    pub(crate) fn new(bell: Box<dyn Bell>) -> Executor {
        Executor(Rc::new(Inner {
            ready: Arc::new(ReadySet::new(bell)),
            tasks: RefCell::new(Vec::new()),
            vacant: RefCell::new(Vec::new()),
            live: Cell::new(0),
        }))
    }

    /// Starts a task on this thread. Allocates.
    ///
    /// # Panics
    /// When [`TASKS_MAX`] tasks live already: those who spawn on behalf of others keep a lower bound of their own.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let slot = self.0.vacant.borrow_mut().pop().unwrap_or_else(|| {
            let mut tasks = self.0.tasks.borrow_mut();
            tasks.push(None);
            tasks.len() - 1
        });
        assert!(slot < TASKS_MAX, "more than {TASKS_MAX} tasks on one shard");
        let waker = Waker::from(Arc::new(TaskWaker { slot, ready: self.0.ready.clone() }));
        self.0.tasks.borrow_mut()[slot] = Some(Task { future: Some(Box::pin(future)), waker });
        self.0.live.set(self.0.live.get() + 1);
        self.0.ready.set(slot);
    }

    /// Tasks that have not finished.
    #[must_use]
    pub fn live_tasks(&self) -> usize {
        self.0.live.get()
    }

    /// Runs every task that is ready now, once each. True when some task is ready again afterwards.
    pub fn run_ready(&self) -> bool {
        let ready = &self.0.ready;
        for (index, summary) in ready.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut words = summary.swap(0, Ordering::Acquire);
            while words != 0 {
                let word = index * 64 + words.trailing_zeros() as usize;
                words &= words - 1;
                let mut slots = ready.words[word].swap(0, Ordering::Acquire);
                while slots != 0 {
                    let slot = word * 64 + slots.trailing_zeros() as usize;
                    slots &= slots - 1;
                    self.poll(slot);
                }
            }
        }
        ready.any()
    }

    fn poll(&self, slot: usize) {
        let taken = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(slot).and_then(Option::as_mut) else { return };
            task.future.take().map(|future| (future, task.waker.clone()))
        };
        let Some((mut future, waker)) = taken else { return };
        let finished = matches!(future.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(()));
        if finished {
            // Dropped before the slot is given away: its destructor may spawn or wake.
            drop(future);
            self.0.tasks.borrow_mut()[slot] = None;
            self.0.vacant.borrow_mut().push(slot);
            self.0.live.set(self.0.live.get() - 1);
        } else {
            self.0.tasks.borrow_mut()[slot]
                .as_mut()
                .expect("a task's slot is its own while it runs")
                .future = Some(future);
        }
    }

    /// Announces that this thread is about to sleep. False when a task became ready meanwhile: do not sleep then.
    pub(crate) fn prepare_to_sleep(&self) -> bool {
        self.0.ready.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may_sleep = !self.0.ready.any();
        if !may_sleep {
            self.woke();
        }
        may_sleep
    }

    pub(crate) fn woke(&self) {
        self.0.ready.sleeping.store(false, Ordering::Relaxed);
    }

    /// Forgets who was woken: once no task lives, a wake would only keep the thread from its sleep.
    pub(crate) fn forget_wakes(&self) {
        assert_eq!(self.0.live.get(), 0, "a live task would never run again");
        for words in [&self.0.ready.words, &self.0.ready.summary] {
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// Drops every task, as at the end of the thread. What their operations hold is released by the ring.
    pub(crate) fn abandon_all(&self) {
        loop {
            let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        self.0.vacant.borrow_mut().clear();
        self.0.live.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoBell;

    impl Bell for NoBell {
        fn ring(&self) {}
    }

    #[test]
    fn a_task_that_wakes_itself_runs_again() {
        let executor = Executor::new(Box::new(NoBell));
        let count = Rc::new(Cell::new(0));
        let seen = count.clone();
        executor.spawn(std::future::poll_fn(move |cx| {
            seen.set(seen.get() + 1);
            cx.waker().wake_by_ref();
            if seen.get() < 3 { Poll::Pending } else { Poll::Ready(()) }
        }));
        while executor.run_ready() {}
        assert_eq!((count.get(), executor.live_tasks()), (3, 0));
    }

    #[test]
    fn no_sleep_while_a_task_is_ready() {
        let executor = Executor::new(Box::new(NoBell));
        assert!(executor.prepare_to_sleep());
        executor.woke();
        executor.spawn(async {});
        assert!(!executor.prepare_to_sleep());
        assert!(!executor.run_ready());
        assert!(executor.prepare_to_sleep());
    }

    #[test]
    fn a_task_that_was_woken_and_abandoned_keeps_nobody_from_sleep() {
        let executor = Executor::new(Box::new(NoBell));
        let waker = Rc::new(RefCell::new(None));
        let seen = waker.clone();
        executor.spawn(std::future::poll_fn(move |cx| {
            *seen.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }));
        executor.run_ready();
        executor.abandon_all();
        waker.take().expect("it ran").wake();
        assert!(!executor.prepare_to_sleep());
        executor.forget_wakes();
        assert!(executor.prepare_to_sleep());
    }

    #[test]
    fn a_task_may_spawn_another() {
        let executor = Executor::new(Box::new(NoBell));
        let inner = executor.clone();
        let done = Rc::new(Cell::new(false));
        let flag = done.clone();
        executor.spawn(async move { inner.spawn(async move { flag.set(true) }) });
        while executor.run_ready() {}
        assert!(done.get());
    }
}
