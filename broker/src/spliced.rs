//! Receiving through a pipe: a large batch of a request of its own goes from the socket into the segment file, unseen.
//!
//! As with `in_place` the head of the frame says where it belongs, and the tail of that partition is reserved. The head is
//! checked before anything goes into the pipe; a batch that fails goes the private way, which says what is wrong.

use std::rc::Rc;

use ringlog::log::check_produced_header;
use ringlog::sys::{LeaseMut, Timer};
use ringlog::transfer::Passage;

use crate::connection::{Broker, Connection};
use crate::errors::Fault;
use crate::in_place::{Candidate, PATIENCE};
use crate::produce::Produced;

/// How it ended, as [`crate::in_place::Outcome`].
pub(crate) enum Outcome {
    Taken(Box<Produced>),
    /// The whole frame's memory, and how much of it has come.
    GivenUp(LeaseMut, usize),
    Refused,
    Left,
}

impl Candidate {
    /// Receives the rest of a frame of `total` bytes, of which `frame` has come. Takes the batch's beginning out of `frame`
    /// when it is appended.
    pub(crate) async fn splice(
        &self,
        broker: &Rc<Broker>,
        connection: &Rc<Connection>,
        timer: &Timer,
        frame: &mut LeaseMut,
        total: usize,
    ) -> Result<Outcome, Fault> {
        let ring = broker.shard.ring();
        if check_produced_header(&self.batch).is_err() {
            return Ok(Outcome::Refused);
        }
        // Without descriptors it goes another way.
        let Ok(mut passage) = Passage::open(ring) else { return Ok(Outcome::Refused) };
        let Ok(reservation) = self.partition.reserve(&self.batch).await else {
            return Ok(Outcome::Refused);
        };
        let stated = frame.len() - self.at;
        timer.arm(ring.now().plus(PATIENCE));
        let received = reservation.splice(&connection.socket, &mut passage, stated, timer).await;
        timer.disarm();
        let now = ring.now();
        connection.heard.set(now);
        let received = received?;
        if received.left {
            return Ok(Outcome::Left);
        }
        if received.filled < self.batch.bytes as usize {
            let came = received.filled - stated;
            let mut next = ring.lease(total).await?;
            next[..frame.len()].copy_from_slice(frame);
            let mut into = next.split_off(frame.len());
            let rest = into.split_off(came);
            next.unsplit(reservation.read_back(stated, into).await?);
            next.unsplit(rest);
            return Ok(Outcome::GivenUp(next, frame.len() + came));
        }
        let stated = frame.split_off(self.at);
        let appended = Ok(reservation.commit_spliced(&self.batch, stated, None, now));
        Ok(Outcome::Taken(self.produced(broker, connection, appended, now)))
    }
}
