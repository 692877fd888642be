//! What an io_uring offers here: the flags of its set-up, operations, how much memory may be registered with it.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use io_uring::{IoUring, Probe, opcode};

use crate::sys::uring::{FIXED_BUFFERS, Setup, UringError, UringOptions, set_up};

/// Memory is offered for registration in pieces of this size, as the arena's smallest chunks are.
const PIECE_BYTES: usize = 2 << 20;

/// What a ring offers.
#[derive(Debug)]
pub struct RingOffer {
    /// Set-up flags granted and refused.
    pub setup: Setup,
    /// Operations that strategies ask for.
    pub operations: Vec<Operation>,
    /// Whether a ring can take over the registered buffers of another (Linux 6.12); none where there was no room for a
    /// second ring to ask with.
    pub clones_buffers: Option<bool>,
    /// Memory that was accepted for registration, of what was asked for; the user's other rings have their part already.
    pub registered_bytes: u64,
    /// What was asked for: no more than one ring's table of buffers takes in pieces of 2 MiB, which is 2 GiB.
    pub asked_bytes: u64,
    /// What the kernel said to the first piece that it did not accept.
    pub refusal: Option<io::Error>,
}

/// An operation and whether this kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its kernel name, without the `IORING_OP_`.
    pub name: &'static str,
    /// The first Linux that has it.
    pub since: &'static str,
    /// Whether this one does.
    pub known: bool,
}

/// Sets up a ring as shards do and asks what it offers; `memory_bytes` are offered for registration. Meanwhile, some
/// milliseconds, they are charged to the user's memlock limit.
///
/// # Errors
/// When the kernel refuses io_uring: cause and cure.
pub fn ring(memory_bytes: u64) -> Result<RingOffer, UringError> {
    let (ring, setup) = set_up(&UringOptions::default())?;
    let operations = operations(&ring);
    let sparse = ring.submitter().register_buffers_sparse(FIXED_BUFFERS);
    let clones_buffers = sparse.as_ref().ok().and_then(|()| clones_buffers(&ring));
    let pieces = memory_bytes.div_ceil(PIECE_BYTES as u64).min(u64::from(FIXED_BUFFERS)) as u32;
    let (registered, refusal) = match sparse.and_then(|()| Piece::map()) {
        Ok(piece) => register(&ring, &piece, pieces),
        Err(error) => (0, Some(error)),
    };
    Ok(RingOffer {
        setup,
        operations,
        clones_buffers,
        registered_bytes: u64::from(registered) * PIECE_BYTES as u64,
        asked_bytes: u64::from(pieces) * PIECE_BYTES as u64,
        refusal,
    })
}

fn operations(ring: &IoUring) -> Vec<Operation> {
    let mut probe = Probe::new();
    let answered = ring.submitter().register_probe(&mut probe).is_ok();
    let asked = [
        ("SPLICE", "5.7", opcode::Splice::CODE),
        ("TEE", "5.8", opcode::Tee::CODE),
        ("SEND_ZC", "6.0", opcode::SendZc::CODE),
        ("SENDMSG_ZC", "6.1", opcode::SendMsgZc::CODE),
    ];
    let known = |code| answered && probe.is_supported(code);
    asked.map(|(name, since, code)| Operation { name, since, known: known(code) }).into()
}

/// An empty table is cloned as well as a full one, and where the kernel does not know how it says `EINVAL` before it looks.
fn clones_buffers(ring: &IoUring) -> Option<bool> {
    let (other, _) = set_up(&UringOptions::default()).ok()?;
    Some(other.submitter().register_buffers_clone(ring.as_raw_fd()).is_ok())
}

/// Registers one piece again and again: the limit is charged for each of them, and the memory is taken once.
fn register(ring: &IoUring, piece: &Piece, pieces: u32) -> (u32, Option<io::Error>) {
    let vector = libc::iovec { iov_base: piece.0.as_ptr(), iov_len: PIECE_BYTES };
    let mut refusal = None;
    let mut registered = 0;
    while registered < pieces && refusal.is_none() {
        // SAFETY: `piece` is mapped and writable until after the buffers are unregistered below, and no operation is ever
        // submitted that would use them.
        match unsafe { ring.submitter().register_buffers_update(registered, &[vector], None) } {
            Ok(_) => registered += 1,
            Err(error) => refusal = Some(error),
        }
    }
    // Failing, it is done when the ring is closed.
    let _ = ring.submitter().unregister_buffers();
    (registered, refusal)
}

/// Plain memory, not in huge pages: those the limit would be charged for only once.
struct Piece(NonNull<libc::c_void>);

impl Piece {
    fn map() -> io::Result<Piece> {
        let (read_write, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), PIECE_BYTES, read_write, private, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advice on the mapping just made; refused where the kernel has no huge pages, which is as well.
        unsafe { libc::madvise(base, PIECE_BYTES, libc::MADV_NOHUGEPAGE) };
        Ok(Piece(NonNull::new(base).expect("mmap does not return null")))
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, with its length; nothing else refers to it.
        unsafe { libc::munmap(self.0.as_ptr(), PIECE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_says_what_it_offers() {
        let offer = match ring(8 << 20) {
            Ok(offer) => offer,
            Err(error) => return println!("skipped: {error}"),
        };
        assert_eq!(offer.asked_bytes, 8 << 20);
        assert!(offer.registered_bytes <= offer.asked_bytes);
        assert_eq!(offer.refusal.is_none(), offer.registered_bytes == offer.asked_bytes, "{offer:?}");
        let splice = offer.operations.iter().find(|operation| operation.name == "SPLICE").unwrap();
        assert!(splice.known, "whatever has a ring that we can use has splice");
        let small = ring(1).unwrap();
        assert_eq!(small.asked_bytes, PIECE_BYTES as u64);
    }

    /// The filter is the calling thread's alone, as a container's is the container's.
    fn refuse_io_uring_by_seccomp() -> io::Result<()> {
        const LOAD_NUMBER: u16 = 0x20;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let filter = [
            libc::sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
            libc::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: libc::SYS_io_uring_setup as u32 },
            libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: refuse },
            libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the kernel copies `program` and the filter behind it, which both outlive the calls.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    #[test]
    fn a_ring_that_seccomp_refuses_is_forbidden_with_the_cure() {
        let refused = std::thread::spawn(|| refuse_io_uring_by_seccomp().map(|()| ring(0)));
        match refused.join().unwrap() {
            Err(error) => println!("skipped: no seccomp here: {error}"),
            Ok(offer) => {
                let error = offer.unwrap_err();
                assert!(matches!(error, UringError::Forbidden { .. }), "{error}");
                assert!(error.to_string().contains("seccomp=unconfined"), "{error}");
            }
        }
    }
}
