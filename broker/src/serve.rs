//! Serving: the listener of one shard and its connections.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringlog::Shard;
use ringlog::sys::{LEASE_BYTES_MAX, Listener, Socket};

use crate::config::{BrokerConfig, CONNECTIONS_MAX};
use crate::connection::{Broker, Connection};
use crate::wire::PREFIX_BYTES;
use crate::{guard, reader, writer};

/// How often a connection is accepted again after that has failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long requests under way may take once a stop was asked for.
const ANSWERS_TIME_MAX: Duration = Duration::from_secs(5);
/// How long connections may take to notice that they are closed.
const CLOSING_TIME_MAX: Duration = Duration::from_secs(1);

/// A listener that is ready to serve.
pub struct Bound {
    broker: Rc<Broker>,
    listener: Listener,
    accepted: Cell<u64>,
}

/// What serving came to on one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Of these, how many had to be cut off before all their answers were out.
    pub cut_off: usize,
}

/// Listens on `config.listen`. Clients may connect from here on; they are answered by [`serve`].
///
/// # Errors
/// What the kernel said, or that a wildcard address is no address to tell clients.
pub fn bind(shard: &Shard, config: BrokerConfig) -> io::Result<Bound> {
    if config.advertise.is_none() && config.listen.ip().is_unspecified() {
        let message = format!(
            "{} is no address that clients could come to: --advertise HOST:PORT is needed",
            config.listen
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let frame_bytes_max = config.frames.frame_bytes_max;
    if frame_bytes_max > LEASE_BYTES_MAX - PREFIX_BYTES || config.connections_max > CONNECTIONS_MAX {
        let message = format!(
            "frames of {frame_bytes_max} bytes and {} connections: at most {} and {CONNECTIONS_MAX} are possible",
            config.connections_max,
            LEASE_BYTES_MAX - PREFIX_BYTES,
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let listener = shard.ring().listen(config.listen, config.shared)?;
    let bound = listener.address();
    let advertised = config.advertise.clone().unwrap_or_else(|| (bound.ip().to_string(), bound.port()));
    let broker = Broker {
        shard: shard.clone(),
        config,
        advertised,
        refused_connections: Cell::new(0),
        connections: RefCell::new(Vec::new()),
        faults: Cell::new(0),
    };
    Ok(Bound { broker: Rc::new(broker), listener, accepted: Cell::new(0) })
}

impl Bound {
    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }
}

/// Accepts and answers until the shard is asked to stop; then answers what is under way and closes.
pub async fn serve(bound: Bound) -> Served {
    let Bound { broker, listener, accepted: count } = bound;
    let shard = broker.shard.clone();
    shard.spawn(guard::run(broker.clone()));
    let mut refused = 0u64;
    while let Some(accepted) = until_stop(&shard, shard.ring().accept(&listener)).await {
        match accepted {
            Ok(socket) => {
                count.set(count.get() + 1);
                refused = 0;
                start(&broker, socket);
            }
            Err(error) => {
                // Out of descriptors, most likely: those who wait are served when others leave. Asked again ten
                // times a second, and said the 1st, 2nd, 4th, 8th time.
                refused += 1;
                if refused.is_power_of_two() {
                    tracing::warn!("accepting on {}: {error} ({refused} times in a row)", listener.address());
                }
                if until_stop(&shard, shard.ring().sleep(ACCEPT_RETRY)).await.is_none() {
                    break;
                }
            }
        }
    }
    listener.stop();
    let patience = shard.ring().now().plus(ANSWERS_TIME_MAX);
    while broker.connections.borrow().iter().any(|c| !c.is_idle()) && shard.ring().now() < patience {
        shard.ring().sleep(Duration::from_millis(1)).await;
    }
    let mut cut_off = 0;
    for connection in broker.connections.borrow().iter() {
        cut_off += usize::from(!connection.is_idle());
        connection.socket.shutdown();
    }
    if cut_off > 0 {
        tracing::warn!("{cut_off} connections are closed with requests under way");
    }
    let patience = shard.ring().now().plus(CLOSING_TIME_MAX);
    while !broker.connections.borrow().is_empty() && shard.ring().now() < patience {
        shard.ring().sleep(Duration::from_millis(1)).await;
    }
    Served { accepted: count.get(), cut_off }
}

fn start(broker: &Rc<Broker>, socket: Socket) {
    if broker.connections.borrow().len() >= broker.config.connections_max {
        let refused = broker.refused_connections.get() + 1;
        broker.refused_connections.set(refused);
        // Who is refused comes back at once, again and again: the 1st, 2nd, 4th, 8th time is said.
        if refused.is_power_of_two() {
            let open = broker.config.connections_max;
            tracing::warn!("a connection is refused: {open} are open already ({refused} refused so far)");
        }
        socket.shutdown();
        return;
    }
    let connection = Rc::new(Connection::new(socket, broker.shard.ring().now()));
    broker.connections.borrow_mut().push(connection.clone());
    let (reader, writer) = (broker.clone(), broker.clone());
    let (reads, writes) = (connection.clone(), connection);
    broker.shard.spawn(async move {
        reader::run(reader.clone(), reads.clone()).await;
        reader.forget(&reads);
    });
    broker.shard.spawn(async move {
        writer::run(writer.clone(), writes.clone()).await;
        writer.forget(&writes);
    });
}

/// What `future` gives, or `None` when a stop is asked for first.
async fn until_stop<F: Future>(shard: &Shard, future: F) -> Option<F::Output> {
    let (mut future, mut stop) = (pin!(future), pin!(shard.stopping()));
    poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
