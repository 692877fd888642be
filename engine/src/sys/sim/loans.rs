//! Loans: the memory of zero-copy sends in the simulated network.
//!
//! A zero-copy send completes when its bytes are queued; they stay where they are and are looked at when they arrive. The
//! release notice comes later still: after the arrival, or for half of the loans only after the peer has received the bytes.
//! Then the memory must be as it was when the send was submitted.

use std::collections::BTreeMap;

use super::driver::Memory;
use super::network::NetworkEvent;
use super::world::{Address, Due, Outcome, State};
use crate::sys::op::Reply;

/// Bytes on their way.
pub(super) enum Parcel {
    Bytes(Vec<u8>),
    /// A part of what a loan covers.
    Lent {
        loan: u64,
        at: usize,
        bytes: usize,
    },
}

impl Parcel {
    pub fn len(&self) -> usize {
        match self {
            Parcel::Bytes(bytes) => bytes.len(),
            Parcel::Lent { bytes, .. } => *bytes,
        }
    }

    pub fn split_to(&mut self, first: usize) -> Parcel {
        match self {
            Parcel::Bytes(bytes) => {
                let rest = bytes.split_off(first);
                Parcel::Bytes(std::mem::replace(bytes, rest))
            }
            Parcel::Lent { loan, at, bytes } => {
                let part = Parcel::Lent { loan: *loan, at: *at, bytes: first };
                (*at, *bytes) = (*at + first, *bytes - first);
                part
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Loans(BTreeMap<u64, Loan>);

struct Loan {
    address: Address,
    sender: u64,
    memory: Memory,
    /// The bytes as they were.
    lent: Vec<u8>,
    /// Bytes that are queued, once the send has completed, and when that is.
    queued: Option<(usize, u64)>,
    /// Of these, bytes that nobody needs any more.
    settled: usize,
    /// Released only when the peer has received it.
    late: bool,
    /// The broken driver has let go of the memory already.
    released: bool,
}

impl Loans {
    /// The bytes of a parcel, as they are now.
    pub fn look_at(&self, parcel: &Parcel) -> Vec<u8> {
        match parcel {
            Parcel::Bytes(bytes) => bytes.clone(),
            Parcel::Lent { loan, at, bytes } => self.0[loan].memory.part(*at, *bytes),
        }
    }

    pub fn is_late(&self, loan: u64) -> bool {
        self.0[&loan].late
    }

    /// What `sender` lent is released without waiting for the peer.
    pub fn call_in(&mut self, sender: u64) {
        self.0.values_mut().filter(|loan| loan.sender == sender).for_each(|loan| loan.late = false);
    }
}

impl State {
    pub(super) fn take_loan(&mut self, address: Address, sender: u64, memory: Memory) -> u64 {
        let (id, late) = (self.network.new_id(), self.random.bool());
        let lent = memory.take();
        let loan = Loan { address, sender, memory, lent, queued: None, settled: 0, late, released: false };
        self.network.loans.0.insert(id, loan);
        id
    }

    /// The send ends before anything of it was queued.
    pub(super) fn forget_loan(&mut self, loan: Option<u64>) {
        if let Some(loan) = loan {
            self.network.loans.0.remove(&loan);
        }
    }

    /// The send completes with so many bytes queued.
    pub(super) fn queued_loan(&mut self, id: u64, bytes: usize) {
        let completes_at = self.now + self.latency();
        let early = self.faults.release_early;
        let loan = self.network.loans.0.get_mut(&id).expect("a loan lasts until it is released");
        loan.queued = Some((bytes, completes_at));
        loan.released = early;
        let reply = if early { Reply::None } else { Reply::Lent };
        let outcome = Outcome { result: Ok(bytes as u32), reply, records: Vec::new() };
        let address = loan.address;
        self.at(completes_at, Due::Complete(address, Box::new(outcome)));
        self.settle_loan(id, 0);
    }

    pub(super) fn settle_parcel(&mut self, parcel: &Parcel) {
        if let Parcel::Lent { loan, bytes, .. } = parcel {
            self.settle_loan(*loan, *bytes);
        }
    }

    /// So many bytes of it are needed no more.
    pub(super) fn settle_loan(&mut self, id: u64, bytes: usize) {
        let latency = self.latency();
        let loan = self.network.loans.0.get_mut(&id).expect("a loan lasts until it is released");
        loan.settled += bytes;
        if let Some((queued, completes_at)) = loan.queued
            && loan.settled == queued
        {
            // Often both come with one visit.
            let time = completes_at.max(self.now + latency);
            self.at(time, Due::Network(NetworkEvent::Release(id)));
        }
    }

    pub(super) fn release_loan(&mut self, id: u64) {
        let loan = self.network.loans.0.remove(&id).expect("a loan is released once");
        if loan.released {
            return;
        }
        assert!(
            loan.memory.take() == loan.lent,
            "the world of seed {}: memory of a zero-copy send of {} bytes changed before its release",
            self.seed,
            loan.lent.len()
        );
        let reply = Reply::Released { copied: self.random.bool() };
        self.complete(loan.address, Ok(0), reply);
    }
}
