//! One loop around `epoll_wait`, sockets that do not block, and four threads beside it for the file, which does.
//!
//! Level-triggered. A connection that waits for the file asks for no event; the loop goes on with it when the file's
//! threads ring an eventfd. One read a turn and connection: nobody is starved by a producer that never stops.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::work::{Answer, Producer, Unit, Work};
use crate::floor::stored::Stretch;
use crate::floor::{Asked, Asks, REQUEST_BYTES_MAX, WRITES, part_with};

const LISTENER: u64 = 0;
const FILES: u64 = 1;
const EVENTS_MAX: usize = 256;

/// Serves for ever.
pub(super) fn serve(work: Arc<Work>, listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("an epoll")?;
    let files = Files::start(&work)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(&*files.bell, EpollEvent::new(EpollFlags::EPOLLIN, FILES))?;
    let mut server =
        Server { work, epoll, files, connections: BTreeMap::new(), parked: VecDeque::new(), next: FILES + 1 };
    let mut events = [EpollEvent::empty(); EVENTS_MAX];
    loop {
        let count = match server.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::Error::EINTR) => 0,
            waited => waited.context("waiting for events")?,
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => server.accept(&listener)?,
                FILES => server.go_on_with_files()?,
                number => server.advance(number),
            }
        }
    }
}

struct Server {
    work: Arc<Work>,
    epoll: Epoll,
    files: Files,
    connections: BTreeMap<u64, Connection>,
    /// Producers with a full unit, while as many writes are under way as may be.
    parked: VecDeque<u64>,
    /// Numbers are never used again: an answer of the file's threads may come for a connection that is gone.
    next: u64,
}

struct Connection {
    socket: TcpStream,
    watched: EpollFlags,
    state: State,
}

enum State {
    New(Unit),
    Producer { unit: Unit, producer: Box<Producer>, sent: usize },
    Reader(Box<Reader>),
}

struct Reader {
    request: [u8; REQUEST_BYTES_MAX],
    known: usize,
    asked: Option<Asked>,
    ahead: Ahead,
    sending: Option<(Answer, usize)>,
    spare: Vec<Answer>,
}

/// What is read before it is asked for.
enum Ahead {
    Nothing,
    UnderWay,
    There(Answer),
}

/// What a connection waits for.
enum Next {
    Events(EpollFlags),
    /// Room among the writes.
    Write,
    /// The file's threads.
    Read,
    /// Nothing: it ended.
    Closed,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let (socket, _) = match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                accepted => accepted.context("accepting a connection")?,
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let (number, watched) = (self.next, EpollFlags::EPOLLIN);
            self.next += 1;
            self.epoll.add(&socket, EpollEvent::new(watched, number))?;
            let state = State::New(self.work.unit());
            self.connections.insert(number, Connection { socket, watched, state });
        }
    }

    fn go_on_with_files(&mut self) -> Result<()> {
        // Before looking: who rings afterwards is looked at next time.
        let _ = self.files.bell.read();
        while let Some(done) = self.files.next() {
            match done {
                Done::Written(unit) => {
                    self.work.give_back(unit);
                    if let Some(number) = self.parked.pop_front() {
                        self.advance(number);
                    }
                }
                Done::Read(number, read) => {
                    let Some(connection) = self.connections.get_mut(&number) else { continue };
                    let State::Reader(reader) = &mut connection.state else { continue };
                    match read {
                        Ok(answer) => {
                            reader.ahead = Ahead::There(answer);
                            self.advance(number);
                        }
                        Err(error) => self.part(number, &error.into()),
                    }
                }
            }
        }
        Ok(())
    }

    fn advance(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let next = connection.advance(number, &self.work, &mut self.files);
        let watched = match next {
            Ok(Next::Events(events)) => events,
            Ok(Next::Write) => {
                self.parked.push_back(number);
                EpollFlags::empty()
            }
            Ok(Next::Read) => EpollFlags::empty(),
            Ok(Next::Closed) => {
                self.connections.remove(&number);
                return;
            }
            Err(error) => return self.part(number, &error),
        };
        if watched != connection.watched {
            connection.watched = watched;
            let mut event = EpollEvent::new(watched, number);
            if let Err(error) = self.epoll.modify(&connection.socket, &mut event) {
                self.part(number, &io::Error::from(error).into());
            }
        }
    }

    fn part(&mut self, number: u64, error: &anyhow::Error) {
        part_with(error);
        self.connections.remove(&number);
    }
}

impl Connection {
    fn advance(&mut self, number: u64, work: &Work, files: &mut Files) -> Result<Next> {
        if let State::New(unit) = &mut self.state {
            match self.socket.read(unit.room()) {
                Ok(0) => return Ok(Next::Closed),
                Ok(bytes) => unit.took(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            let Some(asks) = Asks::of(unit.bytes())? else { return Ok(Next::Events(EpollFlags::EPOLLIN)) };
            self.state = begin(asks, unit, work)?;
        }
        match &mut self.state {
            State::New(_) => unreachable!("it has begun"),
            State::Producer { unit, producer, sent } => {
                receive(&mut self.socket, work, files, unit, producer, sent)
            }
            State::Reader(reader) => reader.advance(&mut self.socket, number, work, files),
        }
    }
}

/// What the first bytes make of a connection.
fn begin(asks: Asks, unit: &mut Unit, work: &Work) -> Result<State> {
    let unit = std::mem::replace(unit, work.unit());
    match asks {
        Asks::ToWrite => {
            let mut producer = Box::<Producer>::default();
            producer.take(work, unit.bytes())?;
            Ok(State::Producer { unit, producer, sent: 0 })
        }
        Asks::ToRead => {
            let mut request = [0; REQUEST_BYTES_MAX];
            let known = unit.filled().min(REQUEST_BYTES_MAX);
            request[..known].copy_from_slice(&unit.bytes()[..known]);
            let asked = Asked::whole(&request[..known])?;
            let known = if asked.is_some() { 0 } else { known };
            work.give_back(unit);
            let (ahead, sending) = (Ahead::Nothing, None);
            let spare = vec![Answer::default(), Answer::default()];
            Ok(State::Reader(Box::new(Reader { request, known, asked, ahead, sending, spare })))
        }
    }
}

/// Sends what is answered, hands a full unit on, receives once.
fn receive(
    socket: &mut TcpStream,
    work: &Work,
    files: &mut Files,
    unit: &mut Unit,
    producer: &mut Producer,
    sent: &mut usize,
) -> Result<Next> {
    // Twice: what was received is answered in the same turn.
    for turn in 0..2 {
        if !send(socket, &producer.answers, sent)? {
            return Ok(Next::Events(EpollFlags::EPOLLOUT));
        }
        producer.answers.clear();
        *sent = 0;
        if unit.is_full() {
            work.sink.check()?;
            if files.writes == WRITES {
                return Ok(Next::Write);
            }
            files.write(std::mem::replace(unit, work.unit()));
        }
        if turn == 1 {
            break;
        }
        let from = unit.filled();
        match socket.read(unit.room()) {
            Ok(0) => return Ok(Next::Closed),
            Ok(bytes) => unit.took(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
        producer.take(work, &unit.bytes()[from..])?;
    }
    Ok(Next::Events(EpollFlags::EPOLLIN))
}

/// Whether all of it is gone.
fn send(socket: &mut TcpStream, bytes: &[u8], sent: &mut usize) -> Result<bool> {
    while *sent < bytes.len() {
        match socket.write(&bytes[*sent..]) {
            Ok(more) => *sent += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

impl Reader {
    fn advance(
        &mut self,
        socket: &mut TcpStream,
        number: u64,
        work: &Work,
        files: &mut Files,
    ) -> Result<Next> {
        loop {
            if let Some((answer, sent)) = &mut self.sending {
                if !send(socket, answer.bytes(), sent)? {
                    return Ok(Next::Events(EpollFlags::EPOLLOUT));
                }
                self.spare.extend(self.sending.take().map(|(answer, _)| answer));
            }
            if self.asked.is_some() {
                match self.begin_answer(number, work, files)? {
                    Some(next) => return Ok(next),
                    None => continue,
                }
            }
            match socket.read(&mut self.request[self.known..]) {
                Ok(0) => return Ok(Next::Closed),
                Ok(bytes) => self.known += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Next::Events(EpollFlags::EPOLLIN));
                }
                Err(error) => return Err(error.into()),
            }
            self.asked = Asked::whole(&self.request[..self.known])?;
            if self.asked.is_some() {
                self.known = 0;
            }
        }
    }

    /// Takes what was read ahead if it is what is asked for, and has the next stretch read; else has this one read.
    fn begin_answer(&mut self, number: u64, work: &Work, files: &mut Files) -> Result<Option<Next>> {
        let Some(asked) = &self.asked else { return Ok(None) };
        if matches!(self.ahead, Ahead::UnderWay) {
            return Ok(Some(Next::Read));
        }
        let wanted = work.find(asked)?;
        let mut answer = match std::mem::replace(&mut self.ahead, Ahead::Nothing) {
            Ahead::There(answer) if answer.stretch == wanted.stretch => answer,
            ahead => {
                if let Ahead::There(answer) = ahead {
                    self.spare.push(answer);
                }
                let mut answer = self.spare.pop().unwrap_or_default();
                match wanted.stretch {
                    Some(stretch) => {
                        files.read(number, &wanted.file, stretch, answer);
                        self.ahead = Ahead::UnderWay;
                        return Ok(Some(Next::Read));
                    }
                    None => {
                        answer.place(None);
                        answer
                    }
                }
            }
        };
        work.note_moved(wanted.stretch);
        answer.surround(asked, wanted.end)?;
        self.sending = Some((answer, 0));
        self.asked = None;
        if let Some(next) = wanted.next {
            files.read(number, &wanted.file, next, self.spare.pop().unwrap_or_default());
            self.ahead = Ahead::UnderWay;
        }
        Ok(None)
    }
}

/// The threads for the file.
struct Files {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    bell: Arc<EventFd>,
    /// Writes under way.
    writes: usize,
}

enum Job {
    Write(Unit),
    Read(u64, Arc<std::fs::File>, Stretch, Answer),
}

enum Done {
    /// Whether it went wrong the sink knows.
    Written(Unit),
    Read(u64, io::Result<Answer>),
}

impl Files {
    fn start(work: &Arc<Work>) -> Result<Files> {
        let (jobs, wanted) = channel::<Job>();
        let (told, done) = channel();
        let bell =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("an eventfd")?;
        let (wanted, bell) = (Arc::new(Mutex::new(wanted)), Arc::new(bell));
        for _ in 0..WRITES {
            let (work, wanted, told, bell) = (work.clone(), wanted.clone(), told.clone(), bell.clone());
            let serve = move || {
                let next = || wanted.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok(job) = next() {
                    if told.send(run(&work, job)).is_err() {
                        return;
                    }
                    // A counter that is full rings already.
                    let _ = bell.write(1);
                }
            };
            thread::Builder::new().name("arm-file".into()).spawn(serve).context("a thread more")?;
        }
        Ok(Files { jobs, done, bell, writes: 0 })
    }

    fn write(&mut self, unit: Unit) {
        self.writes += 1;
        self.jobs.send(Job::Write(unit)).expect("the file's threads live as long as the loop");
    }

    fn read(&mut self, number: u64, file: &Arc<std::fs::File>, stretch: Stretch, answer: Answer) {
        let job = Job::Read(number, file.clone(), stretch, answer);
        self.jobs.send(job).expect("the file's threads live as long as the loop");
    }

    fn next(&mut self) -> Option<Done> {
        let done = self.done.try_recv().ok()?;
        self.writes -= usize::from(matches!(done, Done::Written(_)));
        Some(done)
    }
}

fn run(work: &Work, job: Job) -> Done {
    match job {
        Job::Write(unit) => {
            if let Err(error) = work.sink.write(unit.bytes()) {
                eprintln!("{error:#}");
            }
            Done::Written(unit)
        }
        Job::Read(number, file, stretch, mut answer) => {
            let place = answer.place(Some(stretch));
            let read = file.read_exact_at(&mut answer.memory[place], stretch.at);
            Done::Read(number, read.map(|()| answer))
        }
    }
}
