//! Appends and fetches from other threads: each in a slot that is used again, served by a task that is used again.
//!
//! ```text
//! caller:  slot from the pool, filled | -> lane -> |                        | outcome and bytes taken, slot to the pool
//! shard:                                           | idle task serves it -> |
//! ```
//!
//! In the steady state neither side allocates. A caller that stops waiting leaves its slot to the shard, which puts it
//! back when it is done; a shard that ends answers what it was asked with [`EngineError::Stopped`].

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crossbeam::queue::ArrayQueue;

use super::EngineError;
use super::handle::{Appended, read_piece};
use super::lane::LANE_CALLS_MAX;
use crate::log::BatchHeader;
use crate::shard::{Ack, Fetched, Shard};
use crate::transfer::{Egress, Piece};
use crate::types::{Offset, PartitionId};

/// A slot with more memory than this gives it back.
const BYTES_KEPT_MAX: usize = 1 << 20;
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
pub(super) struct Slots(ArrayQueue<Arc<Slot>>);

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
        Slots(ArrayQueue::new(LANE_CALLS_MAX))
    }
}

impl Slots {
    /// An append: the batch is copied into the slot.
    pub(super) fn append(
        self: &Arc<Slots>,
        partition: PartitionId,
        header: BatchHeader,
        ack: Option<Ack>,
        batch: &[u8],
    ) -> (Asked, Answer<'static>) {
        let slot = self.take();
        let mut content = slot.lock();
        content.asked = Some((partition, Ask::Append { header, ack }));
        content.bytes.extend_from_slice(batch);
        drop(content);
        self.both_sides(slot, None)
    }

    /// A fetch: the caller's vector is filled, and is in the slot meanwhile.
    pub(super) fn fetch<'a>(
        self: &Arc<Slots>,
        partition: PartitionId,
        offset: Offset,
        bytes_max: u64,
        into: &'a mut Vec<u8>,
    ) -> (Asked, Answer<'a>) {
        into.clear();
        let slot = self.take();
        let mut content = slot.lock();
        content.asked = Some((partition, Ask::Fetch { offset, bytes_max }));
        std::mem::swap(&mut content.bytes, into);
        drop(content);
        self.both_sides(slot, Some(into))
    }

    fn both_sides<'a>(
        self: &Arc<Slots>,
        slot: Arc<Slot>,
        into: Option<&'a mut Vec<u8>>,
    ) -> (Asked, Answer<'a>) {
        let asked = Asked { slots: self.clone(), slot: Some(slot.clone()) };
        (asked, Answer { slots: self.clone(), slot: Some(slot), into })
    }

    fn take(&self) -> Arc<Slot> {
        self.0.pop().unwrap_or_default()
    }

    fn give(&self, slot: Arc<Slot>) {
        let mut content = slot.lock();
        content.bytes.clear();
        content.bytes.shrink_to(BYTES_KEPT_MAX);
        (content.asked, content.outcome, content.waker, content.given_up) = (None, None, None, false);
        drop(content);
        // One too many is dropped.
        let _ = self.0.push(slot);
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
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
            return;
        }
        drop(content);
        self.slots.give(slot);
    }
}

/// The shard's serving tasks. Calls begin in the order in which they came.
pub(super) struct Servers(Rc<Inner>);

struct Inner {
    shard: Shard,
    idle: RefCell<Vec<Rc<Server>>>,
}

#[derive(Default)]
struct Server {
    next: Cell<Option<Asked>>,
    waker: RefCell<Option<Waker>>,
}

impl Servers {
    pub(super) fn new(shard: Shard) -> Servers {
        Servers(Rc::new(Inner { shard, idle: RefCell::default() }))
    }

    /// Hands a call to an idle task, or to a new one.
    pub(super) fn serve(&self, asked: Asked) {
        let idle = self.0.idle.borrow_mut().pop();
        if let Some(server) = idle {
            server.next.set(Some(asked));
            let waker = server.waker.borrow_mut().take();
            waker.expect("an idle task has gone to sleep").wake();
            return;
        }
        let server = Rc::new(Server { next: Cell::new(Some(asked)), ..Server::default() });
        // The tasks keep the shard, not the other way round: they end with it.
        let inner = self.0.clone();
        self.0.shard.spawn(async move {
            let mut pieces = Vec::new();
            loop {
                let asked = poll_fn(|cx| match server.next.take() {
                    Some(asked) => Poll::Ready(asked),
                    None => {
                        *server.waker.borrow_mut() = Some(cx.waker().clone());
                        Poll::Pending
                    }
                });
                serve(&inner.shard, asked.await, &mut pieces).await;
                let mut idle = inner.idle.borrow_mut();
                if idle.len() == TASKS_KEPT_MAX {
                    return;
                }
                idle.push(server.clone());
            }
        });
    }
}

async fn serve(shard: &Shard, asked: Asked, pieces: &mut Vec<Piece>) {
    let ((partition, ask), mut bytes) = asked.take();
    let outcome = match ask {
        Ask::Append { header, ack } => append(shard, partition, header, ack, &bytes).await,
        Ask::Fetch { offset, bytes_max } => {
            fetch(shard, partition, (offset, bytes_max), pieces, &mut bytes).await
        }
    };
    pieces.clear();
    asked.answer(outcome.unwrap_or_else(Outcome::Failed), bytes);
}

async fn append(
    shard: &Shard,
    partition: PartitionId,
    header: BatchHeader,
    ack: Option<Ack>,
    batch: &[u8],
) -> Result<Outcome, EngineError> {
    let received = shard.ring().now();
    let Some(partition) = shard.find(partition) else { return Ok(Outcome::Gone) };
    let mut lease = shard.ring().lease(batch.len()).await?;
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
        let left = Rc::new(Cell::new(false));
        let mut theirs = 0;
        let ours = std::thread::scope(|scope| {
            let (callers, theirs) = (lane.clone(), &mut theirs);
            scope.spawn(move || {
                calls(&handle);
                warm.send(());
                // By then the other side has begun to count.
                std::thread::sleep(Duration::from_millis(20));
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
        let (asked, answer) = slots.append(partition, header, None, &batch);
        drop(answer);
        assert_eq!(slots.0.len(), 0, "the shard still has it");
        let (_, bytes) = asked.take();
        assert_eq!(bytes, batch);
        asked.answer(Outcome::Gone, bytes);
        assert_eq!(slots.0.len(), 1);
        // Answered first, given up then.
        let (asked, answer) = slots.append(partition, header, None, &batch);
        assert_eq!(slots.0.len(), 0, "it is used again");
        asked.answer(Outcome::Gone, Vec::new());
        drop(answer);
        assert_eq!(slots.0.len(), 1);
        // Never answered.
        let mut into = vec![1, 2, 3];
        let (asked, answer) = slots.fetch(partition, Offset(0), 1, &mut into);
        drop(asked);
        assert!(matches!(block_on(answer), Outcome::Failed(EngineError::Stopped)));
        assert_eq!((slots.0.len(), into.len()), (1, 0));
    }
}
