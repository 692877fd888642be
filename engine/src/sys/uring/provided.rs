//! Buffers provided to the kernel's ring, and the standing receives that fill them.

use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types::BufRingEntry};

use crate::sys::arena::LeaseMut;
use crate::sys::incoming::{Arrived, BACKLOG_MAX, PROVIDED_BUFFERS, PROVIDED_ROOM};
use crate::sys::op::{Completion, Reply, Token};

/// The only group of buffers on a ring.
pub(super) const GROUP: u16 = 0;
/// The table's entries are 16 bytes each.
const TABLE_BYTES: usize = 4096;
const _: () = assert!(PROVIDED_BUFFERS.is_power_of_two() && PROVIDED_BUFFERS * 16 <= TABLE_BYTES);

/// The table that the kernel takes buffers from, and who receives into them.
pub(super) struct Provided {
    table: NonNull<BufRingEntry>,
    /// Entries ever put into the table, as the kernel counts them.
    tail: u16,
    /// By number, as long as it is the kernel's.
    buffers: [Option<LeaseMut>; PROVIDED_BUFFERS],
    count: usize,
    streams: Vec<Stream>,
    vacant: Vec<u32>,
}

/// A socket with its standing receive.
#[derive(Default)]
struct Stream {
    state: State,
    backlog: VecDeque<io::Result<Option<Arrived>>>,
    waiting: Option<Token>,
    /// Nobody will ask any more.
    ended: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum State {
    #[default]
    Idle,
    Armed,
    /// Told to end, and not known to have ended.
    Cancelled,
}

/// What the driver is to do about a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Nothing,
    Arm,
    Cancel,
}

impl Provided {
    /// Registers an empty table with the ring.
    pub(super) fn register(ring: &IoUring) -> io::Result<Provided> {
        let (access, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), TABLE_BYTES, access, private, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let table = NonNull::new(raw.cast()).expect("mmap does not return null");
        let provided = Provided {
            table,
            tail: 0,
            buffers: [const { None }; PROVIDED_BUFFERS],
            count: 0,
            streams: Vec::new(),
            vacant: Vec::new(),
        };
        let (address, entries) = (raw as u64, PROVIDED_BUFFERS as u16);
        // SAFETY: the table is mapped until `Provided` is dropped, which is after the ring it is registered with (the
        // order of the driver's fields); the kernel holds its page itself until the ring is really gone.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, entries, GROUP, 0)? };
        Ok(provided)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Gives a buffer to the kernel; gives it back when the table is full.
    pub(super) fn provide(&mut self, mut buffer: LeaseMut) -> Option<LeaseMut> {
        let Some(number) = self.buffers.iter().position(Option::is_none) else { return Some(buffer) };
        let into = &mut buffer[PROVIDED_ROOM..];
        let (address, bytes) = (into.as_mut_ptr() as u64, into.len() as u32);
        let index = usize::from(self.tail) % PROVIDED_BUFFERS;
        // SAFETY: the index lies within the table, which is ours and mapped; the kernel reads an entry only once the tail
        // has passed it, and has let go of this one, since no more entries are in use than there are buffers. The buffer
        // stays in `buffers` until the kernel has said that it is done with it.
        unsafe {
            let entry = &mut *self.table.as_ptr().add(index);
            entry.set_addr(address);
            entry.set_len(bytes);
            entry.set_bid(number as u16);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry of the table, mapped as above, aligned to two bytes, and is written by
        // this thread alone; the kernel reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.table.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
        self.buffers[number] = Some(buffer);
        self.count += 1;
        None
    }

    pub(super) fn begin_stream(&mut self) -> u32 {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.streams.push(Stream::default());
            self.streams.len() as u32 - 1
        });
        let stream = &mut self.streams[index as usize];
        assert!(stream.state == State::Idle && stream.waiting.is_none() && stream.backlog.is_empty());
        stream.ended = false;
        index
    }

    /// Nobody will ask any more. The stream's number is given away when its receive has ended.
    pub(super) fn end_stream(&mut self, index: u32) -> Step {
        let stream = &mut self.streams[index as usize];
        stream.ended = true;
        stream.backlog.clear();
        match stream.state {
            State::Idle => {
                self.vacant.push(index);
                Step::Nothing
            }
            State::Armed => {
                stream.state = State::Cancelled;
                Step::Cancel
            }
            State::Cancelled => Step::Nothing,
        }
    }

    /// Receives that the kernel has not ended.
    pub(super) fn under_way(&self) -> usize {
        self.streams.iter().filter(|stream| stream.state != State::Idle).count()
    }

    /// Somebody asks for the next bytes.
    pub(super) fn ask(&mut self, index: u32, token: Token, done: &mut VecDeque<Completion>) -> Step {
        let stream = &mut self.streams[index as usize];
        assert!(stream.waiting.is_none() && !stream.ended, "one task receives from a stream");
        stream.waiting = Some(token);
        stream.hand_out(done);
        if stream.waiting.is_none() || stream.state != State::Idle {
            return Step::Nothing;
        }
        stream.state = State::Armed;
        Step::Arm
    }

    /// Whoever asked under `token` does not want them any more: true when it was there.
    pub(super) fn forget(&mut self, token: Token) -> bool {
        let asking = self.streams.iter_mut().find(|stream| stream.waiting == Some(token));
        asking.map(|stream| stream.waiting = None).is_some()
    }

    /// The kernel says something about a stream: bytes in a buffer, the end, or an error; `more` when its receive stands.
    pub(super) fn note(
        &mut self,
        index: u32,
        result: io::Result<u32>,
        number: Option<u16>,
        more: bool,
        done: &mut VecDeque<Completion>,
    ) -> Step {
        let buffer = number.map(|number| {
            self.count -= 1;
            self.buffers[usize::from(number)].take().expect("the kernel fills buffers that it was given")
        });
        let stream = &mut self.streams[index as usize];
        let arrived = match (result, buffer) {
            (Ok(0), _) => Some(Ok(None)),
            (Ok(count), Some(buffer)) => Some(Ok(Some(Arrived::of(buffer, count as usize)))),
            (Ok(count), None) => unreachable!("{count} bytes were received into no buffer"),
            (Err(error), _) => match error.raw_os_error() {
                Some(libc::ECANCELED | libc::ENOBUFS) => None,
                _ => Some(Err(error)),
            },
        };
        if !more {
            stream.state = State::Idle;
        }
        if stream.ended {
            if !more {
                self.vacant.push(index);
            }
            return Step::Nothing;
        }
        stream.backlog.extend(arrived);
        stream.hand_out(done);
        if stream.state == State::Armed && stream.backlog.len() >= BACKLOG_MAX {
            stream.state = State::Cancelled;
            return Step::Cancel;
        }
        if stream.state == State::Idle
            && let Some(token) = stream.waiting.take()
        {
            // Whoever waits is to ask again, with buffers: that begins another receive.
            let again = Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            done.push_back(Completion { token, result: again, reply: Reply::None });
        }
        Step::Nothing
    }
}

impl Stream {
    fn hand_out(&mut self, done: &mut VecDeque<Completion>) {
        let Some(token) = self.waiting.take_if(|_| !self.backlog.is_empty()) else { return };
        done.push_back(match self.backlog.pop_front().expect("checked above") {
            Ok(Some(arrived)) => {
                let count = arrived.bytes().len() as u32;
                Completion { token, result: Ok(count), reply: Reply::Arrived(arrived) }
            }
            Ok(None) => Completion { token, result: Ok(0), reply: Reply::None },
            Err(error) => Completion { token, result: Err(error), reply: Reply::None },
        });
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        if self.under_way() > 0 {
            // The kernel may still receive into them.
            self.buffers.iter_mut().for_each(|buffer| std::mem::forget(buffer.take()));
        }
        // SAFETY: the mapping is ours alone; the kernel holds its page itself.
        unsafe { libc::munmap(self.table.as_ptr().cast(), TABLE_BYTES) };
    }
}
