//! Lending: memory that zero-copy sends leave with the kernel after they have completed, until it is released.
//!
//! A [`Loan`] goes with the request, then stays in the operation's slot, and ends with the release notice; while it lives the
//! lease cannot be used again. Here is counted how much is lent: by a ring, so that reports can say it; by a connection, so
//! that one peer that does not acknowledge cannot take all that may be lent of an arena (`Lease::lend` bounds that).

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use super::arena::{Lease, LentLease};
use super::clock::Moment;
use super::op::{Socket, SocketKind};
use super::ring::OPS_IN_FLIGHT_MAX;

/// Bytes that one connection may have unreleased: what Linux lets a send buffer grow to by default, so that a peer that
/// acknowledges is not stopped by it. Beyond, sends are made by copying.
pub const UNRELEASED_BYTES_MAX: u64 = 4 << 20;
/// Sends that a ring may have unreleased, however small: each keeps an operation's slot, and everything else needs slots too.
pub const UNRELEASED_SENDS_MAX: u64 = OPS_IN_FLIGHT_MAX as u64 / 4;

/// What the zero-copy sends of a ring came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroCopyUse {
    /// Sends that were made without a copy of our own.
    pub sends: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Of these sends, those of which the kernel says that it copied after all, at least in part.
    pub copied_sends: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Sends that were not made this way since as much was unreleased as may be.
    pub full_sends: u64,
    /// Sends that the kernel would not make this way.
    pub refused_sends: u64,
    /// Bytes that the kernel may still read from.
    pub unreleased_bytes: u64,
    /// Sends that these belong to.
    pub unreleased_sends: u64,
    /// The most bytes that ever were.
    pub unreleased_bytes_most: u64,
}

/// How a zero-copy send went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Lending {
    /// So many bytes are queued; perhaps not all.
    Sent(usize),
    /// Nothing was sent: too much is unreleased, or the kernel does not send this way. Send it by copying.
    NotLent,
}

/// The book of one ring.
#[derive(Default)]
pub(crate) struct LendingBook(Cell<ZeroCopyUse>);

impl LendingBook {
    pub(crate) fn usage(&self) -> ZeroCopyUse {
        self.0.get()
    }

    pub(crate) fn note(&self, change: impl FnOnce(&mut ZeroCopyUse)) {
        let mut usage = self.0.get();
        change(&mut usage);
        self.0.set(usage);
    }
}

/// What one connection has unreleased.
#[derive(Default)]
pub(crate) struct Unreleased {
    bytes: Cell<u64>,
    lent: Cell<bool>,
    /// A release said that the kernel copied after all.
    copied: Cell<bool>,
    /// A release said that it did not.
    shared: Cell<bool>,
    since: Cell<Moment>,
    aborted: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Unreleased {
    /// How much, and since when there is any.
    pub(crate) fn held(&self) -> Option<(u64, Moment)> {
        (self.bytes.get() > 0).then(|| (self.bytes.get(), self.since.get()))
    }

    /// Whether what is lent may be sent without a copy, as far as this connection has shown: nothing was lent yet, or no
    /// release said that the kernel copied. While the first one is under way nobody knows.
    pub(crate) fn may_gather(&self) -> bool {
        !self.copied.get() && (self.shared.get() || !self.lent.get())
    }

    /// Nobody needs to wait any more: the kernel lets go once the last handle is gone.
    pub(crate) fn abort(&self) {
        self.aborted.set(true);
        self.wake();
    }

    pub(crate) fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes.get() == 0 || self.aborted.get() {
            return Poll::Ready(());
        }
        *self.waiter.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(&self) {
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

/// One lease in the kernel's hands. Dropped when it is released.
pub(crate) struct Loan {
    lease: LentLease,
    /// Bytes of it that were queued, once that is known.
    sent: u64,
    connection: Rc<Unreleased>,
    socket: Weak<SocketKind>,
    book: Rc<LendingBook>,
}

impl Loan {
    /// `None` when as much is unreleased as may be.
    pub(crate) fn new(lease: &Lease, socket: &Socket, book: &Rc<LendingBook>, now: Moment) -> Option<Loan> {
        let (connection, bytes) = (&socket.1, lease.len() as u64);
        let before = connection.bytes.get();
        if before + bytes > UNRELEASED_BYTES_MAX || book.usage().unreleased_sends == UNRELEASED_SENDS_MAX {
            return None;
        }
        let lease = lease.lend()?;
        if before == 0 {
            connection.since.set(now);
        }
        connection.bytes.set(before + bytes);
        connection.lent.set(true);
        book.note(|usage| {
            usage.unreleased_sends += 1;
            usage.unreleased_bytes += bytes;
            usage.unreleased_bytes_most = usage.unreleased_bytes_most.max(usage.unreleased_bytes);
        });
        let (connection, socket) = (connection.clone(), Rc::downgrade(&socket.0));
        Some(Loan { lease, sent: 0, connection, socket, book: book.clone() })
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The connection, unless all its handles are gone.
    pub(crate) fn socket(&self) -> Option<Socket> {
        Some(Socket(self.socket.upgrade()?, self.connection.clone()))
    }

    pub(crate) fn note_sent(&mut self, bytes: u64) {
        self.sent = bytes;
        self.book.note(|usage| {
            usage.sends += 1;
            usage.sent_bytes += bytes;
        });
    }

    /// The kernel has let go. A request that failed before anything was queued reads as copied, and is not.
    pub(crate) fn release(self, copied: bool) {
        if self.sent > 0 {
            if copied { self.connection.copied.set(true) } else { self.connection.shared.set(true) }
        }
        if copied && self.sent > 0 {
            self.book.note(|usage| {
                usage.copied_sends += 1;
                usage.copied_bytes += self.sent;
            });
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let bytes = self.lease.len() as u64;
        self.book.note(|usage| {
            usage.unreleased_sends -= 1;
            usage.unreleased_bytes -= bytes;
        });
        let left = self.connection.bytes.get() - bytes;
        self.connection.bytes.set(left);
        if left == 0 {
            self.connection.wake();
        }
    }
}

#[cfg(test)]
mod tests;
