//! The other end: a process that drops what a server sends, holds it back and looks at it, or produces and fetches.
//!
//! It is a process of its own, so that what the kernel copies for it is told apart; for a guest it runs outside. It takes
//! orders on a control connection, a line of JSON each, and answers each with a line.
//!
//! ```text
//! us:  {"order":"drop"}                       peer:  {"reply":"ready","port":40001}
//! us:  (connects there, sends, closes)        peer:  {"reply":"dropped","bytes":4194304}
//! ```
//!
//! Dropping asks the kernel to discard (`MSG_TRUNC`): the peer copies nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::load::{Client, Exchange, PATIENCE, batch};

/// What sources are overwritten with; no batch of ours has such bytes in its record.
pub(super) const NEW_BYTE: u8 = 0xee;
/// Discarded by one call.
const DROP_BYTES: usize = 1 << 20;
const LISTENING: &str = "listening on ";

/// What a peer is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(super) enum Order {
    /// Accept a connection and discard all that comes.
    Drop,
    /// Accept one and receive nothing until [`Order::Look`]; with so small a receive buffer, if any is named, that most of
    /// what is sent stays with the sender.
    Hold { receive_buffer_bytes: Option<usize> },
    /// Receive all that was held back, and say how much of it is new.
    Look,
    /// Produce so many batches, then fetch them `fetches` times.
    Converse {
        server: SocketAddr,
        topic: String,
        batches: u64,
        batch_bytes: usize,
        fetch_bytes: usize,
        fetches: u32,
    },
}

/// What it says to that.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
enum Reply {
    /// Connect to this port.
    Ready { port: u16 },
    /// All was discarded.
    Dropped { bytes: u64 },
    /// What was held back.
    Found(Found),
    /// The conversation is over.
    Conversed(Exchange),
    /// It cannot.
    Failed { why: String },
}

/// What came of bytes that were overwritten after they were sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Found {
    pub bytes: u64,
    /// Of these, bytes from after the send.
    pub new_bytes: u64,
}

/// A peer as the server's side sees it.
pub(super) struct Peer {
    control: BufReader<TcpStream>,
    process: Option<Child>,
}

impl Peer {
    /// A process on this machine.
    pub(super) fn spawn() -> Result<Peer> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut process = Command::new(program)
            .arg("copies-peer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the peer")?;
        let mut line = String::new();
        let stdout = process.stdout.take().context("the peer has no standard output")?;
        BufReader::new(stdout).read_line(&mut line).context("waiting for the peer")?;
        let address = line.trim().strip_prefix(LISTENING).and_then(|address| address.parse().ok());
        let address = address.with_context(|| format!("the peer said `{}`", line.trim()))?;
        let mut peer = Peer::at(address)?;
        peer.process = Some(process);
        Ok(peer)
    }

    /// One that listens there.
    pub(super) fn at(address: SocketAddr) -> Result<Peer> {
        let control = TcpStream::connect_timeout(&address, Duration::from_secs(10));
        let control = control.with_context(|| format!("connecting to the peer at {address}"))?;
        control.set_nodelay(true)?;
        control.set_read_timeout(Some(PATIENCE))?;
        Ok(Peer { control: BufReader::new(control), process: None })
    }

    /// Its process, where that is on this machine.
    pub(super) fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// A connection whose other end does as told.
    pub(super) fn connection(&mut self, order: &Order) -> Result<TcpStream> {
        match self.ask(order)? {
            Reply::Ready { port } => {
                let address = SocketAddr::new(self.control.get_ref().peer_addr()?.ip(), port);
                let stream =
                    TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
                stream.set_nodelay(true)?;
                Ok(stream)
            }
            other => bail!("the peer answered {order:?} with {other:?}"),
        }
    }

    /// How much was discarded, once the connection has ended.
    pub(super) fn dropped(&mut self) -> Result<u64> {
        match self.reply()? {
            Reply::Dropped { bytes } => Ok(bytes),
            other => bail!("the peer dropped, and said {other:?}"),
        }
    }

    /// Lets go of what it held back.
    pub(super) fn look(&mut self) -> Result<()> {
        self.say(&Order::Look)
    }

    /// What that was.
    pub(super) fn found(&mut self) -> Result<Found> {
        match self.reply()? {
            Reply::Found(found) => Ok(found),
            other => bail!("the peer looked, and said {other:?}"),
        }
    }

    /// Has it produce and fetch.
    pub(super) fn converse(&mut self, order: &Order) -> Result<Exchange> {
        match self.ask(order)? {
            Reply::Conversed(exchange) => Ok(exchange),
            other => bail!("the peer answered {order:?} with {other:?}"),
        }
    }

    fn ask(&mut self, order: &Order) -> Result<Reply> {
        self.say(order)?;
        self.reply()
    }

    fn say(&mut self, order: &Order) -> Result<()> {
        say(self.control.get_mut(), order).context("telling the peer")
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.control.read_line(&mut line).context("waiting for the peer")?;
        match serde_json::from_str(&line).with_context(|| format!("the peer said `{}`", line.trim()))? {
            Reply::Failed { why } => bail!("the peer: {why}"),
            reply => Ok(reply),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself, when its control connection did.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn say(to: &mut TcpStream, what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(what)?;
    line.push('\n');
    Ok(to.write_all(line.as_bytes())?)
}

/// The life of a peer of its own: one control connection.
///
/// # Errors
/// When it cannot listen.
pub fn run() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on the loopback")?;
    println!("{LISTENING}{}", listener.local_addr()?);
    let (control, _) = listener.accept()?;
    serve(control)
}

/// Serves one control connection until it ends.
pub(super) fn serve(control: TcpStream) -> Result<()> {
    control.set_nodelay(true)?;
    let mut lines = BufReader::new(control);
    let mut line = String::new();
    let mut held = None;
    while lines.read_line(&mut line)? > 0 {
        let order = serde_json::from_str(&line).with_context(|| format!("the order `{}`", line.trim()))?;
        line.clear();
        let control = lines.get_mut();
        let reply = obey(order, control, &mut held)
            .unwrap_or_else(|error| Some(Reply::Failed { why: format!("{error:#}") }));
        if let Some(reply) = reply {
            say(control, &reply)?;
        }
    }
    Ok(())
}

fn obey(order: Order, control: &mut TcpStream, held: &mut Option<TcpStream>) -> Result<Option<Reply>> {
    match order {
        Order::Drop => {
            let stream = accept(control, None)?;
            Ok(Some(Reply::Dropped { bytes: discard(&stream)? }))
        }
        Order::Hold { receive_buffer_bytes } => {
            *held = Some(accept(control, receive_buffer_bytes)?);
            Ok(None)
        }
        Order::Look => {
            let mut bytes = Vec::new();
            held.take().context("nothing is held back")?.read_to_end(&mut bytes)?;
            let new_bytes = bytes.iter().filter(|&&byte| byte == NEW_BYTE).count() as u64;
            Ok(Some(Reply::Found(Found { bytes: bytes.len() as u64, new_bytes })))
        }
        Order::Converse { server, topic, batches, batch_bytes, fetch_bytes, fetches } => {
            let mut client = Client::open(server)?;
            let mut first_offset = None;
            for number in 0..batches {
                let offset = client.produce(&topic, &batch(batch_bytes, number))?;
                first_offset.get_or_insert(offset);
            }
            let produced_bytes = client.exchanged().produced_bytes;
            for _ in 0..fetches {
                // What was produced now, and one record a batch: the offset counts both.
                let mut offset = first_offset.context("nothing was produced")?;
                let mut fetched_bytes = 0;
                while fetched_bytes < produced_bytes {
                    let bytes = client.fetch(&topic, offset, fetch_bytes)?;
                    fetched_bytes += bytes;
                    offset += (bytes / (produced_bytes / batches)) as i64;
                }
            }
            Ok(Some(Reply::Conversed(client.exchanged())))
        }
    }
}

/// Says where to connect, and waits for that.
fn accept(control: &mut TcpStream, receive_buffer_bytes: Option<usize>) -> Result<TcpStream> {
    let listener = TcpListener::bind(SocketAddr::new(control.local_addr()?.ip(), 0))?;
    if let Some(bytes) = receive_buffer_bytes {
        // Before the connection is made: its window is agreed on then.
        setsockopt(&listener, sockopt::RcvBuf, &bytes)?;
    }
    say(control, &Reply::Ready { port: listener.local_addr()?.port() })?;
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn discard(stream: &TcpStream) -> Result<u64> {
    let mut nowhere = vec![0; DROP_BYTES];
    let mut total = 0;
    loop {
        match recv(stream.as_raw_fd(), &mut nowhere, MsgFlags::MSG_TRUNC) {
            Ok(0) => return Ok(total),
            Ok(bytes) => total += bytes as u64,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => bail!("discarding: {error}, after {total} bytes"),
        }
    }
}
