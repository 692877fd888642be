//! One connection of the load: frames out of leases, frames into leases.
//!
//! It sits on the engine's ring and knows nothing of producers and consumers; rare requests are in [`crate::admin`]. Those on
//! the hot path are prepared in the caller's lease and leave in one send; answers are read in place, out of a buffer
//! that never moves. Nothing is allocated per request.
//!
//! ```text
//! incoming buffer:  | answered | whole frame | begun frame .. | free ..          |
//!                   0          start                          end                capacity
//! ```

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail};
use ringlog::sys::{Lease, LeaseMut, Ring, Socket};
use ringlog_broker::wire::PREFIX_BYTES;

/// What the load calls itself.
pub const CLIENT_ID: &str = "ringlog-harness";
/// More than this missing of a frame is waited for in one operation.
const WAIT_FOR_ALL_BYTES: usize = 8 << 10;

/// One connection to a broker.
#[derive(Clone)]
pub struct Connection {
    pub(crate) ring: Ring,
    socket: Socket,
}

/// What a connection has received and nobody has read yet.
pub struct Incoming {
    /// Absent while the kernel writes into it.
    buffer: Option<LeaseMut>,
    start: usize,
    end: usize,
    /// Bytes of the frame lent out last, passed over by the next call.
    lent: usize,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn open(ring: &Ring, address: SocketAddr) -> Result<Connection> {
        let socket =
            ring.connect(address).await.with_context(|| format!("connecting to the broker at {address}"))?;
        Ok(Connection { ring: ring.clone(), socket })
    }

    /// A buffer for frames of at most `frame_bytes_max`, prefix included.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub async fn incoming(&self, frame_bytes_max: usize) -> Result<Incoming> {
        let buffer = self.ring.lease(frame_bytes_max).await.context("memory for answers")?;
        Ok(Incoming { buffer: Some(buffer), start: 0, end: 0, lent: 0 })
    }

    /// Sends a prepared request.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn send(&self, request: Lease) -> Result<()> {
        let bytes = request.len();
        let (sent, _request) = self.ring.send(&self.socket, request, false).await;
        match sent.context("sending a request")? {
            sent if sent == bytes => Ok(()),
            sent => bail!("the broker took {sent} of {bytes} bytes of a request and closed the connection"),
        }
    }

    /// The next whole frame, without its length prefix; it is passed over by the next call.
    ///
    /// # Errors
    /// When the connection ended or the frame is larger than the buffer.
    pub async fn receive<'a>(&self, incoming: &'a mut Incoming) -> Result<&'a [u8]> {
        incoming.pass_over_lent();
        loop {
            let missing = incoming.missing()?;
            if missing == 0 {
                return Ok(incoming.lend());
            }
            self.receive_some(incoming, missing).await?;
        }
    }

    async fn receive_some(&self, incoming: &mut Incoming, missing: usize) -> Result<()> {
        let mut front =
            incoming.buffer.take().context("a receive that was given up before lost its buffer")?;
        if front.len() - incoming.end < missing {
            front.copy_within(incoming.start..incoming.end, 0);
            incoming.end -= incoming.start;
            incoming.start = 0;
        }
        let mut free = front.split_off(incoming.end);
        let (received, free) = if missing >= WAIT_FOR_ALL_BYTES {
            let rest = free.split_off(missing);
            let (received, mut free) = self.ring.recv_all(&self.socket, free).await;
            free.unsplit(rest);
            (received, free)
        } else {
            self.ring.recv(&self.socket, free).await
        };
        front.unsplit(free);
        incoming.buffer = Some(front);
        match received.context("receiving an answer")? {
            0 => bail!("the broker closed the connection"),
            bytes => incoming.end += bytes,
        }
        Ok(())
    }
}

impl Incoming {
    fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    fn pass_over_lent(&mut self) {
        self.start += std::mem::take(&mut self.lent);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// How many bytes of the first frame are still to come, or of its prefix.
    fn missing(&self) -> Result<usize> {
        let bytes = self.bytes();
        let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(PREFIX_BYTES - bytes.len()) };
        let length = i32::from_be_bytes(*prefix);
        let capacity = self.buffer.as_ref().map_or(0, |buffer| buffer.len());
        let whole = usize::try_from(length).ok().map(|length| length + PREFIX_BYTES);
        match whole.filter(|&whole| whole <= capacity) {
            Some(whole) => Ok(whole.saturating_sub(bytes.len())),
            None => Err(anyhow!("an answer of {length} bytes, the buffer for it has {capacity}")),
        }
    }

    fn lend(&mut self) -> &[u8] {
        let prefix = self.bytes().first_chunk::<PREFIX_BYTES>().expect("a whole frame has a prefix");
        self.lent = PREFIX_BYTES + i32::from_be_bytes(*prefix) as usize;
        let lent = self.lent;
        &self.bytes()[PREFIX_BYTES..lent]
    }
}
