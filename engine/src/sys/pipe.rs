//! A pipe that pages pass through on their way to a socket or from one: filled from a file, from memory, from another pipe or
//! from a socket, emptied into a socket or a file, never read.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

/// What a pipe is asked to hold: the most that an ordinary user gets.
pub const PIPE_BYTES: usize = 1 << 20;
/// Empty pipes that a ring keeps for the next one who needs one.
pub const PIPES_KEPT_MAX: usize = 16;

/// One pipe. What is in it waits for a socket or a file, or to be taken from it by others.
pub struct Pipe {
    pub(super) kind: PipeKind,
    capacity: usize,
    held: usize,
}

pub(super) enum PipeKind {
    Os {
        read: OwnedFd,
        write: OwnedFd,
    },
    /// Shared with the operation that fills or empties it, as the kernel's side of a descriptor is.
    Sim(Rc<RefCell<VecDeque<u8>>>),
}

impl Pipe {
    /// One that holds `bytes` if the user may have as much, else what the kernel gives.
    pub(super) fn of_kernel(bytes: usize) -> io::Result<Pipe> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Users whose pipes are large in sum get small ones: slower, and right all the same.
        let capacity = fcntl(&write, FcntlArg::F_SETPIPE_SZ(bytes as i32))
            .or_else(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ))?;
        Ok(Pipe { kind: PipeKind::Os { read, write }, capacity: capacity as usize, held: 0 })
    }

    pub(super) fn simulated(bytes: usize) -> Pipe {
        Pipe { kind: PipeKind::Sim(Rc::default()), capacity: bytes, held: 0 }
    }

    pub(super) fn simulated_bytes(&self) -> &Rc<RefCell<VecDeque<u8>>> {
        match &self.kind {
            PipeKind::Sim(bytes) => bytes,
            PipeKind::Os { .. } => unreachable!("pipes do not cross between worlds"),
        }
    }

    pub(super) fn read_end(&self) -> RawFd {
        match &self.kind {
            PipeKind::Os { read, .. } => read.as_raw_fd(),
            PipeKind::Sim(_) => unreachable!("a simulated pipe has no descriptor"),
        }
    }

    pub(super) fn write_end(&self) -> RawFd {
        match &self.kind {
            PipeKind::Os { write, .. } => write.as_raw_fd(),
            PipeKind::Sim(_) => unreachable!("a simulated pipe has no descriptor"),
        }
    }

    /// Bytes in it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes that it takes when it is empty, if they come in whole pages.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn note_in(&mut self, bytes: usize) {
        self.held += bytes;
    }

    pub(super) fn note_out(&mut self, bytes: usize) {
        assert!(bytes <= self.held, "{bytes} bytes came out of a pipe that held {}", self.held);
        self.held -= bytes;
    }
}

/// Empty pipes, to be used again.
#[derive(Default)]
pub(super) struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    pub(super) fn take(&self) -> Option<Pipe> {
        self.0.borrow_mut().pop()
    }

    /// Keeps an empty one; one that still holds bytes is closed, and they are gone with it.
    pub(super) fn give(&self, pipe: Pipe) {
        let mut kept = self.0.borrow_mut();
        if pipe.held == 0 && kept.len() < PIPES_KEPT_MAX {
            kept.push(pipe);
        }
    }
}
