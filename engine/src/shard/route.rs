//! The way to a partition, wherever it is: on this shard directly, on another one through a lane.

use std::fmt;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Waker;

use super::acks::{Ack, Acked, Ticket};
use super::board::Board;
use super::errors::{AppendError, FetchError};
use super::fetch::Fetched;
use super::lanes::{Answer, Call, Posted};
use super::partition::Partition;
use super::shard::Shard;
use super::topics::Topic;
use crate::log::BatchHeader;
use crate::sys::{LeaseMut, Moment};
use crate::transfer::{Egress, Piece};
use crate::types::{Offset, PartitionId};

/// See the module's words. Cheap to clone; belongs to the shard that made it.
#[derive(Clone)]
pub struct Route {
    shard: Shard,
    topic: Rc<Topic>,
    index: i32,
}

impl Route {
    pub(super) fn new(shard: &Shard, topic: &Rc<Topic>, index: i32) -> Route {
        Route { shard: shard.clone(), topic: topic.clone(), index }
    }

    /// Its number within the topic.
    #[must_use]
    pub fn index(&self) -> i32 {
        self.index
    }

    /// Its topic.
    #[must_use]
    pub fn topic(&self) -> &Rc<Topic> {
        &self.topic
    }

    /// The partition itself, if it is this shard's own.
    #[must_use]
    pub fn here(&self) -> Option<&Partition> {
        self.topic.here(self.index)
    }

    /// What its owner shows.
    #[must_use]
    pub fn board(&self) -> &Board {
        self.topic.board(self.index).expect("a route leads to a partition that is there")
    }

    fn id(&self) -> PartitionId {
        PartitionId { topic: self.topic.id, index: self.index }
    }

    async fn post(&self, call: Call) -> Posted {
        let ring = self.shard.ring();
        self.shard.lanes().post(|| ring.now(), self.topic.owner(self.index), call).await
    }

    /// Appends one batch, as [`Partition::append`] does. Returns as soon as its place is settled: batches of one caller
    /// keep their order.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing was appended. On another shard errors come with [`Promise::kept`].
    pub async fn append(
        &self,
        batch: LeaseMut,
        header: BatchHeader,
        ack: Option<Ack>,
        received: Moment,
    ) -> Result<Promise, AppendError> {
        if let Some(partition) = self.here() {
            return partition.append(batch, header, ack, received).await.map(Promise::Here);
        }
        let call = Call::Append { partition: self.id(), batch, header, ack, received };
        Ok(Promise::There(Awaited(self.post(call).await)))
    }

    /// Begins a fetch. On this shard nothing happens until [`Fetching::into`]; elsewhere its owner sets to work, so
    /// several can be under way at once.
    pub async fn begin_fetch(&self, offset: Offset, bytes_max: u64, egress: Egress) -> Fetching {
        if self.here().is_some() {
            return Fetching { route: self.clone(), offset, bytes_max, egress, posted: None };
        }
        let pieces = self.shard.0.shared_pieces.take();
        let call = Call::Fetch { partition: self.id(), offset, bytes_max, egress, pieces };
        let posted = Some(self.post(call).await);
        Fetching { route: self.clone(), offset, bytes_max, egress, posted }
    }

    /// How many bytes a fetch at `offset` would find, at least. `watch` is woken once when there is more, or the
    /// partition closes; [`Board::moves`] changes then.
    ///
    /// # Errors
    /// As [`Partition::fetch`].
    pub async fn readable_bytes(&self, offset: Offset, watch: &Waker) -> Result<u64, FetchError> {
        if let Some(partition) = self.here() {
            partition.watch(watch);
            return partition.readable_bytes(offset);
        }
        let call = Call::Readable { partition: self.id(), offset, watch: watch.clone() };
        match self.post(call).await.answer().await {
            Answer::Readable(found) => found,
            _ => unreachable!("a call gets its own kind of answer"),
        }
    }

    /// Runs `work` on the partition's shard and gives back what it gave; `None` when the partition is gone. Off the hot
    /// path: it allocates.
    pub async fn with<T, W, F>(&self, work: W) -> Option<T>
    where
        T: Send + 'static,
        W: FnOnce(Partition) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        if let Some(partition) = self.here() {
            return Some(work(partition.clone()).await);
        }
        let id = self.id();
        let work = move |shard: Shard| async move {
            match shard.find(id) {
                Some(partition) => Some(work(partition).await),
                None => None,
            }
        };
        self.shard.on(self.topic.owner(self.index), work).await
    }
}

/// `topic-index`, as its directory is called.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic.name, self.index)
    }
}

/// An append that waits for its promise.
pub enum Promise {
    /// On this shard: it has its offset.
    Here(Ticket),
    /// On another one, which answers when the promise holds.
    There(Awaited),
}

/// An answer that another shard owes.
pub struct Awaited(Posted);

impl Promise {
    /// Waits until the promise holds.
    ///
    /// # Errors
    /// See [`Ticket::reached`].
    pub async fn kept(&self) -> Result<Acked, AppendError> {
        match self {
            Promise::Here(ticket) => ticket.reached().await,
            Promise::There(awaited) => {
                poll_fn(|cx| awaited.0.poll_come(cx)).await;
                self.look().expect("the answer has come")
            }
        }
    }

    /// What is known now.
    #[must_use]
    pub fn look(&self) -> Option<Result<Acked, AppendError>> {
        match self {
            Promise::Here(ticket) => ticket.look(),
            Promise::There(awaited) => awaited.0.peek(|answer| match answer {
                Answer::Appended(result) => result.clone(),
                _ => unreachable!("a call gets its own kind of answer"),
            }),
        }
    }
}

/// A fetch under way.
pub struct Fetching {
    route: Route,
    offset: Offset,
    bytes_max: u64,
    egress: Egress,
    posted: Option<Posted>,
}

impl Fetching {
    /// Adds to `pieces` what was found, as [`Partition::fetch`] does. What is here is looked up now, and no more than
    /// `bytes_max` of it; what is elsewhere was asked for with the bound of then.
    ///
    /// # Errors
    /// See [`FetchError`]; nothing was added.
    pub async fn into(self, bytes_max: u64, pieces: &mut Vec<Piece>) -> Result<Fetched, FetchError> {
        let Some(posted) = self.posted else {
            let partition = self.route.here().expect("what is not here was posted");
            return partition.fetch(self.offset, self.bytes_max.min(bytes_max), self.egress, pieces).await;
        };
        let Answer::Fetched(fetched, mut shared) = posted.answer().await else {
            unreachable!("a call gets its own kind of answer")
        };
        let ring = self.route.shard.ring();
        pieces.extend(shared.drain(..).map(|piece| piece.adopt(ring)));
        self.route.shard.0.shared_pieces.give(shared);
        fetched
    }
}
