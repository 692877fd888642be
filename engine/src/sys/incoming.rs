//! A connection's stream, received into buffers that are provided to the ring for all connections together.
//!
//! One standing receive a connection; the kernel takes a buffer only when bytes are there for it. A buffer belongs to
//! the kernel until bytes have come in it, and then to whoever asked for them: a lease as any other, and another one takes
//! its place in the ring when somebody asks again. What has come and was not asked for is bounded a connection
//! ([`BACKLOG_MAX`], and what the kernel receives in one go): beyond that its standing receive ends until it is asked for
//! more. When no buffer is left all receives end, and begin again with whoever finds memory.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use super::arena::LeaseMut;
use super::op::{Reply, Request, Socket};
use super::ring::Ring;

/// Buffers that wait for bytes, of all connections of a ring together; a power of two.
pub const PROVIDED_BUFFERS: usize = 32;
/// One of them.
pub const PROVIDED_BYTES: usize = 256 << 10;
/// Of that, room in front of the bytes: what is left of the buffer before can be put there.
pub const PROVIDED_ROOM: usize = 4 << 10;
/// So many are put there also while somebody waits for memory.
const PROVIDED_MIN: usize = 4;
/// Buffers of one connection that came and were not asked for.
pub(super) const BACKLOG_MAX: usize = 8;

/// A stream that bytes come from. Dropped, what has come and was not asked for is lost.
pub struct Incoming {
    ring: Ring,
    socket: Socket,
    stream: u32,
}

/// Bytes of a stream, in the buffer they came in.
pub struct Arrived {
    room: LeaseMut,
    bytes: LeaseMut,
    rest: LeaseMut,
}

impl Arrived {
    /// Of a provided buffer, whose first `count` bytes behind the room have come.
    pub(super) fn of(mut buffer: LeaseMut, count: usize) -> Arrived {
        let room = buffer.split_to(PROVIDED_ROOM);
        let rest = buffer.split_off(count);
        Arrived { room, bytes: buffer, rest }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Copies `before` in front of them.
    ///
    /// # Panics
    /// When that is more than what is left of [`PROVIDED_ROOM`].
    pub fn prepend(&mut self, before: &[u8]) {
        let mut joined = self.room.split_off(self.room.len() - before.len());
        joined.copy_from_slice(before);
        std::mem::swap(&mut self.bytes, &mut joined);
        self.bytes.unsplit(joined);
    }

    /// The bytes, and the memory behind them.
    #[must_use]
    pub fn into_parts(self) -> (LeaseMut, LeaseMut) {
        (self.bytes, self.rest)
    }
}

impl Ring {
    /// Makes this ring ready for [`Ring::incoming`].
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn prepare_incoming(&self) -> io::Result<()> {
        self.driver().prepare_incoming()
    }

    /// Begins to receive from `socket`, which nobody else receives from.
    ///
    /// # Panics
    /// Without [`Ring::prepare_incoming`] before.
    #[must_use]
    pub fn incoming(&self, socket: &Socket) -> Incoming {
        let stream = self.driver().begin_stream(socket);
        Incoming { ring: self.clone(), socket: socket.clone(), stream }
    }

    /// Puts buffers that are free into the places of those that were taken; when memory is short, only a few.
    fn provide_free(&self) {
        loop {
            let provided = self.driver().provided();
            let short = provided >= PROVIDED_MIN && self.is_short_of_memory();
            if provided == PROVIDED_BUFFERS || short {
                return;
            }
            let Some(buffer) = self.try_lease(PROVIDED_BYTES) else { return };
            self.driver().provide(buffer);
        }
    }

    /// Waits until there is a buffer for whoever has bytes: one of this ring's memory, or one that others provided.
    async fn provide(&self) -> io::Result<()> {
        let mut lease = pin!(self.lease(PROVIDED_BYTES));
        let buffer = poll_fn(|cx| {
            let provided = self.driver().provided();
            match provided {
                0 => lease.as_mut().poll(cx).map(|lease| lease.map(Some)),
                _ => Poll::Ready(Ok(None)),
            }
        });
        if let Some(buffer) = buffer.await? {
            // Others may have filled the table meanwhile; then it goes home.
            drop(self.driver().provide(buffer));
        }
        Ok(())
    }
}

impl Incoming {
    /// The next bytes, at least one; `None` when the peer has finished. A future that is dropped when its bytes have come
    /// loses them.
    ///
    /// # Errors
    /// What the kernel said, or that there is no memory.
    pub async fn next(&mut self) -> io::Result<Option<Arrived>> {
        loop {
            self.ring.provide_free();
            let request = Request::RecvProvided { socket: self.socket.clone(), stream: self.stream };
            match self.ring.submit(request).await {
                (Ok(_), _, Reply::Arrived(arrived)) => return Ok(Some(arrived)),
                (Ok(_), ..) => return Ok(None),
                // The last buffer is taken. This stream holds none now, so it may wait for memory.
                (Err(error), ..) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.ring.provide().await?
                }
                (Err(error), ..) => return Err(error),
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.ring.driver().end_stream(self.stream);
    }
}
