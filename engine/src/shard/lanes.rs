//! Lanes between shards: a call goes to the shard that owns a partition, its answer comes back. Bounded both ways.
//!
//! Every shard has one mailbox. A shard may have [`LANE_CALLS_MAX`] calls under way at each other shard; who wants one
//! more waits for its turn, at home. So a mailbox has room for whatever can be put into it, and putting never fails.
//! Memory crosses as leases and files as shared descriptors: ownership moves, bytes do not.
//!
//! At its owner a call is worked on by a pool of tasks that grows to what was ever under way at once. Appends take
//! their place in their partition's queue when they are taken out of the mailbox, so those of one caller keep their
//! order.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::acks::{Ack, Acked};
use super::errors::{AppendError, FetchError};
use super::fetch::Fetched;
use super::node::Node;
use super::partition::Partition;
use super::shard::Shard;
use super::turns::{Turn, Turns};
use crate::log::BatchHeader;
use crate::sys::{LeaseMut, Moment};
use crate::transfer::{Egress, Piece, SharedPiece};
use crate::types::{Offset, PartitionId, ShardId};

/// Calls of one shard under way at another; the next one waits for its turn.
pub const LANE_CALLS_MAX: usize = 64;

/// What lies in a mailbox.
pub(super) enum Letter {
    Call {
        from: ShardId,
        ticket: u32,
        call: Call,
    },
    Answer {
        ticket: u32,
        answer: Answer,
    },
    /// Some durable end has moved far: the checkpoints are to be written. At most one lies in a mailbox.
    CheckpointDue,
    /// A flush failed on another shard: nothing on the device may be called durable any more. Once a shard.
    DeviceFailed(Arc<str>),
}

/// What one shard asks of another.
pub(super) enum Call {
    Append {
        partition: PartitionId,
        batch: LeaseMut,
        header: BatchHeader,
        ack: Option<Ack>,
        received: Moment,
    },
    Fetch {
        partition: PartitionId,
        offset: Offset,
        bytes_max: u64,
        egress: Egress,
        /// Empty; comes back filled.
        pieces: Vec<SharedPiece>,
    },
    /// How much is there; `watch` is woken once, when more is.
    Readable { partition: PartitionId, offset: Offset, watch: Waker },
    /// Anything else, off the hot path.
    Work(Work),
}

pub(super) type Work = Box<dyn FnOnce(Shard) -> Pin<Box<dyn Future<Output = Box<dyn Any + Send>>>> + Send>;

/// What comes back.
pub(super) enum Answer {
    Appended(Result<Acked, AppendError>),
    Fetched(Result<Fetched, FetchError>, Vec<SharedPiece>),
    Readable(Result<u64, FetchError>),
    Worked(Box<dyn Any + Send>),
}

/// Room that a mailbox needs among `shards`: calls and answers of every lane, and one of each notice from everybody.
pub(super) fn mailbox_capacity(shards: u16) -> usize {
    usize::from(shards) * (2 * LANE_CALLS_MAX + 2)
}

/// What lanes counted on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounters {
    /// Calls to other shards.
    pub calls_out: u64,
    /// Calls from other shards.
    pub calls_in: u64,
    /// Calls that had to wait for their turn because the lane was full.
    pub waits: u64,
    /// The longest such wait, in nanoseconds.
    pub longest_wait_nanos: u64,
    /// Letters that lay in this shard's mailbox at once, at most.
    pub mailbox_longest: usize,
}

/// One shard's end of all lanes.
pub(super) struct Lanes {
    node: Arc<Node>,
    id: ShardId,
    slots: RefCell<Vec<Slot>>,
    vacant: RefCell<Vec<u32>>,
    outgoing: Box<[Outgoing]>,
    counters: Cell<LaneCounters>,
    workers: Workers,
    /// The shard has left: its tasks here end.
    over: Cell<bool>,
}

/// Towards one other shard.
struct Outgoing {
    under_way: Cell<usize>,
    turns: Turns,
    /// Who is at the front and waits for a call to end.
    front: RefCell<Option<Waker>>,
}

/// One call under way.
struct Slot {
    to: ShardId,
    waker: Option<Waker>,
    answer: Option<Answer>,
    /// Nobody waits any more: what comes back is dropped.
    orphan: bool,
}

#[derive(Default)]
struct Workers {
    ready: RefCell<VecDeque<Job>>,
    idle: RefCell<Vec<Waker>>,
}

struct Job {
    from: ShardId,
    ticket: u32,
    call: Call,
    turn: Option<(Partition, Turn)>,
}

impl Lanes {
    pub(super) fn new(node: Arc<Node>, id: ShardId) -> Lanes {
        let outgoing =
            |_| Outgoing { under_way: Cell::new(0), turns: Turns::default(), front: RefCell::new(None) };
        Lanes {
            outgoing: (0..node.shards()).map(outgoing).collect(),
            node,
            id,
            slots: RefCell::new(Vec::new()),
            vacant: RefCell::new(Vec::new()),
            counters: Cell::new(LaneCounters::default()),
            workers: Workers::default(),
            over: Cell::new(false),
        }
    }

    /// Ends the tasks that read the mailbox and work on calls; what is under way is carried out.
    pub(super) fn end(&self) {
        self.over.set(true);
        self.node.mailbox(self.id).wake();
        self.workers.idle.borrow_mut().drain(..).for_each(Waker::wake);
    }

    pub(super) fn counters(&self) -> LaneCounters {
        LaneCounters { mailbox_longest: self.node.mailbox(self.id).longest(), ..self.counters.get() }
    }

    fn count(&self, change: impl FnOnce(&mut LaneCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Posts a call as soon as the lane has room for it; calls of one shard to another leave in the order of asking.
    pub(super) async fn post(self: &Rc<Lanes>, now: impl Fn() -> Moment, to: ShardId, call: Call) -> Posted {
        let outgoing = &self.outgoing[usize::from(to.0)];
        if outgoing.turns.is_empty() && outgoing.under_way.get() < LANE_CALLS_MAX {
            return self.put(to, call);
        }
        let asked = now();
        let turn = outgoing.turns.take();
        turn.comes().await;
        poll_fn(|cx| {
            if outgoing.under_way.get() < LANE_CALLS_MAX {
                return Poll::Ready(());
            }
            *outgoing.front.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let waited = now().nanos_since(asked);
        self.count(|c| {
            c.waits += 1;
            c.longest_wait_nanos = c.longest_wait_nanos.max(waited);
        });
        self.put(to, call)
    }

    fn put(self: &Rc<Lanes>, to: ShardId, call: Call) -> Posted {
        assert_ne!(to, self.id, "shard {to} called itself through a lane");
        let outgoing = &self.outgoing[usize::from(to.0)];
        outgoing.under_way.set(outgoing.under_way.get() + 1);
        let slot = Slot { to, waker: None, answer: None, orphan: false };
        let ticket = match self.vacant.borrow_mut().pop() {
            Some(ticket) => {
                self.slots.borrow_mut()[ticket as usize] = slot;
                ticket
            }
            None => {
                self.slots.borrow_mut().push(slot);
                self.slots.borrow().len() as u32 - 1
            }
        };
        self.count(|c| c.calls_out += 1);
        self.deliver(to, Letter::Call { from: self.id, ticket, call });
        Posted { lanes: self.clone(), ticket, over: false }
    }

    fn deliver(&self, to: ShardId, letter: Letter) {
        let delivered = self.node.mailbox(to).put(letter).is_ok();
        assert!(delivered, "the mailbox of shard {to} has no room for what the lanes' bounds allow");
    }

    /// Tells every other shard that a flush failed.
    pub(super) fn announce_failure(&self, why: &str) {
        let why: Arc<str> = why.into();
        for to in (0..self.node.shards()).map(ShardId).filter(|to| *to != self.id) {
            self.deliver(to, Letter::DeviceFailed(why.clone()));
        }
    }

    /// Asks shard 0 for checkpoints.
    pub(super) fn announce_checkpoint(&self) {
        if self.node.claim_checkpoint_notice() {
            self.deliver(ShardId(0), Letter::CheckpointDue);
        }
    }

    fn answered(&self, ticket: u32, answer: Answer) {
        let waker = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[ticket as usize];
            let outgoing = &self.outgoing[usize::from(slot.to.0)];
            outgoing.under_way.set(outgoing.under_way.get() - 1);
            if let Some(front) = outgoing.front.borrow_mut().take() {
                front.wake();
            }
            if slot.orphan {
                self.vacant.borrow_mut().push(ticket);
                None
            } else {
                slot.answer = Some(answer);
                slot.waker.take()
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A call under way. Dropped, its answer is dropped when it comes.
pub(super) struct Posted {
    lanes: Rc<Lanes>,
    ticket: u32,
    over: bool,
}

impl Posted {
    /// Looks at the answer, if it has come.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&Answer) -> T) -> Option<T> {
        self.lanes.slots.borrow()[self.ticket as usize].answer.as_ref().map(look)
    }

    /// Ready once the answer has come.
    pub(super) fn poll_come(&self, cx: &mut Context<'_>) -> Poll<()> {
        let slot = &mut self.lanes.slots.borrow_mut()[self.ticket as usize];
        if slot.answer.is_some() {
            return Poll::Ready(());
        }
        if !slot.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(super) async fn answer(mut self) -> Answer {
        poll_fn(|cx| self.poll_come(cx)).await;
        let answer = self.lanes.slots.borrow_mut()[self.ticket as usize].answer.take();
        self.over = true;
        self.lanes.vacant.borrow_mut().push(self.ticket);
        answer.expect("it has come")
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut slots = self.lanes.slots.borrow_mut();
        let slot = &mut slots[self.ticket as usize];
        if slot.answer.take().is_some() {
            self.lanes.vacant.borrow_mut().push(self.ticket);
        } else {
            slot.orphan = true;
            slot.waker = None;
        }
    }
}

/// Reads the shard's mailbox for its life.
pub(super) async fn serve(shard: Shard) {
    let lanes = shard.lanes().clone();
    let mailbox = lanes.node.mailbox(lanes.id);
    loop {
        let letter = poll_fn(|cx| match mailbox.poll_take(cx) {
            Poll::Ready(letter) => Poll::Ready(Some(letter)),
            Poll::Pending if lanes.over.get() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        let Some(letter) = letter else { return };
        match letter {
            Letter::Answer { ticket, answer } => lanes.answered(ticket, answer),
            Letter::CheckpointDue => {
                lanes.node.take_checkpoint_notice();
                shard.0.common.checkpoint_is_due();
            }
            Letter::DeviceFailed(why) => shard.0.common.latch_all(&why),
            Letter::Call { from, ticket, call } => {
                lanes.count(|c| c.calls_in += 1);
                lanes.dispatch(&shard, Job { from, ticket, call, turn: None });
            }
        }
    }
}

impl Lanes {
    fn dispatch(&self, shard: &Shard, mut job: Job) {
        if let Call::Append { partition, .. } = &job.call {
            // The place in the queue is taken now: the order of the mailbox is the order of the log.
            job.turn = shard.find(*partition).map(|partition| {
                let turn = partition.take_turn();
                (partition, turn)
            });
        }
        self.workers.ready.borrow_mut().push_back(job);
        let idle = self.workers.idle.borrow_mut().pop();
        match idle {
            Some(idle) => idle.wake(),
            None => shard.spawn(work(shard.clone())),
        }
    }
}

/// One task of the pool.
async fn work(shard: Shard) {
    let lanes = shard.lanes().clone();
    loop {
        let job = poll_fn(|cx| {
            let mut idle = lanes.workers.idle.borrow_mut();
            if let Some(job) = lanes.workers.ready.borrow_mut().pop_front() {
                // Who works is not idle, however it came to be woken: a job must not be handed to it.
                idle.retain(|known| !known.will_wake(cx.waker()));
                return Poll::Ready(Some(job));
            }
            if lanes.over.get() {
                return Poll::Ready(None);
            }
            if !idle.iter().any(|known| known.will_wake(cx.waker())) {
                idle.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        let Some(Job { from, ticket, call, turn }) = job else { return };
        let answer = carry_out(&shard, call, turn).await;
        lanes.deliver(from, Letter::Answer { ticket, answer });
    }
}

async fn carry_out(shard: &Shard, call: Call, turn: Option<(Partition, Turn)>) -> Answer {
    match call {
        Call::Append { batch, header, ack, received, .. } => Answer::Appended(match turn {
            None => Err(AppendError::Closed),
            Some((partition, turn)) => {
                match partition.append_in_turn(turn, batch, header, ack, received).await {
                    Ok(ticket) => ticket.reached().await,
                    Err(error) => Err(error),
                }
            }
        }),
        Call::Fetch { partition, offset, bytes_max, egress, mut pieces } => {
            let Some(partition) = shard.find(partition) else {
                return Answer::Fetched(Err(FetchError::Closed), pieces);
            };
            let mut own = shard.0.pieces.take();
            let fetched = partition.fetch(offset, bytes_max, egress, &mut own).await;
            pieces.extend(own.drain(..).map(Piece::share));
            shard.0.pieces.give(own);
            Answer::Fetched(fetched, pieces)
        }
        Call::Readable { partition, offset, watch } => Answer::Readable(match shard.find(partition) {
            None => Err(FetchError::Closed),
            Some(partition) => {
                // Registered before the look, so that nothing can move in between unseen.
                partition.watch(&watch);
                partition.readable_bytes(offset)
            }
        }),
        Call::Work(work) => Answer::Worked(work(shard.clone()).await),
    }
}
