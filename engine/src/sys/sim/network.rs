//! The simulated network: byte streams in memory that arrive in order, in random pieces, after random delays.
//!
//! What a socket has sent and its peer has not received is bounded, as by a send buffer: a send completes when all of
//! it is queued. An end of the conversation travels behind the bytes that were queued before it.
//!
//! Bytes of a zero-copy send travel as places in the sender's memory ([`super::loans`]): they are looked at when they
//! arrive, long after the send has completed.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use super::driver::Memory;
use super::loans::{Loans, Parcel};
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
    /// The memory of a zero-copy send is let go of.
    Release(u64),
}

#[derive(Default)]
pub(super) struct Network {
    endpoints: BTreeMap<u64, Endpoint>,
    listeners: BTreeMap<u64, Listening>,
    pub loans: Loans,
    made: u64,
}

struct Endpoint {
    ring: usize,
    peer: Option<u64>,
    /// What arrived and was not received yet.
    arrived: VecDeque<u8>,
    /// On its way here, in order; `None` is the end.
    travelling: VecDeque<Option<Parcel>>,
    travelling_bytes: usize,
    /// No piece arrives before this time: an earlier piece does then.
    arrives_after: u64,
    /// Bytes that may be on their way here or wait to be received.
    capacity: usize,
    /// Bytes that arrived, and that were received, ever.
    arrived_bytes: u64,
    received_bytes: u64,
    /// Parts of loans that are released only when so many bytes have been received: the loan and the part's length.
    received_loans: VecDeque<(u64, u64, usize)>,
    /// The end arrived.
    ended: bool,
    /// This side has ended the conversation.
    closed: bool,
    receives: VecDeque<Receive>,
    sends: VecDeque<Send>,
    writables: VecDeque<Address>,
    readables: VecDeque<Address>,
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
    /// Of a zero-copy send.
    loan: Option<u64>,
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

    /// As `shutdown`, and what was lent to the conversation is let go of as soon as it has arrived.
    pub(crate) fn abort(&self) {
        if let Some(world) = self.world.upgrade() {
            let mut state = world.borrow_mut();
            state.end_conversation(self.id);
            state.call_in_loans(self.id);
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
            state.remove_endpoint(self.id);
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
    let socket = SimSocket { world: Rc::downgrade(&world.0), id, peer: address };
    Socket(Rc::new(SocketKind::Sim(socket)), Rc::default())
}

fn sim_socket(socket: &Socket) -> &SimSocket {
    match &*socket.0 {
        SocketKind::Sim(socket) => socket,
        SocketKind::Os(_) => unreachable!("a socket of the kernel's in the simulated world"),
    }
}

impl Network {
    pub fn new_id(&mut self) -> u64 {
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
            arrived_bytes: 0,
            received_bytes: 0,
            received_loans: VecDeque::new(),
            ended: false,
            closed: false,
            receives: VecDeque::new(),
            sends: VecDeque::new(),
            writables: VecDeque::new(),
            readables: VecDeque::new(),
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
                self.queue_send(sim_socket(socket).id, address, Memory::of(from), None);
            }
            Request::SendGather { socket, from, .. } => {
                self.queue_send(sim_socket(socket).id, address, Memory::of_gather(from), None);
            }
            Request::SendZeroCopy { socket, loan, .. } => {
                let lease =
                    loan.as_ref().expect("a loan is with its request until the first completion").lease();
                let id = sim_socket(socket).id;
                let loan = self.take_loan(address, id, Memory::of(lease));
                self.queue_send(id, address, Memory::of(lease), Some(loan));
            }
            Request::Writable(socket) => {
                let id = sim_socket(socket).id;
                self.endpoint(id).writables.push_back(address);
                self.network_after(NetworkEvent::Pump(id));
            }
            Request::Readable(socket) => {
                let id = sim_socket(socket).id;
                self.endpoint(id).readables.push_back(address);
                self.serve_receives(id);
            }
            Request::Read { .. }
            | Request::Write { .. }
            | Request::WriteGather { .. }
            | Request::ReadPages { .. }
            | Request::SpliceIn { .. }
            | Request::SpliceToFile { .. }
            | Request::Sync { .. }
            | Request::Help { .. } => unreachable!("not about the network"),
        }
    }

    fn endpoint(&mut self, id: u64) -> &mut Endpoint {
        self.network.endpoints.get_mut(&id).expect("an operation keeps its socket open")
    }

    pub(super) fn network_after(&mut self, event: NetworkEvent) {
        let latency = self.latency();
        self.after(latency, Due::Network(event));
    }

    fn queue_send(&mut self, id: u64, address: Address, from: Memory, loan: Option<u64>) {
        self.endpoint(id).sends.push_back(Send { address, from, done: 0, loan });
        self.network_after(NetworkEvent::Pump(id));
    }

    pub(super) fn network_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Connect { address, socket, to } => self.connect(address, socket, to),
            NetworkEvent::Arrive(id) => self.arrive(id),
            NetworkEvent::Pump(id) => self.pump(id),
            NetworkEvent::Release(loan) => self.release_loan(loan),
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
            let reply = Reply::Socket(Socket(Rc::new(socket), Rc::default()));
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
                let (address, done, loan) = (send.address, send.done, send.loan);
                endpoint.sends.pop_front();
                match loan {
                    Some(loan) if done > 0 => self.queued_loan(loan, done),
                    _ => {
                        self.forget_loan(loan);
                        self.complete_later(address, Outcome::failed(libc::EPIPE));
                    }
                }
                continue;
            }
            if room == 0 && left > 0 {
                return;
            }
            let (address, at, bytes) = (send.address, send.done, left.min(room));
            let parcel = match send.loan {
                None => Parcel::Bytes(send.from.part(at, bytes)),
                Some(loan) => Parcel::Lent { loan, at, bytes },
            };
            send.done += bytes;
            let (done, all, loan) = (send.done, send.from.len(), send.loan);
            match loan {
                None if done == all => {
                    self.endpoint(id).sends.pop_front();
                    self.complete_later(address, Outcome::of(Ok(done as u32)));
                }
                // One that met a full socket may stay short.
                Some(loan) if done == all || at > 0 && self.random.bool() => {
                    self.endpoint(id).sends.pop_front();
                    self.queued_loan(loan, done);
                }
                _ => {}
            }
            self.put_on_the_way(id, parcel);
        }
    }

    /// Sends bytes on their way to the peer of `id`, in pieces.
    fn put_on_the_way(&mut self, id: u64, mut rest: Parcel) {
        while rest.len() > 0 {
            let whole = self.random.bool();
            let piece = if whole { rest.len() } else { self.random.usize(1..=rest.len()) };
            let piece = rest.split_to(piece);
            self.send_piece(id, Some(piece));
        }
    }

    fn send_piece(&mut self, id: u64, piece: Option<Parcel>) {
        let latency = self.latency();
        let time = self.now + latency;
        let peer = self.network.endpoints.get(&id).and_then(|endpoint| endpoint.peer);
        let Some((peer, endpoint)) =
            peer.and_then(|peer| Some((peer, self.network.endpoints.get_mut(&peer)?)))
        else {
            return piece.iter().for_each(|piece| self.settle_parcel(piece));
        };
        endpoint.travelling_bytes += piece.as_ref().map_or(0, Parcel::len);
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
                    return self.settle_parcel(&piece); // Nobody is there to receive it.
                }
                endpoint.arrived_bytes += piece.len() as u64;
                let until = endpoint.arrived_bytes;
                let bytes = self.network.loans.look_at(&piece);
                match piece {
                    Parcel::Lent { loan, bytes, .. } if self.network.loans.is_late(loan) => {
                        self.endpoint(id).received_loans.push_back((until, loan, bytes));
                    }
                    piece => self.settle_parcel(&piece),
                }
                self.endpoint(id).arrived.extend(bytes);
            }
            None => endpoint.ended = true,
        }
        let ended = self.endpoint(id).ended;
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
            endpoint.received_bytes += bytes as u64;
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
        let endpoint = self.endpoint(id);
        if !endpoint.arrived.is_empty() || endpoint.ended || endpoint.closed {
            for address in std::mem::take(&mut endpoint.readables) {
                self.complete_later(address, Outcome::of(Ok(0)));
            }
        }
        if received {
            self.note_received(id);
        }
    }

    fn note_received(&mut self, id: u64) {
        self.settle_received(id);
        if let Some(peer) = self.endpoint(id).peer {
            self.network_after(NetworkEvent::Pump(peer));
        }
    }

    /// Lets go of what was lent for bytes that `id` has received, or all if nobody will receive them.
    fn settle_received(&mut self, id: u64) {
        loop {
            let endpoint = self.endpoint(id);
            let (received, closed) = (endpoint.received_bytes, endpoint.closed);
            let Some(&(until, loan, bytes)) = endpoint.received_loans.front() else { return };
            if until > received && !closed {
                return;
            }
            endpoint.received_loans.pop_front();
            self.settle_loan(loan, bytes);
        }
    }

    /// Nothing lent by `id` waits any longer for its peer to receive it.
    fn call_in_loans(&mut self, id: u64) {
        self.network.loans.call_in(id);
        let Some(peer) = self.network.endpoints.get(&id).and_then(|endpoint| endpoint.peer) else { return };
        let Some(endpoint) = self.network.endpoints.get_mut(&peer) else { return };
        for (_, loan, bytes) in std::mem::take(&mut endpoint.received_loans) {
            self.settle_loan(loan, bytes);
        }
    }

    fn remove_endpoint(&mut self, id: u64) {
        let Some(endpoint) = self.network.endpoints.remove(&id) else { return };
        for parcel in endpoint.travelling.into_iter().flatten() {
            self.settle_parcel(&parcel);
        }
        for (_, loan, bytes) in endpoint.received_loans {
            self.settle_loan(loan, bytes);
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
        self.settle_received(id);
        self.pump(id);
    }

    fn stop_listening(&mut self, id: u64) {
        let Some(listening) = self.network.listeners.remove(&id) else { return };
        for (accepted, _) in listening.backlog {
            self.end_conversation(accepted);
            self.remove_endpoint(accepted);
        }
    }

    /// Bytes that `sendfile` and `splice` may queue on `socket` now.
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
        self.put_on_the_way(sim_socket(socket).id, Parcel::Bytes(bytes.to_vec()));
    }

    /// Bytes that `splice` may take from `socket` now; `None` when no more will come.
    pub(super) fn arrived_bytes(&mut self, socket: &Socket) -> Option<usize> {
        let endpoint = self.endpoint(sim_socket(socket).id);
        assert!(endpoint.receives.is_empty(), "two receive from one socket");
        let over = endpoint.arrived.is_empty() && (endpoint.ended || endpoint.closed);
        (!over).then_some(endpoint.arrived.len())
    }

    pub(super) fn receive_now(&mut self, socket: &Socket, bytes: usize) -> Vec<u8> {
        let id = sim_socket(socket).id;
        let endpoint = self.endpoint(id);
        let taken = endpoint.arrived.drain(..bytes).collect();
        endpoint.received_bytes += bytes as u64;
        self.note_received(id);
        taken
    }

    /// Ends an operation that waits for a peer.
    pub(super) fn cancel_network(&mut self, address: Address) {
        let mut found = false;
        for listening in self.network.listeners.values_mut() {
            found |= take_out(&mut listening.waiting, |waiting| *waiting == address);
        }
        let mut done = 0;
        let mut lent = None;
        for endpoint in self.network.endpoints.values_mut() {
            let sending = endpoint.sends.iter().find(|send| send.address == address);
            lent = lent.or(sending.and_then(|send| Some((send.loan?, send.done))));
            let under_way = endpoint.receives.iter().find(|receive| receive.address == address);
            done += under_way.map_or(0, |receive| receive.done);
            found |= take_out(&mut endpoint.receives, |receive| receive.address == address)
                || take_out(&mut endpoint.sends, |send| send.address == address)
                || take_out(&mut endpoint.writables, |writable| *writable == address)
                || take_out(&mut endpoint.readables, |readable| *readable == address);
        }
        match lent {
            Some((loan, done)) if done > 0 => return self.queued_loan(loan, done),
            lent => self.forget_loan(lent.map(|(loan, _)| loan)),
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
            endpoint.readables.clear();
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
