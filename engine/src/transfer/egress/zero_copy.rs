//! What `direct_zc` and `tail_zc` share: one lease into the socket, lent instead of copied.
//!
//! Each lease is a `SEND_ZC` of its own, from the registered buffer it lies in: then the kernel takes no reference to any page
//! and charges nothing to the memlock limit. One operation for several leases would need all of them in the same registered
//! buffer, or pin pages at each send. The send after it waits for its completion (bytes queued, in order), never for its
//! release: waiting for each release costs most of the rate, since that takes the peer's acknowledgement.
//!
//! What a connection and an arena may have unreleased is bounded ([`crate::sys::UNRELEASED_BYTES_MAX`], a quarter of the
//! arena). Beyond, the bytes are sent by copying: waiting would make one peer's acknowledgements another's delay, and a
//! copying send waits for room in the socket anyway. It is counted (`plain_sends`, `full_sends`).

use std::io;

use super::Outgoing;
use crate::sys::{Lease, Lending};

/// Smaller leases go along with the protocol bytes, by copying: below about 10 KB setting up the pages, and the second
/// completion, cost more than the copy of bytes that lie in the processor's cache; and a release is told for each send,
/// while small leases keep whole blocks from being used again.
pub(super) const ZERO_COPY_BYTES_MIN: usize = 16 << 10;

/// Sends `lease`, after what has gathered. `more` says that other bytes of the same piece follow.
pub(super) async fn send_lease(out: &mut Outgoing<'_>, mut lease: Lease, more: bool) -> io::Result<()> {
    if lease.len() < ZERO_COPY_BYTES_MIN {
        return out.add_memory(lease).await;
    }
    out.flush(true).await?;
    let more = more || !out.response.is_empty();
    loop {
        match out.ring.send_zero_copy(out.socket, &lease, more).await? {
            Lending::Sent(0) => return Err(io::ErrorKind::WriteZero.into()),
            Lending::Sent(sent) => {
                out.note(|c| c.sends += 1);
                if sent == lease.len() {
                    return Ok(());
                }
                lease = lease.slice(sent..lease.len());
            }
            // It goes with what follows.
            Lending::NotLent => return out.add_memory(lease).await,
        }
    }
}
