//! The runtime tokio-uring, used as its manual shows: tasks, owned buffers, one thread.
//!
//! Its ring is as it sets it up by itself. Files and buffers are not registered; what it has for that is for buffers of its
//! own making, which O_DIRECT could not be written from.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Semaphore;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;
use tokio_uring::net::TcpStream;

use super::work::{Answer, Producer, Unit, Work};
use crate::floor::stored::Stretch;
use crate::floor::{Asked, Asks, REQUEST_BYTES_MAX, WRITES, part_with};

struct Server {
    work: Arc<Work>,
    file: Rc<File>,
    writes: Arc<Semaphore>,
}

/// Serves for ever.
pub(super) fn serve(work: Arc<Work>, listener: TcpListener) -> Result<()> {
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).context("tokio-uring's ring")?;
    let file = work.sink.file.try_clone().context("the arm's file")?;
    runtime.block_on(async move {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        let file = Rc::new(File::from_std(file));
        let server = Rc::new(Server { work, file, writes: Arc::new(Semaphore::new(WRITES)) });
        loop {
            let (socket, _) = listener.accept().await.context("accepting a connection")?;
            let server = server.clone();
            tokio_uring::spawn(async move {
                if let Err(error) = server.attend(&socket).await {
                    part_with(&error);
                }
            });
        }
    })
}

impl Server {
    async fn attend(&self, socket: &TcpStream) -> Result<()> {
        socket.set_nodelay(true)?;
        let mut unit = self.work.unit();
        let asks = loop {
            if let Some(asks) = Asks::of(unit.bytes())? {
                break asks;
            }
            if receive(socket, &mut unit).await? == 0 {
                return Ok(());
            }
        };
        match asks {
            Asks::ToWrite => self.receive(socket, unit).await,
            Asks::ToRead => self.answer(socket, unit).await,
        }
    }

    async fn receive(&self, socket: &TcpStream, mut unit: Unit) -> Result<()> {
        let mut producer = Producer::default();
        let mut taken = 0;
        loop {
            producer.take(&self.work, &unit.bytes()[taken..])?;
            if !producer.answers.is_empty() {
                let (sent, answers) = socket.write_all(std::mem::take(&mut producer.answers)).await;
                sent?;
                producer.answers = answers;
                producer.answers.clear();
            }
            if unit.is_full() {
                self.write(std::mem::replace(&mut unit, self.work.unit())).await?;
            }
            taken = unit.filled();
            if receive(socket, &mut unit).await? == 0 {
                self.work.give_back(unit);
                return Ok(());
            }
        }
    }

    /// Starts the write of a unit, as soon as fewer than [`WRITES`] are under way.
    async fn write(&self, mut unit: Unit) -> Result<()> {
        let permit = self.writes.clone().acquire_owned().await.context("a semaphore that nobody closes")?;
        self.work.sink.check()?;
        let (work, file) = (self.work.clone(), self.file.clone());
        tokio_uring::spawn(async move {
            let _permit = permit;
            let range = unit.range();
            let at = match work.sink.place(range.len() as u64) {
                Ok(at) => at,
                Err(error) => return eprintln!("{error:#}"),
            };
            let bytes = range.len();
            let memory = std::mem::take(&mut unit.memory);
            let (written, memory) = file.write_all_at(memory.slice(range), at).await;
            unit.memory = memory.into_inner();
            match written {
                Ok(()) => work.give_back(unit),
                Err(error) => eprintln!("{:#}", work.sink.fail(at, bytes, &error)),
            }
        });
        Ok(())
    }

    async fn answer(&self, socket: &TcpStream, unit: Unit) -> Result<()> {
        let mut request = vec![0; REQUEST_BYTES_MAX];
        let mut known = unit.filled().min(REQUEST_BYTES_MAX);
        request[..known].copy_from_slice(&unit.bytes()[..known]);
        self.work.give_back(unit);
        let files = self.work.files().map(|file| file.try_clone().map(File::from_std).map(Rc::new));
        let files: Vec<Rc<File>> = files.collect::<std::io::Result<_>>()?;
        let mut spare = vec![Answer::default(), Answer::default()];
        let mut ahead = None;
        loop {
            if let Some(asked) = Asked::whole(&request[..known])? {
                let wanted = self.work.find(&asked)?;
                let file = &files[asked.partition as usize];
                let mut answer = match (ahead.take(), wanted.stretch) {
                    (Some((begun, reading)), Some(stretch)) if begun == stretch => {
                        let reading: tokio::task::JoinHandle<std::io::Result<Answer>> = reading;
                        reading.await.context("reading ahead")??
                    }
                    (_, stretch) => read(file.clone(), stretch, spare.pop().unwrap_or_default()).await?,
                };
                if let Some(next) = wanted.next {
                    let into = spare.pop().unwrap_or_default();
                    ahead = Some((next, tokio_uring::spawn(read(file.clone(), Some(next), into))));
                }
                self.work.note_moved(wanted.stretch);
                answer.surround(&asked, wanted.end)?;
                let range = answer.range();
                let memory = std::mem::take(&mut answer.memory);
                let (sent, memory) = socket.write_all(memory.slice(range)).await;
                answer.memory = memory.into_inner();
                sent?;
                spare.push(answer);
                known = 0;
            }
            let (received, rest) = socket.read(request.slice(known..)).await;
            request = rest.into_inner();
            match received? {
                0 => return Ok(()),
                bytes => known += bytes,
            }
        }
    }
}

/// What comes next, into the unit's room.
async fn receive(socket: &TcpStream, unit: &mut Unit) -> Result<usize> {
    let range = unit.room_range();
    let memory = std::mem::take(&mut unit.memory);
    let (received, memory) = socket.read(memory.slice(range)).await;
    unit.memory = memory.into_inner();
    let bytes = received?;
    unit.took(bytes);
    Ok(bytes)
}

async fn read(file: Rc<File>, stretch: Option<Stretch>, mut answer: Answer) -> std::io::Result<Answer> {
    let place = answer.place(stretch);
    if let Some(stretch) = stretch {
        let memory = std::mem::take(&mut answer.memory);
        let (read, memory) = file.read_exact_at(memory.slice(place), stretch.at).await;
        answer.memory = memory.into_inner();
        read?;
    }
    Ok(answer)
}
