//! Appends and fetches from other threads: each in a slot that is used again, served by a task that is used again.
//!
//! ```text
//! caller:  slot from the pool, filled | -> lane -> |                        | outcome and bytes taken, slot to the pool
//! shard:                                           | idle task serves it -> |
//! ```
//!
//! Calls begin in the order in which they reached the shard: each is queued with the memory that it needs, and whichever task
//! runs next takes the oldest. Where that memory is not there at once, calls wait for it in line, and nobody else waits
//! for them. Of all calls of a lane only so many may be unanswered ([`UnderWay`]).
//!
//! In the steady state neither side allocates. A caller that stops waiting leaves its slot to the shard, which puts it
//! back when it is done; a shard that ends answers what it was asked with [`EngineError::Stopped`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crossbeam::queue::ArrayQueue;

use super::EngineError;
use super::handle::{Appended, read_piece};
use super::lane::LANE_CALLS_MAX;
use crate::log::BatchHeader;
use crate::shard::{Ack, AppendError, Fetched, Shard};
use crate::sys::LeaseMut;
use crate::transfer::{Egress, Piece};
use crate::types::{Offset, PartitionId};

/// A slot with more memory than this gives it back.
const BYTES_KEPT_MAX: usize = 1 << 20;
/// All idle slots of a lane together keep no more than this.
const BYTES_KEPT_MAX_ALL: usize = 64 << 20;
/// Serving tasks that stay when they have nothing to do.
const TASKS_KEPT_MAX: usize = 64;

/// What is asked of a partition.
#[derive(Clone, Copy)]
pub(super) enum Ask {
    /// Append the bytes, which were checked and have this header.
    Append { header: BatchHeader, ack: Option<Ack> },
    /// Fill the bytes.
    Fetch { offset: Offset, bytes_max: u64 },
}

/// What came of it.
pub(super) enum Outcome {
    Appended(Appended),
    Fetched(Fetched),
    /// There is no such partition any more.
    Gone,
    Failed(EngineError),
}

/// The slots of one lane: as many as were ever used at once.
pub(super) struct Slots {
    idle: ArrayQueue<Arc<Slot>>,
    /// Memory of the idle ones.
    kept_bytes: AtomicUsize,
    under_way: Arc<AtomicUsize>,
}

/// A call that is not answered yet: counted until this is dropped.
pub(super) struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Slot(Mutex<Content>);

#[derive(Default)]
struct Content {
    asked: Option<(PartitionId, Ask)>,
    bytes: Vec<u8>,
    outcome: Option<Outcome>,
    waker: Option<Waker>,
    /// The caller does not wait any more.
    given_up: bool,
}

/// A filled slot on its way to the shard, or being served. Dropped, it answers that the engine has stopped.
pub(super) struct Asked {
    slots: Arc<Slots>,
    /// Taken when it is answered.
    slot: Option<Arc<Slot>>,
    _under_way: UnderWay,
}

/// The caller's side: resolves to the outcome, and leaves the slot's bytes in the caller's vector.
pub(super) struct Answer<'a> {
    slots: Arc<Slots>,
    /// Taken when it has been answered.
    slot: Option<Arc<Slot>>,
    into: Option<&'a mut Vec<u8>>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots {
            idle: ArrayQueue::new(LANE_CALLS_MAX),
            kept_bytes: AtomicUsize::new(0),
            under_way: Arc::default(),
        }
    }
}

impl Slots {
    /// Counts a call, of any kind.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when [`LANE_CALLS_MAX`] are unanswered.
    pub(super) fn begin(&self) -> Result<UnderWay, EngineError> {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= LANE_CALLS_MAX {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return Err(EngineError::Busy(LANE_CALLS_MAX));
        }
        Ok(UnderWay(self.under_way.clone()))
    }

    /// An append: the batch is copied into the slot.
    pub(super) fn append(
        self: &Arc<Slots>,
        partition: PartitionId,
        header: BatchHeader,
        ack: Option<Ack>,
        batch: &[u8],
    ) -> Result<(Asked, Answer<'static>), EngineError> {
        let under_way = self.begin()?;
        let slot = self.take();
        let mut content = slot.lock();
        content.asked = Some((partition, Ask::Append { header, ack }));
        content.bytes.extend_from_slice(batch);
        drop(content);
        Ok(self.both_sides(slot, None, under_way))
    }

    /// A fetch: the caller's vector is filled, and is in the slot meanwhile.
    pub(super) fn fetch<'a>(
        self: &Arc<Slots>,
        partition: PartitionId,
        offset: Offset,
        bytes_max: u64,
        into: &'a mut Vec<u8>,
    ) -> Result<(Asked, Answer<'a>), EngineError> {
        into.clear();
        let under_way = self.begin()?;
        let slot = self.take();
        let mut content = slot.lock();
        content.asked = Some((partition, Ask::Fetch { offset, bytes_max }));
        std::mem::swap(&mut content.bytes, into);
        drop(content);
        Ok(self.both_sides(slot, Some(into), under_way))
    }

    fn both_sides<'a>(
        self: &Arc<Slots>,
        slot: Arc<Slot>,
        into: Option<&'a mut Vec<u8>>,
        under_way: UnderWay,
    ) -> (Asked, Answer<'a>) {
        let asked = Asked { slots: self.clone(), slot: Some(slot.clone()), _under_way: under_way };
        (asked, Answer { slots: self.clone(), slot: Some(slot), into })
    }

    fn take(&self) -> Arc<Slot> {
        let slot = self.idle.pop().unwrap_or_default();
        self.kept_bytes.fetch_sub(slot.lock().bytes.capacity(), Ordering::Relaxed);
        slot
    }

    fn give(&self, slot: Arc<Slot>) {
        let mut content = slot.lock();
        content.bytes.clear();
        content.bytes.shrink_to(BYTES_KEPT_MAX);
        let kept = content.bytes.capacity();
        if self.kept_bytes.fetch_add(kept, Ordering::Relaxed) + kept > BYTES_KEPT_MAX_ALL {
            self.kept_bytes.fetch_sub(kept, Ordering::Relaxed);
            content.bytes = Vec::new();
        }
        (content.asked, content.given_up) = (None, false);
        // A waker is a stranger's: it is not dropped under the lock.
        let (_outcome, _waker) = (content.outcome.take(), content.waker.take());
        drop(content);
        // Answers that nobody has taken yet hold slots as well: one too many is dropped.
        if let Err(slot) = self.idle.push(slot) {
            self.kept_bytes.fetch_sub(slot.lock().bytes.capacity(), Ordering::Relaxed);
        }
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// How much memory an append needs.
    pub(super) fn append_bytes(&self) -> Option<usize> {
        let content = self.slot.as_ref()?.lock();
        matches!(content.asked, Some((_, Ask::Append { .. }))).then_some(content.bytes.len())
    }

    pub(super) fn fail(self, error: EngineError) {
        let bytes = self.take().1;
        self.answer(Outcome::Failed(error), bytes);
    }

    fn take(&self) -> ((PartitionId, Ask), Vec<u8>) {
        let mut content = self.slot.as_ref().expect("it is answered once").lock();
        (content.asked.expect("a slot on its way is filled"), std::mem::take(&mut content.bytes))
    }

    fn answer(mut self, outcome: Outcome, bytes: Vec<u8>) {
        self.put(outcome, bytes);
    }

    fn put(&mut self, outcome: Outcome, bytes: Vec<u8>) {
        let Some(slot) = self.slot.take() else { return };
        let mut content = slot.lock();
        content.bytes = bytes;
        if content.given_up {
            drop(content);
            self.slots.give(slot);
            return;
        }
        content.outcome = Some(outcome);
        let waker = content.waker.take();
        drop(content);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.put(Outcome::Failed(EngineError::Stopped), Vec::new());
    }
}

impl Future for Answer<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let slot = self.slot.take().expect("an answer is awaited once");
        let mut content = slot.lock();
        let Some(outcome) = content.outcome.take() else {
            if !content.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                content.waker = Some(cx.waker().clone());
            }
            drop(content);
            self.slot = Some(slot);
            return Poll::Pending;
        };
        if let Some(into) = &mut self.into {
            std::mem::swap(&mut content.bytes, into);
        }
        drop(content);
        self.slots.give(slot);
        Poll::Ready(outcome)
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let mut content = slot.lock();
        if content.outcome.is_none() {
            content.given_up = true;
            let _waker = content.waker.take();
            drop(content);
            return;
        }
        drop(content);
        self.slots.give(slot);
    }
}

/// The shard's serving tasks.
pub(super) struct Servers(Rc<Inner>);

struct Inner {
    shard: Shard,
    /// Calls in the order in which they came, an append with the memory that it needs.
    queue: RefCell<VecDeque<(Asked, Option<LeaseMut>)>>,
    /// Calls that came later, while there was no memory for the first of them. One task waits for it.
    line: RefCell<VecDeque<Asked>>,
    line_waits: Cell<bool>,
    /// Tasks with nothing to do, by their numbers.
    idle: RefCell<Vec<(u64, Waker)>>,
    started: Cell<u64>,
}

impl Servers {
    pub(super) fn new(shard: Shard) -> Servers {
        Servers(Rc::new(Inner {
            shard,
            queue: RefCell::default(),
            line: RefCell::default(),
            line_waits: Cell::new(false),
            idle: RefCell::default(),
            started: Cell::new(0),
        }))
    }

    /// Queues a call for an idle task, or a new one; in line, if there is no memory for it or for one before it.
    pub(super) fn serve(&self, asked: Asked) {
        let asked = match self.0.line_waits.get() {
            true => asked,
            false => match self.0.try_queue(asked) {
                Ok(()) => return,
                Err(asked) => asked,
            },
        };
        self.0.line.borrow_mut().push_back(asked);
        if !self.0.line_waits.replace(true) {
            self.0.shard.spawn(self.0.clone().wait_in_line());
        }
    }
}

impl Inner {
    /// Queues a call if the memory that it needs is there; else it comes back.
    fn try_queue(self: &Rc<Inner>, asked: Asked) -> Result<(), Asked> {
        let lease = match asked.append_bytes() {
            None => None,
            Some(bytes) => match self.shard.ring().try_lease(bytes) {
                None => return Err(asked),
                lease => lease,
            },
        };
        self.queue(asked, lease);
        Ok(())
    }

    fn queue(self: &Rc<Inner>, asked: Asked, lease: Option<LeaseMut>) {
        self.queue.borrow_mut().push_back((asked, lease));
        let idle = self.idle.borrow_mut().pop();
        match idle {
            Some((_, waker)) => waker.wake(),
            None => self.clone().start(),
        }
    }

    /// Queues the calls in line, each as soon as there is memory for it.
    async fn wait_in_line(self: Rc<Inner>) {
        // Those who stood behind one that waited in vain have waited as long.
        let mut in_vain = 0usize;
        loop {
            let Some(asked) = self.line.borrow_mut().pop_front() else { break };
            let bytes = asked.append_bytes().unwrap_or(0);
            let Err(asked) = self.try_queue(asked) else {
                in_vain = in_vain.saturating_sub(1);
                continue;
            };
            if in_vain > 0 {
                in_vain -= 1;
                asked.fail(AppendError::NoMemory("those before it waited in vain".to_owned()).into());
                continue;
            }
            let behind = self.line.borrow().len();
            match self.shard.ring().lease(bytes).await {
                Ok(lease) => self.queue(asked, Some(lease)),
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                    in_vain = behind;
                    asked.fail(AppendError::NoMemory(error.to_string()).into());
                }
                // No lease is as large as that.
                Err(error) => asked.fail(error.into()),
            }
        }
        self.line_waits.set(false);
    }

    /// The tasks keep the shard, not the other way round: they end with it.
    fn start(self: Rc<Inner>) {
        let inner = self.clone();
        let number = inner.started.replace(inner.started.get() + 1);
        self.shard.spawn(async move {
            let mut pieces = Vec::new();
            loop {
                let next = poll_fn(|cx| {
                    // It may have been woken by what it waited for long ago: it is idle once, or not at all.
                    let mut idle = inner.idle.borrow_mut();
                    idle.retain(|(other, _)| *other != number);
                    // Whoever comes first takes the oldest, whomever it woke.
                    if let Some(next) = inner.queue.borrow_mut().pop_front() {
                        return Poll::Ready(Some(next));
                    }
                    if idle.len() == TASKS_KEPT_MAX {
                        return Poll::Ready(None);
                    }
                    idle.push((number, cx.waker().clone()));
                    Poll::Pending
                });
                match next.await {
                    Some((asked, lease)) => serve(&inner.shard, asked, lease, &mut pieces).await,
                    None => return,
                }
            }
        });
    }
}

async fn serve(shard: &Shard, asked: Asked, lease: Option<LeaseMut>, pieces: &mut Vec<Piece>) {
    let ((partition, ask), mut bytes) = asked.take();
    let outcome = match (ask, lease) {
        (Ask::Append { header, ack }, Some(lease)) => {
            append(shard, partition, header, ack, (&bytes, lease)).await
        }
        (Ask::Append { .. }, None) => unreachable!("an append is queued with its memory"),
        (Ask::Fetch { offset, bytes_max }, _) => {
            fetch(shard, partition, (offset, bytes_max), pieces, &mut bytes).await
        }
    };
    pieces.clear();
    if outcome.is_err() {
        bytes.clear();
    }
    asked.answer(outcome.unwrap_or_else(Outcome::Failed), bytes);
}

async fn append(
    shard: &Shard,
    partition: PartitionId,
    header: BatchHeader,
    ack: Option<Ack>,
    (batch, mut lease): (&[u8], LeaseMut),
) -> Result<Outcome, EngineError> {
    let received = shard.ring().now();
    let Some(partition) = shard.find(partition) else { return Ok(Outcome::Gone) };
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(batch);
    let ticket = partition.append(lease, header, ack, received).await?;
    Ok(Outcome::Appended(ticket.reached().await?))
}

async fn fetch(
    shard: &Shard,
    partition: PartitionId,
    (offset, bytes_max): (Offset, u64),
    pieces: &mut Vec<Piece>,
    into: &mut Vec<u8>,
) -> Result<Outcome, EngineError> {
    let Some(partition) = shard.find(partition) else { return Ok(Outcome::Gone) };
    let fetched = partition.fetch(offset, bytes_max, Egress::Tail, pieces).await?;
    into.reserve(fetched.bytes as usize);
    for piece in pieces.drain(..) {
        read_piece(shard, &piece, into).await?;
    }
    Ok(Outcome::Fetched(fetched))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::lane::{Call, Lane, serve};
    use super::super::reply::reply;
    use super::super::{Directory, EngineConfig, begin, block_on};
    use super::*;
    use crate::engine::PartitionHandle;
    use crate::log::BatchBuilder;
    use crate::shard::TopicConfig;
    use crate::types::{ShardId, Timestamp};

    fn batch(bytes: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Timestamp(1));
        builder.push(Timestamp(1), None, Some(&vec![7; bytes]), &[]);
        builder.finish().to_vec()
    }

    /// A shard on this thread, serving a lane; callers on another. How often each of them allocated.
    fn allocations(calls: impl Fn(&PartitionHandle) + Send) -> (u64, u64) {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let config = EngineConfig::new(directory.path().join("data"));
        let core = crate::sys::topology::usable_cores().unwrap()[0];
        let (found, _node) = reply();
        let (ring, shard) = begin(ShardId(0), core, &config, Directory::Open { shards: 1, found }).unwrap();
        let made = shard.clone();
        let written = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
        let topic = ring.run(async move { made.create_topic("t", 1, written).await.unwrap().id });
        let lane = Arc::new(Lane::default());
        let handle = PartitionHandle::new(lane.clone(), "t", PartitionId { topic, index: 0 });
        let (warm, warmed) = reply();
        let (begin_counting, counting) = reply();
        let left = Rc::new(Cell::new(false));
        let mut theirs = 0;
        let ours = std::thread::scope(|scope| {
            let (callers, theirs) = (lane.clone(), &mut theirs);
            scope.spawn(move || {
                calls(&handle);
                warm.send(());
                block_on(counting).unwrap();
                *theirs = allocation_counter::measure(|| calls(&handle)).count_total;
                callers.send(Call::Leave).unwrap();
            });
            let (lane, told) = (lane.clone(), left.clone());
            ring.spawn(async move {
                serve(&lane, shard).await;
                told.set(true);
            });
            ring.run(async move { warmed.await.unwrap() });
            let (until, left) = (ring.clone(), left.clone());
            allocation_counter::measure(|| {
                ring.run(async move {
                    begin_counting.send(());
                    while !left.get() {
                        until.sleep(Duration::from_millis(2)).await;
                    }
                });
            })
            .count_total
        });
        ring.shut_down();
        (ours, theirs)
    }

    #[test]
    fn calls_allocate_nothing_once_they_have_been_made() {
        let batch = batch(3000);
        let (shard, caller) = allocations(|partition| {
            let mut into = Vec::with_capacity(1 << 20);
            for number in 0..1000 {
                let appended = block_on(partition.append(&batch, Some(Ack::Written))).unwrap();
                let asked = appended.offset;
                if number % 10 == 0 {
                    let fetched = block_on(partition.fetch_into(asked, 1, &mut into)).unwrap();
                    assert_eq!(fetched.bytes as usize, into.len());
                    assert_eq!(into[61..], batch[61..]);
                }
            }
        });
        // What runs the ring allocates a few times, and each round its vector.
        assert!(shard <= 8 && caller <= 1, "for 1000 calls: shard {shard}, caller {caller}");
    }

    #[test]
    fn what_nobody_waits_for_gives_its_slot_back_and_an_end_answers() {
        let slots = Arc::new(Slots::default());
        let batch = batch(100);
        let header = crate::log::check_produced(&batch).unwrap();
        let partition = PartitionId { topic: crate::types::TopicId([1; 16]), index: 0 };
        // Given up first, answered then.
        let (asked, answer) = slots.append(partition, header, None, &batch).unwrap();
        drop(answer);
        assert_eq!(slots.idle.len(), 0, "the shard still has it");
        let (_, bytes) = asked.take();
        assert_eq!(bytes, batch);
        asked.answer(Outcome::Gone, bytes);
        assert_eq!(slots.idle.len(), 1);
        // Answered first, given up then.
        let (asked, answer) = slots.append(partition, header, None, &batch).unwrap();
        assert_eq!(slots.idle.len(), 0, "it is used again");
        asked.answer(Outcome::Gone, Vec::new());
        drop(answer);
        assert_eq!(slots.idle.len(), 1);
        // Never answered.
        let mut into = vec![1, 2, 3];
        let (asked, answer) = slots.fetch(partition, Offset(0), 1, &mut into).unwrap();
        drop(asked);
        assert!(matches!(block_on(answer), Outcome::Failed(EngineError::Stopped)));
        assert_eq!((slots.idle.len(), into.len()), (1, 0));
    }

    #[test]
    fn calls_take_their_offsets_in_the_order_in_which_they_were_asked() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let engine = crate::Engine::open(EngineConfig::new(directory.path().join("data"))).unwrap();
        let batch = batch(100);
        block_on(async {
            let topic = TopicConfig { ack: Ack::Memory, ..TopicConfig::default() };
            engine.create_topic("t", 1, topic).await.unwrap();
            let partition = engine.partition("t", 0).await.unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            for round in 0..200i64 {
                // Some are given up as soon as they were asked.
                let mut asked: Vec<_> = (0..16).map(|_| Box::pin(partition.append(&batch, None))).collect();
                let early = asked.iter_mut().map(|call| call.as_mut().poll(&mut cx)).collect::<Vec<_>>();
                let kept = asked.into_iter().zip(early).enumerate().filter(|(number, _)| number % 3 > 0);
                for (number, (call, early)) in kept.collect::<Vec<_>>() {
                    let appended = match early {
                        Poll::Ready(done) => done,
                        Poll::Pending => call.await,
                    };
                    assert_eq!(appended.unwrap().offset, Offset(round * 16 + number as i64), "round {round}");
                }
            }
        });
        engine.close().unwrap();
    }

    #[test]
    fn calls_that_nobody_answers_are_counted_and_refused_beyond_their_number() {
        let slots = Arc::new(Slots::default());
        let under_way: Vec<UnderWay> = (0..LANE_CALLS_MAX).map(|_| slots.begin().unwrap()).collect();
        assert!(matches!(slots.begin(), Err(EngineError::Busy(LANE_CALLS_MAX))));
        drop(under_way);
        assert!(slots.begin().is_ok());
    }

    /// An engine with little memory, all of it lent until the sender is used.
    fn starved(
        directory: &tempfile::TempDir,
    ) -> (crate::Engine, PartitionHandle, super::super::reply::Sender<()>) {
        let mut config = EngineConfig::new(directory.path().join("data"));
        config.cores = Some(vec![crate::sys::topology::usable_cores().unwrap()[0]]);
        config.shard.arena_bytes_max = 16 << 20;
        let engine = crate::Engine::open(config).unwrap();
        let partition = block_on(async {
            let topic = TopicConfig { ack: Ack::Memory, ..TopicConfig::default() };
            engine.create_topic("t", 1, topic).await.unwrap();
            let partition = engine.partition("t", 0).await.unwrap();
            // Its staging is there before the rest is lent.
            partition.append(&batch(100), None).await.unwrap();
            partition
        });
        let (release, released) = reply();
        let hold = |shard: Shard| async move {
            let ring = shard.ring().clone();
            let mut leases = Vec::new();
            while ring.arena().growth_for(4096).is_some() {
                ring.grow(4096).await.unwrap();
            }
            while let Some(lease) = (0..crate::sys::BLOCK_CLASSES.len())
                .find_map(|class| ring.try_lease(crate::sys::BLOCK_CLASSES[class]))
            {
                leases.push(lease);
            }
            ring.clone().spawn(async move {
                released.await;
                drop(leases);
            });
        };
        block_on(engine.on_shard(hold)).unwrap();
        (engine, partition, release)
    }

    #[test]
    fn calls_that_wait_for_memory_keep_their_order_and_hold_up_nobody_else() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (engine, partition, release) = starved(&directory);
        let (small, large) = (batch(100), batch(100_000));
        let mut cx = Context::from_waker(Waker::noop());
        let mut asked: Vec<_> = (0..12)
            .map(|number| Box::pin(partition.append(if number % 2 == 0 { &large } else { &small }, None)))
            .collect();
        for call in &mut asked {
            assert!(call.as_mut().poll(&mut cx).is_pending());
        }
        // The lane itself is free meanwhile.
        assert_eq!(block_on(engine.topics()).unwrap().len(), 1);
        release.send(());
        for (number, call) in asked.into_iter().enumerate() {
            assert_eq!(block_on(call).unwrap().offset, Offset(1 + number as i64));
        }
        engine.close().unwrap();
    }

    #[test]
    fn who_stands_behind_one_that_waited_in_vain_does_not_wait_as_long_again() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (engine, partition, release) = starved(&directory);
        let large = batch(100_000);
        let mut cx = Context::from_waker(Waker::noop());
        let mut asked: Vec<_> = (0..200).map(|_| Box::pin(partition.append(&large, None))).collect();
        for call in &mut asked {
            assert!(call.as_mut().poll(&mut cx).is_pending());
        }
        // One after the other would take 200 times two seconds.
        let mut behind = 0;
        for call in asked {
            let refused = block_on(call).unwrap_err();
            assert!(matches!(refused, EngineError::Append(AppendError::NoMemory(_))), "{refused}");
            behind += usize::from(refused.to_string().contains("waited in vain"));
        }
        assert!(behind >= 150, "{behind} of 200 did not wait themselves");
        release.send(());
        block_on(partition.append(&large, None)).unwrap();
        engine.close().unwrap();
    }
}
