//! The floor beside the rows: no log at all, the same bytes moved the shortest way that this machine has.
//!
//! ```text
//! produce    socket -(recv)-> registered memory, CRC, an answer of about 64 bytes -(O_DIRECT, 1 MiB)-> one file
//! tail       the same, and from that memory to the readers' sockets (sendmsg)
//! catch-up   files made beforehand -(the row's own egress)-> socket, up to 1 MiB an answer, the next one read ahead
//! ```
//!
//! It is a process of its own, one for each cell, on the server's core, under the same load in the same protocol, and
//! its records are verified as the rows' are. What a row has and the floor has not is the log: order, offsets on disk,
//! indexes, recovery, an answer that waits for the write. Its constants are fixed and nobody's options.
//!
//! Requests are received straight into what is written: the file holds frames, not batches. One head of at most
//! [`ingest::HEAD_BYTES`] a batch is copied, where its offset is put.

mod disk;
mod egress;
pub mod ingest;
mod memory;
mod pipes;
mod request;
pub mod stored;
pub mod validity;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};

use anyhow::{Context, Result};
use ringlog::sys::topology::pin_to;
use ringlog::sys::{Gather, Lease, Ring, Socket, UringOptions};
use ringlog_broker::wire::GappedFrame;

use crate::spec::{FLOOR, FLOOR_MEMORY};
use disk::Disk;
use egress::Way;
use memory::Memory;
pub(crate) use request::{Asked, Asks, REQUEST_BYTES_MAX};
use stored::{MADE_TOPIC, Stored};

/// Written at a time, and answered at most at a time.
pub const UNIT_BYTES: usize = 1 << 20;
/// Writes under way.
pub const WRITES: usize = 4;
/// The file is prepared so much at a time, as the log's files are under load.
pub const PREPARED_BYTES: u64 = 64 << 20;

const ARENA_BYTES_MAX: u64 = 2 << 30;
/// Memory that is mapped and touched before the first request, as a server that has been up for a while has.
pub(crate) const WARM_BYTES: usize = 64 << 20;
/// Serve as the floor of a comparison: not for people.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeFloor {
    /// Where what is received is written
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    /// The core to run on
    #[arg(long)]
    pub(crate) core: usize,
    /// Partitions
    #[arg(long)]
    pub(crate) partitions: u32,
    /// Readers of each partition: memory is kept until all of them have passed
    #[arg(long, default_value_t = 0)]
    pub(crate) consumers: u32,
    /// Bytes that producers have in flight together: as much may wait for readers
    #[arg(long, default_value_t = 0)]
    pub(crate) in_flight_bytes: u64,
    /// Files made beforehand, to be read instead
    #[arg(long)]
    pub(crate) stored: Option<PathBuf>,
    /// How they get to sockets
    #[arg(long, default_value = "copy")]
    pub(crate) egress: String,
}

/// Whether there is a floor for an egress strategy: a new one is compared before somebody has written its floor.
#[must_use]
pub fn has_floor(egress: &str) -> bool {
    egress == FLOOR_MEMORY || egress.parse::<Way>().is_ok()
}

struct Floor {
    ring: Ring,
    disk: Rc<Disk>,
    memory: Memory,
    /// Files to read, where somebody catches up.
    stored: Option<(Stored, Way)>,
    connections: Cell<u64>,
    moved: Arc<AtomicU64>,
}

/// The floor's life: until its standard input ends.
///
/// # Errors
/// When the core is not allowed, or there is no ring or file to be had.
pub fn serve_floor(told: &ServeFloor) -> Result<()> {
    serve_floor_on(told, &UringOptions::default(), WRITES)
}

/// The same on a ring that is set up in another way, with so many writes under way.
pub(crate) fn serve_floor_on(told: &ServeFloor, options: &UringOptions, writes: usize) -> Result<()> {
    let moved = Arc::new(AtomicU64::new(0));
    let told_moved = moved.clone();
    std::thread::spawn(move || obey(&told_moved));
    pin_to(told.core)?;
    std::fs::create_dir_all(&told.data_dir).with_context(|| told.data_dir.display().to_string())?;
    let ring = Ring::of_kernel(options, ARENA_BYTES_MAX)?;
    let told = told.clone();
    ring.clone().run(serve(ring, told, writes, moved))
}

/// Answers like a child that knows nothing but how many bytes of batches it moved, and ends with its standard input. There
/// is nothing to keep.
pub(crate) fn obey(moved: &AtomicU64) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let answer = match line.as_str() {
            "counters" => format!("{{\"bytes\":{}}}", moved.load(Relaxed)),
            _ => "{}".to_owned(),
        };
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{answer}").and_then(|()| out.flush());
    }
    std::process::exit(0);
}

async fn serve(ring: Ring, told: ServeFloor, writes: usize, moved: Arc<AtomicU64>) -> Result<()> {
    let mut warm = Vec::new();
    for _ in 0..WARM_BYTES / UNIT_BYTES {
        warm.push(ring.lease(UNIT_BYTES).await.context("memory for the floor")?);
    }
    drop(warm);
    let disk = Rc::new(Disk::open(&ring, &told.data_dir.join(FLOOR), writes).await?);
    let stored = match &told.stored {
        Some(directory) => Some((Stored::open(&ring, directory).await?, told.egress.parse::<Way>()?)),
        None => None,
    };
    let listener = ring.listen(SocketAddr::from(([127, 0, 0, 1], 0)), false)?;
    let memory = Memory::new(told.partitions, told.consumers, told.in_flight_bytes as usize);
    let floor = Rc::new(Floor { ring: ring.clone(), disk, memory, stored, connections: Cell::new(0), moved });
    println!("{}{}", crate::target::LISTENING, listener.address());
    std::io::stdout().flush()?;
    loop {
        let socket = ring.accept(&listener).await.context("accepting a connection")?;
        let floor = floor.clone();
        ring.spawn(async move {
            if let Err(error) = floor.attend(&socket).await {
                part_with(&error);
            }
        });
    }
}

/// Says why a connection is closed, before it is: a load that finds it closed reads why, and its cell has failed.
pub(crate) fn part_with(error: &anyhow::Error) {
    if !is_farewell(error) {
        eprintln!("a connection is closed: {error:#}");
    }
}

/// A load that is done closes its connections, wherever they are.
fn is_farewell(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionReset))
}

impl Floor {
    /// The first request says whether the connection writes or reads.
    async fn attend(self: Rc<Floor>, socket: &Socket) -> Result<()> {
        let mut first = self.ring.lease(REQUEST_BYTES_MAX).await?;
        let mut filled = first.split_to(0);
        let asks = loop {
            if let Some(asks) = Asks::of(&filled)? {
                break asks;
            }
            let (received, mut rest) = self.ring.recv(socket, first).await;
            match received? {
                0 => return Ok(()),
                bytes => filled.unsplit(rest.split_to(bytes)),
            }
            first = rest;
        };
        match asks {
            Asks::ToWrite => ingest::receive(&self, socket, &filled).await,
            Asks::ToRead => {
                let known = filled.len();
                filled.unsplit(first);
                self.answer_reader(socket, filled, known).await
            }
        }
    }

    /// One request at a time: no reader of the load has more in flight.
    async fn answer_reader(
        &self,
        socket: &Socket,
        mut request: ringlog::sys::LeaseMut,
        mut known: usize,
    ) -> Result<()> {
        let reader = self.connections.replace(self.connections.get() + 1);
        let mut answer = Answer::default();
        let mut ahead = None;
        loop {
            if let Some(asked) = Asked::whole(&request[..known])? {
                match &self.stored {
                    Some((stored, way)) if asked.topic == MADE_TOPIC => {
                        egress::answer(self, stored, *way, socket, &asked, &mut answer, &mut ahead).await?;
                    }
                    _ => self.memory.answer(&self.ring, socket, reader, &asked, &mut answer).await?,
                }
                known = 0;
            }
            let mut filled = request.split_to(known);
            let (received, mut rest) = self.ring.recv(socket, request).await;
            let bytes = received?;
            filled.unsplit(rest.split_to(bytes));
            filled.unsplit(rest);
            (request, known) = (filled, known + bytes);
            if bytes == 0 {
                return Ok(());
            }
        }
    }
}

/// The protocol's part of an answer, and what goes with it.
#[derive(Default)]
struct Answer {
    frame: GappedFrame,
    gather: Gather,
}

impl Answer {
    /// See [`Asked::encode_answer`].
    fn encode(&mut self, asked: &Asked, end: i64, record_bytes: u64) -> Result<(&[u8], &[u8])> {
        asked.encode_answer(&mut self.frame, end, record_bytes)
    }

    async fn send(&mut self, ring: &Ring, socket: &Socket, more: bool) -> Result<()> {
        let gather = std::mem::take(&mut self.gather);
        let (sent, mut gather) = ring.send_gather(socket, gather, more).await;
        gather.clear();
        self.gather = gather;
        sent?;
        Ok(())
    }

    fn push(&mut self, lease: Lease) -> Result<()> {
        let full = |_| anyhow::anyhow!("an answer of more than {} pieces", ringlog::sys::GATHER_MAX);
        if lease.is_empty() { Ok(()) } else { self.gather.push(lease).map_err(full) }
    }
}

/// Those who wait for a state to change: woken at each change, they look again.
#[derive(Default)]
struct Changes(RefCell<Vec<Waker>>);

impl Changes {
    fn tell(&self) {
        self.0.borrow_mut().drain(..).for_each(Waker::wake);
    }

    async fn until(&self, there: impl Fn() -> bool) {
        std::future::poll_fn(|context| {
            if there() {
                return Poll::Ready(());
            }
            self.0.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
