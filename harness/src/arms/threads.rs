//! A thread for each connection, in calls that block: `read`, `write`, `pread`, `pwrite`.
//!
//! While a connection's unit is written nothing is received on it; the other connections go on. Of catching up, the kernel
//! is told what will be wanted next, and reads it meanwhile.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::work::{Answer, Producer, Unit, Work};
use crate::floor::{Asked, Asks, REQUEST_BYTES_MAX, WRITES, part_with};

/// Serves for ever.
pub(super) fn serve(work: Arc<Work>, listener: TcpListener) -> Result<()> {
    let gate = Arc::new(Gate { free: Mutex::new(WRITES), freed: Condvar::new() });
    loop {
        let (socket, _) = listener.accept().context("accepting a connection")?;
        let (work, gate) = (work.clone(), gate.clone());
        let attend = move || {
            if let Err(error) = attend(&work, &gate, &socket) {
                part_with(&error);
            }
        };
        thread::Builder::new().name("arm-connection".into()).spawn(attend).context("a thread more")?;
    }
}

fn attend(work: &Work, gate: &Gate, mut socket: &TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut unit = work.unit();
    let asks = loop {
        if let Some(asks) = Asks::of(unit.bytes())? {
            break asks;
        }
        match socket.read(unit.room())? {
            0 => return Ok(()),
            bytes => unit.took(bytes),
        }
    };
    match asks {
        Asks::ToWrite => receive(work, gate, socket, &mut unit)?,
        Asks::ToRead => answer(work, socket, unit.bytes())?,
    }
    work.give_back(unit);
    Ok(())
}

fn receive(work: &Work, gate: &Gate, mut socket: &TcpStream, unit: &mut Unit) -> Result<()> {
    let mut producer = Producer::default();
    let mut taken = 0;
    loop {
        producer.take(work, &unit.bytes()[taken..])?;
        if !producer.answers.is_empty() {
            socket.write_all(&producer.answers)?;
            producer.answers.clear();
        }
        if unit.is_full() {
            gate.pass(|| work.sink.write(unit.bytes()))?;
            unit.clear();
        }
        taken = unit.filled();
        match socket.read(unit.room())? {
            0 => return Ok(()),
            bytes => unit.took(bytes),
        }
    }
}

fn answer(work: &Work, mut socket: &TcpStream, first: &[u8]) -> Result<()> {
    let mut request = [0; REQUEST_BYTES_MAX];
    let mut known = first.len().min(REQUEST_BYTES_MAX);
    request[..known].copy_from_slice(&first[..known]);
    let mut answer = Answer::default();
    loop {
        if let Some(asked) = Asked::whole(&request[..known])? {
            let wanted = work.find(&asked)?;
            let place = answer.place(wanted.stretch);
            if let Some(stretch) = wanted.stretch {
                wanted.file.read_exact_at(&mut answer.memory[place], stretch.at)?;
            }
            if let Some(next) = wanted.next {
                let soon = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
                posix_fadvise(&*wanted.file, next.at as i64, next.bytes as i64, soon)?;
            }
            work.note_moved(wanted.stretch);
            answer.surround(&asked, wanted.end)?;
            socket.write_all(answer.bytes())?;
            known = 0;
        }
        match socket.read(&mut request[known..])? {
            0 => return Ok(()),
            bytes => known += bytes,
        }
    }
}

/// So many at once.
struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    fn pass<T>(&self, work: impl FnOnce() -> T) -> T {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        drop(free);
        let done = work();
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.freed.notify_one();
        done
    }
}
