//! Several leases moved by one operation: the memory list of a vectored write or send.

use super::arena::Lease;

/// The most leases of one gather: well under the kernel's 1024.
pub const GATHER_MAX: usize = 256;

/// A reusable list of leases, in order. Filling and clearing it allocates nothing once it has grown.
pub struct Gather(Box<Inner>);

struct Inner {
    leases: Vec<Lease>,
    bytes: usize,
    /// What the kernel reads; rebuilt from `leases` at each submission and boxed so that it does not move.
    vectors: Vec<libc::iovec>,
    message: libc::msghdr,
}

impl Default for Gather {
    fn default() -> Gather {
        Gather::new()
    }
}

impl Gather {
    /// An empty list.
    #[must_use]
    pub fn new() -> Gather {
        // SAFETY: all zeros is a valid `msghdr`: null pointers with zero lengths.
        let message = unsafe { std::mem::zeroed::<libc::msghdr>() };
        Gather(Box::new(Inner {
            leases: Vec::with_capacity(16),
            bytes: 0,
            vectors: Vec::with_capacity(16),
            message,
        }))
    }

    /// Adds a lease at the end, joined to the last one when it continues it. Gives it back when the list is full.
    ///
    /// # Errors
    /// The lease itself, when [`GATHER_MAX`] are in the list.
    pub fn push(&mut self, lease: Lease) -> Result<(), Lease> {
        let bytes = lease.len();
        let rest = match self.0.leases.last_mut() {
            Some(last) => last.try_join(lease),
            None => Err(lease),
        };
        if let Err(lease) = rest {
            if self.0.leases.len() == GATHER_MAX {
                return Err(lease);
            }
            self.0.leases.push(lease);
        }
        self.0.bytes += bytes;
        Ok(())
    }

    /// Bytes in the list.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Whether there is nothing to move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.leases.is_empty()
    }

    /// The leases, in order.
    #[must_use]
    pub fn leases(&self) -> &[Lease] {
        &self.0.leases
    }

    /// Releases all leases.
    pub fn clear(&mut self) {
        self.0.leases.clear();
        self.0.bytes = 0;
    }

    /// Drops the first `bytes`, which have been moved.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn advance(&mut self, mut bytes: usize) {
        assert!(bytes <= self.0.bytes, "{bytes} bytes moved of a gather of {}", self.0.bytes);
        self.0.bytes -= bytes;
        let mut whole = 0;
        for lease in &mut self.0.leases {
            if bytes < lease.len() {
                *lease = lease.slice(bytes..lease.len());
                break;
            }
            bytes -= lease.len();
            whole += 1;
        }
        self.0.leases.drain(..whole);
    }

    /// The kernel's view: valid until this gather is changed, moved into the operation or not.
    pub(crate) fn vectors(&mut self) -> (*const libc::iovec, u32) {
        let vectors = &mut self.0.vectors;
        vectors.clear();
        vectors.extend(
            self.0.leases.iter().map(|lease| libc::iovec {
                iov_base: lease.as_ptr().cast_mut().cast(),
                iov_len: lease.len(),
            }),
        );
        (vectors.as_ptr(), vectors.len() as u32)
    }

    /// The same as a message for `sendmsg`.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        let (vectors, count) = self.vectors();
        let message = &mut self.0.message;
        message.msg_iov = vectors.cast_mut();
        message.msg_iovlen = count as usize;
        message
    }
}
