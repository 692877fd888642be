//! Pipes of the simulated world: bytes in order. They are copied where the kernel would share pages: who is told wrongly
//! when pages may change is found by tests on the kernel's own.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use super::driver::{SimDriver, sim_file};
use super::world::{Outcome, State};
use crate::sys::op::{File, Socket};
use crate::sys::pipe::Pipe;

/// What a pipe holds, shared with the operation that fills or empties it.
pub(super) type SimPipe = Rc<RefCell<VecDeque<u8>>>;

impl SimDriver {
    pub(crate) fn new_pipe(&self, bytes: usize) -> io::Result<Pipe> {
        let faults = &self.world.0.borrow().faults;
        match faults.descriptors_are_out {
            true => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            false => Ok(Pipe::simulated(bytes.min(faults.pipe_bytes_max.unwrap_or(bytes)))),
        }
    }

    pub(crate) fn splice_in(&mut self, file: &File, at: u64, bytes: usize, pipe: &Pipe) -> io::Result<usize> {
        let room = pipe.capacity() - pipe.held();
        self.called().splice_in(file, at, bytes.min(room), pipe.simulated_bytes())
    }

    pub(crate) fn splice_out(&mut self, pipe: &Pipe, socket: &Socket) -> io::Result<usize> {
        let mut state = self.called();
        let room = state.room_to_send(socket)?;
        let sent: Vec<u8> = pipe.simulated_bytes().borrow_mut().drain(..room.min(pipe.held())).collect();
        state.send_now(socket, &sent);
        Ok(sent.len())
    }

    pub(crate) fn splice_from_socket(
        &mut self,
        socket: &Socket,
        bytes: usize,
        pipe: &Pipe,
    ) -> io::Result<usize> {
        let room = pipe.capacity() - pipe.held();
        let mut state = self.called();
        let most = match state.arrived_bytes(socket) {
            None => return Ok(0),
            Some(arrived) => bytes.min(arrived).min(room),
        };
        if most == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = state.some_of(most);
        pipe.simulated_bytes().borrow_mut().extend(state.receive_now(socket, taken));
        Ok(taken)
    }

    pub(crate) fn tee(&mut self, from: &Pipe, to: &Pipe, bytes: usize) -> io::Result<usize> {
        let (held, room) = (from.held(), to.capacity() - to.held());
        let most = bytes.min(held).min(room);
        if most == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let shared = self.called().some_of(most);
        let first: Vec<u8> = from.simulated_bytes().borrow().iter().take(shared).copied().collect();
        to.simulated_bytes().borrow_mut().extend(first);
        Ok(shared)
    }

    pub(crate) fn discard(&mut self, pipe: &Pipe, bytes: usize) -> io::Result<usize> {
        let gone = self.called().some_of(bytes.min(pipe.held()));
        drop(pipe.simulated_bytes().borrow_mut().drain(..gone));
        Ok(gone)
    }

    pub(crate) fn vmsplice(&mut self, bytes: &[u8], pipe: &Pipe) -> io::Result<usize> {
        let room = pipe.capacity() - pipe.held();
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = self.called().some_of(bytes.len().min(room));
        pipe.simulated_bytes().borrow_mut().extend(&bytes[..taken]);
        Ok(taken)
    }

    /// One system call.
    fn called(&mut self) -> std::cell::RefMut<'_, State> {
        let mut state = self.world.0.borrow_mut();
        state.rings[self.ring].counters.system_calls += 1;
        state
    }
}

impl State {
    pub(super) fn splice_in(
        &mut self,
        file: &File,
        at: u64,
        most: usize,
        pipe: &SimPipe,
    ) -> io::Result<usize> {
        let file = sim_file(file);
        if self.faults.fails_read(&file.path) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if most == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut taken = vec![0; self.some_of(most)];
        let read = self.disk.state.inodes[&file.inode].current.read(at, &mut taken);
        pipe.borrow_mut().extend(&taken[..read]);
        Ok(read)
    }

    pub(super) fn splice_to_file(&mut self, file: &File, at: u64, bytes: usize, pipe: &SimPipe) -> Outcome {
        let file = sim_file(file);
        if file.is_direct() {
            return Outcome::failed(libc::EINVAL);
        }
        let most = self.some_of(bytes);
        let data: Vec<u8> = pipe.borrow().iter().take(most).copied().collect();
        let outcome = self.write_bytes(file, at, data);
        if let Ok(written) = outcome.result {
            pipe.borrow_mut().drain(..written as usize);
        }
        outcome
    }

    /// All of `most`, or less, but something.
    fn some_of(&mut self, most: usize) -> usize {
        if most < 2 || self.random.bool() { most } else { self.random.usize(1..=most) }
    }
}
