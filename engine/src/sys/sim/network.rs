//! The simulated network: byte streams in memory that arrive in order, in random pieces, after random delays.
//!
//! What a socket has sent and its peer has not received is bounded, as by a send buffer: a send completes when all of
//! it is queued. An end of the conversation travels behind the bytes that were queued before it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use super::driver::Memory;
use super::world::{Address, Due, Outcome, State, World};
use crate::sys::arena::LeaseMut;
use crate::sys::incoming::{Arrived, PROVIDED_ROOM};
use crate::sys::op::{Listener, ListenerKind, Reply, Request, Socket, SocketKind};

/// A stream socket of the simulated world.
pub(crate) struct SimSocket {
    world: Weak<RefCell<State>>,
    id: u64,
    /// Where it is to connect to, or who connected.
    peer: SocketAddr,
}

/// A listening socket of the simulated world.
pub(crate) struct SimListener {
    world: Weak<RefCell<State>>,
    id: u64,
    address: SocketAddr,
}

pub(super) enum NetworkEvent {
    Connect {
        address: Address,
        socket: u64,
        to: SocketAddr,
    },
    /// The next piece, or the end, arrives at a socket.
    Arrive(u64),
    /// A socket has something to send, or room to send it.
    Pump(u64),
}

#[derive(Default)]
pub(super) struct Network {
    endpoints: BTreeMap<u64, Endpoint>,
    listeners: BTreeMap<u64, Listening>,
    made: u64,
}

struct Endpoint {
    ring: usize,
    peer: Option<u64>,
    /// What arrived and was not received yet.
    arrived: VecDeque<u8>,
    /// On its way here, in order; `None` is the end.
    travelling: VecDeque<Option<Vec<u8>>>,
    travelling_bytes: usize,
    /// No piece arrives before this time: an earlier piece does then.
    arrives_after: u64,
    /// Bytes that may be on their way here or wait to be received.
    capacity: usize,
    /// The end arrived.
    ended: bool,
    /// This side has ended the conversation.
    closed: bool,
    receives: VecDeque<Receive>,
    sends: VecDeque<Send>,
    writables: VecDeque<Address>,
}

struct Receive {
    address: Address,
    into: Memory,
    all: bool,
    done: usize,
    /// The provided buffer that `into` is in.
    buffer: Option<LeaseMut>,
}

struct Send {
    address: Address,
    from: Memory,
    done: usize,
}

struct Listening {
    ring: usize,
    address: SocketAddr,
    /// Connections nobody has accepted, with who connected.
    backlog: VecDeque<(u64, SocketAddr)>,
    waiting: VecDeque<Address>,
}

impl SimListener {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let Some(world) = self.world.upgrade() else { return };
        if let Ok(mut state) = world.try_borrow_mut() {
            state.stop_listening(self.id);
        }
    }
}

impl SimSocket {
    pub(crate) fn shutdown(&self) {
        if let Some(world) = self.world.upgrade() {
            world.borrow_mut().end_conversation(self.id);
        }
    }

    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        Some(self.peer)
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let Some(world) = self.world.upgrade() else { return };
        // Inside the world sockets are dropped only with their ring, which ends its conversations itself.
        if let Ok(mut state) = world.try_borrow_mut() {
            state.end_conversation(self.id);
            state.network.endpoints.remove(&self.id);
        }
    }
}

pub(super) fn listen(world: &World, ring: usize, address: SocketAddr) -> io::Result<Listener> {
    let state = &mut *world.0.borrow_mut();
    let id = state.network.new_id();
    let mut address = address;
    if address.port() == 0 {
        let taken = |port| state.network.listeners.values().any(|l| l.address.port() == port);
        let free = (20_000..=u16::MAX).find(|port| !taken(*port));
        address.set_port(free.ok_or(io::ErrorKind::AddrInUse)?);
    }
    let listening = Listening { ring, address, backlog: VecDeque::new(), waiting: VecDeque::new() };
    state.network.listeners.insert(id, listening);
    let listener = SimListener { world: Rc::downgrade(&world.0), id, address };
    Ok(Listener(Rc::new(ListenerKind::Sim(listener))))
}

pub(super) fn stream_socket(world: &World, ring: usize, address: SocketAddr) -> Socket {
    let id = world.0.borrow_mut().new_endpoint(ring, None);
    Socket(Rc::new(SocketKind::Sim(SimSocket { world: Rc::downgrade(&world.0), id, peer: address })))
}

fn sim_socket(socket: &Socket) -> &SimSocket {
    match &*socket.0 {
        SocketKind::Sim(socket) => socket,
        SocketKind::Os(_) => unreachable!("a socket of the kernel's in the simulated world"),
    }
}

impl Network {
    fn new_id(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// Bytes that `id` may send now. A peer that is gone swallows them until its end has arrived.
    fn room(&self, id: u64) -> usize {
        match self.endpoints[&id].peer.and_then(|peer| self.endpoints.get(&peer)) {
            Some(peer) => peer.capacity.saturating_sub(peer.arrived.len() + peer.travelling_bytes),
            None => 64 << 10,
        }
    }
}

impl State {
    fn new_endpoint(&mut self, ring: usize, peer: Option<u64>) -> u64 {
        let id = self.network.new_id();
        let endpoint = Endpoint {
            ring,
            peer,
            arrived: VecDeque::new(),
            travelling: VecDeque::new(),
            travelling_bytes: 0,
            arrives_after: 0,
            capacity: self.random.usize(1 << 10..256 << 10),
            ended: false,
            closed: false,
            receives: VecDeque::new(),
            sends: VecDeque::new(),
            writables: VecDeque::new(),
        };
        self.network.endpoints.insert(id, endpoint);
        id
    }

    pub(super) fn submit_network(&mut self, address: Address, request: &mut Request) {
        match request {
            Request::Accept(listener) => {
                let ListenerKind::Sim(listener) = &*listener.0 else {
                    unreachable!("a listener of the kernel's in the simulated world")
                };
                self.network.listeners.get_mut(&listener.id).expect("it listens").waiting.push_back(address);
                self.serve_accepts(listener.id);
            }
            Request::Connect { socket, .. } => {
                let socket = sim_socket(socket);
                let event = NetworkEvent::Connect { address, socket: socket.id, to: socket.peer };
                self.network_after(event);
            }
            Request::Recv { socket, into, all } => {
                let into = Memory::of_mut(into);
                let receive = Receive { address, into, all: *all, done: 0, buffer: None };
                let id = sim_socket(socket).id;
                self.endpoint(id).receives.push_back(receive);
                self.serve_receives(id);
            }
            Request::RecvProvided { socket, .. } => {
                let Some(mut buffer) = self.rings[address.0].provided.pop() else {
                    return self.complete_later(address, Outcome::failed(libc::ENOBUFS));
                };
                let into = Memory::of_mut(&mut buffer[PROVIDED_ROOM..]);
                let receive = Receive { address, into, all: false, done: 0, buffer: Some(buffer) };
                let id = sim_socket(socket).id;
                self.endpoint(id).receives.push_back(receive);
                self.serve_receives(id);
            }
            Request::Send { socket, from, .. } => {
                self.queue_send(sim_socket(socket).id, address, Memory::of(from));
            }
            Request::SendGather { socket, from, .. } => {
                self.queue_send(sim_socket(socket).id, address, Memory::of_gather(from));
            }
            Request::Writable(socket) => {
                let id = sim_socket(socket).id;
                self.endpoint(id).writables.push_back(address);
                self.network_after(NetworkEvent::Pump(id));
            }
            Request::Read { .. }
            | Request::Write { .. }
            | Request::WriteGather { .. }
            | Request::Sync { .. }
            | Request::Help { .. } => unreachable!("not about the network"),
        }
    }

    fn endpoint(&mut self, id: u64) -> &mut Endpoint {
        self.network.endpoints.get_mut(&id).expect("an operation keeps its socket open")
    }

    fn network_after(&mut self, event: NetworkEvent) {
        let latency = self.latency();
        self.after(latency, Due::Network(event));
    }

    fn queue_send(&mut self, id: u64, address: Address, from: Memory) {
        self.endpoint(id).sends.push_back(Send { address, from, done: 0 });
        self.network_after(NetworkEvent::Pump(id));
    }

    pub(super) fn network_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Connect { address, socket, to } => self.connect(address, socket, to),
            NetworkEvent::Arrive(id) => self.arrive(id),
            NetworkEvent::Pump(id) => self.pump(id),
        }
    }

    fn connect(&mut self, address: Address, socket: u64, to: SocketAddr) {
        let listeners = &self.network.listeners;
        let found: Vec<u64> = listeners.iter().filter(|(_, l)| l.address == to).map(|(id, _)| *id).collect();
        if self.endpoint(socket).closed {
            return self.complete_later(address, Outcome::failed(libc::EPIPE));
        }
        if found.is_empty() {
            return self.complete_later(address, Outcome::failed(libc::ECONNREFUSED));
        }
        let listener = found[self.random.usize(..found.len())];
        let ring = self.network.listeners[&listener].ring;
        let accepted = self.new_endpoint(ring, Some(socket));
        self.endpoint(socket).peer = Some(accepted);
        let from = SocketAddr::from(([127, 0, 0, 1], 1024 + (socket % 60_000) as u16));
        let listening = self.network.listeners.get_mut(&listener).expect("it was just found");
        listening.backlog.push_back((accepted, from));
        self.complete_later(address, Outcome::of(Ok(0)));
        self.serve_accepts(listener);
    }

    fn serve_accepts(&mut self, listener: u64) {
        let listening = self.network.listeners.get_mut(&listener).expect("it listens");
        let mut accepted = Vec::new();
        while !listening.backlog.is_empty() && !listening.waiting.is_empty() {
            accepted.extend(listening.waiting.pop_front().zip(listening.backlog.pop_front()));
        }
        for (address, (id, peer)) in accepted {
            let socket = SocketKind::Sim(SimSocket { world: self.world.clone(), id, peer });
            let reply = Reply::Socket(Socket(Rc::new(socket)));
            self.complete_later(address, Outcome { result: Ok(0), reply, records: Vec::new() });
        }
    }

    /// Sends what there is room for.
    fn pump(&mut self, id: u64) {
        if !self.network.endpoints.contains_key(&id) {
            return;
        }
        loop {
            let room = self.network.room(id);
            let endpoint = self.endpoint(id);
            let broken = endpoint.closed || endpoint.ended || endpoint.peer.is_none();
            if broken || room > 0 && endpoint.sends.is_empty() {
                for address in std::mem::take(&mut endpoint.writables) {
                    self.complete_later(address, Outcome::of(Ok(0)));
                }
            }
            let endpoint = self.endpoint(id);
            let Some(send) = endpoint.sends.front_mut() else { return };
            let left = send.from.len() - send.done;
            if broken {
                let address = send.address;
                endpoint.sends.pop_front();
                self.complete_later(address, Outcome::failed(libc::EPIPE));
                continue;
            }
            if room == 0 && left > 0 {
                return;
            }
            let bytes = send.from.part(send.done, left.min(room));
            send.done += bytes.len();
            if send.done == send.from.len() {
                let (address, total) = (send.address, send.done);
                endpoint.sends.pop_front();
                self.complete_later(address, Outcome::of(Ok(total as u32)));
            }
            self.put_on_the_way(id, &bytes);
        }
    }

    /// Sends bytes on their way to the peer of `id`, in pieces.
    fn put_on_the_way(&mut self, id: u64, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let whole = self.random.bool();
            let piece = if whole { rest.len() } else { self.random.usize(1..=rest.len()) };
            self.send_piece(id, Some(rest[..piece].to_vec()));
            rest = &rest[piece..];
        }
    }

    fn send_piece(&mut self, id: u64, piece: Option<Vec<u8>>) {
        let latency = self.latency();
        let time = self.now + latency;
        let Some(peer) = self.network.endpoints.get(&id).and_then(|endpoint| endpoint.peer) else { return };
        let Some(endpoint) = self.network.endpoints.get_mut(&peer) else { return };
        endpoint.travelling_bytes += piece.as_ref().map_or(0, Vec::len);
        endpoint.travelling.push_back(piece);
        endpoint.arrives_after = endpoint.arrives_after.max(time);
        let time = endpoint.arrives_after;
        self.at(time, Due::Network(NetworkEvent::Arrive(peer)));
    }

    fn arrive(&mut self, id: u64) {
        let Some(endpoint) = self.network.endpoints.get_mut(&id) else { return };
        match endpoint.travelling.pop_front().expect("each arrival is of one piece") {
            Some(piece) => {
                endpoint.travelling_bytes -= piece.len();
                if endpoint.closed {
                    return; // Nobody is there to receive it.
                }
                endpoint.arrived.extend(piece);
            }
            None => endpoint.ended = true,
        }
        let ended = endpoint.ended;
        self.serve_receives(id);
        if ended {
            self.pump(id);
        }
    }

    fn serve_receives(&mut self, id: u64) {
        let mut received = false;
        loop {
            let draw = self.random.u64(..);
            let endpoint = self.endpoint(id);
            let Some(receive) = endpoint.receives.front_mut() else { break };
            let available = endpoint.arrived.len().min(receive.into.len() - receive.done);
            let bytes = match receive.all || draw.is_multiple_of(2) {
                true => available,
                false => available.min(1 + (draw >> 1) as usize % available.max(1)),
            };
            let taken: Vec<u8> = endpoint.arrived.drain(..bytes).collect();
            receive.into.fill(receive.done, &taken);
            receive.done += bytes;
            received |= bytes > 0;
            let full = receive.done == receive.into.len();
            let ended = endpoint.arrived.is_empty() && (endpoint.ended || endpoint.closed);
            if !(full || ended || !receive.all && bytes > 0) {
                break;
            }
            let Receive { address, done, buffer, .. } =
                endpoint.receives.pop_front().expect("it is the front");
            let reply = match buffer.filter(|_| done > 0) {
                Some(buffer) => Reply::Arrived(Arrived::of(buffer, done)),
                None => Reply::None,
            };
            self.complete_later(address, Outcome { result: Ok(done as u32), reply, records: Vec::new() });
        }
        if received && let Some(peer) = self.endpoint(id).peer {
            self.network_after(NetworkEvent::Pump(peer));
        }
    }

    fn end_conversation(&mut self, id: u64) {
        let Some(endpoint) = self.network.endpoints.get_mut(&id) else { return };
        if endpoint.closed {
            return;
        }
        endpoint.closed = true;
        self.send_piece(id, None);
        self.serve_receives(id);
        self.pump(id);
    }

    fn stop_listening(&mut self, id: u64) {
        let Some(listening) = self.network.listeners.remove(&id) else { return };
        for (accepted, _) in listening.backlog {
            self.end_conversation(accepted);
            self.network.endpoints.remove(&accepted);
        }
    }

    /// Bytes that `sendfile` may queue on `socket` now.
    pub(super) fn room_to_send(&mut self, socket: &Socket) -> io::Result<usize> {
        let id = sim_socket(socket).id;
        let room = self.network.room(id);
        let endpoint = self.endpoint(id);
        if endpoint.closed || endpoint.ended || endpoint.peer.is_none() {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        if room == 0 || !endpoint.sends.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(if self.random.bool() { room } else { self.random.usize(1..=room) })
    }

    pub(super) fn send_now(&mut self, socket: &Socket, bytes: &[u8]) {
        self.put_on_the_way(sim_socket(socket).id, bytes);
    }

    /// Ends an operation that waits for a peer.
    pub(super) fn cancel_network(&mut self, address: Address) {
        let mut found = false;
        for listening in self.network.listeners.values_mut() {
            found |= take_out(&mut listening.waiting, |waiting| *waiting == address);
        }
        let mut done = 0;
        for endpoint in self.network.endpoints.values_mut() {
            let under_way = endpoint.receives.iter().find(|receive| receive.address == address);
            done += under_way.map_or(0, |receive| receive.done);
            found |= take_out(&mut endpoint.receives, |receive| receive.address == address)
                || take_out(&mut endpoint.sends, |send| send.address == address)
                || take_out(&mut endpoint.writables, |writable| *writable == address);
        }
        if found {
            // As the kernel does it: what was received before is not lost.
            let outcome = match done {
                0 => Outcome::failed(libc::ECANCELED),
                done => Outcome::of(Ok(done as u32)),
            };
            self.complete_later(address, outcome);
        }
    }

    /// Ends the conversations of a ring that is gone, as the death of its process would.
    pub(super) fn forget_ring(&mut self, ring: usize) {
        let listeners = self.network.listeners.iter().filter(|(_, l)| l.ring == ring);
        for id in listeners.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.stop_listening(id);
        }
        let endpoints = self.network.endpoints.iter_mut().filter(|(_, e)| e.ring == ring);
        let forget = |(id, endpoint): (&u64, &mut Endpoint)| {
            endpoint.receives.clear();
            endpoint.sends.clear();
            endpoint.writables.clear();
            *id
        };
        for id in endpoints.map(forget).collect::<Vec<_>>() {
            self.end_conversation(id);
        }
    }
}

fn take_out<T>(queue: &mut VecDeque<T>, is_it: impl FnMut(&T) -> bool) -> bool {
    let index = queue.iter().position(is_it);
    index.is_some_and(|index| queue.remove(index).is_some())
}
